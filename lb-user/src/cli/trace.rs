//! `beeline trace`: what a connect or a datagram would do, by the same function as the kernel's and from the same maps.

use std::{fmt::Write as _, net::SocketAddr, process::ExitCode};

use anyhow::Result;
use clap::{Args, ValueEnum};
use lb_common::{Cause, FrontendKey, Kind, List, Proto, Verdict, list_for, select};

use crate::{inspect, store::Dump};

/// A destination.
#[derive(Args)]
#[command(after_help = "Examples:\n  beeline trace tcp 10.96.0.1:443\n  beeline trace udp '[fd96::a]:53'\n\n\
    Exit codes: 0 the call goes on, to a backend or unchanged; 1 it would be refused.")]
pub(super) struct Arguments {
    /// Protocol of the socket.
    protocol: Protocol,
    /// Destination as the application names it: ADDR:PORT, with brackets around IPv6.
    #[arg(value_name = "ADDR:PORT")]
    destination: SocketAddr,
}

#[derive(Clone, Copy, ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
}

/// How many backends are named one by one.
const MOST_LINES: u32 = 20;

pub(super) fn run(dump: &Dump, arguments: &Arguments) -> Result<ExitCode> {
    let proto = match arguments.protocol {
        Protocol::Tcp => Proto::Tcp,
        Protocol::Udp => Proto::Udp,
    };
    let (text, verdict) = explain(dump, arguments.destination, proto)?;
    print!("{text}");
    Ok(if matches!(verdict, Verdict::Refused(..)) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn explain(dump: &Dump, destination: SocketAddr, proto: Proto) -> Result<(String, Verdict)> {
    let key = FrontendKey::new(destination.ip().into(), destination.port(), proto);
    let verdict = select(dump, &key, 0, || 0);
    let mut text = format!("{} {destination}\n", proto.name().to_lowercase());
    let frontend = dump.frontends.get(&key);
    if let Some(frontend) = frontend {
        let kind = Kind::from_number(frontend.kind).map_or("unknown kind", Kind::name);
        writeln!(text, "  frontend   {kind} of {}", inspect::name_of(dump, frontend.service))?;
    }
    match verdict {
        Verdict::NotService => {
            let other = dump.frontends.keys().filter(|other| other.addr == key.addr).map(ToString::to_string);
            let other: Vec<_> = other.take(5).collect();
            writeln!(text, "  verdict    no Service answers here: the call goes on unchanged")?;
            if !other.is_empty() {
                writeln!(text, "  hint       the address is a VIP, with other ports: {}", other.join(", "))?;
            }
        }
        Verdict::Refused(_, cause) => {
            let why = match cause {
                Cause::NoEndpoints => "the service port has no endpoint that is ready, on any node",
                Cause::NoLocalEndpoints => "internalTrafficPolicy is Local, and no endpoint is on this node",
            };
            writeln!(text, "  reason     {why}")?;
            writeln!(text, "  verdict    refused: the application sees {} ({})", cause.errno_name(), older(cause))?;
        }
        Verdict::Backend(choice) => {
            let service = dump.services.get(&choice.service).copied().unwrap_or_default();
            let list = list_for(frontend.map_or(0, |frontend| frontend.kind), &service);
            let len = service.len(list);
            let name = if list == List::Local { "local" } else { "cluster" };
            let backends = inspect::number(usize::try_from(len)?, "backend");
            writeln!(text, "  list       {name}, {backends}, one at random for each {}", occasion(proto))?;
            for index in 0..len.min(MOST_LINES) {
                // The lowest of the random numbers that lead to this index.
                let random = (u64::from(index) << 32).div_ceil(u64::from(len));
                let random = u32::try_from(random).unwrap_or(u32::MAX);
                if let Verdict::Backend(choice) = select(dump, &key, 0, || random) {
                    let at = SocketAddr::new(choice.addr.to_ip(), choice.port);
                    writeln!(text, "  backend    {at}  {:.1} %", 100.0 / f64::from(len))?;
                }
            }
            if len > MOST_LINES {
                writeln!(text, "             and {} more", len - MOST_LINES)?;
            }
            writeln!(text, "  verdict    goes there; the application sees {destination} as its peer")?;
        }
    }
    Ok((text, verdict))
}

const fn occasion(proto: Proto) -> &'static str {
    match proto {
        Proto::Udp => "connect; an unconnected socket keeps its own while that is there",
        _ => "connect",
    }
}

const fn older(cause: Cause) -> &'static str {
    match cause {
        Cause::NoEndpoints => "\"Connection refused\"; EPERM on kernels before 5.18",
        Cause::NoLocalEndpoints => "\"No route to host\"; EPERM on kernels before 5.18",
    }
}

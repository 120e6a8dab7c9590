//! `beeline trace`: what a connect or a datagram would do, by the same function as the kernel's and from the same maps.

use std::{
    cell::RefCell,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use lb_common::{
    AffinityOutcome, BackendFlags, Caller as _, Cause, Event, Frontend, FrontendKey, Kind, List, Origin, PodMode,
    PodModeEntry, Proto, Scheduler, Service, Slot, SlotKey, State as _, Verdict, select_observed,
};

use crate::{
    inspect,
    snapshot::{Client, Live},
};
use lb_core::text::number;
use lb_dataplane::stats::StatMaps;
use lb_kernel::bpf::typed::TypedMap;

/// A destination.
#[derive(Args)]
#[command(after_help = "Examples:\n  beeline trace tcp 10.96.0.1:443\n  beeline trace udp '[fd96::a]:53'\n  \
    beeline trace tcp 10.96.0.1:443 --pid 4711   as that process would fare: affinity, sh, localhost\n  \
    beeline trace tcp 192.0.2.1:30080 --from 198.51.100.7   as packets from there would: policies, source ranges\n\n\
    Exit codes: 0 the call goes on, to a backend or unchanged; 1 it would be refused.")]
pub(super) struct TraceArgs {
    /// Protocol of the socket.
    protocol: Protocol,
    /// Destination as the application names it: ADDR:PORT, with brackets around IPv6.
    #[arg(value_name = "ADDR:PORT")]
    destination: SocketAddr,
    /// The client: a process, whose network namespace counts [default: one of the node itself]
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// The client: who sends packets from outside of this node, or a pod that has chosen a path, by its address. What
    /// they meet then, at a network device
    #[arg(long, value_name = "ADDR", conflicts_with = "pid")]
    from: Option<IpAddr>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// How many backends are named one by one.
const MOST_LINES: usize = 20;

pub(super) fn run(directory: &Path, arguments: &TraceArgs) -> Result<ExitCode> {
    let proto = match arguments.protocol {
        Protocol::Tcp => Proto::Tcp,
        Protocol::Udp => Proto::Udp,
        Protocol::Sctp => Proto::Sctp,
    };
    let maps = StatMaps::open(directory)?;
    let paths = TypedMap::<u64, PodModeEntry>::open(directory, "POD_MODES")?.read()?.into_iter().collect();
    let live = Live { dump: super::dump(directory)?, stats: maps.read()?, affinity: maps.affinity()?, paths };
    let client = match arguments.from {
        Some(from) => Client::outside(from.into())?,
        None => Client::of(arguments.pid)?,
    };
    let (text, verdict) = along(&live, client, arguments.destination, proto)?;
    print!("{} {}\n{text}", proto.name().to_lowercase(), arguments.destination);
    Ok(if matches!(verdict, Verdict::Refused(..)) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The way that a client takes, if it is a pod's that has chosen one, and where that leads.
fn along(live: &Live, client: Client, destination: SocketAddr, proto: Proto) -> Result<(String, Verdict)> {
    let Some(pod) = live.path_of(&client) else {
        return explain(live, &client, destination, proto);
    };
    let (choice, by) = (inspect::pod_modes::mode_name(pod), inspect::pod_modes::labelled(pod).name());
    let mut text = format!("  path       {choice}, by the label of the {by}: pod {}/{}\n", pod.namespace, pod.name);
    if pod.path != PodMode::Packet as u8 {
        writeln!(text, "  verdict    left alone: sockets and packets of this pod go on unchanged")?;
        return Ok((text, Verdict::NotService));
    }
    let client = client.by_packets(pod, &destination.ip().into());
    let (rest, verdict) = explain(live, &client, destination, proto)?;
    Ok((text + &rest, verdict))
}

fn explain(live: &Live, client: &Client, destination: SocketAddr, proto: Proto) -> Result<(String, Verdict)> {
    let key = FrontendKey::new(destination.ip().into(), destination.port(), proto);
    let events = RefCell::new(Vec::new());
    let verdict = select_observed(live, client, &key, 0, &|event| events.borrow_mut().push(event));
    let (mut frontend, mut list, mut stuck) = (None, List::Cluster, false);
    for event in events.into_inner() {
        match event {
            Event::Frontend { frontend: found, .. } => frontend = Some(found),
            Event::List { list: used, .. } => list = used,
            Event::Affinity { outcome, .. } => stuck = outcome == AffinityOutcome::Kept,
            Event::SecondLook => (frontend, stuck) = (None, false),
            _ => {}
        }
    }
    let mut text = String::new();
    if let Some(frontend) = frontend {
        let kind = Kind::from_number(frontend.kind).map_or("unknown kind", Kind::name);
        writeln!(text, "  frontend   {kind} of {}", inspect::name_of(&live.dump, frontend.service))?;
    }
    match verdict {
        Verdict::NotService => not_service(&mut text, live, client, &key)?,
        Verdict::Refused(_, cause) => {
            let why = match cause {
                Cause::NoEndpoints => "the service port has no endpoint that is ready, on any node",
                Cause::NoLocalEndpoints => "the traffic policy is Local, and no endpoint is on this node",
                Cause::SourceRange => "the client is in none of spec.loadBalancerSourceRanges",
            };
            writeln!(text, "  reason     {why}")?;
            match (client.sends_packets(), cause) {
                (false, _) => {
                    writeln!(
                        text,
                        "  verdict    refused: the application sees {} ({})",
                        cause.errno_name(),
                        older(cause)
                    )?;
                }
                (true, Cause::NoEndpoints) => {
                    writeln!(text, "  verdict    rejected: the client gets a TCP reset, or ICMP port unreachable")?;
                }
                (true, _) => writeln!(text, "  verdict    dropped: the client hears nothing")?,
            }
        }
        Verdict::Backend(choice) => {
            let frontend = frontend.context("a backend without a frontend")?;
            let service = live.dump.services.get(&choice.service).copied().unwrap_or_default();
            policies(&mut text, live, client, frontend, &service, list)?;
            backends(&mut text, live, choice.service, &service, list)?;
            let to = SocketAddr::new(choice.addr.to_ip(), choice.port);
            let scheduler = Scheduler::from_number(service.scheduler).unwrap_or_default();
            match (stuck, scheduler) {
                (true, _) => writeln!(text, "  choice     {to}, to which this client sticks")?,
                (_, Scheduler::Rr | Scheduler::Wrr) => writeln!(text, "  choice     {to}, whose turn it is")?,
                (_, Scheduler::Sh) => writeln!(text, "  choice     {to}, always for this client")?,
                (_, Scheduler::Dh) => writeln!(text, "  choice     {to}, always at this address")?,
                _ => {}
            }
            let on_node = live.dump.backends.get(&choice.backend).is_some_and(|b| b.flags & BackendFlags::ON_NODE != 0);
            let verdict = match (client.origin() == Origin::Outside, on_node) {
                (false, _) => format!("the application sees {destination} as its peer"),
                (true, true) => "with the client's own address".to_owned(),
                (true, false) => "from an address of this node".to_owned(),
            };
            writeln!(text, "  verdict    goes there; {verdict}")?;
        }
    }
    Ok((text, verdict))
}

fn not_service(text: &mut String, live: &Live, client: &Client, key: &FrontendKey) -> Result<()> {
    let verdict = match (client.sends_packets(), live.dump.frontends.contains_key(&key.address())) {
        (false, _) => "the call goes on unchanged",
        (true, false) => "packets go on unchanged",
        (true, true) => "packets are rejected, since the address is a cluster IP (TCP reset, or ICMP port unreachable)",
    };
    writeln!(text, "  verdict    no Service answers here: {verdict}")?;
    let other = live.dump.frontends.keys().filter(|other| other.addr == key.addr && **other != key.address());
    let other = other.map(ToString::to_string);
    let other: Vec<_> = other.take(5).collect();
    if !other.is_empty() {
        writeln!(text, "  hint       the address is a VIP, with other ports: {}", other.join(", "))?;
    }
    if let Some(frontend) = live.dump.frontends.get(&key.node_port()) {
        let of = inspect::name_of(&live.dump, frontend.service);
        let why = match live.dump.node_addrs.get(&key.addr) {
            Some(_) => "a pod's loopback address is its own",
            None => "the address is none at which this node serves NodePorts (--nodeport-addresses)",
        };
        writeln!(text, "  hint       the port is a NodePort of {of}, but {why}")?;
    }
    Ok(())
}

/// What decides which list is used, and how.
fn policies(
    text: &mut String,
    live: &Live,
    client: &Client,
    frontend: Frontend,
    service: &Service,
    list: List,
) -> Result<()> {
    let name = if list == List::Local { "local" } else { "cluster" };
    let slots =
        live.dump.slots.range(SlotKey::new(frontend.service, list, 0)..=SlotKey::new(frontend.service, list, u32::MAX));
    let distinct: std::collections::BTreeSet<u32> = slots.map(|(_, slot)| slot.backend).collect();
    let why = match (list, frontend.kind == Kind::ClusterIp as u8) {
        (List::Local, true) => ", by internalTrafficPolicy Local",
        (List::Local, false) => ", by externalTrafficPolicy Local",
        (List::Cluster, false) if client.origin() == Origin::Node => ", as always for callers on this node",
        (List::Cluster, _) => "",
    };
    writeln!(text, "  list       {name}{why}: {}", number(distinct.len(), "backend"))?;
    let scheduler = Scheduler::from_number(service.scheduler).unwrap_or_default();
    writeln!(text, "  scheduler  {}: {}", scheduler.name(), how(scheduler))?;
    if service.affinity_seconds > 0 {
        let seconds = service.affinity_seconds;
        let state = match live.affinity.get(&client.client().affinity_key(frontend.service)) {
            None => "this client sticks to none yet".to_owned(),
            Some(kept) => {
                let idle = client.now().saturating_sub(kept.used) / 1_000_000_000;
                format!("this client was last given backend {} {idle} s ago", kept.backend)
            }
        };
        writeln!(text, "  affinity   ClientIP, {seconds} s after the last connect; {state}")?;
    }
    Ok(())
}

fn backends(text: &mut String, live: &Live, id: u32, service: &Service, list: List) -> Result<()> {
    let mut slots: Vec<(&SlotKey, &Slot)> =
        live.dump.slots.range(SlotKey::new(id, list, 0)..=SlotKey::new(id, list, u32::MAX)).collect();
    slots.sort_by_key(|(key, slot)| (slot.backend, key.index));
    slots.dedup_by_key(|(_, slot)| slot.backend);
    slots.sort_by_key(|(key, _)| key.index);
    let len = service.len(list);
    let weighs = slots.iter().any(|(_, slot)| slot.weight > 1);
    for (_, slot) in slots.iter().take(MOST_LINES) {
        let to = SocketAddr::new(slot.addr.to_ip(), slot.port);
        let share = f64::from(slot.weight) * 100.0 / f64::from(len.max(1));
        let open = live.open_sockets(slot.backend);
        let weight = if weighs { format!("  weight {}", slot.weight) } else { String::new() };
        writeln!(text, "  backend    {to}  {share:.1} %{weight}  {}", number(usize::try_from(open)?, "open socket"))?;
    }
    if slots.len() > MOST_LINES {
        writeln!(text, "             and {} more", slots.len() - MOST_LINES)?;
    }
    Ok(())
}

const fn how(scheduler: Scheduler) -> &'static str {
    match scheduler {
        Scheduler::Random => "any of them, by chance",
        Scheduler::Rr => "each in turn",
        Scheduler::Wrr => "each in turn, as often as its weight says",
        Scheduler::Lc => "of two by chance the one with fewer open sockets on this node",
        Scheduler::Wlc => "of two by chance the one with fewer open sockets for its weight",
        Scheduler::Sed => "of two by chance the one with fewer sockets for its weight, the new one counted in",
        Scheduler::Nq => "of two by chance an idle one, else as sed",
        Scheduler::Sh => "by the client: always the same for its network namespace",
        Scheduler::Dh => "by the address dialled: always the same for one frontend",
        Scheduler::Mh => "packets by the hash of their flow, the same on all nodes; sockets by chance",
    }
}

const fn older(cause: Cause) -> &'static str {
    match cause {
        Cause::NoEndpoints => "\"Connection refused\"; EPERM on kernels before 5.18",
        Cause::NoLocalEndpoints | Cause::SourceRange => "\"No route to host\"; EPERM on kernels before 5.18",
    }
}

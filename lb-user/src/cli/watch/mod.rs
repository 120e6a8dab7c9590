//! `beeline watch`: reads the programs' records while it runs, and prints a line for each event, or a summary.

mod names;

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use lb_common::{WatchKind, WatchRecord};
use lb_core::objects::Key;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::MissedTickBehavior,
};

use super::{
    arguments,
    table::{self, Column},
};
use crate::watch::{Follower, Outcome, RESULT_TIMEOUT, WatchClient, WatchEvent, WatchFilter, WatchSummary};
use lb_dataplane::{
    pins::Pins,
    watch::{LEASE, Lost, WatchReader, WatchScope},
};
use lb_kernel::clock;
use names::{Clients, Ports};

/// Interval of reading: short enough to look live, and for bursts that fill a buffer.
const TICK: Duration = Duration::from_millis(10);

/// Interval of checks and of messages about lost events.
const CHECK: Duration = Duration::from_secs(1);

/// Arguments of `beeline watch`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  beeline watch\n  beeline watch --failed                        refused calls, and \
    handshakes that failed\n  beeline watch --service default/web -o json\n  \
    beeline watch --for 10s --summary             top clients, and times of handshakes for each backend\n\n\
    An unconnected UDP socket has an event for its first datagram to a frontend only. One `beeline watch` runs on a \
    node at a time."
)]
pub(super) struct WatchArgs {
    /// Events of this Service only.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = arguments::service)]
    service: Option<Key>,
    /// Events of Services or pods of this namespace only.
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Events of processes in this pod only.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = arguments::key)]
    pod: Option<Key>,
    /// Calls that Beeline refused only.
    #[arg(long)]
    refused: bool,
    /// Refused calls, and TCP handshakes that failed, only.
    #[arg(long)]
    failed: bool,
    /// Also first packets of flows that come in by devices: of clients outside, and of pods in mode `packet`.
    #[arg(long)]
    packets: bool,
    /// Packets from these addresses only; implies --packets.
    #[arg(long, value_name = "ADDR[/LENGTH]", value_parser = parse_net)]
    from: Option<IpNet>,
    /// Form of the output.
    #[arg(short, long, default_value = "text", value_name = "FORM")]
    output: WatchFormat,
    /// End after this time, as in 10s, 5m or 1h [default: at Ctrl-C]
    #[arg(long = "for", value_name = "TIME", value_parser = arguments::positive_time)]
    time: Option<Duration>,
    /// Print counts at the end, instead of a line for each event.
    #[arg(long)]
    summary: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WatchFormat {
    /// Lines of text.
    Text,
    /// One JSON object per line.
    Json,
}

fn parse_net(text: &str) -> Result<IpNet, String> {
    let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map_err(|_| "want an address, or one with the length of a prefix".to_owned())
}

pub(super) fn run(pins: &Pins, arguments: WatchArgs) -> Result<ExitCode> {
    let wants_packets = arguments.packets || arguments.from.is_some();
    let scope = if wants_packets { WatchScope::SocketsAndPackets } else { WatchScope::Sockets };
    let reader = WatchReader::open(pins, scope)?;
    if let Some(error) = reader.without_handshakes() {
        eprintln!("beeline: the results of TCP handshakes are not shown: {error:#}");
    }
    // A connect without a result is no failure yet: a line of its result is the first.
    let timeout = (!arguments.failed).then_some(RESULT_TIMEOUT);
    let mut watch = Watch {
        follower: Follower::new(reader.without_handshakes().is_none(), timeout),
        reader,
        ports: Ports::new(pins.current()),
        clients: Clients::new(),
        filter: WatchFilter {
            service: arguments.service,
            namespace: arguments.namespace,
            pod: arguments.pod,
            refused: arguments.refused,
            failed: arguments.failed,
            from: arguments.from,
        },
        output: arguments.output,
        summary: arguments.summary.then(WatchSummary::default),
        lost: Lost::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(watch.run(arguments.time))?;
    Ok(ExitCode::SUCCESS)
}

/// A running watch.
struct Watch {
    reader: WatchReader,
    follower: Follower,
    ports: Ports,
    clients: Clients,
    filter: WatchFilter,
    output: WatchFormat,
    summary: Option<WatchSummary>,
    /// Lost events that were told.
    lost: Lost,
}

impl Watch {
    async fn run(&mut self, time: Option<Duration>) -> Result<()> {
        let start = Instant::now();
        let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut checked = start;
        eprintln!("beeline: watching; Ctrl-C ends");
        while time.is_none_or(|time| start.elapsed() < time) {
            tokio::select! {
                _ = tick.tick() => {}
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
            }
            let records = self.reader.read();
            let mut outcomes: Vec<_> =
                records.into_iter().flat_map(|record: WatchRecord| self.follower.take(record)).collect();
            if checked.elapsed() >= CHECK {
                checked = Instant::now();
                outcomes.extend(self.follower.overdue(clock::monotonic_ns()));
                if self.reader.check()? {
                    let message =
                        format!("events are missing: this process stood still for {} s or more", LEASE.as_secs());
                    self.tell(&message)?;
                }
                self.tell_lost()?;
            }
            if !self.show(&outcomes)? {
                return Ok(());
            }
        }
        let elapsed = start.elapsed();
        let records = self.reader.finish()?;
        let mut outcomes: Vec<_> = records.into_iter().flat_map(|record| self.follower.take(record)).collect();
        outcomes.extend(self.follower.finish(clock::monotonic_ns()));
        if self.show(&outcomes)? {
            self.tell_lost()?;
            self.finish(elapsed)?;
        }
        Ok(())
    }

    /// Shows or counts outcomes; false if the reader of the output is gone.
    fn show(&mut self, outcomes: &[Outcome]) -> Result<bool> {
        if outcomes.is_empty() {
            return Ok(true);
        }
        // The wall clock may be set at any time.
        let (monotonic, now) = (clock::monotonic_ns(), Timestamp::now());
        let mut text = String::new();
        self.ports.refresh();
        for outcome in outcomes {
            let record = &outcome.record;
            let age = Duration::from_nanos(monotonic.saturating_sub(record.time));
            let time = format!("{:.6}", now.checked_sub(age).unwrap_or(now));
            let cgroup = self.clients.cgroup(record.cgroup);
            let client = if record.kind != WatchKind::Packet as u8 {
                self.clients.client(record.cgroup, cgroup.as_deref())
            } else {
                WatchClient::Address(SocketAddr::new(record.client.to_ip(), record.client_port))
            };
            let event = WatchEvent::new(outcome, time, client, cgroup, self.ports.name(record.service));
            if !self.filter.shows(&event) {
                continue;
            }
            match (&mut self.summary, self.output) {
                (Some(summary), _) => summary.add(&event),
                (None, WatchFormat::Text) => text += &event.line(),
                (None, WatchFormat::Json) => text += &(event.json().to_string() + "\n"),
            }
        }
        super::print_text(&text)
    }

    fn tell_lost(&mut self) -> Result<()> {
        let lost = self.reader.lost()?;
        if lost == self.lost {
            return Ok(());
        }
        self.lost = lost;
        let Lost { calls, results } = lost;
        let text = format!("events come faster than they are read: lost {calls} calls and {results} results so far");
        self.tell(&text)
    }

    /// Tells about the watch itself: on stderr, or as an object of its own.
    fn tell(&self, message: &str) -> Result<()> {
        match self.output {
            WatchFormat::Text => eprintln!("beeline: {message}"),
            WatchFormat::Json => {
                let Lost { calls, results } = self.lost;
                let value = serde_json::json!({"message": message, "lostCalls": calls, "lostResults": results});
                super::print_text(&format!("{value}\n"))?;
            }
        }
        Ok(())
    }

    fn finish(&self, elapsed: Duration) -> Result<()> {
        let Some(summary) = &self.summary else {
            return Ok(());
        };
        let table = |head: &[&'static str], rows: &[Vec<String>]| {
            let is_word = |name: &str| ["CLIENT", "SERVICE", "BACKEND"].contains(&name);
            let column = |name: &&'static str| if is_word(name) { Column::left(name) } else { Column::right(name) };
            table::text(&head.iter().map(column).collect::<Vec<_>>(), rows)
        };
        let text = match self.output {
            WatchFormat::Text => summary.text(elapsed, self.lost, table),
            WatchFormat::Json => format!("{}\n", summary.json(elapsed, self.lost)),
        };
        super::print_text(&text).map(drop)
    }
}

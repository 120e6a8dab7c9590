//! Sockets that outlive their backend: connected UDP sockets are ended at once, TCP sockets as their Service's drain says;
//! and counts that outlive what they count are removed. A thread of its own, so that no pass waits for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::{Counter, FrontendKey, NEVER, Proto, Service};
use lb_kernel::sock_diag::bound_sockets;
use tracing::{info, warn};

use crate::{
    events::{EventQueue, Origin},
    reconcile::{Aftermath, Departed},
};
use lb_core::{
    objects::{Drain, Key},
    warning::Warning,
};
use lb_dataplane::{
    sockets::{self, Dead},
    stats::{self, Living, StatMaps, Stats},
    store::BpfStore,
};
use lb_kernel::clock;

/// How often counts and affinity are swept.
const SWEEP: Duration = Duration::from_secs(30);

/// When sockets are looked for a second time: those whose connect was under way when the backend went.
const AGAIN: Duration = Duration::from_secs(1);

/// Starts the thread, which tells owners of Services on `board`. It ends when the sender is dropped.
///
/// # Errors
/// When there can be no more threads.
pub fn start(directory: PathBuf, board: EventQueue) -> Result<Sender<Aftermath>> {
    let (sender, receiver) = channel();
    let now = Instant::now();
    let run = move || Reaper { directory, board, waiting: Waiting::default(), start: now, scan: None }.run(&receiver);
    thread::Builder::new().name("reaper".to_owned()).spawn(run).context("starting a thread")?;
    Ok(sender)
}

struct Reaper {
    directory: PathBuf,
    board: EventQueue,
    waiting: Waiting,
    start: Instant,
    /// When what went while no agent ran is looked at again, at the latest; none when nothing of it is left to do.
    scan: Option<Instant>,
}

impl Reaper {
    fn run(mut self, passes: &Receiver<Aftermath>) {
        let mut sweep = Instant::now() + SWEEP;
        let mut first = true;
        loop {
            let wake = [self.waiting.next(), self.scan].into_iter().flatten().fold(sweep, Instant::min);
            let passed = match passes.recv_timeout(wake.saturating_duration_since(Instant::now())) {
                Ok(mut aftermath) => {
                    passes.try_iter().for_each(|later| aftermath.append(later));
                    self.waiting.add(&aftermath.departed, Instant::now());
                    self.attempt("looking for listeners on NodePorts", |reaper| reaper.bound(&aftermath.node_ports));
                    true
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // From the first pass on the maps are right.
            if passed && first {
                self.attempt("removing counts of what has gone", Self::sweep);
            }
            if (passed && first) || self.scan.is_some_and(|scan| passed || scan <= Instant::now()) {
                self.attempt("looking for sockets to end", Self::scan);
            }
            first &= !passed;
            self.attempt("ending sockets", Self::end_due);
            if Instant::now() >= sweep {
                self.attempt("removing counts of what has gone", Self::sweep);
                sweep = Instant::now() + SWEEP;
            }
        }
    }

    fn attempt(&mut self, what: &str, action: impl FnOnce(&mut Self) -> Result<()>) {
        if let Err(error) = action(self) {
            warn!("{what}: {error:#}");
        }
    }

    /// Ends the sockets whose time has come. Backends that no socket has are nobody's concern.
    fn end_due(&mut self) -> Result<()> {
        let now = Instant::now();
        if self.waiting.next().is_none_or(|next| next > now) && self.waiting.udp.is_empty() {
            return Ok(());
        }
        let store = BpfStore::open(&self.directory)?;
        let state = |id| {
            match store.service(id) {
                Ok(None) => Servers::Gone,
                Ok(Some(service)) if service.cluster_len + service.local_len > 0 => Servers::Some,
                // What cannot be read is looked at again.
                Ok(Some(_)) | Err(_) => Servers::None,
            }
        };
        let maps = StatMaps::open(&self.directory)?;
        // Where counts had no room, nobody knows who has it.
        let uncounted = !stats::counters(&self.directory)?.contains(&(Counter::StatsFull, 0));
        let is_held = |departed: &Departed| match maps.backend(departed.backend) {
            Ok(Some(stats)) => stats.open > 0,
            Ok(None) => uncounted,
            Err(_) => true,
        };
        let mut due = self.waiting.take_due(now, state);
        due.retain(is_held);
        if due.is_empty() {
            return Ok(());
        }
        let dead: Vec<Dead> = due
            .iter()
            .map(|departed| Dead { backend: departed.backend, target: departed.target, proto: departed.proto })
            .collect();
        let report = sockets::end(&self.directory, &dead)?;
        let service: BTreeMap<u32, u32> = due.iter().map(|departed| (departed.backend, departed.service)).collect();
        tell(&self.directory, &report, |backend| service.get(&backend).copied())
    }

    /// Who listened on a NodePort before it was one keeps its socket, but nobody on the node reaches it there.
    fn bound(&self, node_ports: &[FrontendKey]) -> Result<()> {
        if node_ports.is_empty() {
            return Ok(());
        }
        let ports: BTreeSet<(u8, u16)> = node_ports.iter().map(|key| (key.proto, key.port)).collect();
        let store = BpfStore::open(&self.directory)?;
        let mut told = BTreeMap::<Key, Vec<Warning>>::new();
        for socket in bound_sockets(&|proto, port| ports.contains(&(proto as u8, port)))? {
            let of = |key: &&FrontendKey| (key.proto, key.port) == (socket.proto as u8, socket.address.port());
            let service = node_ports.iter().find(of).and_then(|key| store.name(store.frontend(key)?.service));
            let warning = Warning::NodePortInUse {
                service: service.as_ref().map(ToString::to_string),
                proto: socket.proto,
                address: socket.address,
                process: socket.owner.as_ref().map(|owner| (owner.comm.clone(), owner.pid)),
            };
            warn!("{warning}");
            if let Some(port) = service {
                told.entry(port.service).or_default().push(warning);
            }
        }
        told.into_iter().for_each(|(service, problems)| self.board.tell(Origin::NodePort, &service, problems));
        Ok(())
    }

    /// Counts of what has gone, and affinity that is over.
    fn sweep(&mut self) -> Result<()> {
        let maps = StatMaps::open(&self.directory)?;
        maps.sweep(&Living::open(&self.directory)?, clock::monotonic_ns())
    }

    /// What went while no agent ran. Nobody knows when, so that the time of a drain begins with the agent.
    fn scan(&mut self) -> Result<()> {
        self.scan = None;
        let living = Living::open(&self.directory)?;
        let stats = StatMaps::open(&self.directory)?.read()?;
        let store = BpfStore::open(&self.directory)?;
        let running = self.start.elapsed();
        let fate = |id: u32, proto: Proto| match stats.backends.get(&id) {
            // Of a service port that has gone too, nobody knows the protocol: both are looked for.
            Some(stats) if store.name(stats.service).is_some_and(|name| name.proto != proto) => Fate::Lives,
            Some(stats) if !living.has_backend(id) => match store.service(stats.service) {
                Ok(service) => fate(proto, service, running),
                Err(_) => Fate::Lives,
            },
            _ => Fate::Lives,
        };
        let held = || stats.backends.iter().filter(|(_, stats)| stats.open > 0).map(|(id, _)| *id);
        for proto in [Proto::Udp, Proto::Tcp] {
            if held().any(|id| fate(id, proto) == Fate::Ends) {
                let report = sockets::end_all(&self.directory, proto, &|id| fate(id, proto) != Fate::Ends)?;
                tell(&self.directory, &report, |backend| service_of(&stats, backend))?;
            }
            let later = held().filter_map(|id| if let Fate::Later(at) = fate(id, proto) { Some(at) } else { None });
            self.scan = later.map(|at| self.start + at).chain(self.scan).min();
        }
        Ok(())
    }
}

/// What becomes of a socket whose backend went while no agent ran.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// It stays as it is.
    Lives,
    /// It ends now.
    Ends,
    /// It is looked at again when the agent has run for so long, or after a pass.
    Later(Duration),
}

/// The fate of a socket of a service port, none if that has gone too; the agent has run for `running`.
fn fate(proto: Proto, service: Option<Service>, running: Duration) -> Fate {
    match (proto, service) {
        // Nobody knows any more how its TCP sockets were to drain.
        (Proto::Tcp, None) => Fate::Lives,
        (Proto::Tcp, Some(Service { drain_seconds: NEVER, .. })) => Fate::Lives,
        (Proto::Tcp, Some(Service { drain_seconds, .. })) => match Duration::from_secs(drain_seconds.into()) {
            drain if drain <= running => Fate::Ends,
            drain => Fate::Later(drain),
        },
        (_, Some(service)) if service.cluster_len + service.local_len == 0 => Fate::Later(running + SWEEP),
        _ => Fate::Ends,
    }
}

fn service_of(stats: &Stats, backend: u32) -> Option<u32> {
    stats.backends.get(&backend).map(|stats| stats.service)
}

/// Counts and logs what was done.
fn tell(directory: &Path, report: &sockets::Report, service_of: impl Fn(u32) -> Option<u32>) -> Result<()> {
    for failure in &report.failures {
        warn!("{failure}");
    }
    let mut ended = BTreeMap::<u32, u64>::new();
    for (&backend, count) in &report.ended {
        if let Some(service) = service_of(backend) {
            *ended.entry(service).or_default() += count;
        }
    }
    let (maps, store) = (StatMaps::open(directory)?, BpfStore::open(directory)?);
    for (service, sockets) in ended {
        let name = store.name(service).map_or_else(|| format!("service#{service}"), |name| name.to_string());
        info!(service = name, sockets, took = ?report.took, "ended sockets whose backend has gone");
        maps.add_killed(service, sockets)?;
    }
    Ok(())
}

/// What a service port has now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Servers {
    /// It is not there any more.
    Gone,
    /// No backend.
    None,
    /// Some backend.
    Some,
}

/// Backends whose sockets are to be ended, and when.
#[derive(Default)]
struct Waiting {
    /// As soon as there is another backend to go to: with none, the old one may well come back (kube-proxy,
    /// pkg/proxy/conntrack/cleanup.go).
    udp: Vec<Departed>,
    timed: Vec<(Instant, Departed)>,
}

impl Waiting {
    fn add(&mut self, departed: &[Departed], now: Instant) {
        for departed in departed {
            match (departed.proto, departed.drain) {
                (Proto::Udp, _) => self.udp.push(*departed),
                (Proto::Tcp, Drain::After(seconds)) => {
                    let at = now + Duration::from_secs(seconds.into());
                    self.timed.extend([(at, *departed), (at + AGAIN, *departed)]);
                }
                _ => {}
            }
        }
    }

    /// When something is due next.
    fn next(&self) -> Option<Instant> {
        self.timed.iter().map(|(at, _)| *at).min()
    }

    /// Takes what is due.
    fn take_due(&mut self, now: Instant, servers: impl Fn(u32) -> Servers) -> Vec<Departed> {
        let mut due: Vec<Departed> =
            self.timed.extract_if(.., |(at, _)| *at <= now).map(|(_, departed)| departed).collect();
        let ready: Vec<_> = self.udp.extract_if(.., |departed| servers(departed.service) != Servers::None).collect();
        self.timed.extend(ready.iter().map(|departed| (now + AGAIN, *departed)));
        due.extend(ready);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn departed(backend: u32, service: u32, proto: Proto, drain: Drain) -> Departed {
        let target = "10.0.0.1:53".parse::<std::net::SocketAddr>().expect("an address").into();
        Departed { backend, service, proto, target, drain }
    }

    #[test]
    fn rule_8_what_went_while_no_agent_ran_ends_no_sooner_than_its_service_says() {
        let service = |len, drain_seconds| Some(Service { cluster_len: len, drain_seconds, ..Service::default() });
        let at = Duration::from_secs;
        let cases = [
            (Proto::Udp, service(1, NEVER), Fate::Ends),
            (Proto::Udp, service(0, NEVER), Fate::Later(at(10) + SWEEP)),
            (Proto::Udp, None, Fate::Ends),
            (Proto::Tcp, service(1, NEVER), Fate::Lives),
            (Proto::Tcp, service(1, 0), Fate::Ends),
            (Proto::Tcp, service(0, 10), Fate::Ends),
            (Proto::Tcp, service(1, 11), Fate::Later(at(11))),
            (Proto::Tcp, None, Fate::Lives),
        ];
        for (proto, service, expected) in cases {
            assert_eq!(fate(proto, service, at(10)), expected, "{proto:?} {service:?}");
        }
    }

    #[test]
    fn rule_8_udp_goes_at_once_and_waits_while_there_is_no_server_at_all() {
        let mut waiting = Waiting::default();
        let start = Instant::now();
        let both = [departed(1, 1, Proto::Udp, Drain::Never), departed(2, 2, Proto::Udp, Drain::Never)];
        waiting.add(&both, start);
        let mut take = |at: u64, two: Servers| {
            let servers = |id| if id == 1 { Servers::Some } else { two };
            let due = waiting.take_due(start + Duration::from_millis(at), servers);
            due.into_iter().map(|departed| departed.backend).collect::<Vec<_>>()
        };
        assert_eq!(take(0, Servers::None), [1]);
        assert_eq!(take(500, Servers::None), [0; 0]);
        assert_eq!(take(1000, Servers::None), [1], "once more, for a connect that was under way");
        assert_eq!(take(60_000, Servers::Gone), [2]);
        assert_eq!(take(61_000, Servers::Gone), [2]);
        assert_eq!(take(99_000, Servers::Gone), [0; 0]);
    }

    #[test]
    fn tcp_goes_when_the_drain_says() {
        let mut waiting = Waiting::default();
        let start = Instant::now();
        let all = [
            departed(1, 1, Proto::Tcp, Drain::Never),
            departed(2, 1, Proto::Tcp, Drain::After(0)),
            departed(3, 1, Proto::Tcp, Drain::After(30)),
        ];
        waiting.add(&all, start);
        assert_eq!(waiting.next(), Some(start));
        let mut take = |at: u64| {
            let due = waiting.take_due(start + Duration::from_secs(at), |_| Servers::None);
            due.into_iter().map(|departed| departed.backend).collect::<Vec<_>>()
        };
        assert_eq!(take(0), [2]);
        assert_eq!(take(29), [2]);
        assert_eq!(take(30), [3]);
        assert_eq!(take(31), [3]);
        assert_eq!(take(99), [0; 0]);
    }
}

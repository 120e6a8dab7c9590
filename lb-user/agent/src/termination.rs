//! Termination of sockets whose backend was removed: connected UDP sockets at once, TCP sockets after their Service's
//! drain time. Also removes counts of deleted objects. A thread of its own, so that no pass waits for it.

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
    events::{EventQueue, ProblemOrigin},
    reconcile::{MapChanges, RemovedBackend},
};
use lb_core::{
    objects::{Drain, Key},
    warning::Warning,
};
use lb_dataplane::{
    sockets::{self, DeadBackend},
    stats::{self, LiveIds, StatMaps, Stats},
    store::BpfStore,
};
use lb_kernel::clock;

/// Interval of sweeps over counts and affinity.
const SWEEP: Duration = Duration::from_secs(30);

/// Delay of the second search for the sockets of a backend: a connect may have been under way in the first.
const SECOND_SEARCH: Duration = Duration::from_secs(1);

/// Starts the thread. It ends when the sender is dropped.
///
/// # Errors
/// If the thread cannot be started.
pub(crate) fn start(directory: PathBuf, events: EventQueue) -> Result<Sender<MapChanges>> {
    let (sender, receiver) = channel();
    let start = Instant::now();
    let worker = Worker { directory, events, queue: TerminationQueue::default(), start, scan: None };
    let thread = thread::Builder::new().name("termination".to_owned());
    thread.spawn(move || worker.run(&receiver)).context("starting a thread")?;
    Ok(sender)
}

struct Worker {
    /// Directory of the pins.
    directory: PathBuf,
    events: EventQueue,
    queue: TerminationQueue,
    start: Instant,
    /// Time of the next scan for sockets of backends that were removed while no agent ran; none when all are handled.
    scan: Option<Instant>,
}

impl Worker {
    fn run(mut self, passes: &Receiver<MapChanges>) {
        let mut sweep = Instant::now() + SWEEP;
        let mut is_first_pass = true;
        loop {
            let wake = [self.queue.next(), self.scan].into_iter().flatten().fold(sweep, Instant::min);
            let has_passed = match passes.recv_timeout(wake.saturating_duration_since(Instant::now())) {
                Ok(mut changes) => {
                    passes.try_iter().for_each(|later| changes.append(later));
                    self.queue.add(&changes.removed_backends, Instant::now());
                    self.attempt("looking for listeners on NodePorts", |worker| {
                        worker.report_listeners(&changes.new_node_ports)
                    });
                    true
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // The maps are not up to date before the first pass.
            if has_passed && is_first_pass {
                self.attempt("removing counts of deleted objects", Self::sweep);
            }
            if (has_passed && is_first_pass) || self.scan.is_some_and(|scan| has_passed || scan <= Instant::now()) {
                self.attempt("looking for sockets to end", Self::scan);
            }
            is_first_pass &= !has_passed;
            self.attempt("ending sockets", Self::end_due);
            if Instant::now() >= sweep {
                self.attempt("removing counts of deleted objects", Self::sweep);
                sweep = Instant::now() + SWEEP;
            }
        }
    }

    fn attempt(&mut self, what: &str, action: impl FnOnce(&mut Self) -> Result<()>) {
        if let Err(error) = action(self) {
            warn!("{what}: {error:#}");
        }
    }

    /// Ends the sockets that are due. Backends without sockets cost no search.
    fn end_due(&mut self) -> Result<()> {
        let now = Instant::now();
        if self.queue.next().is_none_or(|next| next > now) && self.queue.udp.is_empty() {
            return Ok(());
        }
        let store = BpfStore::open(&self.directory)?;
        let state = |id| {
            match store.service(id) {
                Ok(None) => PortState::Removed,
                Ok(Some(service)) if service.cluster_len + service.local_len > 0 => PortState::HasBackends,
                // After an error, the next round reads it again.
                Ok(Some(_)) | Err(_) => PortState::WithoutBackends,
            }
        };
        let maps = StatMaps::open(&self.directory)?;
        // Sockets may be uncounted if the map of counts was full.
        let may_be_uncounted = !stats::counters(&self.directory)?.contains(&(Counter::StatsFull, 0));
        let may_have_sockets = |removed: &RemovedBackend| match maps.backend(removed.backend) {
            Ok(Some(stats)) => stats.open > 0,
            Ok(None) => may_be_uncounted,
            Err(_) => true,
        };
        let mut due = self.queue.take_due(now, state);
        due.retain(may_have_sockets);
        if due.is_empty() {
            return Ok(());
        }
        let dead: Vec<DeadBackend> = due
            .iter()
            .map(|removed| DeadBackend { backend: removed.backend, target: removed.address, proto: removed.proto })
            .collect();
        let report = sockets::end(&self.directory, &dead)?;
        let service: BTreeMap<u32, u32> = due.iter().map(|removed| (removed.backend, removed.service)).collect();
        record(&self.directory, &report, |backend| service.get(&backend).copied())
    }

    /// Reports processes that listened on a NodePort before it was added: callers on this node reach the Service
    /// instead.
    fn report_listeners(&self, node_ports: &[FrontendKey]) -> Result<()> {
        if node_ports.is_empty() {
            return Ok(());
        }
        let ports: BTreeSet<(u8, u16)> = node_ports.iter().map(|key| (key.proto, key.port)).collect();
        let store = BpfStore::open(&self.directory)?;
        let mut problems = BTreeMap::<Key, Vec<Warning>>::new();
        for socket in bound_sockets(&|proto, port| ports.contains(&(proto as u8, port)))? {
            let is_same = |key: &&FrontendKey| (key.proto, key.port) == (socket.proto as u8, socket.address.port());
            let service = node_ports.iter().find(is_same).and_then(|key| store.name(store.frontend(key)?.service));
            let warning = Warning::NodePortInUse {
                service: service.as_ref().map(ToString::to_string),
                proto: socket.proto,
                address: socket.address,
                process: socket.owner.as_ref().map(|owner| (owner.comm.clone(), owner.pid)),
            };
            warn!("{warning}");
            if let Some(port) = service {
                problems.entry(port.service).or_default().push(warning);
            }
        }
        problems
            .into_iter()
            .for_each(|(service, problems)| self.events.report(ProblemOrigin::NodePort, &service, problems));
        Ok(())
    }

    /// Removes counts of deleted objects, and expired affinity.
    fn sweep(&mut self) -> Result<()> {
        let maps = StatMaps::open(&self.directory)?;
        maps.sweep(&LiveIds::open(&self.directory)?, clock::monotonic_ns())
    }

    /// Ends sockets of backends that were removed while no agent ran. The time of the removal is unknown, so drain
    /// times count from the start of the agent.
    fn scan(&mut self) -> Result<()> {
        self.scan = None;
        let living = LiveIds::open(&self.directory)?;
        let stats = StatMaps::open(&self.directory)?.read()?;
        let store = BpfStore::open(&self.directory)?;
        let running = self.start.elapsed();
        let verdict = |id: u32, proto: Proto| match stats.backends.get(&id) {
            // The protocol of a removed service port is unknown: its sockets are searched in both.
            Some(stats) if store.name(stats.service).is_some_and(|name| name.proto != proto) => Verdict::Keep,
            Some(stats) if !living.has_backend(id) => match store.service(stats.service) {
                Ok(service) => verdict(proto, service, running),
                Err(_) => Verdict::Keep,
            },
            _ => Verdict::Keep,
        };
        let with_sockets = || stats.backends.iter().filter(|(_, stats)| stats.open > 0).map(|(id, _)| *id);
        for proto in [Proto::Udp, Proto::Tcp] {
            if with_sockets().any(|id| verdict(id, proto) == Verdict::End) {
                let report = sockets::end_all(&self.directory, proto, &|id| verdict(id, proto) != Verdict::End)?;
                record(&self.directory, &report, |backend| service_of(&stats, backend))?;
            }
            let rechecks = with_sockets().filter_map(|id| match verdict(id, proto) {
                Verdict::Recheck(after) => Some(self.start + after),
                Verdict::Keep | Verdict::End => None,
            });
            self.scan = rechecks.chain(self.scan).min();
        }
        Ok(())
    }
}

/// Decision about the sockets of a backend that was removed while no agent ran.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Keep,
    End,
    /// Decide again when the agent has run for so long, or after a pass.
    Recheck(Duration),
}

/// Decides about sockets of a service port (none if it was removed too), when the agent has run for `running`.
fn verdict(proto: Proto, service: Option<Service>, running: Duration) -> Verdict {
    match (proto, service) {
        // The drain time was removed with the service port.
        (Proto::Tcp, None) => Verdict::Keep,
        (Proto::Tcp, Some(Service { drain_seconds: NEVER, .. })) => Verdict::Keep,
        (Proto::Tcp, Some(Service { drain_seconds, .. })) => match Duration::from_secs(drain_seconds.into()) {
            drain if drain <= running => Verdict::End,
            drain => Verdict::Recheck(drain),
        },
        (_, Some(service)) if service.cluster_len + service.local_len == 0 => Verdict::Recheck(running + SWEEP),
        _ => Verdict::End,
    }
}

fn service_of(stats: &Stats, backend: u32) -> Option<u32> {
    stats.backends.get(&backend).map(|stats| stats.service)
}

/// Counts and logs the sockets that were ended.
fn record(directory: &Path, report: &sockets::EndReport, service_of: impl Fn(u32) -> Option<u32>) -> Result<()> {
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

/// State of a service port in the maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PortState {
    Removed,
    WithoutBackends,
    HasBackends,
}

/// Removed backends whose sockets must end.
#[derive(Default)]
struct TerminationQueue {
    /// UDP backends, due once the service port has another backend. Until then the removed one may come back, and its
    /// clients keep their sockets (kube-proxy, pkg/proxy/conntrack/cleanup.go).
    udp: Vec<RemovedBackend>,
    /// Backends with the time at which their sockets end.
    timed: Vec<(Instant, RemovedBackend)>,
}

impl TerminationQueue {
    fn add(&mut self, removed: &[RemovedBackend], now: Instant) {
        for removed in removed {
            match (removed.proto, removed.drain) {
                (Proto::Udp, _) => self.udp.push(*removed),
                (Proto::Tcp, Drain::After(seconds)) => {
                    let at = now + Duration::from_secs(seconds.into());
                    self.timed.extend([(at, *removed), (at + SECOND_SEARCH, *removed)]);
                }
                _ => {}
            }
        }
    }

    /// Returns the earliest time in the queue.
    fn next(&self) -> Option<Instant> {
        self.timed.iter().map(|(at, _)| *at).min()
    }

    /// Takes the backends that are due; `state` tells the state of a service port by its id.
    fn take_due(&mut self, now: Instant, state: impl Fn(u32) -> PortState) -> Vec<RemovedBackend> {
        let mut due: Vec<RemovedBackend> =
            self.timed.extract_if(.., |(at, _)| *at <= now).map(|(_, removed)| removed).collect();
        let udp: Vec<_> =
            self.udp.extract_if(.., |removed| state(removed.service) != PortState::WithoutBackends).collect();
        self.timed.extend(udp.iter().map(|removed| (now + SECOND_SEARCH, *removed)));
        due.extend(udp);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(backend: u32, service: u32, proto: Proto, drain: Drain) -> RemovedBackend {
        let address = "10.0.0.1:53".parse::<std::net::SocketAddr>().expect("an address").into();
        RemovedBackend { backend, service, proto, address, drain }
    }

    #[test]
    fn rule_8_sockets_of_backends_removed_without_an_agent_end_no_sooner_than_the_service_allows() {
        let service = |len, drain_seconds| Some(Service { cluster_len: len, drain_seconds, ..Service::default() });
        let at = Duration::from_secs;
        let cases = [
            (Proto::Udp, service(1, NEVER), Verdict::End),
            (Proto::Udp, service(0, NEVER), Verdict::Recheck(at(10) + SWEEP)),
            (Proto::Udp, None, Verdict::End),
            (Proto::Tcp, service(1, NEVER), Verdict::Keep),
            (Proto::Tcp, service(1, 0), Verdict::End),
            (Proto::Tcp, service(0, 10), Verdict::End),
            (Proto::Tcp, service(1, 11), Verdict::Recheck(at(11))),
            (Proto::Tcp, None, Verdict::Keep),
        ];
        for (proto, service, expected) in cases {
            assert_eq!(verdict(proto, service, at(10)), expected, "{proto:?} {service:?}");
        }
    }

    #[test]
    fn rule_8_udp_sockets_end_at_once_if_the_service_port_has_another_backend() {
        let mut queue = TerminationQueue::default();
        let start = Instant::now();
        queue.add(&[removed(1, 1, Proto::Udp, Drain::Never), removed(2, 2, Proto::Udp, Drain::Never)], start);
        let mut take = |at: u64, two: PortState| {
            let state = |id| if id == 1 { PortState::HasBackends } else { two };
            let due = queue.take_due(start + Duration::from_millis(at), state);
            due.into_iter().map(|removed| removed.backend).collect::<Vec<_>>()
        };
        assert_eq!(take(0, PortState::WithoutBackends), [1]);
        assert_eq!(take(500, PortState::WithoutBackends), [0; 0]);
        assert_eq!(take(1000, PortState::WithoutBackends), [1], "again, for a connect that was under way");
        assert_eq!(take(60_000, PortState::Removed), [2]);
        assert_eq!(take(61_000, PortState::Removed), [2]);
        assert_eq!(take(99_000, PortState::Removed), [0; 0]);
    }

    #[test]
    fn tcp_sockets_end_after_the_drain_time() {
        let mut queue = TerminationQueue::default();
        let start = Instant::now();
        let all = [
            removed(1, 1, Proto::Tcp, Drain::Never),
            removed(2, 1, Proto::Tcp, Drain::After(0)),
            removed(3, 1, Proto::Tcp, Drain::After(30)),
        ];
        queue.add(&all, start);
        assert_eq!(queue.next(), Some(start));
        let mut take = |at: u64| {
            let due = queue.take_due(start + Duration::from_secs(at), |_| PortState::WithoutBackends);
            due.into_iter().map(|removed| removed.backend).collect::<Vec<_>>()
        };
        assert_eq!(take(0), [2]);
        assert_eq!(take(29), [2]);
        assert_eq!(take(30), [3]);
        assert_eq!(take(31), [3]);
        assert_eq!(take(99), [0; 0]);
    }
}

//! Termination of sockets whose endpoint no longer serves at the frontend that they dialled: connected UDP sockets and
//! UDP flows at once, TCP sockets after their Service's drain time. Also removes counts of deleted objects. A thread of
//! its own, so that no pass waits for it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use foldhash::HashMap;
use lb_common::{Addr, AddrPort, Counter, FrontendKey, Kind, NEVER, Proto, ServiceEntry, Translation};
use lb_kernel::sock_diag::bound_sockets;
use tracing::{info, warn};

use crate::{
    closed_sockets::ClosedSockets,
    events::{EventQueue, ProblemOrigin},
    reconcile::{Departed, Departure, MapChanges},
};
use lb_core::{
    objects::{Drain, Key},
    warning::Warning,
};
use lb_dataplane::{
    flows::Flows,
    sockets::{self, Peer, Search, Serving, SocketFreer},
    stats::{self, CounterWatch, LiveIds, StatMaps},
    store::BpfStore,
};
use lb_kernel::clock;

/// Interval of sweeps over counts and affinity.
const SWEEP: Duration = Duration::from_secs(30);

/// Interval of readings of the counter of a full `AFFINITY`, which needs a sweep at once.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Delay of the first search while the service port has no backend: another object, such as the slice of a renamed
/// port, may complete the change in a moment. No other backend could serve the clients meanwhile.
const SETTLE: Duration = Duration::from_millis(50);

/// Delay of the second search for the same sockets: a connect may have been under way in the first.
const SECOND_SEARCH: Duration = Duration::from_secs(1);

/// Share of the time that searches of `FLOWS` may take: one part of these.
const FLOW_SEARCH_SHARE: u32 = 10;

/// Starts the thread. It ends when the sender is dropped.
///
/// # Errors
/// If the thread cannot be started.
pub(crate) fn start(directory: PathBuf, events: EventQueue, freer: SocketFreer) -> Result<Sender<MapChanges>> {
    let (sender, receiver) = channel();
    let start = Instant::now();
    let queue = TerminationQueue::default();
    let flows = FlowSearch { is_due: false, earliest: start };
    let closed = ClosedSockets::new(freer);
    let worker = Worker { directory, events, queue, flows, start, closed, scan: None, has_moved: false };
    let thread = thread::Builder::new().name("termination".to_owned());
    thread.spawn(move || worker.run(&receiver)).context("starting a thread")?;
    Ok(sender)
}

struct Worker {
    /// Directory of the pins.
    directory: PathBuf,
    events: EventQueue,
    queue: TerminationQueue,
    flows: FlowSearch,
    start: Instant,
    closed: ClosedSockets,
    /// Time of the next scan for sockets that lost their backend while no agent ran; none when all are handled.
    scan: Option<Instant>,
    /// True if sockets may be open whose endpoint serves them under another id than theirs: counts do not tell the
    /// number of sockets of a backend then.
    has_moved: bool,
}

impl Worker {
    fn run(mut self, passes: &Receiver<MapChanges>) {
        let (mut sweep, mut check) = (Instant::now() + SWEEP, Instant::now() + CHECK_INTERVAL);
        let mut affinity_full = None;
        let mut is_first_pass = true;
        loop {
            let wake = [self.queue.next(), self.flows.next(), self.scan, self.closed.next()].into_iter().flatten();
            let wake = wake.fold(sweep.min(check), Instant::min);
            let has_passed = match passes.recv_timeout(wake.saturating_duration_since(Instant::now())) {
                Ok(mut changes) => {
                    passes.try_iter().for_each(|later| changes.append(later));
                    self.attempt("looking for endpoints", |worker| worker.add(&changes.departures));
                    self.attempt("looking for listeners on NodePorts", |worker| {
                        worker.report_listeners(&changes.new_ports_of_node)
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
            if (has_passed && is_first_pass) || self.scan.is_some_and(|scan| scan <= Instant::now()) {
                self.attempt("looking for sockets to end", Self::scan);
            }
            if has_passed && is_first_pass {
                self.attempt("looking for bound sockets", |worker| sockets::mark_bound_ports(&worker.directory));
            }
            if has_passed && is_first_pass {
                self.closed.begin();
            }
            is_first_pass &= !has_passed;
            self.attempt("ending sockets", Self::end_due);
            self.attempt("ending flows", Self::end_flows);
            self.attempt("freeing entries of closed sockets", |worker| worker.closed.free(&worker.directory));
            if Instant::now() >= sweep {
                self.attempt("removing counts of deleted objects", Self::sweep);
                self.attempt("removing the buffer of a killed watch", |this| {
                    lb_dataplane::watch::remove_abandoned(&this.directory)
                });
                sweep = Instant::now() + SWEEP;
            }
            // The first reading of the counter is what the next compares with.
            if (has_passed && affinity_full.is_none()) || (!is_first_pass && Instant::now() >= check) {
                self.attempt("making room for affinity", |worker| worker.make_room(&mut affinity_full));
            }
            if Instant::now() >= check {
                check = Instant::now() + CHECK_INTERVAL;
            }
        }
    }

    fn attempt(&mut self, what: &str, action: impl FnOnce(&mut Self) -> Result<()>) {
        if let Err(error) = action(self) {
            warn!("{what}: {error:#}");
        }
    }

    /// Queues departures.
    fn add(&mut self, departures: &[Departure]) -> Result<()> {
        if departures.is_empty() {
            return Ok(());
        }
        let store = BpfStore::open(&self.directory)?;
        let has_backends = |id| {
            let service = store.service(id).ok().flatten();
            service.is_some_and(|service| service.cluster_len + service.local_len > 0)
        };
        self.queue.add(departures, Instant::now(), has_backends);
        Ok(())
    }

    /// Ends the sockets that are due. Backends without sockets cost no search.
    fn end_due(&mut self) -> Result<()> {
        let due = self.queue.take_due(Instant::now());
        if due.is_empty() {
            return Ok(());
        }
        self.flows.is_due |= due.iter().any(|departure| departure.proto == Proto::Udp);
        let maps = StatMaps::open(&self.directory)?;
        // Sockets may be uncounted if the map of counts was full.
        let may_be_uncounted = !stats::counters(&self.directory)?.contains(&(Counter::StatsFull, 0));
        let may_have_sockets = |backend: u32| match maps.backend(backend) {
            _ if self.has_moved => true,
            Ok(Some(stats)) => stats.open > 0,
            Ok(None) => may_be_uncounted,
            Err(_) => true,
        };
        let serving = Serving::open(&self.directory)?;
        let mut searches = Vec::new();
        for proto in [Proto::Udp, Proto::Tcp] {
            let due: Vec<Departure> = due.iter().filter(|departure| departure.proto == proto).copied().collect();
            // Sockets of a frontend that has moved lead to backends of the service port that had it.
            let left: BTreeSet<u32> =
                due.iter().filter(|departure| departure.is_frontend()).map(|of| of.service).collect();
            let left = serving.backends_of(&left)?;
            let removed = due.iter().filter_map(|departure| match departure.departed {
                Departed::Backend { id, peer } => Some((id, peer)),
                Departed::Frontend(_) => None,
            });
            let mut backends: Vec<(u32, Peer)> = removed.chain(left).collect();
            backends.retain(|(id, _)| may_have_sockets(*id));
            if backends.is_empty() {
                continue;
            }
            // A backend of port ranges has no single port: sockets of all peers are searched then.
            let peers: Option<BTreeSet<AddrPort>> = backends.into_iter().map(|(_, peer)| peer.single()).collect();
            let serving = &serving;
            let is_lost = move |translation: &Translation| {
                let owner = || serving.owner(proto, translation).ok().flatten();
                // A TCP socket keeps to the drain time of its own Service.
                let is_due = proto == Proto::Udp || due.iter().any(|of| of.concerns(translation, owner));
                is_due && !serving.serves(proto, translation)
            };
            searches.push(Search { proto, peers, is_lost: Box::new(is_lost) });
        }
        self.end(searches, &serving)
    }

    /// Performs searches, and counts and logs the sockets that were ended.
    fn end(&mut self, searches: Vec<Search<'_>>, serving: &Serving) -> Result<()> {
        if searches.is_empty() {
            return Ok(());
        }
        let report = sockets::end(&self.directory, searches)?;
        self.has_moved |= serving.has_moved();
        for failure in &report.failures {
            warn!("{failure}");
        }
        let (maps, store) = (StatMaps::open(&self.directory)?, BpfStore::open(&self.directory)?);
        for (service, sockets) in report.ended {
            let name = store.name(service).map_or_else(|| format!("service#{service}"), |name| name.to_string());
            info!(service = name, sockets, took = ?report.took, "ended sockets whose backend has gone");
            maps.add_killed(service, sockets)?;
        }
        Ok(())
    }

    /// Removes UDP flows of clients outside whose endpoint no longer serves them: their next packet begins anew.
    fn end_flows(&mut self) -> Result<()> {
        let start = Instant::now();
        if self.flows.next().is_none_or(|next| next > start) {
            return Ok(());
        }
        let serving = Serving::open(&self.directory)?;
        // Many flows have the same frontend and endpoint.
        let known = RefCell::new(HashMap::<(AddrPort, AddrPort, u32), bool>::default());
        let is_lost = |translation: &Translation| {
            let Translation { vip, vip_port, backend_addr, backend_port, backend, .. } = *translation;
            let dialled = AddrPort { addr: vip, port: vip_port };
            let endpoint = AddrPort { addr: backend_addr, port: backend_port };
            let decide = || !serving.serves(Proto::Udp, translation);
            *known.borrow_mut().entry((dialled, endpoint, backend)).or_insert_with(decide)
        };
        let removed = Flows::open(&self.directory)?.remove_lost(Proto::Udp, is_lost);
        self.flows.searched(start, Instant::now());
        let removed = removed?;
        if removed > 0 {
            info!(entries = removed, took = ?start.elapsed(), "removed flows whose backend has gone");
        }
        Ok(())
    }

    /// Reports processes that listened on a NodePort or a hostPort before it was added: callers on this node reach the
    /// Service or the pod instead.
    fn report_listeners(&self, new: &[FrontendKey]) -> Result<()> {
        if new.is_empty() {
            return Ok(());
        }
        let ports: BTreeSet<(u8, u16)> = new.iter().map(|key| (key.proto, key.port)).collect();
        let store = BpfStore::open(&self.directory)?;
        let mut problems = BTreeMap::<Key, Vec<Warning>>::new();
        for socket in bound_sockets(&|proto, port| ports.contains(&(proto as u8, port)))? {
            let local = Addr::from(socket.address.ip());
            // A hostPort with a hostIP is at that address alone; a socket at all addresses is at that one too.
            let is_at = |key: &FrontendKey| key.addr.is_unspecified() || local.is_unspecified() || key.addr == local;
            let is_same =
                |key: &&FrontendKey| (key.proto, key.port) == (socket.proto as u8, socket.address.port()) && is_at(key);
            let Some(frontend) = new.iter().find(is_same).map(|key| store.frontend(key)) else { continue };
            let service = frontend.and_then(|frontend| store.name(frontend.service));
            let kind = frontend.and_then(|frontend| Kind::from_number(frontend.kind)).unwrap_or(Kind::NodePort);
            if kind == Kind::HostPort && local.is_loopback() {
                sockets::mark_bound_port(&self.directory, socket.address.port())?;
            }
            let warning = Warning::PortInUse {
                kind,
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

    /// Sweeps if a client found no room in `AFFINITY` since the last reading of the counter.
    fn make_room(&self, affinity_full: &mut Option<CounterWatch>) -> Result<()> {
        let watch = match affinity_full.take() {
            Some(watch) => watch,
            None => CounterWatch::new(&self.directory, Counter::AffinityFull)?,
        };
        if affinity_full.insert(watch).has_risen()? {
            let maps = StatMaps::open(&self.directory)?;
            maps.sweep_affinity(&LiveIds::open(&self.directory)?, clock::monotonic_ns())?;
        }
        Ok(())
    }

    /// Ends sockets that lost their backend while no agent ran. The time of the loss is unknown, so drain times count
    /// from the start of the agent.
    fn scan(&mut self) -> Result<()> {
        let is_first = self.scan.take().is_none();
        let stats = StatMaps::open(&self.directory)?.read()?;
        let store = BpfStore::open(&self.directory)?;
        let serving = Serving::open(&self.directory)?;
        let running = self.start.elapsed();
        // Lost since the start: their time is known.
        let queued = self.queue.backends();
        let verdict = |service: u32, proto: Proto| match store.service(service) {
            // The protocol of a removed service port is unknown: its sockets are searched in both.
            Ok(_) if store.name(service).is_some_and(|name| name.proto != proto) => Verdict::Keep,
            Ok(service) => verdict(proto, service, running),
            Err(_) => Verdict::Keep,
        };
        let services: BTreeSet<u32> =
            stats.backends.values().filter(|stats| stats.open > 0).map(|stats| stats.service).collect();
        let mut searches = Vec::new();
        for proto in [Proto::Udp, Proto::Tcp] {
            let verdicts: BTreeMap<u32, Verdict> = services.iter().map(|id| (*id, verdict(*id, proto))).collect();
            let rechecks = verdicts.values().filter_map(|verdict| match verdict {
                Verdict::Recheck(after) => Some(self.start + *after),
                Verdict::Keep | Verdict::End => None,
            });
            self.scan = rechecks.chain(self.scan).min();
            if (proto == Proto::Tcp || is_first) && verdicts.values().any(|verdict| *verdict == Verdict::End) {
                let (serving, queued) = (&serving, &queued);
                let is_lost = move |translation: &Translation| {
                    verdicts.get(&translation.service) == Some(&Verdict::End)
                        && !queued.contains(&translation.backend)
                        && !serving.serves(proto, translation)
                };
                searches.push(Search { proto, peers: None, is_lost: Box::new(is_lost) });
            }
        }
        self.flows.is_due |= is_first;
        self.end(searches, &serving)
    }
}

/// Decision about the sockets of a service port that lost their backend while no agent ran.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Keep,
    End,
    /// Decide again when the agent has run for so long.
    Recheck(Duration),
}

/// Decides about sockets of a service port (none if it was removed too), when the agent has run for `running`.
fn verdict(proto: Proto, service: Option<ServiceEntry>, running: Duration) -> Verdict {
    match (proto, service) {
        // The drain time was removed with the service port.
        (Proto::Tcp, None) => Verdict::Keep,
        (Proto::Tcp, Some(ServiceEntry { drain_seconds: NEVER, .. })) => Verdict::Keep,
        (Proto::Tcp, Some(ServiceEntry { drain_seconds, .. })) => match Duration::from_secs(drain_seconds.into()) {
            drain if drain <= running => Verdict::End,
            drain => Verdict::Recheck(drain),
        },
        _ => Verdict::End,
    }
}

impl Departure {
    /// True if a translation belongs to what departed: it has the frontend, or the id of the backend, or its peer
    /// while `owner`, the service port that has the frontend of the translation now, is the service port.
    fn concerns(&self, translation: &Translation, owner: impl FnOnce() -> Option<u32>) -> bool {
        match self.departed {
            Departed::Backend { id, peer } => {
                translation.backend == id || peer.is_of(translation) && owner() == Some(self.service)
            }
            Departed::Frontend(key) => {
                let dialled = FrontendKey::new(translation.vip, translation.vip_port, self.proto);
                key.covers(&dialled) || key == dialled.node_port()
            }
        }
    }

    const fn is_frontend(&self) -> bool {
        matches!(self.departed, Departed::Frontend(_))
    }
}

/// Searches of `FLOWS`, which take long if the map is full.
struct FlowSearch {
    is_due: bool,
    /// Earliest time of the next search.
    earliest: Instant,
}

impl FlowSearch {
    /// Returns the time of the next search, if one is due.
    fn next(&self) -> Option<Instant> {
        self.is_due.then_some(self.earliest)
    }

    /// Records a search.
    fn searched(&mut self, start: Instant, end: Instant) {
        *self = Self { is_due: false, earliest: end + (end - start) * (FLOW_SEARCH_SHARE - 1) };
    }
}

/// Departures, each with the time at which its sockets end.
#[derive(Default)]
struct TerminationQueue(Vec<(Instant, Departure)>);

impl TerminationQueue {
    /// Lists the ids of backends whose sockets wait here.
    fn backends(&self) -> BTreeSet<u32> {
        let id = |departure: &Departure| match departure.departed {
            Departed::Backend { id, .. } => Some(id),
            Departed::Frontend(_) => None,
        };
        self.0.iter().filter_map(|(_, departure)| id(departure)).collect()
    }

    /// Adds departures; `has_backends` tells if a service port has a backend.
    fn add(&mut self, departures: &[Departure], now: Instant, has_backends: impl Fn(u32) -> bool) {
        for departure in departures {
            let drain = match (departure.proto, departure.drain) {
                // Also if the Service has no other endpoint (kube-proxy 1.37, pkg/proxy/conntrack/cleanup.go;
                // kubernetes#139628): a client that only sends would never notice.
                (Proto::Udp, _) => Duration::ZERO,
                (Proto::Tcp, Drain::After(seconds)) => Duration::from_secs(seconds.into()),
                _ => continue,
            };
            let delay = if has_backends(departure.service) { drain } else { drain.max(SETTLE) };
            self.0.extend([(now + delay, *departure), (now + delay + SECOND_SEARCH, *departure)]);
        }
    }

    /// Returns the earliest time in the queue.
    fn next(&self) -> Option<Instant> {
        self.0.iter().map(|(at, _)| *at).min()
    }

    /// Takes the departures that are due.
    fn take_due(&mut self, now: Instant) -> Vec<Departure> {
        self.0.extract_if(.., |(at, _)| *at <= now).map(|(_, departure)| departure).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> AddrPort {
        text.parse::<std::net::SocketAddr>().expect("an address").into()
    }

    fn peer(text: &str) -> Peer {
        let AddrPort { addr, port } = address(text);
        Peer { addr, port: Some(port) }
    }

    fn removed(id: u32, service: u32, proto: Proto, drain: Drain) -> Departure {
        Departure { service, proto, drain, departed: Departed::Backend { id, peer: peer("10.0.0.1:53") } }
    }

    fn take(queue: &mut TerminationQueue, at: Instant) -> Vec<u32> {
        queue.take_due(at).into_iter().map(|departure| departure.service).collect()
    }

    #[test]
    fn rule_8_sockets_of_backends_removed_without_an_agent_end_no_sooner_than_the_service_allows() {
        let service =
            |len, drain_seconds| Some(ServiceEntry { cluster_len: len, drain_seconds, ..ServiceEntry::default() });
        let at = Duration::from_secs;
        let cases = [
            (Proto::Udp, service(1, NEVER), Verdict::End),
            (Proto::Udp, service(0, NEVER), Verdict::End),
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
    fn rule_8_udp_sockets_end_within_100_ms_whether_the_service_port_has_other_backends_or_not() {
        let mut queue = TerminationQueue::default();
        let start = Instant::now();
        let both = [removed(1, 1, Proto::Udp, Drain::Never), removed(2, 2, Proto::Udp, Drain::Never)];
        queue.add(&both, start, |service| service == 1);
        assert_eq!(queue.next(), Some(start));
        let mut take = |at: u64| take(&mut queue, start + Duration::from_millis(at));
        assert_eq!(take(0), [1]);
        assert_eq!(take(50), [2]);
        assert_eq!(take(500), [0; 0]);
        assert_eq!(take(1050), [1, 2], "again, for a connect that was under way");
        assert_eq!(take(99_000), [0; 0]);
    }

    #[test]
    fn a_departure_concerns_the_sockets_of_its_service_port_only() {
        let choice = |backend, addr: AddrPort| lb_common::Choice {
            service: 9,
            backend,
            addr: addr.addr,
            port: addr.port,
            followed: None,
            reason: lb_common::Reason::Random,
        };
        let led = |to: &str, backend, at: &str| {
            let AddrPort { addr, port } = address(to);
            Translation::new(addr, port, &choice(backend, address(at)), 1)
        };
        let frontend = |text: &str| {
            let AddrPort { addr, port } = address(text);
            Departed::Frontend(FrontendKey::new(addr, port, Proto::Tcp))
        };
        let backend = Departed::Backend { id: 5, peer: peer("10.0.0.1:80") };
        let of_ranges = Departed::Backend { id: 5, peer: Peer { port: None, ..peer("10.0.0.1:80") } };
        let Departed::Frontend(range) = frontend("10.96.0.1:5060") else { unreachable!() };
        let range = Departed::Frontend(FrontendKey { block: 3, ..range });
        // (departed from service port 1, translation, owner of its frontend now, concerned)
        let cases = [
            (backend, led("10.96.0.1:80", 5, "10.0.0.1:80"), None, true),
            (backend, led("10.96.0.1:80", 4, "10.0.0.1:80"), Some(1), true),
            (backend, led("10.96.0.1:80", 4, "10.0.0.1:80"), Some(2), false),
            (backend, led("10.96.0.1:80", 4, "10.0.0.2:80"), Some(1), false),
            (frontend("10.96.0.1:80"), led("10.96.0.1:80", 4, "10.0.0.2:80"), Some(2), true),
            (frontend("10.96.0.1:80"), led("10.96.0.1:81", 4, "10.0.0.2:80"), Some(2), false),
            (of_ranges, led("10.96.0.1:5060", 4, "10.0.0.1:6060"), Some(1), true),
            (of_ranges, led("10.96.0.1:5060", 4, "10.0.0.2:6060"), Some(1), false),
            (range, led("10.96.0.1:5063", 4, "10.0.0.1:6063"), None, true),
            (range, led("10.96.0.1:5064", 4, "10.0.0.1:6064"), None, false),
            (frontend("0.0.0.0:30080"), led("192.0.2.1:30080", 4, "10.0.0.2:80"), None, true),
        ];
        for (departed, translation, owner, expected) in cases {
            let departure = Departure { service: 1, proto: Proto::Tcp, drain: Drain::After(0), departed };
            assert_eq!(departure.concerns(&translation, || owner), expected, "{departure:?} {translation:?}");
        }
    }

    #[test]
    fn searches_of_the_flows_take_a_tenth_of_the_time_at_most() {
        let start = Instant::now();
        let mut search = FlowSearch { is_due: true, earliest: start };
        assert_eq!(search.next(), Some(start));
        search.searched(start, start + Duration::from_millis(5));
        assert_eq!(search.next(), None);
        search.is_due = true;
        assert_eq!(search.next(), Some(start + Duration::from_millis(50)));
    }

    #[test]
    fn tcp_sockets_end_after_the_drain_time() {
        let mut queue = TerminationQueue::default();
        let start = Instant::now();
        let all = [
            removed(1, 1, Proto::Tcp, Drain::Never),
            removed(2, 2, Proto::Tcp, Drain::After(0)),
            removed(3, 3, Proto::Tcp, Drain::After(30)),
        ];
        queue.add(&all, start, |_| true);
        assert_eq!(queue.next(), Some(start));
        let mut take = |at: u64| take(&mut queue, start + Duration::from_secs(at));
        assert_eq!(take(0), [2]);
        assert_eq!(take(29), [2]);
        assert_eq!(take(30), [3]);
        assert_eq!(take(31), [3]);
        assert_eq!(take(99), [0; 0]);
    }
}

//! The times of probes, and the results that follow from answers. Pure: time is passed in.
//!
//! The endpoints of a Service without new connections on this node are asked twelve times as rarely, at most once a
//! minute: with a thousand nodes an endpoint would be asked hundreds of times a second otherwise. An answer that
//! contradicts the result is checked again after a second.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU8,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use lb_common::{
    AddrPort,
    hash::{fold, splitmix},
};
use lb_core::objects::{Key, Probe, ProbeVerdict};

use super::{ProbeCounts, ProbedServices};

/// Time without new connections after which a Service counts as unused.
const UNUSED: Duration = Duration::from_secs(60);

/// Factor of the period of an unused Service, and its least period.
const RARE: u32 = 12;
const RAREST: Duration = Duration::from_secs(60);

/// Longest time to the next probe while the last answer contradicts the result, or there is no result.
const DOUBT: Duration = Duration::from_secs(1);

/// Least time between the starts of two probes of one Service: at most 20 a second, whatever its owner writes.
const PACE: Duration = Duration::from_millis(50);

/// Probes are early or late by up to this share of the period: one part of these.
const JITTER: u32 = 10;

/// All probed endpoints.
#[derive(Default)]
pub(super) struct Schedule {
    services: BTreeMap<Key, Service>,
    /// Number of probes so far, for the jitter.
    count: u32,
}

struct Service {
    probe: Arc<Probe>,
    ids: Vec<u32>,
    targets: BTreeMap<AddrPort, Target>,
    /// Connections at the last look; none before the first.
    connections: Option<u64>,
    /// Time of the last new connection, or of the first sight.
    used: Duration,
    /// Earliest time of the next probe.
    earliest: Duration,
}

struct Target {
    /// True if it passes; none without a result.
    passes: Option<bool>,
    /// Number of answers in a row that contradict the result.
    contradictions: u8,
    /// True if it has failed before.
    has_failed: bool,
    /// Time of the last start of a probe.
    last: Option<Duration>,
    /// Time of the next probe; none while one waits for an answer.
    next: Option<Duration>,
}

/// A probe to make.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Due {
    pub(super) service: Key,
    pub(super) target: AddrPort,
    pub(super) probe: Arc<Probe>,
}

/// Another result of an endpoint; none if it is not probed any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Change {
    pub(super) service: Key,
    pub(super) target: AddrPort,
    pub(super) verdict: Option<ProbeVerdict>,
    /// True if it failed before.
    pub(super) is_back: bool,
}

impl Schedule {
    pub(super) fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Takes over the endpoints of `services`. Returns the endpoints with a result that are not among them.
    pub(super) fn set(&mut self, services: &ProbedServices, now: Duration) -> Vec<Change> {
        let mut gone = Vec::new();
        let mut forget = |service: &Key, target: AddrPort, state: &Target| {
            if state.passes.is_some() {
                gone.push(Change { service: service.clone(), target, verdict: None, is_back: false });
            }
        };
        self.services.retain(|key, service| {
            let wanted = services.get(key).map(|wanted| &wanted.targets.targets);
            service.targets.retain(|target, state| {
                let stays = wanted.is_some_and(|wanted| wanted.contains(target));
                if !stays {
                    forget(key, *target, state);
                }
                stays
            });
            wanted.is_some()
        });
        for (key, wanted) in services.iter() {
            let service = self.services.entry(key.clone()).or_insert_with(|| Service {
                probe: Arc::new(wanted.targets.probe.clone()),
                ids: Vec::new(),
                targets: BTreeMap::new(),
                connections: None,
                used: now,
                earliest: now,
            });
            service.ids.clone_from(&wanted.ids);
            if *service.probe != wanted.targets.probe {
                service.probe = Arc::new(wanted.targets.probe.clone());
                // The period may be shorter.
                service.hurry(now);
            }
            let known: BTreeSet<AddrPort> = service.targets.keys().copied().collect();
            for target in wanted.targets.targets.difference(&known) {
                // Agents that start together ask at different times.
                let next = now + DOUBT.mul_f64(random(target, self.count));
                self.count = self.count.wrapping_add(1);
                service.targets.insert(*target, Target::new(next));
            }
        }
        gone
    }

    /// Notes the Services with new connections, as `connections` counts them by ids.
    pub(super) fn observe_use(&mut self, connections: impl Fn(&[u32]) -> u64, now: Duration) {
        for service in self.services.values_mut() {
            let count = connections(&service.ids);
            let before = service.connections.replace(count);
            if before.is_some_and(|before| count > before) {
                let was_unused = service.is_unused(now);
                service.used = now;
                if was_unused {
                    service.hurry(now);
                }
            }
        }
    }

    /// Returns the time of the next probe.
    pub(super) fn next(&self) -> Option<Duration> {
        let of_service = |service: &Service| {
            let next = service.targets.values().filter_map(|target| target.next).min()?;
            Some(next.max(service.earliest))
        };
        self.services.values().filter_map(of_service).min()
    }

    /// Takes the probe that is due first.
    pub(super) fn take_due(&mut self, now: Duration) -> Option<Due> {
        let may_ask = self.services.iter_mut().filter(|(_, service)| service.earliest <= now);
        let all = may_ask.flat_map(|(key, Service { probe, targets, earliest, .. })| {
            let first = targets.iter_mut().filter(|(_, state)| state.next.is_some_and(|next| next <= now));
            first.min_by_key(|(_, state)| state.next).map(|(target, state)| (key, &*probe, target, state, earliest))
        });
        let (key, probe, target, state, earliest) = all.min_by_key(|(_, _, _, state, _)| state.next)?;
        (state.last, state.next, *earliest) = (Some(now), None, now + PACE);
        Some(Due { service: key.clone(), target: *target, probe: Arc::clone(probe) })
    }

    /// Records the answer to a probe; the error is the cause of a failure. Returns a new result.
    pub(super) fn record(&mut self, due: &Due, answer: Result<(), String>, now: Duration) -> Option<Change> {
        let service = self.services.get_mut(&due.service)?;
        let (is_unused, probe) = (service.is_unused(now), Arc::clone(&service.probe));
        let state = service.targets.get_mut(&due.target)?;
        let is_back = state.has_failed;
        let is_new = state.record(answer.is_ok(), &probe);
        let every = Duration::from_secs(probe.every.get().into());
        let period = match state.passes {
            Some(_) if state.contradictions == 0 && is_unused => (every * RARE).max(RAREST),
            Some(_) if state.contradictions == 0 => every,
            _ => every.min(DOUBT),
        };
        let jitter = period / JITTER;
        let period = period - jitter + (2 * jitter).mul_f64(random(&due.target, self.count));
        self.count = self.count.wrapping_add(1);
        state.next = Some((state.last.unwrap_or(now) + period).max(now));
        is_new.then(|| Change {
            service: due.service.clone(),
            target: due.target,
            verdict: Some(answer.map_or_else(|cause| ProbeVerdict::Fails(cause.into()), |()| ProbeVerdict::Passes)),
            is_back,
        })
    }

    /// Writes the numbers of endpoints by result.
    pub(super) fn count(&self, counts: &ProbeCounts) {
        let of = |passes| {
            let all = self.services.values().flat_map(|service| service.targets.values());
            all.filter(|target| target.passes == passes).count() as u64
        };
        counts.passing.store(of(Some(true)), Ordering::Relaxed);
        counts.failing.store(of(Some(false)), Ordering::Relaxed);
        counts.unknown.store(of(None), Ordering::Relaxed);
    }
}

impl Service {
    fn is_unused(&self, now: Duration) -> bool {
        now.saturating_sub(self.used) >= UNUSED
    }

    /// Brings the next probes forward to the period of a Service in use.
    fn hurry(&mut self, now: Duration) {
        let every = Duration::from_secs(self.probe.every.get().into());
        for target in self.targets.values_mut() {
            if let (Some(next), Some(last)) = (&mut target.next, target.last) {
                *next = (*next).min((last + every).max(now));
            }
        }
    }
}

impl Target {
    const fn new(next: Duration) -> Self {
        Self { passes: None, contradictions: 0, has_failed: false, last: None, next: Some(next) }
    }

    /// Records an answer. True if the result is new.
    fn record(&mut self, passes: bool, probe: &Probe) -> bool {
        if self.passes == Some(passes) {
            self.contradictions = 0;
            return false;
        }
        self.contradictions = self.contradictions.saturating_add(1);
        let needed = match (self.passes, passes) {
            // The first answer of a new endpoint counts at once if it is good.
            (None, true) => 1,
            (_, true) => NonZeroU8::get(probe.pass),
            (_, false) => NonZeroU8::get(probe.fail),
        };
        if self.contradictions < needed {
            return false;
        }
        (self.passes, self.contradictions) = (Some(passes), 0);
        self.has_failed |= !passes;
        true
    }
}

/// Returns a number from 0 to 1 for the nth probe of an endpoint.
fn random(target: &AddrPort, count: u32) -> f64 {
    f64::from(splitmix(fold(&target.addr) ^ u64::from(target.port), count)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests;

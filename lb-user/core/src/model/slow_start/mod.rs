//! Slow start (`beeline.io/slow-start`): the weight of an endpoint that gets ready rises in steps over a time. Time is
//! passed in.
//!
//! The slots of the maps are all that outlives the agent: a starting agent reads from them how far each endpoint has
//! come.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::{NonZeroU16, NonZeroU32},
    time::Duration,
};

use foldhash::{HashMap, HashSet};
use lb_common::{AddrPort, List};

use crate::{
    objects::{Key, MAX_SLOW_START},
    shadow::Shadow,
    spec::{Member, ServiceSpec},
};

/// Steps from the first connection to the whole weight.
const STEPS: u16 = 10;

/// The time before the agent started that endpoints can have begun at: the longest time of slow start.
const BEFORE: Duration = Duration::from_secs(MAX_SLOW_START as u64);

/// The endpoints of Services with slow start, and the time. Services without it cost nothing.
pub struct SlowStarts {
    /// Time since [`BEFORE`] the agent's start.
    now: Duration,
    services: HashMap<Key, Starts>,
    /// Services with an endpoint that has a part of its weight only.
    rising: HashSet<Key>,
}

impl Default for SlowStarts {
    fn default() -> Self {
        Self { now: BEFORE, services: HashMap::default(), rising: HashSet::default() }
    }
}

/// The endpoints of one Service that serve, each with the time at which it began; none if its weight is whole.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Starts {
    time: Duration,
    began: BTreeMap<AddrPort, Option<Duration>>,
}

/// The state of an endpoint whose weight rises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rise {
    /// Tenths of its weight.
    pub step: NonZeroU16,
    /// Time until it has all of it.
    pub left: Duration,
}

impl SlowStarts {
    /// Sets the time since the agent's start. Returns the Services of which an endpoint makes a step, in no order.
    pub fn set_time(&mut self, since_start: Duration) -> Vec<Key> {
        let now = BEFORE + since_start;
        let before = std::mem::replace(&mut self.now, now);
        let is_due = |starts: &Starts| starts.began.values().flatten().any(|began| starts.next(*began, before) <= now);
        self.rising.iter().filter(|key| self.services.get(*key).is_some_and(is_due)).cloned().collect()
    }

    /// Returns the time of the next step, since the agent's start; none if no weight rises.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        let of_service =
            |starts: &Starts| starts.began.values().flatten().map(|began| starts.next(*began, self.now)).min();
        let rising = self.rising.iter().filter_map(|key| self.services.get(key));
        rising.filter_map(of_service).min().map(|next| next.saturating_sub(BEFORE))
    }

    /// Returns the endpoints of a Service of which one has a part of its weight only.
    fn rising(&self, service: &Key) -> Option<&Starts> {
        self.rising.get(service).and_then(|service| self.services.get(service))
    }

    /// Returns the state of an endpoint whose weight rises.
    #[must_use]
    pub fn rise(&self, service: &Key, target: &AddrPort) -> Option<Rise> {
        let starts = self.services.get(service)?;
        let began = (*starts.began.get(target)?)?;
        let left = (began + starts.time).checked_sub(self.now).filter(|left| !left.is_zero())?;
        Some(Rise { step: NonZeroU16::new(starts.step(began, self.now))?, left })
    }

    /// Takes over the endpoints of `spec`, compiled before, and its time of slow start. Returns true if the spec must
    /// be compiled again. `maps` are those of the agent before, for a Service that is seen for the first time.
    pub fn observe(&mut self, spec: &ServiceSpec, time: Option<NonZeroU32>, maps: Option<&Shadow>) -> bool {
        let has_risen = self.rising.remove(&spec.key);
        let Some(time) = time.map(|seconds| Duration::from_secs(seconds.get().into())) else {
            self.services.remove(&spec.key);
            return has_risen;
        };
        let now = self.now;
        let before = self.services.remove(&spec.key);
        let adopted = if before.is_none() { maps.and_then(|maps| adopt(spec, maps)) } else { None };
        let began = |target: &AddrPort| match (&before, &adopted) {
            (Some(before), _) => match before.began.get(target) {
                // The weight is whole by now.
                Some(Some(began)) if *began + time <= now => None,
                Some(began) => *began,
                None => Some(now),
            },
            (None, Some(adopted)) => match adopted.get(target) {
                Some(&step) if step >= STEPS => None,
                Some(&step) => Some(now.saturating_sub(time * u32::from(step - 1) / u32::from(STEPS))),
                None => Some(now),
            },
            // All begin at once.
            (None, None) => None,
        };
        let targets = spec.ports.iter().flat_map(|port| &port.backends).map(|member| member.target);
        let starts = Starts { time, began: targets.map(|target| (target, began(&target))).collect() };
        let rises = starts.began.values().any(Option::is_some);
        if rises {
            self.rising.insert(spec.key.clone());
        }
        self.services.insert(spec.key.clone(), starts);
        rises || has_risen
    }

    /// Gives endpoints whose weight rises their part of it.
    pub(super) fn apply(&self, service: &Key, members: &mut [Member]) {
        let Some(starts) = self.rising(service) else { return };
        let step = |member: &Member| match starts.began.get(&member.target) {
            Some(Some(began)) => starts.step(*began, self.now),
            _ => STEPS,
        };
        if members.iter().all(|member| step(member) == STEPS) {
            return;
        }
        let weights: Vec<u32> =
            members.iter().map(|member| u32::from(member.weight) * u32::from(step(member))).collect();
        let divisor = weights.iter().max().map_or(1, |heaviest| heaviest.div_ceil(u16::MAX.into())).max(1);
        for (member, weight) in members.iter_mut().zip(weights) {
            member.weight = u16::try_from(weight / divisor).unwrap_or(u16::MAX).max(1);
        }
    }
}

impl Starts {
    /// The tenths of its weight that an endpoint has; at least one.
    fn step(&self, began: Duration, now: Duration) -> u16 {
        let passed = now.saturating_sub(began).as_millis() * u128::from(STEPS) / self.time.as_millis().max(1);
        u16::try_from(passed).unwrap_or(STEPS).saturating_add(1).min(STEPS)
    }

    /// The time of an endpoint's next step after `now`.
    fn next(&self, began: Duration, now: Duration) -> Duration {
        let passed = now.saturating_sub(began).as_millis() * u128::from(STEPS) / self.time.as_millis().max(1);
        let steps = u32::try_from(passed).unwrap_or(STEPS.into()).saturating_add(1).min(STEPS.into());
        // Rounded up, so that the step is made then.
        began + self.time * steps / u32::from(STEPS) + Duration::from_millis(1)
    }
}

/// Returns the tenths of its weight that each endpoint has in the maps; none if the Service is not there. `spec` has
/// their whole weights.
fn adopt(spec: &ServiceSpec, maps: &Shadow) -> Option<BTreeMap<AddrPort, u16>> {
    let mut adopted = BTreeMap::new();
    let mut is_known = false;
    for port in &spec.ports {
        let Some((id, there)) = maps.port_named(&port.key) else { continue };
        is_known = true;
        let slots = List::ALL.into_iter().flat_map(|list| there.list(list)).flatten();
        let weights: BTreeMap<AddrPort, u16> = slots.map(|slot| (slot.target(), slot.weight)).collect();
        // In no list, and kept for their sockets: they are not new.
        let loose = maps.loose_backends().filter(|(_, backend)| backend.service == id);
        let kept: BTreeSet<AddrPort> =
            loose.map(|(_, backend)| AddrPort { addr: backend.addr, port: backend.port }).collect();
        // Parts of the whole weights, in a common unit.
        let part = |member: &Member| {
            let there = weights.get(&member.target)?;
            Some(u32::from(*there) * 10_000 / u32::from(member.weight.max(1)))
        };
        let whole = port.backends.iter().filter_map(part).max().unwrap_or(1).max(1);
        for member in &port.backends {
            let step = match part(member) {
                Some(part) => u16::try_from((part * u32::from(STEPS) + whole / 2) / whole).unwrap_or(STEPS).max(1),
                None if kept.contains(&member.target) => STEPS,
                None => continue,
            };
            let least = adopted.entry(member.target).or_insert(step);
            *least = step.min(*least);
        }
    }
    is_known.then_some(adopted)
}

#[cfg(test)]
mod tests;

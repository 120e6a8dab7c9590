//! Garbage collection of `FLOWS`: removes flows that are over, a few at a time. `lb_common::flow` decides when a flow
//! is over. Also removes flows whose backend no longer serves them, for which the agent decides.
//!
//! Bounds: a step reads at most 1,024 entries, and makes at most four lookups for each. Steps begin 50 ms apart, so a
//! round through a full map takes 26 s. The first round after a start, and every round of a nearly full map, pauses for
//! only 5 ms after each step. Rounds begin 10 s apart, which is the shortest timeout of a flow.

pub(crate) mod ends;
pub(crate) mod moving;
pub(crate) mod netfilter;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::{
    Choice, Flow, FlowFlags, FlowKey, Proto, Reason, Translation,
    flow::{TCP_CLOSED, expires_at, partner_key},
};
use tokio::sync::watch;
use tracing::warn;

use crate::attach::tc::Tc;
use ends::FlowEnds;
use lb_kernel::{
    bpf::typed::{TypedMap, Walk},
    clock,
};

/// Most entries a step reads.
const STEP: usize = 1024;
/// Time between the beginnings of two steps.
const PACE: Duration = Duration::from_millis(50);
/// Shortest pause after a step.
const REST: Duration = Duration::from_millis(5);
/// Time between the beginnings of two rounds.
const ROUND: Duration = Duration::from_secs(10);
/// Shortest timeout of a flow (ns).
const SHORTEST: u64 = TCP_CLOSED;

/// Progress of garbage collection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowGcStatus {
    /// Rounds through the whole map so far.
    pub rounds: u64,
    /// Entries after the last round: mostly two for each flow.
    pub entries: u64,
    /// Entries removed so far.
    pub expired: u64,
    /// Duration of the last step.
    pub step: Duration,
    /// Duration of the longest step.
    pub longest_step: Duration,
    /// Duration of the last round, pauses included.
    pub round: Duration,
}

/// Starts the thread that collects, on the maps pinned in `directory`, once the programs are at the devices of `tc`. It
/// ends when the last receiver of the status is dropped.
///
/// # Errors
/// If the thread cannot be started.
pub fn start(directory: PathBuf, tc: Arc<Tc>, status: watch::Sender<FlowGcStatus>) -> Result<()> {
    let run = move || Collector { directory, tc, status, size: 0, has_all_ends: false }.run();
    thread::Builder::new().name("flows".to_owned()).spawn(run).context("starting a thread")?;
    Ok(())
}

struct Collector {
    directory: PathBuf,
    tc: Arc<Tc>,
    status: watch::Sender<FlowGcStatus>,
    /// Most entries of the map.
    size: u64,
    /// True once all ends of flows have their marks: see [`ends`].
    has_all_ends: bool,
}

impl Collector {
    fn run(mut self) {
        let mut failed = None;
        while !self.status.is_closed() {
            // A first start has not created the map yet.
            if !self.tc.is_in_service() {
                self.rest(REST);
                continue;
            }
            let began = Instant::now();
            match self.round(began) {
                Ok(()) => failed = None,
                Err(error) => {
                    let text = format!("{error:#}");
                    if failed.as_ref() != Some(&text) {
                        warn!("flows that are over cannot be removed: {text}");
                    }
                    failed = Some(text);
                }
            }
            let rest = if self.status.borrow().rounds == 0 { REST * 20 } else { ROUND.saturating_sub(began.elapsed()) };
            self.rest(rest);
        }
    }

    fn round(&mut self, began: Instant) -> Result<()> {
        let flows = Flows::open(&self.directory)?;
        self.size = flows.map.size()? as u64;
        // Only a round that begins after all programs set marks meets each entry without one.
        let marks = !self.has_all_ends && self.tc.is_everywhere()?;
        let ends = marks.then(|| FlowEnds::open(&self.directory)).transpose()?;
        let mut walk = Walk::new(STEP);
        let mut left = 0;
        let is_urgent = {
            let status = self.status.borrow();
            status.rounds == 0 || is_nearly_full(status.entries, self.size)
        };
        loop {
            let step_began = Instant::now();
            let Some(entries) = flows.map.step(&mut walk)? else { break };
            if let Some(ends) = &ends {
                ends.mark(entries.iter().map(|(key, _)| key))?;
            }
            let (kept, removed) = flows.collect(&entries, clock::monotonic_ns)?;
            left += kept;
            let took = step_began.elapsed();
            self.status.send_modify(|status| {
                status.expired += removed;
                status.step = took;
                status.longest_step = status.longest_step.max(took);
            });
            let pause = if is_urgent { REST } else { PACE.saturating_sub(took).max(REST) };
            self.rest(pause);
            if self.status.is_closed() {
                return Ok(());
            }
        }
        if let Some(ends) = ends {
            ends.complete()?;
            self.has_all_ends = true;
        }
        self.status.send_modify(|status| {
            status.rounds += 1;
            status.entries = left;
            status.round = began.elapsed();
        });
        Ok(())
    }

    /// Sleeps, but wakes within 200 ms when the last receiver is dropped.
    fn rest(&self, pause: Duration) {
        let end = Instant::now() + pause;
        while let left = end.saturating_duration_since(Instant::now())
            && !left.is_zero()
            && !self.status.is_closed()
        {
            thread::sleep(left.min(Duration::from_millis(200)));
        }
    }
}

const fn is_nearly_full(entries: u64, size: u64) -> bool {
    entries >= size / 8 * 7
}

/// The pinned map `FLOWS`.
pub struct Flows {
    map: TypedMap<FlowKey, Flow>,
}

impl Flows {
    /// Opens the map pinned in `directory`.
    ///
    /// # Errors
    /// If the pin is missing or cannot be opened.
    pub fn open(directory: &Path) -> Result<Self> {
        Ok(Self { map: TypedMap::open(directory, "FLOWS")? })
    }

    /// Reads all entries, in no order.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn read(&self) -> Result<Vec<(FlowKey, Flow)>> {
        self.map.read()
    }

    /// Removes the entries that are over, each with its partner, which may be outside of `entries`. Returns how many of
    /// `entries` stay, and how many were removed.
    fn collect(&self, entries: &[(FlowKey, Flow)], now: impl Fn() -> u64) -> Result<(u64, u64)> {
        let began = now();
        let (mut kept, mut removed) = (0, 0);
        for (key, flow) in entries {
            if flow.used.saturating_add(SHORTEST) > began
                || !is_over(flow, self.partner(key, flow)?.as_ref(), key.proto, began)
            {
                kept += 1;
                continue;
            }
            // Look again: a packet may have arrived, or the removal of a partner may have removed the entry.
            let Some(flow) = self.map.get(key)? else { continue };
            let partner = self.partner(key, &flow)?;
            if is_over(&flow, partner.as_ref(), key.proto, now()) {
                let keys = keys_to_delete(key, &flow, partner.is_some());
                self.map.delete(&keys)?;
                removed += keys.len() as u64;
            } else {
                kept += 1;
            }
        }
        Ok((kept, removed))
    }

    /// Removes the flows of a protocol whose translation is lost. Returns the number of entries removed.
    ///
    /// # Errors
    /// If the map cannot be read or written.
    pub fn remove_lost(&self, proto: Proto, is_lost: impl Fn(&Translation) -> bool) -> Result<u64> {
        let (mut walk, mut removed) = (Walk::new(STEP), 0);
        while let Some(entries) = self.map.step(&mut walk)? {
            for (key, flow) in entries {
                let is_lost = |flow: &Flow| translation(&key, flow).is_some_and(|translation| is_lost(&translation));
                if key.proto != proto as u8 || !is_lost(&flow) {
                    continue;
                }
                // Look again: the client may have begun a flow to another backend, with the same key.
                let Some(flow) = self.map.get(&key)?.filter(is_lost) else { continue };
                let keys = keys_to_delete(&key, &flow, self.partner(&key, &flow)?.is_some());
                self.map.delete(&keys)?;
                removed += keys.len() as u64;
            }
        }
        Ok(removed)
    }

    /// Returns the entry of the other direction, unless it has another partner by now.
    fn partner(&self, key: &FlowKey, flow: &Flow) -> Result<Option<Flow>> {
        let other = partner_key(key, flow);
        let partner = self.map.get(&other)?;
        Ok(partner.filter(|partner| partner_key(&other, partner) == *key))
    }
}

/// Returns the translation that a flow follows, as a socket would store it; none for a flow that Beeline does not lead
/// to a backend.
fn translation(key: &FlowKey, flow: &Flow) -> Option<Translation> {
    if flow.backend == 0 || flow.flags & FlowFlags::NETFILTER != 0 {
        return None;
    }
    let (dialled, to) = if flow.flags & FlowFlags::REVERSE == 0 {
        (key.tuple, flow.to)
    } else {
        (flow.to.reversed(), key.tuple.reversed())
    };
    let choice = Choice {
        service: flow.service,
        backend: flow.backend,
        addr: to.dst,
        port: to.dst_port,
        followed: None,
        reason: Reason::Random,
    };
    Some(Translation::new(dialled.dst, dialled.dst_port, &choice, 0))
}

fn is_over(flow: &Flow, partner: Option<&Flow>, proto: u8, now: u64) -> bool {
    expires_at(flow, partner, proto) <= now
}

/// Returns the keys to delete, the client's direction last: once it is deleted, the client's next packet begins a flow
/// with two new entries, and neither may be deleted in place of an old one.
fn keys_to_delete(key: &FlowKey, flow: &Flow, has_partner: bool) -> Vec<FlowKey> {
    let mut keys = vec![*key];
    if has_partner {
        keys.push(partner_key(key, flow));
    }
    if flow.flags & FlowFlags::REVERSE == 0 {
        keys.reverse();
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::{Addr, Hook, Hop, Tuple, flow::FlowState};

    #[test]
    fn no_flow_times_out_before_the_shortest_timeout() {
        use FlowState::{Answered, Closed, Established, HalfClosed, Opening, TimeWait};
        for proto in 0..=255 {
            for state in [Opening, Answered, Established, HalfClosed, Closed, TimeWait] {
                assert!(state.lasts(proto) >= SHORTEST, "{state:?} of {proto}");
            }
        }
    }

    /// Returns both entries of a flow of 192.0.2.9:4000 to 10.96.0.1:80, which leads to 10.0.0.1:8080: the client's
    /// first.
    fn pair() -> [(FlowKey, Flow); 2] {
        let ip = |text: &str| Addr::from(text.parse::<std::net::IpAddr>().expect("an address"));
        let dialled = Tuple { src: ip("192.0.2.9"), dst: ip("10.96.0.1"), src_port: 4000, dst_port: 80 };
        let to = Tuple { src: ip("192.0.2.9"), dst: ip("10.0.0.1"), src_port: 4000, dst_port: 8080 };
        let flow =
            |to, flags| Flow { to, service: 1, backend: 2, flags, forward: 0, reverse: 0, used: 0, hop: Hop::UNKNOWN };
        [
            (FlowKey::new(dialled, 6, Hook::Ingress), flow(to, FlowFlags::PARTNER_EGRESS)),
            (FlowKey::new(to.reversed(), 6, Hook::Egress), flow(dialled.reversed(), FlowFlags::REVERSE)),
        ]
    }

    #[test]
    fn the_clients_direction_is_deleted_last() {
        let [(forward_key, forward), (reverse_key, reverse)] = pair();
        let both = [reverse_key, forward_key];
        assert_eq!(keys_to_delete(&forward_key, &forward, true), both);
        assert_eq!(keys_to_delete(&reverse_key, &reverse, true), both);
        assert_eq!(keys_to_delete(&forward_key, &forward, false), [forward_key]);
    }

    #[test]
    fn both_directions_of_a_flow_follow_one_translation() {
        let ip = |text: &str| Addr::from(text.parse::<std::net::IpAddr>().expect("an address"));
        let choice =
            Choice { service: 1, backend: 2, addr: ip("10.0.0.1"), port: 8080, followed: None, reason: Reason::Random };
        let expected = Translation::new(ip("10.96.0.1"), 80, &choice, 0);
        for (key, flow) in pair() {
            assert_eq!(translation(&key, &flow), Some(expected));
            let elsewhere = Flow { flags: flow.flags | FlowFlags::NETFILTER, ..flow };
            assert_eq!(translation(&key, &elsewhere), None);
            assert_eq!(translation(&key, &Flow { backend: 0, ..flow }), None);
        }
    }

    #[test]
    fn a_map_is_nearly_full_at_seven_eighths() {
        assert!(is_nearly_full(56, 64) && !is_nearly_full(55, 64));
    }
}

//! Takes flows that are over out of `FLOWS`, a few at a time. When a flow is over is for `lb_common::flow` to say.
//!
//! The bound: a step reads at most 1,024 entries, and asks the kernel at most four times about each. Steps begin 50 ms apart,
//! so that a round through a full map takes 26 s; the first round after a start, and every one of a map that is nearly full,
//! rests for 5 ms after each step. A round begins 10 s after the one before, which is as long as the shortest time of a flow.

pub mod netfilter;

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::{
    Flow, FlowFlags, FlowKey,
    flow::{TCP_CLOSED, expires_at, partner_key},
};
use tokio::sync::watch;
use tracing::warn;

use lb_kernel::{
    bpf::typed::{TypedMap, Walk},
    clock,
};

/// Most entries of a step.
const STEP: usize = 1024;
/// From the beginning of a step to that of the next.
const PACE: Duration = Duration::from_millis(50);
/// Least rest after a step.
const REST: Duration = Duration::from_millis(5);
/// From the beginning of a round to that of the next.
const ROUND: Duration = Duration::from_secs(10);
/// No flow ends sooner after its last packet, whatever it has seen (ns).
const SHORTEST: u64 = TCP_CLOSED;

/// How it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    /// Rounds through the whole map so far.
    pub rounds: u64,
    /// Entries that the last of them left: mostly two for each flow.
    pub entries: u64,
    /// Entries that were removed so far.
    pub expired: u64,
    /// How long the last step took.
    pub step: Duration,
    /// How long the longest took.
    pub longest_step: Duration,
    /// How long the last round took, its rests included.
    pub round: Duration,
}

/// Starts the thread that does it and tells how it goes. It ends when nobody wants to know any more.
///
/// # Errors
/// When there can be no more threads.
pub fn start(directory: PathBuf, told: watch::Sender<Collected>) -> Result<()> {
    let run = move || Collector { directory, told, size: 0 }.run();
    thread::Builder::new().name("flows".to_owned()).spawn(run).context("starting a thread")?;
    Ok(())
}

struct Collector {
    /// Of the pinned maps.
    directory: PathBuf,
    told: watch::Sender<Collected>,
    /// How many entries the map may have.
    size: u64,
}

impl Collector {
    fn run(mut self) {
        let mut failed = None;
        while !self.told.is_closed() {
            let began = Instant::now();
            match self.round(began) {
                Ok(()) => failed = None,
                // Before the first start is through there is no map.
                Err(_) if !self.directory.join("FLOWS").exists() => {}
                Err(error) => {
                    let text = format!("{error:#}");
                    if failed.as_ref() != Some(&text) {
                        warn!("flows that are over stay for now: {text}");
                    }
                    failed = Some(text);
                }
            }
            let rest = if self.told.borrow().rounds == 0 { REST * 20 } else { ROUND.saturating_sub(began.elapsed()) };
            self.rest(rest);
        }
    }

    /// One round.
    fn round(&mut self, began: Instant) -> Result<()> {
        let flows = Flows::open(&self.directory)?;
        self.size = flows.map.size()? as u64;
        let mut walk = Walk::new(STEP);
        let mut left = 0;
        let is_urgent = {
            let told = self.told.borrow();
            told.rounds == 0 || is_nearly_full(told.entries, self.size)
        };
        loop {
            let step_began = Instant::now();
            let Some(entries) = flows.map.step(&mut walk)? else { break };
            let (kept, removed) = flows.collect(&entries, clock::monotonic_ns)?;
            left += kept;
            let took = step_began.elapsed();
            self.told.send_modify(|told| {
                told.expired += removed;
                told.step = took;
                told.longest_step = told.longest_step.max(took);
            });
            let pause = if is_urgent { REST } else { PACE.saturating_sub(took).max(REST) };
            self.rest(pause);
            if self.told.is_closed() {
                return Ok(());
            }
        }
        self.told.send_modify(|told| {
            told.rounds += 1;
            told.entries = left;
            told.round = began.elapsed();
        });
        Ok(())
    }

    /// Sleeps, unless nobody is there any more.
    fn rest(&self, pause: Duration) {
        let end = Instant::now() + pause;
        while let left = end.saturating_duration_since(Instant::now())
            && !left.is_zero()
            && !self.told.is_closed()
        {
            thread::sleep(left.min(Duration::from_millis(200)));
        }
    }
}

const fn is_nearly_full(entries: u64, size: u64) -> bool {
    entries >= size / 8 * 7
}

/// The map.
pub struct Flows {
    map: TypedMap<FlowKey, Flow>,
}

impl Flows {
    /// Opens the pin of `directory`.
    ///
    /// # Errors
    /// When it is missing or cannot be opened.
    pub fn open(directory: &Path) -> Result<Self> {
        Ok(Self { map: TypedMap::open(directory, "FLOWS")? })
    }

    /// All entries as they are now, in no order.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> Result<Vec<(FlowKey, Flow)>> {
        self.map.read()
    }

    /// Removes those of these entries that are over, each with its partner, which may be none of these. How many of these
    /// stay, and how many were removed.
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
            // A packet may have come since this step began; the partner of one that was here may have taken it along.
            let Some(flow) = self.map.get(key)? else { continue };
            let partner = self.partner(key, &flow)?;
            if is_over(&flow, partner.as_ref(), key.proto, now()) {
                let keys = doomed(key, &flow, partner.is_some());
                self.map.delete(&keys)?;
                removed += keys.len() as u64;
            } else {
                kept += 1;
            }
        }
        Ok((kept, removed))
    }

    /// The entry of the other direction, unless that one has another partner by now.
    fn partner(&self, key: &FlowKey, flow: &Flow) -> Result<Option<Flow>> {
        let other = partner_key(key, flow);
        let partner = self.map.get(&other)?;
        Ok(partner.filter(|partner| partner_key(&other, partner) == *key))
    }
}

fn is_over(flow: &Flow, partner: Option<&Flow>, proto: u8, now: u64) -> bool {
    expires_at(flow, partner, proto) <= now
}

/// The keys to delete, the client's direction last: once that has gone its next packet begins a flow with two new entries,
/// of which none may be deleted for an old one.
fn doomed(key: &FlowKey, flow: &Flow, has_partner: bool) -> Vec<FlowKey> {
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
    fn no_flow_ends_sooner_than_the_shortest_time() {
        use FlowState::{Closed, Established, HalfClosed, Opening, TimeWait};
        for proto in 0..=255 {
            for state in [Opening, Established, HalfClosed, Closed, TimeWait] {
                assert!(state.lasts(proto) >= SHORTEST, "{state:?} of {proto}");
            }
        }
    }

    #[test]
    fn the_clients_direction_goes_last() {
        let ip = |text: &str| Addr::from(text.parse::<std::net::IpAddr>().expect("an address"));
        let dialled = Tuple { src: ip("192.0.2.9"), dst: ip("10.96.0.1"), src_port: 4000, dst_port: 80 };
        let to = Tuple { src: ip("192.0.2.9"), dst: ip("10.0.0.1"), src_port: 4000, dst_port: 8080 };
        let forward_key = FlowKey::new(dialled, 6, Hook::Ingress);
        let reverse_key = FlowKey::new(to.reversed(), 6, Hook::Egress);
        let flow =
            |to, flags| Flow { to, service: 1, backend: 1, flags, forward: 0, reverse: 0, used: 0, hop: Hop::UNKNOWN };
        let forward = flow(to, FlowFlags::PARTNER_EGRESS);
        let reverse = flow(dialled.reversed(), FlowFlags::REVERSE);
        let both = [reverse_key, forward_key];
        assert_eq!(doomed(&forward_key, &forward, true), both);
        assert_eq!(doomed(&reverse_key, &reverse, true), both);
        assert_eq!(doomed(&forward_key, &forward, false), [forward_key]);
    }

    #[test]
    fn a_map_is_nearly_full_at_seven_eighths() {
        assert!(is_nearly_full(56, 64) && !is_nearly_full(55, 64));
    }
}

//! Announcing of load balancer addresses on the link: which node shall hold an address, and the protocol by which at
//! most one does. Pure: times, datagrams and the vote of the Lease come in; datagrams and addresses come out. The rules
//! and their proof are in docs/design/announcing.md.
//!
//! Every announcer is a voter and may be a holder. A voter grants a permit for an address to one announcer at a time. A
//! holder answers for an address until the time for which a majority, itself among them, permits it.

mod choice;
mod datagram;
mod group;
mod hold_down;
mod lease;
mod membership;
mod peers;
mod permits;
#[cfg(test)]
mod tests;
pub mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

pub use choice::{Candidates, choose, merge};
pub use datagram::{Body, Datagram, MAX_ADDRESSES, MAX_MEMBERS, MAX_NAME, MAX_NETWORKS, PeerState};
use hold_down::HoldDown;
pub use lease::{LeaseRequest, LeaseState, LeaseVote};
pub use membership::Membership;
use peers::{Peers, Reception};
use permits::Permits;

/// Name of a node.
pub type Node = Arc<str>;
/// A time of a node's own clock, which runs on during a suspend: since its boot.
pub type Time = Duration;

/// Interval of questions.
pub const TICK: Time = Time::from_millis(300);
/// Interval of questions while an address lacks other votes.
const RETRY: Time = Time::from_millis(100);
/// Time for which a voter permits, from the question's arrival, by the voter's clock.
pub const PERMIT: Time = Time::from_millis(1500);
/// Time for which a holder relies on a permit, from before the question, by the holder's clock. The margin to
/// [`PERMIT`] is for clocks whose rates differ by up to 1 %, and for the time from the map to the wire.
pub(crate) const HOLD: Time = Time::from_millis(1400);
/// Time without a datagram after which an announcer counts as dead.
const SILENCE: Time = Time::from_millis(800);
/// Time without a datagram after which a dead announcer leaves the group, so that its vote is not missed.
const EVICTION: Time = Time::from_secs(60);
/// Smallest group that evicts no member: a pair with the vote of the Lease outlives either of its nodes.
const SMALLEST: usize = 2;
/// Time between the moments at which members propose the same change, so that in most cases one does.
const STAGGER: Time = Time::from_secs(2);
/// Age of a claim at which the holder's addresses do without it: others are renewed meanwhile.
const LAG: Time = Time::from_millis(600);

/// An announcer.
#[derive(Debug)]
pub struct Announcer {
    me: Node,
    started: Time,
    random: u64,
    sequence: u64,
    membership: Option<Membership>,
    /// Time at which permits for older versions of the membership have ended.
    settled: Time,
    permits: Permits,
    peers: Peers,
    /// Nodes that shall be announcers; none before they are known.
    nodes: Option<BTreeSet<Node>>,
    /// Load balancer addresses, with the nodes that may hold them; none before they are known.
    wished: Option<BTreeMap<IpAddr, Candidates>>,
    /// Addresses that the previous run held, until the wished ones are known.
    kept: BTreeSet<IpAddr>,
    /// True if the previous run was alone, and the membership is not known yet: it can have changed only with this
    /// node's vote.
    was_alone: bool,
    is_last: bool,
    is_cut_off: bool,
    /// Networks of links with a carrier.
    networks: Arc<BTreeSet<IpNet>>,
    claims: BTreeMap<IpAddr, Claim>,
    lease_until: Time,
    is_lease_tied: bool,
    hold_down: HoldDown,
    /// Time of the last input.
    awake: Time,
    next_tick: Time,
    change_since: Option<Time>,
    outbox: Vec<Datagram>,
}

/// An address for which the announcer asks.
#[derive(Debug)]
struct Claim {
    /// Time until which each other voter permits it.
    votes: BTreeMap<Node, Time>,
    /// Time until which a majority permits it.
    until: Time,
    /// Time of the first question whose answers count.
    since: Time,
    /// Time since when this voter permits it.
    permitted: Option<Time>,
    /// True if a voter has refused it since then.
    is_refused: bool,
}

/// The addresses to answer for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// The addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Time until which the node may answer for all of them; [`Time::MAX`] for a group of one.
    pub until: Time,
}

/// Steps to perform, in the order of the fields.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Output {
    /// Addresses to answer for.
    pub held: Held,
    /// Datagrams to send.
    pub datagrams: Vec<Datagram>,
}

/// The view of an announcer of one address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AddressView {
    /// The node that should hold it; none without a candidate.
    pub chosen: Option<Node>,
    /// The node that has this voter's permit.
    pub permitted: Option<Node>,
}

impl Announcer {
    /// Starts an announcer. `random` differs between any two runs. `kept` is what the previous run left to the kernel.
    #[must_use]
    pub fn new(me: Node, random: u64, kept: Held, now: Time) -> Self {
        let mut permits = Permits::new(now);
        let mut claims = BTreeMap::new();
        let was_alone = kept.until == Time::MAX;
        let until = if was_alone { now + HOLD } else { kept.until };
        let kept = if until > now { kept.addresses } else { BTreeSet::new() };
        for addr in &kept {
            // A holder has its own permit for as long as it answers.
            permits.remember(*addr, me.clone(), until);
            claims.insert(*addr, Claim { until, ..Claim::new(now) });
        }
        Self {
            me,
            started: now,
            random,
            sequence: 0,
            membership: None,
            settled: Time::MAX,
            permits,
            peers: Peers::new(random),
            nodes: None,
            wished: None,
            kept,
            was_alone,
            is_last: false,
            is_cut_off: false,
            networks: Arc::default(),
            claims,
            lease_until: Time::ZERO,
            is_lease_tied: false,
            hold_down: HoldDown::default(),
            awake: now,
            next_tick: now,
            change_since: None,
            outbox: Vec::new(),
        }
    }

    /// Sets the load balancer addresses, and the nodes that may hold each.
    pub fn set_wished(&mut self, wished: BTreeMap<IpAddr, Candidates>) {
        self.wished = Some(wished);
        self.kept.clear();
    }

    /// Sets the nodes that shall be announcers.
    pub fn set_nodes(&mut self, nodes: BTreeSet<Node>) {
        self.nodes = Some(nodes);
    }

    /// Sets whether other announcers go before this one.
    pub fn set_last(&mut self, is_last: bool) {
        self.is_last = is_last;
    }

    /// Sets whether no client reaches this node by its links. It claims nothing then: with the vote of the Lease, which
    /// it may still reach, it would keep the addresses from the node that clients reach.
    pub fn set_cut_off(&mut self, is_cut_off: bool) {
        self.is_cut_off = is_cut_off;
    }

    /// Sets the networks in which hosts hear this node's answers. A node with a network of an address goes before
    /// others there. Those over [`MAX_NETWORKS`] do not count.
    pub fn set_networks(&mut self, networks: impl Iterator<Item = IpNet>) {
        self.networks = Arc::new(networks.take(MAX_NETWORKS).collect());
    }

    /// Sets the membership that the Lease has. An older one has no effect.
    pub fn set_membership(&mut self, membership: Membership, now: Time) {
        if self.membership.as_ref().is_none_or(|known| known.version < membership.version) {
            self.membership = Some(membership);
            if std::mem::take(&mut self.was_alone) {
                self.renew_own(self.claims.keys().copied().collect(), now);
                self.claims.values_mut().for_each(|claim| claim.until = now + HOLD);
            }
            self.settled = now + PERMIT;
            self.change_since = None;
            self.next_tick = now;
        }
    }

    /// The membership; none before the Lease was read.
    #[must_use]
    pub fn membership(&self) -> Option<&Membership> {
        self.membership.as_ref()
    }

    /// Sets the time until which this announcer has the vote of the Lease.
    pub fn set_lease(&mut self, until: Time, now: Time) {
        let is_given_up = until < self.lease_until;
        self.lease_until = until;
        if is_given_up {
            for addr in self.claims.keys().copied().collect::<Vec<_>>() {
                let permitted = self.permitted_until(&addr, now);
                if let Some(claim) = self.claims.get_mut(&addr) {
                    claim.until = claim.until.min(permitted);
                }
            }
        }
    }

    /// Returns the time of the next [`Announcer::poll`].
    #[must_use]
    pub fn next_poll(&self, now: Time) -> Time {
        // A permit of this voter that stands in the way of a claim.
        let ends = self.claims.keys().filter_map(|addr| {
            let (holder, until) = self.permits.holder(addr, now)?;
            (*holder != self.me).then_some(until)
        });
        ends.chain([self.next_tick]).min().unwrap_or(self.next_tick)
    }

    /// Lets time pass: claims, asks and renews.
    pub fn poll(&mut self, now: Time) {
        self.wake(now);
        self.note_lapses(now);
        self.permits.prune(now);
        self.update_claims(now);
        self.back_off(now);
        let is_first = self.renew_own(self.claims.keys().copied().collect(), now);
        if is_first || now >= self.next_tick {
            // The permits of the other voters for a holder that died end soon after the own one.
            let lacks_votes = |claim: &Claim| claim.permitted.is_some() && claim.until <= now;
            self.next_tick = now + if self.claims.values().any(lacks_votes) { RETRY } else { TICK };
            self.ask(now);
        }
    }

    /// Takes a datagram, at a time read after its arrival.
    pub fn receive(&mut self, datagram: Datagram, now: Time) {
        if datagram.to != self.me || datagram.from == self.me {
            return;
        }
        self.wake(now);
        let from = datagram.from.clone();
        match self.peers.receive(&datagram, now) {
            Reception::Old => return,
            Reception::Unproven => return self.send(&from, Body::Hello, now),
            // The other one has begun, and waits for the questions of this one.
            Reception::First => self.next_tick = now,
            Reception::Taken => {}
        }
        if let Some(membership) = &self.membership
            && datagram.state.version < membership.version
        {
            let membership = membership.clone();
            self.send(&from, Body::Membership(membership), now);
        }
        match datagram.body {
            Body::Hello => {}
            Body::Ask { sent, addresses } => self.answer(&from, datagram.state.version, sent, &addresses, now),
            Body::Answer { sent, granted, refused } => self.count(&from, sent, &granted, &refused, now),
            Body::Void(addresses) => {
                let mut is_awaited = false;
                for addr in addresses {
                    self.permits.void(addr, &from);
                    is_awaited |= self.chosen(&addr, now).is_some_and(|node| *node == self.me);
                }
                if is_awaited {
                    self.next_tick = now;
                }
            }
            // Only the API server tells the first membership: an announcer that has started does not know which it had.
            Body::Membership(membership) => {
                if self.membership.is_some() {
                    self.set_membership(membership, now);
                }
            }
        }
    }

    /// Takes the steps to perform. They must be performed before the next input.
    pub fn take_output(&mut self, now: Time) -> Output {
        Output { held: self.held(now), datagrams: std::mem::take(&mut self.outbox) }
    }

    /// Returns the addresses to answer for.
    #[must_use]
    pub fn held(&self, now: Time) -> Held {
        if self.was_alone {
            return Held { addresses: self.claims.keys().copied().collect(), until: Time::MAX };
        }
        let current = || self.claims.iter().filter(|(_, claim)| claim.until > now);
        let latest = current().map(|(_, claim)| claim.until).max().unwrap_or_default();
        // One deadline serves all: an address that is not renewed goes before it holds up the others.
        let held = || current().filter(|(_, claim)| claim.until + LAG >= latest);
        let until = held().map(|(_, claim)| claim.until).min().unwrap_or_default();
        let addresses: BTreeSet<IpAddr> = held().map(|(addr, _)| *addr).collect();
        let until = if self.is_alone() && !addresses.is_empty() { Time::MAX } else { until };
        Held { addresses, until }
    }

    /// Returns the view of an address.
    #[must_use]
    pub fn view(&self, addr: &IpAddr, now: Time) -> AddressView {
        let permitted = self.permits.holder(addr, now).map(|(node, _)| node.clone());
        AddressView { chosen: self.chosen(addr, now).cloned(), permitted }
    }

    /// Lists the addresses for which this voter permits an announcer, with the announcer.
    pub fn permitted(&self, now: Time) -> impl Iterator<Item = (IpAddr, &Node)> {
        self.permits.current(now)
    }

    /// Returns the candidates of an address, and the nodes that may hold it; none if it is no load balancer address.
    fn candidates(&self, addr: &IpAddr) -> Option<&Candidates> {
        match &self.wished {
            Some(wished) => wished.get(addr),
            None => self.kept.contains(addr).then_some(&Candidates::All),
        }
    }

    /// Returns the node that should hold the address: the first choice, or the present holder while that is in a
    /// hold-down.
    fn chosen(&self, addr: &IpAddr, now: Time) -> Option<&Node> {
        let (membership, candidates) = (self.membership.as_ref()?, self.candidates(addr)?);
        let newest = membership.newest();
        let me = self.state(now);
        let state = |node: &Node| match *node == self.me {
            true => Some(&me),
            false => self.peers.alive(node, now),
        };
        // An announcer that has started can hold nothing new yet; it goes on with what it holds.
        let holds = |node: &Node| *node == self.me && self.permits.holder(addr, now).is_some_and(|(by, _)| by == node);
        let rank = |node: &Node| {
            let state = state(node).filter(|state| state.is_willing && (!state.is_silent || holds(node)))?;
            Some((!newest.contains(node), state.rank(addr)))
        };
        let others = newest.iter().filter(|node| **node != self.me);
        let own = membership.contains(&self.me).then_some(&self.me);
        let nodes = || others.clone().chain(own).filter(|node| candidates.contains(node));
        let first = choose(*addr, nodes().filter_map(|node| Some((node, rank(node)?))))?;
        if state(first).is_some_and(|state| state.is_held_down)
            && let Some((holder, _)) = self.permits.holder(addr, now)
            && (*holder != self.me || self.claims.get(addr).is_some_and(|claim| claim.until > now))
            && nodes().any(|node| node == holder)
            && rank(holder).is_some_and(|rank_of_holder| Some(rank_of_holder) <= rank(first))
        {
            return Some(holder);
        }
        Some(first)
    }

    /// The own state.
    fn state(&self, now: Time) -> PeerState {
        PeerState {
            version: self.membership.as_ref().map_or(0, |membership| membership.version),
            is_settled: now >= self.settled,
            is_silent: self.permits.is_silent(now),
            is_last: self.is_last || self.nodes.as_ref().is_some_and(|nodes| !nodes.contains(&self.me)),
            is_willing: !self.is_cut_off && (self.wished.is_some() || !self.kept.is_empty()),
            is_held_down: self.hold_down.is_on(now),
            networks: self.networks.clone(),
        }
    }

    /// True if no other announcer has a vote, so that the addresses need no deadline.
    fn is_alone(&self) -> bool {
        self.was_alone || self.membership.as_ref().is_some_and(|membership| membership.is_alone(&self.me))
    }

    /// Makes claims for the addresses that this announcer should hold, and ends those for which there is no reason.
    fn update_claims(&mut self, now: Time) {
        let Some(membership) = &self.membership else { return };
        let votes = |node: &Node| *node == self.me || self.peers.alive(node, now).is_some();
        let has_majority = membership.is_majority(votes, true);
        let addresses: BTreeSet<IpAddr> = match &self.wished {
            Some(wished) => wished.keys().copied().collect(),
            None => self.kept.clone(),
        };
        for addr in addresses {
            let is_mine = self.chosen(&addr, now).is_some_and(|node| *node == self.me);
            if is_mine && has_majority {
                self.claims.entry(addr).or_insert_with(|| Claim::new(now));
            }
        }
        let is_groundless = |(addr, claim): (&IpAddr, &Claim)| {
            let may = self.candidates(addr).is_some_and(|candidates| candidates.contains(&self.me));
            let chosen = self.chosen(addr, now);
            // A holder that is not chosen stays until the chosen one asks.
            let is_idle = claim.until <= now && (chosen != Some(&self.me) || !has_majority);
            !may || chosen.is_none() || is_idle
        };
        let groundless: Vec<IpAddr> =
            self.claims.iter().filter(|claim| is_groundless(*claim)).map(|(addr, _)| *addr).collect();
        self.give_up(&groundless, now);
    }

    /// Gives up claims that get no majority beside those of others, for a random time.
    fn back_off(&mut self, now: Time) {
        self.is_lease_tied = false;
        let mut stuck = Vec::new();
        for (addr, claim) in &self.claims {
            let Some(permitted) = claim.permitted.filter(|_| claim.until <= now && claim.is_refused) else { continue };
            self.is_lease_tied |= now >= permitted + 2 * TICK;
            let pause = Time::from_nanos(choice::mix(self.random ^ self.sequence) % 1_000_000_000);
            if now >= permitted + PERMIT {
                stuck.push((*addr, now + pause));
            }
        }
        for (addr, resume) in stuck {
            self.give_up(&[addr], now);
            self.claims.insert(addr, Claim::new(resume));
        }
    }

    /// Grants the own permits for claims. True if one is new.
    fn renew_own(&mut self, addresses: Vec<IpAddr>, now: Time) -> bool {
        let mut is_first = false;
        for addr in addresses {
            let Some(claim) = self.claims.get(&addr) else { continue };
            if now < claim.since {
                continue;
            }
            let is_known = self.permits.holder(&addr, now).is_some();
            if !self.permits.grant(addr, &self.me, now) {
                continue;
            }
            is_first |= !is_known;
            let permitted = self.permitted_until(&addr, now);
            if let Some(claim) = self.claims.get_mut(&addr) {
                claim.permitted.get_or_insert(now);
                claim.until = claim.until.max(permitted);
            }
        }
        is_first
    }

    /// Returns the time until which a majority permits this announcer to hold the address.
    fn permitted_until(&self, addr: &IpAddr, now: Time) -> Time {
        let (Some(membership), Some(claim)) = (&self.membership, self.claims.get(addr)) else { return Time::ZERO };
        let own = match self.permits.holder(addr, now) {
            // The own clock measures both ends.
            Some((holder, until)) if *holder == self.me => until.saturating_sub(PERMIT - HOLD),
            _ => return Time::ZERO,
        };
        let vote = |node: &Node| {
            if *node == self.me { own } else { claim.votes.get(node).copied().unwrap_or_default() }
        };
        membership.until(vote, self.lease_until).min(own)
    }

    /// Asks all other voters for permits, and tells nodes that are not members the own state.
    fn ask(&mut self, now: Time) {
        let voters = self.membership.as_ref().map(Membership::voters).unwrap_or_default();
        // Addresses of another holder as well: it yields.
        let asked = self.claims.iter().filter(|(_, claim)| now >= claim.since);
        let addresses: Vec<IpAddr> = asked.map(|(addr, _)| *addr).collect();
        let mut others = voters.clone();
        others.extend(self.nodes.iter().flatten().cloned());
        if !others.remove(&self.me) {
            return;
        }
        for node in others {
            if addresses.is_empty() || !voters.contains(&node) {
                self.send(&node, Body::Hello, now);
                continue;
            }
            for addresses in addresses.chunks(MAX_ADDRESSES) {
                self.send(&node, Body::Ask { sent: now, addresses: addresses.to_vec() }, now);
            }
        }
    }

    /// Answers the question of another announcer.
    fn answer(&mut self, from: &Node, version: u64, sent: Time, addresses: &[IpAddr], now: Time) {
        let is_entitled =
            self.membership.as_ref().is_some_and(|known| version >= known.version && known.contains(from));
        if !is_entitled {
            return;
        }
        // In a hold-down an address that this announcer does not hold yet is left to other askers.
        let is_left = |claim: &Claim| self.hold_down.is_on(now) && claim.until <= now;
        let is_theirs = |addr: &&IpAddr| {
            let claim = self.claims.get(*addr);
            claim.is_some_and(|claim| is_left(claim) || self.chosen(addr, now).is_some_and(|node| *node == *from))
        };
        let yielded: Vec<IpAddr> = addresses.iter().filter(is_theirs).copied().collect();
        self.give_up(&yielded, now);
        let (granted, refused): (Vec<IpAddr>, Vec<IpAddr>) =
            addresses.iter().partition(|addr| self.permits.grant(**addr, from, now));
        for addr in &granted {
            // Permits for an own claim count no longer: the other one will take this grant for their end.
            if let Some(claim) = self.claims.get_mut(addr) {
                *claim = Claim::new(now);
            }
        }
        self.send(from, Body::Answer { sent, granted, refused }, now);
    }

    /// Counts the permits of another voter.
    fn count(&mut self, from: &Node, sent: Time, granted: &[IpAddr], refused: &[IpAddr], now: Time) {
        if sent > now {
            return;
        }
        for addr in granted {
            let Some(claim) = self.claims.get_mut(addr) else { continue };
            if sent < claim.since {
                // The question crossed one of the other announcer; the next one counts.
                self.next_tick = now;
            } else {
                // A voter that grants it relies on no permit from before; the datagram that voids it may be lost.
                self.permits.void(*addr, from);
                let vote = claim.votes.entry(from.clone()).or_default();
                *vote = (*vote).max(sent + HOLD);
            }
        }
        self.renew_own(granted.to_vec(), now);
        for addr in refused {
            if let Some(claim) = self.claims.get_mut(addr) {
                claim.is_refused = true;
            }
        }
    }

    /// Ends claims. The output has the addresses no longer, and then tells the other voters.
    fn give_up(&mut self, addresses: &[IpAddr], now: Time) {
        for addr in addresses {
            self.claims.remove(addr);
            self.permits.void(*addr, &self.me);
        }
        let voters = self.membership.as_ref().map(Membership::voters).unwrap_or_default();
        let others: Vec<Node> = voters.into_iter().filter(|node| *node != self.me).collect();
        for addresses in addresses.chunks(MAX_ADDRESSES) {
            for node in &others {
                self.send(node, Body::Void(addresses.to_vec()), now);
            }
        }
    }

    fn send(&mut self, to: &Node, body: Body, now: Time) {
        self.sequence += 1;
        let (echo, cookie) = self.peers.cookies(to, now);
        self.outbox.push(Datagram {
            from: self.me.clone(),
            to: to.clone(),
            session: self.random,
            sequence: self.sequence,
            echo,
            cookie,
            state: self.state(now),
            body,
        });
    }
}

impl Claim {
    fn new(since: Time) -> Self {
        Self { votes: BTreeMap::new(), until: Time::ZERO, since, permitted: None, is_refused: false }
    }
}

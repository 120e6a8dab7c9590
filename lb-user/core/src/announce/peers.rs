//! The other announcers: their last known state, and which of their datagrams are new. A receiver takes a datagram only
//! if it echoes a cookie of the receiver and its number is higher than all before, so that one recorded on the link,
//! late or sent twice has no effect, over restarts of both. Cookies are replaced all the time, so that an announcer
//! that sends and hears nothing counts as dead.

use std::collections::BTreeMap;

use super::{Datagram, Node, PeerState, SILENCE, Time, choice::mix};

/// Least time between two answers to datagrams that were not taken.
const HELLO_INTERVAL: Time = Time::from_millis(50);

/// Least time between two cookies for a peer. The one before is good, too.
const COOKIE_INTERVAL: Time = Time::from_millis(500);

/// All other announcers that have sent a datagram.
#[derive(Debug)]
pub(super) struct Peers {
    random: u64,
    issued: u64,
    peers: BTreeMap<Node, Peer>,
}

#[derive(Debug)]
struct Peer {
    /// The session of the last datagram taken; none before one was.
    session: Option<u64>,
    sequence: u64,
    /// The number that it must echo, and the time since when.
    cookie: u64,
    issued: Time,
    /// The number before, which is as good.
    cookie_before: Option<u64>,
    /// The number that it asks to see.
    echo: u64,
    state: PeerState,
    heard: Time,
    answered: Option<Time>,
}

impl Peer {
    fn new(cookie: u64, now: Time) -> Self {
        let (state, heard) = (PeerState::default(), Time::ZERO);
        let (issued, cookie_before) = (now, None);
        Self { session: None, sequence: 0, cookie, issued, cookie_before, echo: 0, state, heard, answered: None }
    }
}

/// Treatment of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reception {
    /// A new datagram.
    Taken,
    /// A new datagram, and the first one of a session.
    First,
    /// A datagram that does not show that it is new; the sender shall learn the cookie.
    Unproven,
    /// An old datagram.
    Old,
}

impl Peers {
    /// Makes an empty set. `random` differs between any two runs.
    pub(super) fn new(random: u64) -> Self {
        Self { random, issued: 0, peers: BTreeMap::new() }
    }

    pub(super) fn receive(&mut self, datagram: &Datagram, now: Time) -> Reception {
        let new_cookie = self.next_cookie();
        let peer = self.peers.entry(datagram.from.clone()).or_insert_with(|| Peer::new(new_cookie, now));
        if datagram.echo != peer.cookie && Some(datagram.echo) != peer.cookie_before {
            // A wrong cookie costs a round, no more: its receiver answers with the right one.
            peer.echo = datagram.cookie;
            if peer.answered.is_some_and(|answered| now < answered + HELLO_INTERVAL) {
                return Reception::Old;
            }
            peer.answered = Some(now);
            return Reception::Unproven;
        }
        let reception = match peer.session {
            Some(session) if session == datagram.session => {
                if datagram.sequence <= peer.sequence {
                    return Reception::Old;
                }
                Reception::Taken
            }
            before => {
                if before.is_some() {
                    // Datagrams of the session before have the old cookies.
                    (peer.cookie, peer.issued, peer.cookie_before) = (new_cookie, now, None);
                }
                peer.session = Some(datagram.session);
                Reception::First
            }
        };
        (peer.sequence, peer.echo) = (datagram.sequence, datagram.cookie);
        (peer.state, peer.heard) = (datagram.state.clone(), now);
        reception
    }

    fn next_cookie(&mut self) -> u64 {
        self.issued += 1;
        mix(self.random.wrapping_add(self.issued))
    }

    /// Returns the number that the peer asks to see, and the number to ask it for.
    pub(super) fn cookies(&mut self, node: &Node, now: Time) -> (u64, u64) {
        let new_cookie = self.next_cookie();
        let peer = self.peers.entry(node.clone()).or_insert_with(|| Peer::new(new_cookie, now));
        if now >= peer.issued + COOKIE_INTERVAL {
            peer.cookie_before = Some(std::mem::replace(&mut peer.cookie, new_cookie));
            peer.issued = now;
        }
        (peer.echo, peer.cookie)
    }

    /// Returns the state of a peer that is alive, as far as is known.
    pub(super) fn alive(&self, node: &str, now: Time) -> Option<&PeerState> {
        let peer = self.peers.get(node)?;
        (peer.session.is_some() && now < peer.heard + SILENCE).then_some(&peer.state)
    }

    /// Leaves a time out in which this announcer could hear none of them.
    pub(super) fn excuse(&mut self, time: Time) {
        self.peers.values_mut().filter(|peer| peer.session.is_some()).for_each(|peer| peer.heard += time);
    }

    /// Returns the time of the last datagram taken; zero without one.
    pub(super) fn heard(&self, node: &str) -> Time {
        self.peers.get(node).map_or(Time::ZERO, |peer| peer.heard)
    }
}

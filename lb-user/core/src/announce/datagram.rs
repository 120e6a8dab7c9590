//! The datagrams between announcers, as values.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{Membership, Node, Time};

/// Most addresses in one datagram.
pub const MAX_ADDRESSES: usize = 64;
/// Most members of a group.
pub const MAX_MEMBERS: usize = 64;
/// Most networks of a node.
pub const MAX_NETWORKS: usize = 16;
/// Most bytes of the name of a node, as in Kubernetes.
pub const MAX_NAME: usize = 253;

/// A datagram from one announcer to another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// The sender.
    pub from: Node,
    /// The receiver; a datagram to another one has no effect.
    pub to: Node,
    /// The run of the sender: a random number of each start.
    pub session: u64,
    /// Number of the datagram, which grows in a session.
    pub sequence: u64,
    /// The number that the receiver last asked to see; without it the receiver takes nothing from the datagram.
    pub echo: u64,
    /// The number that the sender asks to see.
    pub cookie: u64,
    /// The state of the sender.
    pub state: PeerState,
    /// The message.
    pub body: Body,
}

/// The state that an announcer tells with each datagram.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PeerState {
    /// Version of the membership that it has; 0 before it has one.
    pub version: u64,
    /// True if it has had this version for as long as a permit lasts, so that permits for older versions have ended.
    pub is_settled: bool,
    /// True if it grants no permits yet.
    pub is_silent: bool,
    /// True if others go before it: it is being drained.
    pub is_last: bool,
    /// True if it takes no address from another holder: it was too late to renew its own.
    pub is_held_down: bool,
    /// True if it can answer for addresses.
    pub is_willing: bool,
    /// Networks of its links with a carrier, in which hosts hear its answers.
    pub networks: Arc<BTreeSet<IpNet>>,
}

impl PeerState {
    /// Returns the rank of the node for an address; a lower one goes first. A node whose link to the network of the
    /// address is down goes after a node that is being drained.
    pub(super) fn rank(&self, addr: &IpAddr) -> impl Ord + use<> {
        (!self.networks.iter().any(|network| network.contains(addr)), self.is_last)
    }
}

/// A message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// The state alone.
    Hello,
    /// The sender asks for permits.
    Ask {
        /// Time before the question, by the sender's clock.
        sent: Time,
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
    /// The sender has granted permits, and refused others.
    Answer {
        /// The time in the question.
        sent: Time,
        /// Addresses with a permit.
        granted: Vec<IpAddr>,
        /// Addresses without.
        refused: Vec<IpAddr>,
    },
    /// The sender answers for the addresses no longer, and needs no permits for them.
    Void(Vec<IpAddr>),
    /// The membership that the sender has.
    Membership(Membership),
}

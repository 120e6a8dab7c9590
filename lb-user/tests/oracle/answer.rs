//! A packet or call to a Service, and the answer of a proxy to it.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
};

use lb_common::Proto;

/// Place of a client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Origin {
    /// A process of the node.
    Process,
    /// A pod of the node.
    Pod,
    /// Outside of the node.
    Outside,
}

/// The first packet of a client, or its call.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    pub origin: Origin,
    pub from: IpAddr,
    pub to: SocketAddr,
    pub proto: Proto,
    /// Addresses of the node.
    pub node: &'a BTreeSet<IpAddr>,
}

impl Packet<'_> {
    /// True if an address is the node's.
    pub fn is_local(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.node.contains(&ip)
    }
}

impl fmt::Display for Packet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, from, to, proto, .. } = self;
        write!(f, "{to}/{} from {from} ({origin:?})", proto.name())
    }
}

/// The fate of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Translated to one of these, by chance.
    Endpoints(BTreeSet<SocketAddr>),
    /// Refused, and the client hears of it.
    Rejected,
    /// Dropped. For a call of a socket: refused as unreachable, since a socket cannot be dropped.
    Dropped,
    /// The packet goes on.
    Unchanged,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub outcome: Outcome,
    /// Timeout of affinity; none without.
    pub affinity_seconds: Option<u32>,
}

impl Answer {
    /// Adds the endpoints of another choice.
    pub fn add(&mut self, other: Self) {
        assert_eq!(self.affinity_seconds, other.affinity_seconds);
        let (Outcome::Endpoints(own), Outcome::Endpoints(others)) = (&mut self.outcome, other.outcome) else {
            panic!("a choice between other things than endpoints");
        };
        own.extend(others);
    }
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, affinity_seconds: None }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Endpoints(to) => {
                f.write_str("to")?;
                to.iter().try_for_each(|to| write!(f, " {to}"))?;
            }
            other => write!(f, "{other:?}")?,
        }
        self.affinity_seconds.map_or(Ok(()), |seconds| write!(f, ", affinity {seconds} s"))
    }
}

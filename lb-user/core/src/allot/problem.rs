//! Problems of pools and of requests for addresses, as data, and their text with the cure.

use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::Family;

use super::request::NotShared;
use crate::objects::Key;

/// A problem of a pool.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PoolProblem {
    /// A value that the parser could not use, with its cure.
    Invalid(String),
    /// It has no address.
    Empty,
    /// An older pool, or the first by name, has these addresses too.
    Overlap {
        /// The other pool.
        with: Arc<str>,
        /// First address of the first common range.
        first: IpAddr,
        /// Last address of that range.
        last: IpAddr,
    },
    /// It has addresses of this range of cluster IPs.
    ServiceRange(IpNet),
    /// It has this address of a node.
    Node(IpAddr),
}

impl Display for PoolProblem {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(problem) => f.write_str(problem),
            Self::Empty => f.write_str("spec.addresses: no address; add some"),
            Self::Overlap { with, first, last } => {
                write!(f, "{first}-{last} is in pool {} too, which allots it; remove it from one", with.escape_debug())
            }
            Self::ServiceRange(range) => {
                write!(f, "it has addresses of the cluster IP range {range}, which are not allotted; leave them out")
            }
            Self::Node(addr) => write!(f, "{addr} is an address of a node and is not allotted; leave it out"),
        }
    }
}

/// A problem of a Service's request for addresses.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AddressProblem {
    /// A value of the request that cannot be used, with its cure.
    Invalid(String),
    /// It asks for a pool that does not exist.
    UnknownPool(Arc<str>),
    /// The selectors of the pool that it asks for, or whose address it asks for, leave it out.
    NotAdmitted(Arc<str>),
    /// It asks for an address of a family that it does not have.
    OtherFamily(IpAddr),
    /// It asks for an address that no pool has.
    NotInPools(IpAddr),
    /// It asks for an address of one pool, and for another pool.
    OtherPool {
        /// The address.
        addr: IpAddr,
        /// Pool of the address.
        pool: Arc<str>,
        /// Pool that it asks for.
        asked: Arc<str>,
    },
    /// It asks for an address that its pool does not allot.
    Reserved(IpAddr, Reserved),
    /// It asks for an address that another Service has.
    InUse(IpAddr, Key, Obstacle),
    /// No pool has addresses of the family for it.
    NoPool(Family),
    /// The pools have no free address of the family.
    Full(Family, Vec<Arc<str>>),
    /// It needs an address of both families, and got none of this one.
    Incomplete(Family),
    /// It keeps an address that is in no pool.
    KeptOutsidePools(IpAddr),
    /// It keeps an address of a pool whose selectors leave it out.
    KeptNotAdmitted(IpAddr, Arc<str>),
    /// It keeps an address that the pool does not allot any more.
    KeptReserved(IpAddr, Reserved),
    /// It keeps an address that another Service has too.
    KeptShared(IpAddr, Key, Obstacle),
}

/// The reason why a pool does not allot an address that it has.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reserved {
    /// Network or broadcast address of this prefix, or its anycast address of routers.
    Edge(IpNet),
    /// A node has it.
    Node,
    /// It is in this range of cluster IPs.
    ServiceRange(IpNet),
}

/// The reason why an address of another Service cannot be shared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Obstacle {
    /// Another controller gave it to the other Service.
    Foreign,
    /// The two Services exclude each other.
    NotShared(NotShared),
}

impl AddressProblem {
    /// The problem's category, as the `reason` of a condition.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) | Self::UnknownPool(_) | Self::OtherFamily(_) | Self::OtherPool { .. } => "InvalidRequest",
            Self::NotAdmitted(_) | Self::NotInPools(_) | Self::Reserved(..) | Self::InUse(..) => "AddressNotAvailable",
            Self::NoPool(_) => "NoPool",
            Self::Full(..) | Self::Incomplete(_) => "NoFreeAddress",
            Self::KeptOutsidePools(_) | Self::KeptNotAdmitted(..) | Self::KeptReserved(..) | Self::KeptShared(..) => {
                "CheckAddress"
            }
        }
    }
}

impl Display for AddressProblem {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(problem) => f.write_str(problem),
            Self::UnknownPool(pool) => {
                write!(f, "it asks for pool {}, which does not exist; make it, or name another", pool.escape_debug())
            }
            Self::NotAdmitted(pool) => write!(
                f,
                "the selectors of pool {} leave this Service out; change them, or ask for another pool",
                pool.escape_debug()
            ),
            Self::OtherFamily(addr) => {
                write!(
                    f,
                    "it asks for {addr}, whose family is not in spec.ipFamilies; add it there, or ask for another"
                )
            }
            Self::NotInPools(addr) => {
                write!(f, "it asks for {addr}, which is in no pool; add it to one, or ask for another")
            }
            Self::OtherPool { addr, pool, asked } => write!(
                f,
                "it asks for {addr}, which is in pool {}, and for pool {}; remove one of the two",
                pool.escape_debug(),
                asked.escape_debug()
            ),
            Self::Reserved(addr, reserved) => {
                write!(f, "it asks for {addr}, which is {reserved}; ask for another")?;
                match reserved {
                    Reserved::Edge(_) => write!(f, ", or add {addr} to the pool on its own"),
                    Reserved::Node | Reserved::ServiceRange(_) => Ok(()),
                }
            }
            Self::InUse(addr, other, obstacle) => {
                write!(f, "it asks for {addr}, which Service {other} has: {obstacle}; ask for another")
            }
            Self::NoPool(family) => write!(
                f,
                "no pool gives it an {} address without being asked; make an AddressPool, or ask for one by \
                 beeline.io/lb-pool",
                family.name()
            ),
            Self::Full(family, pools) => {
                let names: Vec<_> = pools.iter().map(|pool| pool.escape_debug().to_string()).collect();
                let (names, s) = (names.join(", "), if pools.len() == 1 { "" } else { "s" });
                write!(f, "no free {} address in pool{s} {names}; add addresses", family.name())
            }
            Self::Incomplete(family) => write!(
                f,
                "it needs both families and gets none without {}; set ipFamilyPolicy to PreferDualStack to go without",
                family.name()
            ),
            Self::KeptOutsidePools(addr) => {
                write!(f, "it keeps {addr}, which is in no pool any more; add it to one, or ask for another to move")
            }
            Self::KeptNotAdmitted(addr, pool) => write!(
                f,
                "it keeps {addr}, although the selectors of pool {} leave it out; change them, or ask for another \
                 address to move",
                pool.escape_debug()
            ),
            Self::KeptReserved(addr, reserved) => {
                write!(f, "it keeps {addr}, which is {reserved}; ask for another to move")
            }
            Self::KeptShared(addr, other, obstacle) => {
                write!(f, "it keeps {addr}, which Service {other} has too: {obstacle}; ask for another to move")
            }
        }
    }
}

impl Display for Reserved {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Edge(prefix @ IpNet::V4(_)) => write!(f, "the network or broadcast address of {prefix}"),
            Self::Edge(prefix @ IpNet::V6(_)) => write!(f, "the anycast address of the routers of {prefix}"),
            Self::Node => f.write_str("an address of a node"),
            Self::ServiceRange(range) => write!(f, "in the cluster IP range {range}"),
        }
    }
}

impl Display for Obstacle {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign => f.write_str("another controller gave it"),
            Self::NotShared(NotShared::NoConsent) => f.write_str("not both consent to share, by the same key"),
            Self::NotShared(NotShared::SamePort(proto, port)) => write!(f, "both have port {port}/{}", proto.name()),
            Self::NotShared(NotShared::OtherNodes) => f.write_str(
                "both need externalTrafficPolicy Cluster, or Local and the same selector, as an address is announced \
                 as a whole",
            ),
        }
    }
}

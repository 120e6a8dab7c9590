//! Problems of pools and of requests for addresses, as data, and their text with the cure.

use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::Family;

use super::request::{Contest, NotShared};
use crate::objects::Key;

/// A problem of a pool.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PoolProblem {
    /// A value that the parser could not use, with its cure.
    Invalid(String),
    /// The pool has no address.
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
    /// The pool has addresses of this range of cluster IPs.
    ServiceRange(IpNet),
    /// The pool has this address of a node.
    Node(IpAddr),
}

impl PoolProblem {
    /// The problem's category, as the `reason` of a condition.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "InvalidSpec",
            Self::Empty => "NoAddresses",
            Self::Overlap { .. } => "Overlap",
            Self::ServiceRange(_) => "ServiceRange",
            Self::Node(_) => "NodeAddress",
        }
    }
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
    /// The Service asks for a pool that does not exist.
    UnknownPool(Arc<str>),
    /// The selectors of the pool that it asks for, or whose address it asks for, leave it out.
    NotAdmitted(Arc<str>, Selectors),
    /// The Service asks for an address of a family that it does not have.
    OtherFamily(IpAddr),
    /// The Service asks for an address that no pool has.
    NotInPools(IpAddr),
    /// The Service asks for an address of one pool, and for another pool.
    OtherPool {
        /// The address.
        addr: IpAddr,
        /// Pool of the address.
        pool: Arc<str>,
        /// Pool that it asks for.
        asked: Arc<str>,
    },
    /// The Service asks for an address that its pool does not allot.
    Reserved(IpAddr, Reserved),
    /// The Service asks for an address that another Service has.
    InUse(IpAddr, Key, Obstacle),
    /// No pool gives it an address of the family; each with the reason, in the order in which they are tried.
    NoAddress(Family, Vec<(Arc<str>, NotGiven)>),
    /// The Service needs an address of both families, and got none of this one.
    Incomplete(Family),
    /// The Service keeps an address that is in no pool.
    KeptOutsidePools(IpAddr),
    /// The Service keeps an address of a pool whose selectors leave it out.
    KeptNotAdmitted(IpAddr, Arc<str>, Selectors),
    /// The Service keeps an address that the pool does not allot any more.
    KeptReserved(IpAddr, Reserved),
    /// The Service keeps an address that another Service has too.
    KeptShared(IpAddr, Key, Obstacle),
    /// Another controller changes its addresses again and again, with the addresses before and after.
    Contested(Contest),
}

/// Selectors of a pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Selectors {
    /// Selectors of namespaces.
    Namespaces,
    /// Selectors of Services.
    Services,
}

impl Selectors {
    /// Returns the name of the field.
    #[must_use]
    pub const fn field(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaceSelectors",
            Self::Services => "serviceSelectors",
        }
    }
}

/// The reason why a pool does not give a Service an address that it has not asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum NotGiven {
    /// The pool has none of the family.
    NoFamily,
    /// Selectors of the pool leave the Service out.
    LeftOut(Selectors),
    /// The pool gives addresses on request only.
    OnRequest,
    /// No address of the pool is free.
    Full,
}

/// The reason why a pool does not allot an address that it has.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reserved {
    /// Network or broadcast address of this prefix, or its anycast address of routers.
    Edge(IpNet),
    /// A node has the address.
    Node,
    /// The address is in this range of cluster IPs.
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
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) | Self::UnknownPool(_) | Self::OtherFamily(_) | Self::OtherPool { .. } => "InvalidRequest",
            Self::NotAdmitted(..) | Self::NotInPools(_) | Self::Reserved(..) | Self::InUse(..) => "AddressNotAvailable",
            Self::NoAddress(..) if !self.is_full() => "NoPool",
            Self::NoAddress(..) | Self::Incomplete(_) => "NoFreeAddress",
            Self::Contested(_) => "TwoControllers",
            Self::KeptOutsidePools(_) | Self::KeptNotAdmitted(..) | Self::KeptReserved(..) | Self::KeptShared(..) => {
                "CheckAddress"
            }
        }
    }

    /// True if pools would give it an address, and have none free.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::NoAddress(_, pools) if pools.iter().any(|(_, why)| *why == NotGiven::Full))
    }
}

impl Display for AddressProblem {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(problem) => f.write_str(problem),
            Self::UnknownPool(pool) => {
                write!(f, "it asks for pool {}, which does not exist; make it, or name another", pool.escape_debug())
            }
            Self::NotAdmitted(pool, selectors) => write!(
                f,
                "the {} of pool {} leave this Service out; change them, or ask for another pool",
                selectors.field(),
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
            Self::NoAddress(family, pools) => write_no_address(f, *family, pools),
            Self::Incomplete(family) => write!(
                f,
                "it needs both families and gets none without {}; set ipFamilyPolicy to PreferDualStack to go without",
                family.name()
            ),
            Self::KeptOutsidePools(addr) => {
                write!(f, "it keeps {addr}, which is in no pool any more; add it to one, or ask for another to move")
            }
            Self::KeptNotAdmitted(addr, pool, selectors) => write!(
                f,
                "it keeps {addr}, although the {} of pool {} leave it out; change them, or ask for another address to \
                 move",
                selectors.field(),
                pool.escape_debug()
            ),
            Self::KeptReserved(addr, reserved) => {
                write!(f, "it keeps {addr}, which is {reserved}; ask for another to move")
            }
            Self::KeptShared(addr, other, obstacle) => {
                write!(f, "it keeps {addr}, which Service {other} has too: {obstacle}; ask for another to move")
            }
            Self::Contested(Contest { from, to }) => write!(
                f,
                "another controller changes its addresses again and again, from {} to {}, and keeps the last word for \
                 ten minutes; let one of the two serve it, by spec.loadBalancerClass",
                list(from),
                list(to)
            ),
        }
    }
}

/// Lists addresses.
fn list(addresses: &[IpAddr]) -> String {
    let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

/// Most pools in a text.
const MAX_POOLS: usize = 8;

/// Writes the reason of each pool that gives no address, with its cure.
fn write_no_address(f: &mut Formatter<'_>, family: Family, pools: &[(Arc<str>, NotGiven)]) -> fmt::Result {
    write!(f, "no pool gives it an {} address", family.name())?;
    if pools.is_empty() {
        return f.write_str(", as there is none; make an AddressPool");
    }
    for (at, (pool, why)) in pools.iter().take(MAX_POOLS).enumerate() {
        let pool = pool.escape_debug();
        f.write_str(if at == 0 { ": " } else { "; " })?;
        match why {
            NotGiven::NoFamily => write!(f, "{pool} has none of the family (add some)"),
            NotGiven::LeftOut(selectors) => write!(f, "the {} of {pool} leave it out", selectors.field()),
            NotGiven::OnRequest => write!(f, "{pool} gives on request only (ask by beeline.io/lb-pool: {pool})"),
            NotGiven::Full => write!(f, "{pool} has no free one (add addresses)"),
        }?;
    }
    match pools.len().checked_sub(MAX_POOLS) {
        None | Some(0) => Ok(()),
        Some(more) => write!(f, "; and {more} more"),
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

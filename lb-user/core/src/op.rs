//! One map write, as data.

use std::{collections::BTreeSet, fmt, net::SocketAddr};

use lb_common::{
    Addr, Backend, EjectPolicy, Frontend, FrontendKey, Kind, Maglev, MaglevKey, NEVER, NodeAddr, RangeKey, Scheduler,
    ServiceEntry, Slot, SlotKey,
};

use crate::{ranges, spec::PortKey};

/// A map that the agent writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Table {
    /// `FRONTENDS`
    Frontends,
    /// `PORT_RANGES`
    PortRanges,
    /// `FRONTEND_BITS`
    FrontendBits,
    /// `SERVICES`
    Services,
    /// `SLOTS`
    Slots,
    /// `BACKENDS`
    Backends,
    /// `NAMES`
    Names,
    /// `NODE_ADDRS`
    NodeAddrs,
    /// `SOURCE_RANGES`
    SourceRanges,
    /// `MAGLEV`
    Maglev,
}

impl Table {
    /// All tables.
    pub const ALL: [Self; 10] = [
        Self::Frontends,
        Self::PortRanges,
        Self::FrontendBits,
        Self::Services,
        Self::Slots,
        Self::Backends,
        Self::Names,
        Self::NodeAddrs,
        Self::SourceRanges,
        Self::Maglev,
    ];

    /// Returns the name of the map and of its pin.
    #[must_use]
    pub const fn map_name(self) -> &'static str {
        match self {
            Self::Frontends => "FRONTENDS",
            Self::PortRanges => "PORT_RANGES",
            Self::FrontendBits => "FRONTEND_BITS",
            Self::Services => "SERVICES",
            Self::Slots => "SLOTS",
            Self::Backends => "BACKENDS",
            Self::Names => "NAMES",
            Self::NodeAddrs => "NODE_ADDRS",
            Self::SourceRanges => "SOURCE_RANGES",
            Self::Maglev => "MAGLEV",
        }
    }
}

impl Table {
    /// Returns the table of a frontend.
    #[must_use]
    pub(crate) const fn of_frontend(key: &FrontendKey) -> Self {
        if key.block == 0 { Self::Frontends } else { Self::PortRanges }
    }

    /// Returns the name in the flag `--map-size`; None for a map of fixed size. `NAMES` is as large as `SERVICES`.
    #[must_use]
    pub const fn flag_name(self) -> Option<&'static str> {
        Some(match self {
            Self::Frontends => "frontends",
            Self::PortRanges => "port_ranges",
            Self::FrontendBits => return None,
            Self::Services | Self::Names => "services",
            Self::Slots => "slots",
            Self::Backends => "backends",
            Self::NodeAddrs => "node_addrs",
            Self::SourceRanges => "source_ranges",
            Self::Maglev => "maglev",
        })
    }
}

/// One write to one map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Name a service port id. Boxed to keep the other ops small.
    PutName(u32, Box<PortKey>),
    /// Write a backend.
    PutBackend(u32, Backend),
    /// Write a slot.
    PutSlot(SlotKey, Slot),
    /// Write a service port: its list lengths, policies and scheduler.
    PutService(u32, ServiceEntry),
    /// Point a frontend, or a block of a port range, at a service port.
    PutFrontend(FrontendKey, Frontend),
    /// Write a word of frontend bits: see [`FrontendKey::bit`].
    PutFrontendBits(u32, u64),
    /// Serve NodePorts at an address.
    PutNodeAddr(Addr, NodeAddr),
    /// Allow a source range at a service port's load balancer addresses.
    PutRange(RangeKey),
    /// Write a Maglev table.
    PutMaglev(MaglevKey, Box<Maglev>),
    /// Remove a frontend, or a block of a port range.
    DeleteFrontend(FrontendKey),
    /// Remove a service port.
    DeleteService(u32),
    /// Remove a slot.
    DeleteSlot(SlotKey),
    /// Remove a backend.
    DeleteBackend(u32),
    /// Remove a name.
    DeleteName(u32),
    /// Stop serving NodePorts at an address.
    DeleteNodeAddr(Addr),
    /// Remove a source range.
    DeleteRange(RangeKey),
    /// Remove a Maglev table.
    DeleteMaglev(MaglevKey),
}

impl Op {
    /// Returns the table that the op writes.
    #[must_use]
    pub const fn table(&self) -> Table {
        match self {
            Self::PutName(..) | Self::DeleteName(_) => Table::Names,
            Self::PutBackend(..) | Self::DeleteBackend(_) => Table::Backends,
            Self::PutSlot(..) | Self::DeleteSlot(_) => Table::Slots,
            Self::PutService(..) | Self::DeleteService(_) => Table::Services,
            Self::PutFrontend(key, _) | Self::DeleteFrontend(key) => Table::of_frontend(key),
            Self::PutFrontendBits(..) => Table::FrontendBits,
            Self::PutNodeAddr(..) | Self::DeleteNodeAddr(_) => Table::NodeAddrs,
            Self::PutRange(_) | Self::DeleteRange(_) => Table::SourceRanges,
            Self::PutMaglev(..) | Self::DeleteMaglev(_) => Table::Maglev,
        }
    }
}

/// Describes the ejection of backends.
pub(crate) fn eject_text(eject: &EjectPolicy) -> String {
    let EjectPolicy { failures, window, seconds, cluster_most, local_most, .. } = eject;
    let local = if *local_most > 0 { format!(" and {local_most} of the local list") } else { String::new() };
    format!("{failures} in {window} s for {seconds} s, at most {cluster_most}{local}")
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let map = self.table().map_name();
        let slot_key = |key: &SlotKey| format!("{} {} {}", key.service, key.list, key.index);
        let socket = |addr: Addr, port| SocketAddr::new(addr.to_ip(), port);
        match self {
            Self::PutName(id, key) => write!(f, "put {map} {id} = {key}"),
            Self::PutBackend(id, Backend { addr, port, flags, service }) => {
                write!(f, "put {map} {id} = {} of service port {service}, flags {flags:#x}", socket(*addr, *port))
            }
            Self::PutSlot(key, Slot { addr, port, weight, backend }) => {
                write!(f, "put {map} {} = {} backend {backend}", slot_key(key), socket(*addr, *port))?;
                if *weight == 1 { Ok(()) } else { write!(f, " weight {weight}") }
            }
            Self::PutService(
                id,
                ServiceEntry {
                    cluster_len, local_len, flags, scheduler, affinity_seconds, drain_seconds, eject, ..
                },
            ) => {
                write!(f, "put {map} {id} = cluster {cluster_len} local {local_len} flags {flags:#x}")?;
                if *scheduler != Scheduler::Random as u32 {
                    write!(f, " scheduler {}", Scheduler::from_number(*scheduler).map_or("?", Scheduler::name))?;
                }
                if *affinity_seconds != 0 {
                    write!(f, " affinity {affinity_seconds} s")?;
                }
                if eject.is_on() {
                    write!(f, " eject {}", eject_text(eject))?;
                }
                if *drain_seconds == NEVER { Ok(()) } else { write!(f, " drain {drain_seconds} s") }
            }
            Self::PutFrontendBits(word, bits) => write!(f, "put {map} {word} = {bits:#x}"),
            Self::PutNodeAddr(addr, NodeAddr { flags }) => write!(f, "put {map} {addr} = flags {flags:#x}"),
            Self::DeleteNodeAddr(addr) => write!(f, "delete {map} {addr}"),
            Self::PutRange(key) => write!(f, "put {map} {} {}", key.range.service, ranges::text(key)),
            Self::DeleteRange(key) => write!(f, "delete {map} {} {}", key.range.service, ranges::text(key)),
            Self::PutMaglev(MaglevKey { service, list }, table) => {
                let backends: BTreeSet<u32> = table.backends.iter().copied().collect();
                write!(f, "put {map} {service} {list} = of {} backends", backends.len())
            }
            Self::DeleteMaglev(MaglevKey { service, list }) => write!(f, "delete {map} {service} {list}"),
            Self::PutFrontend(key, Frontend { service, kind, .. }) => {
                let kind = Kind::from_number(*kind).map_or("?", Kind::name);
                write!(f, "put {map} {key} = service port {service}, {kind}")
            }
            Self::DeleteFrontend(key) => write!(f, "delete {map} {key}"),
            Self::DeleteSlot(key) => write!(f, "delete {map} {}", slot_key(key)),
            Self::DeleteService(id) | Self::DeleteBackend(id) | Self::DeleteName(id) => write!(f, "delete {map} {id}"),
        }
    }
}

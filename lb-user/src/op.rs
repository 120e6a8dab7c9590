//! One map write, as data.

use lb_common::{Backend, Frontend, FrontendKey, Service, Slot, SlotKey};

use crate::spec::PortKey;

/// A map that the agent writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Table {
    /// `FRONTENDS`
    Frontends,
    /// `SERVICES`
    Services,
    /// `SLOTS`
    Slots,
    /// `BACKENDS`
    Backends,
    /// `NAMES`
    Names,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Frontends, Self::Services, Self::Slots, Self::Backends, Self::Names];

    /// The map's name in the kernel, which is its pin's name too.
    #[must_use]
    pub const fn map_name(self) -> &'static str {
        match self {
            Self::Frontends => "FRONTENDS",
            Self::Services => "SERVICES",
            Self::Slots => "SLOTS",
            Self::Backends => "BACKENDS",
            Self::Names => "NAMES",
        }
    }
}

/// One write to one map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Name a service port id.
    PutName(u32, PortKey),
    /// Write a backend.
    PutBackend(u32, Backend),
    /// Write a slot.
    PutSlot(SlotKey, Slot),
    /// Write the lengths and flags of a service port.
    PutService(u32, Service),
    /// Point a frontend at a service port.
    PutFrontend(FrontendKey, Frontend),
    /// Remove a frontend.
    DeleteFrontend(FrontendKey),
    /// Remove a service port.
    DeleteService(u32),
    /// Remove a slot.
    DeleteSlot(SlotKey),
    /// Remove a backend.
    DeleteBackend(u32),
    /// Remove a name.
    DeleteName(u32),
}

impl Op {
    /// The map that it writes.
    #[must_use]
    pub const fn table(&self) -> Table {
        match self {
            Self::PutName(..) | Self::DeleteName(_) => Table::Names,
            Self::PutBackend(..) | Self::DeleteBackend(_) => Table::Backends,
            Self::PutSlot(..) | Self::DeleteSlot(_) => Table::Slots,
            Self::PutService(..) | Self::DeleteService(_) => Table::Services,
            Self::PutFrontend(..) | Self::DeleteFrontend(_) => Table::Frontends,
        }
    }
}

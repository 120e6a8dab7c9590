//! Readers that look at another snapshot of the maps for each look-up, and the places at which they look.

use lb_common::{
    Addr, Backend, Frontend, FrontendKey, MaglevKey, NodeAddr, ServiceEntry, Slot, SlotKey, Stateless, Tables,
};
use lb_core::{op::Op, store::Dump};

/// A place in the maps; of port ranges and source ranges the places of which a look-up may read several.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Frontend(FrontendKey),
    PortRanges(Addr),
    FrontendBits(u32),
    Service(u32),
    Slot(SlotKey),
    Backend(u32),
    NodeAddr(Addr),
    SourceRanges(u32),
    Maglev(MaglevKey),
}

impl Place {
    /// The place that an op writes; `None` for names, which no reader reads.
    pub fn of(op: &Op) -> Option<Self> {
        Some(match op {
            Op::PutName(..) | Op::DeleteName(_) => return None,
            Op::PutFrontend(key, _) | Op::DeleteFrontend(key) if key.block == 0 => Self::Frontend(*key),
            Op::PutFrontend(key, _) | Op::DeleteFrontend(key) => Self::PortRanges(key.addr),
            Op::PutFrontendBits(word, _) => Self::FrontendBits(*word),
            Op::PutService(id, _) | Op::DeleteService(id) => Self::Service(*id),
            Op::PutSlot(key, _) | Op::DeleteSlot(key) => Self::Slot(*key),
            Op::PutBackend(id, _) | Op::DeleteBackend(id) => Self::Backend(*id),
            Op::PutNodeAddr(addr, _) | Op::DeleteNodeAddr(addr) => Self::NodeAddr(*addr),
            Op::PutRange(key) | Op::DeleteRange(key) => Self::SourceRanges(key.range.service),
            Op::PutMaglev(key, _) | Op::DeleteMaglev(key) => Self::Maglev(*key),
        })
    }
}

/// A reader without state, which asks for the snapshot to read at each place.
pub struct Reader<F>(pub F);

impl<'a, F: Fn(Place) -> &'a Dump> Tables for Reader<F> {
    fn may_have(&self, key: &FrontendKey) -> bool {
        (self.0)(Place::FrontendBits(key.bit().0)).may_have(key)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        (self.0)(Place::Frontend(*key)).frontend(key)
    }
    fn port_range(&self, dest: &FrontendKey) -> Option<Frontend> {
        (self.0)(Place::PortRanges(dest.addr)).port_range(dest)
    }
    fn service(&self, id: u32) -> Option<ServiceEntry> {
        (self.0)(Place::Service(id)).service(id)
    }
    fn slot(&self, key: &SlotKey) -> Option<Slot> {
        (self.0)(Place::Slot(*key)).slot(key)
    }
    fn backend(&self, id: u32) -> Option<Backend> {
        (self.0)(Place::Backend(id)).backend(id)
    }
    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr> {
        (self.0)(Place::NodeAddr(*addr)).node_addr(addr)
    }
    fn in_source_ranges(&self, service: u32, addr: &Addr) -> bool {
        (self.0)(Place::SourceRanges(service)).in_source_ranges(service, addr)
    }
    fn maglev(&self, key: &MaglevKey, place: u32) -> Option<u32> {
        (self.0)(Place::Maglev(*key)).maglev(key, place)
    }
}

impl<F> Stateless for Reader<F> {}

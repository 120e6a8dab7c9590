//! Results of a pass: counts, durations, and the map changes that concern sockets.

use std::time::Duration;

use lb_common::{AddrPort, Backend, FrontendKey, NEVER, Proto};

use lb_core::{
    event::ObjectKind,
    objects::Drain,
    op::Op,
    plan::{Change, Refused},
    shadow::Shadow,
};

/// Results of a pass.
#[derive(Debug, Default)]
pub struct PassReport {
    /// Kinds that no source has listed yet. The pass does nothing until it is empty (invariant I5).
    pub waiting: Vec<ObjectKind>,
    /// Number of Services that were compiled and planned.
    pub planned: usize,
    /// Services that changed; twice in the list if two plans changed one.
    pub changed: Vec<Change>,
    /// Number of writes that took effect.
    pub writes: usize,
    /// Services that do not fit into the maps.
    pub refused: Vec<Refused>,
    /// Map changes that concern sockets.
    pub(crate) changes: MapChanges,
    /// Error that ended the pass early. The next pass repeats the rest of the work.
    pub failure: Option<anyhow::Error>,
    /// Durations of the steps.
    pub durations: StepDurations,
}

/// Durations of the steps of a pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StepDurations {
    /// From objects to specs, with a read of the maps if one was needed.
    pub compile: Duration,
    /// From specs to ops, and the update of the shadow.
    pub plan: Duration,
    /// The writes.
    pub write: Duration,
}

/// Map changes that concern sockets of the node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct MapChanges {
    pub(crate) removed_backends: Vec<RemovedBackend>,
    pub(crate) new_node_ports: Vec<FrontendKey>,
}

/// A backend that was removed from the maps. Sockets that hold it lead nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RemovedBackend {
    /// Id of the backend.
    pub(crate) backend: u32,
    /// Id of its service port.
    pub(crate) service: u32,
    pub(crate) proto: Proto,
    pub(crate) address: AddrPort,
    /// Treatment of TCP sockets that hold the backend.
    pub(crate) drain: Drain,
}

impl MapChanges {
    /// Derives the changes from `ops`; `before` is the content of the maps without them.
    pub(super) fn of(ops: &[Op], before: &Shadow) -> Self {
        let node_port = |op: &Op| match op {
            Op::PutFrontend(key, frontend) if frontend.kind == lb_common::Kind::NodePort as u8 => Some(*key),
            _ => None,
        };
        let is_new = |key: &FrontendKey| before.frontend(key).is_none();
        Self {
            removed_backends: ops.iter().filter_map(|op| RemovedBackend::of(op, before)).collect(),
            new_node_ports: ops.iter().filter_map(node_port).filter(is_new).collect(),
        }
    }

    /// Adds later changes.
    pub(crate) fn append(&mut self, mut later: Self) {
        self.removed_backends.append(&mut later.removed_backends);
        self.new_node_ports.append(&mut later.new_node_ports);
    }
}

impl RemovedBackend {
    /// Returns none for a backend whose service port has no name: a crash left it, and the scan at the start of
    /// `termination` finds its sockets.
    fn of(op: &Op, before: &Shadow) -> Option<Self> {
        let Op::DeleteBackend(id) = op else { return None };
        let Backend { addr, port, service, .. } = before.backend(*id)?;
        let service_port = before.port(service)?;
        let drain = match service_port.service?.drain_seconds {
            NEVER => Drain::Never,
            seconds => Drain::After(seconds),
        };
        let proto = service_port.key.as_ref()?.proto;
        Some(Self { backend: *id, service, proto, address: AddrPort { addr, port }, drain })
    }
}

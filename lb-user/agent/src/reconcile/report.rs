//! Results of a pass: counts, durations, and the map changes that concern sockets.

use std::time::Duration;

use lb_common::{FrontendKey, Kind, NEVER, Proto};

use lb_core::{
    event::ObjectKind,
    objects::Drain,
    op::Op,
    plan::{Change, Refused},
    shadow::Shadow,
};
use lb_dataplane::sockets::Peer;

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
    pub(crate) departures: Vec<Departure>,
    /// NodePorts and hostPorts that are new.
    pub(crate) new_ports_of_node: Vec<FrontendKey>,
}

/// A backend or a frontend that a service port lost. Its sockets may lead to an endpoint that does not serve them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Departure {
    /// Id of the service port.
    pub(crate) service: u32,
    pub(crate) proto: Proto,
    /// Treatment of its TCP sockets.
    pub(crate) drain: Drain,
    pub(crate) departed: Departed,
}

/// A part that a service port lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Departed {
    /// A backend, which was removed from the maps.
    Backend { id: u32, peer: Peer },
    /// A frontend, which was removed, or belongs to another service port now.
    Frontend(FrontendKey),
}

impl MapChanges {
    /// Derives the changes from `ops`; `before` is the content of the maps without them.
    pub(super) fn of(ops: &[Op], before: &Shadow) -> Self {
        let is_of_node = |kind: u8| Kind::from_number(kind).is_some_and(Kind::is_of_node);
        let port_of_node = |op: &Op| match op {
            Op::PutFrontend(key, frontend) if is_of_node(frontend.kind) => Some(*key),
            _ => None,
        };
        let is_new = |key: &FrontendKey| before.frontend(key).is_none();
        Self {
            departures: ops.iter().filter_map(|op| Departure::of(op, before)).collect(),
            new_ports_of_node: ops.iter().filter_map(port_of_node).filter(is_new).collect(),
        }
    }

    /// Adds later changes.
    pub(crate) fn append(&mut self, mut later: Self) {
        self.departures.append(&mut later.departures);
        self.new_ports_of_node.append(&mut later.new_ports_of_node);
    }
}

impl Departure {
    /// Returns the loss by an op, if any. Returns none if the service port has no name: a crash left it, and the scan
    /// at the start of `termination` finds its sockets.
    fn of(op: &Op, before: &Shadow) -> Option<Self> {
        let lost_frontend = |key: &FrontendKey| Some((before.frontend(key)?.service, Departed::Frontend(*key)));
        let (service, departed) = match op {
            Op::DeleteBackend(id) => {
                let backend = before.backend(*id)?;
                (backend.service, Departed::Backend { id: *id, peer: Peer::of(&backend) })
            }
            Op::DeleteFrontend(key) if !key.is_address() => lost_frontend(key)?,
            Op::PutFrontend(key, frontend) if !key.is_address() => {
                lost_frontend(key).filter(|(service, _)| *service != frontend.service)?
            }
            _ => return None,
        };
        let service_port = before.port(service)?;
        let drain = match service_port.service?.drain_seconds {
            NEVER => Drain::Never,
            seconds => Drain::After(seconds),
        };
        let proto = service_port.key.as_ref()?.proto;
        Some(Self { service, proto, drain, departed })
    }
}

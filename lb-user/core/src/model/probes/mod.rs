//! Probes of hand-written endpoints (`beeline.io/probe`): the endpoints to ask, and the effect of results. A source
//! asks, and sends results as events.
//!
//! An endpoint that fails is not used, as if it was not ready, while another one does not. If all fail, all are used:
//! the question may be wrong, or cut off from the node.
//!
//! The maps are all that outlives the agent: until an endpoint has a result, it passes if it is a backend in the maps,
//! in a list or as a spare of another tier, and waits otherwise. An endpoint that fails or waits is no backend.

use std::collections::BTreeSet;

use lb_common::{AddrPort, Backend, BackendFlags, FrontendKey, List, Proto};

use super::{
    ClusterContext,
    evaluation::EvaluatedPort,
    reason::{EvaluatedEndpoint, Placement, ProbeState, Reason},
};
use crate::{
    objects::{Probe, ProbeVerdict, Selector, Service},
    shadow::{FilledSlot, Shadow},
    spec::{PortKey, ProbeTargets},
    world::{View, World},
};

/// Returns the probe of a Service, if it has an effect. With a selector it has none: the kubelet knows the readiness of
/// pods.
pub(super) fn of(service: &Service) -> Option<&Probe> {
    let probe = service.tuning.as_deref()?.probe.as_ref()?;
    (service.selector == Selector::None).then_some(probe)
}

/// True if an endpoint of a Service fails its probe.
pub(super) fn fails(service: &Service, target: &AddrPort, world: &World) -> bool {
    of(service).is_some() && matches!(world.probe_verdict(&service.key, target), Some(ProbeVerdict::Fails(_)))
}

/// Sets the state of the ready endpoints of one service port and family. Keeps out endpoints that fail, or wait for
/// their first result, while another one is left. `narrow` chooses the lists as they are without probes.
pub(super) fn apply<'a>(
    view: &View<'a>,
    port: &PortKey,
    endpoints: &mut [EvaluatedEndpoint<'a>],
    cluster: ClusterContext<'a>,
    narrow: impl Fn(&mut [EvaluatedEndpoint<'a>]),
) -> bool {
    let (numbers, in_use) = (probed_ports(view), in_use(cluster.maps, port));
    for endpoint in endpoints.iter_mut().filter(|endpoint| is_ready(endpoint)) {
        let AddrPort { addr, port: number } = endpoint.target;
        // A probe would be translated, and answered by a backend of the other Service.
        let is_frontend = cluster.claims.owner(&FrontendKey::new(addr, number, Proto::Tcp)).is_some();
        let verdict = cluster.world.probe_verdict(&view.service.key, &endpoint.target);
        endpoint.probe = match verdict {
            _ if is_frontend || !numbers.contains(&number) => ProbeState::NotProbed,
            Some(ProbeVerdict::Fails(cause)) => ProbeState::Fails(cause),
            Some(ProbeVerdict::Passes) => ProbeState::Passes,
            None if in_use.contains(&endpoint.target) => ProbeState::Passes,
            None => ProbeState::Waits,
        };
    }
    let all = endpoints.to_vec();
    hold_back(endpoints, &all);
    let mut without = all;
    let is_out =
        |endpoint: &EvaluatedEndpoint<'_>| matches!(endpoint.reason, Reason::FailsProbe(_) | Reason::AwaitsProbe);
    let out: BTreeSet<AddrPort> = endpoints.iter().filter(|endpoint| is_out(endpoint)).map(|of| of.target).collect();
    if out.is_empty() {
        return false;
    }
    narrow(&mut without);
    without.iter().any(|endpoint| is_listed(endpoint) && out.contains(&endpoint.target))
}

/// Keeps out endpoints that fail or wait. `all` are the same endpoints before that.
fn hold_back<'a>(endpoints: &mut [EvaluatedEndpoint<'a>], all: &[EvaluatedEndpoint<'a>]) {
    endpoints.iter_mut().for_each(keep_out);
    if endpoints.iter().any(is_ready) {
        return;
    }
    // Endpoints that wait are not known to fail. If none waits, all are used.
    let has_waiting = endpoints.iter().any(|endpoint| endpoint.reason == Reason::AwaitsProbe);
    for (endpoint, before) in endpoints.iter_mut().zip(all) {
        if !has_waiting || endpoint.reason == Reason::AwaitsProbe {
            *endpoint = *before;
        }
    }
}

/// Keeps an endpoint out of the lists that fails or waits.
fn keep_out(endpoint: &mut EvaluatedEndpoint<'_>) {
    match endpoint.probe {
        ProbeState::NotProbed | ProbeState::Passes => {}
        ProbeState::Waits => endpoint.reason = Reason::AwaitsProbe,
        ProbeState::Fails(cause) => endpoint.reason = Reason::FailsProbe(cause),
    }
}

const fn is_ready(endpoint: &EvaluatedEndpoint<'_>) -> bool {
    matches!(endpoint.reason, Reason::Serves { cluster: Placement::Ready, .. })
}

fn is_listed(endpoint: &EvaluatedEndpoint<'_>) -> bool {
    match endpoint.reason {
        Reason::Serves { cluster, local } => cluster.is_listed() || local.is_some_and(Placement::is_listed),
        _ => false,
    }
}

/// The numbers of ports of endpoints that are asked: for the Service's ports of TCP. A UDP port of the same number
/// shares the result, as for DNS.
fn probed_ports(view: &View<'_>) -> BTreeSet<u16> {
    let is_of_service =
        |name: &str| view.service.ports.iter().any(|port| port.proto == Proto::Tcp && *port.name == *name);
    let ports = view.all_groups().flat_map(|group| group.ports.iter()).filter(|port| port.proto == Proto::Tcp);
    ports.filter(|port| is_of_service(&port.name)).map(|port| port.port.get()).collect()
}

/// The backends of a service port in the maps: those in a list as far as programs read them, so that writes that failed
/// half-way do not count, and those meant for none, such as spares of another tier.
fn in_use(maps: Option<&Shadow>, port: &PortKey) -> BTreeSet<AddrPort> {
    let Some(maps) = maps else { return BTreeSet::new() };
    let Some((id, port)) = maps.port_named(port) else { return BTreeSet::new() };
    let len = |list| port.service.map_or(0, |service| service.len(list) as usize);
    let slots = List::ALL.into_iter().flat_map(|list| port.list(list).iter().take(len(list)));
    let listed: BTreeSet<AddrPort> = slots.flatten().map(FilledSlot::target).collect();
    if listed.is_empty() {
        return listed;
    }
    let is_spare = |backend: &Backend| backend.flags & (BackendFlags::CLUSTER | BackendFlags::LOCAL) == 0;
    let loose = maps.loose_backends().map(|(_, backend)| backend).filter(|backend| backend.service == id);
    let spares = loose.filter(is_spare).map(|backend| AddrPort { addr: backend.addr, port: backend.port });
    spares.chain(listed).collect()
}

/// Returns the endpoints of a Service that are probed, if there are any.
pub(super) fn targets(service: &Service, ports: &[EvaluatedPort<'_>]) -> Option<ProbeTargets> {
    let probe = of(service)?.clone();
    let ports = ports.iter().filter(|port| port.port.proto == Proto::Tcp);
    let probed = ports.flat_map(|port| &port.endpoints).filter(|endpoint| endpoint.probe != ProbeState::NotProbed);
    let targets: BTreeSet<AddrPort> = probed.map(|endpoint| endpoint.target).collect();
    (!targets.is_empty()).then_some(ProbeTargets { probe, targets })
}

#[cfg(test)]
mod tests;

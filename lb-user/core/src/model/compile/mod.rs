//! Makes the wanted content of the maps from the decisions about one Service.

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU32};

use lb_common::{BackendFlags, Family, FrontendKey, Kind, Proto, ServiceFlags};

use super::{
    ClusterContext, NodeContext, Settings,
    evaluate::evaluate,
    evaluation::{EvaluatedPort, Evaluation},
    frontends::{FrontendRequest, RequestedFrontend, families},
    probes,
    range_claims::ClaimedRange,
    reason::EvaluatedEndpoint,
    slow_start::SlowStarts,
    weights::{limit, reduce},
};
use crate::{
    announce::Candidates,
    objects::{Key, Policy, Service},
    per_family::PerFamily,
    port_ranges::blocks,
    spec::{Health, Member, PortKey, PortSpec, ServiceSpec},
    world::View,
};

/// Compiles the Service of `view`, which has made this request for frontends.
#[must_use]
pub fn compile(
    view: &View<'_>,
    request: FrontendRequest,
    node: NodeContext<'_>,
    settings: &Settings,
    cluster: ClusterContext<'_>,
) -> ServiceSpec {
    assemble(view.service, node, evaluate(view, request, node, settings, cluster), cluster.slow_starts)
}

/// Makes the spec of a Service from the decisions about it.
pub(super) fn assemble(
    service: &Service,
    node: NodeContext<'_>,
    evaluation: Evaluation<'_>,
    slow_starts: &SlowStarts,
) -> ServiceSpec {
    let families = families(service);
    let tuning = service.tuning.as_deref();
    let mut ports = Vec::with_capacity(evaluation.ports.len() * families.iter().flatten().count());
    for port in &evaluation.ports {
        for family in families.into_iter().flatten() {
            let frontends = frontends_of(&evaluation, port.index, family);
            if frontends.is_empty() {
                continue;
            }
            let (name, proto, flags) = (port.port.name.clone(), port.port.proto, port.flags[family]);
            ports.push(PortSpec {
                key: PortKey { service: service.key.clone(), name, proto, family },
                frontends,
                backends: members(&service.key, port, family, node, slow_starts),
                flags,
                ranges: match flags & ServiceFlags::SOURCE_RANGES {
                    0 => Vec::new(),
                    _ => evaluation.ranges[family].nets.clone(),
                },
                scheduler: port.scheduler,
                affinity_seconds: service.affinity_seconds.map_or(0, NonZeroU32::get),
                drain: tuning.map(|tuning| tuning.drain).unwrap_or_default(),
                eject: tuning.and_then(|tuning| tuning.eject).filter(|_| proto != Proto::Sctp),
            });
        }
    }
    ports.sort_by(|a, b| a.key.cmp(&b.key));
    let ready = ready_here(service, node, &evaluation.ports);
    let health = health(service, ready);
    let attracted = attracted(service, &ports, &evaluation.ports);
    let probes = probes::targets(service, &evaluation.ports);
    let redirect_targets = evaluation.ports.iter().flat_map(|port| &port.redirect_targets).copied().collect();
    ServiceSpec {
        key: service.key.clone(),
        ports,
        health,
        probes,
        redirect_targets,
        attracted,
        warnings: evaluation.warnings,
    }
}

/// Lists the load balancer addresses, with the nodes that may attract traffic for each.
fn attracted(service: &Service, ports: &[PortSpec], evaluated: &[EvaluatedPort<'_>]) -> Vec<(IpAddr, Candidates)> {
    let frontends = ports.iter().flat_map(|port| &port.frontends);
    let addresses = frontends.filter(|(_, kind)| *kind == Kind::LoadBalancer).map(|(key, _)| key.addr.to_ip());
    let addresses: BTreeSet<IpAddr> = addresses.collect();
    let candidates = |addr: &IpAddr| match service.external_policy {
        Policy::Cluster => Candidates::All,
        Policy::Local => {
            let ready = ready_endpoints(evaluated, Family::of(&(*addr).into()));
            Candidates::Of(ready.filter_map(|endpoint| endpoint.endpoint.node.clone()).collect())
        }
    };
    addresses.iter().map(|addr| (*addr, candidates(addr))).collect()
}

/// Returns the answer at the `healthCheckNodePort`.
fn health(service: &Service, ready: PerFamily<Option<usize>>) -> Option<Health> {
    let port = service.health_port.filter(|_| service.exempt.is_none())?;
    Some(Health { port, ready })
}

/// Counts the endpoints on this node that are ready for clients outside, by family; none of a family in which the
/// Service is not served. A serving-terminating endpoint does not count, so that clients leave the node before the
/// endpoint ends (kube-proxy, pkg/proxy/endpointschangetracker.go). An endpoint that listens at several ports counts
/// once.
fn ready_here(service: &Service, node: NodeContext<'_>, ports: &[EvaluatedPort<'_>]) -> PerFamily<Option<usize>> {
    let mut ready = PerFamily::default();
    if service.external_policy != Policy::Local {
        return ready;
    }
    for family in families(service).into_iter().flatten() {
        let local = ready_endpoints(ports, family).filter(|endpoint| endpoint.is_local(node));
        ready[family] = Some(local.map(|endpoint| endpoint.target.addr).collect::<BTreeSet<_>>().len());
    }
    ready
}

/// Iterates over the endpoints that are ready for clients outside.
fn ready_endpoints<'a, 'b>(
    ports: &'a [EvaluatedPort<'b>],
    family: Family,
) -> impl Iterator<Item = &'a EvaluatedEndpoint<'b>> {
    let is_ready =
        |endpoint: &&EvaluatedEndpoint<'_>| endpoint.endpoint.ready && endpoint.weight > 0 && endpoint.serves();
    ports.iter().flat_map(move |port| port.endpoints_of(family)).filter(is_ready)
}

/// Lists the frontends and the blocks of port ranges of a service port, sorted.
fn frontends_of(evaluation: &Evaluation<'_>, port: usize, family: Family) -> Vec<(FrontendKey, Kind)> {
    let frontends = &evaluation.frontends;
    let own = |frontend: &&RequestedFrontend| frontend.port == port && Family::of(&frontend.key.addr) == family;
    let mut chosen = Vec::with_capacity(frontends.iter().filter(own).count());
    chosen.extend(frontends.iter().filter(own).map(|frontend| (frontend.key, frontend.kind)));
    let ranges = evaluation.port_ranges.iter().filter(|range| range.port == port);
    let blocks = ranges.filter(|range| Family::of(&range.claim.addr) == family).flat_map(|range| {
        let ClaimedRange { addr, proto, span, kind } = range.claim;
        blocks(addr, proto, span).map(move |key| (key, kind))
    });
    let singles = chosen.len();
    chosen.extend(blocks);
    if chosen.len() > singles {
        chosen.sort_unstable();
    }
    chosen
}

/// Lists every endpoint that serves: the backends in a list, and backends kept for sockets that have them.
fn members(
    service: &Key,
    port: &EvaluatedPort<'_>,
    family: Family,
    node: NodeContext<'_>,
    slow_starts: &SlowStarts,
) -> Vec<Member> {
    let endpoints = port.endpoints_of(family);
    let mut members = Vec::with_capacity(endpoints.len());
    members.extend(endpoints.iter().filter_map(|endpoint| {
        let EvaluatedEndpoint { target, weight, .. } = *endpoint;
        let offset = if port.port.ranges.is_some() { BackendFlags::OFFSET } else { 0 };
        Some(Member { target, flags: endpoint.flags(node)? | offset, weight })
    }));
    reduce(&mut members);
    if port.scheduler.weighs() {
        // Weights are not reduced again: a step would change the slots of all others.
        slow_starts.apply(service, &mut members);
    }
    limit(&mut members);
    members
}

#[cfg(test)]
mod tests;

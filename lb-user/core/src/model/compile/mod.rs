//! From the decisions about one Service to what the maps shall say about it.

use std::{collections::BTreeSet, num::NonZeroU32};

use lb_common::{FrontendKey, Kind, ServiceFlags};

use super::{
    NodeContext, Settings,
    evaluate::{ClusterContext, EvaluatedPort, Evaluation, evaluate},
    frontends::{Wanted, families},
    reason::{EvaluatedEndpoint, Reason},
    weights::normalise,
};
use crate::{
    objects::{Key, Service},
    spec::{Health, Member, PortKey, PortSpec, ServiceSpec},
    world::View,
};
use lb_common::Family;

/// Compiles the Service `key`; `view` is what is known about it, none when it does not exist.
#[must_use]
pub fn compile(
    key: &Key,
    view: Option<&View<'_>>,
    here: NodeContext<'_>,
    settings: &Settings,
    others: ClusterContext<'_>,
) -> ServiceSpec {
    match view {
        Some(view) => assemble(view.service, here, evaluate(view, here, settings, others)),
        None => ServiceSpec::gone(key.clone()),
    }
}

/// What the maps shall say, by what was decided.
#[must_use]
pub(super) fn assemble(service: &Service, here: NodeContext<'_>, evaluation: Evaluation<'_>) -> ServiceSpec {
    let families = families(service);
    let tuning = service.tuning.as_deref();
    let mut ports = Vec::with_capacity(evaluation.ports.len() * families.iter().flatten().count());
    for judged in &evaluation.ports {
        for family in families.into_iter().flatten() {
            let frontends = frontends_of(&evaluation.frontends, judged.index, family);
            if frontends.is_empty() {
                continue;
            }
            let (name, proto) = (judged.port.name.clone(), judged.port.proto);
            ports.push(PortSpec {
                key: PortKey { service: service.key.clone(), name, proto, family },
                frontends,
                backends: members(judged, family, here),
                flags: judged.flags_of(family),
                ranges: match judged.flags_of(family) & ServiceFlags::SOURCE_RANGES {
                    0 => Vec::new(),
                    _ => evaluation.ranges[family as usize].nets.clone(),
                },
                scheduler: judged.scheduler,
                affinity_seconds: service.affinity_seconds.map_or(0, NonZeroU32::get),
                drain: tuning.map(|tuning| tuning.drain).unwrap_or_default(),
            });
        }
    }
    ports.sort_by(|a, b| a.key.cmp(&b.key));
    let health = health(service, here, &evaluation.ports);
    ServiceSpec { key: service.key.clone(), ports, health, warnings: evaluation.warnings }
}

/// What its `healthCheckNodePort` says. An endpoint that drains still serves and counts no more: so clients leave the node
/// before it ends (kube-proxy, pkg/proxy/endpointschangetracker.go). One that listens at several ports counts once.
fn health(service: &Service, here: NodeContext<'_>, ports: &[EvaluatedPort<'_>]) -> Option<Health> {
    let port = service.health_port.filter(|_| service.exempt.is_none())?;
    let mut ready = [None; 2];
    for family in families(service).into_iter().flatten() {
        let counts = |judged: &&EvaluatedEndpoint<'_>| {
            let takes_more = judged.endpoint.ready && judged.weight > 0;
            takes_more && judged.is_local(here) && matches!(judged.why, Reason::Serves { .. })
        };
        let local = ports.iter().flat_map(|port| port.of(family)).filter(counts);
        ready[family as usize] = Some(local.map(|judged| judged.target.addr).collect::<BTreeSet<_>>().len());
    }
    Some(Health { port, ready })
}

fn frontends_of(frontends: &[Wanted], port: usize, family: Family) -> Vec<(FrontendKey, Kind)> {
    let own = |wanted: &&Wanted| wanted.port == port && Family::of(&wanted.key.addr) == family;
    let mut chosen = Vec::with_capacity(frontends.iter().filter(own).count());
    chosen.extend(frontends.iter().filter(own).map(|wanted| (wanted.key, wanted.kind)));
    chosen
}

/// Every endpoint that serves: those in a list, and those that sockets may go on with.
fn members(judged: &EvaluatedPort<'_>, family: Family, here: NodeContext<'_>) -> Vec<Member> {
    let endpoints = judged.of(family);
    let mut members = Vec::with_capacity(endpoints.len());
    members.extend(endpoints.iter().filter_map(|judged| {
        let EvaluatedEndpoint { target, weight, .. } = *judged;
        Some(Member { target, flags: judged.flags(here)?, weight })
    }));
    normalise(&mut members);
    members
}

#[cfg(test)]
mod tests;

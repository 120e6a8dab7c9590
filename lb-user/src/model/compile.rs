//! From the objects of one Service to what the maps shall say about it. Total: what is bad becomes a warning and a
//! smaller spec, never an error.

use std::{collections::BTreeSet, fmt::Write as _, num::NonZeroU32};

use lb_common::{Addr, FrontendKey, NAME_LEN, ServiceFlags};

use super::{
    Here, Settings,
    claims::Claims,
    endpoints::{counts, effective, unusable},
    frontends::{ExternalIps, Wanted, families, wanted},
    topology::{Candidate, categorize},
};
use crate::{
    objects::{Exempt, Key, Policy, ServicePort},
    spec::{Family, PortKey, PortSpec, ServiceSpec, Target},
    world::View,
};

/// Endpoints that a warning lists before it only counts.
const LISTED: usize = 5;

/// Compiles the Service `key`; `view` is what is known about it, none when it does not exist.
#[must_use]
pub fn compile(
    key: &Key,
    view: Option<&View<'_>>,
    here: Here<'_>,
    settings: &Settings,
    claims: &Claims,
) -> ServiceSpec {
    let mut spec = ServiceSpec { key: key.clone(), ports: Vec::new(), warnings: Vec::new() };
    let Some(view) = view else { return spec };
    object_problems(view, &mut spec.warnings);
    if let Some(exempt) = view.service.exempt {
        if exempt == Exempt::NoClusterIp {
            spec.warnings.push("it has no cluster IP yet; the API server allots one".to_owned());
        }
        return spec;
    }
    if let Some(name) = [key.namespace(), key.name()].into_iter().find(|name| name.len() >= NAME_LEN) {
        spec.warnings.push(too_long("it", name));
        return spec;
    }
    let frontends = owned(view, &settings.external_ips, claims, &mut spec.warnings);
    let service = Compiler { view, here, settings, claims, frontends: &frontends };
    spec.ports.reserve_exact(view.service.ports.len());
    for (index, port) in view.service.ports.iter().enumerate() {
        let earlier = view.service.ports.iter().take(index);
        if port.name.len() >= NAME_LEN {
            spec.warnings.push(too_long("a port", &port.name));
        } else if earlier.clone().any(|other| other.name == port.name && other.proto == port.proto) {
            spec.warnings.push(format!(
                "spec.ports: \"{}\" stands there twice for {}; the first counts, rename the other",
                port.name,
                port.proto.name()
            ));
        } else {
            service.port(index, port, &mut spec);
        }
    }
    spec.ports.sort_by(|a, b| a.key.cmp(&b.key));
    spec
}

fn too_long(what: &str, name: &str) -> String {
    format!("{what} is not served: its name \"{name}\" has more than 63 octets; choose a shorter one")
}

/// What the objects themselves said, and what is odd about their being there.
fn object_problems(view: &View<'_>, warnings: &mut Vec<String>) {
    warnings.extend(view.service.problems.iter().cloned());
    for slice in view.slices {
        warnings.extend(slice.problems.iter().map(|problem| format!("EndpointSlice {}: {problem}", slice.key)));
    }
    if let Some(object) = view.endpoints.filter(|_| counts(view)) {
        warnings.extend(object.problems.iter().map(|problem| format!("Endpoints {}: {problem}", object.key)));
    }
}

/// The frontends that the Service asks for and owns (invariant I6).
fn owned(view: &View<'_>, external: &ExternalIps, claims: &Claims, warnings: &mut Vec<String>) -> Vec<Wanted> {
    let mut frontends = wanted(view.service, external, warnings);
    let key = &view.service.key;
    frontends.retain(|wanted| match claims.owner(&wanted.key) {
        Some(owner) if owner != key => {
            warnings.push(format!(
                "{} ({}) belongs to the Service {owner}, which is older or, at equal age, first by name; \
                 use another address or port",
                wanted.key,
                wanted.kind.name()
            ));
            false
        }
        _ => true,
    });
    if view.service.cluster_ips.is_empty() || view.service.ports.is_empty() {
        warnings.push("it has no frontend: spec.clusterIPs or spec.ports is empty".to_owned());
    }
    frontends
}

struct Compiler<'a> {
    view: &'a View<'a>,
    here: Here<'a>,
    settings: &'a Settings,
    claims: &'a Claims,
    frontends: &'a [Wanted],
}

impl<'a> Compiler<'a> {
    /// Adds the service ports of one entry of `spec.ports`: one for each family.
    fn port(&self, index: usize, port: &ServicePort, spec: &mut ServiceSpec) {
        let candidates = self.candidates(port, &mut spec.warnings);
        let service = self.view.service;
        if service.internal_policy == Policy::Local {
            let nodeless = candidates.iter().filter(|candidate| candidate.endpoint.node.is_none());
            warn_of(nodeless, &mut spec.warnings, |those| {
                format!(
                    "internalTrafficPolicy is Local, but {those} has no nodeName and so is local nowhere; \
                     set nodeName in its EndpointSlice"
                )
            });
        }
        let flags = match service.internal_policy {
            Policy::Local => ServiceFlags::INTERNAL_LOCAL,
            Policy::Cluster => 0,
        };
        let tuning = service.tuning.as_deref();
        let families = families(service);
        if let [Some(served), None] | [None, Some(served)] = families {
            let strangers = candidates.iter().filter(|candidate| Family::of(&candidate.target.addr) != served);
            warn_of(strangers, &mut spec.warnings, |those| {
                format!("{those} is not used, since the Service has {} cluster IPs only", served.name())
            });
        }
        for family in families.into_iter().flatten() {
            let frontends = self.frontends_of(index, family);
            if frontends.is_empty() {
                continue;
            }
            let same_family = |candidate: &&Candidate<'_>| Family::of(&candidate.target.addr) == family;
            let mut candidates: Vec<_> = candidates.iter().filter(same_family).copied().collect();
            let lists = categorize(&mut candidates, service.internal_policy, self.here);
            let key = PortKey { service: spec.key.clone(), name: port.name.clone(), proto: port.proto, family };
            spec.ports.push(PortSpec {
                key,
                frontends,
                backends: lists.members(),
                flags,
                scheduler: tuning.and_then(|tuning| tuning.scheduler).unwrap_or(self.settings.scheduler),
                affinity_seconds: service.affinity_seconds.map_or(0, NonZeroU32::get),
                drain: tuning.map(|tuning| tuning.drain).unwrap_or_default(),
            });
        }
    }

    fn frontends_of(&self, port: usize, family: Family) -> Vec<(FrontendKey, lb_common::Kind)> {
        let own = |wanted: &&Wanted| wanted.port == port && Family::of(&wanted.key.addr) == family;
        let mut frontends = Vec::with_capacity(self.frontends.iter().filter(own).count());
        frontends.extend(self.frontends.iter().filter(own).map(|wanted| (wanted.key, wanted.kind)));
        frontends
    }

    /// The usable endpoints of a port: those of the groups that name it.
    fn candidates(&self, port: &ServicePort, warnings: &mut Vec<String>) -> Vec<Candidate<'a>> {
        let mut candidates = Vec::new();
        let mut others = BTreeSet::new();
        for group in effective(self.view).filter(|group| !group.endpoints.is_empty()) {
            let mut named = false;
            for endpoint_port in &*group.ports {
                if endpoint_port.name != port.name || endpoint_port.proto != port.proto {
                    continue;
                }
                named = true;
                candidates.reserve(group.endpoints.len());
                for endpoint in &group.endpoints {
                    let target = Target { addr: Addr::from(endpoint.addr), port: endpoint_port.port.get() };
                    if let Some(what) = unusable(&endpoint.addr) {
                        warnings.push(format!(
                            "its endpoint {target} is not used: that is a {what} address; write the address at which \
                             the other nodes reach it"
                        ));
                    } else if let Some(owner) =
                        self.claims.owner(&FrontendKey::new(target.addr, target.port, port.proto))
                    {
                        warnings.push(format!(
                            "its endpoint {target} is not used: that is a frontend of the Service {owner}, and would \
                             lead back here; write the address of a server"
                        ));
                    } else {
                        candidates.push(Candidate { target, endpoint });
                    }
                }
            }
            if !named {
                others.extend(group.ports.iter().map(|other| (&*other.name, other.proto.name())));
            }
        }
        if candidates.is_empty() && !others.is_empty() {
            let mut text = format!("no endpoint has a port \"{}\" of {}; they have", port.name, port.proto.name());
            for (index, (name, proto)) in others.iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                write!(text, "{comma} \"{name}\" {proto}").expect("a String takes everything");
            }
            text.push_str("; give them the same name");
            warnings.push(text);
        }
        candidates
    }
}

/// One warning about several endpoints, if there is any: `text` makes it of their list.
fn warn_of<'a>(
    those: impl Iterator<Item = &'a Candidate<'a>>,
    warnings: &mut Vec<String>,
    text: impl FnOnce(&str) -> String,
) {
    let mut list = String::new();
    let mut count = 0;
    for candidate in those {
        if count < LISTED {
            let start = if count == 0 { "its endpoint " } else { ", " };
            write!(list, "{start}{}", candidate.target).expect("a String takes everything");
        }
        count += 1;
    }
    if count > LISTED {
        write!(list, " and {} more", count - LISTED).expect("a String takes everything");
    }
    if count > 0 {
        let warning = text(&list);
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
}

#[cfg(test)]
mod tests;

//! kube-proxy's rules compared with the maps, frontend by frontend. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use lb_common::{Frontend, FrontendKey, Kind, ListReason, Origin, ServiceFlags, SlotKey};
use serde::Serialize;

use crate::inspect::address;
use lb_common::AddrPort;
use lb_core::store::Dump;
use lb_dataplane::kube_proxy::frontends::{RuleEndpoints, RuleFrontends};

#[cfg(test)]
mod tests;

/// A frontend with different endpoints in kube-proxy's rules and in the maps.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendDifference {
    /// Address and port; the unspecified address for a NodePort.
    pub frontend: String,
    /// TCP, UDP or SCTP.
    pub protocol: &'static str,
    /// Name of the service port in Beeline, or else in kube-proxy; empty if neither has one.
    pub service: String,
    /// Kind of the difference.
    #[serde(rename = "what")]
    pub kind: DifferenceKind,
    /// True if clients lose endpoints when kube-proxy's rules are removed.
    pub loses: bool,
    /// True if Beeline has no endpoint for the clients.
    pub refuses: bool,
    /// True if an annotation that kube-proxy does not have chooses the endpoints, such as `beeline.io/prefer-local`:
    /// clients lose nothing.
    pub by_annotation: bool,
    /// Endpoints in kube-proxy's rules only.
    pub only_kube_proxy: Vec<String>,
    /// Endpoints in Beeline's maps only.
    pub only_beeline: Vec<String>,
}

/// Kind of a difference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum DifferenceKind {
    /// The maps have no such frontend.
    OnlyKubeProxy,
    /// kube-proxy's rules have no such frontend.
    OnlyBeeline,
    /// Clients on this node get different endpoints.
    EndpointsHere,
    /// Clients outside get different endpoints.
    EndpointsOutside,
}

/// Result of a comparison.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// Number of frontends that both have.
    pub compared: usize,
    /// Frontends that differ, by frontend.
    pub differences: Vec<FrontendDifference>,
}

impl Comparison {
    /// True if no client loses endpoints when kube-proxy's rules are removed.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        !self.differences.iter().any(|difference| difference.loses)
    }
}

impl fmt::Display for FrontendDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let service = if self.service.is_empty() { "an unnamed Service" } else { &self.service };
        write!(f, "{service} at {}/{}: ", self.frontend, self.protocol)?;
        let list = |endpoints: &[String]| endpoints.join(", ");
        let clients = match self.kind {
            DifferenceKind::OnlyKubeProxy => {
                return match self.only_kube_proxy.as_slice() {
                    [] => f.write_str("only kube-proxy has it, and refuses clients"),
                    endpoints => write!(f, "only kube-proxy has it, with {}", list(endpoints)),
                };
            }
            DifferenceKind::OnlyBeeline => {
                return match self.only_beeline.as_slice() {
                    [] => f.write_str("only Beeline has it, and refuses clients"),
                    endpoints => write!(f, "only Beeline has it, with {}", list(endpoints)),
                };
            }
            DifferenceKind::EndpointsHere => "clients on this node",
            DifferenceKind::EndpointsOutside => "clients outside",
        };
        if self.by_annotation {
            return match self.only_beeline.as_slice() {
                [] => write!(
                    f,
                    "an annotation keeps {clients} from {}, to which kube-proxy sends them",
                    list(&self.only_kube_proxy)
                ),
                own => write!(f, "an annotation sends {clients} to {}, and kube-proxy does not", list(own)),
            };
        }
        match (self.only_kube_proxy.as_slice(), self.only_beeline.as_slice()) {
            ([], own) if !self.loses => {
                write!(f, "kube-proxy refuses {clients}, and Beeline sends them to {}", list(own))
            }
            ([], own) => write!(f, "Beeline also sends {clients} to {}", list(own)),
            (theirs, []) if self.refuses => {
                write!(f, "Beeline refuses {clients}, and kube-proxy sends them to {}", list(theirs))
            }
            (theirs, []) => write!(f, "only kube-proxy sends {clients} to {}", list(theirs)),
            (theirs, own) => {
                write!(f, "only kube-proxy sends {clients} to {}, and only Beeline to {}", list(theirs), list(own))
            }
        }
    }
}

/// Compares kube-proxy's rules with the maps.
#[must_use]
pub fn compare(theirs: &RuleFrontends, dump: &Dump) -> Comparison {
    let own = answers(dump);
    let mut differences = Vec::new();
    let mut compared = 0;
    let frontends: BTreeSet<&FrontendKey> = theirs.keys().chain(own.keys()).collect();
    for frontend in frontends {
        let none = (BTreeSet::new(), BTreeSet::new());
        let mut names = [own.get(frontend), theirs.get(frontend)].into_iter().flatten().map(|answer| &answer.name);
        let service = names.find(|name| !name.is_empty()).cloned().unwrap_or_default();
        let mut add = |kind, loses: bool, (theirs, own): (&BTreeSet<AddrPort>, &BTreeSet<AddrPort>)| {
            // No annotation empties a list.
            let by_annotation = !own.is_empty() && is_by_annotation(dump, frontend, kind);
            let text = |endpoints: std::collections::btree_set::Difference<'_, AddrPort>| {
                endpoints.map(AddrPort::to_string).collect()
            };
            differences.push(FrontendDifference {
                frontend: address(frontend),
                protocol: lb_common::Proto::from_number(frontend.proto.into()).map_or("?", lb_common::Proto::name),
                service: service.clone(),
                kind,
                loses: loses && !by_annotation,
                refuses: own.is_empty(),
                by_annotation,
                only_kube_proxy: text(theirs.difference(own)),
                only_beeline: text(own.difference(theirs)),
            });
        };
        match (theirs.get(frontend), own.get(frontend)) {
            // Without endpoints in kube-proxy's rules, clients lose nothing.
            (Some(RuleEndpoints { from_node: here, from_outside: outside, .. }), None) => {
                let all: BTreeSet<AddrPort> = here.union(outside).copied().collect();
                add(DifferenceKind::OnlyKubeProxy, !all.is_empty(), (&all, &none.1));
            }
            (None, Some(RuleEndpoints { from_node: here, from_outside: outside, .. })) => {
                let all: BTreeSet<AddrPort> = here.union(outside).copied().collect();
                add(DifferenceKind::OnlyBeeline, false, (&none.0, &all));
            }
            (Some(theirs), Some(own)) => {
                compared += 1;
                // If kube-proxy refuses, clients lose nothing: Beeline also serves Endpoints written by hand, which
                // kube-proxy does not read.
                if theirs.from_node != own.from_node {
                    add(
                        DifferenceKind::EndpointsHere,
                        !theirs.from_node.is_empty(),
                        (&theirs.from_node, &own.from_node),
                    );
                }
                if theirs.from_outside != own.from_outside {
                    add(
                        DifferenceKind::EndpointsOutside,
                        !theirs.from_outside.is_empty(),
                        (&theirs.from_outside, &own.from_outside),
                    );
                }
            }
            (None, None) => {}
        }
    }
    Comparison { compared, differences }
}

/// True if an annotation that kube-proxy does not have chooses the endpoints of a frontend, for the clients of which
/// `kind` tells.
fn is_by_annotation(dump: &Dump, key: &FrontendKey, kind: DifferenceKind) -> bool {
    let origin = match kind {
        DifferenceKind::EndpointsHere => Origin::Node,
        DifferenceKind::EndpointsOutside => Origin::Outside,
        DifferenceKind::OnlyKubeProxy | DifferenceKind::OnlyBeeline => return false,
    };
    let Some(frontend) = dump.frontends.get(key) else { return false };
    let Some(service) = dump.services.get(&frontend.service) else { return false };
    let chosen_by = match ListReason::of(frontend.kind, service, origin) {
        ListReason::InternalLocal => ServiceFlags::REDIRECTED | ServiceFlags::PROBED_OUT,
        ListReason::ExternalLocal => ServiceFlags::PROBED_OUT,
        ListReason::InternalCluster | ListReason::ExternalCluster | ListReason::OnNode => {
            ServiceFlags::PREFERS_LOCAL | ServiceFlags::TIERED | ServiceFlags::PROBED_OUT
        }
    };
    service.flags & chosen_by != 0
}

/// Returns the endpoints of each frontend, from the maps.
fn answers(dump: &Dump) -> RuleFrontends {
    let mut lists: BTreeMap<(u32, u32), BTreeSet<AddrPort>> = BTreeMap::new();
    for (SlotKey { service, list, .. }, slot) in &dump.slots {
        lists.entry((*service, *list)).or_default().insert(AddrPort { addr: slot.addr, port: slot.port });
    }
    let answer = |frontend: &Frontend| {
        let service = dump.services.get(&frontend.service)?;
        let of = |origin| {
            let list = ListReason::of(frontend.kind, service, origin).list();
            lists.get(&(frontend.service, list as u32)).cloned().unwrap_or_default()
        };
        let name = dump.names.get(&frontend.service).map_or_else(String::new, |port| match &*port.name {
            "" => port.service.to_string(),
            name => format!("{}:{name}", port.service),
        });
        Some(RuleEndpoints { name, from_node: of(Origin::Node), from_outside: of(Origin::Outside) })
    };
    // kube-proxy has no rules for hostPorts.
    let is_of_service =
        |key: &FrontendKey, frontend: &Frontend| !key.is_address() && frontend.kind != Kind::HostPort as u8;
    let frontends = dump.frontends.iter().filter(|(key, frontend)| is_of_service(key, frontend));
    frontends.filter_map(|(key, frontend)| Some((*key, answer(frontend)?))).collect()
}

//! What kube-proxy's rules answer beside what the maps do, frontend by frontend, before the rules go. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use lb_common::{Frontend, FrontendKey, Kind, ListReason, Origin, SlotKey};
use serde::Serialize;

use crate::inspect::address;
use lb_common::AddrPort;
use lb_core::store::Dump;
use lb_dataplane::kube_proxy::frontends::{RuleEndpoints, RuleFrontends};

#[cfg(test)]
mod tests;

/// A frontend that is not answered alike.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Address and port, as people write them; the unspecified address for a NodePort.
    pub frontend: String,
    /// TCP, UDP or SCTP.
    pub protocol: &'static str,
    /// The service port, as Beeline names it, or else kube-proxy; empty where neither does.
    pub service: String,
    /// How.
    pub what: What,
    /// Whether clients lose something when kube-proxy's rules go.
    pub loses: bool,
    /// Whether Beeline has no endpoint for them.
    pub refuses: bool,
    /// Endpoints that kube-proxy's rules lead to, and Beeline does not.
    pub only_kube_proxy: Vec<String>,
    /// The other way round.
    pub only_beeline: Vec<String>,
}

/// How a frontend is answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum What {
    /// Beeline does not know it.
    OnlyKubeProxy,
    /// kube-proxy's rules do not know it.
    OnlyBeeline,
    /// Who is on this node gets other endpoints.
    EndpointsHere,
    /// Who is outside gets other endpoints.
    EndpointsOutside,
}

/// The whole comparison.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// How many frontends both know.
    pub compared: usize,
    /// Those that differ, in order.
    pub differences: Vec<Difference>,
}

impl Comparison {
    /// Whether nobody loses anything when kube-proxy's rules go.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        !self.differences.iter().any(|difference| difference.loses)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let service = if self.service.is_empty() { "an unnamed Service" } else { &self.service };
        write!(f, "{service} at {}/{}: ", self.frontend, self.protocol)?;
        let list = |endpoints: &[String]| endpoints.join(", ");
        let caller = match self.what {
            What::OnlyKubeProxy => {
                return match self.only_kube_proxy.as_slice() {
                    [] => f.write_str("only kube-proxy knows it, and refuses who dials it"),
                    endpoints => write!(f, "only kube-proxy answers, with {}", list(endpoints)),
                };
            }
            What::OnlyBeeline => {
                return match self.only_beeline.as_slice() {
                    [] => f.write_str("only Beeline knows it, and refuses who dials it"),
                    endpoints => write!(f, "only Beeline answers, with {}", list(endpoints)),
                };
            }
            What::EndpointsHere => "who is on this node",
            What::EndpointsOutside => "who is outside",
        };
        match (self.only_kube_proxy.as_slice(), self.only_beeline.as_slice()) {
            ([], own) if !self.loses => write!(f, "kube-proxy refuses {caller}, whom Beeline leads to {}", list(own)),
            ([], own) => write!(f, "Beeline leads {caller} to {} too", list(own)),
            (theirs, []) if self.refuses => {
                write!(f, "Beeline refuses {caller}, whom kube-proxy leads to {}", list(theirs))
            }
            (theirs, []) => write!(f, "kube-proxy alone leads {caller} to {}", list(theirs)),
            (theirs, own) => {
                write!(f, "kube-proxy alone leads {caller} to {}, and Beeline alone to {}", list(theirs), list(own))
            }
        }
    }
}

/// Compares.
#[must_use]
pub fn compare(theirs: &RuleFrontends, dump: &Dump) -> Comparison {
    let own = own(dump);
    let mut differences = Vec::new();
    let mut compared = 0;
    let frontends: BTreeSet<&FrontendKey> = theirs.keys().chain(own.keys()).collect();
    for frontend in frontends {
        let none = (BTreeSet::new(), BTreeSet::new());
        let mut names = [own.get(frontend), theirs.get(frontend)].into_iter().flatten().map(|answer| &answer.name);
        let service = names.find(|name| !name.is_empty()).cloned().unwrap_or_default();
        let mut add = |what, loses: bool, (theirs, own): (&BTreeSet<AddrPort>, &BTreeSet<AddrPort>)| {
            let text = |targets: std::collections::btree_set::Difference<'_, AddrPort>| {
                targets.map(AddrPort::to_string).collect()
            };
            differences.push(Difference {
                frontend: address(frontend),
                protocol: lb_common::Proto::from_number(frontend.proto.into()).map_or("?", lb_common::Proto::name),
                service: service.clone(),
                what,
                loses,
                refuses: own.is_empty(),
                only_kube_proxy: text(theirs.difference(own)),
                only_beeline: text(own.difference(theirs)),
            });
        };
        match (theirs.get(frontend), own.get(frontend)) {
            // One that is refused by both ways is not missed.
            (Some(RuleEndpoints { from_node, from_outside, .. }), None) => {
                let all: BTreeSet<AddrPort> = from_node.union(from_outside).copied().collect();
                add(What::OnlyKubeProxy, !all.is_empty(), (&all, &none.1));
            }
            (None, Some(RuleEndpoints { from_node, from_outside, .. })) => {
                let all: BTreeSet<AddrPort> = from_node.union(from_outside).copied().collect();
                add(What::OnlyBeeline, false, (&none.0, &all));
            }
            (Some(theirs), Some(own)) => {
                compared += 1;
                // Where kube-proxy refuses, an answer is more than there was: of hand-written Endpoints, which it does not read.
                if theirs.from_node != own.from_node {
                    add(What::EndpointsHere, !theirs.from_node.is_empty(), (&theirs.from_node, &own.from_node));
                }
                if theirs.from_outside != own.from_outside {
                    add(
                        What::EndpointsOutside,
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

/// What the maps answer.
fn own(dump: &Dump) -> RuleFrontends {
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
    let frontends = dump.frontends.iter().filter(|(_, frontend)| frontend.kind != Kind::Address as u8);
    frontends.filter_map(|(key, frontend)| Some((*key, answer(frontend)?))).collect()
}

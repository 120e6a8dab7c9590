//! What is wrong with a Service and its endpoints, each with its cure: the texts, made of what was decided.

use std::{collections::BTreeSet, fmt::Write as _};

use ipnet::IpNet;
use lb_common::{Kind, MAGLEV_LEN, Scheduler, ServiceFlags};

use super::{
    endpoints::{Effect, effect},
    evaluate::{EvaluatedPort, LOCAL},
    frontends::Wanted,
    ranges::{MOST, Ranges},
    reason::{EvaluatedEndpoint, Placement, Reason},
    topology::{Hints, Ignored},
};
use crate::{
    objects::{Service, ServicePort},
    world::View,
};
use lb_common::Family;

/// Endpoints that a warning lists before it only counts.
const LISTED: usize = 5;
/// Problems of one object that are told before they are only counted.
const TOLD: usize = 20;
/// Characters of a bad name that are shown.
const SHOWN: usize = 70;

/// What the objects themselves said.
pub(super) fn objects(view: &View<'_>, warnings: &mut Vec<String>) {
    problems("", &view.service.problems, warnings);
    for slice in view.slices.iter().filter(|slice| !slice.problems.is_empty()) {
        problems(&format!("EndpointSlice {}: ", slice.key), &slice.problems, warnings);
    }
    if let Some(object) = view.endpoints.filter(|_| effect(view) == Some(Effect::Counts)) {
        problems(&format!("Endpoints {}: ", object.key), &object.problems, warnings);
    }
}

/// The first ones, and how many more there are: a list of a thousand bad addresses is one mistake.
fn problems(object: &str, all: &[String], warnings: &mut Vec<String>) {
    let told = if all.len() > TOLD + 1 { TOLD } else { all.len() };
    all.iter().take(told).for_each(|problem| once(warnings, format!("{object}{problem}")));
    if all.len() > told {
        warnings.push(format!("{object}{} more such problems; fix the first ones to see them", all.len() - told));
    }
}

/// `flaw` is what `names` says of the name.
pub(super) fn bad_name(what: &str, name: &str, flaw: &str) -> String {
    // A name may be as long as a file.
    let (shown, more) = name.char_indices().nth(SHOWN).map_or((name, ""), |(end, _)| (&name[..end], "…"));
    format!("{what} is not served: its name {shown:?}{more} {flaw}")
}

pub(super) fn twice(port: &ServicePort) -> String {
    let (name, proto) = (&port.name, port.proto.name());
    format!("spec.ports: \"{name}\" stands there twice for {proto}; the first counts, rename the other")
}

/// What is wrong with who may come to the load balancer addresses that it has got.
pub(super) fn ranges(ranges: &[Ranges; 2], frontends: &[Wanted], service: &Service, warnings: &mut Vec<String>) {
    for family in [Family::V4, Family::V6] {
        let is_bound = |wanted: &Wanted| wanted.kind == Kind::LoadBalancer && Family::of(&wanted.key.addr) == family;
        if service.source_ranges.is_empty() || !frontends.iter().any(is_bound) {
            continue;
        }
        let of_family = |net: &IpNet| matches!(net, IpNet::V4(_)) == (family == Family::V4);
        let name = family.name();
        if !service.source_ranges.iter().any(of_family) {
            warnings.push(format!(
                "loadBalancerSourceRanges has no {name} range, so that all {name} clients are let in, as with kube-proxy; \
                 add one"
            ));
        }
        let left_out = ranges[family as usize].left_out;
        if left_out > 0 {
            warnings.push(format!(
                "loadBalancerSourceRanges has {} {name} ranges, of which {MOST} count; the last {left_out} are not let \
                 in; write fewer that are wider",
                MOST + left_out
            ));
        }
    }
}

/// What is wrong with the endpoints of a port.
pub(super) fn port(
    service: &Service,
    judged: &EvaluatedPort<'_>,
    families: [Option<Family>; 2],
    warnings: &mut Vec<String>,
) {
    refused(judged, warnings);
    strangers(judged, warnings);
    unmatched(judged, warnings);
    let all = || judged.endpoints.iter();
    if let Some(policy) = policies_local(judged.flags[0] | judged.flags[1]) {
        let serves = |judged: &&EvaluatedEndpoint<'_>| matches!(judged.why, Reason::Serves { .. });
        warn_of(all().filter(serves).filter(|judged| judged.endpoint.node.is_none()), warnings, |those| {
            format!(
                "{policy} Local, but {those} has no nodeName and so is local nowhere; \
                 set nodeName in its EndpointSlice"
            )
        });
    }
    for family in families.into_iter().flatten() {
        if let Hints::Ignored(Ignored::Lacks(_)) = judged.hints_of(family) {
            let ready =
                |judged: &&EvaluatedEndpoint<'_>| matches!(judged.why, Reason::Serves { cluster: Placement::In, .. });
            let by_hand =
                |judged: &&EvaluatedEndpoint<'_>| judged.endpoint.node.is_none() && judged.endpoint.hints.is_none();
            warn_of(judged.of(family).iter().filter(ready).filter(by_hand), warnings, |those| {
                format!(
                    "{those} has no hint, and so nobody's topology hints are followed; give it hints in its \
                     EndpointSlice"
                )
            });
        }
    }
    if let [Some(served), None] | [None, Some(served)] = families {
        let strangers = all().filter(|judged| matches!(judged.why, Reason::OnlyServes(_)));
        warn_of(strangers, warnings, |those| {
            let (served, other) = match served {
                Family::V4 => (served.name(), Family::V6.name()),
                Family::V6 => (served.name(), Family::V4.name()),
            };
            format!(
                "{those} is not used, since the Service has {served} cluster IPs only; add {other} to spec.ipFamilies"
            )
        });
    }
    let counts =
        |judged: &&EvaluatedEndpoint<'_>| matches!(judged.why, Reason::Serves { cluster, .. } if cluster.is_in());
    if judged.scheduler == Scheduler::Mh && all().filter(counts).count() > MAGLEV_LEN {
        once(
            warnings,
            format!(
                "the scheduler mh has {MAGLEV_LEN} places, and there are more endpoints: each node hashes flows in a way of \
                 its own; use random"
            ),
        );
    }
    // By the flag it would be said of every Service.
    let named = service.tuning.as_deref().and_then(|tuning| tuning.scheduler);
    if named == Some(Scheduler::Dh) {
        once(
            warnings,
            "the scheduler dh sends everybody who dials one address to one backend; use sh for one backend to each \
             client, or random"
                .to_owned(),
        );
    }
}

/// Which policies are Local, where any is.
const fn policies_local(flags: u32) -> Option<&'static str> {
    const INTERNAL: u32 = ServiceFlags::INTERNAL_LOCAL;
    const EXTERNAL: u32 = ServiceFlags::EXTERNAL_LOCAL;
    match flags & LOCAL {
        INTERNAL => Some("internalTrafficPolicy is"),
        EXTERNAL => Some("externalTrafficPolicy is"),
        0 => None,
        _ => Some("internalTrafficPolicy and externalTrafficPolicy are"),
    }
}

/// Endpoints of which no backend can be made, those of one reason together.
pub(super) fn refused(judged: &EvaluatedPort<'_>, warnings: &mut Vec<String>) {
    let mut reasons: Vec<Reason<'_>> = Vec::new();
    for why in judged.endpoints.iter().map(|judged| judged.why).filter(|&why| is_refused(why)) {
        if !reasons.contains(&why) {
            reasons.push(why);
        }
    }
    for why in reasons {
        warn_of(judged.endpoints.iter().filter(|judged| judged.why == why), warnings, |those| match why {
            Reason::Unusable(what) => format!(
                "{those} is not used: that is {what} address; write the address at which the other nodes reach it"
            ),
            Reason::OtherNamespace(owner) => format!(
                "{those} is not used: that is a pod of another namespace, that of the Service {owner}, and the flag \
                 --cross-namespace-endpoints refuses it; let clients use that Service itself"
            ),
            Reason::Frontend(owner) => format!(
                "{those} is not used: that is a frontend of the Service {owner}, and would lead back here; write the \
                 address of a server"
            ),
            Reason::NodePort(owner) => format!(
                "{those} is not used: that is a NodePort of the Service {owner} at this node, and would lead back here; \
                 write the address of a server"
            ),
            _ => String::new(),
        });
    }
}

/// Whether no backend can be made of an endpoint, whatever its conditions.
const fn is_refused(why: Reason<'_>) -> bool {
    matches!(why, Reason::Unusable(_) | Reason::OtherNamespace(_) | Reason::Frontend(_) | Reason::NodePort(_))
}

/// Endpoints by hand that are pods of another namespace and count all the same, those of one Service together.
fn strangers(judged: &EvaluatedPort<'_>, warnings: &mut Vec<String>) {
    let counts =
        |judged: &&EvaluatedEndpoint<'_>| judged.stranger.is_some() && matches!(judged.why, Reason::Serves { .. });
    let owners: BTreeSet<_> = judged.endpoints.iter().filter(counts).filter_map(|judged| judged.stranger).collect();
    for owner in owners {
        let of_owner = judged.endpoints.iter().filter(counts).filter(|judged| judged.stranger == Some(owner));
        warn_of(of_owner, warnings, |those| {
            format!(
                "{those} is a pod of another namespace, that of the Service {owner}: who may write endpoints here lets \
                 callers reach it that trust this namespace; let them use that Service itself, or refuse such endpoints \
                 with --cross-namespace-endpoints=refuse"
            )
        });
    }
}

/// A port that has no endpoint, while others are there.
fn unmatched(judged: &EvaluatedPort<'_>, warnings: &mut Vec<String>) {
    if judged.unmatched.is_empty() || judged.endpoints.iter().any(|judged| !is_refused(judged.why)) {
        return;
    }
    let ports = judged.unmatched.iter().flat_map(|(_, group)| group.ports.iter());
    let others: BTreeSet<_> = ports.map(|other| (&*other.name, other.proto.name())).collect();
    if others.is_empty() {
        return;
    }
    let ServicePort { name, proto, .. } = judged.port;
    let mut text = format!("no endpoint has a port \"{name}\" of {}; they have", proto.name());
    for (index, (name, proto)) in others.iter().take(LISTED).enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(text, "{comma} {name:?} {proto}").expect("a String takes everything");
    }
    if others.len() > LISTED {
        write!(text, " and {} more", others.len() - LISTED).expect("a String takes everything");
    }
    text.push_str("; give them the same name");
    warnings.push(text);
}

/// One warning about several endpoints, if there is any: `text` makes it of their list.
fn warn_of<'a>(
    those: impl Iterator<Item = &'a EvaluatedEndpoint<'a>>,
    warnings: &mut Vec<String>,
    text: impl FnOnce(&str) -> String,
) {
    let mut list = String::new();
    let mut count = 0;
    for judged in those {
        if count < LISTED {
            let start = if count == 0 { "its endpoint " } else { ", " };
            write!(list, "{start}{}", judged.target).expect("a String takes everything");
        }
        count += 1;
    }
    if count > LISTED {
        write!(list, " and {} more", count - LISTED).expect("a String takes everything");
    }
    if count > 0 {
        once(warnings, text(&list));
    }
}

pub(super) fn once(warnings: &mut Vec<String>, warning: String) {
    if !warnings.contains(&warning) {
        warnings.push(warning);
    }
}

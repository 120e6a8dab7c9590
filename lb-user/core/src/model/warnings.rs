//! Warnings about a Service and its endpoints, from the decisions about them.

use std::collections::BTreeSet;

use ipnet::IpNet;
use lb_common::{Family, Kind, MAGLEV_LEN, Proto, Scheduler, ServiceFlags};

use super::{
    endpoints::{Effect, effect},
    evaluation::{EvaluatedPort, LOCAL},
    frontends::RequestedFrontend,
    ranges::{MAX_RANGES, SourceRanges},
    reason::{EvaluatedEndpoint, Placement, ProbeState, Reason},
    topology::{HintUse, HintsIgnored},
};
use crate::{
    objects::{Policy, Preference, Selector, Service},
    per_family::PerFamily,
    warning::{EndpointList, EndpointProblem, LocalPolicies, ObjectRef, Warning},
    world::View,
};

/// Invalid values of one object that are reported before they are only counted.
const MAX_VALUES: usize = 20;

/// Reports the values of the Service's objects that the parser could not use.
pub(super) fn invalid_values(view: &View<'_>, warnings: &mut Vec<Warning>) {
    invalid_values_of(None, &view.service.problems, warnings);
    for slice in view.slices.iter().filter(|slice| !slice.problems.is_empty()) {
        invalid_values_of(Some(&ObjectRef::EndpointSlice(slice.key.clone())), &slice.problems, warnings);
    }
    if let Some(object) = view.endpoints.filter(|_| effect(view) == Some(Effect::Counts)) {
        invalid_values_of(Some(&ObjectRef::Endpoints(object.key.clone())), &object.problems, warnings);
    }
}

/// Reports a problem of the Service's load balancer address.
pub(super) fn load_balancer_address(service: &Service, warnings: &mut Vec<Warning>) {
    if let Some(report) = service.address_report.as_deref().filter(|report| !report.is_clean) {
        warnings.push(Warning::LoadBalancerAddress(report.message.clone()));
    }
}

/// Reports the first values and counts the others: a list of a thousand bad addresses is one mistake.
fn invalid_values_of(object: Option<&ObjectRef>, problems: &[String], warnings: &mut Vec<Warning>) {
    let reported = if problems.len() > MAX_VALUES + 1 { MAX_VALUES } else { problems.len() };
    for problem in problems.iter().take(reported) {
        push_once(warnings, Warning::InvalidValue { object: object.cloned(), problem: problem.clone() });
    }
    let count = problems.len() - reported;
    if count > 0 {
        warnings.push(Warning::MoreInvalidValues { object: object.cloned(), count });
    }
}

/// Reports source ranges with an unexpected effect on the load balancer addresses that the Service has got.
pub(super) fn source_ranges(
    ranges: &PerFamily<SourceRanges>,
    frontends: &[RequestedFrontend],
    service: &Service,
    warnings: &mut Vec<Warning>,
) {
    for family in Family::ALL {
        let is_restricted = |frontend: &RequestedFrontend| {
            frontend.kind == Kind::LoadBalancer && Family::of(&frontend.key.addr) == family
        };
        if service.source_ranges.is_empty() || !frontends.iter().any(is_restricted) {
            continue;
        }
        let of_family = |net: &IpNet| matches!(net, IpNet::V4(_)) == (family == Family::V4);
        if !service.source_ranges.iter().any(of_family) {
            warnings.push(Warning::NoRangeOfFamily(family));
        }
        let left_out = ranges[family].left_out;
        if left_out > 0 {
            warnings.push(Warning::TooManyRanges { family, kept: MAX_RANGES, left_out });
        }
    }
}

/// Reports ejection without a port of TCP or UDP, whose sockets tell failures.
pub(super) fn ejection(service: &Service, warnings: &mut Vec<Warning>) {
    let ejects = service.tuning.as_deref().is_some_and(|tuning| tuning.eject.is_some());
    if ejects && !service.ports.iter().any(|port| port.proto != Proto::Sctp) {
        warnings.push(Warning::EjectionOfSctp);
    }
}

/// Reports a scope of an affinity that the Service does not have, or that has no room for its ports.
pub(super) fn affinity_scope(service: &Service, warnings: &mut Vec<Warning>) {
    let is_asked = service.tuning.as_deref().is_some_and(|tuning| tuning.shares_affinity);
    if is_asked && service.affinity_seconds.is_none() {
        warnings.push(Warning::ScopeWithoutAffinity);
    } else if is_asked && !service.shares_affinity() {
        warnings.push(Warning::ScopeOfManyPorts { ports: service.ports.len() });
    }
}

/// Reports the problems of a port and its endpoints.
pub(super) fn port(
    service: &Service,
    port: &EvaluatedPort<'_>,
    families: [Option<Family>; 2],
    warnings: &mut Vec<Warning>,
) {
    refused(port, warnings);
    probes(service, port, warnings);
    other_namespaces(port, warnings);
    unmatched(port, warnings);
    let endpoints = || port.endpoints.iter();
    if let Some(policies) = local_policies(port.flags.v4 | port.flags.v6) {
        let nodeless = endpoints().filter(|endpoint| endpoint.serves() && endpoint.endpoint.node.is_none());
        push_endpoints(warnings, nodeless, EndpointProblem::NoNodeName(policies));
    }
    for family in families.into_iter().flatten() {
        if let HintUse::Ignored(HintsIgnored::Lacks(_)) = port.narrowing[family].hints {
            let is_ready = |endpoint: &&EvaluatedEndpoint<'_>| {
                matches!(endpoint.reason, Reason::Serves { cluster: Placement::Ready, .. })
            };
            let is_hand_written = |endpoint: &&EvaluatedEndpoint<'_>| {
                endpoint.endpoint.node.is_none() && endpoint.endpoint.hints.is_none()
            };
            let hintless = port.endpoints_of(family).iter().filter(is_ready).filter(is_hand_written);
            push_endpoints(warnings, hintless, EndpointProblem::NoHint);
        }
    }
    if let [Some(served), None] | [None, Some(served)] = families {
        let others = endpoints().filter(|endpoint| matches!(endpoint.reason, Reason::OtherFamily(_)));
        push_endpoints(warnings, others, EndpointProblem::OtherFamily(served));
    }
    let in_cluster_list = |endpoint: &&EvaluatedEndpoint<'_>| match endpoint.reason {
        Reason::Serves { cluster, .. } => cluster.is_listed(),
        _ => false,
    };
    if port.scheduler == Scheduler::Mh && endpoints().filter(in_cluster_list).count() > MAGLEV_LEN {
        push_once(warnings, Warning::MaglevTooSmall);
    }
    let starts_slowly = service.tuning.as_deref().is_some_and(|tuning| tuning.slow_start.is_some());
    if starts_slowly && !port.scheduler.weighs() {
        push_once(warnings, Warning::SlowStartWithoutWeights);
    }
    let prefers_local = service.tuning.as_deref().is_some_and(|tuning| tuning.preference == Preference::Local);
    if prefers_local && service.internal_policy == Policy::Local {
        push_once(warnings, Warning::PreferenceUnderLocal);
    }
    // With the flag --scheduler=dh every Service would get the warning.
    if service.tuning.as_deref().and_then(|tuning| tuning.scheduler) == Some(Scheduler::Dh) {
        push_once(warnings, Warning::DestinationHash);
    }
}

const fn local_policies(flags: u32) -> Option<LocalPolicies> {
    match flags & LOCAL {
        ServiceFlags::INTERNAL_LOCAL => Some(LocalPolicies::Internal),
        ServiceFlags::EXTERNAL_LOCAL => Some(LocalPolicies::External),
        0 => None,
        _ => Some(LocalPolicies::Both),
    }
}

/// Reports endpoints that cannot be backends, those of one reason together.
fn refused(port: &EvaluatedPort<'_>, warnings: &mut Vec<Warning>) {
    let mut reasons: Vec<Reason<'_>> = Vec::new();
    for reason in port.endpoints.iter().map(|endpoint| endpoint.reason) {
        if refusal(reason).is_some() && !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    for (reason, problem) in reasons.into_iter().filter_map(|reason| Some((reason, refusal(reason)?))) {
        push_endpoints(warnings, port.endpoints.iter().filter(|endpoint| endpoint.reason == reason), problem);
    }
}

/// The problem of an endpoint that cannot be a backend, whatever its conditions.
fn refusal(reason: Reason<'_>) -> Option<EndpointProblem> {
    match reason {
        Reason::Unusable(kind) => Some(EndpointProblem::Unusable(kind)),
        Reason::OtherNamespace(owner) => Some(EndpointProblem::OtherNamespaceRefused(owner.clone())),
        Reason::Frontend(owner) => Some(EndpointProblem::IsFrontend(owner.clone())),
        Reason::NodePort(owner) => Some(EndpointProblem::IsNodePort(owner.clone())),
        _ => None,
    }
}

/// Reports endpoints that fail their probes, those of one cause together, and a probe without effect.
fn probes(service: &Service, port: &EvaluatedPort<'_>, warnings: &mut Vec<Warning>) {
    if service.tuning.as_deref().is_none_or(|tuning| tuning.probe.is_none()) {
        return;
    }
    if service.selector == Selector::Some {
        push_once(warnings, Warning::ProbeWithSelector);
    } else if service.ports.iter().all(|port| port.proto != Proto::Tcp) {
        push_once(warnings, Warning::ProbeWithoutTcp);
    }
    let failing = || {
        port.endpoints.iter().filter_map(|endpoint| match endpoint.probe {
            ProbeState::Fails(cause) => Some((endpoint, cause, endpoint.serves())),
            _ => None,
        })
    };
    let causes: BTreeSet<_> = failing().map(|(_, cause, is_used)| (cause, is_used)).collect();
    for (cause, is_used) in causes {
        let of_cause = failing().filter(|(_, other, used)| (*other, *used) == (cause, is_used));
        let problem = match is_used {
            false => EndpointProblem::FailsProbe(cause.into()),
            true => EndpointProblem::FailsProbeAsAll(cause.into()),
        };
        push_endpoints(warnings, of_cause.map(|(endpoint, ..)| endpoint), problem);
    }
}

/// Reports hand-written endpoints that are pods of another namespace and are used all the same, those of one Service
/// together.
fn other_namespaces(port: &EvaluatedPort<'_>, warnings: &mut Vec<Warning>) {
    let used = || port.endpoints.iter().filter(|endpoint| endpoint.serves());
    let owners: BTreeSet<_> = used().filter_map(|endpoint| endpoint.other_namespace).collect();
    for owner in owners {
        let of_owner = used().filter(|endpoint| endpoint.other_namespace == Some(owner));
        push_endpoints(warnings, of_owner, EndpointProblem::OtherNamespace(owner.clone()));
    }
}

/// Reports a port that no endpoint has, while endpoints have other ports.
fn unmatched(port: &EvaluatedPort<'_>, warnings: &mut Vec<Warning>) {
    if port.unmatched.is_empty() || port.endpoints.iter().any(|endpoint| refusal(endpoint.reason).is_none()) {
        return;
    }
    let ports = port.unmatched.iter().flat_map(|(_, group)| group.ports.iter());
    let offered: BTreeSet<_> = ports.map(|port| (&port.name, port.proto.name(), port.proto)).collect();
    if !offered.is_empty() {
        let offered = offered.into_iter().map(|(name, _, proto)| (name.clone(), proto)).collect();
        warnings.push(Warning::PortWithoutEndpoint { name: port.port.name.clone(), proto: port.port.proto, offered });
    }
}

/// Reports one problem of several endpoints, if there are any.
fn push_endpoints<'a>(
    warnings: &mut Vec<Warning>,
    endpoints: impl Iterator<Item = &'a EvaluatedEndpoint<'a>>,
    problem: EndpointProblem,
) {
    if let Some(endpoints) = EndpointList::new(endpoints.map(|endpoint| endpoint.target)) {
        push_once(warnings, Warning::Endpoints { endpoints, problem });
    }
}

pub(super) fn push_once(warnings: &mut Vec<Warning>, warning: Warning) {
    if !warnings.contains(&warning) {
        warnings.push(warning);
    }
}

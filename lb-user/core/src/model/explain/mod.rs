//! The decisions about one Service in words, from the same data as the maps. The command line adds what the maps hold.

use std::{fmt, num::NonZeroU32};

use lb_common::{Addr, BackendFlags, Family, Kind, List};
use serde::Serialize;

use super::{
    ClusterContext, NodeContext, Settings,
    compile::assemble,
    endpoints::{Effect, effect},
    evaluate::evaluate,
    evaluation::{EvaluatedPort, Evaluation, LOCAL},
    frontends::{FrontendRequest, RequestedFrontend, RequestedRange, families},
    probes,
    ranges::SourceRanges,
    reason::{EvaluatedEndpoint, list_users},
    slow_start::{Rise, SlowStarts},
    tiers::Tiers,
};
use crate::{
    objects::{Drain, Eject, Exempt, Key, Policy, Preference, Probe, ProbeQuestion, Selector, Service},
    port_ranges::{frontend_text, target_text},
    spec::{Health, PortSpec, ServiceSpec},
    warning::Warning,
    world::View,
};

/// Addresses that are listed before they are only counted.
const LISTED: usize = 5;

/// The explanation of a Service. Its `Display` is the text for users.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// NAMESPACE/NAME.
    pub service: String,
    /// NAMESPACE/NAME of the pod with hostPorts whose Service it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Facts about the whole Service.
    pub facts: Vec<Fact>,
    /// Frontends that it owns, then frontends that it requests in vain.
    pub frontends: Vec<FrontendLine>,
    /// Ports of the Service, one entry for each family.
    pub ports: Vec<PortLines>,
    /// Warnings, without denied frontends and problems of the load balancer address.
    pub warnings: Vec<Warning>,
}

/// A fact about the whole of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Fact {
    /// The topic.
    pub about: &'static str,
    /// The fact.
    pub text: String,
}

/// A frontend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendLine {
    /// Address, port and protocol, or the address alone.
    pub frontend: String,
    /// The field of the Service that requests it.
    pub kind: &'static str,
    /// True if the Service owns it.
    pub owned: bool,
    /// State of the frontend, or the reason of the denial.
    pub state: String,
}

/// A service port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortLines {
    /// Name of the port; empty for a single unnamed one.
    pub name: String,
    /// The port that clients dial at its VIPs; the first one of port ranges.
    pub port: u16,
    /// The port ranges, in their place.
    pub ports: Option<String>,
    /// TCP, UDP or SCTP.
    pub protocol: &'static str,
    /// IPv4 or IPv6.
    pub family: &'static str,
    /// Backends in the cluster list.
    pub cluster: usize,
    /// Backends in the local list, where the policy uses one.
    pub local: Option<usize>,
    /// Clients of the local list, where there is one.
    pub local_for: Option<&'static str>,
    /// The tier of endpoints in use, and when another one is, where there are several.
    pub priority: Option<String>,
    /// Topology hints that are followed or ignored, if there are any.
    pub hints: Option<String>,
    /// NAMESPACE/NAME of the Service whose endpoints on this node take the clients of the cluster IPs.
    pub redirected_to: Option<String>,
    /// The endpoints.
    pub endpoints: Vec<EndpointLine>,
}

/// An endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointLine {
    /// Address and port; the address alone where its object has no such port.
    pub endpoint: String,
    /// Node of the endpoint.
    pub node: Option<String>,
    /// Object that names the endpoint.
    pub object: String,
    /// Slots of the endpoint in each of its lists; none when it is in no list.
    pub weight: Option<u16>,
    /// The reason why it is used here or is not.
    pub why: String,
}

/// Explains the Service of `view`, which has made this request for frontends.
#[must_use]
pub fn explain(
    view: &View<'_>,
    request: FrontendRequest,
    node: NodeContext<'_>,
    settings: &Settings,
    cluster: ClusterContext<'_>,
) -> Explanation {
    let service = view.service;
    let evaluation = evaluate(view, request, node, settings, cluster);
    let spec = assemble(service, node, evaluation.clone(), cluster.slow_starts);
    let mut ports = Vec::new();
    for port in &evaluation.ports {
        let families = families(service).into_iter().flatten();
        ports.extend(families.map(|family| port_lines(view, port, family, node, &spec, cluster.slow_starts)));
    }
    let facts = facts(view, settings, &evaluation, spec.health);
    // Entries of addresses cannot be dialled.
    let dialled = evaluation.frontends.iter().filter(|frontend| !frontend.kind.is_address());
    let mut frontends: Vec<_> = dialled
        .map(|frontend| FrontendLine {
            frontend: frontend.key.to_string(),
            kind: frontend.kind.name(),
            owned: true,
            state: state(frontend, node),
        })
        .collect();
    frontends.extend(evaluation.port_ranges.iter().map(|RequestedRange { claim, .. }| FrontendLine {
        frontend: frontend_text(claim.addr, claim.proto as u8, claim.span),
        kind: claim.kind.name(),
        owned: true,
        state: "owned, by beeline.io/ports; single ports go first".to_owned(),
    }));
    let mut warnings = Vec::new();
    for warning in evaluation.warnings {
        match warning {
            Warning::Frontend(denied) => frontends.push(FrontendLine {
                frontend: denied.place.to_string(),
                kind: denied.kind.name(),
                owned: false,
                state: denied.predicate(),
            }),
            // The fact has the text.
            Warning::LoadBalancerAddress(_) => {}
            warning => warnings.push(warning),
        }
    }
    let pod = service.pod.as_ref().map(|pod| pod.key.to_string());
    Explanation { service: service.key.to_string(), pod, facts, frontends, ports, warnings }
}

fn facts(view: &View<'_>, settings: &Settings, evaluation: &Evaluation<'_>, health: Option<Health>) -> Vec<Fact> {
    let service = view.service;
    let mut facts = Vec::new();
    let mut add = |about, text: String| facts.push(Fact { about, text });
    if let Some(exempt) = service.exempt {
        add("not served", exempt_text(exempt).to_owned());
        return facts;
    }
    if let Some(pod) = &service.pod {
        add("addresses", pod.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
        add("client", "the pod sees the client's address".to_owned());
        return facts;
    }
    add("type", kinds(service));
    if service.selector == Selector::None {
        add("selector", "none: endpoints are written by hand".to_owned());
    }
    add(
        "internal",
        match service.internal_policy {
            Policy::Cluster => "Cluster: cluster IPs lead to endpoints on any node",
            Policy::Local => "Local: cluster IPs lead to endpoints on this node only",
        }
        .to_owned(),
    );
    if let Some(text) = external_policy(service, evaluation) {
        add("external", text.to_owned());
    }
    if let Some(report) = &service.address_report {
        add("address", report.message.clone());
    }
    if !service.source_ranges.is_empty() || service.source_ranges_unreadable {
        add("ranges", source_ranges(evaluation));
    }
    if let Some(Health { port, ready }) = health {
        let count = |family: Family| Some(format!("{} of {}", ready[family]?, family.name()));
        let counts: Vec<_> = Family::ALL.into_iter().filter_map(count).collect();
        add(
            "health",
            format!("port {port} answers 200 while an endpoint on this node is ready; now {}", counts.join(", ")),
        );
    }
    if let Some(seconds) = service.affinity_seconds.map(NonZeroU32::get) {
        let of = if service.shares_affinity() { ", at all ports of the Service together" } else { "" };
        add("affinity", format!("a client keeps its backend for {seconds} s after its last connect{of}"));
    }
    let tuning = service.tuning.as_deref();
    if tuning.is_some_and(|tuning| tuning.preference == Preference::Local) {
        add("preference", "endpoints on this node, while one is ready; otherwise the cluster list".to_owned());
    }
    if let Some(target) = tuning.and_then(|tuning| tuning.redirect_from.as_ref()) {
        let followed = evaluation.warnings.iter().all(|warning| !matches!(warning, Warning::RedirectRefused { .. }));
        let text = if followed {
            format!("the cluster IPs of {target} lead to the endpoints on this node, while one is ready")
        } else {
            format!("refused: the clients of {target} are left alone")
        };
        add("redirect", text);
    }
    if tuning.is_some_and(|tuning| tuning.allows_udp_connect) {
        add("UDP connect", "succeeds in pods while no endpoint is ready; datagrams are refused until then".to_owned());
    }
    if let Some(seconds) = tuning.and_then(|tuning| tuning.slow_start) {
        add("slow start", format!("the weight of an endpoint that gets ready rises for {seconds} s"));
    }
    if let Some(Eject { failures, window, time }) = tuning.and_then(|tuning| tuning.eject) {
        add(
            "ejection",
            format!(
                "{failures} failed TCP connects of a client in {window} s keep it from the endpoint for {time} s, from \
                 at most half of them"
            ),
        );
    }
    let (scheduler, by) = match tuning.and_then(|tuning| tuning.scheduler) {
        Some(scheduler) => (scheduler, "by annotation"),
        None => (settings.scheduler, "the default of this node"),
    };
    add("scheduler", format!("{}, {by}", scheduler.name()));
    if let Some(Drain::After(seconds)) = tuning.map(|tuning| tuning.drain) {
        add("drain", format!("TCP sockets end {seconds} s after their backend has gone"));
    }
    if let Some(probe) = probes::of(service) {
        add("probe", probe_text(probe));
    }
    if let Some(age) = tuning.and_then(|tuning| tuning.max_connection_age) {
        let busy = match age.grace {
            Some(grace) => format!("and busy ones {grace} s later"),
            None => "and busy ones when they are idle".to_owned(),
        };
        add(
            "connections",
            format!("idle TCP sockets of this node's clients end at an age of {} s ±10 %, {busy}", age.seconds),
        );
    }
    if let (Some(object), Some(reason)) = (view.endpoints, effect(view).and_then(Effect::reason)) {
        add("no effect", format!("Endpoints {} does not count: {reason}", object.key));
    }
    facts
}

/// Describes a probe.
fn probe_text(probe: &Probe) -> String {
    let question = match &probe.question {
        ProbeQuestion::Tcp => "TCP".to_owned(),
        ProbeQuestion::HttpGet(path) => format!("HTTP GET {}", path.escape_debug()),
    };
    let Probe { every, timeout, fail, pass, .. } = probe;
    format!("{question} every {every} s, within {timeout} s; out after {fail} failures, in after {pass} passes")
}

/// Describes the external traffic policy, where it has an effect or seems to.
fn external_policy(service: &Service, evaluation: &Evaluation<'_>) -> Option<&'static str> {
    let is_external = |frontend: &RequestedFrontend| frontend.kind.is_external();
    match (service.external_policy, evaluation.frontends.iter().any(is_external)) {
        (Policy::Cluster, true) => Some(
            "Cluster: clients outside are led to endpoints on any node; one on this node sees their own address, one \
             elsewhere sees this node's",
        ),
        (Policy::Local, true) => Some(
            "Local: clients outside are led to endpoints on this node only, which see their own address; callers on \
             this node use the cluster list",
        ),
        (Policy::Local, false) => Some("Local: decides nothing, since it has no frontend for clients outside"),
        (Policy::Cluster, false) => None,
    }
}

/// Describes the clients that the source ranges let in, at the frontends that they restrict.
fn source_ranges(evaluation: &Evaluation<'_>) -> String {
    let mut clients = Vec::new();
    for family in Family::ALL {
        let is_restricted = |frontend: &RequestedFrontend| {
            frontend.kind == Kind::LoadBalancer && Family::of(&frontend.key.addr) == family
        };
        if !evaluation.frontends.iter().any(is_restricted) {
            continue;
        }
        let SourceRanges { nets, none_readable, .. } = &evaluation.ranges[family];
        clients.push(if *none_readable {
            format!("no {} clients", family.name())
        } else if nets.is_empty() {
            format!("all {} clients", family.name())
        } else {
            let more = nets.len().saturating_sub(LISTED);
            let listed: Vec<_> = nets.iter().take(LISTED).map(ToString::to_string).collect();
            if more > 0 { format!("{} and {more} more", listed.join(", ")) } else { listed.join(", ") }
        });
    }
    if clients.is_empty() {
        return "decide nothing, since it has no load balancer address".to_owned();
    }
    if !evaluation.ranges.values().any(SourceRanges::is_restricted) {
        return format!("keep nobody out: {} are let in at load balancer addresses", clients.join(", "));
    }
    format!(
        "{}: only these clients are served at load balancer addresses, callers on this node by the address that they \
         send from; other frontends are not bound",
        clients.join(", ")
    )
}

const fn exempt_text(exempt: Exempt) -> &'static str {
    match exempt {
        Exempt::Headless => "it is headless: its DNS name leads to the endpoints themselves",
        Exempt::ExternalName => "type ExternalName: its DNS name leads to another name",
        Exempt::NoClusterIp => "it has no cluster IP yet",
        Exempt::OtherNodes => "its annotation service.cilium.io/node or node-selector leaves out this node",
        Exempt::OtherProxy => "its label service.kubernetes.io/service-proxy-name gives it to another proxy",
    }
}

/// Lists the kinds of frontends that a Service requests.
fn kinds(service: &Service) -> String {
    let has = [
        (Kind::ClusterIp, !service.cluster_ips.is_empty()),
        (Kind::NodePort, service.ports.iter().any(|port| port.node_port.is_some())),
        (Kind::LoadBalancer, !service.ingress_ips.is_empty()),
        (Kind::ExternalIp, !service.external_ips.is_empty()),
    ];
    let names: Vec<_> = has.into_iter().filter(|(_, has)| *has).map(|(kind, _)| kind.name()).collect();
    names.join(", ")
}

fn state(frontend: &RequestedFrontend, node: NodeContext<'_>) -> String {
    if frontend.kind == Kind::ClusterIp && node.own.contains(&frontend.key.addr) {
        return "owned; an interface of this node has the address, so that a process that listens there goes first"
            .to_owned();
    }
    if !frontend.kind.is_of_node() {
        return "owned".to_owned();
    }
    if !frontend.key.addr.is_unspecified() {
        let is_own = node.own.contains(&frontend.key.addr);
        return if is_own { "owned" } else { "owned, but no interface of this node has the address" }.to_owned();
    }
    let family = Family::of(&frontend.key.addr);
    let (addrs, ports) = match frontend.kind {
        Kind::HostPort => (node.own, "hostPorts"),
        _ => (node.node_ports, "NodePorts"),
    };
    let own: Vec<_> = addrs.iter().filter(|addr| Family::of(addr) == family).map(Addr::to_string).collect();
    match own.len() {
        0 => format!("owned, but no {} address of this node is known at which {ports} answer", family.name()),
        1..=LISTED => format!("owned, answers at {}", own.join(", ")),
        more => format!("owned, answers at {} and {} more", own[..LISTED].join(", "), more - LISTED),
    }
}

/// Describes a port in one family.
fn port_lines(
    view: &View<'_>,
    port: &EvaluatedPort<'_>,
    family: Family,
    node: NodeContext<'_>,
    spec: &ServiceSpec,
    slow_starts: &SlowStarts,
) -> PortLines {
    let (service, flags) = (view.service, port.flags[family]);
    let own = |spec: &&PortSpec| {
        let key = &spec.key;
        key.name == port.port.name && key.proto == port.port.proto && key.family == family
    };
    let members = spec.ports.iter().find(own).map_or(&[][..], |spec| &spec.backends);
    let count = |list| members.iter().filter(|member| member.is_in(list)).count();
    let rise = |endpoint: &EvaluatedEndpoint<'_>, is_member: bool| {
        let rise = slow_starts.rise(&service.key, &endpoint.target);
        match rise.filter(|_| is_member && port.scheduler.weighs()) {
            Some(Rise { step, left }) => {
                let seconds = left.as_millis().div_ceil(1000);
                format!("; new: it has {step}/10 of its weight, and all of it in {seconds} s")
            }
            None => String::new(),
        }
    };
    let line = |endpoint: &EvaluatedEndpoint<'_>| {
        let position = members.binary_search_by(|member| member.target.cmp(&endpoint.target));
        let member = position.ok().and_then(|at| members.get(at)).filter(|_| endpoint.serves());
        let listed = member.filter(|member| List::ALL.into_iter().any(|list| member.is_in(list)));
        EndpointLine {
            endpoint: target_text(&endpoint.target, if port.port.ranges.is_some() { BackendFlags::OFFSET } else { 0 }),
            node: endpoint.endpoint.node.as_deref().map(str::to_owned),
            object: endpoint.origin.to_string(),
            weight: listed.map(|member| member.weight),
            why: endpoint.reason_text(flags) + &rise(endpoint, member.is_some()),
        }
    };
    // Where only one family is served, its lines include the endpoints of the other.
    let is_only = families(service).into_iter().flatten().count() == 1;
    let is_shown = |addr: &Addr| is_only || Family::of(addr) == family;
    let mut endpoints: Vec<_> =
        port.endpoints.iter().filter(|endpoint| is_shown(&endpoint.target.addr)).map(line).collect();
    // The port of a pod is named after its number.
    let name = if service.pod.is_some() { String::new() } else { port.port.name.to_string() };
    let protocol = port.port.proto.name();
    for (origin, group) in &port.unmatched {
        let why = if name.is_empty() {
            format!("not used: {origin} has no unnamed port of {protocol}")
        } else {
            format!("not used: {origin} has no port \"{name}\" of {protocol}")
        };
        let others = group.endpoints.iter().filter(|endpoint| is_shown(&endpoint.addr.into()));
        endpoints.extend(others.map(|endpoint| EndpointLine {
            endpoint: endpoint.addr.to_string(),
            node: endpoint.node.as_deref().map(str::to_owned),
            object: origin.to_string(),
            weight: None,
            why: why.clone(),
        }));
    }
    PortLines {
        name,
        port: port.port.port.get(),
        ports: port
            .port
            .ranges
            .as_deref()
            .map(|ranges| ranges.spans.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
        protocol,
        family: family.name(),
        cluster: count(List::Cluster),
        local: (flags & LOCAL != 0).then(|| count(List::Local)),
        local_for: (flags & LOCAL != 0).then(|| list_users(flags).1),
        priority: port.tiers[family].as_ref().map(Tiers::text),
        hints: port.narrowing[family].hints.text(node),
        redirected_to: port.redirected_to[family].map(Key::to_string),
        endpoints,
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some(pod) => writeln!(f, "Pod {pod}")?,
            None => writeln!(f, "Service {}", self.service)?,
        }
        columns(f, self.facts.iter().map(|Fact { about, text }| [(*about).to_owned(), text.clone()]))?;
        if !self.frontends.is_empty() {
            writeln!(f, "frontends")?;
            columns(
                f,
                self.frontends.iter().map(|line| [line.frontend.clone(), line.kind.to_owned(), line.state.clone()]),
            )?;
        }
        for port in &self.ports {
            port.fmt(f)?;
        }
        if !self.warnings.is_empty() {
            writeln!(f, "warnings")?;
        }
        self.warnings.iter().try_for_each(|warning| writeln!(f, "  {warning}"))
    }
}

impl fmt::Display for PortLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, ports, protocol, family, cluster, local, local_for, .. } = self;
        let Self { priority, hints, redirected_to, endpoints, .. } = self;
        let port = ports.clone().unwrap_or_else(|| self.port.to_string());
        let name = if name.is_empty() { String::new() } else { format!("{name} ") };
        write!(f, "port {name}{port}/{protocol}, {family}: {cluster} in the cluster list")?;
        match local.zip(*local_for) {
            Some((local, users)) => writeln!(f, ", {local} in the local list, for {users}")?,
            None => writeln!(f)?,
        }
        if let Some(priority) = priority {
            writeln!(f, "  of the priorities {priority}")?;
        }
        if let Some(hints) = hints {
            writeln!(f, "  topology hints are {hints}")?;
        }
        if let Some(source) = redirected_to {
            writeln!(f, "  cluster IPs lead to this node's endpoints of {source}, by its beeline.io/redirect-from")?;
        }
        if endpoints.is_empty() {
            return writeln!(f, "  no object has an endpoint for it");
        }
        columns(
            f,
            endpoints.iter().map(|EndpointLine { endpoint, node, weight, why, .. }| {
                let node = node.clone().unwrap_or_else(|| "-".to_owned());
                let weight = weight.filter(|&weight| weight != 1).map(|weight| format!("; weight {weight}"));
                [endpoint.clone(), node, format!("{why}{}", weight.unwrap_or_default())]
            }),
        )
    }
}

/// Writes rows with aligned cells.
fn columns<const N: usize>(f: &mut fmt::Formatter<'_>, rows: impl Iterator<Item = [String; N]> + Clone) -> fmt::Result {
    let mut widths = [0; N];
    for row in rows.clone() {
        for (width, cell) in widths.iter_mut().zip(&row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(&row) {
            line += &format!("  {cell:width$}");
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

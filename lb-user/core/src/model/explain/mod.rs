//! The decisions about one Service in words, of the same data that the maps are written from. Whether the maps hold it is
//! for the command line to say.

use std::{fmt, num::NonZeroU32};

use lb_common::{Addr, Kind, List};
use serde::Serialize;

use super::{
    NodeContext, Settings,
    compile::assemble,
    endpoints::{Effect, effect},
    evaluate::{ClusterContext, EvaluatedPort, Evaluation, LOCAL, evaluate},
    frontends::{Denied, Wanted, families},
    ranges::Ranges,
    reason::{EvaluatedEndpoint, users},
};
use crate::{
    objects::{Drain, Exempt, Policy, Selector, Service},
    spec::{Health, PortSpec, ServiceSpec},
    world::View,
};
use lb_common::Family;

/// Addresses that are listed before they are only counted.
const LISTED: usize = 5;

/// A Service, explained. Its text form is what people read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// NAMESPACE/NAME.
    pub service: String,
    /// What holds for all of it.
    pub facts: Vec<Fact>,
    /// What clients may dial, and what they may not although it is asked for.
    pub frontends: Vec<FrontendLine>,
    /// Its ports, one for each family.
    pub ports: Vec<PortLines>,
    /// What else is wrong, each with its cure.
    pub warnings: Vec<String>,
}

/// Something that holds for all of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Fact {
    /// What it is about.
    pub about: &'static str,
    /// What holds.
    pub text: String,
}

/// A frontend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendLine {
    /// Address, port and protocol, or the address alone.
    pub frontend: String,
    /// What in the Service asks for it.
    pub kind: &'static str,
    /// Whether the Service has it.
    pub owned: bool,
    /// What becomes of it.
    pub state: String,
}

/// A service port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortLines {
    /// Its name; empty for a single unnamed one.
    pub name: String,
    /// The port that clients dial at its VIPs.
    pub port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: &'static str,
    /// IPv4 or IPv6.
    pub family: &'static str,
    /// Backends in the cluster list.
    pub cluster: usize,
    /// Backends in the local list, where the policy uses one.
    pub local: Option<usize>,
    /// Who uses the local list, if there is one.
    pub local_for: Option<&'static str>,
    /// Which topology hints are followed, if there are any.
    pub hints: Option<String>,
    /// The endpoints.
    pub endpoints: Vec<EndpointLine>,
}

/// An endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointLine {
    /// Address and port; the address alone where its object has no such port.
    pub endpoint: String,
    /// Its node.
    pub node: Option<String>,
    /// The object that it stands in.
    pub object: String,
    /// Its slots in each of its lists; none when it is in no list.
    pub weight: Option<u16>,
    /// Whether it is used here, and why.
    pub why: String,
}

/// Explains the Service of `view`.
#[must_use]
pub fn explain(view: &View<'_>, here: NodeContext<'_>, settings: &Settings, others: ClusterContext<'_>) -> Explanation {
    let service = view.service;
    let evaluation = evaluate(view, here, settings, others);
    let spec = assemble(service, here, evaluation.clone());
    let mut ports = Vec::new();
    for judged in &evaluation.ports {
        ports.extend(
            families(service).into_iter().flatten().map(|family| port_lines(view, judged, family, here, &spec)),
        );
    }
    let facts = facts(view, settings, &evaluation, spec.health);
    let Evaluation { frontends, denied, mut warnings, .. } = evaluation;
    // Those stand among the frontends.
    let told: Vec<_> = denied.iter().map(ToString::to_string).collect();
    warnings.retain(|warning| !told.contains(warning));
    // That one is for no client.
    let dialled = frontends.iter().filter(|wanted| wanted.kind != Kind::Address);
    let owned = dialled.map(|wanted| FrontendLine {
        frontend: wanted.key.to_string(),
        kind: wanted.kind.name(),
        owned: true,
        state: state(wanted, here),
    });
    let lost = denied.iter().map(|Denied { kind, what, why }| FrontendLine {
        frontend: what.to_string(),
        kind: kind.name(),
        owned: false,
        state: why.to_string(),
    });
    Explanation { service: service.key.to_string(), facts, frontends: owned.chain(lost).collect(), ports, warnings }
}

fn facts(view: &View<'_>, settings: &Settings, evaluation: &Evaluation<'_>, health: Option<Health>) -> Vec<Fact> {
    let service = view.service;
    let mut facts = Vec::new();
    let mut say = |about, text: String| facts.push(Fact { about, text });
    if let Some(exempt) = service.exempt {
        say("not served", of_exempt(exempt).to_owned());
        return facts;
    }
    say("type", kinds(service));
    if service.selector == Selector::None {
        say("selector", "none: endpoints are written by hand".to_owned());
    }
    say(
        "internal",
        match service.internal_policy {
            Policy::Cluster => "Cluster: cluster IPs lead to endpoints on any node",
            Policy::Local => "Local: cluster IPs lead to endpoints on this node only",
        }
        .to_owned(),
    );
    if let Some(text) = external(service, evaluation) {
        say("external", text.to_owned());
    }
    if !service.source_ranges.is_empty() || service.source_ranges_unreadable {
        say("ranges", let_in(evaluation));
    }
    if let Some(Health { port, ready }) = health {
        let families = [Family::V4, Family::V6].into_iter().zip(ready);
        let counts: Vec<_> =
            families.filter_map(|(family, ready)| Some(format!("{} of {}", ready?, family.name()))).collect();
        say(
            "health",
            format!("port {port} answers 200 while an endpoint on this node is ready; now {}", counts.join(", ")),
        );
    }
    if let Some(seconds) = service.affinity_seconds.map(NonZeroU32::get) {
        say("affinity", format!("a client keeps its backend for {seconds} s after its last connect"));
    }
    let tuning = service.tuning.as_deref();
    let (scheduler, by) = match tuning.and_then(|tuning| tuning.scheduler) {
        Some(scheduler) => (scheduler, "by annotation"),
        None => (settings.scheduler, "the default of this node"),
    };
    say("scheduler", format!("{}, {by}", scheduler.name()));
    if let Some(Drain::After(seconds)) = tuning.map(|tuning| tuning.drain) {
        say("drain", format!("TCP sockets end {seconds} s after their backend has gone"));
    }
    if let (Some(object), Some(reason)) = (view.endpoints, effect(view).and_then(Effect::reason)) {
        say("no effect", format!("Endpoints {} does not count: {reason}", object.key));
    }
    facts
}

/// What becomes of clients outside of this node.
fn external(service: &Service, evaluation: &Evaluation<'_>) -> Option<&'static str> {
    let is_outside = |wanted: &Wanted| !matches!(wanted.kind, Kind::ClusterIp | Kind::Address);
    match (service.external_policy, evaluation.frontends.iter().any(is_outside)) {
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

/// Whom the source ranges let in, at the frontends that they bind.
fn let_in(evaluation: &Evaluation<'_>) -> String {
    let mut said = Vec::new();
    for family in [Family::V4, Family::V6] {
        let is_bound = |wanted: &&Wanted| wanted.kind == Kind::LoadBalancer && Family::of(&wanted.key.addr) == family;
        if !evaluation.frontends.iter().any(|wanted| is_bound(&wanted)) {
            continue;
        }
        let Ranges { nets, nobody, .. } = &evaluation.ranges[family as usize];
        said.push(if *nobody {
            format!("no {} clients", family.name())
        } else if nets.is_empty() {
            format!("all {} clients", family.name())
        } else {
            let more = nets.len().saturating_sub(LISTED);
            let listed: Vec<_> = nets.iter().take(LISTED).map(ToString::to_string).collect();
            if more > 0 { format!("{} and {more} more", listed.join(", ")) } else { listed.join(", ") }
        });
    }
    if said.is_empty() {
        return "decide nothing, since it has no load balancer address".to_owned();
    }
    if !evaluation.ranges.iter().any(Ranges::is_bound) {
        return format!("keep nobody out: {} are let in at load balancer addresses", said.join(", "));
    }
    format!(
        "{}: of clients outside only these are served at load balancer addresses; other frontends and callers on this \
         node are not bound",
        said.join(", ")
    )
}

const fn of_exempt(exempt: Exempt) -> &'static str {
    match exempt {
        Exempt::Headless => "it is headless: its DNS name leads to the endpoints themselves",
        Exempt::ExternalName => "type ExternalName: its DNS name leads to another name",
        Exempt::NoClusterIp => "it has no cluster IP yet",
        Exempt::OtherProxy => "its label service.kubernetes.io/service-proxy-name gives it to another proxy",
    }
}

/// The kinds of frontends that it asks for.
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

fn state(wanted: &Wanted, here: NodeContext<'_>) -> String {
    if wanted.kind != Kind::NodePort {
        return "owned".to_owned();
    }
    let family = Family::of(&wanted.key.addr);
    let own: Vec<_> = here.node_ports.iter().filter(|addr| Family::of(addr) == family).map(Addr::to_string).collect();
    match own.len() {
        0 => format!("owned, but no {} address of this node is known at which NodePorts answer", family.name()),
        1..=LISTED => format!("owned, answers at {}", own.join(", ")),
        more => format!("owned, answers at {} and {} more", own[..LISTED].join(", "), more - LISTED),
    }
}

/// What is said of one port in one family.
fn port_lines(
    view: &View<'_>,
    judged: &EvaluatedPort<'_>,
    family: Family,
    here: NodeContext<'_>,
    spec: &ServiceSpec,
) -> PortLines {
    let (service, flags) = (view.service, judged.flags_of(family));
    let own = |port: &&PortSpec| {
        let key = &port.key;
        key.name == judged.port.name && key.proto == judged.port.proto && key.family == family
    };
    let members = spec.ports.iter().find(own).map_or(&[][..], |port| &port.backends);
    let count = |list| members.iter().filter(|member| member.is_in(list)).count();
    let line = |judged: &EvaluatedEndpoint<'_>| {
        let same = members.binary_search_by(|member| member.target.cmp(&judged.target));
        let member = same.ok().and_then(|at| members.get(at)).filter(|_| judged.flags(here).is_some());
        let listed = member.filter(|member| List::ALL.into_iter().any(|list| member.is_in(list)));
        EndpointLine {
            endpoint: judged.target.to_string(),
            node: judged.endpoint.node.as_deref().map(str::to_owned),
            object: judged.origin.to_string(),
            weight: listed.map(|member| member.weight),
            why: judged.reason(flags),
        }
    };
    // Where only one family is served, its lines tell of the other's endpoints too.
    let is_only = families(service).into_iter().flatten().count() == 1;
    let shown = |addr: &Addr| is_only || Family::of(addr) == family;
    let mut endpoints: Vec<_> = judged.endpoints.iter().filter(|judged| shown(&judged.target.addr)).map(line).collect();
    let (name, protocol) = (judged.port.name.to_string(), judged.port.proto.name());
    for (origin, group) in &judged.unmatched {
        let why = if name.is_empty() {
            format!("not used: {origin} has no unnamed port of {protocol}")
        } else {
            format!("not used: {origin} has no port \"{name}\" of {protocol}")
        };
        let others = group.endpoints.iter().filter(|endpoint| shown(&endpoint.addr.into()));
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
        port: judged.port.port.get(),
        protocol,
        family: family.name(),
        cluster: count(List::Cluster),
        local: (flags & LOCAL != 0).then(|| count(List::Local)),
        local_for: (flags & LOCAL != 0).then(|| users(flags).1),
        hints: judged.hints_of(family).text(here),
        endpoints,
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Service {}", self.service)?;
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
        let Self { name, port, protocol, family, cluster, local, local_for, hints, endpoints } = self;
        let name = if name.is_empty() { String::new() } else { format!("{name} ") };
        write!(f, "port {name}{port}/{protocol}, {family}: {cluster} in the cluster list")?;
        match local.zip(*local_for) {
            Some((local, users)) => writeln!(f, ", {local} in the local list, for {users}")?,
            None => writeln!(f)?,
        }
        if let Some(hints) = hints {
            writeln!(f, "  topology hints are {hints}")?;
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

/// Rows whose cells stand below each other.
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

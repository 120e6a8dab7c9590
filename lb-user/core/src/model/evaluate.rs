//! The decisions about one Service: which frontends it gets, and what becomes of every endpoint of each of its ports.
//! Total: what is bad becomes a warning and less to serve, never an error.

use lb_common::{Addr, FrontendKey, Kind, Scheduler, ServiceFlags};

use super::{
    NodeContext, Settings,
    claims::{Claims, Right},
    cross_namespace::{CrossNamespace, CrossNamespaceIndex},
    endpoints::{Origin, Written, effective, unusable},
    frontends::{Denial, Denied, Place, Wanted, asked, families, unspecified},
    names,
    ranges::{self, Ranges},
    reason::{EvaluatedEndpoint, Placement, Reason},
    topology::{Hints, categorize},
    warnings,
};
use crate::{
    objects::{Endpoint, EndpointGroup, Exempt, Key, Policy, Service, ServicePort},
    world::View,
};
use lb_common::{AddrPort, Family};

/// What was decided about a Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Evaluation<'a> {
    /// The frontends that it gets, sorted by key.
    pub frontends: Vec<Wanted>,
    /// Those that it asks for in vain.
    pub denied: Vec<Denied<'a>>,
    /// Its ports that are served, in the order of `spec.ports`.
    pub ports: Vec<EvaluatedPort<'a>>,
    /// Who may come to its load balancer addresses, for IPv4 and IPv6.
    pub ranges: [Ranges; 2],
    /// What is wrong, each with its cure.
    pub warnings: Vec<String>,
}

/// What was decided about an entry of `spec.ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EvaluatedPort<'a> {
    /// The entry.
    pub port: &'a ServicePort,
    /// Its index.
    pub index: usize,
    /// How backends are chosen.
    pub scheduler: Scheduler,
    /// Every endpoint whose object has the port, sorted by family and target; of two with one target that which counts
    /// comes first.
    pub endpoints: Vec<EvaluatedEndpoint<'a>>,
    /// Which hints are followed, for IPv4 and IPv6.
    pub hints: [Hints; 2],
    /// Its [`ServiceFlags`], for IPv4 and IPv6.
    pub flags: [u32; 2],
    /// Endpoints whose object has no such port.
    pub unmatched: Vec<(Origin<'a>, &'a EndpointGroup)>,
}

impl<'a> EvaluatedPort<'a> {
    /// The endpoints of a family.
    #[must_use]
    pub fn of(&self, family: Family) -> &[EvaluatedEndpoint<'a>] {
        let (v4, v6) = self.endpoints.split_at(self.endpoints.partition_point(is_v4));
        if family == Family::V4 { v4 } else { v6 }
    }

    /// The hints of a family.
    #[must_use]
    pub const fn hints_of(&self, family: Family) -> Hints {
        self.hints[family as usize]
    }

    /// The [`ServiceFlags`] of a family.
    #[must_use]
    pub const fn flags_of(&self, family: Family) -> u32 {
        self.flags[family as usize]
    }
}

/// What of other Services decides something about one.
#[derive(Clone, Copy)]
pub struct ClusterContext<'a> {
    /// Whose the frontends are.
    pub claims: &'a Claims,
    /// Which addresses are pods of other namespaces.
    pub strangers: &'a CrossNamespaceIndex,
}

/// Decides.
#[must_use]
pub fn evaluate<'a>(
    view: &View<'a>,
    here: NodeContext<'_>,
    settings: &Settings,
    others: ClusterContext<'a>,
) -> Evaluation<'a> {
    let mut evaluation = Evaluation::default();
    let (service, warnings) = (view.service, &mut evaluation.warnings);
    warnings::objects(view, warnings);
    if let Some(exempt) = service.exempt {
        if exempt == Exempt::NoClusterIp {
            warnings.push("it has no cluster IP yet; the API server allots one".to_owned());
        }
        return evaluation;
    }
    if let Some((name, flaw)) = names::flaw_of(service) {
        warnings.push(warnings::bad_name("it", name, flaw));
        return evaluation;
    }
    evaluation.frontends = owned(service, settings, others, &mut evaluation.denied);
    warnings.extend(evaluation.denied.iter().map(ToString::to_string));
    if service.cluster_ips.is_empty() || service.ports.is_empty() {
        warnings.push("it has no frontend: spec.clusterIPs or spec.ports is empty; name one of each".to_owned());
    }
    let families = families(service);
    evaluation.ranges = [Family::V4, Family::V6].map(|family| ranges::of(service, family));
    warnings::ranges(&evaluation.ranges, &evaluation.frontends, service, warnings);
    let evaluator = Evaluator { view, here, settings, others, families };
    evaluation.ports.reserve_exact(service.ports.len());
    for (index, port) in service.ports.iter().enumerate() {
        if let Some(flaw) = names::flaw(&port.name) {
            warnings::once(warnings, warnings::bad_name("a port", &port.name, flaw));
        } else if names::is_repeated(&service.ports, index) {
            warnings::once(warnings, warnings::twice(port));
        } else {
            let flags = [Family::V4, Family::V6]
                .map(|family| flags(service, &evaluation.frontends, &evaluation.ranges, index, family));
            let judged = evaluator.port(index, port, flags);
            warnings::port(service, &judged, evaluator.families, warnings);
            evaluation.ports.push(judged);
        }
    }
    evaluation
}

/// The frontends that the Service asks for and owns (invariant I6).
fn owned<'a>(
    service: &'a Service,
    settings: &Settings,
    ClusterContext { claims, strangers }: ClusterContext<'a>,
    denied: &mut Vec<Denied<'a>>,
) -> Vec<Wanted> {
    let mut frontends = asked(service, &settings.external_ips, strangers, denied);
    frontends.retain(|wanted| match claims.owner(&wanted.key) {
        // It still answers at its own ports.
        Some(owner) if *owner != service.key && wanted.kind == Kind::Address => false,
        Some(owner) if *owner != service.key => {
            let is_outranked = claims.right(&wanted.key) < Some(Right::of(wanted.kind));
            let why = if is_outranked { Denial::Outranked(owner) } else { Denial::Lost(owner) };
            denied.push(Denied { kind: wanted.kind, what: Place::Key(wanted.key), why });
            false
        }
        _ => true,
    });
    frontends
}

/// What holds for the frontends that a port has got in a family.
fn flags(service: &Service, frontends: &[Wanted], ranges: &[Ranges; 2], port: usize, family: Family) -> u32 {
    let own = |wanted: &&Wanted| wanted.port == port && Family::of(&wanted.key.addr) == family;
    let own = || frontends.iter().filter(own).map(|wanted| wanted.kind);
    let is_outside = |kind| !matches!(kind, Kind::ClusterIp | Kind::Address);
    let bit = |is: bool, bit| if is { bit } else { 0 };
    let is_bound = ranges[family as usize].is_bound();
    bit(service.internal_policy == Policy::Local, ServiceFlags::INTERNAL_LOCAL)
        | bit(service.external_policy == Policy::Local && own().any(is_outside), ServiceFlags::EXTERNAL_LOCAL)
        | bit(is_bound && own().any(|kind| kind == Kind::LoadBalancer), ServiceFlags::SOURCE_RANGES)
}

/// The flags with which a service port has a local list.
pub const LOCAL: u32 = ServiceFlags::INTERNAL_LOCAL | ServiceFlags::EXTERNAL_LOCAL;

struct Evaluator<'a, 'b> {
    view: &'b View<'a>,
    here: NodeContext<'b>,
    settings: &'b Settings,
    others: ClusterContext<'a>,
    families: [Option<Family>; 2],
}

impl<'a> Evaluator<'a, '_> {
    fn port(&self, index: usize, port: &'a ServicePort, flags: [u32; 2]) -> EvaluatedPort<'a> {
        let tuning = self.view.service.tuning.as_deref();
        let scheduler = tuning.and_then(|tuning| tuning.scheduler).unwrap_or(self.settings.scheduler);
        let (mut endpoints, mut unmatched) = (Vec::new(), Vec::new());
        for (written, origin, group) in effective(self.view).filter(|(.., group)| !group.endpoints.is_empty()) {
            let same = group.ports.iter().filter(|other| other.name == port.name && other.proto == port.proto);
            let mut matches = false;
            for number in same.map(|other| other.port.get()) {
                matches = true;
                endpoints.reserve(group.endpoints.len());
                endpoints.extend(group.endpoints.iter().map(|endpoint| {
                    let target = AddrPort { addr: Addr::from(endpoint.addr), port: number };
                    let weight = self.weight(endpoint, scheduler);
                    let stranger = self.stranger(written, target);
                    let why = self
                        .refusal(port, target, stranger)
                        .unwrap_or_else(|| self.stands(endpoint, weight, flags[Family::of(&target.addr) as usize]));
                    EvaluatedEndpoint { target, endpoint, origin, weight, stranger, why }
                }));
            }
            if !matches {
                unmatched.push((origin, group));
            }
        }
        self.sort(&mut endpoints);
        let middle = endpoints.partition_point(is_v4);
        let (v4, v6) = endpoints.split_at_mut(middle);
        let hints = [categorize(v4, self.here), categorize(v6, self.here)];
        EvaluatedPort { port, index, scheduler, endpoints, hints, flags, unmatched }
    }

    fn weight(&self, endpoint: &Endpoint, scheduler: Scheduler) -> u16 {
        let weights = self.view.service.tuning.as_deref().map_or(&[][..], |tuning| &tuning.weights);
        let own = weights.binary_search_by(|(addr, _)| addr.cmp(&endpoint.addr)).ok();
        let weight = own.and_then(|at| weights.get(at)).map_or(endpoint.weight, |(_, weight)| *weight);
        if scheduler.weighs() { weight } else { weight.min(1) }
    }

    /// The Service of another namespace whose pod an endpoint is that was written by hand.
    fn stranger(&self, written: Written, target: AddrPort) -> Option<&'a Key> {
        match written {
            Written::ByHand => self.others.strangers.at(&target.addr, self.view.service.key.namespace()),
            Written::BySelector => None,
        }
    }

    /// Why no backend can be made of an endpoint, whatever its conditions.
    fn refusal(&self, port: &ServicePort, target: AddrPort, stranger: Option<&'a Key>) -> Option<Reason<'a>> {
        if let Some(what) = unusable(&target.addr.to_ip()) {
            return Some(Reason::Unusable(what));
        }
        if self.settings.cross_namespace == CrossNamespace::Refuse
            && let Some(owner) = stranger
        {
            return Some(Reason::OtherNamespace(owner));
        }
        let owner = |addr| self.owner(&FrontendKey::new(addr, target.port, port.proto));
        if let Some(owner) = owner(target.addr) {
            return Some(Reason::Frontend(owner));
        }
        let family = Family::of(&target.addr);
        if self.here.node_ports.contains(&target.addr)
            && let Some(owner) = owner(unspecified(family))
        {
            return Some(Reason::NodePort(owner));
        }
        match self.families {
            [Some(served), None] | [None, Some(served)] if served != family => Some(Reason::OnlyServes(served)),
            _ => None,
        }
    }

    /// The Service to whose frontend an endpoint would lead. An external IP of another namespace is not asked about: whoever
    /// may write a Service could name it after somebody's endpoint, and take that out of service.
    fn owner(&self, key: &FrontendKey) -> Option<&'a Key> {
        let owner = self.others.claims.owner(key)?;
        let is_claimed = || self.others.claims.right(key) == Some(Right::Claimed);
        let is_stranger = owner.namespace() != self.view.service.key.namespace();
        (!is_stranger || !is_claimed()).then_some(owner)
    }

    /// Where it would stand if nobody else were there.
    fn stands(&self, endpoint: &Endpoint, weight: u16, flags: u32) -> Reason<'a> {
        let stand = match endpoint {
            Endpoint { ready: false, serving: true, terminating: true, .. } if weight > 0 => Placement::Draining,
            Endpoint { ready: false, serving: true, terminating: true, .. } => Placement::NoWeight,
            Endpoint { ready: false, terminating: true, .. } => return Reason::Gone,
            Endpoint { ready: false, .. } => return Reason::NotReady,
            _ if weight == 0 => Placement::NoWeight,
            _ => Placement::In,
        };
        let local = (flags & LOCAL != 0).then(|| match &endpoint.node {
            None => Placement::Nodeless,
            Some(node) if **node != *self.here.node => Placement::NotLocal,
            Some(_) => stand,
        });
        Reason::Serves { cluster: stand, local }
    }

    /// By family and target. Of two copies the local one counts, else the first; the sort is stable.
    fn sort(&self, endpoints: &mut [EvaluatedEndpoint<'a>]) {
        endpoints.sort_by(|a, b| {
            let families = (!is_v4(a)).cmp(&!is_v4(b));
            let targets = families.then_with(|| a.target.cmp(&b.target));
            targets.then_with(|| b.is_local(self.here).cmp(&a.is_local(self.here)))
        });
        let mut first: Option<(AddrPort, Origin<'a>)> = None;
        for judged in endpoints {
            match first {
                Some((target, origin)) if target == judged.target => judged.why = Reason::Duplicate(origin),
                _ => first = Some((judged.target, judged.origin)),
            }
        }
    }
}

fn is_v4(judged: &EvaluatedEndpoint<'_>) -> bool {
    judged.target.addr.is_v4()
}

//! Decides which frontends a Service gets, and whether each endpoint of each of its ports is used. Total: bad input
//! becomes a warning and less to serve, never an error.

use std::num::NonZeroU8;

use lb_common::{Addr, AddrPort, Family, FrontendKey, Kind, Proto, Scheduler, ServiceFlags};

use super::{
    ClusterContext, NodeContext, Settings,
    claims::Precedence,
    cross_namespace::CrossNamespace,
    endpoints::{Author, EndpointOrigin, effective, unusable},
    evaluation::{EvaluatedPort, Evaluation, LOCAL},
    frontends::{FrontendRequest, RequestedFrontend, RequestedRange, families, unspecified},
    names, port_ranges, probes,
    ranges::{self, SourceRanges},
    reason::{EvaluatedEndpoint, Placement, ProbeState, Reason},
    redirects,
    tiers::{self, Tiers},
    topology::categorize,
    warnings::{self, push_once},
};
use crate::{
    host_ports,
    objects::{
        DEFAULT_TIER_SHARE, Endpoint, EndpointGroup, EndpointPort, Exempt, Key, Policy, Preference, Service,
        ServicePort,
    },
    per_family::PerFamily,
    port_ranges::PortRanges,
    spec::PortKey,
    warning::{Denial, DeniedFrontend, FrontendPlace, Named, Warning},
    world::View,
};

/// Decides about the Service of `view`, which has made this request for frontends.
#[must_use]
pub(super) fn evaluate<'a>(
    view: &View<'a>,
    request: FrontendRequest,
    node: NodeContext<'_>,
    settings: &Settings,
    cluster: ClusterContext<'a>,
) -> Evaluation<'a> {
    let mut evaluation = Evaluation::default();
    let (service, warnings) = (view.service, &mut evaluation.warnings);
    warnings::invalid_values(view, warnings);
    warnings::load_balancer_address(service, warnings);
    redirects::warn(view, cluster, warnings);
    if let Some(exempt) = service.exempt {
        if exempt == Exempt::NoClusterIp {
            warnings.push(Warning::NoClusterIp);
        }
        return evaluation;
    }
    if let Some((name, flaw)) = names::service_flaw(service) {
        warnings.push(Warning::BadName { of: Named::Service, name: name.to_owned(), flaw });
        return evaluation;
    }
    let FrontendRequest { mut frontends, ranges, denied } = request;
    warnings.extend(denied.into_iter().map(Warning::Frontend));
    keep_owned(&mut frontends, service, cluster, warnings);
    host_port_conflicts(&mut frontends, service, node, cluster, warnings);
    evaluation.port_ranges = port_ranges::keep_owned(&ranges, service, node, cluster, warnings);
    // Processes of the node may listen at other ports there, such as a DNS cache at the cluster IP of its Service.
    let is_own =
        |frontend: &&mut RequestedFrontend| frontend.kind == Kind::Address && node.own.contains(&frontend.key.addr);
    frontends.iter_mut().filter(is_own).for_each(|frontend| frontend.kind = Kind::OwnAddress);
    evaluation.frontends = frontends;
    if service.pod.is_none() && (service.cluster_ips.is_empty() || service.ports.is_empty()) {
        warnings.push(Warning::NoFrontend);
    }
    warnings::ejection(service, warnings);
    warnings::affinity_scope(service, warnings);
    let families = families(service);
    evaluation.ranges = PerFamily::from_fn(|family| ranges::of(service, family));
    warnings::source_ranges(&evaluation.ranges, &evaluation.frontends, service, warnings);
    let redirecting = redirects::source(service, cluster);
    let evaluator = Evaluator { view, node, settings, cluster, families };
    evaluation.ports.reserve_exact(service.ports.len());
    for (index, port) in service.ports.iter().enumerate() {
        if let Some(flaw) = names::flaw_of(port) {
            push_once(warnings, Warning::BadName { of: Named::Port, name: port.name.to_string(), flaw });
        } else if names::is_repeated(&service.ports, index) {
            push_once(warnings, Warning::RepeatedPort { name: port.name.clone(), proto: port.proto });
        } else {
            let kinds = Kinds { frontends: &evaluation.frontends, port_ranges: &evaluation.port_ranges, port: index };
            let flags = PerFamily::from_fn(|family| flags(service, kinds, &evaluation.ranges, family));
            let mut port = evaluator.port(index, port, flags);
            // The endpoints of port ranges are those of the other ports, which have the warnings.
            if port.port.ranges.is_none() {
                warnings::port(service, &port, evaluator.families, warnings);
            }
            redirecting.iter().for_each(|source| evaluator.redirect(&mut port, source));
            evaluation.ports.push(port);
        }
    }
    evaluation
}

/// Removes the frontends that other Services own (invariant I6), with a warning.
fn keep_owned(
    frontends: &mut Vec<RequestedFrontend>,
    service: &Service,
    ClusterContext { claims, .. }: ClusterContext<'_>,
    warnings: &mut Vec<Warning>,
) {
    frontends.retain(|&RequestedFrontend { key, kind, .. }| {
        let Some((owner, precedence)) = claims.range_before((key, kind), &service.key, service.created) else {
            return true;
        };
        let denial = port_ranges::denial(owner, precedence, kind);
        warnings.push(Warning::Frontend(DeniedFrontend { kind, place: FrontendPlace::Key(key), denial }));
        false
    });
    frontends.retain(|&RequestedFrontend { key, kind, .. }| match claims.owner(&key) {
        // The Service still answers at its own ports.
        Some(owner) if *owner != service.key && kind.is_address() => false,
        Some(owner) if *owner != service.key => {
            let is_outranked = claims.precedence(&key) < Some(Precedence::of(kind));
            let terminates = service.pod.as_ref().is_some_and(|pod| pod.terminating);
            let denial = match (is_outranked, terminates) {
                (true, _) => Denial::Outranked(owner.clone()),
                (false, true) => Denial::Terminates(owner.clone()),
                (false, false) => Denial::Younger(owner.clone()),
            };
            warnings.push(Warning::Frontend(DeniedFrontend { kind, place: FrontendPlace::Key(key), denial }));
            false
        }
        _ => true,
    });
}

/// Removes hostPorts with a hostIP at which a NodePort answers: NodePorts have another key in the maps. Reports a
/// hostPort without hostIP at whose port another pod has an address of the node: that goes first there.
fn host_port_conflicts(
    frontends: &mut Vec<RequestedFrontend>,
    service: &Service,
    node: NodeContext<'_>,
    ClusterContext { claims, .. }: ClusterContext<'_>,
    warnings: &mut Vec<Warning>,
) {
    frontends.retain(|&RequestedFrontend { key, kind, .. }| {
        let mut warn = |key, denial| {
            warnings.push(Warning::Frontend(DeniedFrontend { kind, place: FrontendPlace::Key(key), denial }));
        };
        if kind != Kind::HostPort {
            return true;
        }
        if !key.addr.is_unspecified() {
            let is_node_port = claims.precedence(&key.node_port()) == Some(Precedence::Allotted);
            let owner = claims.owner(&key.node_port()).filter(|_| is_node_port && node.node_ports.contains(&key.addr));
            owner.into_iter().for_each(|owner| warn(key, Denial::Outranked(owner.clone())));
            return owner.is_none();
        }
        for addr in node.own.iter().filter(|addr| Family::of(addr) == Family::of(&key.addr)) {
            let key = FrontendKey { addr: *addr, ..key };
            let other = claims.owner(&key).filter(|owner| host_ports::is_pod(owner) && **owner != service.key);
            other.into_iter().for_each(|owner| warn(key, Denial::NamesAddress(owner.clone())));
        }
        true
    });
}

/// [`ServiceFlags`] of a service port, by the frontends that it has got.
fn flags(service: &Service, kinds: Kinds<'_>, ranges: &PerFamily<SourceRanges>, family: Family) -> u32 {
    let own_kinds = || kinds.of(family);
    let bit = |is: bool, bit| if is { bit } else { 0 };
    let is_restricted = ranges[family].is_restricted();
    let is_udp = service.ports.get(kinds.port).is_some_and(|port| port.proto == Proto::Udp);
    let allows_udp_connect = is_udp && service.tuning.as_deref().is_some_and(|tuning| tuning.allows_udp_connect);
    bit(service.internal_policy == Policy::Local, ServiceFlags::INTERNAL_LOCAL)
        | bit(
            service.external_policy == Policy::Local && own_kinds().any(Kind::is_external),
            ServiceFlags::EXTERNAL_LOCAL,
        )
        | bit(service.shares_affinity(), ServiceFlags::SHARED_AFFINITY)
        | bit(allows_udp_connect, ServiceFlags::UDP_CONNECT)
        | bit(is_restricted && own_kinds().any(|kind| kind == Kind::LoadBalancer), ServiceFlags::SOURCE_RANGES)
}

/// The frontends that a service port has got.
#[derive(Clone, Copy)]
struct Kinds<'a> {
    frontends: &'a [RequestedFrontend],
    port_ranges: &'a [RequestedRange],
    port: usize,
}

impl Kinds<'_> {
    /// Lists the kinds of its frontends and port ranges of a family.
    fn of(&self, family: Family) -> impl Iterator<Item = Kind> {
        let single = self.frontends.iter().map(|frontend| (frontend.port, frontend.key.addr, frontend.kind));
        let ranges = self.port_ranges.iter().map(|range| (range.port, range.claim.addr, range.claim.kind));
        let own = move |(port, addr, _): &(usize, Addr, Kind)| *port == self.port && Family::of(addr) == family;
        single.chain(ranges).filter(own).map(|(.., kind)| kind)
    }
}

struct Evaluator<'a, 'b> {
    view: &'b View<'a>,
    node: NodeContext<'b>,
    settings: &'b Settings,
    cluster: ClusterContext<'a>,
    families: [Option<Family>; 2],
}

impl<'a> Evaluator<'a, '_> {
    fn port(&self, index: usize, port: &'a ServicePort, flags: PerFamily<u32>) -> EvaluatedPort<'a> {
        let tuning = self.view.service.tuning.as_deref();
        let scheduler = tuning.and_then(|tuning| tuning.scheduler).unwrap_or(self.settings.scheduler);
        let (mut endpoints, unmatched) = self.endpoints(port, scheduler, flags);
        let middle = endpoints.partition_point(EvaluatedEndpoint::is_v4);
        let (v4, v6) = endpoints.split_at_mut(middle);
        let preference = tuning.map(|tuning| tuning.preference).unwrap_or_default();
        let probes = PerFamily {
            v4: self.probe(port, v4, Family::V4, preference),
            v6: self.probe(port, v6, Family::V6, preference),
        };
        let tiers = PerFamily { v4: self.tiers(port, v4, Family::V4), v6: self.tiers(port, v6, Family::V6) };
        let narrowing =
            PerFamily { v4: categorize(v4, self.node, preference), v6: categorize(v6, self.node, preference) };
        let flags = PerFamily::from_fn(|family| {
            let is_narrowed = narrowing[family].by_preference == Preference::Local;
            let tiers = tiers[family].as_ref().map_or(0, Tiers::flags);
            flags[family] | if is_narrowed { ServiceFlags::PREFERS_LOCAL } else { 0 } | tiers | probes[family]
        });
        let (redirected_to, redirect_targets) = (PerFamily::default(), Vec::new());
        EvaluatedPort {
            port,
            index,
            scheduler,
            endpoints,
            tiers,
            narrowing,
            redirected_to,
            redirect_targets,
            flags,
            unmatched,
        }
    }

    /// Keeps out the endpoints of one family that fail their probes. Returns the flags of the service port that say so.
    fn probe(
        &self,
        port: &ServicePort,
        endpoints: &mut [EvaluatedEndpoint<'a>],
        family: Family,
        preference: Preference,
    ) -> u32 {
        let service = self.view.service;
        // Endpoints of port ranges have an offset in the place of a port.
        if probes::of(service).is_none() || endpoints.is_empty() || port.ranges.is_some() {
            return 0;
        }
        let (service, name) = (service.key.clone(), port.name.clone());
        let key = PortKey { service, name, proto: port.proto, family };
        let keeps_out = probes::apply(self.view, &key, endpoints, self.cluster, |endpoints| {
            self.tiers(port, endpoints, family);
            categorize(endpoints, self.node, preference);
        });
        if keeps_out { ServiceFlags::PROBED_OUT } else { 0 }
    }

    /// Chooses a tier of the endpoints of one family, and narrows the cluster list to it.
    fn tiers(&self, port: &ServicePort, endpoints: &mut [EvaluatedEndpoint<'a>], family: Family) -> Option<Tiers> {
        let Service { key: service, tuning, .. } = self.view.service;
        let share = tuning.as_deref().and_then(|tuning| tuning.tier_share).map_or(DEFAULT_TIER_SHARE, NonZeroU8::get);
        let key = || PortKey { service: service.clone(), name: port.name.clone(), proto: port.proto, family };
        let before = || tiers::in_use(self.cluster.maps, &key());
        let tiers = Tiers::choose(endpoints, share, before)?;
        tiers.narrow(endpoints);
        Some(tiers)
    }

    /// The endpoints whose object has a port, sorted, each decided about by itself; and the groups without the port.
    fn endpoints(
        &self,
        port: &ServicePort,
        scheduler: Scheduler,
        flags: PerFamily<u32>,
    ) -> (Vec<EvaluatedEndpoint<'a>>, Vec<(EndpointOrigin<'a>, &'a EndpointGroup)>) {
        let (mut endpoints, mut unmatched) = (Vec::new(), Vec::new());
        for (author, origin, group) in effective(self.view).filter(|(.., group)| !group.endpoints.is_empty()) {
            let mut matches = false;
            for number in targets(port, group) {
                matches = true;
                endpoints.reserve(group.endpoints.len());
                endpoints.extend(group.endpoints.iter().map(|endpoint| {
                    let target = AddrPort { addr: Addr::from(endpoint.addr), port: number };
                    let weight = self.weight(endpoint, scheduler);
                    let other_namespace = self.other_namespace(author, target);
                    let reason = self
                        .refusal(port, target, other_namespace)
                        .unwrap_or_else(|| self.serving(endpoint, weight, flags[Family::of(&target.addr)]));
                    EvaluatedEndpoint {
                        target,
                        endpoint,
                        origin,
                        weight,
                        other_namespace,
                        probe: ProbeState::NotProbed,
                        reason,
                    }
                }));
            }
            if !matches {
                unmatched.push((origin, group));
            }
        }
        self.sort(&mut endpoints);
        (endpoints, unmatched)
    }

    /// Leads the cluster IPs of a port to the endpoints on this node that `source` has for the port of that name and
    /// protocol, in each family in which one is ready: as a local list, which clients outside do not use.
    fn redirect(&self, port: &mut EvaluatedPort<'a>, source: &View<'a>) {
        let is_same = |other: &&'a ServicePort| other.name == port.port.name && other.proto == port.port.proto;
        let Some(of_source) = source.service.ports.iter().find(is_same) else { return };
        let evaluator = Evaluator { view: source, families: families(source.service), ..*self };
        let (mut endpoints, _) = evaluator.endpoints(of_source, port.scheduler, PerFamily::from_fn(|_| LOCAL));
        let leads_back = |target: AddrPort| {
            let key = port_ranges::key_at(target.addr, target.port, port.port);
            self.cluster.claims.owner(&key) == Some(&self.view.service.key)
        };
        endpoints.retain(|endpoint| endpoint.serves() && endpoint.is_local(self.node) && !leads_back(endpoint.target));
        port.redirect_targets = endpoints.iter().map(|endpoint| endpoint.target).collect();
        let world = self.cluster.world;
        let answers = |target: &AddrPort| !probes::fails(source.service, target, world) && !world.has_closed(target);
        endpoints.retain(|endpoint| answers(&endpoint.target));
        for family in Family::ALL {
            let is_ready = |endpoint: &EvaluatedEndpoint<'_>| {
                matches!(endpoint.reason, Reason::Serves { local: Some(Placement::Ready), .. })
            };
            let of_family = |endpoint: &&EvaluatedEndpoint<'_>| Family::of(&endpoint.target.addr) == family;
            if endpoints.iter().filter(of_family).any(is_ready) {
                port.redirected_to[family] = Some(&source.service.key);
                port.flags[family] |= ServiceFlags::INTERNAL_LOCAL | ServiceFlags::REDIRECTED;
            }
        }
        for endpoint in &mut port.endpoints {
            let is_redirected = port.redirected_to[Family::of(&endpoint.target.addr)].is_some();
            if let Reason::Serves { local, .. } = &mut endpoint.reason
                && is_redirected
            {
                *local = Some(Placement::Redirected);
            }
        }
        for mut endpoint in endpoints {
            let Reason::Serves { local: Some(placement), .. } = endpoint.reason else { continue };
            let own = port.endpoints.iter_mut().find(|own| own.target == endpoint.target && own.serves());
            if let Some(EvaluatedEndpoint { reason: Reason::Serves { local, .. }, .. }) = own {
                // An endpoint of both.
                local.iter_mut().for_each(|local| *local = placement);
                continue;
            }
            let (cluster, local) = match placement {
                Placement::Ready => (Placement::OfRedirecting, Some(placement)),
                // Kept for its sockets.
                _ => (placement, None),
            };
            endpoint.reason = Reason::Serves { cluster, local };
            port.endpoints.push(endpoint);
        }
        port.endpoints.sort_by(|a, b| b.is_v4().cmp(&a.is_v4()).then_with(|| a.target.cmp(&b.target)));
    }

    fn weight(&self, endpoint: &Endpoint, scheduler: Scheduler) -> u16 {
        let weights = self.view.service.tuning.as_deref().map_or(&[][..], |tuning| &tuning.weights);
        let own = weights.binary_search_by(|(addr, _)| addr.cmp(&endpoint.addr)).ok();
        let weight = own.and_then(|at| weights.get(at)).map_or(endpoint.weight, |(_, weight)| *weight);
        if scheduler.weighs() { weight } else { weight.min(1) }
    }

    /// The Service of another namespace that selects a hand-written endpoint.
    fn other_namespace(&self, author: Author, target: AddrPort) -> Option<&'a Key> {
        match author {
            Author::Hand => self.cluster.cross_namespace.owner(&target.addr, self.view.service.key.namespace()),
            Author::Selector => None,
        }
    }

    /// The reason why an endpoint cannot be a backend, whatever its conditions.
    fn refusal(&self, port: &ServicePort, target: AddrPort, other_namespace: Option<&'a Key>) -> Option<Reason<'a>> {
        if let Some(kind) = unusable(&target.addr.to_ip()) {
            return Some(Reason::Unusable(kind));
        }
        if self.settings.cross_namespace == CrossNamespace::Refuse
            && let Some(owner) = other_namespace
        {
            return Some(Reason::OtherNamespace(owner));
        }
        let owner = |addr| self.frontend_owner(&port_ranges::key_at(addr, target.port, port));
        if let Some(owner) = owner(target.addr) {
            return Some(Reason::Frontend(owner));
        }
        let family = Family::of(&target.addr);
        if port.ranges.is_none()
            && self.node.node_ports.contains(&target.addr)
            && let Some(owner) = owner(unspecified(family))
        {
            return Some(Reason::NodePort(owner));
        }
        match self.families {
            [Some(served), None] | [None, Some(served)] if served != family => Some(Reason::OtherFamily(served)),
            _ => None,
        }
    }

    /// The Service to whose frontend an endpoint would lead back: a cluster IP, a NodePort, or an address of the same
    /// Service. Load balancer addresses and external IPs of other Services do not count: API servers stand behind a
    /// virtual address that a Service also carries (calico#8151), and a user who may write a Service or its status
    /// could otherwise take endpoints of others out of service. Translation happens once, so that there is no loop.
    fn frontend_owner(&self, key: &FrontendKey) -> Option<&'a Key> {
        let owner = self.cluster.claims.owner(key)?;
        let is_allotted = self.cluster.claims.precedence(key) == Some(Precedence::Allotted);
        (is_allotted || *owner == self.view.service.key).then_some(owner)
    }

    /// The decision by an endpoint's own conditions, before other endpoints are considered.
    fn serving(&self, endpoint: &Endpoint, weight: u16, flags: u32) -> Reason<'a> {
        let cluster = match endpoint {
            Endpoint { ready: false, serving: true, terminating: true, .. } if weight > 0 => Placement::Terminating,
            Endpoint { ready: false, serving: true, terminating: true, .. } => Placement::ZeroWeight,
            Endpoint { ready: false, terminating: true, .. } => return Reason::Terminated,
            Endpoint { ready: false, .. } => return Reason::NotReady,
            _ if weight == 0 => Placement::ZeroWeight,
            _ => Placement::Ready,
        };
        let local = (flags & LOCAL != 0).then(|| match &endpoint.node {
            None => Placement::NoNodeName,
            Some(node) if **node != *self.node.name => Placement::OtherNode,
            Some(_) => cluster,
        });
        Reason::Serves { cluster, local }
    }

    /// Sorts by family and target. Of copies of one target the best counts: by its conditions, then the local one, then
    /// the first by slice name; the sort is stable. So a live pod serves, whatever is left of a dead pod that had its
    /// address (kube-proxy's `addEndpoints` in pkg/proxy/endpointslicecache.go, k8s#135593, which leaves some orders
    /// undefined).
    fn sort(&self, endpoints: &mut [EvaluatedEndpoint<'a>]) {
        endpoints.sort_by(|a, b| {
            let families = b.is_v4().cmp(&a.is_v4());
            let targets = families.then_with(|| a.target.cmp(&b.target));
            let conditions = targets.then_with(|| condition_rank(a.endpoint).cmp(&condition_rank(b.endpoint)));
            conditions.then_with(|| b.is_local(self.node).cmp(&a.is_local(self.node)))
        });
        let mut first: Option<(AddrPort, EndpointOrigin<'a>)> = None;
        for endpoint in endpoints {
            match first {
                Some((target, origin)) if target == endpoint.target => endpoint.reason = Reason::Duplicate(origin),
                _ => first = Some((endpoint.target, endpoint.origin)),
            }
        }
    }
}

/// Lists the ports of a group's endpoints that are those of a service port; for port ranges, the offset, whatever ports
/// the group has.
fn targets(port: &ServicePort, group: &EndpointGroup) -> impl Iterator<Item = u16> {
    let offset = port.ranges.as_deref().map(PortRanges::wrapped_offset);
    let is_same = move |other: &&EndpointPort| offset.is_none() && other.name == port.name && other.proto == port.proto;
    group.ports.iter().filter(is_same).map(|other| other.port.get()).chain(offset)
}

/// Ranks an endpoint among copies of one target by its conditions; the smallest counts.
const fn condition_rank(endpoint: &Endpoint) -> u8 {
    match endpoint {
        Endpoint { ready: true, .. } => 0,
        Endpoint { serving: true, terminating: false, .. } => 1,
        Endpoint { serving: true, .. } => 2,
        _ => 3,
    }
}

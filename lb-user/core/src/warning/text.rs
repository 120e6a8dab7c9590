//! The text of a warning: the problem, then the cure.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fmt::{self, Display, Formatter},
    net::SocketAddr,
};

use lb_common::{Family, Kind, MAGLEV_LEN, SCOPE_SIZE};
use serde::{Serialize, Serializer};

use crate::{host_ports::Owner, objects::Key, port_ranges::frontend_text};

use super::{
    BindError, Denial, DeniedFrontend, EjectingClients, EndpointList, EndpointProblem, FrontendPlace, LISTED,
    LocalPolicies, NameFlaw, Named, ObjectRef, RedirectRefusal, Warning,
};

/// Characters of a bad name that are shown.
const SHOWN: usize = 70;

impl Display for Warning {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.write_problem(f)?;
        match self.cure() {
            Some(cure) => write!(f, "; {cure}"),
            None => Ok(()),
        }
    }
}

impl Serialize for Warning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Warning {
    /// The cure, as the text ends with it; none where the problem contains it.
    #[must_use]
    pub fn cure(&self) -> Option<Cow<'static, str>> {
        let cure = match self {
            Self::InvalidValue { .. } | Self::LoadBalancerAddress(_) | Self::AddressPool(_) => return None,
            Self::MoreInvalidValues { .. } => "fix the first ones to see them",
            Self::NoClusterIp => "the API server allots one",
            Self::NoFrontend => "name one of each",
            Self::BadName { flaw: NameFlaw::TooLong, .. } => "choose a shorter one",
            Self::BadName { flaw: NameFlaw::BadCharacter, .. } => "choose another one",
            Self::RepeatedPort { .. } => "the first counts, rename the other",
            Self::Frontend(denied) => return Some(denied.denial.cure(denied.kind)),
            Self::NoRangeOfFamily(_) => "add one",
            Self::TooManyRanges { .. } => "write fewer that are wider",
            Self::Endpoints { problem, .. } => return Some(problem.cure()),
            Self::PortWithoutEndpoint { .. } => "give them the same name",
            Self::MaglevTooSmall => "use random",
            Self::DestinationHash => "use sh for one backend to each client, or random",
            Self::SlowStartWithoutWeights => "use random, wrr, wlc, sed, nq or mh",
            Self::ProbeWithSelector => "remove the annotation, and give the pods a readinessProbe",
            Self::ProbeWithoutTcp => "remove the annotation, or add a port of TCP",
            Self::EjectionOfSctp => "remove the annotation",
            Self::ScopeWithoutAffinity => "set sessionAffinity to ClientIP, or remove the annotation",
            Self::ScopeOfManyPorts { .. } => "divide the Service, or remove the annotation",
            Self::Ejected { clients: EjectingClients::One, .. } => {
                "`beeline watch --failed` on that node names the client of TCP, `beeline watch --service` those of \
                 UDP: check its routes and policies, then the server"
            }
            Self::Ejected { clients: EjectingClients::Several, .. } => {
                "check that server, and the routes and policies of that node; a connect that succeeds brings it back"
            }
            Self::AddressConflict { .. } => {
                "find the host by its link address (the table of the switch, `ip neigh`), and take the address from \
                 it, or from the pool"
            }
            Self::PreferenceUnderLocal => "set internalTrafficPolicy to Cluster, or remove the annotation",
            Self::RedirectRefused { target, refusal } => return Some(refusal.cure(target)),
            Self::RedirectAttempt { sources, count } => {
                return Some(
                    format!(
                        "to allow it, add {} to the flag --redirect-namespaces; otherwise remove the annotation there",
                        namespaces(sources, *count)
                    )
                    .into(),
                );
            }
            Self::MapFull { flag, size, .. } => {
                return Some(format!("raise it with --map-size {flag}={}", size.saturating_mul(2).max(1)).into());
            }
            Self::PortInUse { .. } => "give one of the two another port",
            Self::HealthPort { obstacle: BindError::HeldBy(_), .. } => {
                "end that, or give the Service another healthCheckNodePort. It is tried again quietly"
            }
            Self::HealthPort { obstacle: BindError::Other(_), .. } => {
                "give the Service another healthCheckNodePort, or this node another --nodeport-addresses. It is tried \
                 again quietly"
            }
        };
        Some(cure.into())
    }

    fn write_problem(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidValue { object, problem } => {
                write_object(f, object.as_ref())?;
                f.write_str(problem)
            }
            Self::MoreInvalidValues { object, count } => {
                write_object(f, object.as_ref())?;
                write!(f, "{count} more such problems")
            }
            Self::LoadBalancerAddress(message) => write!(f, "load balancer address: {message}"),
            Self::AddressPool(message) => f.write_str(message),
            Self::NoClusterIp => f.write_str("it has no cluster IP yet"),
            Self::NoFrontend => f.write_str("it has no frontend: spec.clusterIPs or spec.ports is empty"),
            Self::BadName { of, name, flaw } => {
                let bearer = match of {
                    Named::Service => "it",
                    Named::Port => "a port",
                };
                let flaw = match flaw {
                    NameFlaw::TooLong => "has more than 63 octets",
                    NameFlaw::BadCharacter => "has more than letters, digits and -",
                };
                // A name may be as long as a file.
                let (shown, more) =
                    name.char_indices().nth(SHOWN).map_or((&**name, ""), |(end, _)| (&name[..end], "…"));
                write!(f, "{bearer} is not served: its name {shown:?}{more} {flaw}")
            }
            Self::RepeatedPort { name, proto } => {
                write!(f, "spec.ports: \"{name}\" stands there twice for {}", proto.name())
            }
            Self::Frontend(DeniedFrontend { kind, place: FrontendPlace::Addr(addr), denial }) => {
                write!(f, "{}: {addr} ", field(*kind))?;
                denial.write_problem(*kind, f)
            }
            Self::Frontend(DeniedFrontend { kind, place: FrontendPlace::Key(key), denial }) => {
                write!(f, "{key} ({}) ", kind.name())?;
                denial.write_problem(*kind, f)
            }
            Self::Frontend(DeniedFrontend { kind, place: place @ FrontendPlace::Ports(..), denial }) => {
                write!(f, "{place} ({}, by beeline.io/ports) ", kind.name())?;
                denial.write_problem(*kind, f)
            }
            Self::NoRangeOfFamily(family) => {
                let name = family.name();
                write!(
                    f,
                    "loadBalancerSourceRanges has no {name} range, so that all {name} clients are let in, as with \
                     kube-proxy"
                )
            }
            Self::TooManyRanges { family, kept, left_out } => write!(
                f,
                "loadBalancerSourceRanges has {} {} ranges, of which {kept} count; the last {left_out} are not let in",
                kept + left_out,
                family.name()
            ),
            Self::Endpoints { endpoints, problem } => problem.write(f, endpoints),
            Self::PortWithoutEndpoint { name, proto, offered } => {
                write!(f, "no endpoint has a port \"{name}\" of {}; they have", proto.name())?;
                for (index, (name, proto)) in offered.iter().take(LISTED).enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    write!(f, "{comma} {name:?} {}", proto.name())?;
                }
                write_more(f, offered.len(), LISTED)
            }
            Self::MaglevTooSmall => write!(
                f,
                "the scheduler mh has {MAGLEV_LEN} places, and there are more endpoints: each node hashes flows in a \
                 way of its own"
            ),
            Self::DestinationHash => {
                f.write_str("the scheduler dh sends everybody who dials one address to one backend")
            }
            Self::SlowStartWithoutWeights => {
                f.write_str("annotation beeline.io/slow-start has no effect, since the scheduler does not weigh")
            }
            Self::ProbeWithSelector => f.write_str(
                "annotation beeline.io/probe has no effect, since the Service has a selector: the kubelet knows the \
                 readiness of its pods",
            ),
            Self::ProbeWithoutTcp => {
                f.write_str("annotation beeline.io/probe has no effect, since the Service has no port of TCP")
            }
            Self::EjectionOfSctp => f.write_str(
                "annotation beeline.io/eject has no effect, since the Service has no port of TCP or UDP, whose sockets \
                 tell failures",
            ),
            Self::ScopeWithoutAffinity => f.write_str(
                "annotation beeline.io/affinity-scope has no effect, since the sessionAffinity of the Service is None",
            ),
            Self::ScopeOfManyPorts { ports } => write!(
                f,
                "annotation beeline.io/affinity-scope has no effect: {SCOPE_SIZE} ports can share affinity, and the \
                 Service has {ports}",
            ),
            Self::Ejected { addr, port, clients } => {
                let addr = addr.to_ip();
                match port {
                    Some(port) => write!(f, "its endpoint {}", SocketAddr::new(addr, *port))?,
                    None => write!(f, "its endpoint {addr}")?,
                }
                let clients = match clients {
                    EjectingClients::One => "one client",
                    EjectingClients::Several => "several clients",
                };
                write!(f, " is ejected by {clients} of the node, whose connects to it fail")
            }
            Self::AddressConflict { address, link } => write!(
                f,
                "another host on the link, {link}, claims {address}, which the node announces: clients reach one or \
                 the other"
            ),
            Self::PreferenceUnderLocal => f.write_str(
                "annotation beeline.io/prefer-local has no effect at cluster IPs, since internalTrafficPolicy is \
                 Local: calls fail while no endpoint is on the node",
            ),
            Self::RedirectRefused { target, refusal } => {
                write!(f, "annotation beeline.io/redirect-from: the clients of {target} are not redirected, since ")?;
                refusal.write(f)
            }
            Self::RedirectAttempt { sources, count } => {
                f.write_str("its clients are asked for by beeline.io/redirect-from of")?;
                for (index, source) in sources.iter().enumerate() {
                    write!(f, "{} {source}", if index == 0 { "" } else { "," })?;
                }
                write_more(f, *count, sources.len())?;
                f.write_str(", of another namespace, and stay here")
            }
            Self::MapFull { service, map, size, .. } => {
                write!(f, "the map {map} has {size} entries and no room for {service}, which stays as it was")
            }
            Self::PortInUse { kind, service, proto, address, process } => {
                let (port, of) = match kind {
                    Kind::HostPort => ("hostPort", "pod"),
                    _ => ("NodePort", "Service"),
                };
                write!(f, "port {}/{} is a {port} of ", address.port(), proto.name())?;
                match service {
                    Some(service) => write!(f, "{service}, and ")?,
                    None => write!(f, "a {of}, and ")?,
                }
                match process {
                    Some((name, pid)) => write!(f, "{name} (pid {pid})")?,
                    None => f.write_str("a process that is not in sight")?,
                }
                if *kind == Kind::HostPort && address.ip().is_loopback() {
                    write!(f, " is bound to {address} there: callers on this node reach that at {}", address.ip())
                } else {
                    write!(f, " is bound to {address} there: callers on this node reach the {of}")
                }
            }
            Self::HealthPort { address, obstacle } => {
                write!(f, "its health check port {address} does not answer")?;
                match obstacle {
                    BindError::HeldBy(holder) => write!(f, ", since {holder} holds it,")?,
                    BindError::Other(error) => write!(f, " ({error}),")?,
                }
                f.write_str(" and load balancers take that for a node without endpoints")
            }
        }
    }
}

impl Display for ObjectRef {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndpointSlice(key) => write!(f, "EndpointSlice {key}"),
            Self::Endpoints(key) => write!(f, "Endpoints {key}"),
        }
    }
}

impl Display for FrontendPlace {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Key(key) => key.fmt(f),
            Self::Ports(addr, proto, span) => f.write_str(&frontend_text(*addr, *proto as u8, *span)),
        }
    }
}

impl Denial {
    fn cure(&self, kind: Kind) -> Cow<'static, str> {
        match self {
            Self::Younger(_) | Self::Outranked(_) | Self::NamesAddress(_) if kind == Kind::HostPort => {
                "use another hostPort or hostIP".into()
            }
            Self::Unusable(_) => "remove it".into(),
            Self::NotAllowed => "the flag --external-ips does not allow it".into(),
            Self::FamilyNotServed(family) => format!("add {} to spec.ipFamilies", family.name()).into(),
            Self::OtherPort { .. } => "remove one".into(),
            Self::Terminates(_) => "it needs none".into(),
            Self::Younger(_) | Self::Outranked(_) | Self::PodListens(_) | Self::NamesAddress(_) => {
                "use another address or port".into()
            }
            Self::NodeAddress => "use an address that no node has, or name single ports in spec.ports".into(),
        }
    }

    fn write_problem(&self, kind: Kind, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(kind) => write!(f, "is {kind} address, which cannot be a frontend"),
            Self::NotAllowed => f.write_str("is not served"),
            Self::FamilyNotServed(family) => {
                write!(f, "is not served, since the Service has no {} cluster IP", family.name())
            }
            Self::OtherPort { owner, loser } => {
                write!(f, "is asked for by the ports \"{loser}\" and \"{owner}\", and \"{owner}\" gets it")
            }
            Self::Younger(owner) => {
                write!(f, "belongs to {}, which is older or, at equal age, first by name", Owner(owner))
            }
            Self::Outranked(owner) if kind == Kind::HostPort => {
                write!(f, "belongs to {}: Services go before hostPorts", Owner(owner))
            }
            Self::Terminates(owner) => write!(f, "belongs to {} now, since this pod terminates", Owner(owner)),
            Self::NamesAddress(owner) => write!(f, "belongs to {}, whose hostIP names this address", Owner(owner)),
            Self::Outranked(owner) => write!(
                f,
                "belongs to {}: what is allotted goes before what a Service claims, whatever the ages",
                Owner(owner)
            ),
            Self::PodListens(owner) => {
                write!(f, "is not served: a pod of another namespace listens there, that of {}", Owner(owner))
            }
            Self::NodeAddress => f.write_str(
                "is not served here: an interface of this node has the address, and the ports are those of its \
                 processes",
            ),
        }
    }
}

impl DeniedFrontend {
    /// Returns the denial as a predicate of the frontend.
    #[must_use]
    pub(crate) fn predicate(&self) -> String {
        format!("{}; {}", Predicate(self), self.denial.cure(self.kind))
    }
}

struct Predicate<'a>(&'a DeniedFrontend);

impl Display for Predicate<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.denial.write_problem(self.0.kind, f)
    }
}

impl RedirectRefusal {
    fn cure(&self, target: &Key) -> Cow<'static, str> {
        match self {
            Self::Itself => "name another Service".into(),
            Self::Headless => "give it a cluster IP".into(),
            Self::OtherNamespace => format!(
                "let an administrator add its namespace to the flag --redirect-namespaces, or move it to {}",
                target.namespace().escape_debug()
            )
            .into(),
            Self::Older(_) => "remove one of the two annotations".into(),
            Self::NoTarget => "write NAMESPACE/NAME of a Service with a cluster IP".into(),
            Self::ExternalLocal => "set the externalTrafficPolicy of that Service to Cluster".into(),
            Self::NoCommonPort => "give its port the name and protocol that the port has there".into(),
        }
    }

    fn write(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Itself => f.write_str("that is this Service"),
            Self::Headless => f.write_str("this Service is headless"),
            Self::OtherNamespace => f.write_str("that is a Service of another namespace"),
            Self::Older(owner) => write!(f, "they are led to {owner}, which is older or, at equal age, first by name"),
            Self::NoTarget => f.write_str("this node serves no such Service"),
            Self::ExternalLocal => f.write_str("the externalTrafficPolicy of that Service is Local"),
            Self::NoCommonPort => f.write_str("no port of both has the same name and protocol"),
        }
    }
}

impl Display for EndpointList {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (index, endpoint) in self.first.iter().enumerate() {
            let start = if index == 0 { "its endpoint " } else { ", " };
            write!(f, "{start}{endpoint}")?;
        }
        write_more(f, self.count, self.first.len())
    }
}

impl EndpointProblem {
    fn cure(&self) -> Cow<'static, str> {
        let cure = match self {
            Self::Unusable(_) => "write the address at which the other nodes reach it",
            Self::OtherNamespaceRefused(_) => "let clients use that Service itself",
            Self::OtherNamespace(_) => {
                "let them use that Service itself, or refuse such endpoints with --cross-namespace-endpoints=refuse"
            }
            Self::IsFrontend(_) | Self::IsNodePort(_) => "write the address of a server",
            Self::FailsProbe(_) => "it is used again when it passes",
            Self::FailsProbeAsAll(_) => "check the servers, and the annotation beeline.io/probe",
            Self::NoNodeName(_) => "set nodeName in its EndpointSlice",
            Self::NoHint => "give it hints in its EndpointSlice",
            Self::OtherFamily(served) => return format!("add {} to spec.ipFamilies", other(*served).name()).into(),
        };
        cure.into()
    }

    fn write(&self, f: &mut Formatter<'_>, endpoints: &EndpointList) -> fmt::Result {
        match self {
            Self::Unusable(kind) => write!(f, "{endpoints} is not used: that is {kind} address"),
            Self::OtherNamespaceRefused(owner) => write!(
                f,
                "{endpoints} is not used: that is a pod of another namespace, that of {}, and the flag \
                 --cross-namespace-endpoints refuses it",
                Owner(owner)
            ),
            Self::OtherNamespace(owner) => write!(
                f,
                "{endpoints} is a pod of another namespace, that of {}: who may write endpoints here lets callers \
                 reach it that trust this namespace",
                Owner(owner)
            ),
            Self::IsFrontend(owner) => {
                write!(f, "{endpoints} is not used: that is a frontend of {}, and would lead back here", Owner(owner))
            }
            Self::IsNodePort(owner) => write!(
                f,
                "{endpoints} is not used: that is a NodePort of the Service {owner} at this node, and would lead back \
                 here"
            ),
            Self::FailsProbe(cause) => write!(f, "{endpoints} is not used: its probe fails: {cause}"),
            Self::FailsProbeAsAll(cause) => write!(
                f,
                "{endpoints} fails its probe ({cause}) and is used all the same, since no endpoint of the port passes"
            ),
            Self::NoNodeName(policies) => {
                let policies = match policies {
                    LocalPolicies::Internal => "internalTrafficPolicy is",
                    LocalPolicies::External => "externalTrafficPolicy is",
                    LocalPolicies::Both => "internalTrafficPolicy and externalTrafficPolicy are",
                };
                write!(f, "{policies} Local, but {endpoints} has no nodeName and so is local nowhere")
            }
            Self::NoHint => write!(f, "{endpoints} has no hint, and so nobody's topology hints are followed"),
            Self::OtherFamily(served) => {
                write!(f, "{endpoints} is not used, since the Service has {} cluster IPs only", served.name())
            }
        }
    }
}

const fn other(family: Family) -> Family {
    match family {
        Family::V4 => Family::V6,
        Family::V6 => Family::V4,
    }
}

/// The field that requests frontends of a kind.
const fn field(kind: Kind) -> &'static str {
    match kind {
        Kind::ClusterIp | Kind::Address | Kind::OwnAddress => "spec.clusterIPs",
        Kind::ExternalIp | Kind::ExternalAddress => "spec.externalIPs",
        Kind::LoadBalancer => "status.loadBalancer.ingress",
        Kind::NodePort => "spec.ports[].nodePort",
        Kind::HostPort => "hostIP",
    }
}

fn write_object(f: &mut Formatter<'_>, object: Option<&ObjectRef>) -> fmt::Result {
    object.map_or(Ok(()), |object| write!(f, "{object}: "))
}

/// Lists the namespaces of the first of `count` objects.
fn namespaces(first: &[Key], count: usize) -> String {
    let of_first: BTreeSet<&str> = first.iter().map(Key::namespace).collect();
    let mut names: Vec<String> = of_first.into_iter().map(|name| name.escape_debug().to_string()).collect();
    if count > first.len() {
        names.push("those of the others".to_owned());
    }
    let last = names.pop().unwrap_or_default();
    if names.is_empty() { last } else { format!("{} and {last}", names.join(", ")) }
}

fn write_more(f: &mut Formatter<'_>, count: usize, listed: usize) -> fmt::Result {
    if count > listed { write!(f, " and {} more", count - listed) } else { Ok(()) }
}

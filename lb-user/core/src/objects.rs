//! The Kubernetes objects as Beeline knows them: parsed once at the edge, holding only what decides something here.
//!
//! A value that could not be parsed is absent from its object and stands as text in the object's `problems`, so that one
//! bad string costs neither the object nor the pass.

use std::{
    fmt,
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
    path::PathBuf,
    sync::Arc,
    time::SystemTime,
};

use ipnet::IpNet;
use lb_common::{PodMode, Proto, Scheduler};

/// Namespace and name of an object, in one piece of text, since every index holds keys and nothing takes them apart but
/// output. Ordered by namespace, then by name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

/// Between namespace and name: below every character of either, so that the order is that of the pair.
const BETWEEN: char = '\0';

impl Key {
    /// The key of `namespace`/`name`.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        let mut text = String::with_capacity(namespace.len() + BETWEEN.len_utf8() + name.len());
        text.push_str(namespace);
        text.push(BETWEEN);
        text.push_str(name);
        Self(text.into())
    }

    /// Empty for objects that have none (Node).
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.parts().0
    }

    /// The object's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.parts().1
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once(BETWEEN).unwrap_or_default()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Files may hold names that would end a line of the log, or colour it.
        let (namespace, name) = self.parts();
        write!(f, "{}/{}", namespace.escape_debug(), name.escape_debug())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A v1 Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Namespace and name.
    pub key: Key,
    /// `metadata.creationTimestamp` in seconds since 1970; on a conflict the older Service wins. None (a file without
    /// one) counts as younger than any time.
    pub created: Option<i64>,
    /// What keeps Beeline from serving it, if anything.
    pub exempt: Option<Exempt>,
    /// Whether `spec.selector` has an entry. `selector: {}` counts as none.
    pub selector: Selector,
    /// `spec.clusterIPs`, or `spec.clusterIP` where the list is absent.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` with ipMode VIP or none.
    pub ingress_ips: Vec<IpAddr>,
    /// `spec.ports`. Most Services of a cluster share a few lists.
    pub ports: Arc<[ServicePort]>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: Policy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: Policy,
    /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds`, where `spec.sessionAffinity` is ClientIP.
    pub affinity_seconds: Option<NonZeroU32>,
    /// What annotations say.
    pub tuning: Option<Box<Tuning>>,
    /// `spec.loadBalancerSourceRanges`.
    pub source_ranges: Vec<IpNet>,
    /// `spec.healthCheckNodePort`, where it has a meaning: of type LoadBalancer with externalTrafficPolicy Local.
    pub health_port: Option<NonZeroU16>,
    /// What was wrong with the object, each with its cure.
    pub problems: Vec<String>,
}

impl Service {
    /// A Service with a selector and nothing else: what an object says that is all but empty.
    #[must_use]
    pub fn new(key: Key) -> Self {
        Self {
            key,
            created: None,
            exempt: None,
            selector: Selector::Some,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            ingress_ips: Vec::new(),
            ports: Arc::default(),
            internal_policy: Policy::Cluster,
            external_policy: Policy::Cluster,
            affinity_seconds: None,
            tuning: None,
            source_ranges: Vec::new(),
            health_port: None,
            problems: Vec::new(),
        }
    }
}

/// What the annotations of a Service say; most have none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tuning {
    /// `beeline.io/scheduler`, or what other proxies call it.
    pub scheduler: Option<Scheduler>,
    /// `beeline.io/weights`: of single endpoints, by address, sorted, each once. They go before those of a slice.
    pub weights: Vec<(IpAddr, u16)>,
    /// `beeline.io/tcp-drain`.
    pub drain: Drain,
}

/// What becomes of TCP sockets whose backend has gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Drain {
    /// They stay as they are; the servers themselves end them, or time does.
    #[default]
    Never,
    /// They are ended so many seconds later; 0 is at once.
    After(u32),
}

/// Why a Service is not Beeline's to serve (kube-proxy, pkg/proxy/util/utils.go `ShouldSkipService`, and the label
/// selectors of its watches).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exempt {
    /// `clusterIP: None`, or the label `service.kubernetes.io/headless`: its DNS name leads to the endpoints.
    Headless,
    /// `type: ExternalName`: a DNS alias.
    ExternalName,
    /// No cluster IP was allocated yet.
    NoClusterIp,
    /// The label `service.kubernetes.io/service-proxy-name` gives it to another proxy.
    OtherProxy,
}

/// Whether endpoints are chosen by a selector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Selector {
    /// A controller writes the EndpointSlices.
    Some,
    /// Endpoints are written by hand: an Endpoints object counts.
    None,
}

/// A traffic policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// Endpoints of the whole cluster.
    Cluster,
    /// Endpoints on this node only.
    Local,
}

/// An entry of `spec.ports`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ServicePort {
    /// Empty for a single unnamed port.
    pub name: Arc<str>,
    /// TCP by default.
    pub proto: Proto,
    /// The port that clients dial.
    pub port: NonZeroU16,
    /// The port that clients dial at the addresses of a node.
    pub node_port: Option<NonZeroU16>,
}

impl ServicePort {
    /// A port without a node port.
    #[must_use]
    pub fn new(name: &str, proto: Proto, port: NonZeroU16) -> Self {
        Self { name: name.into(), proto, port, node_port: None }
    }
}

/// A discovery.k8s.io/v1 EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub key: Key,
    /// The Service of its label `kubernetes.io/service-name`, in the slice's namespace.
    pub service: Option<Key>,
    /// Whom `endpointslice.kubernetes.io/managed-by` names.
    pub manager: Manager,
    /// Ports and endpoints. `addressType: FQDN` leaves it empty.
    pub group: EndpointGroup,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`: when that happened for which it was written. Says
    /// when, not what, so that the world takes it out before it compares and keeps.
    pub triggered: Option<SystemTime>,
    /// What was wrong with the object, each with its cure.
    pub problems: Vec<String>,
}

/// Who keeps a slice, by its own label.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manager {
    /// Kubernetes' controller for Services with a selector.
    Selecting,
    /// Kubernetes' controller that makes slices of Endpoints objects.
    Mirroring,
    /// Somebody else, or nobody.
    Other,
}

/// A v1 Endpoints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoints {
    /// Namespace and name: those of the Service.
    pub key: Key,
    /// Whether the mirroring controller would take it, as far as the object itself says: no label
    /// `endpointslice.kubernetes.io/skip-mirror: "true"`, no annotation `control-plane.alpha.kubernetes.io/leader`, not
    /// written by the endpoints controller.
    pub mirrorable: bool,
    /// One for each subset.
    pub groups: Vec<EndpointGroup>,
    /// As of a slice.
    pub triggered: Option<SystemTime>,
    /// What was wrong with the object, each with its cure.
    pub problems: Vec<String>,
}

/// Endpoints × ports: what one slice, or one subset of an Endpoints object, says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndpointGroup {
    /// Ports of each endpoint. Most groups of a cluster share a few lists.
    pub ports: Arc<[EndpointPort]>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port of a group.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EndpointPort {
    /// Matches the Service port of that name.
    pub name: Arc<str>,
    /// Matches the Service port's protocol.
    pub proto: Proto,
    /// Where the endpoint listens.
    pub port: NonZeroU16,
}

/// One endpoint of a group; `addresses[0]` of a slice's endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Its address.
    pub addr: IpAddr,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// Absent counts as true.
    pub ready: bool,
    /// Absent counts as true.
    pub serving: bool,
    /// Absent counts as false.
    pub terminating: bool,
    /// By annotation on its slice or Endpoints object; 1 without one, and 0 takes no new connections.
    pub weight: u16,
    /// `hints`; none when they name neither zone nor node.
    pub hints: Option<Box<Hints>>,
}

/// Whom an endpoint should serve.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hints {
    /// `forZones`.
    pub zones: Vec<Arc<str>>,
    /// `forNodes`.
    pub nodes: Vec<Arc<str>>,
}

impl Endpoint {
    /// An endpoint of which only the address is said: it is ready.
    #[must_use]
    pub const fn new(addr: IpAddr) -> Self {
        Self { addr, node: None, ready: true, serving: true, terminating: false, weight: 1, hints: None }
    }

    /// The zones and the nodes that the hints name.
    #[must_use]
    pub fn hints(&self) -> (&[Arc<str>], &[Arc<str>]) {
        self.hints.as_ref().map_or((&[], &[]), |hints| (&hints.zones, &hints.nodes))
    }
}

/// A v1 Node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
    /// Whether it is being deleted, or the cluster autoscaler has marked it for that: load balancers outside shall take
    /// it out of use.
    pub leaving: bool,
}

/// A v1 Pod, as far as its way to Services is concerned. One that has ended is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// Namespace and name.
    pub key: Key,
    /// By which the cgroup of its processes is named; none where a file does not say.
    pub uid: Option<Arc<str>>,
    /// `spec.nodeName`.
    pub node: Option<Arc<str>>,
    /// `spec.hostNetwork`: it has the node's own network namespace.
    pub host_network: bool,
    /// Whether its containers have been started, as far as anybody has told.
    pub started: bool,
    /// `status.podIPs`.
    pub ips: Vec<IpAddr>,
    /// Label `beeline.io/path`.
    pub path: Option<PodMode>,
    /// Where its network namespace is mounted, which only files may say.
    pub netns: Option<PathBuf>,
    /// What was wrong with the object, each with its cure.
    pub problems: Vec<String>,
}

/// A v1 Namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Label `beeline.io/path`, for those of its pods that have none.
    pub path: Option<PodMode>,
    /// What was wrong with the object, each with its cure.
    pub problems: Vec<String>,
}

//! Kubernetes objects, parsed once at the edge, with only the fields that Beeline uses.
//!
//! A value that cannot be parsed is left out of its object and described in the object's `problems`, so that one bad
//! string costs neither the object nor the pass.

use std::{
    fmt,
    net::IpAddr,
    num::{NonZeroU8, NonZeroU16, NonZeroU32},
    path::PathBuf,
    sync::Arc,
    time::SystemTime,
};

use crate::{
    label_selector::{LabelSelector, Labels},
    port_ranges::PortRanges,
};
use ipnet::IpNet;
use lb_common::{PodMode, Proto, SCOPE_SIZE, Scheduler};

/// Namespace and name of an object, in one text, since every index holds keys and only output needs the parts. Ordered
/// by namespace, then by name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

/// Separator of namespace and name. It sorts before every character of either, so that keys sort as pairs.
const SEPARATOR: char = '\0';

impl Key {
    /// Makes the key of `namespace`/`name`.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        let mut text = String::with_capacity(namespace.len() + SEPARATOR.len_utf8() + name.len());
        text.push_str(namespace);
        text.push(SEPARATOR);
        text.push_str(name);
        Self(text.into())
    }

    /// The object's namespace; empty for kinds without one (Node).
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
        self.0.split_once(SEPARATOR).unwrap_or_default()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Files may contain names that would end a line of the log, or colour it.
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
    /// The reason why Beeline does not serve it, if there is one.
    pub exempt: Option<Exempt>,
    /// Presence of entries in `spec.selector`. `selector: {}` counts as none.
    pub selector: Selector,
    /// `spec.clusterIPs`, or `spec.clusterIP` where the list is absent.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` with ipMode VIP or none.
    pub ingress_ips: Vec<IpAddr>,
    /// `spec.ports`, then port ranges. Shared, since most Services of a cluster have one of a few lists.
    pub ports: Arc<[ServicePort]>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: Policy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: Policy,
    /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds`, where `spec.sessionAffinity` is ClientIP.
    pub affinity_seconds: Option<NonZeroU32>,
    /// Settings by annotation.
    pub tuning: Option<Box<Tuning>>,
    /// `spec.loadBalancerSourceRanges`.
    pub source_ranges: Vec<IpNet>,
    /// True if `spec.loadBalancerSourceRanges` has ranges, and none is readable, or one is not that keeps clients out.
    pub source_ranges_unreadable: bool,
    /// `spec.healthCheckNodePort`, for type LoadBalancer with externalTrafficPolicy Local.
    pub health_port: Option<NonZeroU16>,
    /// The pod with hostPorts whose Service this is: see [`crate::host_ports`]. None for a v1 Service.
    pub pod: Option<Box<ServedPod>>,
    /// Report about the allotment of load balancer addresses.
    pub address_report: Option<Arc<AddressReport>>,
    /// Problems of the object, each with its cure.
    pub problems: Vec<String>,
}

/// Report about the allotment of load balancer addresses to a Service: the condition that `beeline lb` writes, or the
/// result of a directory's own pools.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AddressReport {
    /// True if nothing is wrong.
    pub is_clean: bool,
    /// The addresses with their pools, and the problems with their cures.
    pub message: String,
}

impl Service {
    /// Makes a Service with a selector and nothing else, as a nearly empty object has it.
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
            source_ranges_unreadable: false,
            health_port: None,
            pod: None,
            address_report: None,
            problems: Vec::new(),
        }
    }

    /// True if affinity holds for all ports of the Service together.
    #[must_use]
    pub fn shares_affinity(&self) -> bool {
        self.affinity_seconds.is_some()
            && self.tuning.as_deref().is_some_and(|tuning| tuning.shares_affinity)
            && self.ports.len() <= SCOPE_SIZE as usize
    }
}

/// Settings of a Service by annotation. Most Services have none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tuning {
    /// `beeline.io/scheduler`, or the annotation of another proxy.
    pub scheduler: Option<Scheduler>,
    /// `beeline.io/weights`: weights by address, sorted, each once. They go before the weights of a slice.
    pub weights: Vec<(IpAddr, u16)>,
    /// `beeline.io/tcp-drain`.
    pub drain: Drain,
    /// `service.cilium.io/type`: the only type of frontends, besides external IPs; none: all types.
    pub only: Option<FrontendType>,
    /// `service.cilium.io/node` and `service.cilium.io/node-selector`: the nodes that serve it; none: all nodes.
    pub nodes: Option<LabelSelector>,
    /// `service.cilium.io/src-ranges-policy`.
    pub range_policy: RangePolicy,
    /// `beeline.io/prefer-local`.
    pub preference: Preference,
    /// `beeline.io/priority-share`, in per cent, from 1 to 100; none by default.
    pub tier_share: Option<NonZeroU8>,
    /// `beeline.io/slow-start`, in seconds, at most [`MAX_SLOW_START`]; none by default.
    pub slow_start: Option<NonZeroU32>,
    /// `beeline.io/max-connection-age`; none by default.
    pub max_connection_age: Option<ConnectionAge>,
    /// `beeline.io/probe`; none by default. Has no effect on a Service with a selector.
    pub probe: Option<Probe>,
    /// `beeline.io/redirect-from`: the Service whose clients on a node are led to this Service's endpoints there.
    pub redirect_from: Option<Key>,
    /// `beeline.io/eject`; none by default.
    pub eject: Option<Eject>,
    /// `beeline.io/affinity-scope`: affinity holds for all ports of the Service together.
    pub shares_affinity: bool,
    /// `beeline.io/udp-connect`: connect() of a UDP socket succeeds without endpoints.
    pub allows_udp_connect: bool,
}

/// The failed connects that eject an endpoint for the client that saw them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Eject {
    /// Failures in a row, at most [`MAX_EJECT_FAILURES`].
    pub failures: NonZeroU16,
    /// Time in which they happen, in seconds, at most [`MAX_EJECT_TIME`].
    pub window: NonZeroU16,
    /// Time of the first ejection, in seconds, at most [`MAX_EJECT_TIME`].
    pub time: NonZeroU16,
}

/// The age at which TCP sockets of clients on the node end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionAge {
    /// Seconds from the connect to the end of an idle socket, at most [`MAX_CONNECTION_AGE`].
    pub seconds: NonZeroU32,
    /// Seconds after that to the end of a busy socket; none: it stays until it is idle.
    pub grace: Option<u32>,
}

/// The question to each hand-written endpoint of a Service, and the meaning of its answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// The question.
    pub question: ProbeQuestion,
    /// Seconds between two questions, at most [`MAX_PROBE_PERIOD`].
    pub every: NonZeroU32,
    /// Seconds until an answer must have come.
    pub timeout: NonZeroU32,
    /// Failures in a row after which an endpoint fails.
    pub fail: NonZeroU8,
    /// Passes in a row after which an endpoint that failed passes.
    pub pass: NonZeroU8,
}

/// A question to an endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProbeQuestion {
    /// A TCP connection; it passes if the endpoint accepts.
    Tcp,
    /// An HTTP request GET for a path; it passes with a status from 200 to 399.
    HttpGet(Arc<str>),
}

/// The result of an endpoint's probes so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProbeVerdict {
    /// The probe passes.
    Passes,
    /// The probe fails for this reason.
    Fails(Arc<str>),
}

/// A type of frontends that Kubernetes' types of a Service add up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrontendType {
    /// Cluster IPs.
    ClusterIp,
    /// NodePorts.
    NodePort,
    /// Load balancer addresses.
    LoadBalancer,
}

/// Meaning of `spec.loadBalancerSourceRanges`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RangePolicy {
    /// Clients in the ranges are let in.
    #[default]
    Allow,
    /// Clients in the ranges are kept out.
    Deny,
}

/// The worst tier of endpoints that `beeline.io/priority` can name.
pub const WORST_TIER: u8 = 254;

/// The share of ready endpoints, in per cent, that a tier needs without `beeline.io/priority-share`.
pub const DEFAULT_TIER_SHARE: u8 = 50;

/// The most failures of `beeline.io/eject`.
pub const MAX_EJECT_FAILURES: u16 = 1000;

/// The longest times of `beeline.io/eject`, in seconds.
pub const MAX_EJECT_TIME: u16 = 3600;

/// The longest time of `beeline.io/slow-start`, in seconds.
pub const MAX_SLOW_START: u32 = 3600;

/// The longest times of `beeline.io/max-connection-age`, in seconds: 30 days.
pub const MAX_CONNECTION_AGE: u32 = 30 * 24 * 3600;

/// The longest period and timeout of `beeline.io/probe`, in seconds.
pub const MAX_PROBE_PERIOD: u32 = 3600;

/// Endpoints that go before the others of the cluster list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Preference {
    /// None.
    #[default]
    None,
    /// Ready endpoints on the node of the client.
    Local,
}

/// Treatment of TCP sockets whose backend has gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Drain {
    /// Connections are left alone: the server ends them, or they time out.
    #[default]
    Never,
    /// Connections are ended this many seconds later; 0 is at once.
    After(u32),
}

/// The reason why Beeline does not serve a Service (kube-proxy, pkg/proxy/util/utils.go `ShouldSkipService`, and the
/// label selectors of its watches).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exempt {
    /// `clusterIP: None`: its DNS name leads to the endpoints.
    Headless,
    /// `type: ExternalName`: a DNS alias.
    ExternalName,
    /// No cluster IP was allocated yet.
    NoClusterIp,
    /// The label `service.kubernetes.io/service-proxy-name` gives it to another proxy.
    OtherProxy,
    /// [`Tuning::nodes`] leaves out this node.
    OtherNodes,
}

/// Presence of a selector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Selector {
    /// A controller writes the EndpointSlices.
    Some,
    /// Endpoints are hand-written: an Endpoints object counts.
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

/// An entry of `spec.ports`, or port ranges.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ServicePort {
    /// Name of the port; empty for a single unnamed port.
    pub name: Arc<str>,
    /// Protocol of the port; TCP by default.
    pub proto: Proto,
    /// The port that clients dial.
    pub port: NonZeroU16,
    /// The port that clients dial at the addresses of a node.
    pub node_port: Option<NonZeroU16>,
    /// The port ranges of `beeline.io/ports` of one protocol and offset, in place of `port`, which is the first of
    /// theirs. No entry of `spec.ports` has them: they follow these.
    pub ranges: Option<Box<PortRanges>>,
}

impl ServicePort {
    /// Makes a port without a node port.
    #[must_use]
    pub fn new(name: &str, proto: Proto, port: NonZeroU16) -> Self {
        Self { name: name.into(), proto, port, node_port: None, ranges: None }
    }

    /// Makes the port of port ranges; none if they are empty.
    #[must_use]
    pub fn of_ranges(ranges: PortRanges) -> Option<Self> {
        let port = ranges.spans.first().and_then(|span| NonZeroU16::new(span.first))?;
        let unranged = Self::new(&ranges.name(), ranges.proto, port);
        Some(Self { ranges: Some(Box::new(ranges)), ..unranged })
    }
}

/// A discovery.k8s.io/v1 EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub key: Key,
    /// The Service of its label `kubernetes.io/service-name`, in the slice's namespace.
    pub service: Option<Key>,
    /// The controller in its label `endpointslice.kubernetes.io/managed-by`.
    pub manager: SliceManager,
    /// Ports and endpoints; empty with `addressType: FQDN`.
    pub group: EndpointGroup,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`: the time of the event that caused this version.
    /// The world takes it out before it compares and keeps the slice.
    pub triggered: Option<SystemTime>,
    /// Problems of the object, each with its cure.
    pub problems: Vec<String>,
}

/// The controller that writes a slice, by the slice's label.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SliceManager {
    /// Kubernetes' controller for Services with a selector.
    Selecting,
    /// Kubernetes' controller that mirrors Endpoints objects.
    Mirroring,
    /// Another controller, or none.
    Other,
}

/// A v1 Endpoints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoints {
    /// Namespace and name, which are the Service's.
    pub key: Key,
    /// True if the object itself does not keep the mirroring controller off: no label
    /// `endpointslice.kubernetes.io/skip-mirror: "true"`, no annotation `control-plane.alpha.kubernetes.io/leader`, not
    /// written by the endpoints controller.
    pub mirrorable: bool,
    /// A group for each subset.
    pub groups: Vec<EndpointGroup>,
    /// See [`EndpointSlice::triggered`].
    pub triggered: Option<SystemTime>,
    /// Problems of the object, each with its cure.
    pub problems: Vec<String>,
}

/// Endpoints × ports: the content of a slice, or of a subset of an Endpoints object.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndpointGroup {
    /// Ports of each endpoint. Shared, since most groups of a cluster have one of a few lists.
    pub ports: Arc<[EndpointPort]>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port of a group.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EndpointPort {
    /// Name of the Service port that it matches.
    pub name: Arc<str>,
    /// Protocol of the Service port that it matches.
    pub proto: Proto,
    /// Number at which the endpoint listens.
    pub port: NonZeroU16,
}

/// One endpoint of a group; `addresses[0]` of a slice's endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Address of the endpoint.
    pub addr: IpAddr,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `conditions.ready`; true by default.
    pub ready: bool,
    /// `conditions.serving`; true by default.
    pub serving: bool,
    /// `conditions.terminating`; false by default.
    pub terminating: bool,
    /// Weight by annotation on its slice or Endpoints object; 1 by default. 0 takes no new connections.
    pub weight: u16,
    /// `beeline.io/priority` of its slice or Endpoints object; 0, the best, by default.
    pub tier: u8,
    /// `hints`; none if they name neither zone nor node.
    pub hints: Option<Box<Hints>>,
}

/// Topology hints: the clients that an endpoint should serve.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hints {
    /// `forZones`.
    pub zones: Vec<Arc<str>>,
    /// `forNodes`.
    pub nodes: Vec<Arc<str>>,
}

impl Endpoint {
    /// Makes a ready endpoint with an address and no other field.
    #[must_use]
    pub const fn new(addr: IpAddr) -> Self {
        Self { addr, node: None, ready: true, serving: true, terminating: false, weight: 1, tier: 0, hints: None }
    }

    /// Returns the zones and the nodes that the hints name.
    #[must_use]
    pub fn hints(&self) -> (&[Arc<str>], &[Arc<str>]) {
        self.hints.as_ref().map_or((&[], &[]), |hints| (&hints.zones, &hints.nodes))
    }
}

/// A v1 Node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Name of the Node.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
    /// True if it is being deleted, or marked for deletion by the cluster autoscaler: load balancers outside shall stop
    /// using it.
    pub leaving: bool,
    /// True if load balancers may lead clients to it: it is not leaving, not cordoned, has no label
    /// `node.kubernetes.io/exclude-from-external-load-balancers`, and no condition `NetworkUnavailable`.
    pub attracts: bool,
    /// False if its kubelet says that it is not ready, as before the pods' network is up after a reboot. True while the
    /// kubelet is silent.
    pub ready: bool,
    /// Labels of the Namespace.
    pub labels: Labels,
}

/// A hostPort of a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostPort {
    /// `hostIP`: an address of the node, or the unspecified address for all of its family; none: all addresses.
    pub addr: Option<IpAddr>,
    /// `hostPort`: the port that clients dial.
    pub port: NonZeroU16,
    /// `containerPort`: the port at which the pod listens.
    pub container_port: NonZeroU16,
    /// Protocol of the port; TCP by default.
    pub proto: Proto,
}

/// The part of a Pod that its Service needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServedPod {
    /// Namespace and name of the Pod.
    pub key: Key,
    /// Addresses of the pod.
    pub ips: Vec<IpAddr>,
    /// hostPorts of the pod.
    pub host_ports: Vec<HostPort>,
    /// True if it ends soon.
    pub terminating: bool,
}

/// A v1 Pod, with the fields that decide its mode and its hostPorts. Pods that have ended are left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// Namespace and name.
    pub key: Key,
    /// `metadata.uid`, which is in the name of its cgroup; none where a file leaves it out.
    pub uid: Option<Arc<str>>,
    /// `metadata.creationTimestamp` in seconds since 1970; none where a file leaves it out.
    pub created: Option<i64>,
    /// True if it has a `metadata.deletionTimestamp`: it ends soon.
    pub terminating: bool,
    /// `spec.nodeName`.
    pub node: Option<Arc<str>>,
    /// `spec.hostNetwork`: it shares the node's network namespace.
    pub host_network: bool,
    /// True if its status shows started containers.
    pub started: bool,
    /// `status.podIPs`.
    pub ips: Vec<IpAddr>,
    /// The hostPorts of its containers, and of init containers that keep running.
    pub host_ports: Vec<HostPort>,
    /// Problems of its hostPorts, each with its cure.
    pub host_port_problems: Vec<String>,
    /// Label `beeline.io/path`.
    pub mode: Option<PodMode>,
    /// Path at which its network namespace is mounted. Only files may set it.
    pub netns: Option<PathBuf>,
    /// Problems of the object, each with its cure.
    pub problems: Vec<String>,
}

/// A v1 Namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Name of the Namespace.
    pub name: Arc<str>,
    /// Label `beeline.io/path`, for pods in it without the label.
    pub mode: Option<PodMode>,
    /// Problems of the object, each with its cure.
    pub problems: Vec<String>,
}

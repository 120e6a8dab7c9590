//! The Kubernetes objects as Beeline knows them: parsed once at the edge, holding only what decides something here.
//!
//! A value that could not be parsed is absent from its object and stands as text in the object's `problems`, so that one
//! bad string costs neither the object nor the pass.

use std::{fmt, net::IpAddr, num::NonZeroU16, sync::Arc};

use lb_common::Proto;

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
        let (namespace, name) = self.parts();
        write!(f, "{namespace}/{name}")
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
    /// What was wrong with the object, each with its cure.
    pub problems: Vec<String>,
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
}

/// A discovery.k8s.io/v1 EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub key: Key,
    /// The Service of its label `kubernetes.io/service-name`, in the slice's namespace.
    pub service: Option<Key>,
    /// Whether `endpointslice.kubernetes.io/managed-by` names the mirroring controller.
    pub mirrored: Mirrored,
    /// Ports and endpoints. `addressType: FQDN` leaves it empty.
    pub group: EndpointGroup,
    /// What was wrong with the object, each with its cure.
    pub problems: Vec<String>,
}

/// Whether a slice was made from an Endpoints object by Kubernetes' mirroring controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mirrored {
    /// It was.
    Yes,
    /// It was not.
    No,
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
}

//! Changes that a source reports: an object came, changed or has gone, or the whole list of a kind is new.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use lb_common::AddrPort;

use crate::objects::{EndpointSlice, Endpoints, Key, Namespace, Node, Pod, ProbeVerdict, Service};

/// A kind of object. No map is written before every kind in [`ObjectKind::OF_SERVICES`] was listed once (invariant I5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ObjectKind {
    /// v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// v1 Endpoints.
    Endpoints,
    /// v1 Node.
    Node,
    /// v1 Pod.
    Pod,
    /// v1 Namespace.
    Namespace,
}

impl ObjectKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Service, Self::EndpointSlice, Self::Endpoints, Self::Node, Self::Pod, Self::Namespace];

    /// The kinds without which Services cannot be served. The others set the modes of pods; hostPorts need Pods.
    pub const OF_SERVICES: [Self; 4] = [Self::Service, Self::EndpointSlice, Self::Endpoints, Self::Node];
}

/// An object of any kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    /// v1 Service.
    Service(Service),
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// v1 Endpoints.
    Endpoints(Endpoints),
    /// v1 Node.
    Node(Node),
    /// v1 Pod.
    Pod(Pod),
    /// v1 Namespace.
    Namespace(Namespace),
}

impl Object {
    /// The kind of this object.
    #[must_use]
    pub const fn kind(&self) -> ObjectKind {
        match self {
            Self::Service(_) => ObjectKind::Service,
            Self::EndpointSlice(_) => ObjectKind::EndpointSlice,
            Self::Endpoints(_) => ObjectKind::Endpoints,
            Self::Node(_) => ObjectKind::Node,
            Self::Pod(_) => ObjectKind::Pod,
            Self::Namespace(_) => ObjectKind::Namespace,
        }
    }

    /// Returns the kind and the key of the object, which no other object has.
    #[must_use]
    pub fn id(&self) -> (ObjectKind, Key) {
        let key = match self {
            Self::Service(service) => service.key.clone(),
            Self::EndpointSlice(slice) => slice.key.clone(),
            Self::Endpoints(endpoints) => endpoints.key.clone(),
            Self::Node(node) => Key::new("", &node.name),
            Self::Pod(pod) => pod.key.clone(),
            Self::Namespace(namespace) => Key::new("", &namespace.name),
        };
        (self.kind(), key)
    }

    pub(crate) fn service_key(&self) -> Option<&Key> {
        if let Self::Service(object) = self { Some(&object.key) } else { None }
    }

    pub(crate) fn slice_key(&self) -> Option<&Key> {
        if let Self::EndpointSlice(object) = self { Some(&object.key) } else { None }
    }

    pub(crate) fn endpoints_key(&self) -> Option<&Key> {
        if let Self::Endpoints(object) = self { Some(&object.key) } else { None }
    }

    pub(crate) fn pod_key(&self) -> Option<&Key> {
        if let Self::Pod(object) = self { Some(&object.key) } else { None }
    }

    /// The Service to which a Service, an EndpointSlice or an Endpoints object belongs.
    pub(crate) fn of_service(&self) -> Option<&Key> {
        match self {
            Self::EndpointSlice(slice) => slice.service.as_ref(),
            _ => self.service_key().or_else(|| self.endpoints_key()),
        }
    }

    /// The key of a Namespace; none for other kinds.
    #[must_use]
    pub fn namespace_key(&self) -> Option<Key> {
        if let Self::Namespace(object) = self { Some(Key::new("", &object.name)) } else { None }
    }
}

/// Addresses of the node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeAddresses {
    /// Addresses that an interface has.
    pub interfaces: BTreeSet<IpAddr>,
    /// Addresses that a local route alone gives, as clouds add those of load balancers. Ports of the node answer there,
    /// but the address may be a Service's as a whole.
    pub local_routes: BTreeSet<IpAddr>,
}

impl NodeAddresses {
    /// Addresses at which ports of the node answer.
    #[must_use]
    pub fn all(&self) -> BTreeSet<IpAddr> {
        &self.interfaces | &self.local_routes
    }
}

impl FromIterator<IpAddr> for NodeAddresses {
    /// Addresses of interfaces.
    fn from_iter<T: IntoIterator<Item = IpAddr>>(addresses: T) -> Self {
        Self { interfaces: addresses.into_iter().collect(), ..Self::default() }
    }
}

/// A change of the objects of a source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The object is new or has changed.
    Apply(Object),
    /// The object has gone.
    Delete(ObjectKind, Key),
    /// All objects of the kind, in one swap: objects that are not among them have gone.
    Replace(ObjectKind, Vec<Object>),
    /// The source may not read the kind any more: known objects of it are out of date until its next `Replace`.
    Forbidden(ObjectKind),
    /// Addresses of the node.
    NodeAddresses(NodeAddresses),
    /// Ranges from which the API server allots cluster IPs. Empty while they are not known, or while
    /// another proxy serves some of the cluster IPs.
    ClusterRanges(BTreeSet<IpNet>),
    /// Endpoints on this node that have closed a socket at which they listened, and do not listen again yet.
    ClosedListeners(BTreeSet<AddrPort>),
    /// The probes of an endpoint have another result than before; none: it is not probed any more.
    Probed {
        /// The Service.
        service: Key,
        /// The endpoint.
        target: AddrPort,
        /// The result.
        verdict: Option<ProbeVerdict>,
    },
}

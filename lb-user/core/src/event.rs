//! What a source says: one object came, changed or went, or this is now the whole list of a kind.

use std::{collections::BTreeSet, net::IpAddr};

use crate::objects::{EndpointSlice, Endpoints, Key, Namespace, Node, Pod, Service};

/// A kind of object. Nothing is written before each of those that Services need was listed once (invariant I5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
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

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Service, Self::EndpointSlice, Self::Endpoints, Self::Node, Self::Pod, Self::Namespace];

    /// Those without which Services cannot be served. The others say which pods take another path.
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

/// A change of the objects that a source knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The object is new or has changed.
    Apply(Object),
    /// The object has gone.
    Delete(Kind, Key),
    /// These are all objects of the kind; what is not among them has gone. One atomic swap.
    Replace(Kind, Vec<Object>),
    /// The kind may not be read any more: what is known of it grows old until its next `Replace`.
    Forbidden(Kind),
    /// These are the addresses of the node's interfaces.
    NodeAddresses(BTreeSet<IpAddr>),
}

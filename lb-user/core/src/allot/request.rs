//! The addresses that a Service of type LoadBalancer has and asks for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use lb_common::{Family, Proto};

use crate::{label_selector::Labels, objects::Key, port_ranges::PortSpan};

/// A Service of type LoadBalancer, as far as it concerns its addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AddressRequest {
    /// Namespace and name.
    pub key: Key,
    /// `metadata.creationTimestamp` in seconds since 1970; the older Service comes first. None counts as younger than
    /// any time.
    pub created: Option<i64>,
    /// `spec.ipFamilies`, the primary family first.
    pub families: Vec<Family>,
    /// Number of families that the Service needs.
    pub stack: Stack,
    /// Addresses that it asks for.
    pub addresses: Vec<IpAddr>,
    /// Pool that it asks for.
    pub pool: Option<Arc<str>>,
    /// Consent to share its addresses with other Services.
    pub sharing: Option<Sharing>,
    /// Ports and port ranges of the Service.
    pub ports: BTreeSet<(Proto, PortSpan)>,
    /// Nodes that attract traffic for it.
    pub attraction: Attraction,
    /// Labels of the Service.
    pub labels: Labels,
    /// Addresses that it has now.
    pub holds: Vec<IpAddr>,
    /// Changes of its addresses by another controller, so many that both would go on for ever: it keeps what it has.
    pub contest: Option<Contest>,
    /// Problems of its request, each with its cure. With one, the Service keeps its addresses and gets no other.
    pub problems: Vec<String>,
}

/// Number of families that a Service needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Stack {
    /// An address of each of its families, or none at all.
    #[default]
    All,
    /// An address of one of its families at least (`ipFamilyPolicy: PreferDualStack`).
    Any,
}

/// Consent of a Service to share its addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sharing {
    /// Services with the same key share.
    pub key: Arc<str>,
    /// Other namespaces with which it shares.
    pub namespaces: SharedWith,
}

/// Other namespaces with which a Service shares its addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SharedWith {
    /// All.
    All,
    /// The namespaces of this list.
    These(BTreeSet<Arc<str>>),
}

/// Nodes that attract traffic for a Service. Services that share an address need the same nodes: an address is
/// announced as a whole.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Attraction {
    /// All (`externalTrafficPolicy: Cluster`).
    #[default]
    EveryNode,
    /// Nodes with an endpoint (`externalTrafficPolicy: Local`): those of pods with these labels; empty without a
    /// selector.
    NodesOfPods(BTreeMap<String, String>),
}

/// The reason why two Services cannot have one address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum NotShared {
    /// One of them does not consent: another key or none, or a namespace that is not listed.
    NoConsent,
    /// Both have this port.
    SamePort(Proto, u16),
    /// Other nodes attract the traffic of the other Service.
    OtherNodes,
}

/// A change of addresses by another controller.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Contest {
    /// Addresses before.
    pub from: Vec<IpAddr>,
    /// Addresses after.
    pub to: Vec<IpAddr>,
}

impl AddressRequest {
    /// Makes the request of a Service with one family and nothing else.
    #[must_use]
    pub fn new(key: Key) -> Self {
        Self {
            key,
            created: None,
            families: vec![Family::V4],
            stack: Stack::default(),
            addresses: Vec::new(),
            pool: None,
            sharing: None,
            ports: BTreeSet::new(),
            attraction: Attraction::default(),
            labels: Labels::new(),
            holds: Vec::new(),
            contest: None,
            problems: Vec::new(),
        }
    }

    /// Returns the reason why this Service cannot keep an address that the other one has; none if it can.
    pub(super) fn excludes(&self, other: &Self) -> Option<NotShared> {
        let both = (self.sharing.as_ref(), other.sharing.as_ref());
        let consent = matches!(both, (Some(one), Some(two)) if one.key == two.key
            && one.admits(self.key.namespace(), other.key.namespace())
            && two.admits(other.key.namespace(), self.key.namespace()));
        if !consent {
            return Some(NotShared::NoConsent);
        }
        let common = |(proto, span): &(Proto, PortSpan)| {
            let of_proto = other.ports.iter().filter(|(of_other, _)| of_other == proto);
            let met = of_proto.map(|(_, theirs)| (span.first.max(theirs.first), span.last.min(theirs.last)));
            met.into_iter().find(|(first, last)| first <= last).map(|(first, _)| (*proto, first))
        };
        self.ports.iter().find_map(common).map(|(proto, port)| NotShared::SamePort(proto, port))
    }

    /// Returns the reason why this Service cannot get an address that the other one has; none if it can.
    pub(super) fn cannot_join(&self, other: &Self) -> Option<NotShared> {
        let same = match (&self.attraction, &other.attraction) {
            (Attraction::EveryNode, Attraction::EveryNode) => true,
            (Attraction::NodesOfPods(one), Attraction::NodesOfPods(two)) => one == two && !one.is_empty(),
            _ => false,
        };
        self.excludes(other).or((!same).then_some(NotShared::OtherNodes))
    }
}

impl Sharing {
    /// True if a Service of the namespace `own` consents to share with the namespace `other`.
    fn admits(&self, own: &str, other: &str) -> bool {
        own == other
            || match &self.namespaces {
                SharedWith::All => true,
                SharedWith::These(names) => names.contains(other),
            }
    }
}

//! Places the endpoints of a service port that serve in its cluster list and its local list.
//!
//! After kube-proxy's `CategorizeEndpoints` (pkg/proxy/topology.go), and a preference for endpoints on this node, which
//! kube-proxy has by hints alone.

use lb_common::AddrPort;

use super::{
    NodeContext,
    reason::{EvaluatedEndpoint, Placement, Reason},
};
use crate::objects::{Endpoint, Preference};

/// The topology hints that are followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HintUse {
    /// No ready endpoint has a hint.
    #[default]
    None,
    /// Hints for nodes.
    Node,
    /// Hints for zones.
    Zone,
    /// Hints exist and are not followed.
    Ignored(HintsIgnored),
}

/// The reason why hints are not followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HintsIgnored {
    /// This endpoint has none.
    Lacks(AddrPort),
    /// The hints are for zones, and this node has no zone.
    NoZone,
    /// No hint is for this node or its zone.
    NotForUs,
    /// Endpoints on this node are preferred, and one is ready.
    LocalPreferred,
}

/// Settles the lists of one family, and returns the hints that were followed. An endpoint that serves comes in as
/// [`Placement::Ready`] or [`Placement::Terminating`].
pub(super) fn categorize(
    endpoints: &mut [EvaluatedEndpoint<'_>],
    node: NodeContext<'_>,
    preference: Preference,
) -> Narrowing {
    let is_local_and_ready = |endpoint: &EvaluatedEndpoint<'_>| {
        matches!(endpoint.reason, Reason::Serves { cluster: Placement::Ready, .. }) && endpoint.is_local(node)
    };
    let hints = HintUse::of(endpoints, node);
    let narrowing = match preference {
        Preference::Local if endpoints.iter().any(is_local_and_ready) => Narrowing::local(hints),
        Preference::Local | Preference::None => Narrowing { by_preference: Preference::None, hints },
    };
    let (mut cluster_ready, mut local_ready) = (false, false);
    for evaluated in endpoints.iter_mut() {
        let placement = narrowing.place(evaluated, node);
        let Reason::Serves { cluster, local } = &mut evaluated.reason else { continue };
        if *cluster == Placement::Ready {
            *cluster = placement;
        }
        // Hints do not apply to the local list.
        cluster_ready |= *cluster == Placement::Ready;
        local_ready |= *local == Some(Placement::Ready);
    }
    if cluster_ready && local_ready {
        return narrowing;
    }
    // The two lists fall back independently of each other.
    let fall_back = |placement: &mut Placement| {
        if *placement == Placement::Terminating {
            *placement = Placement::Fallback;
        }
    };
    for EvaluatedEndpoint { reason, .. } in endpoints {
        let Reason::Serves { cluster, local } = reason else { continue };
        if !cluster_ready {
            fall_back(cluster);
        }
        if !local_ready {
            local.iter_mut().for_each(fall_back);
        }
    }
    narrowing
}

/// The rules that keep ready endpoints out of the cluster list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Narrowing {
    /// The preference that is followed.
    pub by_preference: Preference,
    /// Topology hints that are followed.
    pub hints: HintUse,
}

impl Narrowing {
    /// Endpoints on this node only, whatever the hints.
    fn local(hints: HintUse) -> Self {
        let hints = match hints {
            HintUse::None => HintUse::None,
            _ => HintUse::Ignored(HintsIgnored::LocalPreferred),
        };
        Self { by_preference: Preference::Local, hints }
    }

    fn place(self, endpoint: &EvaluatedEndpoint<'_>, node: NodeContext<'_>) -> Placement {
        match self.by_preference {
            Preference::Local if !endpoint.is_local(node) => Placement::LocalPreferred,
            Preference::Local | Preference::None => self.hints.place(endpoint.endpoint, node),
        }
    }
}

impl HintUse {
    /// Decides which hints are followed: every ready endpoint must have one, and one must name this node, or else its
    /// zone. Endpoints that take no new connections are left out of account.
    fn of(endpoints: &[EvaluatedEndpoint<'_>], node: NodeContext<'_>) -> Self {
        let (mut some_node, mut our_node, mut no_node) = (false, false, None);
        let (mut some_zone, mut our_zone, mut no_zone) = (false, false, None);
        for &EvaluatedEndpoint { target, endpoint, reason, .. } in endpoints {
            if !matches!(reason, Reason::Serves { cluster: Placement::Ready, .. }) {
                continue;
            }
            let (zones, nodes) = endpoint.hints();
            if nodes.is_empty() {
                no_node.get_or_insert(target);
            } else {
                some_node = true;
                our_node |= names_node(endpoint, node);
            }
            if zones.is_empty() {
                no_zone.get_or_insert(target);
            } else {
                some_zone = true;
                our_zone |= names_zone(endpoint, node);
            }
        }
        match (no_node, no_zone) {
            (None, _) if our_node => Self::Node,
            (_, None) if our_zone => Self::Zone,
            _ if !some_node && !some_zone => Self::None,
            (_, None) if node.zone.is_none() => Self::Ignored(HintsIgnored::NoZone),
            (None, _) | (_, None) => Self::Ignored(HintsIgnored::NotForUs),
            (Some(node), Some(zone)) => Self::Ignored(HintsIgnored::Lacks(if some_zone { zone } else { node })),
        }
    }

    fn place(self, endpoint: &Endpoint, node: NodeContext<'_>) -> Placement {
        match self {
            Self::Node if !names_node(endpoint, node) => Placement::HintOtherNode,
            Self::Zone if !names_zone(endpoint, node) => Placement::HintOtherZone,
            _ => Placement::Ready,
        }
    }

    /// Returns a line of text; none where no endpoint has a hint.
    #[must_use]
    pub(super) fn text(self, node: NodeContext<'_>) -> Option<String> {
        let (name, zone) = (node.name, node.zone.unwrap_or_default());
        match self {
            Self::None => None,
            Self::Node => Some(format!("followed: those for node {name}")),
            Self::Zone => Some(format!("followed: those for zone {zone}")),
            Self::Ignored(HintsIgnored::Lacks(target)) => Some(format!("ignored: {target} has none")),
            Self::Ignored(HintsIgnored::NoZone) => {
                Some(format!("ignored: node {name} has no label topology.kubernetes.io/zone"))
            }
            Self::Ignored(HintsIgnored::NotForUs) => Some(match node.zone {
                Some(zone) => format!("ignored: none is for zone {zone} or node {name}"),
                None => format!("ignored: none is for node {name}"),
            }),
            Self::Ignored(HintsIgnored::LocalPreferred) => {
                Some(format!("ignored: an endpoint on node {name} is ready, and preferred"))
            }
        }
    }
}

fn names_node(endpoint: &Endpoint, node: NodeContext<'_>) -> bool {
    endpoint.hints().1.iter().any(|hint| **hint == *node.name)
}

fn names_zone(endpoint: &Endpoint, node: NodeContext<'_>) -> bool {
    node.zone.is_some_and(|own| endpoint.hints().0.iter().any(|zone| **zone == *own))
}

//! Where the endpoints of a service port that serve stand in its cluster list and its local list.
//!
//! After kube-proxy's `CategorizeEndpoints` (pkg/proxy/topology.go).

use super::{
    NodeContext,
    reason::{EvaluatedEndpoint, Placement, Reason},
};
use crate::objects::Endpoint;
use lb_common::AddrPort;

/// Which hints are followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Hints {
    /// No endpoint that counts has one.
    #[default]
    None,
    /// Those of nodes.
    Node,
    /// Those of zones.
    Zone,
    /// There are some, and they are not followed.
    Ignored(Ignored),
}

/// Why hints are not followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ignored {
    /// This endpoint has none.
    Lacks(AddrPort),
    /// They are of zones, and this node has none.
    NoZone,
    /// None names this node or its zone.
    NotForUs,
}

/// Settles the lists of one family. An endpoint that serves comes in as [`Placement::In`] where it is ready and as
/// [`Placement::Draining`] where it drains.
pub fn categorize(judged: &mut [EvaluatedEndpoint<'_>], here: NodeContext<'_>) -> Hints {
    let hints = Hints::of(judged, here);
    let mut ready = [false; 2];
    for EvaluatedEndpoint { endpoint, why, .. } in judged.iter_mut() {
        let Reason::Serves { cluster, local } = why else { continue };
        if *cluster == Placement::In {
            *cluster = hints.stand(endpoint, here);
        }
        // Hints mean nothing in the local list.
        ready[0] |= *cluster == Placement::In;
        ready[1] |= *local == Some(Placement::In);
    }
    // The two fall back independently of each other.
    let last_resort = |stand: &mut Placement| {
        if *stand == Placement::Draining {
            *stand = Placement::LastResort;
        }
    };
    if ready != [true; 2] {
        for EvaluatedEndpoint { why, .. } in judged {
            let Reason::Serves { cluster, local } = why else { continue };
            if !ready[0] {
                last_resort(cluster);
            }
            if !ready[1] {
                local.iter_mut().for_each(last_resort);
            }
        }
    }
    hints
}

impl Hints {
    /// Hints count when every ready endpoint has one and one of them names us; those of nodes before those of zones. What
    /// takes no new connections has no say.
    fn of(judged: &[EvaluatedEndpoint<'_>], here: NodeContext<'_>) -> Self {
        let (mut some_node, mut our_node, mut no_node) = (false, false, None);
        let (mut some_zone, mut our_zone, mut no_zone) = (false, false, None);
        for &EvaluatedEndpoint { target, endpoint, why, .. } in judged {
            if !matches!(why, Reason::Serves { cluster: Placement::In, .. }) {
                continue;
            }
            let (zones, nodes) = endpoint.hints();
            if nodes.is_empty() {
                no_node.get_or_insert(target);
            } else {
                some_node = true;
                our_node |= endpoint.names_node(here);
            }
            if zones.is_empty() {
                no_zone.get_or_insert(target);
            } else {
                some_zone = true;
                our_zone |= endpoint.names_zone(here);
            }
        }
        match (no_node, no_zone) {
            (None, _) if our_node => Self::Node,
            (_, None) if our_zone => Self::Zone,
            _ if !some_node && !some_zone => Self::None,
            (_, None) if here.zone.is_none() => Self::Ignored(Ignored::NoZone),
            (None, _) | (_, None) => Self::Ignored(Ignored::NotForUs),
            (Some(node), Some(zone)) => Self::Ignored(Ignored::Lacks(if some_zone { zone } else { node })),
        }
    }

    fn stand(self, endpoint: &Endpoint, here: NodeContext<'_>) -> Placement {
        match self {
            Self::Node if !endpoint.names_node(here) => Placement::OtherNode,
            Self::Zone if !endpoint.names_zone(here) => Placement::OtherZone,
            _ => Placement::In,
        }
    }

    /// What there is to say of them in a line, if anything.
    #[must_use]
    pub fn text(self, here: NodeContext<'_>) -> Option<String> {
        let zone = here.zone.unwrap_or_default();
        match self {
            Self::None => None,
            Self::Node => Some(format!("followed: those for node {}", here.node)),
            Self::Zone => Some(format!("followed: those for zone {zone}")),
            Self::Ignored(Ignored::Lacks(target)) => Some(format!("ignored: {target} has none")),
            Self::Ignored(Ignored::NoZone) => {
                Some(format!("ignored: node {} has no label topology.kubernetes.io/zone", here.node))
            }
            Self::Ignored(Ignored::NotForUs) => Some(match here.zone {
                Some(zone) => format!("ignored: none is for zone {zone} or node {}", here.node),
                None => format!("ignored: none is for node {}", here.node),
            }),
        }
    }
}

impl Endpoint {
    fn names_node(&self, here: NodeContext<'_>) -> bool {
        self.hints().1.iter().any(|node| **node == *here.node)
    }

    fn names_zone(&self, here: NodeContext<'_>) -> bool {
        here.zone.is_some_and(|own| self.hints().0.iter().any(|zone| **zone == *own))
    }
}

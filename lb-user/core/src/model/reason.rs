//! The reason why an endpoint is used on this node, or is not: a value, and a line of plain English.

use std::fmt::{self, Write as _};

use lb_common::{AddrPort, BackendFlags, Family, ServiceFlags};

use super::{NodeContext, endpoints::EndpointOrigin};
use crate::{
    host_ports::Owner,
    objects::{Endpoint, Key},
};

/// Addition for an endpoint that is used although it terminates.
const FALLBACK: &str = "; it terminates, but no ready one is left";
/// Addition for an endpoint that serves and is in no list.
const KEPT: &str = "; sockets that have it keep it";

/// An endpoint of one service port, with the decision about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EvaluatedEndpoint<'a> {
    /// Address and port.
    pub target: AddrPort,
    /// The endpoint in its object.
    pub endpoint: &'a Endpoint,
    /// Object that names the endpoint.
    pub origin: EndpointOrigin<'a>,
    /// Weight in the objects; at most 1 with a scheduler that does not weigh.
    pub weight: u16,
    /// The Service of another namespace that selects it, where the endpoint is hand-written.
    pub other_namespace: Option<&'a Key>,
    /// The state of its probes.
    pub probe: ProbeState<'a>,
    /// The decision.
    pub reason: Reason<'a>,
}

/// The decision about an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason<'a> {
    /// Ready or serving-terminating. An endpoint in no list is kept for the sockets that have it.
    Serves {
        /// Placement in the cluster list.
        cluster: Placement,
        /// Placement in the local list, where the Service's policy uses one.
        local: Option<Placement>,
    },
    /// Neither ready nor terminating.
    NotReady,
    /// Ready, and fails its probe for this reason.
    FailsProbe(&'a str),
    /// Ready, and no probe of it has passed yet.
    AwaitsProbe,
    /// Terminates and serves no more.
    Terminated,
    /// The Service has cluster IPs of the other family, this one, only.
    OtherFamily(Family),
    /// The same address and port stand in this object, whose copy counts.
    Duplicate(EndpointOrigin<'a>),
    /// No traffic may be sent to this kind of address, which is named with its article.
    Unusable(&'static str),
    /// Hand-written and a pod of another namespace, which this Service selects and a flag refuses.
    OtherNamespace(&'a Key),
    /// A frontend of this Service.
    Frontend(&'a Key),
    /// A NodePort of this Service, at an address of this node.
    NodePort(&'a Key),
}

/// The state of an endpoint's probes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ProbeState<'a> {
    /// The endpoint is not probed.
    #[default]
    NotProbed,
    /// The endpoint passes, or it has no result yet and is in use.
    Passes,
    /// The endpoint has no result yet, and is not in use.
    Waits,
    /// The endpoint fails for this reason.
    Fails(&'a str),
}

/// The placement of an endpoint that serves, in one backend list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// In the list: it is ready.
    Ready,
    /// In the list: it is serving-terminating, and no ready one is left.
    Fallback,
    /// Not in the list: it is serving-terminating, and others are ready.
    Terminating,
    /// Not in the list: hints are followed, and its own are for other zones.
    HintOtherZone,
    /// Not in the list: hints are followed, and its own are for other nodes.
    HintOtherNode,
    /// Not in the list: endpoints on this node are preferred, and one is ready.
    LocalPreferred,
    /// Not in the list: another Service takes the clients of the cluster IPs on this node.
    Redirected,
    /// Not in the list: it is an endpoint of the Service that takes the clients of the cluster IPs.
    OfRedirecting,
    /// Not in the list: it is of this tier, and another one is used.
    OtherTier(u8),
    /// Not in the list: it runs on another node.
    OtherNode,
    /// Not in the list: it has no nodeName, and so is local nowhere.
    NoNodeName,
    /// Not in the list: weight 0 takes no new connections.
    ZeroWeight,
}

impl Placement {
    /// True if the endpoint is in the list.
    #[must_use]
    pub const fn is_listed(self) -> bool {
        matches!(self, Self::Ready | Self::Fallback)
    }
}

/// Names the clients of the cluster list and of the local list, for a service port with these [`ServiceFlags`].
#[must_use]
pub(super) const fn list_users(flags: u32) -> (&'static str, &'static str) {
    match (flags & ServiceFlags::INTERNAL_LOCAL != 0, flags & ServiceFlags::EXTERNAL_LOCAL != 0) {
        (true, true) => ("callers on this node at external frontends", "cluster IPs and clients outside"),
        (true, false) => ("external frontends", "cluster IPs"),
        (false, _) => ("cluster IPs and callers on this node", "clients outside"),
    }
}

/// True if a service port with these [`ServiceFlags`] uses a better tier only.
const fn is_spare(tier: u8, flags: u32) -> bool {
    flags & ServiceFlags::TIERED != 0 && (flags & ServiceFlags::TIER) >> ServiceFlags::TIER_SHIFT < tier as u32
}

impl EvaluatedEndpoint<'_> {
    pub(super) fn is_v4(&self) -> bool {
        self.target.addr.is_v4()
    }

    /// True if its nodeName is this node's.
    #[must_use]
    pub fn is_local(&self, node: NodeContext<'_>) -> bool {
        self.endpoint.node.as_deref() == Some(node.name)
    }

    /// True if it is a backend: in a list, or kept for the sockets that have it.
    #[must_use]
    pub const fn serves(&self) -> bool {
        matches!(self.reason, Reason::Serves { .. })
    }

    /// Returns its [`BackendFlags`]; none if it is no backend.
    #[must_use]
    pub fn flags(&self, node: NodeContext<'_>) -> Option<u16> {
        let Reason::Serves { cluster, local } = self.reason else { return None };
        let bit = |is: bool, bit| if is { bit } else { 0 };
        Some(
            bit(cluster.is_listed(), BackendFlags::CLUSTER)
                | bit(local.is_some_and(Placement::is_listed), BackendFlags::LOCAL)
                | bit(self.is_local(node), BackendFlags::ON_NODE),
        )
    }

    /// Returns the reason as a line of text, for a service port with these [`ServiceFlags`].
    #[must_use]
    pub(crate) fn reason_text(&self, flags: u32) -> String {
        let mut text = String::new();
        self.write_reason(&mut text, flags).expect("a String takes everything");
        if let (Reason::Serves { .. }, ProbeState::Fails(cause)) = (self.reason, self.probe) {
            write!(text, "; its probe fails ({cause}), as those of all do").expect("a String takes everything");
        }
        if let Some(owner) = self.other_namespace.filter(|_| !matches!(self.reason, Reason::OtherNamespace(_))) {
            write!(text, "; a pod of another namespace, that of {}", Owner(owner)).expect("a String takes everything");
        }
        text
    }

    fn write_reason(&self, text: &mut String, flags: u32) -> fmt::Result {
        match self.reason {
            Reason::Serves { cluster, local: None } => self.write_placement(text, cluster),
            Reason::Serves { cluster, local: Some(local) } if local == cluster => self.write_placement(text, cluster),
            Reason::Serves { cluster, local: Some(local) } => {
                let (of_cluster, of_local) = list_users(flags);
                match (self.listed(cluster), self.listed(local)) {
                    (Ok(""), Err(why)) => write!(text, "used by {of_cluster}, not by {of_local}: {why}"),
                    (Err(why), Ok("")) => write!(text, "used by {of_local}, not by {of_cluster}: {why}"),
                    (Ok(more), Err(why)) => write!(text, "used by {of_cluster}{more}; not by {of_local}: {why}"),
                    (Err(why), Ok(more)) => write!(text, "used by {of_local}{more}; not by {of_cluster}: {why}"),
                    // A fallback in one of the two lists.
                    (Ok(_), Ok(_)) => write!(text, "used{FALLBACK}"),
                    (Err(cluster), Err(local)) => {
                        write!(text, "not used by {of_local}: {local}; nor by {of_cluster}: {cluster}{KEPT}")
                    }
                }
            }
            Reason::NotReady => write!(text, "not used: it is not ready"),
            Reason::FailsProbe(cause) => write!(text, "not used: its probe fails: {cause}"),
            // Without results, as in `explain`, a spare that never served looks as if it waited.
            Reason::AwaitsProbe if is_spare(self.endpoint.tier, flags) => {
                write!(text, "not used: its priority is {}, and another one is used", self.endpoint.tier)
            }
            Reason::AwaitsProbe => write!(text, "not used: its probe fails, or has not passed yet"),
            Reason::Terminated => write!(text, "not used: it terminates and answers no more"),
            Reason::OtherFamily(served) => {
                write!(text, "not used: the Service has {} cluster IPs only", served.name())
            }
            Reason::Duplicate(origin) => write!(text, "not used: it stands in {origin} as well, and that copy counts"),
            Reason::Unusable(kind) => write!(text, "not used: that is {kind} address"),
            Reason::OtherNamespace(owner) => {
                write!(text, "not used: that is a pod of another namespace, that of {}", Owner(owner))
            }
            Reason::Frontend(owner) => write!(text, "not used: that is a frontend of {}", Owner(owner)),
            Reason::NodePort(owner) => {
                write!(text, "not used: that is a NodePort of the Service {owner} at this node")
            }
        }
    }

    /// Writes the reason where one list decides, or both lists decide alike.
    fn write_placement(&self, text: &mut String, placement: Placement) -> fmt::Result {
        match self.listed(placement) {
            Ok(more) => write!(text, "used{more}"),
            Err(why) => write!(text, "not used: {why}{KEPT}"),
        }
    }

    /// Returns an addition where the endpoint is in the list, and otherwise the reason why it is not, as the error.
    fn listed(&self, placement: Placement) -> Result<&'static str, String> {
        let (zones, nodes) = self.endpoint.hints();
        Err(match placement {
            Placement::Ready => return Ok(""),
            Placement::Fallback => return Ok(FALLBACK),
            Placement::Terminating => "it terminates, and others are ready".to_owned(),
            Placement::HintOtherZone => format!("its hint is for zone {}", zones.join(", ")),
            Placement::HintOtherNode => format!("its hint is for node {}", nodes.join(", ")),
            Placement::LocalPreferred => {
                "beeline.io/prefer-local is set, and an endpoint on this node is ready".to_owned()
            }
            Placement::Redirected => "another Service takes their clients on this node".to_owned(),
            Placement::OfRedirecting => "it is of the Service that takes their clients".to_owned(),
            Placement::OtherTier(tier) => format!("its priority is {tier}, and another one is used"),
            Placement::OtherNode => "it is on another node".to_owned(),
            Placement::NoNodeName => "it has no nodeName and so is local nowhere".to_owned(),
            Placement::ZeroWeight => "its weight is 0, which takes no new connections".to_owned(),
        })
    }
}

//! Why an endpoint is used here, or is not: each reason is a value, and a line of plain English.

use std::fmt::{self, Write as _};

use lb_common::{BackendFlags, ServiceFlags};

use super::{NodeContext, endpoints::Origin};
use crate::objects::{Endpoint, Key};
use lb_common::{AddrPort, Family};

/// Said of a last resort.
const DRAINS: &str = "; it drains, but no ready one is left";
/// Said of what serves and is in no list.
const KEPT: &str = "; sockets that have it keep it";

/// An endpoint of one service port, and what becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EvaluatedEndpoint<'a> {
    /// Address and port.
    pub target: AddrPort,
    /// What its object says.
    pub endpoint: &'a Endpoint,
    /// The object that it stands in.
    pub origin: Origin<'a>,
    /// Its weight as the objects have it; 1 with a scheduler that does not weigh, unless it is 0.
    pub weight: u16,
    /// The Service of another namespace whose pod it is, where it was written by hand.
    pub stranger: Option<&'a Key>,
    /// The decision.
    pub why: Reason<'a>,
}

/// What becomes of an endpoint, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason<'a> {
    /// It is ready, or drains and still answers: where it stands in the cluster list, and in the local list where the
    /// Service's policy uses one. In no list it is left to the sockets that have it.
    Serves {
        /// In the cluster list.
        cluster: Placement,
        /// In the local list.
        local: Option<Placement>,
    },
    /// Its conditions say so.
    NotReady,
    /// It terminates and answers no more.
    Gone,
    /// The Service has no cluster IP of its family, but of this other one.
    OnlyServes(Family),
    /// The same address and port stand in this object, whose copy counts.
    Duplicate(Origin<'a>),
    /// Its address is of a kind that no traffic may be sent to.
    Unusable(&'static str),
    /// It was written by hand and is a pod of another namespace, of this Service, which a flag refuses.
    OtherNamespace(&'a Key),
    /// It is itself a frontend of this Service.
    Frontend(&'a Key),
    /// It is itself a NodePort of this Service, at an address of this node.
    NodePort(&'a Key),
}

/// Where an endpoint that serves stands in a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// In it: it is ready.
    In,
    /// In it, though it drains: no ready one is left.
    LastResort,
    /// Not in it: it drains, and others are ready.
    Draining,
    /// Not in it: hints are followed, and its own are for other zones.
    OtherZone,
    /// Not in it: hints are followed, and its own are for other nodes.
    OtherNode,
    /// Not in it: it runs on another node.
    NotLocal,
    /// Not in it: it has no nodeName, and so is local nowhere.
    Nodeless,
    /// Not in it: weight 0 takes no new connections.
    NoWeight,
}

impl Placement {
    /// Whether that is in the list.
    #[must_use]
    pub const fn is_in(self) -> bool {
        matches!(self, Self::In | Self::LastResort)
    }
}

/// Who uses the cluster list, and who the local one, where there is one.
#[must_use]
pub const fn users(flags: u32) -> (&'static str, &'static str) {
    match (flags & ServiceFlags::INTERNAL_LOCAL != 0, flags & ServiceFlags::EXTERNAL_LOCAL != 0) {
        (true, true) => ("callers on this node at external frontends", "cluster IPs and clients outside"),
        (true, false) => ("external frontends", "cluster IPs"),
        (false, _) => ("cluster IPs and callers on this node", "clients outside"),
    }
}

impl EvaluatedEndpoint<'_> {
    /// Whether its nodeName is this node's.
    #[must_use]
    pub fn is_local(&self, here: NodeContext<'_>) -> bool {
        self.endpoint.node.as_deref() == Some(here.node)
    }

    /// Its [`BackendFlags`] as a member of its service port; none when it is not one.
    #[must_use]
    pub fn flags(&self, here: NodeContext<'_>) -> Option<u16> {
        let Reason::Serves { cluster, local } = self.why else { return None };
        let bit = |is: bool, bit| if is { bit } else { 0 };
        Some(
            bit(cluster.is_in(), BackendFlags::CLUSTER)
                | bit(local.is_some_and(Placement::is_in), BackendFlags::LOCAL)
                | bit(self.is_local(here), BackendFlags::ON_NODE),
        )
    }

    /// The reason as a line of text, for a service port with these [`ServiceFlags`].
    #[must_use]
    pub fn reason(&self, flags: u32) -> String {
        let mut text = String::new();
        self.write_reason(&mut text, flags).expect("a String takes everything");
        if let Some(owner) = self.stranger.filter(|_| !matches!(self.why, Reason::OtherNamespace(_))) {
            write!(text, "; a pod of another namespace, that of the Service {owner}")
                .expect("a String takes everything");
        }
        text
    }

    fn write_reason(&self, text: &mut String, flags: u32) -> fmt::Result {
        match self.why {
            Reason::Serves { cluster, local: None } => self.write_of_one(text, cluster),
            Reason::Serves { cluster, local: Some(local) } if local == cluster => self.write_of_one(text, cluster),
            Reason::Serves { cluster, local: Some(local) } => {
                let (of_cluster, of_local) = users(flags);
                match (self.stand(cluster), self.stand(local)) {
                    (Ok(""), Err(why)) => write!(text, "used by {of_cluster}, not by {of_local}: {why}"),
                    (Err(why), Ok("")) => write!(text, "used by {of_local}, not by {of_cluster}: {why}"),
                    (Ok(drains), Err(why)) => write!(text, "used by {of_cluster}{drains}; not by {of_local}: {why}"),
                    (Err(why), Ok(drains)) => write!(text, "used by {of_local}{drains}; not by {of_cluster}: {why}"),
                    // One of them is a last resort, and the other is not.
                    (Ok(_), Ok(_)) => write!(text, "used{DRAINS}"),
                    (Err(cluster), Err(local)) => {
                        write!(text, "not used by {of_local}: {local}; nor by {of_cluster}: {cluster}{KEPT}")
                    }
                }
            }
            Reason::NotReady => write!(text, "not used: it is not ready"),
            Reason::Gone => write!(text, "not used: it terminates and answers no more"),
            Reason::OnlyServes(family) => {
                write!(text, "not used: the Service has {} cluster IPs only", family.name())
            }
            Reason::Duplicate(origin) => write!(text, "not used: it stands in {origin} as well, and that copy counts"),
            Reason::Unusable(what) => write!(text, "not used: that is {what} address"),
            Reason::OtherNamespace(owner) => {
                write!(text, "not used: that is a pod of another namespace, that of the Service {owner}")
            }
            Reason::Frontend(owner) => write!(text, "not used: that is a frontend of the Service {owner}"),
            Reason::NodePort(owner) => {
                write!(text, "not used: that is a NodePort of the Service {owner} at this node")
            }
        }
    }

    /// Of an endpoint for which one list decides, or both alike.
    fn write_of_one(&self, text: &mut String, stand: Placement) -> fmt::Result {
        match self.stand(stand) {
            Ok(drains) => write!(text, "used{drains}"),
            Err(why) => write!(text, "not used: {why}{KEPT}"),
        }
    }

    /// What there is to add when it is in a list, or why it is not.
    fn stand(&self, stand: Placement) -> Result<&'static str, String> {
        let (zones, nodes) = self.endpoint.hints();
        Err(match stand {
            Placement::In => return Ok(""),
            Placement::LastResort => return Ok(DRAINS),
            Placement::Draining => "it drains, and others are ready".to_owned(),
            Placement::OtherZone => format!("its hint is for zone {}", zones.join(", ")),
            Placement::OtherNode => format!("its hint is for node {}", nodes.join(", ")),
            Placement::NotLocal => "it is on another node".to_owned(),
            Placement::Nodeless => "it has no nodeName and so is local nowhere".to_owned(),
            Placement::NoWeight => "its weight is 0, which takes no new connections".to_owned(),
        })
    }
}

//! Events of a choice, by which `beeline trace` explains it.

use crate::{Addr, Affinity, AffinityKey, Frontend, Kind, List, NodeAddr, ServiceEntry, ServiceFlags};

use super::{Cause, Choice, Origin, Reason};

/// Receives the [`SelectEvent`]s of [`super::select_observed`].
pub trait Observer {
    /// Called for each event, in order. The event is built only if an observer asks for it: [`Unobserved`] never does,
    /// so that the programs pay nothing.
    fn note(&self, event: impl FnOnce() -> SelectEvent);
}

/// Ignores all events.
pub struct Unobserved;

impl Observer for Unobserved {
    #[inline(always)]
    fn note(&self, _event: impl FnOnce() -> SelectEvent) {}
}

impl<F: Fn(SelectEvent)> Observer for F {
    fn note(&self, event: impl FnOnce() -> SelectEvent) {
        self(event());
    }
}

/// A step of a choice. The last event is the verdict: [`SelectEvent::NoFrontend`], [`SelectEvent::NotServedAt`],
/// [`SelectEvent::Bypassed`], [`SelectEvent::UnknownSource`], [`SelectEvent::Refused`] or [`SelectEvent::Chosen`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SelectEvent {
    /// Verdict: no frontend has this address, port and protocol.
    NoFrontend,
    /// Verdict: a NodePort or hostPort has the port and protocol, but not at this address.
    NotServedAt {
        /// The NodePort or hostPort.
        frontend: Frontend,
        /// The entry of the address in `NODE_ADDRS`. `None`: no such address of the node. `Some`: left out for
        /// NodePorts; or a loopback address, and the caller is not in the network namespace of the node.
        node_addr: Option<NodeAddr>,
    },
    /// The frontend of the destination.
    Frontend {
        /// The entry of `FRONTENDS`.
        frontend: Frontend,
        /// The key of the entry.
        matched: Match,
    },
    /// Verdict: the caller is a socket of a pod with mode `packet` or `off` ([`super::Caller::is_bypassed`]).
    Bypassed,
    /// `SERVICES` has no entry of this id: the agent is removing the service port.
    NoService(u32),
    /// Verdict: the Service has source ranges, and the source address of the socket is not known. Its packets are
    /// checked instead.
    UnknownSource,
    /// `SOURCE_RANGES` was asked for this client.
    SourceRange {
        /// Address of the client.
        client: Addr,
        /// The answer.
        access: Access,
    },
    /// The backend list of the frontend.
    List {
        /// The list.
        list: List,
        /// The rule that names the list.
        reason: ListReason,
        /// Number of slots.
        len: u32,
    },
    /// The affinity of the client.
    Affinity {
        /// The key in `AFFINITY`.
        key: AffinityKey,
        /// The entry.
        entry: Option<Affinity>,
        /// Use of the entry.
        outcome: AffinityOutcome,
    },
    /// The client's own failed connects eject this backend: another one is looked for.
    Ejected {
        /// Id of the backend.
        backend: u32,
    },
    /// The ejection of this backend is over, and this connect tries it.
    Trial {
        /// Id of the backend.
        backend: u32,
    },
    /// All backends that were looked at are ejected: this one is taken nevertheless, the first choice.
    AllEjected {
        /// Id of the backend.
        backend: u32,
    },
    /// The backend by the scheduler, before open sockets are compared and before a failed backend is avoided.
    Scheduled {
        /// Id of the backend.
        backend: u32,
        /// The rule by which it was found.
        reason: Reason,
    },
    /// A slot or a table entry was missing: the agent is changing the list. Slot 0 serves.
    SlotMissing,
    /// Open sockets of two backends were compared (`lc`, `wlc`, `sed`, `nq`).
    Compared(Pair),
    /// One of two backends failed the caller just before: the other one was taken.
    Avoided(Pair),
    /// The first look refused, or met an entry that was being removed: all later events are of a second look, at
    /// random.
    SecondLook,
    /// Verdict: the service port of this id refuses.
    Refused(u32, Cause),
    /// Verdict: this backend.
    Chosen(Choice),
}

/// Key by which a frontend was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Match {
    /// Address, port and protocol.
    Exact,
    /// Port and protocol of a NodePort or a hostPort without hostIP, at an address of the node.
    PortOfNode,
    /// Address and protocol of a port range with the port.
    PortRange,
}

/// Result of a check of source ranges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A range contains the client.
    Allowed,
    /// No range contains the client.
    Denied,
}

/// Reason for one of the two backend lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListReason {
    /// `internalTrafficPolicy: Cluster`.
    InternalCluster,
    /// `internalTrafficPolicy: Local`.
    InternalLocal,
    /// `externalTrafficPolicy: Cluster`, and the client is outside of this node.
    ExternalCluster,
    /// `externalTrafficPolicy: Local`, and the client is outside of this node.
    ExternalLocal,
    /// The client is on this node: external frontends use the cluster list whatever their policy (kube-proxy,
    /// pkg/proxy/nftables/proxier.go, "simulates going up and out").
    OnNode,
}

impl ListReason {
    /// The reason for the list of a frontend of `kind`.
    #[inline(always)]
    #[must_use]
    pub const fn of(kind: u8, service: &ServiceEntry, origin: Origin) -> Self {
        if kind == Kind::ClusterIp as u8 {
            if service.flags & ServiceFlags::INTERNAL_LOCAL != 0 { Self::InternalLocal } else { Self::InternalCluster }
        } else if matches!(origin, Origin::Node) {
            Self::OnNode
        } else if service.flags & ServiceFlags::EXTERNAL_LOCAL != 0 {
            Self::ExternalLocal
        } else {
            Self::ExternalCluster
        }
    }

    /// The list.
    #[inline(always)]
    #[must_use]
    pub const fn list(self) -> List {
        match self {
            Self::InternalLocal | Self::ExternalLocal => List::Local,
            Self::InternalCluster | Self::ExternalCluster | Self::OnNode => List::Cluster,
        }
    }
}

/// Use of an entry of `AFFINITY`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AffinityOutcome {
    /// The client keeps its backend.
    Kept,
    /// The client has no entry.
    New,
    /// The time-out is over.
    Expired,
    /// The backend was removed, or is not in the list in use (semantics: rule 7).
    NotInList,
}

impl AffinityOutcome {
    /// The use of an entry whose backend was not kept, for affinity of so many seconds.
    pub(super) fn of_unkept(entry: Option<&Affinity>, seconds: u32, now: u64) -> Self {
        match entry {
            None => Self::New,
            Some(entry) if !entry.lasts(seconds, now) => Self::Expired,
            Some(_) => Self::NotInList,
        }
    }
}

/// Two backends, of which one was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pair {
    /// Id of the scheduled backend.
    pub scheduled: u32,
    /// Id of the other backend.
    pub other: u32,
    /// Id of the backend that was taken: one of both.
    pub taken: u32,
}

//! Warnings about a Service, as data. The log, Events and `explain` read the data; its text comes from `Display` alone.

mod text;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::{Addr, AddrPort, Family, FrontendKey, Kind, LinkAddr, Proto};

use crate::{objects::Key, port_ranges::PortSpan};

/// Endpoints, or ports, that a warning lists before it only counts them.
const LISTED: usize = 5;

/// Category of a [`Warning`], as the `reason` of an Event:
/// `kubectl get events --field-selector reason=FrontendConflict`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum WarningReason {
    /// Another Service, or another port of this one, owns a frontend that the Service requests.
    FrontendConflict,
    /// A frontend that the Service requests is not served.
    FrontendNotServed,
    /// An endpoint cannot be used.
    EndpointNotUsed,
    /// A field or an annotation has a value that cannot be used.
    InvalidValue,
    /// A setting has an effect that its owner may not intend.
    CheckService,
    /// An endpoint fails its probe.
    ProbeFailed,
    /// Clients of the node have ejected an endpoint.
    EndpointEjected,
    /// The Service does not get a load balancer address, or should not keep it.
    LoadBalancerAddress,
    /// A pool of load balancer addresses does not allot all that it has.
    AddressPool,
    /// Another host claims a load balancer address that the node announces.
    AddressConflict,
    /// The clients of another Service are not redirected.
    RedirectRefused,
    /// A map is full, and the Service stays as it was.
    NoRoom,
    /// A process is bound to a NodePort of the Service.
    NodePortInUse,
    /// A process is bound to a hostPort of the pod.
    HostPortInUse,
    /// The node does not answer at the Service's `healthCheckNodePort`.
    HealthCheckNodePortUnavailable,
}

impl WarningReason {
    /// Name in an Event.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FrontendConflict => "FrontendConflict",
            Self::FrontendNotServed => "FrontendNotServed",
            Self::EndpointNotUsed => "EndpointNotUsed",
            Self::InvalidValue => "InvalidValue",
            Self::CheckService => "CheckService",
            Self::ProbeFailed => "ProbeFailed",
            Self::EndpointEjected => "EndpointEjected",
            Self::LoadBalancerAddress => "LoadBalancerAddress",
            Self::AddressPool => "AddressPoolProblem",
            Self::AddressConflict => "AddressConflict",
            Self::RedirectRefused => "RedirectRefused",
            Self::NoRoom => "NoRoom",
            Self::NodePortInUse => "NodePortInUse",
            Self::HostPortInUse => "HostPortInUse",
            Self::HealthCheckNodePortUnavailable => "HealthCheckNodePortUnavailable",
        }
    }
}

/// A fact that the owner of a Service must know.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Warning {
    /// A value that the parser could not use.
    InvalidValue {
        /// The object with the value; none for the Service itself.
        object: Option<ObjectRef>,
        /// The parser's text, which ends with the cure.
        problem: String,
    },
    /// More such values of an object than are reported one by one.
    MoreInvalidValues {
        /// The object; none for the Service itself.
        object: Option<ObjectRef>,
        /// Values that are not reported.
        count: usize,
    },
    /// A problem of the request for load balancer addresses, in the text of the allotment, with its cure.
    LoadBalancerAddress(String),
    /// A problem of a pool, in the text of the allotment, with its cure.
    AddressPool(String),
    /// The API server has not allotted a cluster IP yet.
    NoClusterIp,
    /// `spec.clusterIPs` or `spec.ports` is empty.
    NoFrontend,
    /// A name that cannot be served.
    BadName {
        /// The bearer of the name.
        of: Named,
        /// The name.
        name: String,
        /// Flaw of the name.
        flaw: NameFlaw,
    },
    /// A later port has the name and protocol of an earlier one.
    RepeatedPort {
        /// The name of both.
        name: Arc<str>,
        /// The protocol of both.
        proto: Proto,
    },
    /// A frontend that the Service requests and does not get.
    Frontend(DeniedFrontend),
    /// `loadBalancerSourceRanges` restricts the other family only.
    NoRangeOfFamily(Family),
    /// More source ranges than are enforced.
    TooManyRanges {
        /// The family of the ranges.
        family: Family,
        /// Ranges that are let in.
        kept: usize,
        /// Ranges that are not.
        left_out: usize,
    },
    /// Endpoints with one problem.
    Endpoints {
        /// The endpoints.
        endpoints: EndpointList,
        /// Problem of the endpoints.
        problem: EndpointProblem,
    },
    /// Endpoints exist, and none has this port.
    PortWithoutEndpoint {
        /// Name of the Service port.
        name: Arc<str>,
        /// Protocol of the Service port.
        proto: Proto,
        /// Ports of the endpoints, sorted, each once.
        offered: Vec<(Arc<str>, Proto)>,
    },
    /// More endpoints than a Maglev table has entries.
    MaglevTooSmall,
    /// The scheduler `dh`, which the Service itself names.
    DestinationHash,
    /// `beeline.io/slow-start` with a scheduler that does not weigh.
    SlowStartWithoutWeights,
    /// `beeline.io/eject` on a Service without a port of TCP or UDP.
    EjectionOfSctp,
    /// `beeline.io/affinity-scope` on a Service without affinity.
    ScopeWithoutAffinity,
    /// `beeline.io/affinity-scope` on a Service with more ports than can share affinity.
    ScopeOfManyPorts {
        /// Number of its ports.
        ports: usize,
    },
    /// An endpoint that clients of the node do not get, since their connects to it failed (`beeline.io/eject`).
    Ejected {
        /// Address of the endpoint.
        addr: Addr,
        /// Port of the frontend; none for a port range.
        port: Option<u16>,
        /// The clients, without their number, which changes all the time.
        clients: EjectingClients,
    },
    /// Another host claims a load balancer address that the node announces on the link.
    AddressConflict {
        /// The address.
        address: IpAddr,
        /// Link address of the other host.
        link: LinkAddr,
    },
    /// `beeline.io/prefer-local` beside `internalTrafficPolicy: Local`.
    PreferenceUnderLocal,
    /// `beeline.io/probe` on a Service with a selector.
    ProbeWithSelector,
    /// `beeline.io/probe` on a Service without a port of TCP.
    ProbeWithoutTcp,
    /// `beeline.io/redirect-from` is not followed.
    RedirectRefused {
        /// The Service that it names.
        target: Key,
        /// The reason.
        refusal: RedirectRefusal,
    },
    /// Services of other namespaces ask for the clients of this one.
    RedirectAttempt {
        /// The first of them by name.
        sources: Vec<Key>,
        /// Number of all such Services.
        count: usize,
    },
    /// A map has no room for the Service.
    MapFull {
        /// The Service.
        service: Key,
        /// Name of the map.
        map: &'static str,
        /// Name of the map in `--map-size`.
        flag: &'static str,
        /// Size of the map, in entries.
        size: usize,
    },
    /// A process is bound to a NodePort, or to a hostPort.
    PortInUse {
        /// NodePort or HostPort.
        kind: Kind,
        /// Service port of the other listener, as text; none if it is not known.
        service: Option<String>,
        /// Protocol of the port.
        proto: Proto,
        /// The address to which the process is bound.
        address: SocketAddr,
        /// Name and pid of the process; none if it is in another pid namespace.
        process: Option<(String, u32)>,
    },
    /// The `healthCheckNodePort` cannot be bound.
    HealthPort {
        /// The address that cannot be bound.
        address: SocketAddr,
        /// The obstacle.
        obstacle: BindError,
    },
}

/// An object that belongs to a Service.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ObjectRef {
    /// An EndpointSlice.
    EndpointSlice(Key),
    /// An Endpoints object.
    Endpoints(Key),
}

/// The bearer of a name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Named {
    /// The Service, or its namespace.
    Service,
    /// A Service port.
    Port,
}

/// The flaw of a name that cannot be served.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum NameFlaw {
    /// The name does not fit into the maps.
    TooLong,
    /// The name has characters that the API refuses.
    BadCharacter,
}

/// A frontend that a Service requests and does not get.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DeniedFrontend {
    /// The field of the Service that requests it.
    pub kind: Kind,
    /// The address.
    pub place: FrontendPlace,
    /// The reason of the denial.
    pub denial: Denial,
}

/// The address of a denied frontend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FrontendPlace {
    /// An address, at all ports.
    Addr(IpAddr),
    /// An address and port.
    Key(FrontendKey),
    /// A range of ports of an address.
    Ports(Addr, Proto, PortSpan),
}

/// The reason why a Service does not get a frontend.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Denial {
    /// Nothing can be dialled at this kind of address, which is named with its article.
    Unusable(&'static str),
    /// The flag `--external-ips` does not allow it.
    NotAllowed,
    /// The Service has no cluster IP of this family.
    FamilyNotServed(Family),
    /// An earlier port of the Service owns it.
    OtherPort {
        /// Name of the earlier port.
        owner: Arc<str>,
        /// Name of the later port.
        loser: Arc<str>,
    },
    /// This Service owns it and is older.
    Younger(Key),
    /// This Service owns it, and its claim has precedence.
    Outranked(Key),
    /// This pod owns it, since the other one terminates.
    Terminates(Key),
    /// Pods of another namespace listen there, which this Service selects.
    PodListens(Key),
    /// This pod has a hostPort at this address, and the denied hostPort is one at all addresses of the node.
    NamesAddress(Key),
    /// An interface of this node has the address: ports of processes would be taken.
    NodeAddress,
}

/// The first endpoints of several, and their number.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct EndpointList {
    first: Vec<AddrPort>,
    count: usize,
}

impl EndpointList {
    /// Lists `endpoints`; none if there is none.
    pub fn new(mut endpoints: impl Iterator<Item = AddrPort>) -> Option<Self> {
        let first: Vec<_> = endpoints.by_ref().take(LISTED).collect();
        let count = first.len() + endpoints.count();
        (count > 0).then_some(Self { first, count })
    }
}

/// The problem of endpoints.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum EndpointProblem {
    /// No traffic may be sent to this kind of address, which is named with its article.
    Unusable(&'static str),
    /// A pod of another namespace, which this Service selects and a flag refuses.
    OtherNamespaceRefused(Key),
    /// A pod of another namespace, which this Service selects. It is used.
    OtherNamespace(Key),
    /// A frontend of this Service.
    IsFrontend(Key),
    /// A NodePort of this Service at an address of this node.
    IsNodePort(Key),
    /// The endpoint's probe fails for this reason.
    FailsProbe(Arc<str>),
    /// The endpoint's probe fails for this reason, and so do those of all. It is used.
    FailsProbeAsAll(Arc<str>),
    /// No nodeName, under a policy Local.
    NoNodeName(LocalPolicies),
    /// No topology hint, while others have hints.
    NoHint,
    /// The Service has cluster IPs of the other family, this one, only.
    OtherFamily(Family),
}

/// The traffic policies of a Service that are Local.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LocalPolicies {
    /// `internalTrafficPolicy`
    Internal,
    /// `externalTrafficPolicy`
    External,
    /// Both policies.
    Both,
}

/// The reason why a Service does not take the clients of another one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RedirectRefusal {
    /// The Service names itself.
    Itself,
    /// The named Service is headless, so that its endpoints are not known here.
    Headless,
    /// The other one is of another namespace, and the flag does not name the Service's own.
    OtherNamespace,
    /// This Service takes them, which is older or first by name.
    Older(Key),
    /// The other one does not exist, or is not served by this node.
    NoTarget,
    /// The other one needs its local list for clients outside.
    ExternalLocal,
    /// No port of both has the same name and protocol.
    NoCommonPort,
}

/// Clients of a node that have ejected an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum EjectingClients {
    /// One client: others reach the endpoint, or have not tried.
    One,
    /// Several clients.
    Several,
}

/// The obstacle to binding a `healthCheckNodePort`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum BindError {
    /// Another process, described here, holds the port.
    HeldBy(String),
    /// Another error, as the kernel's text.
    Other(String),
}

impl Warning {
    /// Category of the warning.
    #[must_use]
    pub const fn reason(&self) -> WarningReason {
        match self {
            Self::InvalidValue { .. } | Self::MoreInvalidValues { .. } => WarningReason::InvalidValue,
            Self::Frontend(
                DeniedFrontend {
                    denial:
                        Denial::Younger(_) | Denial::Terminates(_) | Denial::OtherPort { .. } | Denial::NamesAddress(_),
                    ..
                }
                | DeniedFrontend { kind: Kind::HostPort, denial: Denial::Outranked(_), .. },
            ) => WarningReason::FrontendConflict,
            Self::Frontend(_) => WarningReason::FrontendNotServed,
            Self::Endpoints { problem, .. } => match problem {
                EndpointProblem::Unusable(_)
                | EndpointProblem::OtherNamespaceRefused(_)
                | EndpointProblem::IsFrontend(_)
                | EndpointProblem::IsNodePort(_) => WarningReason::EndpointNotUsed,
                EndpointProblem::FailsProbe(_) | EndpointProblem::FailsProbeAsAll(_) => WarningReason::ProbeFailed,
                EndpointProblem::OtherNamespace(_)
                | EndpointProblem::NoNodeName(_)
                | EndpointProblem::NoHint
                | EndpointProblem::OtherFamily(_) => WarningReason::CheckService,
            },
            Self::NoClusterIp
            | Self::NoFrontend
            | Self::BadName { .. }
            | Self::RepeatedPort { .. }
            | Self::NoRangeOfFamily(_)
            | Self::TooManyRanges { .. }
            | Self::PortWithoutEndpoint { .. }
            | Self::MaglevTooSmall
            | Self::DestinationHash
            | Self::SlowStartWithoutWeights
            | Self::ProbeWithSelector
            | Self::ProbeWithoutTcp
            | Self::EjectionOfSctp
            | Self::ScopeWithoutAffinity
            | Self::ScopeOfManyPorts { .. }
            | Self::PreferenceUnderLocal => WarningReason::CheckService,
            Self::Ejected { .. } => WarningReason::EndpointEjected,
            Self::AddressConflict { .. } => WarningReason::AddressConflict,
            Self::LoadBalancerAddress(_) => WarningReason::LoadBalancerAddress,
            Self::AddressPool(_) => WarningReason::AddressPool,
            Self::RedirectRefused { .. } | Self::RedirectAttempt { .. } => WarningReason::RedirectRefused,
            Self::MapFull { .. } => WarningReason::NoRoom,
            Self::PortInUse { kind: Kind::HostPort, .. } => WarningReason::HostPortInUse,
            Self::PortInUse { .. } => WarningReason::NodePortInUse,
            Self::HealthPort { .. } => WarningReason::HealthCheckNodePortUnavailable,
        }
    }

    /// The object at fault, where it is not the Service itself.
    #[must_use]
    pub const fn object(&self) -> Option<&ObjectRef> {
        match self {
            Self::InvalidValue { object, .. } | Self::MoreInvalidValues { object, .. } => object.as_ref(),
            _ => None,
        }
    }
}

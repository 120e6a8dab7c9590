//! The event counters of the programs.

/// Index into `COUNTERS`, a per-CPU array of event counts (64 bits each). All counters are on cold paths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Counter {
    /// Refused: the service port has no endpoint anywhere.
    NoEndpoints = 0,
    /// Refused: policy Local, and no endpoint on this node.
    NoLocalEndpoints = 1,
    /// `TCP_MORE` was full: the connection works, but `getpeername` shows its backend.
    TcpSocksFull = 2,
    /// A UDP socket used more VIPs at once than its storage holds: the oldest translation was dropped.
    UdpOverflow = 3,
    /// An unconnected UDP socket moved to another backend: its own was removed.
    UdpMoved = 4,
    /// Refused: a process of the host tried to bind to a NodePort.
    BindRefused = 5,
    /// `PORT_STATS` or `BACKEND_STATS` was full: the socket has a backend, but is not counted.
    StatsFull = 6,
    /// `AFFINITY` was full: the next connect of the client may get another backend.
    AffinityFull = 7,
    /// Dropped: the source of a packet is in none of the Service's source ranges.
    SourceRange = 8,
    /// Rejected: a packet to a cluster IP, for a port that no Service has there.
    UnknownPort = 9,
    /// The first packet of a flow was dropped: `FLOWS` was full. Known flows continue.
    FlowsFull = 10,
    /// The first packet of a flow was dropped: no source port of this node was free for its backend.
    SnatExhausted = 11,
    /// A packet was dropped: no route to its backend, or no source address of this node.
    NoRoute = 12,
    /// A UDP flow moved to another backend: its own was removed.
    FlowMoved = 13,
    /// A packet was dropped without the reset or the ICMP error that it deserved: too many were sent just before.
    ErrorsLimited = 14,
    /// A packet took the slow path, the kernel's own forwarding in the place of a redirect: a device without an
    /// Ethernet header. The numbers follow [`crate::SlowPath`].
    SlowNoEthernet = 15,
    /// A packet took the slow path: IPsec policies.
    SlowIpsec = 16,
    /// A packet took the slow path: rules choose routes by marks or traffic classes.
    SlowMarks = 17,
    /// A packet took the slow path: its route encapsulates.
    SlowEncap = 18,
    /// A packet took the slow path: it has no DF, and is above the MTU.
    SlowFragmented = 19,
    /// A packet took the slow path: the client's address is always masqueraded.
    SlowPolicy = 20,
    /// A flow whose client had not answered yet was removed, to make room for a new one.
    FlowsEarlyDrop = 21,
    /// Refused: a call or a packet to a cluster IP that no Service has.
    UnknownClusterIp = 22,
    /// A packet of a pod to a frontend was dropped: the programs were not attached to the pod's link yet.
    AwaitsPrograms = 23,
    /// `EJECTIONS` was full: a failed handshake does not count for ejection.
    EjectionsFull = 24,
    /// An ARP request or a neighbour solicitation for an address that the node announces was answered.
    NeighboursAnswered = 25,
    /// Another link address claimed an address that the node announces.
    AddressConflicts = 26,
}

impl Counter {
    /// All counters, ordered by number.
    pub const ALL: [Self; 27] = [
        Self::NoEndpoints,
        Self::NoLocalEndpoints,
        Self::TcpSocksFull,
        Self::UdpOverflow,
        Self::UdpMoved,
        Self::BindRefused,
        Self::StatsFull,
        Self::AffinityFull,
        Self::SourceRange,
        Self::UnknownPort,
        Self::FlowsFull,
        Self::SnatExhausted,
        Self::NoRoute,
        Self::FlowMoved,
        Self::ErrorsLimited,
        Self::SlowNoEthernet,
        Self::SlowIpsec,
        Self::SlowMarks,
        Self::SlowEncap,
        Self::SlowFragmented,
        Self::SlowPolicy,
        Self::FlowsEarlyDrop,
        Self::UnknownClusterIp,
        Self::AwaitsPrograms,
        Self::EjectionsFull,
        Self::NeighboursAnswered,
        Self::AddressConflicts,
    ];

    /// The name in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoEndpoints => "refused_no_endpoints",
            Self::NoLocalEndpoints => "refused_no_local_endpoints",
            Self::TcpSocksFull => "tcp_socks_full",
            Self::UdpOverflow => "udp_overflow",
            Self::UdpMoved => "udp_moved",
            Self::BindRefused => "bind_refused",
            Self::StatsFull => "stats_full",
            Self::AffinityFull => "affinity_full",
            Self::SourceRange => "dropped_source_range",
            Self::UnknownPort => "rejected_unknown_port",
            Self::FlowsFull => "flows_full",
            Self::SnatExhausted => "snat_exhausted",
            Self::NoRoute => "no_route",
            Self::FlowMoved => "flow_moved",
            Self::ErrorsLimited => "errors_limited",
            Self::SlowNoEthernet => "slow_path_no_ethernet",
            Self::SlowIpsec => "slow_path_ipsec",
            Self::SlowMarks => "slow_path_marks",
            Self::SlowEncap => "slow_path_encap",
            Self::SlowFragmented => "slow_path_fragmented",
            Self::SlowPolicy => "slow_path_policy",
            Self::FlowsEarlyDrop => "flows_early_drop",
            Self::UnknownClusterIp => "rejected_unknown_cluster_ip",
            Self::AwaitsPrograms => "dropped_awaits_programs",
            Self::EjectionsFull => "ejections_full",
            Self::NeighboursAnswered => "neighbours_answered",
            Self::AddressConflicts => "address_conflicts",
        }
    }
}

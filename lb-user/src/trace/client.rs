//! Clients of a trace: a socket, or the sender of packets.

use lb_common::{Addr, Caller, Client, EjectionKey, NetnsAddrs, Origin, PodModeEntry};

const NO_SOURCES: NetnsAddrs = NetnsAddrs { v4: Addr::from_words([0; 4]), v6: Addr::from_words([0; 4]) };

/// A client. Its random number is always 0, so that equal traces print equal text.
#[derive(Clone, Copy)]
pub(crate) struct TraceClient {
    client: Client,
    /// Cookie of the network namespace. `None` for a sender of packets.
    netns: Option<u64>,
    is_host: bool,
    /// Id of the process's cgroup; 0 if it is not known.
    cgroup: u64,
    is_bypassed: bool,
    /// Source addresses of the calls of a socket, as far as the agent knows them.
    sources: NetnsAddrs,
    origin: Origin,
    /// CLOCK_MONOTONIC, ns.
    now: u64,
}

impl TraceClient {
    /// A socket in the network namespace with this cookie; `is_host` if that is the node's own.
    pub(crate) const fn socket(netns: u64, is_host: bool, now: u64) -> Self {
        let client = Client::of_netns(netns);
        Self {
            client,
            netns: Some(netns),
            is_host,
            cgroup: 0,
            is_bypassed: false,
            sources: NO_SOURCES,
            origin: Origin::Node,
            now,
        }
    }

    /// The same socket, of a process in the cgroup with this id.
    pub(crate) const fn in_cgroup(self, cgroup: u64) -> Self {
        Self { cgroup, ..self }
    }

    /// The same socket, in a network namespace with these source addresses.
    pub(crate) const fn with_sources(self, sources: NetnsAddrs) -> Self {
        Self { sources, ..self }
    }

    /// The sender of packets from outside of this node.
    pub(crate) const fn outside(addr: Addr, now: u64) -> Self {
        let client = Client::of_addr(addr);
        Self {
            client,
            netns: None,
            is_host: false,
            cgroup: 0,
            is_bypassed: false,
            sources: NO_SOURCES,
            origin: Origin::Outside,
            now,
        }
    }

    /// The same client, as the socket path sees a socket of a pod with another mode than `socket`.
    pub(super) const fn bypassed(self) -> Self {
        Self { is_bypassed: true, ..self }
    }

    /// The same client, as tc at the link of its pod sees its packets to `dest`.
    pub(super) const fn at_pod_link(self, pod: &PodModeEntry, dest: &Addr) -> Self {
        let own = if dest.is_v4() { pod.v4 } else { pod.v6 };
        Self { origin: Origin::Node, ..Self::outside(own, self.now) }
    }

    pub(super) const fn netns(&self) -> Option<u64> {
        self.netns
    }

    pub(super) const fn addr(&self) -> Option<Addr> {
        self.client.addr()
    }

    /// True for a sender of packets, false for a socket.
    pub(super) const fn sends_packets(&self) -> bool {
        self.netns.is_none()
    }
}

impl Caller for TraceClient {
    const IS_FOLLOWED: bool = true;

    fn random(&self) -> u32 {
        0
    }
    fn client(&self) -> Client {
        self.client
    }
    fn source(&self, dest: &Addr) -> Option<Addr> {
        if self.sends_packets() { self.client.addr() } else { self.sources.towards(dest) }
    }
    fn is_host(&self) -> bool {
        self.is_host
    }
    fn origin(&self) -> Origin {
        self.origin
    }
    fn is_bypassed(&self) -> bool {
        self.is_bypassed
    }
    fn ejection_key(&self, service: u32) -> Option<EjectionKey> {
        let cgroup = if self.is_host { self.cgroup } else { 0 };
        Some(EjectionKey { netns: self.netns?, cgroup, service, _pad: 0 })
    }
    fn now(&self) -> u64 {
        self.now
    }
}

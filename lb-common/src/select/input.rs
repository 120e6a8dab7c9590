//! Input of a choice: the maps, their state, and the caller.

use crate::{
    Addr, Affinity, AffinityKey, Backend, EjectionKey, Frontend, FrontendKey, Hold, List, MaglevKey, NodeAddr,
    ServiceEntry, Slot, SlotKey,
};

/// The maps that a choice reads: BPF maps in the kernel, pinned maps in `trace`, ordered maps in the tests.
pub trait Tables {
    /// False if `FRONTENDS` cannot have an entry of this port or, for a key of all ports, neither `FRONTENDS` nor
    /// `PORT_RANGES` one of this address: see [`FrontendKey::bit`].
    fn may_have(&self, _key: &FrontendKey) -> bool {
        true
    }
    /// An entry of `FRONTENDS`.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// The entry of `PORT_RANGES` with the port of a destination.
    fn port_range(&self, _dest: &FrontendKey) -> Option<Frontend> {
        None
    }
    /// True if the API server allots cluster IPs from a range with this address: see `CLUSTER_RANGES`.
    fn in_cluster_ranges(&self, _addr: &Addr) -> bool {
        false
    }
    /// An entry of `SERVICES`.
    fn service(&self, id: u32) -> Option<ServiceEntry>;
    /// An entry of `SLOTS`.
    fn slot(&self, key: &SlotKey) -> Option<Slot>;
    /// An entry of `BACKENDS`.
    fn backend(&self, id: u32) -> Option<Backend>;
    /// An entry of `NODE_ADDRS`.
    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr>;
    /// True if one of the service port's `SOURCE_RANGES` contains the address.
    fn in_source_ranges(&self, service: u32, addr: &Addr) -> bool;
    /// The backend at a place of a table of `MAGLEV`, below [`crate::MAGLEV_LEN`].
    fn maglev(&self, key: &MaglevKey, place: u32) -> Option<u32>;
}

/// State that changes with each choice: counts, turns and affinity.
pub trait State {
    /// Open sockets of a backend on this node.
    fn open_sockets(&self, backend: u32) -> u64;
    /// Takes a turn in a list of `len` slots: index of the slot. `None` if turns cannot be stored.
    fn turn(&self, service: u32, list: List, len: u32, stride: u32) -> Option<u32>;
    /// An entry of `AFFINITY`.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Stores the backend of a client, with `now` (CLOCK_MONOTONIC, ns) as its last connect.
    fn set_affinity(&self, key: &AffinityKey, backend: u32, now: u64);
    /// The verdict of `EJECTIONS` on a backend, of whose list the client may eject `most`.
    fn hold(&self, _client: &EjectionKey, _backend: u32, _most: u32, _now: u64) -> Hold {
        Hold::Free
    }
    /// Takes over that a connect of the client tries a backend whose ejection is over.
    fn begin_trial(&self, _client: &EjectionKey, _backend: u32, _now: u64) {}
}

/// Maps without state: no open sockets, no turns, no affinity, no ejections.
pub trait Stateless {}

impl<T: Stateless> State for T {
    fn open_sockets(&self, _: u32) -> u64 {
        0
    }
    fn turn(&self, _: u32, _: List, _: u32, _: u32) -> Option<u32> {
        None
    }
    fn affinity(&self, _: &AffinityKey) -> Option<Affinity> {
        None
    }
    fn set_affinity(&self, _: &AffinityKey, _: u32, _: u64) {}
}

/// A socket that connects or sends, or the sender of the first packet of a flow.
pub trait Caller {
    /// True if the caller may have an [`EjectionKey`]: its handshakes are followed.
    const IS_FOLLOWED: bool = false;
    /// 32 random bits.
    fn random(&self) -> u32;
    /// 32 bits: of a packet, the hash of its flow, which is equal on all nodes; of a socket, random ones.
    fn flow_hash(&self) -> u32 {
        self.random()
    }
    /// The client, equal for each call.
    fn client(&self) -> Client;
    /// The source address of a call or a packet to `dest`, for source ranges; `None` if it cannot be told. Called for
    /// Services with source ranges only.
    fn source(&self, _dest: &Addr) -> Option<Addr> {
        self.client().addr()
    }
    /// True for a socket in the network namespace of the node.
    fn is_host(&self) -> bool;
    /// Place of the client.
    fn origin(&self) -> Origin {
        Origin::Node
    }
    /// True for a socket of a pod with another mode than `socket` ([`crate::PodMode`]). Called for frontends only, so
    /// that other calls cost nothing more.
    fn is_bypassed(&self) -> bool {
        false
    }
    /// The client's key in `EJECTIONS`; `None` if the results of its handshakes are not known, as those of packets.
    /// Called for Services with ejection only.
    fn ejection_key(&self, _service: u32) -> Option<EjectionKey> {
        None
    }
    /// CLOCK_MONOTONIC, ns.
    fn now(&self) -> u64;
}

/// Place of a client, as the external traffic policy knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Origin {
    /// On this node: a socket, or a pod.
    Node,
    /// Outside of this node.
    Outside,
}

/// A client, as known to affinity, hashing and source ranges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Client {
    /// The address of the sender; for a socket, the cookie of its network namespace in the first half.
    pub(super) addr: Addr,
    is_netns: bool,
}

impl Client {
    /// A socket, which has no address before it connects. All containers of a pod share the network namespace.
    #[inline(always)]
    #[must_use]
    pub const fn of_netns(cookie: u64) -> Self {
        Self { addr: Addr::from_words([cookie as u32, (cookie >> 32) as u32, 0, 0]), is_netns: true }
    }

    /// The sender of a packet.
    #[inline(always)]
    #[must_use]
    pub const fn of_addr(addr: Addr) -> Self {
        Self { addr, is_netns: false }
    }

    /// The address; `None` for a socket.
    #[inline(always)]
    #[must_use]
    pub const fn addr(&self) -> Option<Addr> {
        if self.is_netns { None } else { Some(self.addr) }
    }

    /// The client's key in `AFFINITY`.
    #[inline(always)]
    #[must_use]
    pub const fn affinity_key(&self, service: u32) -> AffinityKey {
        AffinityKey { client: self.addr, service, is_netns: self.is_netns as u32 }
    }
}

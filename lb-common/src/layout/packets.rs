//! What stands in the maps of the packet path, byte for byte.

use crate::Addr;

/// Addresses and ports of a packet, as it stands at one place of its way.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tuple {
    /// Where it comes from.
    pub src: Addr,
    /// Where it goes to.
    pub dst: Addr,
    /// Host order; 0 where the protocol has no ports.
    pub src_port: u16,
    /// Host order.
    pub dst_port: u16,
}

impl Tuple {
    /// The tuple of an answer.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port }
    }
}

/// Where on its way through a device a packet is looked up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Hook {
    /// It comes in.
    Ingress = 0,
    /// It goes out.
    Egress = 1,
}

/// Key of `FLOWS`: the packets of one direction of a flow, as they are before anything is rewritten.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowKey {
    /// Addresses and ports.
    pub tuple: Tuple,
    /// IP protocol number.
    pub proto: u8,
    /// A [`Hook`].
    pub hook: u8,
    /// Zero.
    pub _pad: u16,
}

impl FlowKey {
    /// Packets of `tuple` at `hook`.
    #[inline(always)]
    #[must_use]
    pub const fn new(tuple: Tuple, proto: u8, hook: Hook) -> Self {
        Self { tuple, proto, hook: hook as u8, _pad: 0 }
    }
}

/// Value of `FLOWS`: what becomes of such a packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Addresses and ports that it gets.
    pub to: Tuple,
    /// Id of the service port.
    pub service: u32,
    /// Id of the backend.
    pub backend: u32,
    /// See [`FlowFlags`].
    pub flags: u16,
    /// What the client's packets were, so far: [`crate::flow::Seen`]. Written by them alone.
    pub forward: u8,
    /// What the backend's packets were, so far. Written by them alone.
    pub reverse: u8,
    /// When the last packet of this direction came (CLOCK_MONOTONIC, ns).
    pub used: u64,
    /// Where its packets go next, if they are sent on ([`FlowFlags::REDIRECT`]).
    pub hop: Hop,
}

/// Where packets go next, as the routes and neighbours said when they were last asked.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hop {
    /// When they must be asked again (CLOCK_MONOTONIC, ns); 0 where the neighbour's link address is not known, and then the
    /// rest may be what was there before.
    pub until: u64,
    /// Index of the device.
    pub ifindex: u32,
    /// Link addresses as they stand in front of a packet: the neighbour's, and the device's own.
    pub ends: [u8; 12],
}

impl Hop {
    /// Nothing has been asked.
    pub const UNKNOWN: Self = Self { until: 0, ifindex: 0, ends: [0; 12] };
    /// For how long an answer holds, in ns: routes that change are followed within it. It is short against what a failing
    /// link costs, and long against the time between packets where their cost matters.
    pub const LASTS: u64 = 100_000_000;

    /// They have not been asked. Less to write than [`Hop::UNKNOWN`].
    #[inline(always)]
    pub const fn forget(&mut self) {
        self.until = 0;
    }

    /// Whether the link addresses are known.
    #[inline(always)]
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.until != 0
    }
}

/// Bits of [`Flow::flags`].
pub struct FlowFlags;

impl FlowFlags {
    /// From the backend to the client; without it, from the client to the backend.
    pub const REVERSE: u16 = 1;
    /// The packet is sent on at once: the kernel's own routing never sees it, which would refuse its source.
    pub const REDIRECT: u16 = 2;
    /// The entry of the other direction is looked up at egress; without it, at ingress.
    pub const PARTNER_EGRESS: u16 = 4;
    /// Netfilter translates it: it began before Beeline came, or goes on without it. The packet is left alone.
    pub const NETFILTER: u16 = 8;
}

/// Key of `FRAGMENTS`: a datagram that comes in fragments.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentKey {
    /// Where it comes from.
    pub src: Addr,
    /// Where it goes to.
    pub dst: Addr,
    /// The number that all of its fragments carry, as it stands in the packet.
    pub id: u32,
    /// IP protocol number.
    pub proto: u8,
    /// A [`Hook`].
    pub hook: u8,
    /// Zero.
    pub _pad: u16,
}

/// Value of `FRAGMENTS`: the ports, which only the first fragment carries.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentPorts {
    /// Host order.
    pub src_port: u16,
    /// Host order.
    pub dst_port: u16,
}

/// Value of `DEVICES`: a network device of the node. Key: its index.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Device {
    /// The source of IPv4 packets that go out here on behalf of others; unspecified where it has none.
    pub snat_v4: Addr,
    /// The same for IPv6.
    pub snat_v6: Addr,
    /// See [`DeviceFlags`].
    pub flags: u32,
    /// The largest packet that it carries, without its link header.
    pub mtu: u32,
}

/// Bits of [`Device::flags`].
pub struct DeviceFlags;

impl DeviceFlags {
    /// The other end is a pod of this node: what comes in is not from outside.
    pub const POD: u32 = 1;
    /// Packets have no Ethernet header here.
    pub const NO_ETHERNET: u32 = 2;
    /// The programs have just come here: a packet in the middle of a flow that nobody knows is netfilter's, until its
    /// connections are known.
    pub const SETTLING: u32 = 4;
    /// The programs are about to leave: what begins is left to netfilter.
    pub const LEAVING: u32 = 8;
    /// Flows that stand go on, and none begins by what comes in: the pod has chosen that somebody else translates.
    pub const OFF: u32 = 16;
    /// It has the programs by the choice of its pod, or for host routing. It keeps them for as long as it is there, since
    /// flows may stand.
    pub const CHOSEN: u32 = 32;
    /// Flows between two such devices go past the kernel's own routing and netfilter, both ways: into a pod by
    /// bpf_redirect_peer, and out of it to the neighbour that the routes name.
    pub const HOST_ROUTING: u32 = 64;

    /// Whether packets of flows are put into the pod at the other end at once.
    #[inline(always)]
    #[must_use]
    pub const fn lead_into_a_pod(flags: u32) -> bool {
        const BOTH: u32 = DeviceFlags::POD | DeviceFlags::HOST_ROUTING;
        flags & BOTH == BOTH
    }
}

/// What stands behind the length in a key of `SOURCE_RANGES`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Range {
    /// Id of the service port.
    pub service: u32,
    /// The prefix.
    pub addr: Addr,
}

/// Key of `SOURCE_RANGES`, a trie of prefixes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RangeKey {
    /// How many bits of the range count: 32 of the service port, and those of the prefix; 96 more for IPv4.
    pub prefix_len: u32,
    /// What they are.
    pub range: Range,
}

impl RangeKey {
    /// How long the key is by which an address is looked up.
    pub const EXACT: u32 = 32 + 128;

    /// Whether the prefix has the address.
    #[must_use]
    pub fn has(&self, addr: &Addr) -> bool {
        let bits = self.prefix_len.saturating_sub(32).min(128);
        let differ = u128::from_be_bytes(self.range.addr.octets) ^ u128::from_be_bytes(addr.octets);
        differ.leading_zeros() >= bits
    }
}

/// Key of `MAGLEV`: a list of a service port with the scheduler `mh`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MaglevKey {
    /// Id of the service port.
    pub service: u32,
    /// A [`crate::List`].
    pub list: u32,
}

/// Entries of a Maglev table: a prime (Eisenbud and others, NSDI 2016, 3.4: at least a hundred for each backend keeps the
/// shares within 1 %), of which a map's entry takes just less than 16 KiB: the kernel gives one a power of two.
pub const MAGLEV_LEN: usize = 4_073;

/// Value of `MAGLEV`: the backends by the hash of a flow.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Maglev {
    /// Ids of backends.
    pub backends: [u32; MAGLEV_LEN],
}

impl core::fmt::Debug for Maglev {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Maglev of {MAGLEV_LEN} entries")
    }
}

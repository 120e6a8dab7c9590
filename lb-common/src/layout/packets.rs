//! Layouts of the maps of the packet path.

use super::capacity;
use crate::{
    Addr,
    hash::{fold, splitmix},
};

/// Addresses and ports of a packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tuple {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port, host order; 0 for a protocol without ports.
    pub src_port: u16,
    /// Destination port, host order; 0 for a protocol without ports.
    pub dst_port: u16,
}

impl Tuple {
    /// The tuple of a reply.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port }
    }
}

/// The tc hook at which a packet is looked up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Hook {
    /// The packet enters by the device.
    Ingress = 0,
    /// The packet leaves by the device.
    Egress = 1,
}

/// Key of `FLOWS`: the packets of one direction of a flow, before translation.
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

/// Places of `FLOW_ENDS`, which has a mark for the node's end of each key of `FLOWS`: the destination of packets that
/// enter, the source of packets that leave. Without a mark no flow has such packets, which spares most packets the
/// look-up; a mark means nothing, since several ends share a place, and marks stay.
pub struct FlowEnds;

impl FlowEnds {
    /// The place that is not 0 once all entries of `FLOWS` have their marks, and all programs set them.
    pub const ARE_COMPLETE: u32 = capacity::FLOW_ENDS as u32 - 1;
    const HALF: u32 = Self::ARE_COMPLETE / 2;

    /// The place of packets of a tuple at a hook.
    #[inline(always)]
    #[must_use]
    pub const fn place(tuple: &Tuple, hook: Hook) -> u32 {
        match hook {
            // Without the port: replies come to thousands of ports of the node, and its pods' own packets to none.
            Hook::Ingress => splitmix(fold(&tuple.dst), 0) % Self::HALF,
            // With the port: a pod that serves clients outside is a client of others too.
            Hook::Egress => Self::HALF + splitmix(fold(&tuple.src), tuple.src_port as u32) % Self::HALF,
        }
    }
}

impl FlowKey {
    /// The place of its mark in `FLOW_ENDS`.
    #[inline(always)]
    #[must_use]
    pub const fn end(&self) -> u32 {
        let hook = if self.hook == Hook::Egress as u8 { Hook::Egress } else { Hook::Ingress };
        FlowEnds::place(&self.tuple, hook)
    }
}

/// Value of `FLOWS`: one direction of a flow.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Addresses and ports after translation.
    pub to: Tuple,
    /// Id of the service port.
    pub service: u32,
    /// Id of the backend.
    pub backend: u32,
    /// See [`FlowFlags`].
    pub flags: u16,
    /// [`crate::flow::Seen`] of the client's packets. Written by the client's direction only.
    pub forward: u8,
    /// [`crate::flow::Seen`] of the backend's packets. Written by the backend's direction only.
    pub reverse: u8,
    /// Time of the last packet of this direction (CLOCK_MONOTONIC, ns). In connections the low half is a
    /// [`crate::flow::Serial`] instead, and the time is exact to 4.3 s: see [`crate::flow::last_used`].
    pub used: u64,
    /// Next hop of redirected packets ([`FlowFlags::REDIRECT`]).
    pub hop: Hop,
}

/// Value of `OPENING`: a flow that begins.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opening {
    /// Key of the flow in `FLOWS`: the client's direction.
    pub key: FlowKey,
}

/// A next hop: the result of the last FIB lookup.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hop {
    /// End of validity (CLOCK_MONOTONIC, ns); 0 if the neighbour's link address is unknown: then the other fields may
    /// be stale.
    pub until: u64,
    /// Index of the output device.
    pub ifindex: u32,
    /// Link addresses in the order of an Ethernet header: the neighbour's, then the device's own.
    pub ends: [u8; 12],
}

impl Hop {
    /// No next hop.
    pub const UNKNOWN: Self = Self { until: 0, ifindex: 0, ends: [0; 12] };
    /// Validity of a FIB lookup, in ns: a changed route takes effect within this time. Short against the outage of a
    /// failing link, and long against the time between packets of a busy flow.
    pub const LASTS: u64 = 100_000_000;

    /// Invalidates the next hop. Writes less than [`Hop::UNKNOWN`].
    #[inline(always)]
    pub const fn forget(&mut self) {
        self.until = 0;
    }

    /// True if the link addresses are known.
    #[inline(always)]
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.until != 0
    }
}

/// Bits of [`Flow::flags`].
pub struct FlowFlags;

impl FlowFlags {
    /// Direction from the backend to the client; without it, from the client to the backend.
    pub const REVERSE: u16 = 1;
    /// Redirected to the output device: the kernel's own routing, which would refuse the source, never sees the packet.
    pub const REDIRECT: u16 = 2;
    /// The entry of the other direction is keyed by egress; without it, by ingress.
    pub const PARTNER_EGRESS: u16 = 4;
    /// Netfilter translates the flow, which began before Beeline started or continues without it. Packets pass
    /// unchanged.
    pub const NETFILTER: u16 = 8;
    /// The node began the flow, or netfilter's masquerade for a pod, from a port that is a frontend too. Packets pass
    /// unchanged: without the entry, replies would begin flows of the Service.
    pub const OWN: u16 = 16;
    /// Flows whose packets pass unchanged.
    pub const PASSED: u16 = Self::NETFILTER | Self::OWN;
    /// A [`SlowPath`] in these bits, or none.
    pub const SLOW_PATH: u16 = 0x700;
}

/// Reason for the slow path: the kernel itself forwards the packets of a flow, since a redirect would lose them, or
/// bypass what applies to them. Netfilter masquerades such a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum SlowPath {
    /// A device without an Ethernet header, such as a tunnel, on either side: a redirect to a neighbour has no link
    /// address there.
    NoEthernet = 1,
    /// IPsec policies, which a redirect bypasses.
    Ipsec = 2,
    /// Rules that choose routes by marks, which netfilter sets, or by traffic classes: a FIB lookup does not know them.
    Marks = 3,
    /// A route that encapsulates, such as MPLS or SRv6.
    Encap = 4,
    /// An IPv4 packet without DF above the MTU, which the kernel fragments. A packet, not a flow.
    Fragmented = 5,
    /// The flow would keep the client's address, and the node always masquerades: see [`DeviceFlags::MASQUERADE`].
    Policy = 6,
}

impl SlowPath {
    /// The bits in [`Flow::flags`].
    #[inline(always)]
    #[must_use]
    pub const fn flags(self) -> u16 {
        (self as u16) << 8
    }

    /// The reason for flows that leave by a device with these [`DeviceFlags`].
    #[inline(always)]
    #[must_use]
    pub const fn of_device(flags: u32) -> Option<Self> {
        match flags & DeviceFlags::SLOW_PATH {
            0 => None,
            flags if flags & DeviceFlags::NO_ETHERNET != 0 => Some(Self::NoEthernet),
            flags if flags & DeviceFlags::IPSEC != 0 => Some(Self::Ipsec),
            _ => Some(Self::Marks),
        }
    }
}

/// Mark of packets that netfilter is to masquerade, between the programs and the table `beeline` of nf_tables, which
/// replaces it by a label of the connection before any other rule sees it.
pub const MASQUERADE_MARK: u32 = 0x1000;

/// Key of `FRAGMENTS`: a fragmented datagram.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Identification of all fragments of the datagram, in memory order.
    pub id: u32,
    /// IP protocol number.
    pub proto: u8,
    /// A [`Hook`].
    pub hook: u8,
    /// Zero.
    pub _pad: u16,
}

/// Value of `FRAGMENTS`: the ports, carried by the first fragment only.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentPorts {
    /// Source port, host order.
    pub src_port: u16,
    /// Destination port, host order.
    pub dst_port: u16,
}

/// Key of `EARLY_FRAGMENTS`: a later fragment that came before the first.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EarlyKey {
    /// The datagram.
    pub datagram: FragmentKey,
    /// Number of the fragment, in the order of arrival.
    pub number: u32,
}

/// Value of `EARLY_FRAGMENTS`: the packet, without its link header.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EarlyFragment {
    /// Time of arrival (CLOCK_MONOTONIC, ns).
    pub at: u64,
    /// Length in octets.
    pub len: u32,
    /// Zero.
    pub _pad: u32,
    /// The octets; behind the length undefined.
    pub octets: [u8; Self::MOST],
}

impl EarlyFragment {
    /// Octets of the largest fragment that is kept.
    pub const MOST: usize = 2048;
    /// Time within which the first fragment must come, in ns.
    pub const LASTS: u64 = 1_000_000_000;
}

/// Value of `DEVICES`: a network device of the node. Key: the index of the device.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Device {
    /// Masquerade address of IPv4 packets that leave here; unspecified without one.
    pub snat_v4: Addr,
    /// Masquerade address of IPv6 packets that leave here; unspecified without one.
    pub snat_v6: Addr,
    /// See [`DeviceFlags`].
    pub flags: u32,
    /// MTU: octets of the largest packet, without the link header; 0 if unknown.
    pub mtu: u32,
}

/// Value of `PACKET_LINKS` for a link that gets no programs: the agent has decided so. Otherwise the time of the first
/// packet.
pub const GETS_NO_PROGRAMS: u64 = 0;

/// Bits of [`Device::flags`].
pub struct DeviceFlags;

impl DeviceFlags {
    /// The peer of the device is in a pod of this node: clients are not outside of the node.
    pub const POD: u32 = 1;
    /// Packets have no Ethernet header.
    pub const NO_ETHERNET: u32 = 2;
    /// The programs have just been attached: a mid-flow packet of an unknown flow belongs to netfilter, until the agent
    /// has copied netfilter's connections.
    pub const SETTLING: u32 = 4;
    /// The programs are about to be detached: new flows are left to netfilter.
    pub const LEAVING: u32 = 8;
    /// Known flows continue, and incoming packets create none: the pod has mode `off`.
    pub const OFF: u32 = 16;
    /// The programs are attached for the mode of the pod, or for host routing. They stay attached for the life of the
    /// device, since flows may remain.
    pub const CHOSEN: u32 = 32;
    /// Flows between two such devices bypass the kernel's own routing and netfilter in both directions: into a pod by
    /// bpf_redirect_peer, out of it to the neighbour of the FIB lookup.
    pub const HOST_ROUTING: u32 = 64;
    /// The device has no programs: packets that enter by it are not translated. Flows that leave by it keep the
    /// client's address, since a reply to an address of this node would end here.
    pub const NO_PROGRAMS: u32 = 128;
    /// IPsec policies may apply to packets that leave here.
    pub const IPSEC: u32 = 256;
    /// Rules choose routes by marks or traffic classes, so that a FIB lookup may not know the route of packets that
    /// leave here.
    pub const MARKS: u32 = 512;
    /// Packets may begin with the outer headers of a tunnel, as those of gre and sit do.
    pub const OUTER_HEADERS: u32 = 1024;
    /// Clients that enter here are masqueraded, whatever the backend, unless the traffic policy is Local.
    pub const MASQUERADE: u32 = 2048;
    /// Rules choose routes by sources: a reply that leaves here with the backend's address as its source may have to
    /// leave by another device with the address that the client dialled.
    pub const SOURCE_RULES: u32 = 4096;
    /// A bridge: netfilter may have seen the packets that enter already, at its ports (br_netfilter).
    pub const BRIDGE: u32 = 8192;
    /// Packets that leave here have source addresses of several networks: the kernel's routes choose that of each
    /// (Linux 6.7), and the entry's is for older kernels.
    pub const SEVERAL_SOURCES: u32 = 16384;
    /// Devices by which flows leave on the slow path: see [`SlowPath`].
    pub const SLOW_PATH: u32 = Self::NO_ETHERNET | Self::IPSEC | Self::MARKS;

    /// True if packets of flows are redirected into the pod behind the device (bpf_redirect_peer).
    #[inline(always)]
    #[must_use]
    pub const fn lead_into_a_pod(flags: u32) -> bool {
        const BOTH: u32 = DeviceFlags::POD | DeviceFlags::HOST_ROUTING;
        flags & BOTH == BOTH
    }
}

/// Data of a key of `SOURCE_RANGES`.
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
    /// Significant bits of the range: 32 of the service port, and those of the prefix; 96 more for IPv4.
    pub prefix_len: u32,
    /// The bits.
    pub range: Range,
}

impl RangeKey {
    /// Prefix length of a look-up.
    pub const EXACT: u32 = 32 + 128;

    /// True if the prefix contains the address.
    #[must_use]
    pub fn has(&self, addr: &Addr) -> bool {
        let bits = self.prefix_len.saturating_sub(32).min(128);
        let differ = u128::from_be_bytes(self.range.addr.octets) ^ u128::from_be_bytes(addr.octets);
        differ.leading_zeros() >= bits
    }
}

/// Key of `MAGLEV`: a backend list of a service port with the scheduler `mh`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MaglevKey {
    /// Id of the service port.
    pub service: u32,
    /// A [`crate::List`].
    pub list: u32,
}

/// Entries of a Maglev table: a prime (Eisenbud and others, NSDI 2016, 3.4: at least a hundred entries for each backend
/// keep the shares within 1 %). The entry of the map takes just less than 16 KiB: the kernel allocates a power of two.
pub const MAGLEV_LEN: usize = 4_073;

/// Value of `MAGLEV`: the Maglev table, indexed by the hash of a flow.
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

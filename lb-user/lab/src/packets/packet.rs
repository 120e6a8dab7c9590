//! Packets as they are on the wire: etherparse makes them, and this file makes the SCTP part.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpAuthHeader, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header,
    Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, Ipv6RoutingExtensions, PacketBuilder,
    SingleVlanHeader, TcpHeader, VlanId,
};
use lb_common::Proto;

/// A frame on the wire.
pub trait RawFrame {
    /// Octets of the frame.
    fn octets(&self) -> Vec<u8>;
}

impl RawFrame for Vec<u8> {
    fn octets(&self) -> Vec<u8> {
        self.clone()
    }
}

/// The header in front of the IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LinkHeader {
    /// Last octets of the link addresses of both ends.
    Ethernet {
        from: u8,
        to: u8,
        vlan: Option<u16>,
    },
    None,
}

/// From the gateway to the node.
const IN: LinkHeader = LinkHeader::Ethernet { from: 0xfe, to: 1, vlan: None };

/// The part of a datagram that a packet carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment.
    First,
    /// A later fragment.
    Later,
}

/// A packet of TCP, UDP or SCTP.
#[derive(Clone, Debug)]
pub struct PacketSpec {
    /// Source.
    pub from: SocketAddr,
    /// Destination.
    pub to: SocketAddr,
    /// Protocol.
    pub proto: Proto,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Sequence number of TCP, or verification tag of SCTP.
    pub seq: u32,
    /// Acknowledgement number of TCP.
    pub ack: u32,
    /// Octets behind the transport header.
    pub payload: Vec<u8>,
    link: LinkHeader,
    /// Letters of TCP's flags, as in `SA`.
    flags: &'static str,
    window: u16,
    /// The first chunk of SCTP.
    chunk: u8,
    has_sum: bool,
    is_unfinished: bool,
    part: Part,
    id: u32,
    /// IP options, or every IPv6 extension header.
    has_extras: bool,
}

impl PacketSpec {
    fn new(proto: Proto, from: &str, to: &str) -> Self {
        let addr = |text: &str| text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        Self {
            from: addr(from),
            to: addr(to),
            proto,
            ttl: 60,
            seq: 1000,
            ack: 2000,
            payload: b"a few octets".to_vec(),
            link: IN,
            flags: "A",
            window: 4096,
            chunk: 0,
            has_sum: true,
            is_unfinished: false,
            part: Part::Whole,
            id: 0,
            has_extras: false,
        }
    }

    /// A segment of an open connection.
    pub fn tcp(from: &str, to: &str) -> Self {
        Self::new(Proto::Tcp, from, to)
    }

    /// The first segment of a connection.
    pub fn syn(from: &str, to: &str) -> Self {
        Self { payload: Vec::new(), ..Self::tcp(from, to).flags("S") }
    }

    /// A UDP datagram.
    pub fn udp(from: &str, to: &str) -> Self {
        Self::new(Proto::Udp, from, to)
    }

    /// The first packet of an association of SCTP.
    pub fn sctp_init(from: &str, to: &str) -> Self {
        Self::new(Proto::Sctp, from, to).chunk(1)
    }

    /// Sets TCP's flags by their letters, as in `SA`.
    pub fn flags(self, flags: &'static str) -> Self {
        Self { flags, ..self }
    }

    /// Sets the type of SCTP's first chunk.
    pub fn chunk(self, chunk: u8) -> Self {
        Self { chunk, ..self }
    }

    /// Sets the sequence number of TCP, or the verification tag of SCTP.
    pub fn numbered(self, seq: u32) -> Self {
        Self { seq, ..self }
    }

    /// Sets TTL or hop limit.
    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// Returns the packet behind a router: with TTL or hop limit less by one.
    pub fn routed(self) -> Self {
        let ttl = self.ttl - 1;
        self.ttl(ttl)
    }

    /// Leaves the checksum of UDP or SCTP at 0.
    pub fn without_sum(self) -> Self {
        Self { has_sum: false, ..self }
    }

    /// Sets the payload so that the IP packet has `len` octets.
    pub fn sized(mut self, len: usize) -> Self {
        self.payload.clear();
        let link = self.octets().len() - self.ip().len();
        let headers = self.octets().len() - link;
        self.payload = vec![0x5a; len - headers];
        self
    }

    /// Makes it a part of a datagram with this identification.
    pub fn part(self, part: Part, id: u32) -> Self {
        Self { part, id, ..self }
    }

    /// Adds IP options, or every IPv6 extension header.
    pub fn with_extras(self) -> Self {
        Self { has_extras: true, ..self }
    }

    /// Adds a VLAN tag.
    pub fn vlan(self, vlan: u16) -> Self {
        Self { link: LinkHeader::Ethernet { from: 0xfe, to: 1, vlan: Some(vlan) }, ..self }
    }

    /// Removes the Ethernet header, as on an L3 device.
    pub fn bare(self) -> Self {
        Self { link: LinkHeader::None, ..self }
    }

    /// The packet after translation of its addresses and ports.
    pub fn becomes(&self, from: &str, to: &str) -> Self {
        let new = Self::new(self.proto, from, to);
        Self { from: new.from, to: new.to, ..self.clone() }
    }

    /// The packet with both ends exchanged.
    fn back(&self) -> Self {
        Self { from: self.to, to: self.from, ..self.clone() }
    }

    /// The reset that answers it (RFC 9293, 3.10.7.1).
    pub fn reset(&self) -> Self {
        let (flags, seq, ack) = if self.flags.contains('A') { ("R", self.ack, 0) } else { ("RA", 0, self.next_seq()) };
        let empty =
            Self { ttl: 64, payload: Vec::new(), window: 0, has_extras: false, is_unfinished: false, ..self.back() };
        Self { flags, seq, ack, ..empty }.turned()
    }

    /// The reset by which its sender ends the connection next.
    pub fn aborted(&self) -> Self {
        Self { flags: "R", seq: self.next_seq(), payload: Vec::new(), ..self.clone() }
    }

    /// The sequence number after the last octet.
    pub fn next_seq(&self) -> u32 {
        let has = |flag| self.flags.contains(flag);
        let taken = self.payload.len() + usize::from(has('S')) + usize::from(has('F'));
        self.seq.wrapping_add(u32::try_from(taken).expect("short"))
    }

    /// The checksum of a whole UDP datagram without extras.
    pub fn sum(&self) -> u16 {
        let (ip, (start, offset)) = (self.ip(), self.checksum_at());
        u16::from_be_bytes([ip[start + offset], ip[start + offset + 1]])
    }

    /// With Ethernet's addresses exchanged.
    fn turned(self) -> Self {
        Self { link: self.link.turned(), ..self }
    }

    /// From the node to the neighbour with this last octet of the link address.
    pub fn out_to(self, neighbour: u8) -> Self {
        Self { link: LinkHeader::Ethernet { from: 1, to: neighbour, vlan: None }, ..self }
    }

    /// Leaves the checksum of TCP or UDP to a device: only the sum of the pseudo header is there.
    pub fn unfinished(self) -> Self {
        Self { is_unfinished: true, ..self }
    }

    /// Offset of the transport header in a packet without extras, and of the checksum from there.
    pub(crate) fn checksum_at(&self) -> (usize, usize) {
        (if self.from.is_ipv4() { 20 } else { 40 }, if self.proto == Proto::Tcp { 16 } else { 6 })
    }

    fn unfinish(&self, ip: &mut [u8]) {
        let (start, offset) = self.checksum_at();
        let len = u16::try_from(ip.len() - start).expect("short").to_be_bytes();
        let addrs = if start == 20 { &ip[12..20] } else { &ip[8..40] };
        let words = [addrs, &[0, self.proto as u8], &len].concat();
        let sum: u32 = words.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("few words");
        ip[start + offset..start + offset + 2].copy_from_slice(&folded.to_be_bytes());
    }

    /// The segment of `len` octets that begins at `at` in the payload.
    pub fn segment(&self, at: usize, len: usize) -> Self {
        let end = self.payload.len().min(at + len);
        let id = self.id + if self.from.is_ipv4() { u32::try_from(at / len).expect("few") } else { 0 };
        let seq = self.seq + u32::try_from(at).expect("short");
        Self { payload: self.payload[at..end].to_vec(), seq, id, ..self.clone() }
    }

    /// The octets from the IP header on.
    pub fn ip(&self) -> Vec<u8> {
        let ip = headers(self.from.ip(), self.to.ip(), self.ttl, self.part, self.id, self.has_extras);
        let mut bytes = Vec::new();
        if self.part == Part::Later {
            PacketBuilder::ip(ip).write(&mut bytes, IpNumber(self.proto as u8), &self.payload).expect("a packet");
            return bytes;
        }
        match self.proto {
            Proto::Tcp => {
                PacketBuilder::ip(ip).tcp_header(self.tcp_header()).write(&mut bytes, &self.payload).expect("a packet");
            }
            Proto::Udp => {
                let udp = PacketBuilder::ip(ip).udp(self.from.port(), self.to.port());
                udp.write(&mut bytes, &self.payload).expect("a packet");
                if !self.has_sum {
                    let end = bytes.len() - self.payload.len();
                    bytes[end - 2..end].fill(0);
                }
            }
            Proto::Sctp => {
                PacketBuilder::ip(ip).write(&mut bytes, IpNumber(132), &self.sctp()).expect("a packet");
            }
        }
        if self.is_unfinished {
            self.unfinish(&mut bytes);
        }
        bytes
    }

    fn tcp_header(&self) -> TcpHeader {
        let mut tcp = TcpHeader::new(self.from.port(), self.to.port(), self.seq, self.window);
        let has = |flag| self.flags.contains(flag);
        (tcp.syn, tcp.ack, tcp.fin, tcp.rst) = (has('S'), has('A'), has('F'), has('R'));
        tcp.acknowledgment_number = if has('A') || !has('S') { self.ack } else { 0 };
        tcp
    }

    fn sctp(&self) -> Vec<u8> {
        let (from, to) = (self.from.port().to_be_bytes(), self.to.port().to_be_bytes());
        let mut bytes = [from, to].concat();
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend([0, 0, 0, 0, self.chunk, 0, 0, 4]);
        bytes.extend(&self.payload);
        // 0 where a device will write it.
        if self.has_sum {
            let sum = crc32c(&bytes).to_le_bytes();
            bytes[8..12].copy_from_slice(&sum);
        }
        bytes
    }
}

impl RawFrame for PacketSpec {
    fn octets(&self) -> Vec<u8> {
        framed(self.link, self.ip())
    }
}

/// The reason of an ICMP error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpReason {
    /// No socket at the port.
    PortUnreachable,
    /// No such host.
    HostUnreachable,
    /// No route to the host.
    NoRoute,
    /// TTL or hop limit exceeded.
    TimeExceeded,
    /// Packet too big; the MTU.
    TooBig(u16),
}

/// An ICMP error.
#[derive(Clone, Debug)]
pub struct IcmpErrorSpec {
    /// Source.
    pub from: IpAddr,
    /// Destination.
    pub to: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    reason: IcmpReason,
    about: PacketSpec,
    keep: usize,
    link: LinkHeader,
}

impl IcmpErrorSpec {
    /// An error from a router or the destination to the sender of `about`, with `keep` octets of it.
    pub fn new(from: &str, reason: IcmpReason, about: &PacketSpec, keep: usize) -> Self {
        let from = from.parse().expect("an address");
        let link = IN;
        Self { from, to: about.from.ip(), ttl: 60, reason, about: about.clone(), keep, link }
    }

    /// The error of a node, in the name of the address that `about` was sent to.
    pub fn answer(reason: IcmpReason, about: &PacketSpec) -> Self {
        let keep = if about.to.is_ipv4() { 28 } else { 48 };
        let link = about.link.turned();
        Self { link, ttl: 64, ..Self::new(&about.to.ip().to_string(), reason, about, keep) }
    }

    /// The error after translation of its ends and of the packet in it.
    pub fn becomes(&self, from: &str, to: &str, about: &PacketSpec) -> Self {
        let addr = |text: &str| text.parse().expect("an address");
        Self { from: addr(from), to: addr(to), about: about.clone(), ..self.clone() }
    }

    /// Returns the packet behind a router: with TTL or hop limit less by one.
    pub fn routed(self) -> Self {
        Self { ttl: self.ttl - 1, ..self }
    }
}

impl RawFrame for IcmpErrorSpec {
    fn octets(&self) -> Vec<u8> {
        let (v4, v6, mtu) = match self.reason {
            IcmpReason::PortUnreachable => ((3, 3), (1, 4), 0),
            IcmpReason::HostUnreachable => ((3, 1), (1, 3), 0),
            IcmpReason::NoRoute => ((3, 0), (1, 0), 0),
            IcmpReason::TimeExceeded => ((11, 0), (3, 0), 0),
            IcmpReason::TooBig(mtu) => ((3, 4), (2, 0), mtu),
        };
        let [high, low] = mtu.to_be_bytes();
        let mut about = self.about.ip();
        about.truncate(self.keep);
        let ip = headers(self.from, self.to, self.ttl, Part::Whole, 0, false);
        let mut bytes = Vec::new();
        let rest = [0, 0, high, low];
        let step = PacketBuilder::ip(ip);
        if self.from.is_ipv4() {
            step.icmpv4_raw(v4.0, v4.1, rest).write(&mut bytes, &about).expect("a packet");
        } else {
            step.icmpv6_raw(v6.0, v6.1, rest).write(&mut bytes, &about).expect("a packet");
        }
        framed(self.link, bytes)
    }
}

impl LinkHeader {
    fn turned(self) -> Self {
        match self {
            Self::Ethernet { from, to, vlan } => Self::Ethernet { from: to, to: from, vlan },
            Self::None => Self::None,
        }
    }
}

fn framed(link: LinkHeader, ip: Vec<u8>) -> Vec<u8> {
    let LinkHeader::Ethernet { from, to, vlan } = link else {
        return ip;
    };
    let ends = [[2, 0, 0, 0, 0, from], [2, 0, 0, 0, 0, to]];
    let inner = EtherType(if ip[0] >> 4 == 4 { 0x0800 } else { 0x86dd });
    let outer = if vlan.is_some() { EtherType::VLAN_TAGGED_FRAME } else { inner };
    let mut bytes = Ethernet2Header { source: ends[0], destination: ends[1], ether_type: outer }.to_bytes().to_vec();
    if let Some(vlan) = vlan {
        let vlan_id = VlanId::try_new(vlan).expect("12 bits");
        bytes.extend(SingleVlanHeader { vlan_id, ether_type: inner, ..Default::default() }.to_bytes());
    }
    bytes.extend(ip);
    bytes
}

fn headers(from: IpAddr, to: IpAddr, ttl: u8, part: Part, id: u32, has_extras: bool) -> IpHeaders {
    let offset = IpFragOffset::try_new(if part == Part::Later { 185 } else { 0 }).expect("small");
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = Ipv4Header::new(0, ttl, IpNumber(0), from.octets(), to.octets()).expect("short");
            ip.identification = u16::try_from(id).expect("small");
            ip.dont_fragment = part == Part::Whole;
            ip.more_fragments = part == Part::First;
            ip.fragment_offset = offset;
            if has_extras {
                ip.options = [1; 12].into();
            }
            IpHeaders::Ipv4(ip, Ipv4Extensions::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let (source, destination) = (from.octets(), to.octets());
            let ip = Ipv6Header { hop_limit: ttl, source, destination, ..Default::default() };
            let mut extensions = if has_extras { every_extension(part) } else { Ipv6Extensions::default() };
            if part != Part::Whole {
                extensions.fragment = Some(Ipv6FragmentHeader::new(IpNumber(0), offset, part == Part::First, id));
            }
            IpHeaders::Ipv6(ip, extensions)
        }
        mixed => panic!("two families: {mixed:?}"),
    }
}

fn every_extension(part: Part) -> Ipv6Extensions {
    let raw = |len: usize| Ipv6RawExtHeader::new_raw(IpNumber(0), &vec![0; len]).expect("by eight");
    // Routers read the headers in front of the fragment header; the others belong to the datagram.
    let whole = part == Part::Whole;
    Ipv6Extensions {
        hop_by_hop_options: Some(raw(6)),
        destination_options: Some(raw(14)),
        routing: Some(Ipv6RoutingExtensions { routing: raw(22), final_destination_options: whole.then(|| raw(6)) }),
        fragment: None,
        auth: whole.then(|| IpAuthHeader::new(IpNumber(0), 7, 8, &[9; 12]).expect("by four")),
    }
}

/// CRC32c, bit by bit (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let octet = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 0 { 0 } else { POLYNOMIAL })
    };
    !bytes.iter().fold(!0, octet)
}

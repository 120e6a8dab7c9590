//! ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861) for addresses that a node announces: questions become
//! their answers in place, and claims are read. Builds announcements too. Ethernet only.

use super::{Fragment, Packet, Skb, SkbSum, WriteError, number, sum};
use crate::{Addr, LinkAddr};

/// Octets of an Ethernet header.
const ETHERNET: u32 = 14;
/// Octets of an ARP packet with its link header.
pub const ARP_FRAME: usize = 14 + 28;
/// Octets of a neighbour advertisement with the link address, and its headers.
pub const ADVERTISEMENT_FRAME: usize = 14 + 40 + ADVERTISEMENT;
/// Octets of a neighbour advertisement with the link address, from the ICMP header on.
const ADVERTISEMENT: usize = 32;
/// Most units of eight octets of a solicitation that is answered; the kernel's own have three or four.
const MAX_UNITS: u32 = 8;

const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// All nodes of the link, ff02::1.
const ALL_NODES: Addr = Addr { octets: [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] };
/// Link address of [`ALL_NODES`] (RFC 2464, 7).
const ALL_NODES_LINK: LinkAddr = LinkAddr::new([0x33, 0x33, 0, 0, 0, 1]);
const BROADCAST: LinkAddr = LinkAddr::new([0xff; 6]);

/// True if both are one address. By words: the bpf target turns a comparison of octets into a call of memcmp.
#[inline(always)]
#[must_use]
pub const fn is_same_link(a: &LinkAddr, b: &LinkAddr) -> bool {
    let ([a0, a1, a2, a3, a4, a5], [b0, b1, b2, b3, b4, b5]) = (a.octets, b.octets);
    let head = u32::from_ne_bytes([a0, a1, a2, a3]) ^ u32::from_ne_bytes([b0, b1, b2, b3]);
    let tail = u32::from_ne_bytes([a4, a5, 0, 0]) ^ u32::from_ne_bytes([b4, b5, 0, 0]);
    head | tail == 0
}

/// Writes the header of an Ethernet frame, but for its type.
#[inline(always)]
fn put_ethernet(skb: &mut impl Skb, to: &LinkAddr, from: &LinkAddr) -> Result<(), WriteError> {
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (to.octets, from.octets);
    skb.store(0, &[a, b, c, d, e, f, g, h, i, j, k, l], SkbSum::Keep)
}

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arp {
    /// True for a request; false for a reply.
    pub is_request: bool,
    /// Link address of the sender.
    pub link: LinkAddr,
    /// Address of the sender, in memory order; 0 in a probe (RFC 5227, 2.1.1).
    pub sender: u32,
    /// Address that the packet is about, in memory order.
    pub target: u32,
}

/// Parses an ARP packet behind an Ethernet header; `None` for others, and for a sender that is no single host.
#[inline(always)]
pub fn parse_arp(skb: &impl Skb) -> Option<Arp> {
    let [kind, operation, w2, w3, w4, _, target]: [u32; 7] = skb.words(ETHERNET)?;
    let ([_, _, _, operation], [a, b, c, d], [e, f, s0, s1], [s2, s3, ..]) =
        (operation_of(operation)?, w2.to_ne_bytes(), w3.to_ne_bytes(), w4.to_ne_bytes());
    // Ethernet and IPv4.
    if kind != u32::from_ne_bytes([0, 1, 8, 0]) || a & 1 != 0 {
        return None;
    }
    Some(Arp {
        is_request: operation == ARP_REQUEST,
        link: LinkAddr::new([a, b, c, d, e, f]),
        sender: u32::from_ne_bytes([s0, s1, s2, s3]),
        target,
    })
}

/// Lengths of addresses, and the operation, if all of them are as they should be.
#[inline(always)]
const fn operation_of(word: u32) -> Option<[u8; 4]> {
    let octets = word.to_ne_bytes();
    match octets {
        [6, 4, 0, ARP_REQUEST | ARP_REPLY] => Some(octets),
        _ => None,
    }
}

/// Makes an ARP request its reply: the target is at `own`.
///
/// # Errors
/// If a write fails; the packet is inconsistent then, and must be dropped.
#[inline(always)]
pub fn answer_arp(skb: &mut impl Skb, arp: &Arp, own: &LinkAddr) -> Result<(), WriteError> {
    put_ethernet(skb, &arp.link, own)?;
    skb.put_words(ETHERNET, &arp_words(ARP_REPLY, [*own, arp.link], [arp.target, arp.sender]), SkbSum::Keep)
}

/// An ARP packet. `links` and `addresses` are those of sender and target.
#[inline(always)]
const fn arp_words(operation: u8, links: [LinkAddr; 2], addresses: [u32; 2]) -> [u32; 7] {
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (links[0].octets, links[1].octets);
    let [s0, s1, s2, s3] = addresses[0].to_ne_bytes();
    [
        u32::from_ne_bytes([0, 1, 8, 0]),
        u32::from_ne_bytes([6, 4, 0, operation]),
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, s0, s1]),
        u32::from_ne_bytes([s2, s3, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        addresses[1],
    ]
}

/// A message of neighbour discovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeighbourMessage {
    /// True for a solicitation; false for an advertisement.
    pub is_solicitation: bool,
    /// Address that the message is about.
    pub target: Addr,
}

/// Parses a message of neighbour discovery; `None` for other packets. See [`is_valid`].
#[inline(always)]
pub fn parse_neighbour_message(skb: &impl Skb, packet: &Packet) -> Option<NeighbourMessage> {
    const SOLICITATION: [u8; 2] = [135, 0];
    const ADVERTISEMENT: [u8; 2] = [136, 0];
    // A router has not forwarded the message, and it is whole (RFC 4861, 7.1; RFC 6980).
    if !packet.v6 || packet.proto != number::ICMPV6 || packet.ttl != 255 || packet.l4 != packet.l3 + 40 {
        return None;
    }
    if packet.fragment as u8 != Fragment::Whole as u8 {
        return None;
    }
    let [first, _, a, b, c, d]: [u32; 6] = skb.words(packet.l4)?;
    let [kind, code, ..] = first.to_ne_bytes();
    let is_solicitation = match [kind, code] {
        SOLICITATION => true,
        ADVERTISEMENT => false,
        _ => return None,
    };
    Some(NeighbourMessage { is_solicitation, target: Addr::from_words([a, b, c, d]) })
}

/// True if the message has a right length and checksum, and goes where a message of its sender may go (RFC 4861, 7.1.1
/// and 7.1.2).
#[inline(always)]
pub fn is_valid(skb: &impl Skb, packet: &Packet, message: &NeighbourMessage) -> bool {
    let len = packet.len.wrapping_sub(40);
    let units = len / 8;
    if !len.is_multiple_of(8) || !(3..=MAX_UNITS).contains(&units) {
        return false;
    }
    let mut total = pseudo_header(&packet.tuple.src, &packet.tuple.dst, len as u8);
    let mut unit = 0;
    while unit < MAX_UNITS {
        if unit >= units {
            break;
        }
        let Some([first, second]) = skb.words::<2>(packet.l4 + 8 * unit) else {
            return false;
        };
        total = sum::add(total, sum::add(first, second));
        unit += 1;
    }
    if sum::fold(total) != 0xffff {
        return false;
    }
    if !message.is_solicitation || !packet.tuple.src.is_unspecified() {
        return true;
    }
    // A probe for duplicates goes to the group of its target, without a link address.
    let has_link = units > 3 && skb.words::<1>(packet.l4 + 24).is_none_or(|[option]| option.to_ne_bytes()[0] == 1);
    let ([a, b, c, d], [_, _, _, target]) = (packet.tuple.dst.words(), message.target.words());
    let [_, t1, t2, t3] = target.to_ne_bytes();
    let is_group = (a ^ u32::from_ne_bytes([0xff, 2, 0, 0])) | b | (c ^ u32::from_ne_bytes([0, 0, 0, 1])) == 0
        && d == u32::from_ne_bytes([0xff, t1, t2, t3]);
    is_group && !has_link
}

/// The sum of the pseudo header of an ICMPv6 message.
#[inline(always)]
const fn pseudo_header(src: &Addr, dst: &Addr, len: u8) -> u32 {
    let ([a, b, c, d], [e, f, g, h]) = (src.words(), dst.words());
    let rest = sum::add(u32::from_ne_bytes([0, 0, 0, len]), u32::from_ne_bytes([0, 0, 0, number::ICMPV6]));
    let src = sum::add(sum::add(a, b), sum::add(c, d));
    let dst = sum::add(sum::add(e, f), sum::add(g, h));
    sum::add(sum::add(src, dst), rest)
}

/// The link address in the Ethernet header's source.
#[inline(always)]
pub fn sender_link(skb: &impl Skb) -> Option<LinkAddr> {
    let [_, _, _, _, _, _, a, b, c, d, e, f] = skb.load(0)?;
    Some(LinkAddr::new([a, b, c, d, e, f]))
}

/// The link address that an advertisement tells for its target: that of its first option, else the sender's.
#[inline(always)]
pub fn advertised_link(skb: &impl Skb, packet: &Packet) -> Option<LinkAddr> {
    if packet.len >= 40 + ADVERTISEMENT as u32
        && let Some([first, second]) = skb.words::<2>(packet.l4 + 24)
        && let ([2, 1, a, b], [c, d, e, f]) = (first.to_ne_bytes(), second.to_ne_bytes())
    {
        return Some(LinkAddr::new([a, b, c, d, e, f]));
    }
    sender_link(skb)
}

/// Makes a solicitation its advertisement: the target is at `own`. `asker` is the [`sender_link`], and the frame must
/// have [`ADVERTISEMENT_FRAME`] octets by now.
///
/// # Errors
/// If a write fails; the packet is inconsistent then, and must be dropped.
#[inline(always)]
pub fn answer_solicitation(
    skb: &mut impl Skb,
    asker: &Addr,
    link: &LinkAddr,
    target: &Addr,
    own: &LinkAddr,
) -> Result<(), WriteError> {
    // A probe for duplicates has no sender: all nodes get the answer (RFC 4861, 7.2.4).
    if asker.is_unspecified() {
        return put_advertisement(skb, [&ALL_NODES_LINK, own], [&ALL_NODES, target], OVERRIDE);
    }
    put_advertisement(skb, [link, own], [asker, target], SOLICITED | OVERRIDE)
}

/// Writes an advertisement of the target to a receiver, but for the EtherType. `links` are the link addresses of
/// receiver and target.
#[inline(always)]
fn put_advertisement(
    skb: &mut impl Skb,
    links: [&LinkAddr; 2],
    [to, target]: [&Addr; 2],
    flags: u8,
) -> Result<(), WriteError> {
    put_ethernet(skb, links[0], links[1])?;
    skb.put_words(ETHERNET, &advertisement_header(to, target), SkbSum::Update)?;
    skb.put_words(ETHERNET + 40, &advertisement(to, target, links[1], flags), SkbSum::Update)
}

/// The IPv6 header of an advertisement.
#[inline(always)]
const fn advertisement_header(to: &Addr, target: &Addr) -> [u32; 10] {
    let ([a, b, c, d], [e, f, g, h]) = (target.words(), to.words());
    let next = u32::from_ne_bytes([0, ADVERTISEMENT as u8, number::ICMPV6, 255]);
    [u32::from_ne_bytes([0x60, 0, 0, 0]), next, a, b, c, d, e, f, g, h]
}

/// An advertisement from the ICMP header on: the target is at `own`.
#[inline(always)]
const fn advertisement(to: &Addr, target: &Addr, own: &LinkAddr, flags: u8) -> [u32; 8] {
    let ([a, b, c, d], [l0, l1, l2, l3, l4, l5]) = (target.words(), own.octets);
    let (flags, option) = (u32::from_ne_bytes([flags, 0, 0, 0]), u32::from_ne_bytes([2, 1, l0, l1]));
    let link = u32::from_ne_bytes([l2, l3, l4, l5]);
    let address = sum::add(sum::add(a, b), sum::add(c, d));
    let rest = sum::add(sum::add(u32::from_ne_bytes([136, 0, 0, 0]), flags), sum::add(option, link));
    let total = sum::add(pseudo_header(target, to, ADVERTISEMENT as u8), sum::add(address, rest));
    let [s0, s1] = (!sum::fold(total)).to_ne_bytes();
    [u32::from_ne_bytes([136, 0, s0, s1]), flags, a, b, c, d, option, link]
}

/// Kinds of announcements by ARP: some hosts take one, some the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gratuitous {
    /// A request for the own address (RFC 5227, 3).
    Request,
    /// A reply without a request.
    Reply,
}

/// The frame by which the owner of an IPv4 address, in memory order, announces it.
#[must_use]
pub fn gratuitous_arp(kind: Gratuitous, address: u32, own: LinkAddr) -> [u8; ARP_FRAME] {
    let (operation, target) = match kind {
        Gratuitous::Request => (ARP_REQUEST, LinkAddr::default()),
        Gratuitous::Reply => (ARP_REPLY, own),
    };
    frame(BROADCAST, own, [8, 6], arp_words(operation, [own, target], [address; 2]).into_iter())
}

/// The frame by which the owner of an IPv6 address announces it (RFC 4861, 7.2.6).
#[must_use]
pub fn unsolicited_advertisement(address: &Addr, own: LinkAddr) -> [u8; ADVERTISEMENT_FRAME] {
    let header = advertisement_header(&ALL_NODES, address).into_iter();
    frame(ALL_NODES_LINK, own, [0x86, 0xdd], header.chain(advertisement(&ALL_NODES, address, &own, OVERRIDE)))
}

/// Octets of a probe for duplicates of an IPv6 address, with its headers.
pub const PROBE_FRAME: usize = 14 + 40 + SOLICITATION;
/// Octets of [`neighbour_question`], with the option that has the link address.
pub const QUESTION_FRAME: usize = PROBE_FRAME + 8;
/// Octets of a solicitation without options, from the ICMP header on.
const SOLICITATION: usize = 24;

/// The frame that asks for hosts with an IPv4 address, in memory order, and claims none (RFC 5227, 2.1.1).
#[must_use]
pub fn arp_probe(address: u32, own: LinkAddr) -> [u8; ARP_FRAME] {
    let words = arp_words(ARP_REQUEST, [own, LinkAddr::default()], [0, address]);
    frame(BROADCAST, own, [8, 6], words.into_iter())
}

/// The frame that asks for hosts with an IPv6 address, and claims none (RFC 4862, 5.4.2).
#[must_use]
pub fn neighbour_probe(address: &Addr, own: LinkAddr) -> [u8; PROBE_FRAME] {
    solicitation(address, &Addr::default(), own, &[])
}

/// The frame by which a host with an IPv6 address of its own asks for those with another one (RFC 4861, 4.3). Programs
/// that answer no probe answer it.
#[must_use]
pub fn neighbour_question(address: &Addr, source: &Addr, own: LinkAddr) -> [u8; QUESTION_FRAME] {
    let [a, b, c, d, e, f] = own.octets;
    // The option with the link address of the source.
    solicitation(address, source, own, &[u32::from_ne_bytes([1, 1, a, b]), u32::from_ne_bytes([c, d, e, f])])
}

fn solicitation<const N: usize>(address: &Addr, source: &Addr, own: LinkAddr, option: &[u32]) -> [u8; N] {
    let [a, b, c, d] = address.words();
    let [_, low1, low2, low3] = d.to_ne_bytes();
    let link = LinkAddr::new([0x33, 0x33, 0xff, low1, low2, low3]);
    let group = [
        u32::from_ne_bytes([0xff, 2, 0, 0]),
        0,
        u32::from_ne_bytes([0, 0, 0, 1]),
        u32::from_ne_bytes([0xff, low1, low2, low3]),
    ];
    let len = (N - 14 - 40) as u8;
    let pseudo = pseudo_header(source, &Addr::from_words(group), len);
    let target = sum::add(sum::add(a, b), sum::add(c, d));
    let kind = u32::from_ne_bytes([135, 0, 0, 0]);
    let option_sum = option.iter().fold(0, |all, word| sum::add(all, *word));
    let [s0, s1] = (!sum::fold(sum::add(sum::add(pseudo, option_sum), sum::add(kind, target)))).to_ne_bytes();
    let header = [u32::from_ne_bytes([0x60, 0, 0, 0]), u32::from_ne_bytes([0, len, number::ICMPV6, 255])];
    let message = [u32::from_ne_bytes([135, 0, s0, s1]), 0, a, b, c, d];
    let words = header.into_iter().chain(source.words()).chain(group).chain(message).chain(option.iter().copied());
    frame(link, own, [0x86, 0xdd], words)
}

/// An Ethernet frame, cut to `N` octets.
fn frame<const N: usize>(to: LinkAddr, from: LinkAddr, kind: [u8; 2], words: impl Iterator<Item = u32>) -> [u8; N] {
    let octets = to.octets.into_iter().chain(from.octets).chain(kind).chain(words.flat_map(u32::to_ne_bytes));
    let mut frame = [0; N];
    frame.iter_mut().zip(octets).for_each(|(to, from)| *to = from);
    frame
}

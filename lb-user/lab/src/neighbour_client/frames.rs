//! Frames of the client: ARP requests and neighbour solicitations, and the packets that tell who has an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::LinkAddress;

const ARP: [u8; 2] = [8, 6];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Flag of an advertisement that answers a solicitation.
const SOLICITED: u8 = 0x40;

/// Returns the question of a host who has an address.
pub(super) fn question(own: LinkAddress, sender: IpAddr, address: IpAddr) -> Vec<u8> {
    match (sender, address) {
        (IpAddr::V4(sender), IpAddr::V4(address)) => arp_request(own, sender, address),
        (IpAddr::V6(sender), IpAddr::V6(address)) => solicitation(own, sender, address),
        _ => panic!("{sender} asks for {address}, which is of another family"),
    }
}

fn arp_request(own: LinkAddress, sender: Ipv4Addr, address: Ipv4Addr) -> Vec<u8> {
    // To all, ARP; Ethernet, IPv4, request.
    let head = [8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
    [&[0xff; 6][..], &own, &head, &own, &sender.octets(), &[0; 6], &address.octets(), &[0; 18]].concat()
}

fn solicitation(own: LinkAddress, sender: Ipv6Addr, address: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = address.octets();
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
    let mut message = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &address.octets(), &[1, 1], &own].concat();
    let length = u8::try_from(message.len()).expect("32 octets");
    let sum = checksum(&[&sender.octets(), &group, &[0, 0, 0, length, 0, 0, 0, ICMPV6], &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let ethernet = [&[0x33, 0x33, 0xff, a, b, c][..], &own, &IPV6].concat();
    [&ethernet[..], &[0x60, 0, 0, 0, 0, length, ICMPV6, 255], &sender.octets(), &group, &message].concat()
}

/// The Internet checksum of parts with even lengths.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded twice")
}

/// A host that tells its link address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Told {
    pub(super) address: IpAddr,
    pub(super) link: LinkAddress,
    /// The host that has asked; none if the packet is an announcement.
    pub(super) asker: Option<IpAddr>,
}

/// Parses an answer or an announcement; none if the frame is neither.
pub(super) fn told(frame: &[u8]) -> Option<Told> {
    match frame.get(12..14)?.try_into().ok()? {
        ARP => told_by_arp(frame),
        IPV6 => told_by_advertisement(frame),
        _ => None,
    }
}

fn told_by_arp(frame: &[u8]) -> Option<Told> {
    let arp = frame.get(14..42)?;
    if arp.get(..6)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let address = |at: usize| Some(IpAddr::from(octets::<4>(arp, at)?));
    let (sender, target) = (address(14)?, address(24)?);
    let is_answer = arp.get(6..8)? == [0, 2];
    // A gratuitous packet, request or answer.
    let asker = (sender != target).then_some(target);
    (is_answer || asker.is_none()).then_some(Told { address: sender, link: octets(arp, 8)?, asker })
}

fn told_by_advertisement(frame: &[u8]) -> Option<Told> {
    if frame.get(20)? != &ICMPV6 || frame.get(54)? != &ADVERTISEMENT {
        return None;
    }
    let asker = (frame.get(58)? & SOLICITED != 0).then_some(IpAddr::from(octets::<16>(frame, 38)?));
    let address = IpAddr::from(octets::<16>(frame, 62)?);
    let has_option = frame.get(78..80) == Some(&[2, 1]);
    Some(Told { address, link: octets(frame, if has_option { 80 } else { 6 })?, asker })
}

fn octets<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: LinkAddress = [2, 0, 0, 0, 0, 0x99];
    const OTHER: LinkAddress = [2, 0, 0, 0, 0, 7];

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_question_is_an_arp_request_of_the_least_length_of_a_frame_or_a_solicitation() {
        let frame = question(OWN, ip("10.0.0.1"), ip("10.0.0.2"));
        assert_eq!(frame.len(), 60);
        assert_eq!(told(&frame), None, "a request");
        let frame = question(OWN, ip("2001:db8::1"), ip("2001:db8::1:2:3"));
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(told(&frame), None, "a solicitation");
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 2, 0, 3]);
        // With its checksum the message sums up to nothing.
        assert_eq!(checksum(&[&frame[22..54], &[0, 0, 0, 32, 0, 0, 0, ICMPV6], &frame[54..]]), 0);
    }

    #[test]
    fn answers_have_an_asker_and_announcements_none() {
        let mut frame = question(OTHER, ip("10.0.0.2"), ip("10.0.0.1"));
        frame[21] = 2;
        let (address, link) = (ip("10.0.0.2"), OTHER);
        assert_eq!(told(&frame), Some(Told { address, link, asker: Some(ip("10.0.0.1")) }));
        let frame = question(OTHER, address, address);
        assert_eq!(told(&frame), Some(Told { address, link, asker: None }));

        let address = ip("2001:db8::2");
        let mut frame = question(OTHER, ip("2001:db8::9"), address);
        (frame[54], frame[58], frame[78]) = (ADVERTISEMENT, SOLICITED, 2);
        let asker = Some(IpAddr::from(octets::<16>(&frame, 38).expect("an address")));
        assert_eq!(told(&frame), Some(Told { address, link, asker }));
        frame[58] = 0;
        assert_eq!(told(&frame), Some(Told { address, link, asker: None }));
        (0..78).for_each(|length| assert_eq!(told(&frame[..length]), None));
    }
}

//! Hosts that answer for addresses on the links of this node, found as arping finds them: by ARP probes, which claim
//! nothing, and neighbour solicitations from the link-local address.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

use lb_common::{
    LinkAddr,
    packet::{arp_probe, neighbour_probe, neighbour_question},
};
use lb_kernel::packet_socket::{FrameSender, PacketSocket, ReceivedFrames};

/// Time to wait for answers after each of the two rounds of probes, since a frame may be lost.
const TIMEOUT: Duration = Duration::from_millis(500);
const ROUNDS: usize = 2;

/// Addresses, and the hosts that answer for each: link address, and index of the device.
pub(super) type Answers = BTreeMap<IpAddr, BTreeSet<(LinkAddr, u32)>>;

/// A device of this node.
#[derive(Clone, Copy)]
pub(super) struct AskingLink {
    /// Link address.
    pub(super) own: LinkAddr,
    /// Link-local address, if the device has IPv6.
    pub(super) local: Option<Ipv6Addr>,
}

/// Asks for the addresses at the devices, by their indexes.
pub(super) fn ask(addresses: &BTreeSet<IpAddr>, links: &BTreeMap<u32, AskingLink>) -> io::Result<Answers> {
    let mut answers = Answers::new();
    let heard: Vec<io::Result<Answers>> = thread::scope(|scope| {
        let asked: Vec<_> = [ReceivedFrames::Arp, ReceivedFrames::NeighbourAdvertisements]
            .into_iter()
            .flat_map(|frames| links.iter().map(move |(index, link)| (frames, *index, *link)))
            .map(|(frames, index, link)| scope.spawn(move || ask_at(addresses, frames, index, link)))
            .collect();
        asked.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    for heard in heard {
        for (address, hosts) in heard? {
            answers.entry(address).or_default().extend(hosts);
        }
    }
    Ok(answers)
}

fn ask_at(addresses: &BTreeSet<IpAddr>, frames: ReceivedFrames, index: u32, link: AskingLink) -> io::Result<Answers> {
    let AskingLink { own, local } = link;
    let is_v4 = frames == ReceivedFrames::Arp;
    let mut answers = Answers::new();
    if !addresses.iter().any(|address| address.is_ipv4() == is_v4) {
        return Ok(answers);
    }
    let (receiver, sender) = (PacketSocket::open_for(index, frames)?, FrameSender::open()?);
    for _ in 0..ROUNDS {
        for address in addresses.iter().filter(|address| address.is_ipv4() == is_v4) {
            // A probe that the device does not take is repeated in the next round.
            let _sent = match address {
                IpAddr::V4(ip) => sender.send(index, &arp_probe(u32::from_ne_bytes(ip.octets()), own)),
                IpAddr::V6(ip) => match local {
                    // MetalLB answers no probe, as that has no source.
                    Some(local) => sender.send(index, &neighbour_question(&(*ip).into(), &local.into(), own)),
                    None => sender.send(index, &neighbour_probe(&(*ip).into(), own)),
                },
            };
        }
        let deadline = Instant::now() + TIMEOUT;
        let mut frame = [0; 256];
        while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let Ok(len) = receiver.receive(&mut frame, left) else { break };
            if let Some((address, link)) = frame.get(..len).and_then(answer).filter(|(of, _)| addresses.contains(of)) {
                answers.entry(address).or_default().insert((link, index));
            }
        }
    }
    Ok(answers)
}

/// Parses an ARP reply or a neighbour advertisement: the address, and the link address that it tells.
fn answer(frame: &[u8]) -> Option<(IpAddr, LinkAddr)> {
    fn octets<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
        frame.get(at..at + N)?.try_into().ok()
    }
    const ARP_REPLY: [u8; 10] = [8, 6, 0, 1, 8, 0, 6, 4, 0, 2];
    const IPV6: [u8; 2] = [0x86, 0xdd];
    if octets(frame, 12) == Some(ARP_REPLY) {
        let address: Ipv4Addr = octets::<4>(frame, 28)?.into();
        return Some((address.into(), LinkAddr::new(octets(frame, 22)?)));
    }
    let is_advertisement =
        octets(frame, 12) == Some(IPV6) && octets(frame, 20) == Some([58, 255]) && octets(frame, 54) == Some([136, 0]);
    if !is_advertisement {
        return None;
    }
    let address: Ipv6Addr = octets::<16>(frame, 62)?.into();
    let has_link = octets(frame, 78) == Some([2, 1]);
    Some((address.into(), LinkAddr::new(octets(frame, if has_link { 80 } else { 6 })?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::packet::{Gratuitous, gratuitous_arp, unsolicited_advertisement};

    const OWN: LinkAddr = LinkAddr::new([2, 0, 0, 0, 0, 7]);

    #[test]
    fn answers_name_the_address_and_the_link_address() {
        let (v4, v6) = (Ipv4Addr::new(192, 0, 2, 7), "2001:db8::7".parse::<Ipv6Addr>().expect("an address"));
        let address = u32::from_ne_bytes(v4.octets());
        assert_eq!(answer(&gratuitous_arp(Gratuitous::Reply, address, OWN)), Some((v4.into(), OWN)));
        assert_eq!(answer(&gratuitous_arp(Gratuitous::Request, address, OWN)), None, "a request");
        let frame = unsolicited_advertisement(&v6.into(), OWN);
        assert_eq!(answer(&frame), Some((v6.into(), OWN)));
        assert_eq!(answer(&frame[..78]), Some((v6.into(), OWN)), "without the option");
        for len in 0..78 {
            assert_eq!(answer(&frame[..len]), None);
        }
        assert_eq!(answer(&neighbour_probe(&v6.into(), OWN)), None, "a solicitation");
    }
}

//! First packets from forged addresses, by TCP and UDP, in bursts.

use std::{
    net::Ipv4Addr,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use lb_kernel::packet_socket::PacketSocket;
use lb_lab::network::{Host, Lan};
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

use crate::{Activity, objects::FLOODED_PORT};

/// Packets a second in a burst.
const RATE: u64 = 20_000;
/// Time of a burst, and of the pause after it.
const BURST: Duration = Duration::from_secs(3);

/// Sends bursts from the client outside until all is over.
pub fn flood(activity: &Activity, lan: &Lan) {
    let (to, from) = (link_address(&lan.node1.host), link_address(&lan.client));
    lan.client.net.enter(|| {
        let any = socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
        let device = PacketSocket::open(name_to_index(&any, "eth0").unwrap()).unwrap();
        let mut number = 0_u64;
        while activity.goes_on_after(BURST) {
            let (began, first) = (Instant::now(), number);
            while began.elapsed() < BURST && !activity.is_over.load(Ordering::Relaxed) {
                let due = first + began.elapsed().as_micros() as u64 * RATE / 1_000_000;
                while number < due {
                    let source =
                        Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() | (number as u32 & 0x1_ffff));
                    let port = 1_024 + (number >> 17) as u16;
                    let frame = first_packet(
                        to,
                        from,
                        (source, port),
                        (lan.node1.host.v4, FLOODED_PORT),
                        number.is_multiple_of(2),
                    );
                    activity.packets.fetch_add(u64::from(device.send(&frame).is_ok()), Ordering::Relaxed);
                    number += 1;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
}

fn link_address(host: &Host) -> [u8; 6] {
    let text = host.net.run(&["ip", "-oneline", "link", "show", "dev", "eth0"]);
    let address = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
    let octets: Vec<u8> = address.split(':').filter_map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
    octets.try_into().unwrap()
}

/// A TCP SYN, or a datagram of one octet.
fn first_packet(
    to: [u8; 6],
    from: [u8; 6],
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
    is_tcp: bool,
) -> Vec<u8> {
    let mut transport = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
    let proto = if is_tcp { 6 } else { 17 };
    if is_tcp {
        transport.extend([0, 0, 1, 0, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    } else {
        transport.extend([0, 9, 0, 0, b'?']);
    }
    let length = u8::try_from(transport.len()).unwrap();
    let mut ip = [0x45, 0, 0, 20 + length, 0, 0, 0x40, 0, 64, proto, 0, 0].to_vec();
    ip.extend(source.0.octets());
    ip.extend(destination.0.octets());
    let checksum = sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let pseudo = [&source.0.octets()[..], &destination.0.octets(), &[0, proto, 0, length], &transport].concat();
    let at = if is_tcp { 16 } else { 6 };
    transport[at..at + 2].copy_from_slice(&sum(&pseudo).to_be_bytes());
    [&to[..], &from, &[8, 0], &ip, &transport].concat()
}

fn sum(octets: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let sum: u32 = octets.chunks(2).map(word).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

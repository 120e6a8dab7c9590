//! The far end of a device: frames are sent and received there, as another host would.

use std::time::{Duration, Instant};

use lb_common::Proto;
use lb_kernel::packet_socket::PacketSocket;

use super::{
    fixture::describe,
    node,
    packet::{PacketSpec, RawFrame},
};

/// Limit for a frame to arrive.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The far end of a device.
pub struct FarEnd(PacketSocket);

impl FarEnd {
    /// The far end of a device of the node, in this thread's network namespace.
    pub fn of(device: &str) -> Self {
        Self(PacketSocket::open(node::index(&format!("{device}-end"))).expect("a packet socket"))
    }

    /// Sends a packet to the node.
    pub fn send(&self, packet: &impl RawFrame) {
        self.0.send(&packet.octets()).expect("sent");
    }

    /// Sends a packet as a host that leaves the checksum to its device, and, where `segment` is not 0, the segmentation
    /// into payloads of that many octets too.
    pub fn send_unfinished(device: &str, packet: &PacketSpec, segment: u16) {
        let ((start, offset), mut octets) = (packet.checksum_at(), packet.clone().unfinished().octets());
        // Behind Ethernet's header.
        let [start, offset] = [start + 14, offset].map(|at| u16::try_from(at).expect("short"));
        // struct virtio_net_hdr (include/uapi/linux/virtio_net.h): flags, type of segmentation, and four numbers.
        const NEEDS_CSUM: u8 = 1;
        let kind = match (segment, packet.from.is_ipv4()) {
            (0, _) => 0,
            (_, true) => 1,
            (_, false) => 4,
        };
        let headers = start + if packet.proto == Proto::Tcp { 20 } else { 8 };
        let mut header = vec![NEEDS_CSUM, kind];
        header.extend([headers, segment, start, offset].into_iter().flat_map(u16::to_ne_bytes));
        header.append(&mut octets);
        let socket = Self::of(device).0.with_virtio_header().expect("PACKET_VNET_HDR");
        socket.send(&header).expect("sent");
    }

    /// Waits until the node sends this packet, and ignores others.
    #[track_caller]
    pub fn receives(&self, packet: &impl RawFrame) {
        let (want, deadline) = (packet.octets(), Instant::now() + TIMEOUT);
        let mut others = Vec::new();
        while Instant::now() < deadline {
            match self.next() {
                Some(octets) if octets == want => return,
                Some(octets) => others.push(describe(&octets)),
                None => {}
            }
        }
        panic!("not received: {}\nbut {others:#?}", describe(&want));
    }

    /// The next frame from the node, or none after 50 ms.
    fn next(&self) -> Option<Vec<u8>> {
        let mut octets = vec![0; 4096];
        let len = self.0.receive(&mut octets, Duration::from_millis(50)).ok()?;
        octets.truncate(len);
        Some(octets)
    }
}

//! The far end of a device: frames are sent there and received there, as another host would.
#![expect(unsafe_code, reason = "packet sockets")]

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use lb_common::Proto;

use super::{
    packet::{Packet, Wire},
    site,
    world::shown,
};

/// How long a frame may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The far end of a device.
pub struct FarEnd(OwnedFd);

impl FarEnd {
    /// Of a device of the node, in this thread's network namespace.
    pub fn of(device: &str) -> Self {
        let all = u16::to_be(libc::ETH_P_ALL as u16);
        // SAFETY: integers only.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, all.into()) };
        assert!(fd >= 0, "a packet socket: {}", io::Error::last_os_error());
        // SAFETY: a descriptor that the kernel has just opened for us.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: integers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = site::index(&format!("{device}-end")).cast_signed();
        let wait = libc::timeval { tv_sec: 0, tv_usec: 50_000 };
        // SAFETY: both point to structs of the sizes that are told.
        let results = unsafe {
            [
                libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t),
                libc::setsockopt(
                    fd,
                    libc::SOL_SOCKET,
                    libc::SO_RCVTIMEO,
                    (&raw const wait).cast(),
                    size_of::<libc::timeval>() as libc::socklen_t,
                ),
            ]
        };
        assert_eq!(results, [0, 0], "{}", io::Error::last_os_error());
        Self(socket)
    }

    /// Sends a packet to the node.
    pub fn send(&self, packet: &impl Wire) {
        let octets = packet.octets();
        // SAFETY: the kernel reads the octets.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), octets.as_ptr().cast(), octets.len(), 0) };
        assert_eq!(usize::try_from(sent).ok(), Some(octets.len()), "{}", io::Error::last_os_error());
    }

    /// Sends a packet as a host does that leaves the checksum to its device, and the cutting into segments of so many octets
    /// as well, if any are given.
    pub fn send_unfinished(device: &str, packet: &Packet, segment: u16) {
        let far_end = Self::of(device);
        let ((start, offset), mut octets) = (packet.checksum_at(), packet.clone().unfinished().octets());
        // Behind Ethernet's header.
        let [start, offset] = [start + 14, offset].map(|at| u16::try_from(at).expect("short"));
        // struct virtio_net_hdr (include/uapi/linux/virtio_net.h): flags, kind of segments, and four numbers.
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
        let on: libc::c_int = 1;
        // SAFETY: a number of the size that is told, and octets that the kernel reads.
        let (set, sent) = unsafe {
            let fd = far_end.0.as_raw_fd();
            let size = size_of::<libc::c_int>() as libc::socklen_t;
            (
                libc::setsockopt(fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, (&raw const on).cast(), size),
                libc::send(fd, header.as_ptr().cast(), header.len(), 0),
            )
        };
        assert_eq!((set, usize::try_from(sent).ok()), (0, Some(header.len())), "{}", io::Error::last_os_error());
    }

    /// Waits until the node sends this packet; others pass by.
    #[track_caller]
    pub fn receives(&self, packet: &impl Wire) {
        let (want, deadline) = (packet.octets(), Instant::now() + PATIENCE);
        let mut others = Vec::new();
        while Instant::now() < deadline {
            match self.next() {
                Some(octets) if octets == want => return,
                Some(octets) => others.push(shown(&octets)),
                None => {}
            }
        }
        panic!("not received: {}\nbut {others:#?}", shown(&want));
    }

    /// A frame that the node sent; none for a while.
    fn next(&self) -> Option<Vec<u8>> {
        let mut octets = vec![0; 4096];
        // SAFETY: integers, for which zero is a value.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel writes at most so many octets, and the address.
        let got = unsafe {
            let to = octets.as_mut_ptr().cast();
            libc::recvfrom(self.0.as_raw_fd(), to, octets.len(), 0, (&raw mut from).cast(), &raw mut len)
        };
        octets.truncate(usize::try_from(got).ok()?);
        // What we sent ourselves comes by as well.
        if from.sll_pkttype == libc::PACKET_OUTGOING { None } else { Some(octets) }
    }
}

/// Lets a device finish nothing: the kernel must do so before it sends.
pub fn without_offloads(device: &str) {
    // include/uapi/linux/ethtool.h
    const ETHTOOL_STXCSUM: u32 = 0x17;
    let mut value = [ETHTOOL_STXCSUM, 0];
    // SAFETY: integers and a pointer, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    // SAFETY: the request and what it points to outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

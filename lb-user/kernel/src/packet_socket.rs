//! Packet sockets (packet(7)): whole frames of devices. rustix knows neither their addresses nor their options.
#![expect(unsafe_code, reason = "bind(2) and sendto(2) with a sockaddr_ll, setsockopt(2)")]

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use crate::socket_options::attach_filter;

/// Frames that a packet socket receives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReceivedFrames {
    /// All frames.
    All,
    /// ARP.
    Arp,
    /// Neighbour advertisements.
    NeighbourAdvertisements,
}

impl ReceivedFrames {
    /// The `ETH_P_` of the frames.
    const fn protocol(self) -> libc::c_int {
        match self {
            Self::All => libc::ETH_P_ALL,
            Self::Arp => libc::ETH_P_ARP,
            Self::NeighbourAdvertisements => libc::ETH_P_IPV6,
        }
    }
}

/// A packet socket on one device. It receives the frames that arrive there, and none that this host sends.
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens a socket on the device with this index, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW, ENODEV if no device has the index.
    pub fn open(index: u32) -> io::Result<Self> {
        Self::open_for(index, ReceivedFrames::All)
    }

    /// As [`Self::open`], for some frames.
    ///
    /// # Errors
    /// As of [`Self::open`].
    pub fn open_for(index: u32, frames: ReceivedFrames) -> io::Result<Self> {
        // Without a protocol it receives nothing until it is bound.
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        if frames == ReceivedFrames::NeighbourAdvertisements {
            attach_filter(&socket, &NEIGHBOUR_ADVERTISEMENTS)?;
        }
        let address = link_address(index, frames.protocol());
        let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel reads `size` octets of the address.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) })?;
        // Linux 4.20.
        enable(&socket, libc::PACKET_IGNORE_OUTGOING)?;
        Ok(Self(socket))
    }

    /// Puts a `struct virtio_net_hdr` in front of each frame, in both directions (PACKET_VNET_HDR).
    ///
    /// # Errors
    /// Errors of setsockopt(2).
    pub fn with_virtio_header(self) -> io::Result<Self> {
        enable(&self.0, libc::PACKET_VNET_HDR)?;
        Ok(self)
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// Errors of send(2), and `WriteZero` if the kernel took only a part of the frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = send(&self.0, frame, SendFlags::empty())?;
        if sent == frame.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Receives a frame, cuts it to the length of `frame`, and returns its length.
    ///
    /// # Errors
    /// Errors of recv(2), `WouldBlock` after `timeout` among them.
    pub fn receive(&self, frame: &mut [u8], timeout: Duration) -> io::Result<usize> {
        set_socket_timeout(&self.0, Timeout::Recv, Some(timeout))?;
        Ok(recv(&self.0, frame, RecvFlags::empty())?.0)
    }
}

/// A packet socket that sends frames by any device of its network namespace, and receives none.
pub struct FrameSender(OwnedFd);

impl FrameSender {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Without a protocol it receives nothing.
        Ok(Self(socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?))
    }

    /// Sends a frame by the device with this index, without waiting.
    ///
    /// # Errors
    /// Errors of sendto(2): `WouldBlock` if the device takes no more frames now, ENXIO or ENODEV if it is gone,
    /// ENETDOWN if it is down.
    pub fn send(&self, index: u32, frame: &[u8]) -> io::Result<()> {
        let address = link_address(index, 0);
        let (data, size) = (frame.as_ptr().cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t);
        // SAFETY: the kernel reads the frame, and `size` octets of the address.
        let sent = unsafe { libc::sendto(self.0.as_raw_fd(), data, frame.len(), 0, (&raw const address).cast(), size) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The address of a device for packet sockets. `protocol` is an `ETH_P_`; 0 for none.
fn link_address(index: u32, protocol: libc::c_int) -> libc::sockaddr_ll {
    // SAFETY: `sockaddr_ll` has integers only, and zero is a valid value of each.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (protocol as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    address
}

/// Filter of frames of IPv6: octets 20 and 54 are the next header of the IPv6 header and the type of ICMPv6.
const NEIGHBOUR_ADVERTISEMENTS: [libc::sock_filter; 6] = {
    // BPF_LD | BPF_B | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K (include/uapi/linux/bpf_common.h)
    const fn step(code: u16, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code, jt: 0, jf, k }
    }
    const LOAD: u16 = 0x30;
    const UNLESS: u16 = 0x15;
    const RETURN: u16 = 0x06;
    [
        step(LOAD, 0, 20),
        step(UNLESS, 3, 58),
        step(LOAD, 0, 54),
        step(UNLESS, 1, 136),
        step(RETURN, 0, u32::MAX),
        step(RETURN, 0, 0),
    ]
};

/// Sets an option of packet sockets to 1.
fn enable(socket: impl AsFd, option: libc::c_int) -> io::Result<()> {
    let value: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `size` octets of the value.
    check(unsafe { libc::setsockopt(fd, libc::SOL_PACKET, option, (&raw const value).cast(), size) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

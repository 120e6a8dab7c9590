//! Packet sockets (packet(7)): whole frames of one device. rustix cannot bind one, nor set its options.
#![expect(unsafe_code, reason = "bind(2) to a sockaddr_ll, setsockopt(2)")]

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, eth, recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

/// A packet socket on one device. It receives the frames that arrive there, and none that this host sends.
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens a socket on the device with this index, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW, ENODEV if no device has the index.
    pub fn open(index: u32) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, Some(eth::ALL))?;
        // SAFETY: `sockaddr_ll` has integers only, and zero is a valid value of each.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index.cast_signed();
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
    /// Those of setsockopt(2).
    pub fn with_virtio_header(self) -> io::Result<Self> {
        enable(&self.0, libc::PACKET_VNET_HDR)?;
        Ok(self)
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// Those of send(2), and `WriteZero` if the kernel took only a part of the frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = send(&self.0, frame, SendFlags::empty())?;
        if sent == frame.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Receives a frame, cuts it to the length of `frame`, and returns its length.
    ///
    /// # Errors
    /// Those of recv(2), `WouldBlock` after `timeout` among them.
    pub fn receive(&self, frame: &mut [u8], timeout: Duration) -> io::Result<usize> {
        set_socket_timeout(&self.0, Timeout::Recv, Some(timeout))?;
        Ok(recv(&self.0, frame, RecvFlags::empty())?.0)
    }
}

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

//! Packet sockets (packet(7)): whole frames of one device. rustix cannot bind one, nor set its options.
#![expect(unsafe_code, reason = "bind(2) to a sockaddr_ll")]

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, eth, recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use crate::device_options::set_option;

/// A packet socket on one device. It receives the frames that arrive there, not those that this host sends.
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
        if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // Linux 4.20.
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32.to_ne_bytes())?;
        Ok(Self(socket))
    }

    /// Puts a `struct virtio_net_hdr` in front of each frame, in both directions (PACKET_VNET_HDR).
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn with_virtio_header(self) -> io::Result<Self> {
        set_option(&self.0, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1_i32.to_ne_bytes())?;
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

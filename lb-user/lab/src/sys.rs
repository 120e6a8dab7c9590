//! System calls that rustix has not, or has as unsafe: namespaces, packet sockets, two device options.
//!
//! All `unsafe` of this crate stands here, so that it can move to the crate that holds the rest of it.
#![expect(unsafe_code, reason = "system calls without a safe wrapper")]

use std::{
    ffi::CStr,
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    time::Duration,
};

use rustix::{
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, eth, recv, send, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
    thread::{UnshareFlags, unshare_unsafe},
};

/// Moves the calling thread into a new network namespace.
///
/// # Errors
/// The kernel refuses: no CAP_SYS_ADMIN.
pub fn unshare_network() -> io::Result<()> {
    // SAFETY: the descriptor table, the only reason why `unshare` is unsafe, stays shared.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?)
}

/// Moves the calling process, while it has one thread, into a new network and a new mount namespace.
///
/// # Errors
/// The kernel refuses: no CAP_SYS_ADMIN.
pub fn unshare_network_and_mounts() -> io::Result<()> {
    // SAFETY: the descriptor table, the only reason why `unshare` is unsafe, stays shared.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }?)
}

/// Binds a socket to a device (`SO_BINDTODEVICE`).
///
/// # Errors
/// The device does not exist.
pub fn bind_to_device(socket: impl AsFd, device: &CStr) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device.to_bytes())
}

/// Turns off a device's transmit checksums: the kernel finishes them before it sends.
///
/// # Errors
/// The device does not exist, or its checksums are fixed.
pub fn disable_tx_checksums(device: &str) -> io::Result<()> {
    // include/uapi/linux/ethtool.h
    const ETHTOOL_STXCSUM: u32 = 0x17;
    let mut value = [ETHTOOL_STXCSUM, 0];
    // SAFETY: integers and a pointer, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    // SAFETY: the kernel reads the request and the two words that it points to; both outlive the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) })
}

/// A packet socket: whole frames of one device, without those that this host sends.
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens one on the device of this index, in the network namespace of this thread.
    ///
    /// # Errors
    /// The kernel refuses: no CAP_NET_RAW, or no such device.
    pub fn open(index: u32) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, Some(eth::ALL))?;
        // SAFETY: integers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index.cast_signed();
        let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel reads `size` octets of the address.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) })?;
        // Linux 4.20.
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32.to_ne_bytes())?;
        Ok(Self(socket))
    }

    /// Puts a `struct virtio_net_hdr` in front of each frame, in both directions (`PACKET_VNET_HDR`).
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn with_virtio_header(self) -> io::Result<Self> {
        set_option(&self.0, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1_i32.to_ne_bytes())?;
        Ok(self)
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// As send(2); a frame sent in part counts as an error.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = send(&self.0, frame, SendFlags::empty())?;
        if sent == frame.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Receives a frame, of which octets beyond `frame` are lost, and returns its length.
    ///
    /// # Errors
    /// As recv(2); `WouldBlock` after `timeout`.
    pub fn receive(&self, frame: &mut [u8], timeout: Duration) -> io::Result<usize> {
        set_socket_timeout(&self.0, Timeout::Recv, Some(timeout))?;
        Ok(recv(&self.0, frame, RecvFlags::empty())?.0)
    }
}

fn set_option(socket: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let size = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `size` octets of the value.
    check(unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), size) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

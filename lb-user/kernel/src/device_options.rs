//! Options of network devices for which rustix has no call: binding a socket to a device, transmit checksums.
#![expect(unsafe_code, reason = "setsockopt(2) and ioctl(2)")]

use std::{
    ffi::CStr,
    io,
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd as _},
};

/// Binds a socket to a device (SO_BINDTODEVICE).
///
/// # Errors
/// ENODEV if the device does not exist.
pub fn bind_to_device(socket: impl AsFd, device: &CStr) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device.to_bytes())
}

/// Turns off the transmit checksums of a device: the kernel computes them in software.
///
/// # Errors
/// ENODEV if the device does not exist, EOPNOTSUPP if its checksums are fixed.
pub fn disable_tx_checksums(device: &str) -> io::Result<()> {
    // include/uapi/linux/ethtool.h
    const ETHTOOL_STXCSUM: u32 = 0x17;
    let mut value = [ETHTOOL_STXCSUM, 0];
    // SAFETY: `ifreq` has integers and a pointer, and zero is a valid value of each.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    // SAFETY: the kernel reads the request and the two words that it points to; both outlive the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) })
}

/// Sets a socket option.
pub(crate) fn set_option(socket: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let size = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `size` octets of the value.
    check(unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), size) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

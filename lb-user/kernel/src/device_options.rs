//! Options of network devices (ethtool) for which rustix has no call.
#![expect(unsafe_code, reason = "ioctl(2)")]

use std::{io, net::UdpSocket, os::fd::AsRawFd as _};

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
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

//! TUN devices: devices without a link header, whose packets a process reads and writes.
#![expect(unsafe_code, reason = "ioctl(2)")]

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
};

/// Adds a TUN device to the network namespace of this thread. It lives as long as the file, from which one read takes
/// one packet that leaves by the device, and to which one write brings one. Reads do not block.
///
/// # Errors
/// ENOENT or ENODEV if the kernel has no TUN devices.
pub fn create(name: &str) -> io::Result<File> {
    let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: `ifreq` has integers and a pointer, and zero is a valid value of each.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the kernel reads and writes the request, which outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result == 0 { Ok(device) } else { Err(io::Error::last_os_error()) }
}

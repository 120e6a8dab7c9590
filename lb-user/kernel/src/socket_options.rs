//! Socket options that neither std nor rustix offers.
#![expect(unsafe_code, reason = "getsockopt(2) and setsockopt(2)")]

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd as _},
};

/// include/uapi/asm-generic/socket.h; libc lacks the constant for some architectures.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// include/uapi/linux/netlink.h.
const NETLINK_GET_STRICT_CHK: libc::c_int = 12;

/// Returns the cookie of the network namespace of a socket (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
/// `ENOPROTOOPT` before Linux 5.14.
pub(crate) fn netns_cookie(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(mem::size_of::<u64>()).unwrap_or_default();
    // SAFETY: the kernel writes at most `len` bytes to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Binds a socket to a device of its network namespace (`SO_BINDTODEVICE`).
///
/// # Errors
/// `ENODEV` if the namespace has no such device.
pub fn bind_to_device(socket: &impl AsFd, device: &str) -> io::Result<()> {
    let len = libc::socklen_t::try_from(device.len()).unwrap_or_default();
    // SAFETY: the kernel reads `len` octets of the name.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            device.as_ptr().cast(),
            len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A filter that no packet passes: one step, BPF_RET | BPF_K (include/uapi/linux/bpf_common.h).
pub(crate) const ACCEPT_NOTHING: [libc::sock_filter; 1] = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];

/// Attaches a filter to a socket (`SO_ATTACH_FILTER`).
///
/// # Errors
/// `EINVAL` for a filter that is none.
pub(crate) fn attach_filter(socket: &impl AsFd, filter: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(filter.len()).unwrap_or(u16::MAX);
    // The kernel does not write to the filter.
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    let size = libc::socklen_t::try_from(mem::size_of_val(&program)).unwrap_or_default();
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `size` octets of the program, and `len` steps of its filter.
    let result =
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, (&raw const program).cast(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the kernel filter the dumps of a netlink socket by the fields of their request (`NETLINK_GET_STRICT_CHK`,
/// Linux 4.20).
///
/// # Errors
/// The kernel's errno.
pub(crate) fn filter_dumps(socket: &impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = libc::socklen_t::try_from(mem::size_of_val(&on)).unwrap_or_default();
    // SAFETY: the kernel reads `len` octets of `on`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_NETLINK,
            NETLINK_GET_STRICT_CHK,
            (&raw const on).cast(),
            len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

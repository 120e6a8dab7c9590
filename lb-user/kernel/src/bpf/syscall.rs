//! The system call itself, and the parts of its argument that every command needs.
#![expect(unsafe_code, reason = "a raw system call")]

use std::{
    io, mem,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd};

/// Calls bpf(2).
pub(super) fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: attr is a whole bpf_attr, and each caller keeps what it points to alive over the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_ulong, std::ptr::from_mut(attr), mem::size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(i32::MAX)) }
}

/// Calls bpf(2) with a command that returns a new descriptor.
pub(super) fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: a descriptor that the kernel has just opened for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn zeroed() -> bpf_attr {
    // SAFETY: a union of integers, for which zero is a value.
    unsafe { mem::zeroed() }
}

pub(super) fn fd_number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

//! Pins: paths on a bpffs that keep maps, programs and links.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::bpf_cmd;

use super::syscall::{bpf, bpf_fd, fd_number, zeroed};

/// Opens the map, program or link that is pinned at a path (`BPF_OBJ_GET`).
///
/// # Errors
/// `ENOENT` if nothing is pinned there, `EACCES` if the path is not on a bpffs.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr)
}

/// Pins a map, program or link at a path on a bpffs (`BPF_OBJ_PIN`).
///
/// # Errors
/// `EEXIST` if the path exists, `EPERM` if it is not on a bpffs.
pub fn pin(object: impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = fd_number(object.as_fd());
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

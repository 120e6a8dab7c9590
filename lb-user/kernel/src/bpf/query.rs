//! Programs attached to a cgroup, a network device or a network namespace (`BPF_PROG_QUERY`, Linux 4.15).
#![expect(unsafe_code, reason = "fields of the union bpf_attr")]

use std::{io, os::fd::AsFd};

use aya_obj::generated::{bpf_attach_type, bpf_cmd};
use lb_common::Hook;

use super::syscall::{bpf, fd_number, zeroed};

/// Lists the programs that run at a hook of a cgroup by id: its own and those of the cgroups above it, in the order in
/// which they run (`BPF_F_QUERY_EFFECTIVE`).
///
/// # Errors
/// `EINVAL` if the kernel does not know the hook.
pub fn programs_at(cgroup: impl AsFd, hook: bpf_attach_type) -> io::Result<Vec<u32>> {
    const EFFECTIVE: u32 = 1;
    query(fd_number(cgroup.as_fd()), hook, EFFECTIVE)
}

/// Lists the TCX programs of a device by id, in the order in which they run (Linux 6.6).
///
/// # Errors
/// `EINVAL` if the kernel has no TCX.
pub fn programs_at_device(interface: u32, hook: Hook) -> io::Result<Vec<u32>> {
    query(interface, tcx_attach_type(hook), 0)
}

/// Lists the programs that run at the look-up of sockets in a network namespace by id, in the order in which they run
/// (Linux 5.9).
///
/// # Errors
/// `EINVAL` if the kernel does not know the hook.
pub fn programs_at_socket_lookup(netns: impl AsFd) -> io::Result<Vec<u32>> {
    query(fd_number(netns.as_fd()), bpf_attach_type::BPF_SK_LOOKUP, 0)
}

/// `target` is a descriptor or the index of a device, which share their place in the union.
fn query(target: u32, hook: bpf_attach_type, flags: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; 64];
    loop {
        let mut attr = zeroed();
        attr.query.__bindgen_anon_1.target_ifindex = target;
        attr.query.attach_type = hook as u32;
        attr.query.query_flags = flags;
        attr.query.prog_ids = ids.as_mut_ptr() as u64;
        attr.query.__bindgen_anon_2.prog_cnt = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        let result = bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr);
        // SAFETY: the kernel writes how many there are, and leaves alone what it does not know.
        let count = unsafe { attr.query.__bindgen_anon_2.prog_cnt } as usize;
        match result {
            Ok(_) => {
                ids.truncate(count);
                return Ok(ids);
            }
            // The kernel has more programs than there was room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => ids.resize(count.max(ids.len() * 2), 0),
            Err(error) => return Err(error),
        }
    }
}

/// True if the kernel has TCX (Linux 6.6).
#[must_use]
pub fn has_tcx() -> bool {
    let mut attr = zeroed();
    // The device `lo`, which every network namespace has.
    attr.query.__bindgen_anon_1.target_ifindex = 1;
    attr.query.attach_type = bpf_attach_type::BPF_TCX_INGRESS as u32;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr).is_ok()
}

pub(super) const fn tcx_attach_type(hook: Hook) -> bpf_attach_type {
    match hook {
        Hook::Ingress => bpf_attach_type::BPF_TCX_INGRESS,
        Hook::Egress => bpf_attach_type::BPF_TCX_EGRESS,
    }
}

//! Links: attachments of a program to a cgroup, a network device or a tracepoint.
#![expect(unsafe_code, reason = "fields of the union bpf_link_info")]

use std::{
    io, mem,
    os::fd::{AsFd, OwnedFd},
};

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_link_info};
use lb_common::Hook;

use super::{
    query::tcx_attach_type,
    syscall::{bpf, bpf_fd, fd_number, zeroed},
};

/// Program and cgroup of a cgroup link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CgroupLink {
    /// Id of the program.
    pub program: u32,
    /// Id of the cgroup, which is the inode number of the cgroup's directory; 0 after the cgroup was removed or the
    /// link detached.
    pub cgroup: u64,
}

/// Program and device of a TCX link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcxLink {
    /// Id of the program.
    pub program: u32,
    /// Index of the device; 0 after the device was removed or the link detached.
    pub interface: u32,
}

/// Program and network namespace of a link at the kernel's look-up of sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketLookupLink {
    /// Id of the program.
    pub program: u32,
    /// Inode number of the network namespace; 0 after the namespace has ended or the link was detached.
    pub netns: u32,
}

/// Attaches a program to a hook of a cgroup, beside the programs that are there (cgroup links, Linux 5.7). The last
/// descriptor and pin of the link detach it.
///
/// # Errors
/// `EPERM` if a program is attached to the hook that allows no other.
pub fn attach_cgroup(program: impl AsFd, cgroup: impl AsFd, hook: bpf_attach_type) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = fd_number(program.as_fd());
    attr.link_create.__bindgen_anon_2.target_fd = fd_number(cgroup.as_fd());
    attr.link_create.attach_type = hook as u32;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Attaches a program to a network device of this thread's network namespace, before all programs that are there (TCX,
/// Linux 6.6). The last descriptor and pin of the link detach it.
///
/// # Errors
/// `EINVAL` if the kernel has no TCX.
pub fn attach_tcx(program: impl AsFd, interface: u32, hook: Hook) -> io::Result<OwnedFd> {
    // include/uapi/linux/bpf.h: before the program of `relative_fd`, and before all with none.
    const BPF_F_BEFORE: u32 = 1 << 3;
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = fd_number(program.as_fd());
    attr.link_create.__bindgen_anon_2.target_ifindex = interface;
    attr.link_create.attach_type = tcx_attach_type(hook) as u32;
    attr.link_create.flags = BPF_F_BEFORE;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Attaches a program of the type `BPF_PROG_TYPE_TRACING` to the tracepoint for which it was loaded (links of
/// tracepoints, Linux 5.7). The last descriptor and pin of the link detach it.
///
/// # Errors
/// `EINVAL` for a program of another type.
pub fn attach_tracepoint(program: impl AsFd) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.raw_tracepoint.prog_fd = fd_number(program.as_fd());
    bpf_fd(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr)
}

/// Attaches a program to the look-up of sockets in a network namespace, behind the programs that are there
/// (`BPF_SK_LOOKUP`, Linux 5.9). The last descriptor and pin of the link detach it.
///
/// # Errors
/// The kernel's errno.
pub fn attach_socket_lookup(program: impl AsFd, netns: impl AsFd) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = fd_number(program.as_fd());
    attr.link_create.__bindgen_anon_2.target_fd = fd_number(netns.as_fd());
    attr.link_create.attach_type = bpf_attach_type::BPF_SK_LOOKUP as u32;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Replaces the program of a link atomically (`BPF_LINK_UPDATE`, Linux 5.7).
///
/// # Errors
/// The kernel's errno, such as `EINVAL` for a program of another type.
pub fn update_link(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_update.link_fd = fd_number(link.as_fd());
    attr.link_update.__bindgen_anon_1.new_prog_fd = fd_number(program.as_fd());
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Detaches a link's program at once (`BPF_LINK_DETACH`, Linux 5.9). Removing the last pin detaches as well, but some
/// milliseconds later.
///
/// # Errors
/// The kernel's errno.
pub fn detach_link(link: impl AsFd) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_detach.link_fd = fd_number(link.as_fd());
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Reads program and cgroup of a cgroup link.
///
/// # Errors
/// `EINVAL` if the descriptor is no link.
pub fn cgroup_link(link: impl AsFd) -> io::Result<CgroupLink> {
    let info = link_info(link)?;
    // SAFETY: our links are cgroup links.
    Ok(CgroupLink { program: info.prog_id, cgroup: unsafe { info.__bindgen_anon_1.cgroup }.cgroup_id })
}

/// Reads program and device of a TCX link.
///
/// # Errors
/// `EINVAL` if the descriptor is no link.
pub fn tcx_link(link: impl AsFd) -> io::Result<TcxLink> {
    let info = link_info(link)?;
    // SAFETY: our links that are not of a cgroup are TCX links.
    Ok(TcxLink { program: info.prog_id, interface: unsafe { info.__bindgen_anon_1.tcx }.ifindex })
}

/// Reads program and network namespace of a link at the look-up of sockets.
///
/// # Errors
/// `EINVAL` if the descriptor is no link.
pub fn socket_lookup_link(link: impl AsFd) -> io::Result<SocketLookupLink> {
    let info = link_info(link)?;
    // SAFETY: such a link has a network namespace.
    Ok(SocketLookupLink { program: info.prog_id, netns: unsafe { info.__bindgen_anon_1.netns }.netns_ino })
}

/// Reads the id of a link's program.
///
/// # Errors
/// `EINVAL` if the descriptor is no link.
pub fn link_program(link: impl AsFd) -> io::Result<u32> {
    Ok(link_info(link)?.prog_id)
}

fn link_info(link: impl AsFd) -> io::Result<bpf_link_info> {
    // SAFETY: a struct of integers and a union of such structs.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    let mut attr = zeroed();
    attr.info.bpf_fd = fd_number(link.as_fd());
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    attr.info.info_len = u32::try_from(mem::size_of::<bpf_link_info>()).unwrap_or(u32::MAX);
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

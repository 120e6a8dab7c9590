//! Small programs given as instructions: load them, and run them once.
#![expect(unsafe_code, reason = "fields of the union bpf_attr")]

use std::{
    ffi::CStr,
    io, mem,
    os::fd::{AsFd, OwnedFd},
};

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_insn, bpf_prog_type};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::syscall::{bpf, bpf_fd, fd_number, zeroed};

/// Loads a program for the cgroup hook `connect4`.
///
/// # Errors
/// The kernel's errno, such as `EINVAL` or `EACCES` from the verifier.
pub fn load_connect4(name: &CStr, instructions: &[bpf_insn]) -> io::Result<OwnedFd> {
    load(
        bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        bpf_attach_type::BPF_CGROUP_INET4_CONNECT as u32,
        name,
        instructions,
    )
}

/// Loads a program of the type that tc runs (`BPF_PROG_TYPE_SCHED_CLS`).
///
/// # Errors
/// The kernel's errno, such as `EINVAL` or `EACCES` from the verifier.
pub fn load_classifier(name: &CStr, instructions: &[bpf_insn]) -> io::Result<OwnedFd> {
    load(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, 0, name, instructions)
}

fn load(kind: bpf_prog_type, hook: u32, name: &CStr, instructions: &[bpf_insn]) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: the part of the union that BPF_PROG_LOAD reads; all of it was zero.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = kind as u32;
    load.expected_attach_type = hook;
    load.insns = instructions.as_ptr() as u64;
    load.insn_cnt = u32::try_from(instructions.len()).unwrap_or(u32::MAX);
    load.license = c"Dual MIT/GPL".as_ptr() as u64;
    for (to, from) in load.prog_name.iter_mut().zip(name.to_bytes()) {
        *to = *from as std::ffi::c_char;
    }
    match bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            // Before 5.11 programs count as locked memory.
            setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None })?;
            bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr)
        }
        other => other,
    }
}

/// Runs a tc program once on a packet, which it may change, as if the packet came in at an interface of this thread's
/// network namespace (0: `lo`; others since Linux 5.9). Returns the program's return value.
///
/// # Errors
/// `ENODEV` if the interface does not exist.
pub fn run_classifier(program: impl AsFd, packet: &mut [u8], interface: u32) -> io::Result<u32> {
    // The head of a `struct __sk_buff`, up to `ifindex`.
    let context = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, interface];
    let mut attr = zeroed();
    let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    attr.test.prog_fd = fd_number(program.as_fd());
    attr.test.data_size_in = length;
    attr.test.data_size_out = length;
    // The kernel copies the packet before the run and back after it.
    attr.test.data_in = packet.as_ptr() as u64;
    attr.test.data_out = packet.as_mut_ptr() as u64;
    attr.test.ctx_in = std::ptr::from_ref(&context) as u64;
    attr.test.ctx_size_in = u32::try_from(mem::size_of_val(&context)).unwrap_or(u32::MAX);
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    // SAFETY: the kernel wrote the field.
    Ok(unsafe { attr.test.retval })
}

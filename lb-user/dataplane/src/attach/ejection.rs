//! Programs that follow the results of connects, for ejection. Each is loaded and attached only while a Service asks
//! for it: every TCP socket of the cgroup would pay for the one, and not every kernel has what the other needs.

use std::fs;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use lb_common::Proto;
use lb_kernel::bpf;

use super::cgroup::{CgroupLinks, descriptor};
use crate::{
    btf::Btf,
    pinned::Pinned,
    pins::{Pins, link_name, remove_pin},
};

/// A program that follows results.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum EjectionProgram {
    /// `follow_handshakes`, at the cgroup: handshakes of TCP sockets.
    Handshakes,
    /// `follow_errors`, at a tracepoint: ICMP errors of UDP sockets (Linux 5.14).
    Errors,
}

impl EjectionProgram {
    /// All programs.
    pub const ALL: [Self; 2] = [Self::Handshakes, Self::Errors];

    /// Returns the program that follows connects of a protocol; none if their results are not known.
    #[must_use]
    pub const fn of(proto: Proto) -> Option<Self> {
        match proto {
            Proto::Tcp => Some(Self::Handshakes),
            Proto::Udp => Some(Self::Errors),
            Proto::Sctp => None,
        }
    }

    /// Returns the name in the object.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Handshakes => "follow_handshakes",
            Self::Errors => "follow_errors",
        }
    }
}

/// The kernel's tracepoint of [`EjectionProgram::Errors`] (include/trace/events/sock.h).
pub(crate) const ERRORS_TRACEPOINT: &str = "inet_sk_error_report";

/// Returns the offset of `sk_err` in the kernel's `struct sock`, octets.
pub(crate) fn sk_err() -> Result<u32> {
    const KERNEL: &str = "/sys/kernel/btf/vmlinux";
    let types = fs::read(KERNEL).with_context(|| format!("reading {KERNEL} (CONFIG_DEBUG_INFO_BTF)"))?;
    let types = Btf::parse(&types).with_context(|| format!("reading {KERNEL}"))?;
    types.member_offset("sock", "sk_err").with_context(|| format!("{KERNEL} has no sk_err of struct sock"))
}

/// The link at the tracepoint, if there is one. No program can take it away, nor take its place.
#[derive(Default)]
pub(crate) struct TracepointLink(Option<Pinned>);

impl TracepointLink {
    /// Returns the link, for a check of its pin.
    pub(crate) fn pinned(&mut self) -> impl Iterator<Item = &mut Pinned> {
        self.0.iter_mut()
    }
}

/// Attaches a loaded program, in the place of its predecessor.
pub(crate) fn attach(
    program: EjectionProgram,
    ebpf: &Ebpf,
    cgroup: &mut CgroupLinks,
    tracepoint: &mut TracepointLink,
    pins: &Pins,
) -> Result<()> {
    let name = program.name();
    let (loaded, id) = descriptor(ebpf.program(name).with_context(|| format!("the object lacks the program {name}"))?)?;
    match program {
        EjectionProgram::Handshakes => cgroup.add(name, loaded, id, pins),
        EjectionProgram::Errors => {
            // The kernel replaces no program of such a link. Both see an error meanwhile, and count it once.
            let mut link = Pinned::unpinned(bpf::attach_tracepoint(loaded)?, pins.current().join(link_name(name)));
            link.put_back().context("pinning the link")?;
            tracepoint.0 = Some(link);
            Ok(())
        }
    }
}

/// Detaches a program, if it is attached, by this agent or by an earlier one.
pub(crate) fn detach(
    program: EjectionProgram,
    cgroup: &mut CgroupLinks,
    tracepoint: &mut TracepointLink,
    pins: &Pins,
) -> Result<()> {
    let name = program.name();
    match program {
        EjectionProgram::Handshakes => cgroup.forget(name),
        EjectionProgram::Errors => tracepoint.0 = None,
    }
    let pin = pins.current().join(link_name(name));
    if fs::exists(&pin).context("looking for the pin of its link")? { remove_pin(&pin) } else { Ok(()) }
}

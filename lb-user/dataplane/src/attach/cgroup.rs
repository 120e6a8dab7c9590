//! Links of the socket path's programs at a cgroup: created, or updated in place if they are pinned.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    programs::{CgroupAttachMode, Program, links::FdLink},
};
use tracing::info;

use crate::pins::{Pins, link_name};
use lb_kernel::bpf;

/// The programs at the cgroup, in the order of attachment: hooks that restore the VIP come before hooks that translate.
pub const HOOKS: [&str; 11] = [
    "sock_release",
    "getpeername4",
    "getpeername6",
    "recvmsg4",
    "recvmsg6",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "bind4",
    "bind6",
];

/// Attaches the programs to the cgroup: replaces the programs of pinned links atomically, and creates a link where none
/// is pinned or the pinned link is at another cgroup. Returns the number of links adopted.
pub(crate) fn attach(ebpf: &mut Ebpf, cgroup_path: &Path, pins: &Pins) -> Result<usize> {
    let cgroup = File::open(cgroup_path).with_context(|| format!("opening the cgroup {}", cgroup_path.display()))?;
    let id = cgroup.metadata()?.ino();
    let others = pins.others()?;
    let mut adopted = 0;
    for name in HOOKS {
        let program = ebpf.program_mut(name).with_context(|| format!("the object lacks the program {name}"))?;
        let pin = pins.current().join(link_name(name));
        let context = || format!("attaching {name} to {}", cgroup_path.display());
        // Move another version's link here first; its program serves until the update below.
        if let Some(theirs) = others.iter().map(|other| other.join(link_name(name))).find(|theirs| theirs.exists())
            && !pin.exists()
        {
            fs::rename(&theirs, &pin).with_context(context)?;
        }
        match bpf::open_pin(&pin) {
            Ok(link) if bpf::cgroup_link(&link).with_context(context)?.cgroup == id => {
                bpf::update_link(&link, program_fd(program)?).with_context(context)?;
                adopted += 1;
            }
            Ok(elsewhere) => {
                let staged = pins.staging().join(link_name(name));
                new_link(program, &cgroup).with_context(context)?.pin(&staged).with_context(context)?;
                fs::rename(&staged, &pin).with_context(context)?;
                info!(program = name, "moved from another cgroup");
                drop(elsewhere);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                new_link(program, &cgroup).with_context(context)?.pin(&pin).with_context(context)?;
            }
            Err(error) => return Err(error).with_context(context),
        }
    }
    Ok(adopted)
}

fn program_fd(program: &Program) -> Result<BorrowedFd<'_>> {
    Ok(match program {
        Program::CgroupSockAddr(program) => program.fd()?.as_fd(),
        Program::CgroupSock(program) => program.fd()?.as_fd(),
        other => return Err(anyhow!("unexpected program type {:?}", other.prog_type())),
    })
}

fn new_link(program: &mut Program, cgroup: &File) -> Result<FdLink> {
    // No flag: a link always runs beside other programs (BPF_F_ALLOW_MULTI), and the kernel rejects the flag for links.
    let mode = CgroupAttachMode::Single;
    Ok(match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(cgroup, mode)?;
            program.take_link(id)?.try_into()?
        }
        Program::CgroupSock(program) => {
            let id = program.attach(cgroup, mode)?;
            program.take_link(id)?.try_into()?
        }
        other => return Err(anyhow!("unexpected program type {:?}", other.prog_type())),
    })
}

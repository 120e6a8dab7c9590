//! Links of the socket path's programs at a cgroup: created, updated in place if they are pinned, and mended if another
//! program detached or changed them. Descriptors stay open, so that a removed pin detaches nothing.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result, anyhow};
use aya::{Ebpf, programs::Program};
use aya_obj::generated::bpf_attach_type;
use tracing::info;

use crate::{
    damage::{Damage, Part},
    pinned::Pinned,
    pins::{Pins, link_name},
};
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

/// Returns the kernel's attach type of a program at the cgroup; none for another name.
#[must_use]
pub fn attach_type(hook: &str) -> Option<bpf_attach_type> {
    Some(match hook {
        "sock_release" => bpf_attach_type::BPF_CGROUP_INET_SOCK_RELEASE,
        "getpeername4" => bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME,
        "getpeername6" => bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME,
        "recvmsg4" => bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG,
        "recvmsg6" => bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG,
        "connect4" => bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
        "connect6" => bpf_attach_type::BPF_CGROUP_INET6_CONNECT,
        "sendmsg4" => bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG,
        "sendmsg6" => bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG,
        "bind4" => bpf_attach_type::BPF_CGROUP_INET4_BIND,
        "bind6" => bpf_attach_type::BPF_CGROUP_INET6_BIND,
        "follow_handshakes" => bpf_attach_type::BPF_CGROUP_SOCK_OPS,
        _ => return None,
    })
}

/// The links at a cgroup, in the order of [`HOOKS`], then those added.
pub(crate) struct CgroupLinks {
    cgroup: File,
    /// Id of the cgroup.
    id: u64,
    links: Vec<HookLink>,
}

/// A program and its link.
struct HookLink {
    hook: &'static str,
    program: OwnedFd,
    /// Program id of the kernel.
    id: u32,
    link: Pinned,
}

impl CgroupLinks {
    /// Attaches the programs to the cgroup: replaces the programs of pinned links atomically, and creates a link where
    /// none is pinned or the pinned link is at another cgroup. Returns the links, and how many of them were pinned.
    pub(crate) fn attach(ebpf: &Ebpf, cgroup_path: &Path, pins: &Pins) -> Result<(Self, usize)> {
        let cgroup =
            File::open(cgroup_path).with_context(|| format!("opening the cgroup {}", cgroup_path.display()))?;
        let id = cgroup.metadata()?.ino();
        let others = pins.others()?;
        let (mut all, mut adopted) = (Self { cgroup, id, links: Vec::new() }, 0);
        for hook in HOOKS {
            let program = ebpf.program(hook).with_context(|| format!("the object lacks the program {hook}"))?;
            let context = || format!("attaching {hook} to {}", cgroup_path.display());
            let pin = pins.current().join(link_name(hook));
            // Move another version's link here first; its program serves until the update below.
            if let Some(theirs) = others.iter().map(|other| other.join(link_name(hook))).find(|theirs| theirs.exists())
                && !pin.exists()
            {
                fs::rename(&theirs, &pin).with_context(context)?;
            }
            let (program, program_id) = descriptor(program).with_context(context)?;
            let (link, is_adopted) = all.link(hook, program, pins).with_context(context)?;
            adopted += usize::from(is_adopted);
            let program = program.try_clone_to_owned().with_context(context)?;
            all.links.push(HookLink { hook, program, id: program_id, link });
        }
        Ok((all, adopted))
    }

    /// Attaches a program that is not one of [`HOOKS`]; if its link is pinned, in the place of its program there.
    pub(crate) fn add(&mut self, hook: &'static str, program: BorrowedFd<'_>, id: u32, pins: &Pins) -> Result<()> {
        let (link, _) = self.link(hook, program, pins)?;
        self.links.push(HookLink { hook, program: program.try_clone_to_owned()?, id, link });
        Ok(())
    }

    /// Forgets an added program, which is about to be detached.
    pub(crate) fn forget(&mut self, hook: &str) {
        self.links.retain(|link| link.hook != hook);
    }

    /// Returns the link of a hook with this program, and true if it was pinned.
    fn link(&self, hook: &'static str, program: BorrowedFd<'_>, pins: &Pins) -> Result<(Pinned, bool)> {
        let pin = pins.current().join(link_name(hook));
        match Pinned::open(pin.clone()) {
            Ok(link) if bpf::cgroup_link(&link)?.cgroup == self.id => {
                bpf::update_link(&link, program)?;
                Ok((link, true))
            }
            Ok(elsewhere) => {
                let link = Pinned::create(self.new_link(hook, program)?, pins.staging().join(link_name(hook)))?;
                let link = link.move_to(pin)?;
                info!(program = hook, "moved from another cgroup");
                drop(elsewhere);
                Ok((link, false))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok((Pinned::create(self.new_link(hook, program)?, pin)?, false))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn new_link(&self, hook: &str, program: BorrowedFd<'_>) -> Result<OwnedFd> {
        let hook = attach_type(hook).context("a hook that the kernel does not have")?;
        Ok(bpf::attach_cgroup(program, &self.cgroup, hook)?)
    }

    /// Returns the links, for a check of their pins.
    pub(crate) fn pinned(&mut self) -> impl Iterator<Item = &mut Pinned> {
        self.links.iter_mut().map(|link| &mut link.link)
    }

    /// Attaches detached links again, and gives each its own program again. Returns what was found.
    pub(crate) fn mend(&mut self) -> Vec<Damage> {
        let mut damages = Vec::new();
        for at in 0..self.links.len() {
            let Some(HookLink { hook, program, id, link }) = self.links.get(at) else { continue };
            let (part, mended) = match bpf::cgroup_link(link) {
                Ok(found) if found.cgroup == self.id && found.program == *id => continue,
                Ok(found) if found.cgroup == self.id => {
                    let part = Part::Program { hook, by: found.program };
                    (part, bpf::update_link(link, program).map_err(anyhow::Error::from))
                }
                Ok(_) => (Part::Link(hook), self.attach_again(at)),
                Err(error) => (Part::Link(hook), Err(error.into())),
            };
            damages.push(Damage::new(part, mended));
        }
        damages
    }

    fn attach_again(&mut self, at: usize) -> Result<()> {
        let HookLink { hook, program, link, .. } = self.links.get(at).context("a link")?;
        let new = self.new_link(hook, program.as_fd())?;
        let mut new = Pinned::unpinned(new, link.path().to_owned());
        // The check of the pins reports a failure: the program serves without its pin too.
        let _reported_later = new.put_back();
        if let Some(old) = self.links.get_mut(at) {
            old.link = new;
        }
        Ok(())
    }
}

/// Returns descriptor and id of a program.
pub(super) fn descriptor(program: &Program) -> Result<(BorrowedFd<'_>, u32)> {
    Ok(match program {
        Program::CgroupSockAddr(program) => (program.fd()?.as_fd(), program.info()?.id()),
        Program::CgroupSock(program) => (program.fd()?.as_fd(), program.info()?.id()),
        Program::SockOps(program) => (program.fd()?.as_fd(), program.info()?.id()),
        Program::BtfTracePoint(program) => (program.fd()?.as_fd(), program.info()?.id()),
        other => return Err(anyhow!("unexpected program type {:?}", other.prog_type())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::ejection::EjectionProgram;

    #[test]
    fn every_hook_is_one_of_the_kernels() {
        assert!(HOOKS.into_iter().chain([EjectionProgram::Handshakes.name()]).all(|hook| attach_type(hook).is_some()));
    }
}

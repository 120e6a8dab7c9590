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

/// The program that is at the cgroup only while a Service has ejection, since every TCP socket pays for it.
pub(crate) const FOLLOW_HANDSHAKES: &str = "follow_handshakes";

/// Use of the handshakes of TCP sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handshakes {
    /// The program `follow_handshakes` is attached.
    Followed,
    /// It is not.
    Ignored,
}

/// Returns the kernel's attach type of a hook; none for an unknown name.
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
        FOLLOW_HANDSHAKES => bpf_attach_type::BPF_CGROUP_SOCK_OPS,
        _ => return None,
    })
}

/// The links at a cgroup, in the order of [`HOOKS`], then that of [`FOLLOW_HANDSHAKES`], if it is attached.
pub(crate) struct CgroupLinks {
    cgroup: File,
    /// Id of the cgroup.
    id: u64,
    links: Vec<HookLink>,
    /// [`FOLLOW_HANDSHAKES`], if the kernel has accepted it.
    follower: Option<(OwnedFd, u32)>,
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
        let (mut all, mut adopted) = (Self { cgroup, id, links: Vec::new(), follower: follower(ebpf)? }, 0);
        for hook in HOOKS.into_iter().chain([FOLLOW_HANDSHAKES]) {
            let program = ebpf.program(hook).with_context(|| format!("the object lacks the program {hook}"))?;
            let context = || format!("attaching {hook} to {}", cgroup_path.display());
            let pin = pins.current().join(link_name(hook));
            // Move another version's link here first; its program serves until the update below.
            if let Some(theirs) = others.iter().map(|other| other.join(link_name(hook))).find(|theirs| theirs.exists())
                && !pin.exists()
            {
                fs::rename(&theirs, &pin).with_context(context)?;
            }
            // Attached before, and wanted until the first pass says otherwise.
            if hook == FOLLOW_HANDSHAKES && (all.follower.is_none() || !pin.exists()) {
                continue;
            }
            let (program, program_id) = descriptor(program).with_context(context)?;
            let (link, is_adopted) = all.link(hook, program, pins).with_context(context)?;
            adopted += usize::from(is_adopted);
            let program = program.try_clone_to_owned().with_context(context)?;
            all.links.push(HookLink { hook, program, id: program_id, link });
        }
        Ok((all, adopted))
    }

    /// Attaches or detaches [`FOLLOW_HANDSHAKES`]. Returns true if that changed anything.
    pub(crate) fn set_handshakes(&mut self, wanted: Handshakes, pins: &Pins) -> Result<bool> {
        let at = self.links.iter().position(|link| link.hook == FOLLOW_HANDSHAKES);
        match (&self.follower, at) {
            (Some((program, id)), None) if wanted == Handshakes::Followed => {
                let (program, id) = (program.try_clone()?, *id);
                let (link, _) = self.link(FOLLOW_HANDSHAKES, program.as_fd(), pins).context("attaching the program")?;
                self.links.push(HookLink { hook: FOLLOW_HANDSHAKES, program, id, link });
            }
            (_, Some(at)) if wanted == Handshakes::Ignored => {
                let HookLink { link, .. } = self.links.remove(at);
                bpf::detach_link(&link).context("detaching the program")?;
                if link.is_in_place() {
                    fs::remove_file(link.path()).context("removing the pin of its link")?;
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
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

/// Returns [`FOLLOW_HANDSHAKES`]; none if the kernel refused it.
fn follower(ebpf: &Ebpf) -> Result<Option<(OwnedFd, u32)>> {
    let program =
        ebpf.program(FOLLOW_HANDSHAKES).with_context(|| format!("the object lacks the program {FOLLOW_HANDSHAKES}"))?;
    let Ok((program, id)) = descriptor(program) else { return Ok(None) };
    Ok(Some((program.try_clone_to_owned()?, id)))
}

/// Returns descriptor and id of a program.
fn descriptor(program: &Program) -> Result<(BorrowedFd<'_>, u32)> {
    Ok(match program {
        Program::CgroupSockAddr(program) => (program.fd()?.as_fd(), program.info()?.id()),
        Program::CgroupSock(program) => (program.fd()?.as_fd(), program.info()?.id()),
        Program::SockOps(program) => (program.fd()?.as_fd(), program.info()?.id()),
        other => return Err(anyhow!("unexpected program type {:?}", other.prog_type())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hook_is_one_of_the_kernels() {
        assert!(HOOKS.into_iter().chain([FOLLOW_HANDSHAKES]).all(|hook| attach_type(hook).is_some()));
    }
}

//! Owner of a bpffs. If it is mounted only in a container, its pins end with the container, and with them programs,
//! maps and every Service of the node (cilium/cilium#28755).

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use lb_kernel::process;

use super::pins::BPF_FS_MAGIC;

/// Owner of a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BpffsOwner {
    /// The host: it is mounted in the host's mount namespace.
    Host,
    /// A container: it is mounted in another mount namespace only, and ends with that.
    Container,
    /// Not known: the host's mounts cannot be seen from here.
    Unknown,
    /// The directory is on no bpffs.
    NoBpffs,
}

/// Returns the owner of a directory's bpffs.
///
/// Each bpffs has a device number of its own. So a bpffs is the host's if its number is among the mounts of the host's
/// pid 1, which are visible in the host's pid namespace (`hostPID`). Elsewhere, a mount that receives propagation
/// (`master:`, `shared:`), as a container runtime creates it for a hostPath with mountPropagation, is the host's.
/// Without propagation the owner is unknown.
#[must_use]
pub fn owner(directory: &Path) -> BpffsOwner {
    let mounts = |of: &str| fs::read_to_string(format!("/proc/{of}/mountinfo")).ok();
    let hosts = mounts("1").filter(|_| process::sees_all());
    match (rustix::fs::statfs(directory), fs::metadata(directory)) {
        (Ok(kind), _) if kind.f_type != BPF_FS_MAGIC => BpffsOwner::NoBpffs,
        (Ok(_), Ok(found)) => {
            let device = format!("{}:{}", libc::major(found.dev()), libc::minor(found.dev()));
            owner_by_mounts(&device, hosts.as_deref(), &mounts("self").unwrap_or_default())
        }
        _ => BpffsOwner::Unknown,
    }
}

/// Decides from mounts (proc_pid_mountinfo(5)): the host's, if visible, and this process's.
fn owner_by_mounts(device: &str, hosts: Option<&str>, own: &str) -> BpffsOwner {
    match hosts {
        Some(hosts) if of_device(hosts, device).next().is_some() => BpffsOwner::Host,
        Some(_) => BpffsOwner::Container,
        None if of_device(own, device).any(is_propagated) => BpffsOwner::Host,
        None => BpffsOwner::Unknown,
    }
}

/// Lists the mounts of a device.
fn of_device<'a>(mounts: &'a str, device: &str) -> impl Iterator<Item = &'a str> {
    mounts.lines().filter(move |line| line.split(' ').nth(2) == Some(device))
}

/// True if a mount receives propagation, by an optional field between the options and a dash.
fn is_propagated(mount: &str) -> bool {
    let optional = mount.split(' ').skip(6).take_while(|field| *field != "-");
    optional.into_iter().any(|field| field.starts_with("master:") || field.starts_with("shared:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bpffs_of_a_container_is_not_the_hosts() {
        let at = |device: &str, optional: &str| {
            format!(
                "25 1 8:1 / / rw shared:1 - ext4 /dev/a rw\n\
                 40 25 {device} / /sys/fs/bpf rw,nosuid{optional} - bpf bpf rw\n"
            )
        };
        let (host, plain, slave) = (at("0:40", " shared:9"), at("0:40", ""), at("0:40", " master:9"));
        let cases = [
            ("the host's, bound", Some(&host), &plain, BpffsOwner::Host),
            ("mounted in the container", Some(&host), &at("0:41", ""), BpffsOwner::Container),
            (
                "mounted in the container, in a shared tree",
                Some(&host),
                &at("0:41", " master:9"),
                BpffsOwner::Container,
            ),
            ("no device is the beginning of another", Some(&at("0:4", "")), &plain, BpffsOwner::Container),
            ("HostToContainer", None, &slave, BpffsOwner::Host),
            ("Bidirectional", None, &at("0:40", " shared:9"), BpffsOwner::Host),
            ("both", None, &at("0:40", " shared:9 master:3"), BpffsOwner::Host),
            ("bound without propagation, or mounted in the container", None, &plain, BpffsOwner::Unknown),
        ];
        for (what, hosts, own, expected) in cases {
            let device = of_bpf(own);
            assert_eq!(owner_by_mounts(&device, hosts.map(String::as_str), own), expected, "{what}");
        }
    }

    /// Returns the device of the bpffs.
    fn of_bpf(mounts: &str) -> String {
        let line = mounts.lines().find(|line| line.contains(" bpf ")).expect("a bpffs");
        line.split(' ').nth(2).expect("a device").to_owned()
    }

    #[test]
    fn a_directory_on_another_file_system_has_no_owner() {
        assert_eq!(owner(Path::new("/proc")), BpffsOwner::NoBpffs);
        assert_eq!(owner(Path::new("/nowhere/at/all")), BpffsOwner::Unknown);
    }
}

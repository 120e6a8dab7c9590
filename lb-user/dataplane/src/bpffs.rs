//! Whose a bpffs is: pins on one that is mounted in a container alone end with that container, and with them programs, maps
//! and every Service of the node (cilium/cilium#28755).

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use super::upgrade::pins::BPF_FS_MAGIC;

/// Inode number of the first pid namespace, in which pid 1 is the host's (PROC_PID_INIT_INO, include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;

/// Whose a file system is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// Mounted in the mount namespace of the host.
    Hosts,
    /// Mounted elsewhere only, and gone with that mount namespace.
    Private,
    /// The host's mounts cannot be seen from here.
    Unseen,
    /// It is no bpffs.
    None,
}

/// Whose the file system of a directory is.
///
/// Each bpffs that is mounted anew has a device number of its own, so that one that is not among the mounts of the host's
/// first process is not the host's. They can be seen from the host's pid namespace only (`hostPID`). Otherwise a mount
/// that hears from another one (`master:`, `shared:`), as the runtime makes it for a hostPath with mountPropagation, is the
/// host's too; without one it may be either.
#[must_use]
pub fn whose(directory: &Path) -> Whose {
    let is_first = fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == FIRST_PID_NAMESPACE);
    let mounts = |of: &str| fs::read_to_string(format!("/proc/{of}/mountinfo")).ok();
    let hosts = mounts("1").filter(|_| is_first);
    match (rustix::fs::statfs(directory), fs::metadata(directory)) {
        (Ok(kind), _) if kind.f_type != BPF_FS_MAGIC => Whose::None,
        (Ok(_), Ok(found)) => {
            let device = format!("{}:{}", libc::major(found.dev()), libc::minor(found.dev()));
            decide(&device, hosts.as_deref(), &mounts("self").unwrap_or_default())
        }
        _ => Whose::Unseen,
    }
}

/// The same, of mounts as proc_pid_mountinfo(5) tells them: the host's, where they are seen, and our own.
fn decide(device: &str, hosts: Option<&str>, own: &str) -> Whose {
    match hosts {
        Some(hosts) if of_device(hosts, device).next().is_some() => Whose::Hosts,
        Some(_) => Whose::Private,
        None if of_device(own, device).any(hears) => Whose::Hosts,
        None => Whose::Unseen,
    }
}

/// The mounts of a device.
fn of_device<'a>(mounts: &'a str, device: &str) -> impl Iterator<Item = &'a str> {
    mounts.lines().filter(move |line| line.split(' ').nth(2) == Some(device))
}

/// Whether a mount hears of what is mounted elsewhere: an optional field says so, between the options and a dash.
fn hears(mount: &str) -> bool {
    let optional = mount.split(' ').skip(6).take_while(|field| *field != "-");
    optional.into_iter().any(|field| field.starts_with("master:") || field.starts_with("shared:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bpffs_of_the_container_alone_is_told_from_the_hosts() {
        let at = |device: &str, optional: &str| {
            format!(
                "25 1 8:1 / / rw shared:1 - ext4 /dev/a rw\n40 25 {device} / /sys/fs/bpf rw,nosuid{optional} - bpf bpf rw\n"
            )
        };
        let (host, plain, slave) = (at("0:40", " shared:9"), at("0:40", ""), at("0:40", " master:9"));
        let cases = [
            ("the host's, bound", Some(&host), &plain, Whose::Hosts),
            ("mounted in the container", Some(&host), &at("0:41", ""), Whose::Private),
            ("mounted in the container, in a tree that hears", Some(&host), &at("0:41", " master:9"), Whose::Private),
            ("no device is the beginning of another", Some(&at("0:4", "")), &plain, Whose::Private),
            ("HostToContainer", None, &slave, Whose::Hosts),
            ("Bidirectional", None, &at("0:40", " shared:9"), Whose::Hosts),
            ("both", None, &at("0:40", " shared:9 master:3"), Whose::Hosts),
            ("bound without propagation, or mounted in the container", None, &plain, Whose::Unseen),
        ];
        for (what, hosts, own, expected) in cases {
            let device = of_bpf(own);
            assert_eq!(decide(&device, hosts.map(String::as_str), own), expected, "{what}");
        }
    }

    /// The device of the bpffs.
    fn of_bpf(mounts: &str) -> String {
        let line = mounts.lines().find(|line| line.contains(" bpf ")).expect("a bpffs");
        line.split(' ').nth(2).expect("a device").to_owned()
    }

    #[test]
    fn what_is_no_bpffs_is_nobodys() {
        assert_eq!(whose(Path::new("/proc")), Whose::None);
        assert_eq!(whose(Path::new("/nowhere/at/all")), Whose::Unseen);
    }
}

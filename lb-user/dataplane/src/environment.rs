//! Requirements on the node: privileges, a kernel, the host's cgroup2 hierarchy and a bpffs, which are found or
//! mounted.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    mount::{MountFlags, mount},
    thread::CapabilitySet,
};

use super::bpffs::{self, BpffsOwner};

/// Oldest kernel on which the programs load.
pub const KERNEL_FLOOR: (u32, u32) = (5, 10);

/// Mount point for a bpffs, which all tools use.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Mount point for cgroup2, if it is not mounted.
const CGROUP2: &str = "/run/beeline/cgroup2";

/// Checks privileges and the kernel's version.
///
/// # Errors
/// With the cure: not root, a missing capability, or an old kernel.
pub fn check() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "not root: eBPF programs need CAP_BPF and CAP_NET_ADMIN; run as root, or as a privileged container"
    );
    let capabilities = rustix::thread::capabilities(None).context("reading the capabilities of this process")?;
    let lacking = lacking(capabilities.effective);
    ensure!(
        lacking.is_empty(),
        "this process lacks {}: run it as root with all capabilities, in a privileged container, or with the \
         capabilities of deploy/components/least-capabilities or fewest-capabilities",
        lacking.join(", ")
    );
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    if parse_release(&release).is_some_and(|version| version < KERNEL_FLOOR) {
        let (major, minor) = KERNEL_FLOOR;
        bail!("kernel {release} is too old: Beeline needs {major}.{minor} or later");
    }
    Ok(())
}

/// Lists the missing capabilities. CAP_SYS_ADMIN includes the ones split from it in Linux 5.8.
fn lacking(has: CapabilitySet) -> Vec<&'static str> {
    let needs = [
        ("CAP_BPF", CapabilitySet::BPF | CapabilitySet::SYS_ADMIN),
        ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
        ("CAP_PERFMON", CapabilitySet::PERFMON | CapabilitySet::SYS_ADMIN),
    ];
    needs.into_iter().filter(|(_, any)| !has.intersects(*any)).map(|(name, _)| name).collect()
}

/// Parses the first two numbers of a kernel's release.
#[must_use]
pub fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Returns the mount point of a file system type from /proc/self/mountinfo: the `usual` one, or else the first.
fn mounted(fs_type: &str, usual: &str) -> Result<Option<PathBuf>> {
    let mounts =
        fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo (is /proc mounted?)")?;
    Ok(find_mount(&mounts, fs_type, usual).map(PathBuf::from))
}

fn find_mount<'a>(mounts: &'a str, fs_type: &str, usual: &str) -> Option<&'a str> {
    let of_type = |line: &'a str| {
        let (left, right) = line.split_once(" - ")?;
        (right.split(' ').next()? == fs_type).then(|| left.split(' ').nth(4))?
    };
    let all = || mounts.lines().filter_map(of_type);
    all().find(|place| *place == usual).or_else(|| all().next())
}

/// Returns the mounted bpffs, if there is one. Of several the one at [`BPFFS`] counts, so that a command finds the pins
/// of an agent that sees fewer mounts.
///
/// # Errors
/// If /proc cannot be read.
pub fn find_bpffs() -> Result<Option<PathBuf>> {
    mounted("bpf", BPFFS)
}

/// Returns the host's bpffs, and mounts it if it is not mounted.
///
/// # Errors
/// If it cannot be mounted, or is not the host's.
pub fn bpffs() -> Result<PathBuf> {
    let path = if let Some(path) = find_bpffs()? {
        path
    } else {
        tracing::info!(path = BPFFS, "mounting the bpf file system");
        mount("bpf", BPFFS, "bpf", MountFlags::empty(), None).with_context(|| {
            format!("no bpffs is mounted, and it cannot be mounted: try `mount -t bpf bpf {BPFFS}` on the host")
        })?;
        BPFFS.into()
    };
    let cure = format!(
        "`mount -t bpf bpf {BPFFS}` on the host, and give the container that directory: a hostPath with \
         mountPropagation HostToContainer, as in deploy/"
    );
    let shown = path.display();
    let owner = bpffs::owner(&path);
    ensure!(
        owner != BpffsOwner::Container,
        "the bpffs at {shown} is not the host's but of this container alone, and would take programs and maps with it \
         when the container ends: {cure}; or name another directory with --pins"
    );
    if owner == BpffsOwner::Unknown {
        tracing::warn!(
            "the bpffs at {shown} may not be the host's, which cannot be seen from here: if it is of this container \
             alone, Services end with it; {cure}"
        );
    }
    Ok(path)
}

/// Returns the mount point of cgroup2, if it is mounted: the whole hierarchy, or the part that this mount namespace
/// sees.
///
/// # Errors
/// If /proc cannot be read.
pub fn find_cgroup2() -> Result<Option<PathBuf>> {
    mounted("cgroup2", "/sys/fs/cgroup")
}

/// Returns the root of the host's cgroup2 hierarchy, and mounts it if it is not mounted.
///
/// # Errors
/// If it cannot be mounted, or the mount is only a part of the hierarchy.
pub fn cgroup2() -> Result<PathBuf> {
    let path = if let Some(path) = find_cgroup2()? {
        path
    } else {
        tracing::info!(path = CGROUP2, "mounting cgroup2");
        fs::create_dir_all(CGROUP2).with_context(|| format!("creating {CGROUP2}"))?;
        mount("cgroup2", CGROUP2, "cgroup2", MountFlags::empty(), None).context(
            "no cgroup2 hierarchy is mounted, and it cannot be mounted: Beeline attaches to it; use a kernel with \
                 CONFIG_CGROUPS and CONFIG_CGROUP_BPF",
        )?;
        CGROUP2.into()
    };
    ensure!(
        is_root(&path)?,
        "{} is only a part of the cgroup2 hierarchy (a private cgroup namespace): programs attached there would miss \
         the other pods; run with the host's cgroup namespace and mount, or name the cgroup to serve with --cgroup",
        path.display()
    );
    Ok(path)
}

/// Checks the cgroup of the flag `--cgroup`.
///
/// # Errors
/// If it does not exist, or is not of version 2.
pub fn named_cgroup(path: PathBuf) -> Result<PathBuf> {
    // include/uapi/linux/magic.h
    const CGROUP2_MAGIC: i64 = 0x6367_7270;
    let found = rustix::fs::statfs(&path).with_context(|| format!("looking at the cgroup {}", path.display()))?;
    ensure!(
        found.f_type == CGROUP2_MAGIC,
        "{} is no cgroup of version 2: name a directory of the cgroup2 mount (`grep cgroup2 /proc/mounts`), or leave \
         --cgroup out",
        path.display()
    );
    Ok(path)
}

/// Id of the root of the whole hierarchy (kernfs): the inode number of its directory.
pub const ROOT_CGROUP: u64 = 1;

/// True if a cgroup is the root of the whole hierarchy.
fn is_root(path: &Path) -> Result<bool> {
    Ok(fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?.ino() == ROOT_CGROUP)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
35 24 0:33 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
40 1 0:40 / /sys/fs/bpf rw - bpf bpf rw,mode=700
";

    #[test]
    fn a_mount_is_found_by_its_type() {
        let find = |fs_type| find_mount(HYBRID, fs_type, "/sys/fs/bpf");
        assert_eq!(find("cgroup2"), Some("/sys/fs/cgroup/unified"));
        assert_eq!(find("bpf"), Some("/sys/fs/bpf"));
        assert_eq!(find("xfs"), None);
    }

    #[test]
    fn of_several_mounts_the_usual_one_counts() {
        let many = format!("20 1 0:9 / /run/other/bpffs rw - bpf bpf rw\n{HYBRID}");
        assert_eq!(find_mount(&many, "bpf", "/sys/fs/bpf"), Some("/sys/fs/bpf"));
        assert_eq!(find_mount(&many, "bpf", "/elsewhere"), Some("/run/other/bpffs"));
    }

    #[test]
    fn lacking_capabilities_are_named() {
        let all = CapabilitySet::BPF | CapabilitySet::NET_ADMIN | CapabilitySet::PERFMON;
        assert!(lacking(all).is_empty());
        assert_eq!(lacking(all.difference(CapabilitySet::PERFMON)), ["CAP_PERFMON"]);
        assert_eq!(lacking(CapabilitySet::SYS_ADMIN), ["CAP_NET_ADMIN"]);
        assert_eq!(lacking(CapabilitySet::empty()), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        assert_eq!(parse_release("5.10.0-28-cloud-amd64"), Some((5, 10)));
        assert_eq!(parse_release("6.1.0"), Some((6, 1)));
        assert_eq!(parse_release("odd"), None);
        assert!(parse_release("5.4.0") < Some(KERNEL_FLOOR));
    }
}

//! The network namespaces of this node, found by its processes and by bind mounts, each once; and which of them have
//! sockets at all.
//!
//! A namespace that only an open descriptor or a single thread of a process keeps alive is not found.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ffi::OsString,
    fs::{self, File},
    io,
    net::{Ipv4Addr, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use lb_common::Proto;
use rustix::thread::{CapabilitySet, LinkNameSpaceType, move_into_link_name_space};

use crate::{process, socket_options};
use lb_common::Family;

/// A network namespace, held open.
pub struct NetNamespace(File);

impl NetNamespace {
    /// Returns the inode number, by which the kernel identifies the namespace; None if it cannot be read.
    #[must_use]
    pub fn inode(&self) -> Option<u64> {
        Some(self.0.metadata().ok()?.ino())
    }

    /// Opens the namespace that a file stands for, such as `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Returns the cookie, by which BPF programs identify the namespace. Asks on a thread of its own, so that the
    /// caller's thread stays where it is.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN, or before Linux 5.14.
    pub fn cookie(&self) -> Result<u64> {
        let ask = || {
            self.enter().context("entering a network namespace, which needs CAP_SYS_ADMIN")?;
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("opening a socket there")?;
            socket_options::netns_cookie(&socket)
                .context("asking for the cookie of a network namespace, which is of Linux 5.14")
        };
        thread::scope(|scope| scope.spawn(ask).join()).map_err(|_| anyhow!("the question for a cookie failed"))?
    }

    /// Moves this thread into the namespace.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?)
    }
}

impl AsFd for NetNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns the cookie of this thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
/// `ENOPROTOOPT` before Linux 5.14.
pub fn cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket_options::netns_cookie(&socket)
}

/// True if this thread's network namespace has sockets of a protocol and family, or if the kernel does not count them.
///
/// A cheap check before a dump, which walks one table of the sockets of all namespaces. Most pods have no UDP socket.
#[must_use]
pub fn has_sockets(proto: Proto, family: Family) -> bool {
    let file = match family {
        Family::V4 => "/proc/thread-self/net/sockstat",
        Family::V6 => "/proc/thread-self/net/sockstat6",
    };
    let counts = fs::read_to_string(file).unwrap_or_default();
    in_use(&counts, proto, family) != Some(0)
}

/// Reads the count in a line such as `UDP6: inuse 2`.
fn in_use(counts: &str, proto: Proto, family: Family) -> Option<u64> {
    let six = if family == Family::V6 { "6" } else { "" };
    let name = format!("{}{six}:", proto.name());
    counts.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name && words.next()? == "inuse").then(|| words.next()?.parse().ok())?
    })
}

/// Opens all network namespaces, but for namespaces that end meanwhile, or that this process has no right to see.
///
/// # Errors
/// When /proc cannot be read.
pub fn all() -> Result<Vec<NetNamespace>> {
    let mut found = BTreeMap::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    for (inode, path) in mounted(&mounts) {
        add(&mut found, inode, &path);
    }
    for process in fs::read_dir("/proc").context("reading /proc")?.flatten() {
        if process.file_name().to_string_lossy().starts_with(|c: char| c.is_ascii_digit()) {
            let path = process.path().join("ns/net");
            if let Ok(namespace) = fs::metadata(&path) {
                add(&mut found, namespace.ino(), &path);
            }
        }
    }
    Ok(found.into_values().map(NetNamespace).collect())
}

/// As [`all`]; none if this process has no right to see, or to enter, those of other processes: in a pid namespace of
/// its own, or without `CAP_SYS_PTRACE` or `CAP_SYS_ADMIN`.
///
/// # Errors
/// When /proc cannot be read.
pub fn all_without_exception() -> Result<Option<Vec<NetNamespace>>> {
    let needed = CapabilitySet::SYS_PTRACE | CapabilitySet::SYS_ADMIN;
    let capabilities = rustix::thread::capabilities(None).context("reading the capabilities of this process")?;
    (process::sees_all() && capabilities.effective.contains(needed)).then(all).transpose()
}

fn add(found: &mut BTreeMap<u64, File>, inode: u64, path: &Path) {
    if let Entry::Vacant(place) = found.entry(inode)
        && let Ok(file) = File::open(path)
        // The process may have ended meanwhile, or another mount may lie over this one.
        && file.metadata().is_ok_and(|opened| opened.ino() == inode)
    {
        place.insert(file);
    }
}

/// Lists the bind mounts of network namespaces in the text of /proc/self/mountinfo: inode and path.
fn mounted(mounts: &str) -> impl Iterator<Item = (u64, PathBuf)> + '_ {
    mounts.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut words = left.split(' ').skip(3);
        let (root, path) = (words.next()?, words.next()?);
        let inode = root.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()?;
        right.starts_with("nsfs ").then(|| (inode, unescape(path)))
    })
}

/// Decodes white space and backslashes, which mountinfo writes as three octal digits (proc_pid_mountinfo(5)).
fn unescape(path: &str) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), path.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        if let Some(code) = code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(code);
            rest = after.get(3..).unwrap_or_default();
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    OsString::from_vec(bytes).into()
}

/// Calls `run` in the network namespace of this inode number, on a thread of its own. None if that namespace is gone.
///
/// # Errors
/// When /proc cannot be read, or without CAP_SYS_ADMIN.
pub fn in_namespace<T: Send>(inode: u64, run: impl FnOnce() -> T + Send) -> Result<Option<T>> {
    let Some(namespace) = all()?.into_iter().find(|namespace| namespace.inode() == Some(inode)) else {
        return Ok(None);
    };
    thread::scope(|scope| {
        let visit = || {
            namespace.enter().context("entering a network namespace")?;
            Ok(Some(run()))
        };
        scope.spawn(visit).join().map_err(|_| anyhow::anyhow!("the thread in another network namespace panicked"))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_mounts_of_network_namespaces_are_found() {
        let mounts = "\
25 1 0:22 / /run rw shared:5 - tmpfs tmpfs rw
90 25 0:4 net:[4026532345] /run/netns/a rw shared:9 - nsfs nsfs rw
91 25 0:4 mnt:[4026532346] /run/snapd/ns/b.mnt rw - nsfs nsfs rw
92 25 0:4 net:[4026532347] /run/netns/with\\040space\\134 rw - nsfs nsfs rw
";
        assert_eq!(
            mounted(mounts).collect::<Vec<_>>(),
            [(4_026_532_345, "/run/netns/a".into()), (4_026_532_347, "/run/netns/with space\\".into())]
        );
    }

    #[test]
    fn sockets_in_use_are_counted_by_kind() {
        let counts =
            "sockets: used 90\nTCP: inuse 0 orphan 0 tw 2 alloc 7 mem 0\nUDP: inuse 3 mem 1\nUDPLITE: inuse 0\n";
        assert_eq!(in_use(counts, Proto::Tcp, Family::V4), Some(0));
        assert_eq!(in_use(counts, Proto::Udp, Family::V4), Some(3));
        assert_eq!(in_use("TCP6: inuse 1\nUDP6: inuse 2\n", Proto::Udp, Family::V6), Some(2));
        assert_eq!(in_use("", Proto::Udp, Family::V6), None, "unknown");
    }
}

//! The sockets that are bound to a port without a peer, and who holds them.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Result;
use lb_common::Proto;

use super::{
    channel::Channel,
    message::{Query, Socket, state},
};
use lb_common::Family;

/// A TCP listener, or a UDP socket without a peer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Bound {
    /// TCP or UDP.
    pub proto: Proto,
    /// Where it is bound. `[::]` may mean IPv4 as well.
    pub address: SocketAddr,
    /// By which /proc knows it.
    pub inode: u32,
    /// The process that holds it, the first of several; none when /proc does not show it.
    pub owner: Option<Owner>,
}

/// A process.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Owner {
    /// Its number.
    pub pid: u32,
    /// Its name, as `ps` shows it.
    pub comm: String,
}

/// The sockets bound to one of `ports` in this thread's network namespace, sorted.
///
/// # Errors
/// When the kernel does not list sockets.
pub fn bound(ports: &dyn Fn(Proto, u16) -> bool) -> Result<Vec<Bound>> {
    let mut channel = Channel::open()?;
    let mut found = Vec::new();
    for (proto, states) in [(Proto::Tcp, state::LISTEN), (Proto::Udp, state::CLOSE)] {
        for family in [Family::V4, Family::V6] {
            let query = Query { family, proto, states, filter: None };
            found.extend(channel.list(query, |Socket { local, inode, .. }| {
                let address = SocketAddr::new(local.addr.to_ip(), local.port);
                Ok(ports(proto, local.port).then_some(Bound { proto, address, inode: *inode, owner: None }))
            })?);
        }
    }
    if !found.is_empty() {
        // All descriptors of the node are looked at, so only when there is something to find.
        let mut owners = owners(Path::new("/proc"), &found.iter().map(|socket| socket.inode).collect::<Vec<_>>());
        for socket in &mut found {
            socket.owner = owners.remove(&socket.inode);
        }
    }
    found.sort();
    Ok(found)
}

/// Who holds the sockets of these inodes.
fn owners(proc: &Path, inodes: &[u32]) -> BTreeMap<u32, Owner> {
    let mut pids: Vec<u32> = entries(proc).filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let mut owners = BTreeMap::new();
    for pid in pids {
        let process = proc.join(pid.to_string());
        for inode in entries(&process.join("fd")).filter_map(|path| socket_inode(&fs::read_link(path).ok()?)) {
            if inodes.contains(&inode) {
                let comm = fs::read_to_string(process.join("comm")).unwrap_or_default().trim_end().to_owned();
                owners.entry(inode).or_insert(Owner { pid, comm });
            }
        }
        if owners.len() == inodes.len() {
            break;
        }
    }
    owners
}

/// What is in a directory; nothing when it has gone.
fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The inode in the text of a descriptor's link (proc_pid_fd(5)).
fn socket_inode(link: &Path) -> Option<u32> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_first_process_that_holds_a_socket_is_named() {
        let proc = tempfile::tempdir().expect("a directory");
        for (pid, comm, links) in [("20", "b\n", "socket:[7]"), ("3", "a\n", "socket:[7]"), ("4", "c\n", "/dev/null")] {
            let process = proc.path().join(pid);
            fs::create_dir_all(process.join("fd")).expect("a directory");
            fs::write(process.join("comm"), comm).expect("a file");
            symlink(links, process.join("fd/5")).expect("a link");
        }
        fs::create_dir(proc.path().join("sys")).expect("a directory");
        let wanted = BTreeMap::from([(7, Owner { pid: 3, comm: "a".to_owned() })]);
        assert_eq!(owners(proc.path(), &[7, 8]), wanted);
    }
}

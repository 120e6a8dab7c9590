//! Sockets that are bound to a port without a peer, and the processes that hold them.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::Path};

use anyhow::Result;
use lb_common::{AddrPort, Proto};

use super::{
    channel::SockDiag,
    message::{Socket, SocketQuery, state},
};
use crate::process::{self, Process};
use lb_common::Family;

/// A TCP listener, or a UDP socket without a peer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BoundSocket {
    /// TCP or UDP.
    pub proto: Proto,
    /// Local address and port. `[::]` may accept IPv4 as well.
    pub address: SocketAddr,
    /// Inode number, by which /proc lists the socket.
    pub inode: u32,
    /// The first process that holds the socket; None if /proc shows none.
    pub owner: Option<Process>,
}

/// Lists the sockets of this thread's network namespace that are bound to one of `ports`, sorted.
///
/// # Errors
/// When the kernel does not list sockets.
pub fn bound_sockets(ports: &dyn Fn(Proto, u16) -> bool) -> Result<Vec<BoundSocket>> {
    let mut sock_diag = SockDiag::open()?;
    let mut found = Vec::new();
    for (proto, states) in [(Proto::Tcp, state::LISTEN), (Proto::Udp, state::CLOSE)] {
        for family in [Family::V4, Family::V6] {
            let query = SocketQuery { family, proto, states, filter: None };
            found.extend(sock_diag.list(query, |Socket { local, inode, .. }| {
                let address = SocketAddr::new(local.addr.to_ip(), local.port);
                Ok(ports(proto, local.port).then_some(BoundSocket { proto, address, inode: *inode, owner: None }))
            })?);
        }
    }
    if !found.is_empty() {
        // This walks the descriptors of all processes, so only if there is something to find.
        let mut owners = owners(Path::new("/proc"), &found.iter().map(|socket| socket.inode).collect::<Vec<_>>());
        for socket in &mut found {
            socket.owner = owners.remove(&socket.inode);
        }
    }
    found.sort();
    Ok(found)
}

/// True if a socket of the protocol listens at the address and port, or at all addresses, in the network namespace of
/// `sock_diag`.
///
/// # Errors
/// When the kernel does not list sockets.
pub fn listens(sock_diag: &mut SockDiag, proto: Proto, at: &AddrPort) -> Result<bool> {
    let states = if proto == Proto::Tcp { state::LISTEN } else { state::CLOSE };
    for family in [Family::V4, Family::V6] {
        let query = SocketQuery { family, proto, states, filter: None };
        let found = sock_diag.list(query, |Socket { local, .. }| {
            let is_there = local.port == at.port && (local.addr == at.addr || local.addr.is_unspecified());
            Ok(is_there.then_some(()))
        })?;
        if !found.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Finds the first process that holds the socket of each inode.
fn owners(proc: &Path, inodes: &[u32]) -> BTreeMap<u32, Process> {
    let mut owners = BTreeMap::new();
    for (pid, process) in process::processes(proc) {
        for inode in process::entries(&process.join("fd")).filter_map(|path| socket_inode(&fs::read_link(path).ok()?)) {
            if inodes.contains(&inode) {
                let comm = process::comm(&process).unwrap_or_default();
                owners.entry(inode).or_insert(Process { pid, comm });
            }
        }
        if owners.len() == inodes.len() {
            break;
        }
    }
    owners
}

/// Parses the inode in the text of a descriptor's link (proc_pid_fd(5)).
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
        let wanted = BTreeMap::from([(7, Process { pid: 3, comm: "a".to_owned() })]);
        assert_eq!(owners(proc.path(), &[7, 8]), wanted);
    }
}

//! A node that outlives its agents: a network namespace with an address, a mount namespace with a bpffs, a cgroup.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::agent::until;

/// The node; it ends with the value, and leaves nothing.
pub(crate) struct Node {
    /// A process that does nothing but hold the namespaces.
    holder: Child,
    cgroup: PathBuf,
    directory: TempDir,
}

impl Node {
    /// One that has `address`, beside those of loopback.
    pub(crate) fn with(address: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = lb_dataplane::environment::cgroup2().expect("asked before");
        let cgroup = root.join(format!("beeline-kube-node-{}", std::process::id()));
        fs::create_dir(&cgroup).expect("a cgroup");
        let script = "mkdir bpffs && mount -t bpf bpf bpffs && ip link set lo up && ip addr add \"$0\" dev lo && \
                      touch ready && exec sleep infinity";
        let holder = Command::new("unshare")
            .args(["--mount", "--net", "sh", "-ec", script, address])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare");
        let node = Self { holder, cgroup, directory };
        until("the node is there", || node.directory.path().join("ready").exists());
        node
    }

    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A command in its namespaces.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--net", "--target", &self.holder.id().to_string(), program]);
        command
    }

    /// Where agents pin.
    pub(crate) fn pins(&self) -> PathBuf {
        self.directory.path().join("bpffs/beeline")
    }

    /// A listener there.
    pub(crate) fn listen(&self, address: SocketAddr) -> TcpListener {
        let network = File::open(format!("/proc/{}/ns/net", self.holder.id())).expect("its network");
        let listen = move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).expect("its network");
            TcpListener::bind(address).expect("a listener")
        };
        // The namespace is that of the thread, and ends with it.
        std::thread::spawn(listen).join().expect("a listener")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let _ = fs::remove_dir(&self.cgroup);
    }
}

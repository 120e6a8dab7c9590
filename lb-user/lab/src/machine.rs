//! A node as its processes see it: a network namespace, a mount namespace with a bpffs, and a cgroup. It outlives its
//! agents.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::netns::LabNamespace;

/// A node. An idle process holds its mount namespace, and ends with this value or with this process.
pub struct Machine {
    /// Network namespace of the machine.
    pub net: LabNamespace,
    holder: Child,
    cgroup: PathBuf,
    directory: PathBuf,
}

impl Machine {
    /// Makes a node from a network namespace and an existing cgroup, with a bpffs at `bpffs` below `directory`.
    pub fn start(net: LabNamespace, cgroup: &Path, directory: &Path) -> Self {
        std::fs::create_dir_all(directory.join("bpffs")).expect("a directory");
        let script = "echo $$ > \"$0/cgroup.procs\" && mount -t bpf bpf \"$1\" && echo ready && exec cat";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c", script]);
        command.arg(cgroup).arg(directory.join("bpffs")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = net.spawn(&mut command);
        let mut line = String::new();
        let read = BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line);
        assert!(read.is_ok() && line == "ready\n", "a mount namespace with a bpffs");
        Self { net, holder, cgroup: cgroup.to_owned(), directory: directory.to_owned() }
    }

    /// The cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The directory of pins, on the node's bpffs: only its processes see it.
    pub fn pins(&self) -> PathBuf {
        self.directory.join("bpffs/beeline")
    }

    /// A command in the node's namespaces, and in the cgroup of this process.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--net", "--mount", "--", program]);
        command
    }

    /// A process of the node: in its namespaces, and in its cgroup from before its first socket. The program and its
    /// arguments follow as arguments.
    pub fn process(&self) -> Command {
        let mut command = self.command("sh");
        command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(&self.cgroup);
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        let _ended = self.holder.kill();
        let _ended = self.holder.wait();
    }
}

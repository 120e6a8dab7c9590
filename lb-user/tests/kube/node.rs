//! A node that outlives its agents, with an address for an API server.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use lb_lab::{LabNamespace, machine::Machine, sandbox::Sandbox};

/// A node, removed when dropped.
pub(crate) struct KubeTestNode {
    machine: Machine,
    // Dropped after the process in it.
    _sandbox: Sandbox,
}

impl KubeTestNode {
    /// Makes a node with `address` on its loopback device.
    pub(crate) fn with_address(address: &str) -> Self {
        let node = Self::named("kube-node");
        node.net().setup().address("lo", address).apply();
        node
    }

    /// Makes a node with loopback alone; the name is part of that of its cgroup.
    pub(crate) fn named(name: &str) -> Self {
        // Two stories that run beside each other may use the same name.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let sandbox = Sandbox::make(&format!("{name}-{number}")).expect("a cgroup and a directory");
        let net = LabNamespace::new();
        net.setup().up("lo").apply();
        let machine = Machine::start(net, sandbox.cgroup(), sandbox.directory());
        Self { machine, _sandbox: sandbox }
    }

    /// Network namespace of the node.
    pub(crate) fn net(&self) -> &LabNamespace {
        &self.machine.net
    }

    /// Cgroup of the node.
    pub(crate) fn cgroup(&self) -> &Path {
        self.machine.cgroup()
    }

    /// A command that runs in the namespaces of the node.
    pub(crate) fn command(&self, program: &str) -> Command {
        self.machine.command(program)
    }

    /// A process of the node, in its cgroup. The program and its arguments follow as arguments.
    pub(crate) fn process(&self) -> Command {
        self.machine.process()
    }

    /// The directory of pins.
    pub(crate) fn pins(&self) -> PathBuf {
        self.machine.pins()
    }

    /// Listens in the network namespace of the node.
    pub(crate) fn listen(&self, address: SocketAddr) -> TcpListener {
        self.machine.net.enter(|| TcpListener::bind(address)).expect("a listener")
    }
}

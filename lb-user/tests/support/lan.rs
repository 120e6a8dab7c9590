//! A small network for packets, as real nodes have it: a client outside, two nodes, and pods behind them, each in a
//! network namespace of its own.
//!
//! ```text
//! client 172.30.0.20 ─┐         ┌─ node1 172.30.0.11 ── pods 10.244.1.2, 10.244.1.3 and so on
//!                     ├─ bridge ┤
//!                     │         └─ node2 172.30.0.12 ── pods 10.244.2.2, 10.244.2.3 and so on
//! ```
//!
//! IPv6 is the same by fd30::11, ::12, ::20 and fd44:0:0:1::2. Nodes forward, and their default route is the client, which
//! stands for the world. Pods hang on links as the CNI plugin ptp makes them. No namespace has a name or a mount: each is
//! held by a descriptor, so that nothing is left however this process ends, as long as its children end too.
//!
//! A thread that enters a namespace makes sockets there, and starts processes there.

use std::{
    fs::{self, File},
    io::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, AsRawFd as _},
    process::{Child, Command, Stdio},
    thread,
};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// A network namespace, which ends with this and with what runs in it.
pub struct Namespace(File);

impl Namespace {
    fn new() -> Self {
        let make = || {
            #[expect(unsafe_code, reason = "unshare can take the file descriptors from under other threads")]
            // SAFETY: the descriptor table is not unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace");
            Self(File::open("/proc/thread-self/ns/net").expect("/proc"))
        };
        thread::scope(|scope| joined(scope.spawn(make)))
    }

    /// What `nsenter --net=` takes, while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Does something in the namespace, on a thread that this one waits for. Threads and processes that it starts are
    /// there too, and so is what they read below /proc/sys/net.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let there = || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).expect("our own namespace");
            work()
        };
        thread::scope(|scope| joined(scope.spawn(there)))
    }

    /// Starts a process there.
    pub fn spawn(&self, command: &mut Command) -> Child {
        self.enter(|| command.spawn()).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// Runs a command there, which must succeed; what it printed.
    pub fn run(&self, words: &[&str]) -> String {
        let (program, arguments) = words.split_first().expect("a command");
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = self.spawn(&mut command).wait_with_output().expect("its end");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Sets a sysctl below `net`, as in `ipv4/ip_forward`.
    pub fn set(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/net/{name}");
        self.enter(|| fs::write(&path, value)).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// Performs commands of `ip`, one a line.
    fn ip(&self, lines: &str) {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(&mut command);
        child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("ip reads to the end");
        let output = child.wait_with_output().expect("its end");
        assert!(output.status.success(), "{}\n{lines}", String::from_utf8_lossy(&output.stderr));
    }
}

/// What a thread gave, or its panic.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// How the nodes look at where a packet came from (net.ipv4.conf.all.rp_filter).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RpFilter {
    /// Not at all.
    Off = 0,
    /// The way back must lead out of the device by which it came.
    Strict = 1,
    /// There must be a way back.
    Loose = 2,
}

/// What may differ between one network and another.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Of all links.
    pub mtu: u16,
    /// Of both nodes.
    pub rp_filter: RpFilter,
    /// Of each node, at most 200.
    pub pods: u8,
}

impl Default for Options {
    /// The hard case, with one pod on each node.
    fn default() -> Self {
        Self { mtu: 1500, rp_filter: RpFilter::Strict, pods: 1 }
    }
}

/// A host of the network. Its link is `eth0`.
pub struct Host {
    /// Where it is.
    pub net: Namespace,
    /// Its addresses.
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Host {
    fn new(v4: [u8; 4], v6: [u16; 8]) -> Self {
        let net = Namespace::new();
        quiet(&net);
        Self { net, v4: v4.into(), v6: v6.into() }
    }
}

/// A node and its pods. On the node a pod's link is `pod` and the last part of the pod's address, as in `pod2`.
pub struct Node {
    /// The node itself.
    pub host: Host,
    /// The pods, whose addresses end in 2, 3 and so on.
    pub pods: Vec<Host>,
}

/// The network, while it exists.
pub struct Lan {
    /// The client, outside of all nodes.
    pub client: Host,
    /// One node.
    pub node1: Node,
    /// The other.
    pub node2: Node,
    /// Keeps the bridge.
    _bridge: Namespace,
}

impl Lan {
    /// Makes it. Everything answers at once.
    pub fn make(options: Options) -> Self {
        let client = Host::new([172, 30, 0, 20], [0xfd30, 0, 0, 0, 0, 0, 0, 0x20]);
        let (node1, node2) = (Node::make(1, options), Node::make(2, options));
        let bridge = Namespace::new();
        quiet(&bridge);
        // The bridge is a wire, and no wire asks netfilter.
        for family in ["arp", "ip", "ip6"] {
            // Only where the kernel can ask at all.
            bridge.enter(|| fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables"), "0").ok());
        }
        let mtu = options.mtu;
        let mut lines = "link add wire type bridge mcast_snooping 0\nlink set wire up\n".to_owned();
        for (name, host) in [("client", &client), ("node1", &node1.host), ("node2", &node2.host)] {
            let there = host.net.path();
            lines += &format!("link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {there}\n");
            lines += &format!("link set {name} master wire up\n");
        }
        bridge.ip(&lines);
        client.net.ip("link set lo up\nlink set eth0 up\n\
             address add 172.30.0.20/24 dev eth0\naddress add fd30::20/64 dev eth0 nodad\n\
             route add 10.244.1.0/24 via 172.30.0.11\nroute add fd44:0:0:1::/64 via fd30::11\n\
             route add 10.244.2.0/24 via 172.30.0.12\nroute add fd44:0:0:2::/64 via fd30::12\n");
        node1.join(1, 2, options);
        node2.join(2, 1, options);
        Self { client, node1, node2, _bridge: bridge }
    }
}

impl Node {
    fn make(number: u8, options: Options) -> Self {
        let host = Host::new([172, 30, 0, 10 + number], [0xfd30, 0, 0, 0, 0, 0, 0, 0x10 + u16::from(number)]);
        // Before there is any link, since each takes its own from `default`.
        for of in ["all", "default"] {
            host.net.set(&format!("ipv4/conf/{of}/rp_filter"), &(options.rp_filter as u8).to_string());
            // A packet that leaves by the link on which it came is no reason to teach the client another way.
            host.net.set(&format!("ipv4/conf/{of}/send_redirects"), "0");
            for family in ["ipv4", "ipv6"] {
                host.net.set(&format!("{family}/conf/{of}/forwarding"), "1");
            }
        }
        let pod =
            |last: u8| Host::new([10, 244, number, last], [0xfd44, 0, 0, u16::from(number), 0, 0, 0, u16::from(last)]);
        Self { host, pods: (2..2 + options.pods).map(pod).collect() }
    }

    /// Gives the node its addresses, routes and pods, once it hangs on the bridge.
    fn join(&self, number: u8, other: u8, options: Options) {
        let (Host { net, v4, v6 }, mtu) = (&self.host, options.mtu);
        let mut lines = format!(
            "link set lo up\nlink set eth0 up\n\
             address add {v4}/24 dev eth0\naddress add {v6}/64 dev eth0 nodad\n\
             route add 10.244.{other}.0/24 via 172.30.0.1{other}\nroute add fd44:0:0:{other}::/64 via fd30::1{other}\n\
             route add default via 172.30.0.20\nroute add default via fd30::20\n",
        );
        for (link, Host { net, v4, v6 }) in self.links() {
            let there = net.path();
            // As ptp: the gateway's address, alone in its prefix, on each of the links.
            lines += &format!(
                "link add {link} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {there}\nlink set {link} up\n\
                 address add 10.244.{number}.1/32 dev {link}\naddress add fd44:0:0:{number}::1/128 dev {link} nodad\n\
                 route add {v4}/32 dev {link}\nroute add {v6}/128 dev {link}\n"
            );
        }
        net.ip(&lines);
        for pod in &self.pods {
            let Host { net, v4, v6 } = pod;
            net.ip(&format!(
                "link set lo up\nlink set eth0 up\n\
                 address add {v4}/32 dev eth0\naddress add {v6}/128 dev eth0 nodad\n\
                 route add 10.244.{number}.1/32 dev eth0 scope link\nroute add fd44:0:0:{number}::1/128 dev eth0\n\
                 route add default via 10.244.{number}.1\nroute add default via fd44:0:0:{number}::1\n"
            ));
        }
    }

    /// The pods' links on the node, and the pods.
    fn links(&self) -> impl Iterator<Item = (String, &Host)> {
        self.pods.iter().map(|pod| (format!("pod{}", pod.v4.octets()[3]), pod))
    }
}

/// No questions whether an address is taken, or where a router is. Before there is any link.
fn quiet(net: &Namespace) {
    for (name, value) in [("accept_dad", "0"), ("dad_transmits", "0"), ("router_solicitations", "0")] {
        net.set(&format!("ipv6/conf/default/{name}"), value);
    }
}

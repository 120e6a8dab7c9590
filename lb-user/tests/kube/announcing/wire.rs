//! Announcers at a bridge, with a client, and their objects.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use lb_kernel::packet_socket::PacketSocket;
use lb_lab::{
    LabNamespace,
    api_server::ApiServer,
    link::LinkSpec,
    neighbour_client::{LinkAddress, NeighbourClient},
    watchdog::Watchdog,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    agent::{KubeTestAgent, until},
    deploy,
    node::KubeTestNode,
};

/// Number of load balancer addresses of each family: 10.99.0.201, fd99::201, and so on.
const ADDRESSES: u8 = 4;
/// Interval of questions for each address.
const ROUND: Duration = Duration::from_millis(20);
/// The namespace of the Lease.
const NAMESPACE: &str = "--namespace=kube-system";

pub(crate) fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, 200 + last)
}

fn address6(last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0x200 + u16::from(last))
}

/// All load balancer addresses.
pub(crate) fn addresses() -> impl Iterator<Item = IpAddr> {
    (1..=ADDRESSES).flat_map(|last| [address(last).into(), address6(last).into()])
}

pub(crate) fn name(number: usize) -> String {
    format!("n{number}")
}

/// Nodes at a bridge, the client, and what agents need.
pub(crate) struct Wire {
    bridge: LabNamespace,
    client: LabNamespace,
    pub(crate) nodes: Vec<KubeTestNode>,
    /// Credentials of the agents: the account of `deploy/components/announce`.
    kubeconfig: PathBuf,
    watchdog: Watchdog,
    directory: TempDir,
}

impl Wire {
    pub(crate) fn make(server: &ApiServer, count: usize) -> Self {
        let (bridge, client) = (LabNamespace::new(), LabNamespace::new());
        bridge.setup().link("wire", &LinkSpec::bridge()).apply();
        bridge.setup().link("client", &LinkSpec::veth_to(&client, "eth0").port_of("wire")).apply();
        client.setup().up("eth0").apply();
        let node = |number: usize| {
            let node = KubeTestNode::named(&format!("announcer-{number}"));
            let net = node.net();
            bridge.setup().link(&name(number), &LinkSpec::veth_to(net, "eth0").port_of("wire")).apply();
            let own = [format!("10.99.0.{}/24", 10 + number), format!("fd99::{}/64", 10 + number)];
            net.setup().up("eth0").address("eth0", &own[0]).address("eth0", &own[1]).apply();
            lb_lab::relay::relay(net, server.port());
            node
        };
        let nodes = (1..=count).map(node).collect();
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("key"), "0123456789abcdef0123456789abcdef\n").expect("a file");
        let kubeconfig = deploy::announcer_account(server);
        let watchdog = Watchdog::start(directory.path());
        Self { bridge, client, nodes, kubeconfig, watchdog, directory }
    }

    /// Starts the client.
    pub(crate) fn client(&self) -> NeighbourClient {
        self.client_of(addresses(), ROUND)
    }

    /// Starts a client that asks for other addresses.
    pub(crate) fn client_of(&self, addresses: impl IntoIterator<Item = IpAddr>, interval: Duration) -> NeighbourClient {
        let link = self.client.run(&["ip", "-oneline", "link", "show", "eth0"]);
        let index = link.split(':').next().and_then(|index| index.parse().ok()).expect("an index");
        let open = |frames| self.client.enter(|| PacketSocket::open_for(index, frames));
        let senders = (Ipv4Addr::new(10, 99, 0, 100), Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0x100));
        NeighbourClient::start(open, senders, addresses, interval)
    }

    /// Prints the longest time since `start` in which an address had no answer, and asserts that it is short. The time
    /// that the machine lost meanwhile does not count.
    pub(crate) fn assert_gap(&self, client: &NeighbourClient, what: &str, start: Instant, most: Duration) {
        let (gap, lost) = (client.longest_gap(start), self.watchdog.lost(start));
        println!("{what}: {gap:.3?} without an answer, on a machine that may have lost {lost:.3?}");
        assert!(gap < most + lost, "{what}: {gap:?}, {lost:?} lost");
    }

    /// True if the machine has let a thread run in time since `since`, so that agents could renew their addresses.
    pub(crate) fn kept_pace(&self, since: Instant) -> bool {
        self.watchdog.lost(since) < Duration::from_secs(1)
    }

    /// The namespace of the client.
    pub(crate) fn client_host(&self) -> &LabNamespace {
        &self.client
    }

    /// A directory for files of a test.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Link address of a node.
    pub(crate) fn mac(&self, number: usize) -> LinkAddress {
        let link = self.nodes[number - 1].net().run(&["ip", "-oneline", "link", "show", "eth0"]);
        let (_, after) = link.split_once("link/ether ").expect("an Ethernet link");
        let text = after.split(' ').next().expect("an address");
        let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect();
        bytes.try_into().expect("6 bytes")
    }

    /// Connects a node to the bridge (`up`), or takes it off (`down`).
    pub(crate) fn set_link(&self, number: usize, state: &str) {
        self.bridge.setup().ip(&format!("link set {} {state}", name(number))).apply();
    }

    /// Lets a node reach the API server (`up`), or not (`down`). Its way there is the loopback device.
    pub(crate) fn set_way_to_api_server(&self, number: usize, state: &str) {
        self.nodes[number - 1].net().setup().ip(&format!("link set lo {state}")).apply();
    }

    /// Starts the agent of a node, as in a pod.
    pub(crate) fn start_agent(&self, number: usize) -> KubeTestAgent {
        self.start_agent_with(number, "")
    }

    /// As [`Wire::start_agent`], with additional options as in its configuration file.
    pub(crate) fn start_agent_with(&self, number: usize, flags: &str) -> KubeTestAgent {
        let flags = self.flags() + flags;
        KubeTestAgent::start_at(&self.nodes[number - 1], &name(number), &self.kubeconfig, &flags)
    }

    /// Starts a program as the agent of a node, as a service of the host.
    pub(crate) fn start_service(&self, number: usize, program: &Path) -> KubeTestAgent {
        let node = &self.nodes[number - 1];
        KubeTestAgent::start_service(program, node, &name(number), &self.kubeconfig, &self.flags())
    }

    fn flags(&self) -> String {
        let key = self.directory.path().join("key");
        format!("announce: beeline.io/announcer\nannounce-key-file: {}\n", key.display())
    }

    /// Runs a command of `beeline` on a node.
    pub(crate) fn beeline(&self, number: usize, arguments: &[&str]) -> String {
        let node = &self.nodes[number - 1];
        let mut command: Command = node.command(env!("CARGO_BIN_EXE_beeline"));
        let output = command.arg("--pins").arg(node.pins()).args(arguments).output().expect("a command");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// Makes the Nodes, with the label of announcers.
pub(crate) fn make_nodes(server: &ApiServer, count: usize) {
    for number in 1..=count {
        server.apply(&format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {}, labels: {{beeline.io/announcer: ''}}}}\n",
            name(number)
        ));
        let status = format!(
            r#"--patch={{"status":{{"addresses":[{{"type":"InternalIP","address":"10.99.0.{}"}}]}}}}"#,
            10 + number
        );
        server.kubectl(&["patch", &format!("node/{}", name(number)), "--subresource=status", "--type=merge", &status]);
    }
}

/// Makes the Nodes, and Services with addresses.
pub(crate) fn make_objects(server: &ApiServer, count: usize) {
    make_nodes(server, count);
    for last in 1..=ADDRESSES {
        server.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: announced-{last}}}\n\
             spec: {{type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{{port: 80}}], \
             ipFamilyPolicy: RequireDualStack}}\n"
        ));
        let ingress = format!(r#"[{{"ip":"{}"}},{{"ip":"{}"}}]"#, address(last), address6(last));
        let status = format!(r#"--patch={{"status":{{"loadBalancer":{{"ingress":{ingress}}}}}}}"#);
        let service = format!("service/announced-{last}");
        server.kubectl(&["patch", &service, "--subresource=status", "--type=merge", &status]);
    }
}

/// Deletes the Nodes, the Lease, and the account.
pub(crate) fn delete_nodes(server: &ApiServer, count: usize) {
    for number in 1..=count {
        server.kubectl(&["delete", &format!("node/{}", name(number))]);
    }
    server.kubectl(&["delete", "lease/beeline-announce", NAMESPACE]);
    deploy::delete_announcers(server);
}

/// Deletes the objects, too.
pub(crate) fn delete_objects(server: &ApiServer, count: usize) {
    for last in 1..=ADDRESSES {
        server.kubectl(&["delete", &format!("service/announced-{last}")]);
    }
    delete_nodes(server, count);
}

pub(crate) fn signal(agent: &KubeTestAgent, signal: Signal) {
    let pid = Pid::from_raw(agent.pid().try_into().expect("a pid")).expect("a pid");
    kill_process(pid, signal).expect("our own child");
}

/// The Lease.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct AnnouncersLease {
    pub(crate) version: String,
    /// The announcer with the vote of the API server, if there is one.
    pub(crate) holder: String,
    members: String,
}

/// Reads the Lease.
pub(crate) fn lease(server: &ApiServer) -> AnnouncersLease {
    let path = concat!(
        "--output=jsonpath={.metadata.resourceVersion}|{.spec.holderIdentity}|",
        r"{.metadata.annotations.beeline\.io/announcers}"
    );
    let text = server.try_kubectl(&["get", "lease/beeline-announce", NAMESPACE, path], "").unwrap_or_default();
    let mut parts = text.splitn(3, '|').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    AnnouncersLease { version: next(), holder: next(), members: next() }
}

/// Waits until the group has these members, and no change is under way.
pub(crate) fn until_group(server: &ApiServer, numbers: &[usize]) {
    let members: Vec<String> = numbers.iter().map(|number| format!("\"{}\"", name(*number))).collect();
    let expected = format!("\"members\":[{}]}}", members.join(","));
    until(&expected, || lease(server).members.ends_with(&expected));
}

/// Waits until every address has an answerer for which `is_so`.
pub(crate) fn until_answered(client: &NeighbourClient, what: &str, is_so: impl Fn(IpAddr, LinkAddress) -> bool) {
    until(what, || client.all_answered_by(&is_so));
}

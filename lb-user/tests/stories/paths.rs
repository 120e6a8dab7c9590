//! A pod chooses which path to Services it takes, by its own label or by that of its Namespace: real pods, each with a network
//! namespace and a cgroup of its own, behind a real link of the node.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{Child, Command},
};

use lb_common::{FlowFlags, FlowKey, PodModeEntry};
use lb_dataplane::flows::Flows;
use lb_kernel::bpf::typed::TypedMap;
use lb_lab::network::{Host, Lan, Options};

use crate::{
    Story,
    agent::{Agent, run, until},
    node::{Node, service},
    sockets::{Client, kernel_tells_netns, tcp_ask, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("paths_of_pods_are_chosen_by_label_and_change_while_they_run", changes),
    ("paths_by_the_label_of_a_namespace_let_applications_see_vips", mesh),
    ("paths_that_cannot_be_are_refused_with_the_cure", refused),
    ("paths_outlive_the_agent_and_end_with_the_pod", life),
];

const TARGET: u16 = 8080;

/// A process of a pod, in the pod's network namespace and cgroup.
struct Process {
    child: Child,
    cgroup: PathBuf,
}

impl Process {
    fn start(node: &Node, host: &Host, cgroup: &str) -> Self {
        let cgroup = node.cgroup.join(cgroup);
        fs::create_dir_all(&cgroup).expect("a cgroup");
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec sleep 1000"]).arg(&cgroup);
        let child = host.net.spawn(&mut command);
        Self { child, cgroup }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
        let _removed = fs::remove_dir(&self.cgroup);
    }
}

/// The first part of uids, which no other story has: all of them see the same processes.
fn uid() -> String {
    format!("{:08x}", std::process::id())
}

/// A pod as it stands in a file, with a uid and the addresses of its host.
fn pod(name: &str, host: &Host, label: Option<&str>) -> String {
    let label = label.map_or_else(String::new, |label| format!("labels: {{beeline.io/path: '{label}'}}, "));
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{{label}name: {name}, namespace: apps, uid: {}-0000-4a54-9c9e-{name}}}\n\
         spec: {{nodeName: here}}\nstatus: {{phase: Running, podIPs: [{{ip: {}}}, {{ip: \"{}\"}}]}}\n---\n",
        uid(),
        host.v4,
        host.v6
    )
}

/// As kubelet names cgroups: by itself, and with systemd.
fn cgroupfs(name: &str) -> String {
    format!("kubepods/besteffort/pod{}-0000-4a54-9c9e-{name}/3f9a", uid())
}

fn systemd(name: &str) -> String {
    format!("kubepods.slice/kubepods-besteffort-pod{}_0000_4a54_9c9e_{name}.slice/cri-containerd-3f9a.scope", uid())
}

/// A TCP Service at 10.96.0.1 and fd96::1 and a UDP Service at 10.96.0.53, all on port 80, with a host as their endpoint.
fn services(host: &Host) -> String {
    let at = |ip: IpAddr| SocketAddr::from((ip, TARGET)).to_string();
    let (v4, v6) = (at(host.v4.into()), at(host.v6.into()));
    service("web", &["10.96.0.1"], "TCP", 80, &[&v4])
        + &service("web6", &["fd96::1"], "TCP", 80, &[&v6])
        + &service("dns", &["10.96.0.53"], "UDP", 80, &[&v4])
}

fn serve(host: &Host) {
    host.net.enter(|| {
        for ip in [IpAddr::from(host.v4), host.v6.into()] {
            tcp_server(&SocketAddr::from((ip, TARGET)).to_string());
            udp_server(&SocketAddr::from((ip, TARGET)).to_string());
        }
    });
}

/// The VIPs belong to a host too, where somebody else answers.
fn serve_vips(host: &Host) {
    for vip in ["10.96.0.1/32", "10.96.0.53/32", "fd96::1/128"] {
        let nodad = if vip.starts_with("fd") { "nodad" } else { "noprefixroute" };
        host.net.run(&["ip", "address", "add", vip, "dev", "lo", nodad]);
    }
    host.net.enter(|| {
        for vip in VIPS {
            tcp_server(vip);
        }
        udp_server(DNS);
    });
}

const VIPS: [&str; 2] = ["10.96.0.1:80", "[fd96::1]:80"];
const DNS: &str = "10.96.0.53:80";

/// The agent of node1, which serves all cgroups of the story. No link has programs, unless a pod chooses it.
fn agent(node: &Node, lan: &Lan) -> Agent {
    let agent = lan.node1.host.net.enter(|| node.agent(&["--devices", "none"]));
    agent.wait_for("the backends are there", |dump| dump.backends.len() == 3);
    agent
}

/// What stands in `PATHS`: pod, what it has chosen, and its link.
fn chosen(node: &Node) -> Vec<(String, u8, u32)> {
    let map = TypedMap::<u64, PodModeEntry>::open(&node.maps(), "POD_MODES").expect("the pinned map");
    let entries = map.read().expect("its entries");
    entries.iter().map(|(_, path)| (path.name.to_string(), path.path, path.device)).collect()
}

fn wait_for(node: &Node, name: &str, path: u8) {
    until(&format!("{name} has path {path}"), || chosen(node).iter().any(|(pod, of, _)| pod == name && *of == path));
}

fn wait_for_none(node: &Node) {
    until("no pod has another path", || chosen(node).is_empty());
}

const PACKET: u8 = 1;
const OFF: u8 = 2;

/// Whom a host reaches at the VIPs.
#[track_caller]
fn reaches(host: &Host, whom: [&str; 2]) {
    host.net.enter(|| {
        for (vip, whom) in VIPS.into_iter().zip(whom) {
            let (server, _) = tcp_ask(crate::sockets::at(vip)).unwrap_or_else(|error| panic!("{vip}: {error}"));
            assert_eq!(server, whom, "at {vip}");
        }
        let dns = crate::sockets::at(DNS);
        let (server, from) = Client::udp(dns).ask(dns);
        assert_eq!((server.as_str(), from), (if whom[0] == VIPS[0] { DNS } else { whom[0] }, Some(dns)));
    });
}

fn backend(host: &Host) -> [String; 2] {
    [IpAddr::from(host.v4), host.v6.into()].map(|ip| SocketAddr::from((ip, TARGET)).to_string())
}

/// The flows of packets. The agent takes out what is over.
fn flows(node: &Node) -> BTreeSet<FlowKey> {
    let entries = Flows::open(&node.maps()).and_then(|flows| flows.read()).expect("the pinned map");
    let of_clients = entries.into_iter().filter(|(_, flow)| flow.flags & FlowFlags::REVERSE == 0);
    of_clients.map(|(key, _)| key).collect()
}

/// How many flows somebody's calls begin.
fn begun(node: &Node, calls: impl FnOnce()) -> usize {
    let before = flows(node);
    calls();
    flows(node).difference(&before).count()
}

/// Each path in turn, by one pod that goes on; somebody else answers at the VIPs on the node.
fn changes(node: &mut Node) {
    if !kernel_tells_netns() {
        return;
    }
    let lan = Lan::make(Options { pods: 2, ..Options::default() });
    let ([client, neighbour], [far, _]) = (&lan.node1.pods[..], &lan.node2.pods[..]) else { panic!("two pods each") };
    [far, neighbour].into_iter().for_each(serve);
    serve_vips(&lan.node1.host);
    node.write("web.yaml", &services(far));
    let process = Process::start(node, client, &cgroupfs("a"));
    let agent = agent(node, &lan);
    let far = backend(far);
    let far = [far[0].as_str(), &far[1]];

    node.write("pod.yaml", &pod("a", client, None));
    assert_eq!(begun(node, || reaches(client, far)), 0, "its sockets are connected to the backend itself");

    node.write("pod.yaml", &pod("a", client, Some("packet")));
    wait_for(node, "a", PACKET);
    let (dns, udp) = (crate::sockets::at(DNS), client.net.enter(|| Client::udp(crate::sockets::at(DNS))));
    assert_eq!(begun(node, || reaches(client, far)), 3, "its packets are translated");
    assert_eq!(begun(node, || assert_eq!(udp.ask(dns).0, far[0])), 1);
    assert_eq!(begun(node, || reaches(neighbour, far)), 0, "those of the neighbour are not");
    shown(node, &lan, &process, "packet, by the label of the pod", "goes there");
    let shown = lan.node1.host.net.enter(|| run(node, &["get", "paths"]));
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let row: Vec<&str> = shown.lines().nth(1).unwrap_or_default().split_whitespace().take(5).collect();
    assert_eq!(row, ["apps", "a", "packet", "pod", "pod2"], "{shown}");

    node.write("pod.yaml", &pod("a", client, Some("off")));
    wait_for(node, "a", OFF);
    assert_eq!(begun(node, || reaches(client, VIPS)), 0);
    assert_eq!(udp.ask(dns).0, far[0], "a flow that stands goes on");
    self::shown(node, &lan, &process, "off, by the label of the pod", "left alone");

    node.write("pod.yaml", &pod("a", client, Some("packet")));
    wait_for(node, "a", PACKET);
    assert_eq!(begun(node, || reaches(client, far)), 3);

    node.write("pod.yaml", &pod("a", client, Some("Socket")));
    wait_for_none(node);
    assert_eq!(begun(node, || reaches(client, far)), 0, "its sockets are served again");
    assert_eq!(udp.ask(dns).0, far[0]);
    agent.wait_for_log("label beeline.io/path \"Socket\": unknown and ignored; write socket, packet or off");
    drop(process);
}

/// `trace` says which path the pod has, whether it is asked by a process of it or by its address.
#[track_caller]
fn shown(node: &Node, lan: &Lan, process: &Process, path: &str, verdict: &str) {
    let (pid, ip) = (process.child.id().to_string(), lan.node1.pods[0].v4.to_string());
    for client in [["--pid", &pid], ["--from", &ip]] {
        let arguments = [&["trace", "tcp", VIPS[0]][..], &client].concat();
        let output = lan.node1.host.net.enter(|| run(node, &arguments));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(path) && text.contains("pod apps/a") && text.contains(verdict), "{client:?}: {text}");
    }
}

/// Something inside of the pod answers at the VIPs, as a mesh does: only where the socket path leaves the pod alone it ever
/// sees them.
fn mesh(node: &mut Node) {
    if !kernel_tells_netns() {
        return;
    }
    let lan = Lan::make(Options { pods: 2, ..Options::default() });
    let ([client, own], [far, _]) = (&lan.node1.pods[..], &lan.node2.pods[..]) else { panic!("two pods each") };
    serve(far);
    [client, own].into_iter().for_each(serve_vips);
    node.write("web.yaml", &services(far));
    let _processes = [("a", client), ("b", own)].map(|(name, host)| Process::start(node, host, &systemd(name)));
    let _agent = agent(node, &lan);
    let far = backend(far);
    let far = [far[0].as_str(), &far[1]];
    let pods = pod("a", client, None) + &pod("b", own, Some("socket"));
    let namespace = |label: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: apps, labels: {{beeline.io/path: '{label}'}}}}\n---\n"
        )
    };
    node.write("pods.yaml", &pods);
    [client, own].into_iter().for_each(|pod| reaches(pod, far));
    for (label, path) in [("off", OFF), ("packet", PACKET)] {
        node.write("pods.yaml", &(namespace(label) + &pods));
        wait_for(node, "a", path);
        reaches(client, VIPS);
        // Its own label goes before that of its Namespace.
        reaches(own, far);
        assert_eq!(chosen(node).len(), 1);
    }
    node.write("pods.yaml", &pods);
    wait_for_none(node);
    reaches(client, far);
}

fn refused(node: &mut Node) {
    let lan = Lan::make(Options { pods: 2, ..Options::default() });
    let ([client, _], [far, _]) = (&lan.node1.pods[..], &lan.node2.pods[..]) else { panic!("two pods each") };
    serve(far);
    node.write("web.yaml", &services(far));
    let _processes = [("a", client), ("b", &lan.node1.host), ("c", &lan.client)]
        .map(|(name, host)| Process::start(node, host, &cgroupfs(name)));
    let agent = agent(node, &lan);
    if !kernel_tells_netns() {
        node.write("pods.yaml", &pod("a", client, Some("packet")));
        agent.wait_for_log("Pod apps/a: the path packet is not for it, and it keeps socket");
        agent.wait_for_log("which is of Linux 5.14");
        return;
    }
    // One by its processes, one by its own word; one without a link of this node; one whose namespace nobody has.
    let host_network = pod("d", client, Some("off")).replace("nodeName", "hostNetwork: true, nodeName");
    let nowhere = pod("e", client, Some("off"))
        .replace("namespace: apps", "namespace: apps, annotations: {beeline.io/netns: /run/netns/nowhere}");
    let mounted = pod("f", client, Some("off")).replace(
        "namespace: apps",
        &format!("namespace: apps, annotations: {{beeline.io/netns: {}}}", client.net.path()),
    );
    let pods = pod("b", client, Some("off")) + &pod("c", client, Some("packet")) + &host_network + &nowhere;
    node.write("pods.yaml", &pods);
    for (name, path, why) in [
        ("b", "off", "it has the node's own network namespace"),
        ("c", "packet", "no link of this node leads to it"),
        ("d", "off", "it has the node's own network namespace"),
        ("e", "off", "its network namespace /run/netns/nowhere: No such file"),
    ] {
        agent.wait_for_log(&format!("Pod apps/{name}: the path {path} is not for it, and it keeps socket: {why}"));
    }
    assert!(chosen(node).is_empty(), "{:?}", chosen(node));
    let far = backend(far);
    reaches(client, [&far[0], &far[1]]);
    // The refused are in nobody's way, and a mounted namespace needs no process.
    node.write("pods.yaml", &(pods + &mounted));
    wait_for(node, "f", OFF);
    assert_eq!(chosen(node).len(), 1);
}

fn life(node: &mut Node) {
    if !kernel_tells_netns() {
        return;
    }
    let lan = Lan::make(Options { pods: 2, ..Options::default() });
    let ([client, late], [far, _]) = (&lan.node1.pods[..], &lan.node2.pods[..]) else { panic!("two pods each") };
    serve(far);
    node.write("web.yaml", &services(far));
    let pods = pod("a", client, Some("packet")) + &pod("b", late, Some("off"));
    node.write("pods.yaml", &pods);
    let _process = Process::start(node, client, &cgroupfs("a"));
    let mut first = agent(node, &lan);
    wait_for(node, "a", PACKET);
    let far = backend(far);
    let far = [far[0].as_str(), &far[1]];
    assert_eq!(begun(node, || reaches(client, far)), 3);
    // A process that comes later.
    let process = Process::start(node, late, &systemd("b"));
    wait_for(node, "b", OFF);
    let before = chosen(node);

    first.kill();
    assert_eq!((begun(node, || reaches(client, far)), chosen(node).len()), (3, 2), "nothing changes without an agent");
    let second = agent(node, &lan);
    until("it has looked", || second.log().contains("in service"));
    assert_eq!(begun(node, || reaches(client, far)), 3);
    assert_eq!(chosen(node), before);
    assert!(!second.log().contains("another path"), "it has nothing to say: {}", second.log());

    node.write("pods.yaml", &pod("b", late, Some("off")));
    until("one has gone", || chosen(node).iter().all(|(name, ..)| name == "b"));
    drop(process);
    fs::remove_file(node.yaml.join("pods.yaml")).expect("the file");
    wait_for_none(node);
    assert_eq!(begun(node, || reaches(client, far)), 0);
}

//! Pod modes (socket, packet, off) by the label of a pod or of its Namespace: pods with their own network namespace and
//! cgroup, behind a real link of the node.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    path::PathBuf,
    process::{Child, Command},
};

use lb_common::{FlowFlags, FlowKey, PodModeEntry};
use lb_dataplane::flows::Flows;
use lb_kernel::bpf::typed::TypedMap;
use lb_lab::network::{Host, Lan, LanOptions};

use crate::{
    Story,
    agent::{Agent, run, until},
    node::{StoryNode, service},
    sockets::{Client, has_netns_cookie, tcp_ask, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("pod_modes_follow_the_label_while_the_pod_runs", modes_follow_the_label),
    ("pod_modes_by_the_label_of_a_namespace_let_applications_see_vips", mesh_sees_vips),
    ("pod_modes_that_cannot_be_applied_are_refused_with_the_reason", bad_modes_are_refused),
    ("pod_modes_survive_the_agent_and_end_with_the_pod", modes_survive_the_agent),
];

const TARGET: u16 = 8080;

/// A process of a pod, in the pod's network namespace and cgroup.
pub struct Process {
    child: Child,
    cgroup: PathBuf,
}

impl Process {
    pub fn start(node: &StoryNode, host: &Host, cgroup: &str) -> Self {
        let cgroup = node.cgroup.join(cgroup);
        fs::create_dir_all(&cgroup).expect("a cgroup");
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec sleep 1000"]).arg(&cgroup);
        let child = host.net.spawn(&mut command);
        Self { child, cgroup }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
        let _removed = fs::remove_dir(&self.cgroup);
    }
}

/// Returns the first part of the pods' uids, unique to this story: all stories see the same processes.
fn uid() -> String {
    format!("{:08x}", std::process::id())
}

/// Returns the YAML of a pod with the addresses of its host.
pub fn pod(name: &str, host: &Host, label: Option<&str>) -> String {
    let label = label.map_or_else(String::new, |label| format!("labels: {{beeline.io/path: '{label}'}}, "));
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{{label}name: {name}, namespace: apps, uid: {}-0000-4a54-9c9e-{name}}}\n\
         spec: {{nodeName: here}}\nstatus: {{phase: Running, podIPs: [{{ip: {}}}, {{ip: \"{}\"}}]}}\n---\n",
        uid(),
        host.v4,
        host.v6
    )
}

/// Returns the cgroup of a container as kubelet's cgroupfs driver names it.
pub fn cgroupfs_name(name: &str) -> String {
    format!("kubepods/besteffort/pod{}-0000-4a54-9c9e-{name}/3f9a", uid())
}

/// Returns the cgroup of a container as kubelet's systemd driver names it.
fn systemd_name(name: &str) -> String {
    format!("kubepods.slice/kubepods-besteffort-pod{}_0000_4a54_9c9e_{name}.slice/cri-containerd-3f9a.scope", uid())
}

/// Returns TCP Services at 10.96.0.1 and fd96::1 and a UDP Service at 10.96.0.53, all on port 80 with a host as
/// endpoint.
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

/// Adds the VIPs to a host and starts servers there, which answer when the socket path does not translate.
fn serve_vips(host: &Host) {
    for vip in ["10.96.0.1/32", "10.96.0.53/32", "fd96::1/128"] {
        let nodad = if vip.starts_with("fd") { "nodad" } else { "noprefixroute" };
        host.net.run(&["ip", "address", "add", vip, "dev", "lo", nodad]);
    }
    host.net.enter(|| {
        // At all addresses: a listener at a VIP would win over the Service.
        let listener = TcpListener::bind("[::]:80").expect("a free port");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let vip = stream.local_addr().map(|vip| SocketAddr::new(vip.ip().to_canonical(), vip.port()));
                // The client may have closed already.
                let _gone = vip.and_then(|vip| stream.write_all(format!("{vip} ").as_bytes()));
            }
        });
        let socket = UdpSocket::bind("0.0.0.0:80").expect("a free port");
        std::thread::spawn(move || {
            while let Ok((_, client)) = socket.recv_from(&mut [0; 64]) {
                let _gone = socket.send_to(DNS.as_bytes(), client);
            }
        });
    });
}

const VIPS: [&str; 2] = ["10.96.0.1:80", "[fd96::1]:80"];
const DNS: &str = "10.96.0.53:80";

/// Starts the agent of node1 for all cgroups of the story. Only devices of pods in packet mode get programs.
fn agent(node: &StoryNode, lan: &Lan) -> Agent {
    let agent = lan.node1.host.net.enter(|| node.agent(&["--devices", "none"]));
    agent.wait_for("the backends are there", |dump| dump.backends.len() == 3);
    agent
}

/// Returns the entries of `POD_MODES`: pod, mode and device.
fn pod_modes(node: &StoryNode) -> Vec<(String, u8, u32)> {
    let map = TypedMap::<u64, PodModeEntry>::open(&node.maps(), "POD_MODES").expect("the pinned map");
    let entries = map.read().expect("its entries");
    entries.iter().map(|(_, entry)| (entry.name.to_string(), entry.path, entry.device)).collect()
}

pub fn wait_for(node: &StoryNode, name: &str, mode: u8) {
    until(&format!("{name} has mode {mode}"), || {
        pod_modes(node).iter().any(|(pod, its, _)| pod == name && *its == mode)
    });
}

fn wait_for_none(node: &StoryNode) {
    until("no pod has an entry", || pod_modes(node).is_empty());
}

pub const PACKET: u8 = 1;
pub const OFF: u8 = 2;

/// Asserts which server of each family answers a host at the VIPs.
#[track_caller]
fn assert_reaches(host: &Host, servers: [&str; 2]) {
    host.net.enter(|| {
        for (vip, expected) in VIPS.into_iter().zip(servers) {
            let (server, _) = tcp_ask(crate::sockets::at(vip)).unwrap_or_else(|error| panic!("{vip}: {error}"));
            assert_eq!(server, expected, "at {vip}");
        }
        let dns = crate::sockets::at(DNS);
        let (server, from) = Client::udp(dns).ask(dns);
        if servers[0] == VIPS[0] {
            // From the address of the node that the kernel chose.
            assert_eq!(server, DNS);
        } else {
            assert_eq!((server.as_str(), from), (servers[0], Some(dns)));
        }
    });
}

fn backend(host: &Host) -> [String; 2] {
    [IpAddr::from(host.v4), host.v6.into()].map(|ip| SocketAddr::from((ip, TARGET)).to_string())
}

/// Returns the flows that the packet path translates, without their reverse entries. The agent removes expired ones.
fn flows(node: &StoryNode) -> BTreeSet<FlowKey> {
    let entries = Flows::open(&node.maps()).and_then(|flows| flows.read()).expect("the pinned map");
    let others = FlowFlags::REVERSE | FlowFlags::PASSED;
    let of_clients = entries.into_iter().filter(|(_, flow)| flow.flags & others == 0);
    of_clients.map(|(key, _)| key).collect()
}

/// Returns the number of new flows that `calls` create.
fn new_flows(node: &StoryNode, calls: impl FnOnce()) -> usize {
    let before = flows(node);
    calls();
    flows(node).difference(&before).count()
}

/// One running pod gets each mode in turn. Other servers answer at the VIPs on the node.
fn modes_follow_the_label(node: &mut StoryNode) {
    if !has_netns_cookie() {
        return;
    }
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let ([client, neighbour], [far, _]) = (&lan.node1.pods[..], &lan.node2.pods[..]) else { panic!("two pods each") };
    [far, neighbour].into_iter().for_each(serve);
    serve_vips(&lan.node1.host);
    node.write("web.yaml", &services(far));
    let process = Process::start(node, client, &cgroupfs_name("a"));
    let agent = agent(node, &lan);
    let far = backend(far);
    let far = [far[0].as_str(), &far[1]];

    node.write("pod.yaml", &pod("a", client, None));
    assert_eq!(new_flows(node, || assert_reaches(client, far)), 0, "the socket path translates its sockets");

    node.write("pod.yaml", &pod("a", client, Some("packet")));
    wait_for(node, "a", PACKET);
    let (dns, udp) = (crate::sockets::at(DNS), client.net.enter(|| Client::udp(crate::sockets::at(DNS))));
    assert_eq!(new_flows(node, || assert_reaches(client, far)), 3, "the packet path translates its packets");
    assert_eq!(new_flows(node, || assert_eq!(udp.ask(dns).0, far[0])), 1);
    assert_eq!(
        new_flows(node, || assert_reaches(neighbour, far)),
        0,
        "the packets of the neighbour are not translated"
    );
    assert_traced(node, &lan, &process, "packet, by the label of the pod", "goes there");
    let shown = lan.node1.host.net.enter(|| run(node, &["get", "paths"]));
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let row: Vec<&str> = shown.lines().nth(1).unwrap_or_default().split_whitespace().take(5).collect();
    assert_eq!(row, ["apps", "a", "packet", "pod", "pod2"], "{shown}");

    node.write("pod.yaml", &pod("a", client, Some("off")));
    wait_for(node, "a", OFF);
    assert_eq!(new_flows(node, || assert_reaches(client, VIPS)), 0);
    assert_eq!(udp.ask(dns).0, far[0], "an existing flow stays translated");
    assert_traced(node, &lan, &process, "off, by the label of the pod", "left alone");

    node.write("pod.yaml", &pod("a", client, Some("packet")));
    wait_for(node, "a", PACKET);
    assert_eq!(new_flows(node, || assert_reaches(client, far)), 3);

    node.write("pod.yaml", &pod("a", client, Some("Socket")));
    wait_for_none(node);
    assert_eq!(new_flows(node, || assert_reaches(client, far)), 0, "the socket path translates its sockets again");
    assert_eq!(udp.ask(dns).0, far[0]);
    agent.wait_for_log("label beeline.io/path \"Socket\": unknown and ignored; write socket, packet or off");
    drop(process);
}

/// Asserts that `trace` shows mode and verdict for the pod, given a process of the pod or its address.
#[track_caller]
fn assert_traced(node: &StoryNode, lan: &Lan, process: &Process, mode: &str, verdict: &str) {
    let (pid, ip) = (process.pid().to_string(), lan.node1.pods[0].v4.to_string());
    for client in [["--pid", &pid], ["--from", &ip]] {
        let arguments = [&["trace", "tcp", VIPS[0]][..], &client].concat();
        let output = lan.node1.host.net.enter(|| run(node, &arguments));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(mode) && text.contains("pod apps/a") && text.contains(verdict), "{client:?}: {text}");
    }
}

/// A server inside of the pod answers at the VIPs, as a service mesh does: it sees them only if the socket path leaves
/// the pod alone.
fn mesh_sees_vips(node: &mut StoryNode) {
    if !has_netns_cookie() {
        return;
    }
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let ([client, own], [far, _]) = (&lan.node1.pods[..], &lan.node2.pods[..]) else { panic!("two pods each") };
    serve(far);
    [client, own].into_iter().for_each(serve_vips);
    node.write("web.yaml", &services(far));
    let _processes = [("a", client), ("b", own)].map(|(name, host)| Process::start(node, host, &systemd_name(name)));
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
    [client, own].into_iter().for_each(|pod| assert_reaches(pod, far));
    for (label, mode) in [("off", OFF), ("packet", PACKET)] {
        node.write("pods.yaml", &(namespace(label) + &pods));
        wait_for(node, "a", mode);
        assert_reaches(client, VIPS);
        // The label of a pod takes precedence over that of its Namespace.
        assert_reaches(own, far);
        assert_eq!(pod_modes(node).len(), 1);
    }
    node.write("pods.yaml", &pods);
    wait_for_none(node);
    assert_reaches(client, far);
}

fn bad_modes_are_refused(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let ([client, _], [far, _]) = (&lan.node1.pods[..], &lan.node2.pods[..]) else { panic!("two pods each") };
    serve(far);
    node.write("web.yaml", &services(far));
    let _processes = [("a", client), ("b", &lan.node1.host), ("c", &lan.client)]
        .map(|(name, host)| Process::start(node, host, &cgroupfs_name(name)));
    let agent = agent(node, &lan);
    if !has_netns_cookie() {
        node.write("pods.yaml", &pod("a", client, Some("packet")));
        agent.wait_for_log("Pod apps/a: the mode packet is not for it, and it keeps socket");
        agent.wait_for_log("which is of Linux 5.14");
        return;
    }
    // b and d use the network of the node, by its process and by hostNetwork; c has no device on this node; the
    // namespace of e does not exist; f names its namespace by a mount.
    let host_network = pod("d", client, Some("off")).replace("nodeName", "hostNetwork: true, nodeName");
    let nowhere = pod("e", client, Some("off"))
        .replace("namespace: apps", "namespace: apps, annotations: {beeline.io/netns: /run/netns/nowhere}");
    let mounted = pod("f", client, Some("off")).replace(
        "namespace: apps",
        &format!("namespace: apps, annotations: {{beeline.io/netns: {}}}", client.net.path()),
    );
    let pods = pod("b", client, Some("off")) + &pod("c", client, Some("packet")) + &host_network + &nowhere;
    node.write("pods.yaml", &pods);
    for (name, mode, reason) in [
        ("b", "off", "it has the node's own network namespace"),
        ("c", "packet", "no link of this node leads to it"),
        ("d", "off", "it has the node's own network namespace"),
        ("e", "off", "its network namespace /run/netns/nowhere: No such file"),
    ] {
        agent.wait_for_log(&format!("Pod apps/{name}: the mode {mode} is not for it, and it keeps socket: {reason}"));
    }
    assert!(pod_modes(node).is_empty(), "{:?}", pod_modes(node));
    let far = backend(far);
    assert_reaches(client, [&far[0], &far[1]]);
    // Refused pods do not affect others, and a pod with a mounted namespace needs no process.
    node.write("pods.yaml", &(pods + &mounted));
    wait_for(node, "f", OFF);
    assert_eq!(pod_modes(node).len(), 1);
}

fn modes_survive_the_agent(node: &mut StoryNode) {
    if !has_netns_cookie() {
        return;
    }
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let ([client, late], [far, _]) = (&lan.node1.pods[..], &lan.node2.pods[..]) else { panic!("two pods each") };
    serve(far);
    node.write("web.yaml", &services(far));
    let pods = pod("a", client, Some("packet")) + &pod("b", late, Some("off"));
    node.write("pods.yaml", &pods);
    let _process = Process::start(node, client, &cgroupfs_name("a"));
    let mut first = agent(node, &lan);
    wait_for(node, "a", PACKET);
    let far = backend(far);
    let far = [far[0].as_str(), &far[1]];
    assert_eq!(new_flows(node, || assert_reaches(client, far)), 3);
    // The process of a pod starts after its label is read.
    let process = Process::start(node, late, &systemd_name("b"));
    wait_for(node, "b", OFF);
    let before = pod_modes(node);

    first.kill();
    assert_eq!(
        (new_flows(node, || assert_reaches(client, far)), pod_modes(node).len()),
        (3, 2),
        "modes stay without an agent"
    );
    let second = agent(node, &lan);
    until("the second agent is in service", || second.log().contains("in service"));
    assert_eq!(new_flows(node, || assert_reaches(client, far)), 3);
    assert_eq!(pod_modes(node), before);
    assert!(!second.log().contains("another mode"), "a restart changes no mode: {}", second.log());

    node.write("pods.yaml", &pod("b", late, Some("off")));
    until("the entry of the removed pod is gone", || pod_modes(node).iter().all(|(name, ..)| name == "b"));
    drop(process);
    fs::remove_file(node.yaml.join("pods.yaml")).expect("the file");
    wait_for_none(node);
    assert_eq!(new_flows(node, || assert_reaches(client, far)), 0);
}

//! The packet path over a change of the layout.

use std::{fs, net::SocketAddr, thread, time::Duration};

use super::Version;
use lb_lab::network::{Host, Lan, Options};

use crate::{
    agent::{Agent, until},
    kill::hold_connections,
    load::Load,
    node::Node,
    packets::{NODE_PORT, TARGET, addresses, has_filters, pod, serve, service},
    sockets::{Client, tcp_ask},
};

/// Where a server listens that keeps its connections.
const ECHO: u16 = 7;
/// NodePorts of such a server on this node, and on the other.
const NEAR: u16 = 30_007;
const FAR: u16 = 30_008;

fn echo(name: &str, vip: &str, node_port: u16, host: &Host, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: NodePort, clusterIP: {vip}, clusterIPs: \
         [{vip}], ports: [{{port: {ECHO}, nodePort: {node_port}}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: \
         EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\n\
         ports: [{{name: \"\", port: {ECHO}}}]\nendpoints: [{{addresses: [\"{}\"], nodeName: {node}}}]\n",
        host.v4
    )
}

/// Two nodes and a client outside, with a server of every kind on either node.
fn lan(node: &Node) -> &'static Lan {
    // Until the end of this process: the workers are in its namespaces, which nothing else keeps.
    let lan: &Lan = Box::leak(Box::new(Lan::make(Options::default())));
    let mut endpoints = Vec::new();
    for (host, place, port) in [(pod(&lan.node1), "here", NEAR), (pod(&lan.node2), "there", FAR)] {
        serve(host);
        host.net.enter(|| hold_connections(&SocketAddr::from((host.v4, ECHO)).to_string()));
        endpoints.extend(addresses(host).map(|ip| (ip, place)));
        let vip = if port == NEAR { "10.96.0.7" } else { "10.96.0.8" };
        node.write(&format!("{place}.yaml"), &echo(place, vip, port, host, place));
    }
    node.write("web.yaml", &service("Cluster", &endpoints));
    lan
}

/// As [`Agent::start`], on node1, at an empty cgroup: no client is served by the socket path.
fn start(version: Version, node: &Node, lan: &Lan) -> Agent {
    let cgroup = node.cgroup.join("node1");
    fs::create_dir_all(&cgroup).expect("a cgroup");
    let flags = ["--devices", "eth0", "--cgroup", cgroup.to_str().expect("text")];
    lan.node1.host.net.enter(|| version.start(node, &flags))
}

/// Between two new flows: an address of the node has 28,976 ports for flows to one backend, which stay for minutes.
const PAUSE: Duration = Duration::from_millis(20);

/// New connections and open ones from outside, with traffic.
fn load(lan: &'static Lan) -> Load {
    let mut load = Load::default();
    for own in addresses(&lan.node1.host) {
        let to = SocketAddr::from((own, NODE_PORT));
        load.add(if to.is_ipv4() { "new TCP" } else { "new TCP over IPv6" }, move || {
            thread::sleep(PAUSE);
            lan.client.net.enter(|| tcp_ask(to).map(drop)).map_err(|error| error.to_string())
        });
    }
    let to = SocketAddr::from((lan.node1.host.v4, NODE_PORT));
    load.add("new UDP", move || {
        thread::sleep(PAUSE);
        let client = lan.client.net.enter(|| Client::udp(to));
        let (_, from) = client.ask(to);
        if from == Some(to) { Ok(()) } else { Err(format!("an answer of {from:?}")) }
    });
    for (port, what) in [(NEAR, "open TCP to a pod here"), (FAR, "open TCP to a pod elsewhere")] {
        let to = SocketAddr::from((lan.node1.host.v4, port));
        let open = lan.client.net.enter(|| {
            let client = Client::tcp(to);
            client.connect(to).expect("a connection");
            client
        });
        load.add(what, move || {
            open.send().map_err(|error| error.to_string())?;
            open.receive();
            Ok(())
        });
    }
    // One of each backend.
    for host in [pod(&lan.node1), pod(&lan.node2)] {
        let server = SocketAddr::from((host.v4, TARGET)).to_string();
        let (socket, first) = (0..64)
            .map(|_| {
                let client = lan.client.net.enter(|| Client::udp(to));
                let answer = client.ask(to);
                (client, answer)
            })
            .find(|(_, (name, _))| *name == server)
            .expect("a flow to this backend");
        load.add(
            if host.v4 == pod(&lan.node1).v4 { "open UDP to a pod here" } else { "open UDP to a pod elsewhere" },
            {
                move || {
                    let answer = socket.ask(to);
                    if answer == first { Ok(()) } else { Err(format!("{answer:?} in the place of {first:?}")) }
                }
            },
        );
    }
    load
}

fn in_service(version: Version, node: &Node, lan: &Lan) {
    let has_link = || {
        let pins = fs::read_dir(version.maps(node)).expect("the pins").flatten();
        pins.map(|pin| pin.file_name().to_string_lossy().into_owned()).any(|name| name.starts_with("link_tc_ingress_"))
    };
    until("the programs are at the device", || has_link() || has_filters(lan));
}

pub(super) fn there_and_back(node: &mut Node) {
    let lan = lan(node);
    let mut version = Version::Own;
    let mut agent = start(version, node, lan);
    agent.wait_until_in_service();
    in_service(version, node, lan);
    let load = load(lan);
    load.more(20);
    for round in 0..4 {
        if round < 2 {
            assert!(agent.terminate().success());
        } else {
            agent.kill();
        }
        load.more(10);
        version = version.other();
        agent = start(version, node, lan);
        agent.wait_for_log("out of service");
        version.is_alone(node);
        in_service(version, node, lan);
        load.more(20);
    }
    load.end();
}

pub(super) fn cut_short(node: &mut Node) {
    let lan = lan(node);
    let mut first = start(Version::Own, node, lan);
    first.wait_until_in_service();
    in_service(Version::Own, node, lan);
    let load = load(lan);
    load.more(20);
    first.kill();
    let last = super::cut_short(|version| start(version, node, lan), node, || load.more(4));
    for version in [last, last.other()] {
        let mut agent = start(version, node, lan);
        agent.wait_until_in_service();
        until("it is alone", || !version.other().maps(node).exists());
        version.is_alone(node);
        in_service(version, node, lan);
        load.more(10);
        agent.kill();
    }
    load.end();
}

//! The socket path across a change of the map layout.

use std::net::SocketAddr;

use lb_common::{Backend, Names, Proto};
use lb_dataplane::stats::{StatMaps, Stats};
use lb_kernel::{bpf as sys, bpf::typed::TypedMap};

use super::Version;
use crate::{
    agent::until,
    load::Load,
    node::{StoryNode, annotated, service, with_spec},
    socket_termination::hold_connections,
    sockets::{Client, at, tcp_ask, tcp_server, udp_server},
};

const WEB: &str = "10.96.0.1:80";
const ECHO: &str = "10.96.0.2:80";
const DNS: &str = "10.96.0.53:53";
const STICKY: &str = "10.96.0.3:80";
/// Port 40100 of a port range.
const MEDIA: &str = "10.96.0.5:40100";
/// A Service with a dead endpoint.
const FAILING: &str = "10.96.0.6:80";
/// A Service whose ports share affinity: signalling of two protocols, and a port of the range of its media.
const CALL: [(Proto, &str); 3] =
    [(Proto::Udp, "10.96.0.7:5060"), (Proto::Tcp, "10.96.0.7:5061"), (Proto::Udp, "10.96.0.7:40101")];
const NODE_PORT: &str = "10.0.0.9:30080";

const CALLED: &str = r#"
apiVersion: v1
kind: Service
metadata:
  name: call
  annotations: {beeline.io/affinity-scope: service, beeline.io/ports: 40000-40200/udp}
spec:
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7]
  sessionAffinity: ClientIP
  ports: [{name: sip, port: 5060, protocol: UDP}, {name: sip-tls, port: 5061}]
---
apiVersion: v1
kind: Endpoints
metadata: {name: call}
subsets:
- addresses: [{ip: 10.0.0.1}, {ip: 10.0.0.2}]
  ports: [{name: sip, port: 5060, protocol: UDP}, {name: sip-tls, port: 5061}]
"#;

fn objects(node: &StoryNode) {
    let web = service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080", "10.0.0.2:8080"]);
    node.write("web.yaml", &annotated(&web, "beeline.io/scheduler: wlc"));
    node.write("echo.yaml", &service("echo", &["10.96.0.2"], "TCP", 80, &["10.0.0.1:7", "10.0.0.2:7"]));
    node.write("dns.yaml", &service("dns", &["10.96.0.53"], "UDP", 53, &["10.0.0.1:5353", "10.0.0.2:5353"]));
    let sticky = service("sticky", &["10.96.0.3"], "TCP", 80, &["10.0.0.1:8080", "10.0.0.2:8080"]);
    node.write("sticky.yaml", &with_spec(&sticky, "sessionAffinity: ClientIP"));
    let outside = service("outside", &["10.96.0.4"], "TCP", 80, &["10.0.0.1:8080", "10.0.0.2:8080"]);
    let outside = with_spec(&outside, "type: NodePort");
    node.write(
        "outside.yaml",
        &outside.replace("{port: 80, protocol: TCP}", "{port: 80, protocol: TCP, nodePort: 30080}"),
    );
    let media = service("media", &["10.96.0.5"], "UDP", 80, &["10.0.0.1:40100", "10.0.0.2:40100"]);
    node.write("media.yaml", &annotated(&media, "beeline.io/ports: 40000-40200/udp"));
    let failing = service("failing", &["10.96.0.6"], "TCP", 80, &["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"]);
    node.write("failing.yaml", &annotated(&failing, "beeline.io/scheduler: rr, beeline.io/eject: 1 in 1m for 1h"));
    node.write("call.yaml", CALLED);
    for server in ["10.0.0.1", "10.0.0.2"] {
        udp_server(&format!("{server}:5060"));
        tcp_server(&format!("{server}:5061"));
        udp_server(&format!("{server}:40101"));
        udp_server(&format!("{server}:40100"));
        tcp_server(&format!("{server}:8080"));
        hold_connections(&format!("{server}:7"));
        udp_server(&format!("{server}:5353"));
    }
}

/// Starts workers that open new connections and use open ones.
fn start_load() -> Load {
    let mut load = Load::default();
    for to in [WEB, NODE_PORT] {
        let what = if to == WEB { "new TCP to a cluster IP" } else { "new TCP to a NodePort" };
        load.add(what, move || {
            let client = Client::tcp(at(to));
            client.connect(at(to)).map_err(|error| error.to_string())?;
            shows(&client, at(to))
        });
    }
    load.add("new UDP", || {
        let client = Client::udp(at(DNS));
        client.connect(at(DNS)).map_err(|error| error.to_string())?;
        shows(&client, at(DNS))?;
        client.send().map_err(|error| error.to_string())?;
        client.receive();
        Ok(())
    });
    let sticky = tcp_ask(at(STICKY)).expect("an answer").0;
    load.add("affinity", move || {
        let server = tcp_ask(at(STICKY)).map_err(|error| error.to_string())?.0;
        if server == sticky { Ok(()) } else { Err(format!("{server} instead of {sticky}")) }
    });
    let called = call().expect("an answer");
    load.add("affinity of a whole Service", move || {
        let server = call()?;
        if server == called { Ok(()) } else { Err(format!("{server} instead of {called}")) }
    });
    load.add("UDP to a port range", || {
        let client = Client::udp(at(MEDIA));
        let (server, from) = client.ask(at(MEDIA));
        let is_kept = server.ends_with(":40100") && from == Some(at(MEDIA));
        if is_kept { Ok(()) } else { Err(format!("{server} as {from:?}")) }
    });
    // The dead endpoint fails once.
    assert_eq!((0..6).filter(|_| tcp_ask(at(FAILING)).is_err()).count(), 1);
    load.add("a dead endpoint is ejected", || tcp_ask(at(FAILING)).map(drop).map_err(|error| error.to_string()));
    let open = Client::tcp(at(ECHO));
    open.connect(at(ECHO)).expect("a connection");
    load.add("open TCP", move || {
        open.send().map_err(|error| error.to_string())?;
        open.receive();
        shows(&open, at(ECHO))
    });
    let connected = Client::udp(at(DNS));
    connected.connect(at(DNS)).expect("connected");
    load.add("connected UDP", move || {
        connected.send().map_err(|error| error.to_string())?;
        connected.receive();
        shows(&connected, at(DNS))
    });
    let unconnected = Client::udp(at(DNS));
    let first = unconnected.ask(at(DNS));
    load.add("unconnected UDP", move || {
        let answer = unconnected.ask(at(DNS));
        if answer == first { Ok(()) } else { Err(format!("{answer:?} instead of {first:?}")) }
    });
    load
}

/// Calls all ports of [`CALL`], and returns the one endpoint that answers.
fn call() -> Result<String, String> {
    let ask = |(proto, to): (Proto, &str)| {
        let answer = match proto {
            Proto::Tcp => tcp_ask(at(to)).map_err(|error| error.to_string())?.0,
            _ => Client::udp(at(to)).ask(at(to)).0,
        };
        Ok::<_, String>(answer.rsplit_once(':').map(|(server, _)| server.to_owned()).unwrap_or_default())
    };
    let [first, rest @ ..] = CALL;
    let server = ask(first)?;
    for (proto, to) in rest {
        let other = ask((proto, to))?;
        if other != server {
            return Err(format!("{to} leads to {other}, and the first port to {server}"));
        }
    }
    Ok(server)
}

fn shows(client: &Client, vip: SocketAddr) -> Result<(), String> {
    let peer = client.peer();
    if peer == Some(vip) { Ok(()) } else { Err(format!("its peer is {peer:?}")) }
}

fn stats(version: Version, node: &StoryNode) -> Stats {
    StatMaps::open(&version.maps(node)).and_then(|maps| maps.read()).expect("the pinned maps")
}

/// The ids of service ports and of backends, each with its owner.
type Ids = (Vec<(u32, String)>, Vec<(u32, Backend)>);

fn ids(version: Version, node: &StoryNode) -> Ids {
    let names: TypedMap<u32, Names> = TypedMap::open(&version.maps(node), "NAMES").expect("the pinned map");
    let backends = TypedMap::open(&version.maps(node), "BACKENDS").expect("the pinned map");
    let mut names: Vec<_> = names
        .read()
        .expect("read")
        .into_iter()
        .map(|(id, names)| (id, format!("{} {}", names.name, names.proto)))
        .collect();
    let mut backends: Vec<(u32, Backend)> = backends.read().expect("read");
    names.sort();
    backends.sort_by_key(|(id, _)| *id);
    (names, backends)
}

fn connections(stats: &Stats) -> u64 {
    stats.ports.values().map(|port| port.connections).sum()
}

/// Asserts that one program runs at the connect4 hook of the node's cgroup, beside those of its parent.
fn assert_one_program_runs(node: &StoryNode) {
    use aya_obj::generated::bpf_attach_type::BPF_CGROUP_INET4_CONNECT;
    let cgroup = std::fs::File::open(&node.cgroup).expect("the cgroup");
    let above = std::fs::File::open(node.cgroup.parent().expect("a parent")).expect("the cgroup above");
    let count = |cgroup| sys::programs_at(cgroup, BPF_CGROUP_INET4_CONNECT).expect("a query").len();
    assert_eq!(count(&cgroup), count(&above) + 1);
}

pub(super) fn upgrade_and_rollback(node: &mut StoryNode) {
    objects(node);
    let mut version = Version::Own;
    let mut agent = version.start(node, &[]);
    agent.wait_until_in_service();
    let load = start_load();
    load.more(50);
    for round in 0..4 {
        let (before, known) = (stats(version, node), ids(version, node));
        // First end the agent as a rollout does, later kill it.
        if round < 2 {
            assert!(agent.terminate().success());
        } else {
            agent.kill();
        }
        load.more(20);
        version = version.other();
        agent = version.start(node, &[]);
        agent.wait_for_log("out of service");
        version.assert_alone(node);
        assert_one_program_runs(node);
        let log = agent.log();
        assert!(log.contains("anew=[\"FRONTENDS\", \"PORT_RANGES\"]"), "{log}");
        assert_eq!(ids(version, node), known);
        assert!(connections(&stats(version, node)) >= connections(&before));
        load.more(50);
    }
    load.end();
    // No version leaves a socket counted as open.
    until("no socket is counted as open", || stats(version, node).backends.values().all(|backend| backend.open == 0));
}

pub(super) fn interrupted(node: &mut StoryNode) {
    objects(node);
    let mut first = Version::Own.start(node, &[]);
    first.wait_until_in_service();
    let load = start_load();
    load.more(50);
    let known = ids(Version::Own, node);
    first.kill();
    let next = super::interrupt(|version| version.start(node, &[]), node, || load.more(10));
    // Each version can finish the take-over.
    for version in [next, next.other()] {
        let mut agent = version.start(node, &[]);
        agent.wait_until_in_service();
        until("the other version is removed", || !version.other().maps(node).exists());
        version.assert_alone(node);
        assert_one_program_runs(node);
        assert_eq!(ids(version, node), known);
        load.more(20);
        agent.kill();
    }
    load.end();
    until("no socket is counted as open", || {
        stats(next.other(), node).backends.values().all(|backend| backend.open == 0)
    });
}

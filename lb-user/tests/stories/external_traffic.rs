//! Map entries for clients outside of the node: source ranges, Maglev tables, addresses; and the health check
//! NodePorts.

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};

use aya::maps::MapData;
use lb_common::{Counter, FrontendKey, Kind, List, MAGLEV_LEN, MaglevKey, Proto, ServiceFlags};
use lb_core::store::Dump;
use rustix::io::Errno;

use crate::{
    Story,
    agent::{Agent, run, until},
    node::{StoryNode, annotated, ip, service},
    sockets::{Client, assert_refused, at, mapped, tcp_ask, tcp_server},
};

pub const STORIES: &[Story] = &[
    ("source_ranges_reach_the_kernel_and_survive_an_agent_restart", ranges_reach_the_kernel),
    ("maglev_tables_reach_the_kernel_and_survive_an_agent_restart", maglev_tables_reach_the_kernel),
    ("source_range_tries_and_maglev_tables_grow", tries_and_tables_grow),
    ("a_port_that_a_cluster_ip_does_not_have_is_refused_at_the_socket", unknown_ports_are_refused),
    ("health_check_node_ports_answer_load_balancers", health_checks_are_answered),
];

/// Returns a Service of type LoadBalancer with endpoints (address, node) in a slice. Its load balancer address is its
/// VIP with 198 in place of 10.
fn load_balancer(name: &str, vip: &str, spec: &str, annotations: &str, endpoints: &[(&str, &str)]) -> String {
    let outside = vip.replacen("10.", "198.", 1);
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\nspec:\n  \
         type: LoadBalancer\n  clusterIPs: [\"{vip}\"]\n  ports: [{{port: 80}}]\n{spec}\
         status: {{loadBalancer: {{ingress: [{{ip: {outside}}}]}}}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-x, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{name: \"\", port: 8080}}]\nendpoints:\n"
    );
    for (endpoint, node) in endpoints {
        let (address, conditions) = endpoint.split_once(' ').unwrap_or((endpoint, "{}"));
        writeln!(text, "- {{addresses: [\"{address}\"], nodeName: {node}, conditions: {conditions}}}")
            .expect("a String takes everything");
    }
    text
}

fn ranges(count: usize) -> String {
    let range = |n: usize| format!("\"10.{}.{}.0/24\"", n >> 7, n << 1 & 255);
    let ranges: Vec<_> = (0..count).map(range).collect();
    format!("  loadBalancerSourceRanges: [{}]\n", ranges.join(", "))
}

fn assert_restart_writes_nothing(node: &StoryNode, agent: &mut Agent) {
    let before = agent.dump();
    agent.kill();
    let next = node.agent(&[]);
    assert!(next.log().contains("writes=0"), "{}", next.log());
    assert_eq!(next.dump(), before);
    *agent = next;
}

fn ranges_reach_the_kernel(node: &mut StoryNode) {
    let lb = |count: usize| load_balancer("lb", "10.96.0.1", &ranges(count), "", &[("10.0.0.1", "here")]);
    node.write("lb.yaml", &lb(300));
    let mut agent = node.agent(&[]);
    agent.wait_for("all ranges", |dump| dump.source_ranges.len() == 300);
    let flags = |dump: &Dump| dump.services.values().next().map(|service| service.flags);
    assert_eq!(flags(&agent.dump()), Some(ServiceFlags::SOURCE_RANGES));
    // The same look-up as in the programs.
    let id = *agent.dump().services.keys().next().expect("a service port");
    let has = |dump: &Dump, ip: [u8; 4]| lb_common::Tables::in_source_ranges(dump, id, &Ipv4Addr::from(ip).into());
    assert!(has(&agent.dump(), [10, 0, 2, 9]) && !has(&agent.dump(), [10, 0, 1, 9]));
    assert_restart_writes_nothing(node, &mut agent);
    node.write("lb.yaml", &lb(2));
    agent.wait_for("fewer ranges", |dump| dump.source_ranges.len() == 2);
    assert_restart_writes_nothing(node, &mut agent);
    node.write("lb.yaml", &lb(0));
    agent.wait_for("no ranges", |dump| dump.source_ranges.is_empty() && flags(dump) == Some(0));
    let shown = run(node, &["get", "services"]);
    assert!(shown.status.success());
}

fn maglev_tables_reach_the_kernel(node: &mut StoryNode) {
    let with_maglev = |endpoints: &[(&str, &str)]| {
        let spec = "  externalTrafficPolicy: Local\n";
        load_balancer("lb", "10.96.0.1", spec, "beeline.io/scheduler: maglev", endpoints)
    };
    let three = [("10.0.0.1", "here"), ("10.0.0.2", "there"), ("10.0.0.3", "there")];
    node.write("lb.yaml", &with_maglev(&three));
    let mut agent = node.agent(&[]);
    agent.wait_for("both tables", |dump| dump.maglev.len() == 2);
    let dump = agent.dump();
    let id = *dump.services.keys().next().expect("a service port");
    let backends_of = |dump: &Dump, list: List| -> Vec<String> {
        let table = &dump.maglev[&MaglevKey { service: id, list: list as u32 }];
        table.backends.iter().map(|id| dump.backends[id].addr.to_string()).collect()
    };
    let before = backends_of(&dump, List::Cluster);
    let share = before.iter().filter(|addr| *addr == "10.0.0.2").count();
    assert!(share.abs_diff(MAGLEV_LEN / 3) <= 1, "{share} of {MAGLEV_LEN}");
    assert!(backends_of(&dump, List::Local).iter().all(|addr| addr == "10.0.0.1"));
    assert_restart_writes_nothing(node, &mut agent);
    // Sockets have no flow to hash yet, and are served without the table.
    tcp_server("10.0.0.1:8080");
    tcp_server("10.0.0.2:8080");
    tcp_server("10.0.0.3:8080");
    assert!((0..20).all(|_| tcp_ask(at("10.96.0.1:80")).is_ok()));
    node.write("lb.yaml", &with_maglev(&three[..2]));
    agent.wait_for("one backend is removed", |dump| dump.backends.len() == 2);
    let after = backends_of(&agent.dump(), List::Cluster);
    let moved = before.iter().zip(&after).filter(|(before, after)| *before != "10.0.0.3" && before != after).count();
    assert!(moved < MAGLEV_LEN / 100, "{moved} of {MAGLEV_LEN} table slots moved without need");
    node.write("lb.yaml", &load_balancer("lb", "10.96.0.1", "", "", &three));
    agent.wait_for("no tables", |dump| dump.maglev.is_empty());
}

fn tries_and_tables_grow(node: &mut StoryNode) {
    let mut agent = node.agent(&[]);
    let size = |map: &str| {
        let pin = node.maps().join(map);
        MapData::from_pin(&pin).and_then(|map| map.info()).expect("the map").max_entries()
    };
    let [tries, tables] = ["SOURCE_RANGES", "MAGLEV"].map(size);
    let services = usize::try_from(tries).expect("a size") / 1_024 + 1;
    let text: String = (0..services)
        .map(|n| load_balancer(&format!("r{n}"), &format!("10.97.0.{n}"), &ranges(1_024), "", &[]) + "---\n")
        .collect();
    node.write("ranges.yaml", &text);
    until("a larger trie is in service", || size("SOURCE_RANGES") > tries);
    agent.wait_for("all ranges", |dump| dump.source_ranges.len() == services * 1_024);
    let text: String = (0..=tables)
        .map(|n| {
            let vip = format!("10.98.{}.{}", n >> 8, n & 255);
            annotated(&service(&format!("m{n}"), &[&vip], "TCP", 80, &["10.0.0.1:8080"]), "beeline.io/scheduler: mh")
        })
        .collect();
    node.write("tables.yaml", &text);
    until("a larger map of tables is in service", || size("MAGLEV") > tables);
    agent.wait_for("all tables", |dump| dump.maglev.len() == tables as usize + 1);
    assert!(!agent.log().contains("ERROR"), "{}", agent.log());
    assert_restart_writes_nothing(node, &mut agent);
}

fn unknown_ports_are_refused(node: &mut StoryNode) {
    let vips = ["10.96.0.1", "fd96::1"];
    node.write("web.yaml", &service("web", &vips, "TCP", 80, &["10.0.0.1:8080", "[fd00::1]:8080"]));
    tcp_server("10.0.0.1:8080");
    tcp_server("[fd00::1]:8080");
    let agent = node.agent(&[]);
    agent.wait_for("the Service", |dump| dump.frontends.len() == 4);
    for unknown in [at("10.96.0.1:81"), at("[fd96::1]:81"), mapped(at("10.96.0.1:81"))] {
        assert_refused(Client::tcp(unknown).connect(unknown), Errno::CONNREFUSED);
        assert_refused(Client::udp(unknown).send_to(unknown), Errno::CONNREFUSED);
        // Resolvers connect a UDP socket to learn their own address.
        let _routed = Client::udp(unknown).connect(unknown);
    }
    assert_refused(Client::udp(at("10.96.0.1:80")).send_to(at("10.96.0.1:80")), Errno::CONNREFUSED);
    let counters = lb_dataplane::stats::counters(&node.maps()).expect("the counters");
    assert!(counters.contains(&(Counter::UnknownPort, 7)), "{counters:?}");
    agent.wait_for_log("asked for port 81 of the cluster IP");
    // An address of the node has servers of its own, such as a DNS cache at the cluster IP of its Service.
    ip(&["addr", "add", "10.96.0.1/32", "dev", "lo"]);
    let owned =
        |dump: &Dump| dump.frontends.values().filter(|frontend| frontend.kind == Kind::OwnAddress as u8).count();
    agent.wait_for("the address is the node's", |dump| owned(dump) == 1);
    tcp_server("10.96.0.1:81");
    assert!(tcp_ask(at("10.96.0.1:81")).is_ok() && tcp_ask(at("10.96.0.1:80")).is_ok());
    ip(&["addr", "del", "10.96.0.1/32", "dev", "lo"]);
    agent.wait_for("the address is a VIP again", |dump| owned(dump) == 0);
    // The server of port 81 is still bound to the address that has gone.
    assert_refused(Client::tcp(at("10.96.0.1:82")).connect(at("10.96.0.1:82")), Errno::CONNREFUSED);
    let key = FrontendKey::new(Ipv4Addr::new(10, 96, 0, 1).into(), 80, Proto::Tcp);
    let dump = agent.dump();
    assert_eq!(dump.frontends[&key.address()].kind, Kind::Address as u8);
    assert_eq!(dump.frontends[&key.address()].service, dump.frontends[&key].service);
    assert!(tcp_ask(at("10.96.0.1:80")).is_ok());
    let shown = String::from_utf8(run(node, &["trace", "tcp", "10.96.0.1:82"]).stdout).expect("text");
    assert!(
        shown.contains("no Service has this port of the cluster IP")
            && shown.contains("other ports: 10.96.0.1:80/TCP\n"),
        "{shown}"
    );
    let shown = String::from_utf8(run(node, &["get", "frontends"]).stdout).expect("text");
    let words: Vec<Vec<_>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(words.contains(&vec!["10.96.0.1", "any", "any", "Address", "default/web/TCP"]), "{shown}");
    let shown = String::from_utf8(run(node, &["get", "services"]).stdout).expect("text");
    assert!(shown.contains(" 10.96.0.1:80 "), "{shown}");
}

/// Returns code, headers and body of the answer to a GET.
fn get(address: &str) -> Option<(u16, String, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    write!(stream, "GET / HTTP/1.1\r\nHost: node\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, head.to_owned(), body.to_owned()))
}

fn health_checks_are_answered(node: &mut StoryNode) {
    let lb = |name: &str, vip: &str, port: u16, endpoints: &[(&str, &str)]| {
        let spec = format!("  externalTrafficPolicy: Local\n  healthCheckNodePort: {port}\n");
        load_balancer(name, vip, &spec, "", endpoints)
    };
    let code = |port: u16| get(&format!("10.0.0.9:{port}")).map(|(code, ..)| code);
    node.write("lb.yaml", &lb("lb", "10.96.0.1", 30_100, &[("10.0.0.1", "here"), ("10.0.0.2", "there")]));
    let mut agent = node.agent(&[]);
    until("an endpoint is here", || code(30_100) == Some(200));
    let (_, head, body) = get("127.0.0.1:30100").expect("an answer");
    assert!(head.contains("x-load-balancing-endpoint-weight: 1\r\n"), "{head}");
    assert!(head.contains("content-type: application/json\r\n") && head.contains("nosniff"), "{head}");
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let expected = serde_json::json!({
        "service": {"namespace": "default", "name": "lb"}, "localEndpoints": 1, "serviceProxyHealthy": true
    });
    assert_eq!(body, expected);
    // The Service is IPv4 only; a load balancer may know the node by its IPv6 address.
    assert_eq!(get("[fd00::9]:30100").map(|(code, ..)| code), Some(200));

    // With only a serving-terminating endpoint the check fails, but connections are still served.
    let draining = "10.0.0.1 {ready: false, serving: true, terminating: true}";
    node.write("lb.yaml", &lb("lb", "10.96.0.1", 30_100, &[(draining, "here"), ("10.0.0.2", "there")]));
    until("the health check fails", || code(30_100) == Some(503));
    assert_eq!(agent.dump().services.values().map(|service| service.local_len).collect::<Vec<_>>(), [1]);
    node.write("lb.yaml", &lb("lb", "10.96.0.1", 30_101, &[("10.0.0.1", "here")]));
    until("the check answers at its new port", || code(30_101) == Some(200) && code(30_100).is_none());

    // A port in use is logged once and retried until it is free. Other ports are served.
    let held = TcpListener::bind("0.0.0.0:30102").expect("a free port");
    node.write("held.yaml", &lb("held", "10.96.0.2", 30_102, &[("10.0.0.1", "here")]));
    agent.wait_for_log("health check port 0.0.0.0:30102 does not answer");
    let log = agent.log();
    assert!(log.contains("default/held") && log.contains(&format!("(pid {})", std::process::id())), "{log}");
    assert_eq!(code(30_101), Some(200));
    drop(held);
    until("the agent serves the port", || code(30_102) == Some(200));
    assert_eq!(agent.log().matches("does not answer").count(), 1);

    std::fs::remove_file(node.yaml.join("lb.yaml")).expect("the file");
    until("the port closes with its Service", || code(30_101).is_none());
    assert_eq!(code(30_102), Some(200));
    assert!(agent.terminate().success());
    assert_eq!(code(30_102), None, "the port closes with the agent");

    let _agent = node.agent(&["--nodeport-addresses", "10.0.0.9/32"]);
    until("the check answers at NodePort addresses", || code(30_102) == Some(200));
    assert!(get("127.0.0.1:30102").is_none() && get("10.0.0.1:30102").is_none());
}

//! The HTTP ports of the agent: /healthz for load balancers, /livez for probes, and metrics for Prometheus.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use serde_json::Value;

use crate::{
    Story,
    agent::{Agent, beeline, until},
    node::{StoryNode, service},
    sockets::{Client, assert_refused, at, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("healthz_follows_the_agent_and_the_node_object", healthz_follows),
    ("healthz_fails_before_the_agent_is_in_service", healthz_fails_before_service),
    ("an_api_server_that_does_not_answer_is_logged_once", unreachable_server_is_logged_once),
    ("metrics_count_connections_refusals_and_changes", metrics_are_counted),
    ("metrics_of_backends_are_limited_by_the_flag", backends_are_limited),
    ("a_health_port_in_use_is_retried_until_it_is_free", port_in_use_is_retried),
    ("idle_http_connections_do_not_block_probes", idle_connections_do_not_block),
];

pub const HEALTH: &str = "127.0.0.1:10256";
pub const METRICS: &str = "127.0.0.1:10249";
pub const ON_LOOPBACK: [&str; 2] = ["--healthz-bind-address", HEALTH];

/// Returns code and body of the answer to a GET; None without an answer.
pub fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Returns the codes of /healthz and /livez.
pub fn codes() -> [Option<u16>; 2] {
    ["/healthz", "/livez"].map(|path| get(HEALTH, path).map(|(code, _)| code))
}

fn json(path: &str) -> Value {
    serde_json::from_str(&get(HEALTH, path).expect("an answer").1).expect("JSON")
}

/// Scrapes the metrics and returns the samples by name and labels. Panics if the exposition format is broken.
fn scrape() -> BTreeMap<String, f64> {
    let (code, text) = get(METRICS, "/metrics").expect("an answer");
    assert_eq!(code, 200, "{text}");
    let mut samples = BTreeMap::new();
    let mut described = std::collections::BTreeSet::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (keyword, family) = (words.next(), words.next());
            assert!(matches!(keyword, Some("HELP" | "TYPE")) && words.next().is_some(), "{line}");
            assert!(described.insert((keyword.map(str::to_owned), family.map(str::to_owned))), "{line}: twice");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a sample");
        let value = value.parse().expect("a number");
        assert!(samples.insert(series.to_owned(), value).is_none(), "{line}: twice");
    }
    samples
}

fn port_series(name: &str, service: &str, protocol: &str, more: &str) -> String {
    format!(
        "{name}{{service_namespace=\"default\",service_name=\"{service}\",service_port=\"\",protocol=\"{protocol}\",\
         ip_family=\"IPv4\"{more}}}"
    )
}

const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: here}\n";
const TAINT: &str = "spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, value: '1', effect: NoSchedule}]}\n";

fn healthz_follows(node: &mut StoryNode) {
    node.write("node.yaml", NODE);
    let mut agent = node.agent(&ON_LOOPBACK);
    until("healthz and livez are 200", || codes() == [Some(200), Some(200)]);
    assert_eq!(json("/healthz")["nodeEligible"], true);
    assert_eq!(json("/livez")["nodeEligible"], Value::Null);
    assert_eq!(get(HEALTH, "/").expect("an answer").0, 404);

    node.write("node.yaml", &format!("{NODE}{TAINT}"));
    until("healthz is 503 for the tainted node", || codes() == [Some(503), Some(200)]);
    assert_eq!(json("/healthz")["nodeEligible"], false);
    let is_time = |value: &Value| value.as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z'));
    assert!(["lastUpdated", "currentTime"].iter().all(|field| is_time(&json("/healthz")[field])));
    node.write("node.yaml", NODE);
    until("healthz is 200 again", || codes() == [Some(200), Some(200)]);

    assert!(agent.terminate().success());
    assert_eq!(codes(), [None, None], "the port closes with the agent");
    drop(agent);
    let _agent = node.agent(&["--healthz-bind-address", "", "--metrics-bind-address="]);
    assert_eq!((codes(), get(METRICS, "/metrics")), ([None, None], None), "an empty address opens no port");
}

/// The API server cannot be reached: the agent waits for it.
/// The command of an agent whose API server refuses connections.
fn without_api_server(node: &StoryNode) -> Command {
    let kubeconfig = node.directory.join("kubeconfig");
    let text = "{apiVersion: v1, kind: Config, current-context: a, \
                contexts: [{name: a, context: {cluster: a, user: a}}], \
                clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: a, user: {}}]}";
    fs::write(&kubeconfig, text).expect("a file");
    let mut command = beeline();
    command.arg("--pins").arg(&node.pins).args(["run", "--node-name=here", "--kubeconfig"]).arg(kubeconfig);
    command.arg("--cgroup").arg(&node.cgroup).stdin(Stdio::null());
    command
}

fn unreachable_server_is_logged_once(node: &mut StoryNode) {
    let path = node.directory.join("log");
    let mut command = without_api_server(node);
    command.stderr(fs::File::create(&path).expect("a file"));
    let mut waiting = command.spawn().expect("the beeline binary");
    let log = || fs::read_to_string(&path).expect("the log");
    until("the log says so", || log().contains("no API server answers"));
    // Time for further attempts.
    thread::sleep(Duration::from_secs(3));
    waiting.kill().and_then(|()| waiting.wait()).expect("a running agent");
    let log = log();
    let problems: Vec<_> = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert_eq!(problems.len(), 1, "{log}");
    assert_eq!(log.matches("Connection refused").count(), 1, "{log}");
}

fn healthz_fails_before_service(node: &mut StoryNode) {
    let mut waiting = without_api_server(node).spawn().expect("the beeline binary");
    until("healthz answers", || codes() == [Some(503), Some(503)]);
    assert_eq!(json("/livez")["lastUpdated"], Value::Null);
    let samples = scrape();
    assert_eq!((samples["beeline_passes_total"], samples["beeline_maps_readable"]), (0.0, 0.0));
    waiting.kill().and_then(|()| waiting.wait()).expect("a running agent");

    let _agent = node.agent(&[]);
    until("the agent is in service", || codes() == [Some(200), Some(200)]);
    assert_eq!(scrape()["beeline_maps_readable"], 1.0);
}

fn metrics_are_counted(node: &mut StoryNode) {
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080", "10.0.0.2:8080"]));
    node.write("dns.yaml", &service("dns", &["10.96.0.53"], "UDP", 53, &["10.0.0.1:5353"]));
    node.write("empty.yaml", &service("empty", &["10.96.0.2"], "TCP", 80, &[]));
    let local = service("local", &["10.96.0.3"], "TCP", 80, &["10.0.0.1:8080"]);
    node.write("local.yaml", &local.replace("spec:\n", "spec:\n  internalTrafficPolicy: Local\n"));
    ["10.0.0.1:8080", "10.0.0.2:8080"].into_iter().for_each(tcp_server);
    udp_server("10.0.0.1:5353");
    let agent = node.agent(&ON_LOOPBACK);
    until("the agent is in service", || codes() == [Some(200), Some(200)]);

    let connect = |to: &str| {
        let client = Client::tcp(at(to));
        client.connect(at(to)).map(|()| client)
    };
    let mut open: Vec<_> = (0..20).map(|_| connect("10.96.0.1:80").expect("a connection")).collect();
    open.truncate(12);
    let resolver = Client::udp(at("10.96.0.53:53"));
    resolver.ask(at("10.96.0.53:53"));
    for _ in 0..3 {
        assert_refused(connect("10.96.0.2:80").map(drop), Errno::CONNREFUSED);
    }
    for _ in 0..2 {
        assert_refused(connect("10.96.0.3:80").map(drop), Errno::HOSTUNREACH);
    }

    let samples = scrape();
    let check = |series: &str, expected: f64| {
        assert_eq!(samples.get(series), Some(&expected), "{series}");
    };
    check(&port_series("beeline_connections_total", "web", "TCP", ""), 20.0);
    check(&port_series("beeline_open_sockets", "web", "TCP", ""), 12.0);
    check(&port_series("beeline_connections_total", "dns", "UDP", ""), 1.0);
    check(&port_series("beeline_open_sockets", "dns", "UDP", ""), 1.0);
    check(&port_series("beeline_refused_total", "empty", "TCP", ",cause=\"no_endpoints\""), 3.0);
    check(&port_series("beeline_refused_total", "local", "TCP", ",cause=\"no_local_endpoints\""), 2.0);
    check(&port_series("beeline_refused_total", "web", "TCP", ",cause=\"no_endpoints\""), 0.0);
    check("beeline_events_total{event=\"refused_no_endpoints\"}", 3.0);
    check("kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\"}", 1.0);
    check("kubeproxy_sync_proxy_rules_service_changes_total", 4.0);
    check("kubeproxy_sync_proxy_rules_endpoint_changes_total", 4.0);
    check("kubeproxy_sync_proxy_rules_service_changes_pending", 0.0);
    check("beeline_map_entries{map=\"SERVICES\"}", 4.0);
    check("beeline_map_entries{map=\"SLOTS\"}", agent.dump().slots.len() as f64);
    check("beeline_services_refused", 0.0);
    check("beeline_maps_readable", 1.0);
    check("beeline_pass_failures_total", 0.0);
    check("kubeproxy_sync_proxy_rules_duration_seconds_count", samples["beeline_passes_total"]);
    // The Service with policy Local: hand-written endpoints without a node are local on no node.
    check("beeline_warnings", 1.0);
    // Requests of the probe above count, those of the scrape do not.
    assert!(samples["kubeproxy_proxy_livez_total{code=\"200\"}"] >= 1.0);
    assert!(samples["kubeproxy_sync_proxy_rules_last_timestamp_seconds"] > 1e9);
    assert!(samples.keys().filter(|series| series.starts_with("beeline_program_info{program=\"")).count() >= 8);
    assert!(
        !samples.keys().any(|series| series.starts_with("beeline_backend")),
        "metrics of backends are off by default"
    );
    assert_eq!(get(METRICS, "/proxyMode"), Some((200, "beeline".to_owned())));
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        assert_eq!(get("[::1]:10249", "/proxyMode"), Some((200, "beeline".to_owned())));
    }
    assert_eq!(get(METRICS, "/healthz").map(|(code, _)| code), Some(404));

    // The slice names the time of its change.
    let now = now_as_text();
    node.write(
        "slice.yaml",
        &format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, \
             labels: {{kubernetes.io/service-name: web}}, \
             annotations: {{endpoints.kubernetes.io/last-change-trigger-time: '{now}'}}}}\n\
             addressType: IPv4\nports: [{{name: '', port: 8080}}]\nendpoints: [{{addresses: [10.0.0.3]}}]\n"
        ),
    );
    until("the change is measured", || scrape()["kubeproxy_network_programming_duration_seconds_count"] == 1.0);
    let sum = scrape()["kubeproxy_network_programming_duration_seconds_sum"];
    assert!((0.0..60.0).contains(&sum), "{sum}");
}

/// Returns the current time as in RFC 3339.
fn now_as_text() -> String {
    k8s_openapi::jiff::Timestamp::now().to_string()
}

fn backends_are_limited(node: &mut StoryNode) {
    let all = ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"];
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &all));
    all.into_iter().for_each(tcp_server);
    let _agent = node.agent(&["--metrics-backends=2"]);
    let vip = at("10.96.0.1:80");
    let connect = |_| {
        let client = Client::tcp(vip);
        client.connect(vip).expect("a connection");
        client
    };
    let mut clients: Vec<_> = (0..20).map(connect).collect();
    let shown = || {
        let samples = scrape();
        let left_out = samples["beeline_backends_left_out"];
        let shown = samples.into_iter().filter(|(series, _)| series.starts_with("beeline_backend_connections_total"));
        (shown.map(|(_, count)| count).collect::<Vec<_>>(), left_out)
    };
    until("three backends have connections", || {
        clients.push(connect(0));
        shown().1 == 1.0
    });
    let (counts, _) = shown();
    assert_eq!(counts.len(), 2);
    assert!(counts.iter().sum::<f64>() >= clients.len() as f64 * 2.0 / 3.0, "the busiest are shown: {counts:?}");
}

fn port_in_use_is_retried(node: &mut StoryNode) {
    let held = TcpListener::bind(HEALTH).expect("a free port");
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080"]));
    let agent = node.agent(&[ON_LOOPBACK.as_slice(), &["--log-level=info,lb_agent=debug"]].concat());
    agent.wait_for_log("holds 127.0.0.1:10256");
    let log = agent.log();
    assert!(log.contains(&format!("(pid {})", std::process::id())), "the process that holds the port is named: {log}");
    assert!(log.contains("--healthz-bind-address"), "the cure is named: {log}");
    assert_eq!(get(METRICS, "/proxyMode").map(|(code, _)| code), Some(200), "the other port is served");
    agent.wait_for("the Service", |dump| dump.slots.len() == 1);
    agent.wait_for_log("still unavailable");
    assert_eq!(agent.log().matches("holds 127.0.0.1:10256").count(), 1, "the warning is logged once");
    drop(held);
    until("the agent serves the port", || codes() == [Some(200), Some(200)]);
    assert!(agent.log().contains("the port is free now"));
}

fn idle_connections_do_not_block(node: &mut StoryNode) {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("the hard limit is allowed");
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080"]));
    let agent: Agent = node.agent(&ON_LOOPBACK);
    until("healthz answers", || codes() == [Some(200), Some(200)]);
    let idle = |address: &str| -> Vec<TcpStream> {
        let open = |n| {
            let mut stream = TcpStream::connect(address).expect("a connection");
            if n % 2 == 0 {
                // The agent may have closed the connection already.
                let _ended = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Slow: ");
            }
            stream
        };
        (0..1000).map(open).collect()
    };
    let _connections = [idle(HEALTH), idle(METRICS)];
    assert_eq!(codes(), [Some(200), Some(200)]);
    assert!(scrape()["beeline_passes_total"] >= 1.0);
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080", "10.0.0.2:8080"]));
    agent.wait_for("the next pass", |dump| dump.slots.len() == 2);
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("the agent").count();
    assert!(descriptors < 200, "{descriptors} descriptors");
}

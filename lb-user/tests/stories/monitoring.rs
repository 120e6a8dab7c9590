//! The dashboard and the alerts of `deploy/monitoring` in a real Prometheus that scrapes the real agent.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::mount::mount_bind;
use serde_json::Value;

use crate::{
    Story,
    agent::until,
    node::{StoryNode, annotated, service},
    sockets::{Client, at, tcp_server},
};

pub const STORIES: &[Story] = &[("the_dashboard_and_the_alerts_work_in_a_real_prometheus", dashboard_and_alerts_work)];

const DASHBOARD: &str = include_str!("../../../deploy/monitoring/dashboard.json");
const ALERTS: &str = include_str!("../../../deploy/monitoring/alerts.yaml");
/// Environment variable: directory of the Prometheus binaries.
const PROGRAMS: &str = "BEELINE_PROMETHEUS";
const PROMETHEUS: &str = "127.0.0.1:9090";
/// Starts of the metrics of `beeline lb`, and of announcers, which are not here. Tests beside their encoders have the
/// names.
const ELSEWHERE: [&str; 2] = ["beeline_lb_", "beeline_announce"];
const CONFIG: &str = "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [alerts.yaml]\n\
    scrape_configs: [{job_name: beeline, static_configs: [{targets: ['127.0.0.1:10249']}]}]\n";
/// Time until every query must return numbers; some need several scrapes.
const QUERY_LIMIT: Duration = Duration::from_secs(40);

/// True if the environment names the directory of a Prometheus, as `xtask test` does.
pub fn has_prometheus() -> bool {
    std::env::var_os(PROGRAMS).is_some()
}

/// A running Prometheus, killed when dropped.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

fn dashboard_and_alerts_work(node: &mut StoryNode) {
    let programs = std::env::var_os(PROGRAMS).map(PathBuf::from).expect("the runner has checked it");
    enable_run_counts(node);
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080"]));
    node.write("empty.yaml", &service("empty", &["10.96.0.2"], "TCP", 80, &[]));
    ["10.0.0.1:8080", "10.0.0.2:8080"].into_iter().for_each(tcp_server);
    let ejecting = service("ejecting", &["10.96.0.3"], "TCP", 80, &["10.0.0.1:8080", "10.0.0.3:8080"]);
    node.write("ejecting.yaml", &annotated(&ejecting, "beeline.io/eject: 1 in 1m for 1h"));
    let _agent = node.agent(&[]);

    let directory = node.directory.join("prometheus");
    std::fs::create_dir(&directory).expect("a directory");
    std::fs::write(directory.join("prometheus.yaml"), CONFIG).expect("a file");
    std::fs::write(directory.join("alerts.yaml"), ALERTS).expect("a file");
    let mut command = Command::new(programs.join("prometheus"));
    command.args(["--config.file=prometheus.yaml", "--storage.tsdb.path=data", "--log.level=warn"]);
    command.arg(format!("--web.listen-address={PROMETHEUS}")).current_dir(&directory).stdin(Stdio::null());
    let _prometheus = Prometheus(command.spawn().expect("prometheus"));
    until("Prometheus is ready", || get("/-/ready").is_some_and(|(code, _)| code == 200));

    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let mut queries: Vec<String> = ["up == 1", "scrape_samples_scraped > 100"].map(str::to_owned).into();
    for target in dashboard["panels"].as_array().expect("panels").iter().flat_map(|panel| panel["targets"].as_array()) {
        queries.extend(target.iter().map(|target| grafana_query(target["expr"].as_str().expect("a query"))));
    }
    queries.retain(|query| !ELSEWHERE.iter().any(|start| query.contains(start)));
    assert!(queries.len() >= 15, "{queries:?}");
    let deadline = Instant::now() + QUERY_LIMIT;
    for round in 0.. {
        make_traffic(node, round);
        queries.retain(|query| !has_numbers(query));
        if queries.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "without numbers: {queries:#?}");
    }

    let (_, names) = get("/api/v1/label/__name__/values").expect("an answer");
    let names: Value = serde_json::from_str(&names).expect("JSON");
    let known: BTreeSet<_> = names["data"].as_array().expect("names").iter().filter_map(Value::as_str).collect();
    for (file, text) in [("dashboard.json", DASHBOARD), ("alerts.yaml", ALERTS)] {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let is_of_agent = |word: &&str| {
            let starts = |starts: &[&str]| starts.iter().any(|start| word.starts_with(start));
            !starts(&ELSEWHERE) && starts(&["beeline_", "kubeproxy_"])
        };
        let used: BTreeSet<_> = words.filter(is_of_agent).collect();
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(used.len() > 5 && unknown.is_empty(), "{file} uses metrics that the agent does not have: {unknown:?}");
    }

    let rules = || -> Vec<Value> {
        let (_, answer) = get("/api/v1/rules").expect("an answer");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        answer["data"]["groups"][0]["rules"].as_array().expect("rules").clone()
    };
    let is_pending = |rule: &Value| rule["state"] == "pending";
    until("the alert for the Service without endpoints is pending", || rules().iter().any(is_pending));
    for rule in rules() {
        assert_eq!(rule["health"], "ok", "{rule}");
        assert_eq!(is_pending(&rule), rule["name"] == "BeelineNoEndpoints", "no other alert is pending: {rule}");
    }
}

/// Makes the kernel count the runs of programs. The sysctl would act on the whole machine, so only its file is
/// replaced.
fn enable_run_counts(node: &StoryNode) {
    let counting = aya::sys::enable_stats(aya::sys::Stats::RunTime).expect("BPF_ENABLE_STATS, Linux 5.8");
    // Keep the counting enabled until this process ends.
    std::mem::forget(counting);
    let sysctl = node.directory.join("bpf_stats_enabled");
    std::fs::write(&sysctl, "1\n").expect("a file");
    mount_bind(&sysctl, "/proc/sys/kernel/bpf_stats_enabled").expect("a mount of this namespace");
}

/// Makes connections, refused calls and calls to a dead endpoint, and changes an endpoint with a change time.
fn make_traffic(node: &StoryNode, round: usize) {
    for (vip, is_served) in [("10.96.0.1:80", true), ("10.96.0.2:80", false)] {
        assert_eq!(Client::tcp(at(vip)).connect(at(vip)).is_ok(), is_served, "{vip}");
    }
    let ejecting = at("10.96.0.3:80");
    let _may_fail = Client::tcp(ejecting).connect(ejecting);
    let (now, backend) = (k8s_openapi::jiff::Timestamp::now(), 1 + round % 2);
    node.write(
        "slice.yaml",
        &format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, \
             labels: {{kubernetes.io/service-name: web}}, \
             annotations: {{endpoints.kubernetes.io/last-change-trigger-time: '{now}'}}}}\n\
             addressType: IPv4\nports: [{{name: '', port: 8080}}]\nendpoints: [{{addresses: [10.0.0.{backend}]}}]\n"
        ),
    );
    std::thread::sleep(Duration::from_millis(200));
}

/// Replaces the variables in a query as Grafana does.
fn grafana_query(expression: &str) -> String {
    let query = expression.replace("$__rate_interval", "10s").replace("$instance", ".*");
    assert!(!query.contains('$'), "{query}");
    query
}

/// True if a query returns a sample that is a number.
fn has_numbers(query: &str) -> bool {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let (code, answer) = get(&format!("/api/v1/query?query={encoded}")).expect("an answer");
    assert_eq!(code, 200, "{query}: {answer}");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let samples = answer["data"]["result"].as_array().expect("a vector");
    let is_number = |sample: &Value| sample["value"][1].as_str().is_some_and(|value| value != "NaN");
    !samples.is_empty() && samples.iter().any(is_number)
}

/// Returns code and body of an answer of Prometheus. HTTP 1.0 avoids a chunked body.
fn get(path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(PROMETHEUS).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

//! The dashboard and the alerts of `deploy/monitoring`, asked of a real Prometheus that scrapes the real agent.

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
    node::{StoryNode, service},
    sockets::{Client, at, tcp_server},
};

pub const STORIES: &[Story] = &[("the_dashboard_and_the_alerts_work_in_a_real_prometheus", prometheus_answers)];

const DASHBOARD: &str = include_str!("../../../deploy/monitoring/dashboard.json");
const ALERTS: &str = include_str!("../../../deploy/monitoring/alerts.yaml");
/// Environment: the directory of the programs.
const PROGRAMS: &str = "BEELINE_PROMETHEUS";
const PROMETHEUS: &str = "127.0.0.1:9090";
const CONFIG: &str = "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [alerts.yaml]\n\
    scrape_configs: [{job_name: beeline, static_configs: [{targets: ['127.0.0.1:10249']}]}]\n";
/// How long all questions have until they have numbers for answers; it takes some scrapes.
const PATIENCE: Duration = Duration::from_secs(40);

/// Whether `xtask test`, or somebody else, has said where a Prometheus is.
pub fn has_prometheus() -> bool {
    std::env::var_os(PROGRAMS).is_some()
}

/// A running Prometheus; it ends with the value.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

fn prometheus_answers(node: &mut StoryNode) {
    let programs = std::env::var_os(PROGRAMS).map(PathBuf::from).expect("asked before");
    count_runs(node);
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080"]));
    node.write("empty.yaml", &service("empty", &["10.96.0.2"], "TCP", 80, &[]));
    ["10.0.0.1:8080", "10.0.0.2:8080"].into_iter().for_each(tcp_server);
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
    let mut questions: Vec<String> = ["up == 1", "scrape_samples_scraped > 100"].map(str::to_owned).into();
    for target in dashboard["panels"].as_array().expect("panels").iter().flat_map(|panel| panel["targets"].as_array()) {
        questions.extend(target.iter().map(|target| as_grafana_asks(target["expr"].as_str().expect("a question"))));
    }
    assert!(questions.len() >= 15, "{questions:?}");
    let deadline = Instant::now() + PATIENCE;
    for round in 0.. {
        live(node, round);
        questions.retain(|question| !has_numbers(question));
        if questions.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "without numbers: {questions:#?}");
    }

    let (_, names) = get("/api/v1/label/__name__/values").expect("an answer");
    let names: Value = serde_json::from_str(&names).expect("JSON");
    let known: BTreeSet<_> = names["data"].as_array().expect("names").iter().filter_map(Value::as_str).collect();
    for (file, text) in [("dashboard.json", DASHBOARD), ("alerts.yaml", ALERTS)] {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let used: BTreeSet<_> =
            words.filter(|word| ["beeline_", "kubeproxy_"].iter().any(|start| word.starts_with(start))).collect();
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(used.len() > 5 && unknown.is_empty(), "{file} asks for what the agent does not tell: {unknown:?}");
    }

    let rules = || -> Vec<Value> {
        let (_, said) = get("/api/v1/rules").expect("an answer");
        let said: Value = serde_json::from_str(&said).expect("JSON");
        said["data"]["groups"][0]["rules"].as_array().expect("rules").clone()
    };
    let is_pending = |rule: &Value| rule["state"] == "pending";
    until("what was done to the empty Service is noticed", || rules().iter().any(is_pending));
    for rule in rules() {
        assert_eq!(rule["health"], "ok", "{rule}");
        assert_eq!(is_pending(&rule), rule["name"] == "BeelineNoEndpoints", "nothing else is wrong: {rule}");
    }
}

/// Makes the kernel count the runs of programs, and the node look as if its sysctl said so: that one is of the whole machine.
fn count_runs(node: &StoryNode) {
    let counting = aya::sys::enable_stats(aya::sys::Stats::RunTime).expect("5.8 or newer");
    // Until this process ends.
    std::mem::forget(counting);
    let says = node.directory.join("bpf_stats_enabled");
    std::fs::write(&says, "1\n").expect("a file");
    mount_bind(&says, "/proc/sys/kernel/bpf_stats_enabled").expect("a mount of this namespace");
}

/// Connections, refusals, and a change of an endpoint whose time is told.
fn live(node: &StoryNode, round: usize) {
    for (vip, is_served) in [("10.96.0.1:80", true), ("10.96.0.2:80", false)] {
        assert_eq!(Client::tcp(at(vip)).connect(at(vip)).is_ok(), is_served, "{vip}");
    }
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

/// With the values that Grafana would put there.
fn as_grafana_asks(question: &str) -> String {
    let asked = question.replace("$__rate_interval", "10s").replace("$instance", ".*");
    assert!(!asked.contains('$'), "{asked}");
    asked
}

/// Whether there is an answer with a number in it.
fn has_numbers(question: &str) -> bool {
    let encoded: String = question.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let (code, said) = get(&format!("/api/v1/query?query={encoded}")).expect("an answer");
    assert_eq!(code, 200, "{question}: {said}");
    let said: Value = serde_json::from_str(&said).expect("JSON");
    let answers = said["data"]["result"].as_array().expect("a vector");
    let is_number = |answer: &Value| answer["value"][1].as_str().is_some_and(|value| value != "NaN");
    !answers.is_empty() && answers.iter().any(is_number)
}

/// Code and body of Prometheus' answer; HTTP 1.0, so that it comes in one piece.
fn get(path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(PROMETHEUS).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

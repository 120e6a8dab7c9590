//! A node goes from kube-proxy to Beeline and back, under load: a real API server, a real kube-proxy in each of its
//! modes, the real agent, clients outside and in a pod. No connection and no datagram may fail.
//!
//! `handover [FILTER]` runs the stories. It starts itself as `handover --story NAME` for one story, and as `handover
//! --serve` and `--load` for servers and clients.
#![expect(clippy::unwrap_used, reason = "a test")]

mod load;
mod network;

use std::{
    path::Path,
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use lb_lab::{
    api_server::{ApiServer, Assets},
    kube_proxy::Mode,
    sandbox::{Inside, Sandbox},
};
use libtest_mimic::{Arguments, Failed, Trial};
use load::HandoverLoad;
use network::Network;

/// Duration of the load after each step.
const LOAD_TIME: Duration = Duration::from_millis(1500);

/// Name, mode of kube-proxy, flags of the agent.
type Story = (&'static str, Mode, &'static [&'static str]);

const STORIES: [Story; 3] = [
    ("there_and_back_beside_nftables", Mode::Nftables, &[]),
    ("there_and_back_beside_iptables", Mode::Iptables, &[]),
    // conntrack never saw these flows, and must take them over.
    ("there_and_back_with_host_routing", Mode::Nftables, &["--host-routing"]),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    load::main(&words);
    if let [_, flag, name] = words.as_slice()
        && flag == "--story"
    {
        let (_, mode, flags) = STORIES.into_iter().find(|(known, ..)| known == name).expect("a story of that name");
        story(mode, flags);
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    if let Some(obstacle) = obstacle() {
        println!("handover: skipped, {obstacle}");
        let required = std::env::var_os("BEELINE_REQUIRE_KERNEL").is_some();
        return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let trials = STORIES.map(|(name, ..)| Trial::test(name, move || run(name)));
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

/// The reason why the stories cannot run on this machine, if there is one.
fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    // Only the versions of the tools: listing rules might fail in this namespace.
    for tool in ["iptables", "nft"] {
        if let Err(error) = Command::new(tool).arg("--version").output() {
            return Some(format!("there is no {tool}: {error}"));
        }
    }
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").unwrap_or_default();
    if !Path::new(&assets).join("kube-proxy").is_file() {
        return Some(format!("there is no kube-proxy in KUBEBUILDER_ASSETS={}", assets.display()));
    }
    Assets::find().err().or_else(|| lb_dataplane::environment::cgroup2().err().map(|error| format!("{error:#}")))
}

/// Runs one story in a process of its own.
fn run(name: &str) -> Result<(), Failed> {
    let sandbox = Sandbox::make(name)?;
    let output = sandbox.run_in(Command::new(std::env::current_exe()?).args(["--story", name])).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        text.lines().filter(|line| line.starts_with("COUNTED ")).for_each(|line| println!("\n{name}: {line}"));
        Ok(())
    } else {
        Err(text.into())
    }
}

/// Prints an event with its time, to compare with the times of failures.
fn note(what: &str) {
    println!("{what} at {}", load::clock());
}

/// Steps: kube-proxy alone; Beeline beside it; Beeline alone; both again; kube-proxy alone.
fn story(mode: Mode, flags: &[&str]) {
    let inside = Inside::find().expect("set by the runner");
    let bpffs = inside.enter();
    let api = ApiServer::start(Assets::find().unwrap());
    let network = Network::make(&api, &inside.cgroup, &inside.directory, &bpffs.join("beeline"));

    let kube_proxy = network.start_kube_proxy(mode);
    network.until_served();
    let mut loads = vec![HandoverLoad::start(&network, "since kube-proxy")];
    thread::sleep(LOAD_TIME);

    // Rules and maps agree while both serve.
    note("agent starts");
    let agent = network.start_agent(flags);
    thread::sleep(LOAD_TIME);
    let (code, output) = network.beeline(&["handover", "--dry-run", "-o", "json"]);
    let comparison: serde_json::Value =
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"));
    assert_eq!((code, &comparison["differences"]), (0, &serde_json::json!([])), "{output}");
    assert!(comparison["compared"].as_u64() >= Some(8), "{output}");
    let (code, output) = network.beeline(&["handover"]);
    assert!(
        code == 1 && output.contains("kube-proxy runs (pid ") && output.contains("nothing was changed"),
        "{output}"
    );
    network.assert_difference_is_reported();
    assert_rules_before_nat_are_obstacles(&network, mode);

    // Beeline alone.
    note("kube-proxy ends");
    drop(kube_proxy);
    let (code, output) = network.beeline(&["handover"]);
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("removed  ") && output.contains("beeline-handover keeps "), "{output}");
    println!("{output}");
    note("handed over");
    assert_eq!(network.kube_proxys_rules(), "", "no rule of kube-proxy is left");
    thread::sleep(LOAD_TIME);
    let (code, output) = network.beeline(&["handover"]);
    assert!(code == 0 && output.contains("kube-proxy has no rules") && output.contains("open connection"), "{output}");
    loads.push(HandoverLoad::start(&network, "since Beeline"));
    thread::sleep(LOAD_TIME);

    // Back to kube-proxy.
    note("kube-proxy starts");
    let kube_proxy = network.start_kube_proxy(mode);
    network.until_rules_are_written();
    thread::sleep(LOAD_TIME);
    note("agent ends");
    drop(agent);
    note("cleanup");
    let (code, output) = network.beeline(&["cleanup"]);
    println!("{output}");
    note("cleaned up");
    let is_whole = code == 0 && output.contains("handed to netfilter") && !output.contains("more end");
    loads.push(HandoverLoad::start(&network, "since kube-proxy again"));
    thread::sleep(LOAD_TIME);

    let mut failed = false;
    for load in loads {
        let result = load.end();
        println!("COUNTED {result}");
        failed |= result.has_failed();
    }
    assert!(is_whole && !failed, "the hand-over was not whole, or a client failed");
    drop(kube_proxy);
}

/// Asserts that a firewall's rule is an obstacle that names a NodePort before destination NAT, where it would match
/// nothing any more.
fn assert_rules_before_nat_are_obstacles(network: &Network, mode: Mode) {
    let named = |output: &str| output.contains("0.0.0.0:30080/TCP of default/any");
    let (_, output) = network.beeline(&["handover", "--dry-run"]);
    assert!(!named(&output), "{output}");
    match mode {
        Mode::Nftables => {
            let chain = "add table inet firewall; add chain inet firewall early { type filter hook prerouting priority \
                         -300; }; add chain inet firewall ports; add rule inet firewall early jump ports; \
                         add rule inet firewall ports tcp dport { 22, 30000-30090 } counter";
            network.run(&["nft", chain]);
        }
        Mode::Iptables => {
            network.run(&[
                "iptables",
                "-t",
                "raw",
                "-A",
                "PREROUTING",
                "-p",
                "tcp",
                "-m",
                "multiport",
                "--dports",
                "22,30080",
            ]);
        }
    }
    let (_, output) = network.beeline(&["handover", "--dry-run"]);
    assert!(named(&output) && output.contains("obstacle"), "{output}");
    match mode {
        Mode::Nftables => network.run(&["nft", "delete", "table", "inet", "firewall"]),
        Mode::Iptables => network.run(&["iptables", "-t", "raw", "-F"]),
    }
}

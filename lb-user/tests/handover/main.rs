//! A node goes from kube-proxy to Beeline and back, under load: a real API server, a real kube-proxy in each of its
//! modes, the real agent, clients outside and in a pod. What is counted is what fails: nothing may.
//!
//! `handover [FILTER]` runs them; `handover --story NAME` is one of them, as the runner starts it, and `handover
//! --serve`, `--load` are its servers and clients.
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
use load::Load;
use network::Network;

/// Duration of the load in each state.
const WHILE: Duration = Duration::from_millis(1500);

/// A name, the mode of kube-proxy, and flags of the agent.
type Story = (&'static str, Mode, &'static [&'static str]);

const STORIES: [Story; 3] = [
    ("there_and_back_beside_nftables", Mode::Nftables, &[]),
    ("there_and_back_beside_iptables", Mode::Iptables, &[]),
    // Flows that conntrack has never seen go back to it.
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
    if let Some(lacks) = lacking() {
        println!("handover: skipped, {lacks}");
        let required = std::env::var_os("BEELINE_REQUIRE_KERNEL").is_some();
        return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let trials = STORIES.map(|(name, ..)| Trial::test(name, move || run(name)));
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

fn lacking() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    // Only their version: the rules of the machine's own network do not matter.
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
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        said.lines().filter(|line| line.starts_with("COUNTED ")).for_each(|line| println!("\n{name}: {line}"));
        Ok(())
    } else {
        Err(said.into())
    }
}

/// Prints an event with its time, to compare with the times of failures.
fn note(what: &str) {
    println!("{what} at {}", load::clock());
}

/// kube-proxy; Beeline beside it; Beeline alone; both again; kube-proxy alone.
fn story(mode: Mode, flags: &[&str]) {
    let inside = Inside::find().expect("set by the runner");
    let bpffs = inside.enter();
    let api = ApiServer::start(Assets::find().unwrap());
    let network = Network::make(&api, &inside.cgroup, &inside.directory, &bpffs.join("beeline"));

    let kube_proxy = network.start_kube_proxy(mode);
    network.until_served();
    let mut loads = vec![Load::start(&network, "since kube-proxy")];
    thread::sleep(WHILE);

    // Beside it: nothing is harmed, and both answer alike.
    note("agent starts");
    let agent = network.start_agent(flags);
    thread::sleep(WHILE);
    let (code, told) = network.beeline(&["handover", "--dry-run", "-o", "json"]);
    let comparison: serde_json::Value = serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"));
    assert_eq!((code, &comparison["differences"]), (0, &serde_json::json!([])), "{told}");
    assert!(comparison["compared"].as_u64() >= Some(8), "{told}");
    let (code, told) = network.beeline(&["handover"]);
    assert!(code == 1 && told.contains("kube-proxy runs (pid ") && told.contains("nothing was changed"), "{told}");
    network.difference_is_told();

    // Alone.
    note("kube-proxy ends");
    drop(kube_proxy);
    let (code, told) = network.beeline(&["handover"]);
    assert_eq!(code, 0, "{told}");
    assert!(told.contains("removed  ") && told.contains("beeline-handover keeps "), "{told}");
    println!("{told}");
    note("handed over");
    assert_eq!(network.kube_proxys_rules(), "", "of kube-proxy's rules nothing is left");
    thread::sleep(WHILE);
    let (code, told) = network.beeline(&["handover"]);
    assert!(code == 0 && told.contains("kube-proxy has no rules") && told.contains("open connection"), "{told}");
    loads.push(Load::start(&network, "since Beeline"));
    thread::sleep(WHILE);

    // And back.
    note("kube-proxy starts");
    let kube_proxy = network.start_kube_proxy(mode);
    network.until_rules_are_written();
    thread::sleep(WHILE);
    note("agent ends");
    drop(agent);
    note("cleanup");
    let (code, told) = network.beeline(&["cleanup"]);
    println!("{told}");
    note("cleaned up");
    let is_whole = code == 0 && told.contains("handed to netfilter") && !told.contains("more end");
    loads.push(Load::start(&network, "since kube-proxy again"));
    thread::sleep(WHILE);

    let mut failed = false;
    for load in loads {
        let counted = load.end();
        println!("COUNTED {counted}");
        failed |= counted.has_failed();
    }
    assert!(is_whole && !failed, "something failed");
    drop(kube_proxy);
}

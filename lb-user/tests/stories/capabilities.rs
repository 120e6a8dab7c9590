//! The agent with few capabilities: the sets of `deploy/components` suffice, and none in the smaller set is
//! superfluous.

use std::{
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use crate::{
    Story,
    agent::{Agent, run, until},
    node::{StoryNode, service},
    socket_termination::in_namespace,
    sockets::{Client, at, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("the_least_capabilities_suffice_for_everything", least_capabilities),
    ("the_fewest_capabilities_suffice_for_all_but_ending_sockets_of_pods", fewest_capabilities),
    ("without_one_of_the_fewest_capabilities_the_agent_exits_and_names_it", each_is_needed),
];

const LEAST: &str = include_str!("../../../deploy/components/least-capabilities/kustomization.yaml");
const FEWEST: &str = include_str!("../../../deploy/components/fewest-capabilities/kustomization.yaml");
const UNIT: &str = include_str!("../../../deploy/systemd/beeline.service");

/// Returns the capabilities that a component adds.
fn listed(component: &str) -> CapabilitySet {
    let (_, added) = component.split_once("add:\n").expect("a list");
    let lines = added.lines().map(str::trim).take_while(|line| line.starts_with(['-', '#']));
    lines
        .filter_map(|line| line.strip_prefix("- "))
        .map(|name| CapabilitySet::from_name(name).unwrap_or_else(|| panic!("no capability is called {name}")))
        .collect()
}

/// Returns the capabilities that a component adds, and further ones for an old kernel.
fn needed(component: &str) -> CapabilitySet {
    let mut set = listed(component);
    assert!(set.contains(CapabilitySet::BPF), "{set:?}");
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if ["5.10", "5.9", "5.8"].iter().any(|old| release.starts_with(&format!("{old}."))) {
        // Programs and maps count as locked memory; SYS_RESOURCE allows to raise its limit.
        println!(
            "LACKS accounting of maps by cgroup (5.11): without an unlimited RLIMIT_MEMLOCK, SYS_RESOURCE is needed too"
        );
        set |= CapabilitySet::SYS_RESOURCE;
    }
    set
}

/// Runs `work` on a thread whose child processes have these capabilities and can get no others.
fn with_only<T: Send>(set: CapabilitySet, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            for other in CapabilitySet::all().difference(set).iter() {
                // Fails for capabilities that this kernel does not know.
                let _unknown = remove_capability_from_bounding_set(other);
            }
            work()
        });
        thread.join().expect("no panic")
    })
}

const VIP: &str = "10.96.0.53:53";
const TCP: &str = "10.96.0.80:80";
const TCP_BACKEND: &str = "10.0.0.1:8080";
const BOTH: [&str; 2] = ["10.0.0.1:5353", "10.0.0.2:5353"];

fn dns(backends: &[&str]) -> String {
    service("dns", &["10.96.0.53"], "UDP", 53, backends)
}

/// A process of another user that holds a network namespace, killed when dropped.
struct Pod(Child);

impl Drop for Pod {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Runs an agent through start, changes, restart over the pins, and the removal of the backend of a socket in the
/// network namespace of another user's process. True if that socket was ended.
fn run_lifecycle(node: &StoryNode) -> bool {
    BOTH.into_iter().for_each(udp_server);
    node.write("dns.yaml", &dns(&BOTH[1..]));
    let mut agent = node.agent(&[]);
    let client = Client::udp(at(VIP));
    assert_eq!(client.ask(at(VIP)).0, BOTH[1]);
    node.write("dns.yaml", &dns(&BOTH[..1]));
    agent.wait_for_log("removed=1");
    let (pod_client, _pod) = in_namespace(|| {
        let client = Client::udp(at(VIP));
        client.connect(at(VIP)).expect("connected");
        let pod = Command::new("sleep").arg("600").uid(65534).stdin(Stdio::null()).spawn().expect("sleep");
        (client, Pod(pod))
    });
    agent.kill();
    let mut agent = node.agent(&[]);
    agent.wait_for_log("writes=0");
    node.write("dns.yaml", &dns(&BOTH[1..]));
    agent.wait_for_log("removed=1");
    assert_eq!(client.ask(at(VIP)).0, BOTH[1]);
    let deadline = std::time::Instant::now() + Duration::from_secs(2);
    let mut has_ended = false;
    while !has_ended && std::time::Instant::now() < deadline {
        has_ended = pod_client.peer().is_none();
        thread::sleep(Duration::from_millis(10));
    }
    assert!(run(node, &["get", "services"]).status.success());
    agent.kill();
    assert!(run(node, &["cleanup"]).status.success());
    until("cleanup removes the maps", || !node.maps().exists());
    has_ended
}

fn least_capabilities(node: &mut StoryNode) {
    let node = &*node;
    let bounds = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a bounding set");
    let bounds = bounds.split(' ').map(|name| name.strip_prefix("CAP_").and_then(CapabilitySet::from_name));
    assert_eq!(
        bounds.collect::<Option<CapabilitySet>>(),
        Some(listed(LEAST)),
        "the systemd unit and the component list the same capabilities"
    );
    assert!(with_only(needed(LEAST), || run_lifecycle(node)), "the socket of the pod was not ended");
}

fn fewest_capabilities(node: &mut StoryNode) {
    let node = &*node;
    assert!(
        !with_only(needed(FEWEST), || run_lifecycle(node)),
        "the socket of the pod was ended: the larger set is not needed"
    );
    // The agent cannot look into all network namespaces, and takes no socket for closed.
    tcp_server(TCP_BACKEND);
    node.write("web.yaml", &service("web", &["10.96.0.80"], "TCP", 80, &[TCP_BACKEND]));
    with_only(needed(FEWEST), || {
        let agent = node.agent(&[]);
        agent.wait_for("the Service", |dump| dump.services.len() == 2);
        let client = Client::tcp(at(TCP));
        client.connect(at(TCP)).expect("connected");
        thread::sleep(Duration::from_secs(18));
        assert_eq!(client.peer(), Some(at(TCP)));
    });
}

fn each_is_needed(node: &mut StoryNode) {
    let node = &*node;
    node.write("dns.yaml", &dns(&BOTH));
    for missing in needed(FEWEST).iter().filter(|one| *one != CapabilitySet::SYS_RESOURCE) {
        let (status, log) = with_only(needed(FEWEST).difference(missing), || {
            let mut agent = Agent::start(node, &[]);
            (agent.wait(), agent.log())
        });
        println!("without {missing:?}: {status}: {}", log.lines().last().unwrap_or_default());
        assert!(!status.success() && !log.contains("in service"), "without {missing:?}: {log}");
        let name = format!("this process lacks CAP_{}", missing.iter_names().map(|(name, _)| name).collect::<String>());
        assert!(log.contains(&name), "{name}: {log}");
    }
}

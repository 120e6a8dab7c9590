//! The life cycle of the agent: start, kill, restart, upgrade, refused starts, growing and full maps, cleanup.

use std::{
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use aya::maps::{HashMap, MapData};
use lb_common::{FrontendKey, Proto};
use lb_kernel::bpf::typed::TypedMap;

use crate::{
    Story,
    agent::{Agent, beeline, run, until, until_within},
    node::{StoryNode, is_slow, service},
    sockets::{Client, at, tcp_ask, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("i12_the_agents_death_changes_nothing", death_changes_nothing),
    ("i4_a_restart_with_unchanged_objects_writes_nothing", restart_writes_nothing),
    ("no_connect_fails_over_kills_restarts_and_changes", kills_and_changes_fail_no_connect),
    ("a_second_agent_is_refused_with_the_pid_of_the_first", second_agent_is_refused),
    ("i13_a_foreign_pin_is_refused_with_its_cure", foreign_pin_is_refused),
    ("sigterm_leaves_the_datapath_and_cleanup_removes_it", sigterm_and_cleanup),
    ("i9_two_programs_at_once_translate_once", two_programs_at_once),
    ("a_changed_map_size_moves_the_entries_to_new_maps", changed_map_size),
    ("programs_of_another_layout_are_replaced_and_no_connect_fails", another_layout_is_replaced),
    ("programs_of_an_unknown_layout_are_replaced_and_no_connect_fails", unknown_layout_is_replaced),
    ("i15_a_full_map_keeps_the_old_version_serving", full_map),
    ("maps_grow_by_themselves_and_no_connect_fails", growing_maps_fail_no_connect),
    ("frontend_bits_go_with_the_last_frontend_and_a_restart_repairs_them", frontend_bits_follow_frontends),
    ("bad_yaml_keeps_the_last_good_version", bad_yaml_keeps_the_old_version),
    ("a_changed_cgroup_flag_moves_the_programs", changed_cgroup),
    ("get_trace_and_plan_read_the_pins_without_an_agent", commands_read_the_pins),
    ("a_bpffs_is_mounted_when_there_is_none", bpffs_is_mounted),
    ("an_unfit_node_is_refused_with_the_cure", unfit_node_is_refused),
];

const VIP: &str = "10.96.0.1:80";

fn web(node: &StoryNode, backends: &[&str]) {
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, backends));
}

fn assert_served_by(backend: &str) {
    assert_eq!(tcp_ask(at(VIP)).map(|(server, _)| server), Ok(backend.to_owned()));
}

fn death_changes_nothing(node: &mut StoryNode) {
    web(node, &["10.0.0.1:8080"]);
    tcp_server("10.0.0.1:8080");
    let mut agent = node.agent(&[]);
    let before = agent.dump();
    agent.kill();
    assert_served_by("10.0.0.1:8080");
    assert_eq!(agent.dump(), before);
}

fn restart_writes_nothing(node: &mut StoryNode) {
    web(node, &["10.0.0.1:8080", "10.0.0.2:8080"]);
    tcp_server("10.0.0.1:8080");
    tcp_server("10.0.0.2:8080");
    let mut agent = node.agent(&[]);
    let before = agent.dump();
    agent.kill();
    let agent = node.agent(&[]);
    assert_eq!(agent.dump(), before, "entries and ids are the same");
    assert!(agent.log().contains("writes=0"), "{}", agent.log());
    tcp_ask(at(VIP)).expect("served");
}

/// Two threads that open connections without pause, and the counts of opened and of failed ones.
pub struct ConnectionLoad {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicU32>,
    /// Connections whose getpeername does not show the VIP.
    wrong_peer: Arc<AtomicU32>,
    opened: Arc<AtomicU32>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl ConnectionLoad {
    fn start() -> Self {
        Self::start_at(at(VIP))
    }

    /// Opens connections to a VIP.
    pub fn start_at(vip: SocketAddr) -> Self {
        let (stop, failed, wrong_peer, opened) =
            <(Arc<AtomicBool>, Arc<AtomicU32>, Arc<AtomicU32>, Arc<AtomicU32>)>::default();
        let threads = (0..2)
            .map(|_| {
                let (stop, failed) = (Arc::clone(&stop), Arc::clone(&failed));
                let (wrong_peer, opened) = (Arc::clone(&wrong_peer), Arc::clone(&opened));
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let client = Client::tcp(vip);
                        if let Err(error) = client.connect(vip) {
                            println!("failed: {error}");
                            failed.fetch_add(1, Ordering::Relaxed);
                        } else if client.peer() != Some(vip) {
                            println!("peer: {:?}", client.peer());
                            wrong_peer.fetch_add(1, Ordering::Relaxed);
                        }
                        opened.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        Self { stop, failed, wrong_peer, opened, threads }
    }

    /// Waits for `count` more connections.
    pub fn more(&self, count: u32) {
        let from = self.opened.load(Ordering::Relaxed);
        until("connections are opened", || self.opened.load(Ordering::Relaxed) >= from + count);
    }

    /// Ends the load and asserts that no connection failed and every peer was the VIP.
    pub fn end(self) {
        assert_eq!(self.end_counting_wrong_peers(), 0);
    }

    /// Ends the load, asserts that no connection failed, and returns the number of wrong peers.
    fn end_counting_wrong_peers(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no panic");
        }
        let (failed, opened) = (self.failed.load(Ordering::Relaxed), self.opened.load(Ordering::Relaxed));
        println!("{opened} connections opened, {failed} failed");
        assert_eq!(failed, 0);
        assert!(opened > 100, "{opened}");
        self.wrong_peer.load(Ordering::Relaxed)
    }
}

fn kills_and_changes_fail_no_connect(node: &mut StoryNode) {
    let all = ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.4:8080"];
    all.into_iter().for_each(tcp_server);
    web(node, &all[..2]);
    let mut agent = node.agent(&[]);
    let load = ConnectionLoad::start();
    load.more(200);
    for round in 0..4 {
        // Kill the agent at an arbitrary point of its work, change the objects, and start the next agent.
        web(node, if round % 2 == 0 { &all[2..] } else { &all[..2] });
        load.more(20 * round);
        agent.kill();
        load.more(100);
        web(node, if round % 2 == 0 { &all } else { &all[1..3] });
        agent = node.agent(&[]);
        load.more(100);
        for n in 1..=3 {
            web(node, &all[..n]);
            agent.wait_for("the change", |dump| dump.backends.len() == n);
        }
    }
    // Kill agents during their start, each a little later than the one before.
    for step in 0..8 {
        agent.kill();
        let mut early = Agent::start(node, &[]);
        thread::sleep(Duration::from_millis(step * 12));
        early.kill();
        load.more(20);
    }
    let mut last = node.agent(&[]);
    load.more(100);
    assert_eq!(last.terminate().code(), Some(0));
    load.more(100);
    load.end();
}

fn second_agent_is_refused(node: &mut StoryNode) {
    web(node, &["10.0.0.1:8080"]);
    tcp_server("10.0.0.1:8080");
    let first = node.agent(&[]);
    let mut second = Agent::start(node, &[]);
    assert_ne!(second.wait().code(), Some(0));
    assert!(second.log().contains(&format!("pid {}", first.pid())), "{}", second.log());
    let cleanup = run(node, &["cleanup"]);
    assert!(!cleanup.status.success(), "cleanup is refused while an agent runs");
    assert_served_by("10.0.0.1:8080");
}

fn foreign_pin_is_refused(node: &mut StoryNode) {
    let directory = node.maps();
    std::fs::create_dir_all(&directory).expect("a directory in bpffs");
    let foreign = HashMap::<MapData, u32, u64>::create(16, 0).expect("a map");
    foreign.pin(directory.join("SERVICES")).expect("a pin");
    let mut agent = Agent::start(node, &[]);
    assert_ne!(agent.wait().code(), Some(0));
    let log = agent.log();
    assert!(log.contains("SERVICES") && log.contains("beeline cleanup") && log.contains("--pins"), "{log}");
    assert!(run(node, &["cleanup"]).status.success());
    web(node, &["10.0.0.1:8080"]);
    node.agent(&[]);
}

fn sigterm_and_cleanup(node: &mut StoryNode) {
    web(node, &["10.0.0.1:8080"]);
    tcp_server("10.0.0.1:8080");
    let mut agent = node.agent(&[]);
    assert_eq!(agent.terminate().code(), Some(0));
    assert!(
        agent.log().contains("beeline cleanup"),
        "the log says that the datapath stays and how to remove it: {}",
        agent.log()
    );
    assert_served_by("10.0.0.1:8080");
    assert!(run(node, &["cleanup"]).status.success());
    assert!(!node.pins.exists());
    assert!(tcp_ask(at(VIP)).is_err());
    assert!(run(node, &["cleanup"]).status.success(), "cleanup without pins is no error");
    let mut agent = node.agent(&["--cleanup-on-exit"]);
    assert_served_by("10.0.0.1:8080");
    assert_eq!(agent.terminate().code(), Some(0));
    assert!(!node.pins.exists());
}

fn two_programs_at_once(node: &mut StoryNode) {
    web(node, &["10.0.0.1:8080", "10.0.0.2:8080"]);
    node.write("dns.yaml", &service("dns", &["10.96.0.53"], "UDP", 53, &["10.0.0.1:5353", "10.0.0.2:5353"]));
    ["10.0.0.1:8080", "10.0.0.2:8080"].into_iter().for_each(tcp_server);
    ["10.0.0.1:5353", "10.0.0.2:5353"].into_iter().for_each(udp_server);
    let mut first = node.agent(&[]);
    first.kill();
    // Rename the pins of the links: the next agent finds the maps but no link, and attaches beside the old programs.
    let directory = node.maps();
    for entry in std::fs::read_dir(&directory).expect("the pins").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(hook) = name.strip_prefix("link_") {
            std::fs::rename(entry.path(), directory.join(format!("old_{hook}"))).expect("a rename");
        }
    }
    let _second = node.agent(&[]);
    for _ in 0..50 {
        let client = Client::tcp(at(VIP));
        client.connect(at(VIP)).expect("a connection");
        assert_eq!(client.peer(), Some(at(VIP)));
        let client = Client::udp(at("10.96.0.53:53"));
        assert_eq!(client.ask(at("10.96.0.53:53")).1, Some(at("10.96.0.53:53")));
        client.connect(at("10.96.0.53:53")).expect("connected");
        assert_eq!(client.peer(), Some(at("10.96.0.53:53")));
        client.connect(at("10.0.0.1:5353")).expect("connected");
        assert_eq!(client.peer(), Some(at("10.0.0.1:5353")));
    }
}

fn changed_map_size(node: &mut StoryNode) {
    web(node, &["10.0.0.1:8080"]);
    tcp_server("10.0.0.1:8080");
    let mut agent = node.agent(&["--map-size", "slots=16"]);
    let load = ConnectionLoad::start();
    load.more(50);
    agent.kill();
    let agent = node.agent(&["--map-size", "slots=32"]);
    load.more(500);
    load.end();
    assert_eq!(agent.dump().slots.len(), 1);
    let slots = MapData::from_pin(node.maps().join("SLOTS")).and_then(|map| map.info()).expect("the pinned map");
    assert_eq!(slots.max_entries(), 32);
}

/// The directory is renamed, as if a version with another layout had made the maps.
fn another_layout_is_replaced(node: &mut StoryNode) {
    let (load, open) = replace_other_layout(node, |_| {});
    assert_eq!(open.peer(), Some(at(VIP)));
    load.end();
}

/// The old version has stored no BTF fingerprints of its maps, as before these existed.
fn unknown_layout_is_replaced(node: &mut StoryNode) {
    let (load, _open) =
        replace_other_layout(node, |pins| std::fs::remove_dir_all(pins.join("like")).expect("the fingerprints"));
    // A socket that connects between two system calls of the take-over may lose its rev-nat entry with the old maps.
    let most = if is_slow() { 20 } else { 4 };
    let wrong_peers = load.end_counting_wrong_peers();
    assert!(wrong_peers <= most, "{wrong_peers} sockets do not show the VIP");
}

fn replace_other_layout(node: &mut StoryNode, change: impl Fn(&std::path::Path)) -> (ConnectionLoad, Client) {
    web(node, &["10.0.0.1:8080"]);
    tcp_server("10.0.0.1:8080");
    let mut agent = node.agent(&[]);
    let open = Client::tcp(at(VIP));
    open.connect(at(VIP)).expect("a connection");
    let load = ConnectionLoad::start();
    load.more(50);
    agent.kill();
    let other = node.pins.join("v1");
    std::fs::rename(node.maps(), &other).expect("bpffs renames directories");
    change(&other);
    load.more(50);
    let agent = node.agent(&[]);
    agent.wait_for_log("another version's programs and maps are out of service");
    assert!(!other.exists());
    load.more(400);
    assert!(open.receive().0.starts_with("10.0.0.1:8080"), "a connection from before stays open");
    // Only the new programs are left.
    agent.wait_for("the new maps", |dump| dump.backends.len() == 1);
    (load, open)
}

fn full_map(node: &mut StoryNode) {
    web(node, &["10.0.0.1:8080"]);
    tcp_server("10.0.0.1:8080");
    let agent = node.agent(&["--map-size", "slots=2"]);
    let many = ["10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.4:8080"];
    web(node, &many);
    agent.wait_for_log("SLOTS");
    let log = agent.log();
    assert!(log.contains("default/web") && log.contains("--map-size"), "{log}");
    assert_served_by("10.0.0.1:8080");
    // Another Service that fits is served.
    node.write("other.yaml", &service("other", &["10.96.0.2"], "TCP", 80, &["10.0.0.1:8080"]));
    agent.wait_for("the other Service", |dump| dump.services.len() == 2);
    assert!(tcp_ask(at("10.96.0.2:80")).is_ok());
    // When the new version fits, it serves.
    std::fs::remove_file(node.yaml.join("other.yaml")).expect("the file");
    web(node, &["10.0.0.2:8080"]);
    tcp_server("10.0.0.2:8080");
    until("the new version serves", || tcp_ask(at(VIP)).is_ok_and(|(server, _)| server == "10.0.0.2:8080"));
}

/// Writes a Service with more frontends than `FRONTENDS` has entries, and returns the number of its frontends.
pub fn write_wide(node: &StoryNode) -> usize {
    let size =
        MapData::from_pin(node.maps().join("FRONTENDS")).and_then(|map| map.info()).expect("the map").max_entries();
    let (addresses, ports) = (300, usize::try_from(size).expect("a size") / 300 + 1);
    let join = |list: Vec<String>| list.join(", ");
    node.write(
        "wide.yaml",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: wide}}\n\
             spec: {{clusterIP: 10.96.0.2, externalIPs: [{}], ports: [{}]}}\n",
            join((0..addresses).map(|n| format!("203.0.{}.{}", n >> 8, n & 255)).collect()),
            join((1..=ports).map(|n| format!("{{name: p{n}, port: {n}}}")).collect()),
        ),
    );
    // Each external address has an entry for all ports too.
    ports * (addresses + 1) + addresses
}

fn growing_maps_fail_no_connect(node: &mut StoryNode) {
    web(node, &["10.0.0.1:8080"]);
    tcp_server("10.0.0.1:8080");
    let mut agent = node.agent(&[]);
    let pin = node.maps().join("FRONTENDS");
    let size = || MapData::from_pin(&pin).and_then(|map| map.info()).expect("the map").max_entries();
    let before = size();
    let load = ConnectionLoad::start();
    load.more(50);
    let frontends = write_wide(node);
    let web_id = agent.dump().names.keys().copied().next();
    // A loaded machine takes its time to write so many entries.
    let limit = Duration::from_secs(90);
    until_within(limit, "larger maps are in service", || size() > before);
    until_within(limit, "every frontend is served", || agent.dump().frontends.len() == 3 + frontends);
    assert_eq!(agent.dump().names.keys().copied().next(), web_id, "the first Service keeps its id");
    load.more(100);
    assert!(!agent.log().contains("ERROR"), "{}", agent.log());
    // The next agent adopts the larger maps.
    agent.kill();
    let agent = node.agent(&[]);
    assert!(agent.log().contains("writes=0"));
    assert!(size() > before);
    load.more(100);
    load.end();
}

fn frontend_bits_follow_frontends(node: &mut StoryNode) {
    const OTHER: &str = "10.96.0.2";
    web(node, &["10.0.0.1:8080"]);
    tcp_server("10.0.0.1:8080");
    node.write("other.yaml", &service("other", &[OTHER], "TCP", 8443, &["10.0.0.1:8080"]));
    let mut agent = node.agent(&[]);
    let bits = TypedMap::<u32, u64>::open(&node.maps(), "FRONTEND_BITS").expect("the map");
    let key = |to: &str| FrontendKey::new(at(to).ip().into(), at(to).port(), Proto::Tcp);
    let is_set = |key: FrontendKey| {
        let (word, bit) = key.bit();
        bits.get(&word).expect("a word").expect("an array has every word") & bit != 0
    };
    let other = key("10.96.0.2:8443");
    let all = [key(VIP), key(VIP).address(), other, other.address()];
    assert_eq!(all.map(is_set), [true; 4]);
    assert_eq!([8080, 8444, 30_080].map(|port| is_set(key(&format!("10.0.0.1:{port}")))), [false; 3]);

    // The bits are cleared when the last frontend that needs them is removed.
    std::fs::remove_file(node.yaml.join("other.yaml")).expect("the file");
    agent.wait_for("one Service", |dump| dump.services.len() == 1);
    until("the bits of the removed frontends are cleared", || all.map(is_set) == [true, true, false, false]);
    assert_served_by("10.0.0.1:8080");

    // Without its bit a frontend does not answer; a restart puts the bit back.
    let (word, bit) = key(VIP).bit();
    let bits_before = bits.get(&word).expect("a word").expect("an array has every word");
    bits.put(&[word], &[bits_before & !bit]).expect("a word");
    assert!(tcp_ask(at(VIP)).is_err(), "no server listens at the VIP itself");
    agent.kill();
    let _agent = node.agent(&[]);
    assert_eq!(all.map(is_set), [true, true, false, false]);
    assert_served_by("10.0.0.1:8080");
}

fn bad_yaml_keeps_the_old_version(node: &mut StoryNode) {
    web(node, &["10.0.0.1:8080"]);
    tcp_server("10.0.0.1:8080");
    let agent = node.agent(&[]);
    node.write("web.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [");
    agent.wait_for_log("web.yaml");
    node.write("other.yaml", &service("other", &["10.96.0.2"], "TCP", 80, &["10.0.0.1:8080"]));
    agent.wait_for("the other file", |dump| dump.services.len() == 2);
    assert_served_by("10.0.0.1:8080");
}

fn changed_cgroup(node: &mut StoryNode) {
    web(node, &["10.0.0.1:8080"]);
    tcp_server("10.0.0.1:8080");
    let child = node.cgroup.join("child");
    std::fs::create_dir(&child).expect("a cgroup");
    let mut agent = node.agent(&["--cgroup", child.to_str().expect("a path")]);
    assert!(tcp_ask(at(VIP)).is_err(), "this process is not in that cgroup");
    agent.kill();
    let mut agent = node.agent(&[]);
    assert_served_by("10.0.0.1:8080");
    agent.kill();
    std::fs::remove_dir(&child).expect("an empty cgroup");
}

fn commands_read_the_pins(node: &mut StoryNode) {
    web(node, &["10.0.0.1:8080", "10.0.0.2:8080"]);
    node.write("empty.yaml", &service("empty", &["10.96.0.2"], "TCP", 80, &[]));
    let mut agent = node.agent(&[]);
    agent.kill();
    let output_of = |arguments: &[&str]| {
        let output = run(node, arguments);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, services) = output_of(&["get", "services"]);
    assert!(code == Some(0) && services.contains("web") && services.contains("10.96.0.1"), "{services}");
    let (code, json) = output_of(&["get", "backends", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((code, json.as_array().map(Vec::len)), (Some(0), Some(2)));
    let (code, trace) = output_of(&["trace", "tcp", VIP]);
    assert!(code == Some(0) && trace.contains("default/web") && trace.contains("10.0.0.2:8080"), "{trace}");
    let (code, trace) = output_of(&["trace", "tcp", "10.96.0.2:80"]);
    assert!(code == Some(1) && trace.contains("ECONNREFUSED"), "{trace}");
    let (code, trace) = output_of(&["trace", "udp", "192.0.2.1:53"]);
    assert!(code == Some(0) && trace.contains("no Service"), "{trace}");
    web(node, &["10.0.0.1:8080"]);
    let (code, plan) = output_of(&["plan", "-f", node.yaml.to_str().expect("a path")]);
    assert!(code == Some(0) && plan.contains("SLOTS"), "{plan}");
    let (code, counters) = output_of(&["get", "counters"]);
    assert!(code == Some(0) && counters.contains("refused_no_endpoints"), "{counters}");
    assert_eq!(output_of(&["get", "services", "-o", "nonsense"]).0, Some(2));
}

fn bpffs_is_mounted(node: &mut StoryNode) {
    web(node, &["10.0.0.1:8080"]);
    tcp_server("10.0.0.1:8080");
    while let Some(bpffs) = lb_dataplane::environment::find_bpffs().expect("/proc") {
        rustix::mount::unmount(&bpffs, rustix::mount::UnmountFlags::DETACH).expect("a mount of this namespace");
    }
    // A command that only reads does not mount a bpffs.
    let output = beeline().args(["get", "services"]).output().expect("the beeline binary");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no bpffs is mounted"), "{output:?}");
    assert_eq!(lb_dataplane::environment::find_bpffs().expect("/proc"), None);

    let run = || {
        let mut agent = beeline();
        agent.args(["run", "--directory"]).arg(&node.yaml).arg("--cgroup").arg(&node.cgroup);
        agent
    };
    let host_mounts_are_visible = std::fs::metadata("/proc/self/ns/pid").is_ok_and(|ns| ns.ino() == 0xefff_fffc);
    if host_mounts_are_visible {
        // The agent's bpffs would belong to this mount namespace alone and end with it, as in a container.
        let output = run().output().expect("the beeline binary");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(1) && error.contains("not the host's") && error.contains("mount -t bpf"),
            "{error}"
        );
        assert!(
            !std::path::Path::new("/sys/fs/bpf/beeline").exists(),
            "the agent pins nothing in a bpffs that is not the host's"
        );
        pose_as_host(&node.directory);
    }
    let mut agent = run().stderr(std::process::Stdio::null()).spawn().expect("the beeline binary");
    let pins = std::path::Path::new("/sys/fs/bpf/beeline").join(format!("v{}", lb_common::LAYOUT_VERSION));
    until("a bpffs is mounted, and the pins are in place", || {
        pins.join("FRONTENDS").exists() && !pins.join("staging").exists()
    });
    tcp_ask(at(VIP)).expect("served");
    agent.kill().expect("a running agent");
    agent.wait().expect("a running agent");
    let output = beeline().args(["get", "services"]).output().expect("the beeline binary");
    assert!(String::from_utf8_lossy(&output.stdout).contains("10.96.0.1:80"), "{output:?}");
}

/// Makes the mounts of this mount namespace look like the host's, within it.
fn pose_as_host(directory: &std::path::Path) {
    let mounts = directory.join("mounts");
    std::fs::copy("/proc/self/mountinfo", &mounts).expect("a copy");
    rustix::mount::mount_bind(&mounts, "/proc/1/mountinfo").expect("a bind mount of this namespace");
}

fn unfit_node_is_refused(node: &mut StoryNode) {
    use std::os::unix::process::CommandExt as _;

    web(node, &["10.0.0.1:8080"]);
    let refused = |what: &str, command: &mut std::process::Command, words: &[&str]| {
        let output = command.output().expect("the beeline binary");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{what}: {error}");
        assert_eq!(output.status.code(), Some(1), "{what}");
        assert!(words.iter().all(|word| error.contains(word)), "{what}: {error}");
    };
    // A copy that an unprivileged user may run.
    let binary = std::path::Path::new("/tmp").join(format!("beeline-story-{}", std::process::id()));
    std::fs::copy(beeline().get_program(), &binary).expect("a copy");
    let mut unprivileged = std::process::Command::new(&binary);
    refused(
        "not root",
        unprivileged.args(["run", "--directory", "/"]).uid(65534).gid(65534),
        &["not root", "run as root"],
    );
    std::fs::remove_file(&binary).expect("the copy");

    let run = || {
        let mut command = beeline();
        command.arg("--pins").arg(&node.pins).arg("run");
        command
    };
    let nowhere = node.directory.join("nowhere");
    refused(
        "no such directory",
        run().arg("--directory").arg(&nowhere).arg("--cgroup").arg(&node.cgroup),
        &["nowhere"],
    );
    let directory = || {
        let mut command = run();
        command.arg("--directory").arg(&node.yaml);
        command
    };
    refused("no such cgroup", directory().args(["--cgroup", "/nowhere"]), &["/nowhere"]);
    refused("no cgroup", directory().args(["--cgroup", "/tmp"]), &["/tmp", "version 2", "--cgroup"]);
    let mut without_bpffs = beeline();
    without_bpffs
        .arg("--pins")
        .arg(&nowhere)
        .args(["run", "--directory"])
        .arg(&node.yaml)
        .arg("--cgroup")
        .arg(&node.cgroup);
    refused("pins on no bpffs", &mut without_bpffs, &["nowhere", "mount -t bpf", "--pins"]);

    // As in a container with its own cgroup namespace: only a part of the hierarchy is mounted.
    let root = lb_dataplane::environment::cgroup2().expect("a cgroup2 hierarchy");
    rustix::mount::mount_bind(&node.cgroup, &root).expect("a bind mount");
    refused("a private cgroup namespace", &mut directory(), &["private cgroup namespace", "--cgroup"]);
}

//! The programs of the packet path at network devices, by TCX or clsact: attached when a device appears, kept across
//! restarts and upgrades, detached when no longer wanted, and without an effect on foreign filters.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TcAttachType};
use lb_common::{Device, DeviceFlags, Hook};
use lb_dataplane::attach::tc;
use lb_kernel::{bpf as sys, bpf::typed::TypedMap};
use lb_lab::{
    LabNamespace,
    network::{Lan, LanOptions},
};
use rustix::process::Signal;

use crate::{
    Story,
    agent::{Agent, beeline, run, until},
    agent_lifecycle::write_wide,
    doctor::returning,
    node::{StoryNode, ip},
    packets,
    sockets::{Client, kernel_is_since, tcp_ask},
};

pub const STORIES: &[Story] = &[
    ("devices_with_addresses_or_routes_get_the_programs", devices_follow_routes),
    ("devices_are_chosen_by_flags", devices_follow_flags),
    ("devices_are_checked_by_doctor", doctor_checks_devices),
    ("devices_keep_their_programs_across_kills_restarts_and_upgrades", programs_are_kept),
    ("devices_get_new_programs_when_maps_grow", larger_maps_get_new_programs),
    ("devices_are_clean_after_cleanup", cleanup_detaches),
    ("devices_are_clean_after_cleanup_from_another_namespace", cleanup_from_another_namespace),
    ("devices_keep_foreign_tc_filters", foreign_filters_are_kept),
    ("devices_run_our_programs_before_filters_of_others", filters_of_others_come_later),
    ("devices_with_a_qdisc_for_ingress_alone_get_both_programs_or_none", qdisc_for_ingress),
    ("devices_get_detached_programs_back", detached_programs_come_back),
    ("devices_added_by_the_hundred_cost_little_cpu_time", hundreds_of_devices_cost_little),
];

/// Adds a veth pair and sets both ends up. False if the kernel has no veth.
fn add_veth(name: &str) -> bool {
    let far = format!("{name}-far");
    let made = Command::new("ip").args(["link", "add", name, "type", "veth", "peer", "name", &far]).status();
    if !made.is_ok_and(|status| status.success()) {
        println!("LACKS veth: no device is attached to");
        return false;
    }
    ip(&["link", "set", name, "up"]);
    ip(&["link", "set", &far, "up"]);
    true
}

/// Adds a device with an address and a route, as an uplink has. False if the kernel has no veth.
pub fn add_uplink(name: &str, number: u8) -> bool {
    if !add_veth(name) {
        return false;
    }
    ip(&["addr", "add", &format!("198.18.{number}.5/24"), "dev", name]);
    ip(&["route", "add", &format!("203.0.{number}.0/24"), "via", &format!("198.18.{number}.1"), "dev", name]);
    true
}

pub fn index(name: &str) -> u32 {
    let path = format!("/sys/class/net/{name}/ifindex");
    // sysfs may be mounted from another network namespace than this thread's; `ip` is not affected.
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or_else(|_| {
        let output = Command::new("ip").args(["-o", "link", "show", "dev", name]).output().expect("the command ip");
        let line = String::from_utf8(output.stdout).expect("text");
        line.split_once(':').and_then(|(index, _)| index.parse().ok()).expect("the link is there")
    })
}

/// Returns the names of the programs that run at a device, by TCX or clsact.
fn programs(device: &str) -> Vec<String> {
    let hooks = [(TcAttachType::Ingress, "ingress"), (TcAttachType::Egress, "egress")];
    hooks.into_iter().flat_map(|(hook, name)| [tcx(device, hook), filters(device, name)].concat()).collect()
}

fn tcx(device: &str, hook: TcAttachType) -> Vec<String> {
    let found = SchedClassifier::query_tcx(device, hook).map(|(_, programs)| programs).unwrap_or_default();
    found.iter().filter_map(|program| program.name_as_str().map(str::to_owned)).collect()
}

/// Returns the names of the filters of a clsact qdisc.
fn filters(device: &str, hook: &str) -> Vec<String> {
    let text = tc_output(&["filter", "show", "dev", device, hook]);
    let names = text.lines().filter(|line| line.contains(" handle 0x")).map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "handle").skip(2);
        words.next().unwrap_or_default().trim_start_matches("beeline:").to_owned()
    });
    names.collect()
}

fn tc_output(arguments: &[&str]) -> String {
    let output = Command::new("tc").args(arguments).output().expect("the command tc");
    String::from_utf8(output.stdout).expect("text")
}

fn tc(arguments: &[&str]) {
    let output = Command::new("tc").args(arguments).output().expect("the command tc");
    assert!(output.status.success(), "tc {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

const BOTH: [&str; 2] = ["tc_ingress", "tc_egress"];

fn is_attached(device: &str) -> bool {
    programs(device) == BOTH
}

pub fn wait_until_attached(device: &str) {
    until(&format!("{device} has the programs"), || is_attached(device));
}

fn wait_until_free(device: &str) {
    until(&format!("{device} has no programs"), || programs(device).is_empty());
}

/// Returns the entries of `DEVICES`.
fn devices(node: &StoryNode) -> BTreeMap<u32, Device> {
    let map = TypedMap::<u32, Device>::open(&node.maps(), "DEVICES").expect("the pinned map");
    map.read().expect("its entries").into_iter().collect()
}

fn pins(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("the pins").flatten().map(|entry| entry.path());
    entries.filter(|path| path.to_string_lossy().contains("link_tc_")).collect()
}

/// True if the agent attached with TCX links.
fn has_tcx(node: &StoryNode) -> bool {
    !pins(&node.maps()).is_empty()
}

fn devices_follow_routes(node: &mut StoryNode) {
    let agent = node.agent(&[]);
    if !add_veth("up0") {
        return;
    }
    let up0 = index("up0");
    // Neighbours on a directly connected network are clients too.
    let start = Instant::now();
    ip(&["addr", "add", "198.18.0.5/24", "dev", "up0"]);
    wait_until_attached("up0");
    println!("attached {:?} after the address", start.elapsed());
    let device = devices(node).get(&up0).copied().expect("an entry");
    assert_eq!((device.snat_v4.to_string(), device.flags, device.mtu), ("198.18.0.5".to_owned(), 0, 1500));
    // The node's IPv6 addresses are the fd00:: addresses of lo.
    assert!(device.snat_v6.to_string().starts_with("fd00::"), "{device:?}");
    ip(&["link", "set", "up0", "mtu", "1400"]);
    until("the entry follows", || devices(node).get(&up0).is_some_and(|device| device.mtu == 1400));
    ip(&["addr", "del", "198.18.0.5/24", "dev", "up0"]);
    wait_until_free("up0");
    ip(&["route", "add", "203.0.0.0/24", "dev", "up0"]);
    wait_until_attached("up0");
    // The programs stay while the device is down, although its routes are gone.
    ip(&["link", "set", "up0", "down"]);
    ip(&["link", "set", "up0", "mtu", "1300"]);
    until("the agent has read the devices again", || devices(node).get(&up0).is_some_and(|device| device.mtu == 1300));
    assert!(is_attached("up0"));
    ip(&["link", "set", "up0", "up"]);
    wait_until_free("up0");
    ip(&["addr", "add", "198.18.0.5/24", "dev", "up0"]);
    wait_until_attached("up0");
    // Add a second device and remove the first.
    assert!(add_uplink("up1", 1));
    wait_until_attached("up1");
    ip(&["link", "del", "up0"]);
    until("no entry and no link of the device is left", || {
        !devices(node).contains_key(&up0)
            && !tc::attached(&node.maps(), &node.pins).expect("the pins").contains_key(&up0)
    });
    assert!(pins(&node.maps()).iter().all(|pin| !pin.to_string_lossy().ends_with(&format!("_{up0}"))));
    ip(&["addr", "del", "198.18.1.5/24", "dev", "up1"]);
    wait_until_free("up1");
    assert!(!agent.log().contains("WARN"), "{}", agent.log());
}

fn devices_follow_flags(node: &mut StoryNode) {
    if !add_uplink("up0", 0) || !add_veth("wg0") || !add_veth("lxc0") || !add_veth("lxc1") {
        return;
    }
    let mut agent = node.agent(&["--devices", "wg*", "--pod-devices", "lxc0,xyz"]);
    wait_until_attached("wg0");
    wait_until_attached("lxc0");
    assert!(programs("up0").is_empty() && programs("lxc1").is_empty() && programs("wg0-far") == BOTH);
    let flags = |name| devices(node).get(&index(name)).map(|device| device.flags);
    assert_eq!(flags("lxc0"), Some(DeviceFlags::POD));
    assert_eq!((flags("wg0"), flags("up0"), flags("lxc1")), (Some(0), Some(DeviceFlags::NO_PROGRAMS), None));
    let shown = run(node, &["get", "devices"]);
    let shown = String::from_utf8(shown.stdout).expect("text");
    let mechanism = if has_tcx(node) { "tcx" } else { "clsact" };
    let row = |name: &str| -> Vec<&str> {
        let row = shown.lines().find(|line| line.split_whitespace().next() == Some(name));
        row.map(|row| row.split_whitespace().skip(2).take(3).collect()).unwrap_or_default()
    };
    assert_eq!(row("wg0").get(..2), Some([mechanism, "uplink"].as_slice()));
    assert_eq!(row("lxc0").get(..2), Some([mechanism, "pod"].as_slice()));
    assert_eq!(row("up0"), ["-", "-", "198.18.0.5"]);
    // An agent with other flags attaches to other devices.
    agent.kill();
    let mut agent = node.agent(&["--devices", "up0"]);
    wait_until_attached("up0");
    wait_until_free("wg0");
    wait_until_free("lxc0");
    assert_eq!(flags("lxc0"), None);
    agent.kill();
    assert!(is_attached("up0"));
    let _off = node.agent(&["--devices", "none"]);
    wait_until_free("up0");
    until("no entry is left", || devices(node).is_empty());
}

/// Returns the findings of the check `devices`, as `severity: text`.
fn findings_about_devices(node: &StoryNode) -> Vec<String> {
    let report: serde_json::Value = serde_json::from_slice(&run(node, &["doctor", "-o", "json"]).stdout).expect("JSON");
    let findings = report["findings"].as_array().expect("a list").iter();
    let of_devices = findings.filter(|finding| finding["check"] == "devices");
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    of_devices.map(|finding| text(&finding["severity"]) + ": " + &text(&finding["what"])).collect()
}

fn doctor_checks_devices(node: &mut StoryNode) {
    if !add_uplink("up0", 0) {
        return;
    }
    let mut agent = node.agent(&[]);
    wait_until_attached("up0");
    let mechanism = if has_tcx(node) { "tcx" } else { "clsact" };
    assert_eq!(findings_about_devices(node), [format!("ok: both programs are at up0 ({mechanism})")]);
    agent.kill();
    let pins = pins(&node.maps());
    if pins.is_empty() {
        return;
    }
    // A foreign program is attached before ours, and one of our links is detached while no agent runs.
    const TC_ACT_UNSPEC: i32 = -1;
    let theirs = sys::load_classifier(c"theirs", &returning(TC_ACT_UNSPEC)).expect("a program");
    let _link = sys::attach_tcx(&theirs, index("up0"), Hook::Ingress).expect("TCX");
    let egress = pins.iter().find(|pin| pin.to_string_lossy().contains("egress")).expect("a link");
    sys::open_pin(egress).and_then(sys::detach_link).expect("a link");
    let findings = findings_about_devices(node);
    let [lacks, before] = findings.as_slice() else { panic!("{findings:?}") };
    assert!(lacks.starts_with("error: up0 lacks tc_egress"), "{lacks}");
    assert!(before.starts_with("warning: theirs (id ") && before.contains("runs at up0 before tc_ingress"));
    assert!(before.contains(&format!("pid {})", std::process::id())), "{before}");
}

/// Returns what attaches the programs to up0: the ids of links, or the handles of filters.
fn attachments(node: &StoryNode) -> Vec<String> {
    let mut attachments = Vec::new();
    for pin in pins(&node.maps()) {
        let link = sys::open_pin(&pin).expect("a link");
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd())).expect("its info");
        let id = info.lines().find(|line| line.starts_with("link_id:")).expect("an id").to_owned();
        attachments.push(format!("{} {id}", pin.file_name().expect("a name").to_string_lossy()));
    }
    for hook in ["ingress", "egress"] {
        let text = tc_output(&["filter", "show", "dev", "up0", hook]);
        let handle =
            |line: &str| line.split_whitespace().skip_while(|word| *word != "handle").nth(1).map(str::to_owned);
        attachments.extend(text.lines().filter_map(handle));
    }
    attachments.sort();
    attachments
}

/// A thread that polls the programs at a device, and counts the polls and the polls with a missing program.
struct AttachmentPoller {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<(u32, u32)>,
}

impl AttachmentPoller {
    fn start(node: &StoryNode, device: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (is_stopped, device, root) = (Arc::clone(&stop), index(device), node.pins.clone());
        let thread = thread::spawn(move || {
            let (mut looks, mut missing) = (0, 0);
            while !is_stopped.load(Ordering::Relaxed) {
                // Ids only: a program that was replaced a moment ago has no name any more.
                let of = |hook| sys::programs_at_device(device, hook).map_or(0, |programs| programs.len());
                let mut found = of(Hook::Ingress) + of(Hook::Egress);
                if found == 0 {
                    let clsact = lb_dataplane::attach::clsact::Clsact::open(&root);
                    let attached = clsact.and_then(|mut clsact| clsact.attached()).expect("the filters");
                    found = attached.values().flatten().flatten().count();
                }
                looks += 1;
                missing += u32::from(found < 2);
                thread::sleep(Duration::from_micros(200));
            }
            (looks, missing)
        });
        Self { stop, thread }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (looks, missing) = self.thread.join().expect("no panic");
        println!("{looks} polls, {missing} of them with a missing program");
        assert!(missing == 0 && looks > 50);
    }
}

fn ids(node: &StoryNode) -> Vec<Option<u32>> {
    tc::attached(&node.maps(), &node.pins).expect("the pins").into_values().flat_map(|own| own.programs).collect()
}

fn programs_are_kept(node: &mut StoryNode) {
    if !add_uplink("up0", 0) {
        return;
    }
    let mut agent = node.agent(&[]);
    wait_until_attached("up0");
    let (attached, first) = (attachments(node), ids(node));
    assert_eq!(attached.len(), 2, "{attached:?}");
    let poller = AttachmentPoller::start(node, "up0");
    agent.kill();
    assert!(is_attached("up0") && ids(node) == first, "the kill changes nothing");
    let mut agent = node.agent(&[]);
    let second = ids(node);
    assert_ne!(second, first, "the new agent attaches its own programs");
    assert_eq!(attachments(node), attached, "the links or filters are the same");
    assert_eq!(agent.terminate().code(), Some(0));
    assert!(is_attached("up0") && ids(node) == second);
    // Renamed, as if a version with another map layout had made the directory.
    std::fs::rename(node.maps(), node.pins.join("v1")).expect("bpffs renames directories");
    let mut agent = node.agent(&["--map-size", "slots=16"]);
    agent.wait_for_log("another version's programs and maps are out of service");
    assert_eq!(attachments(node), attached);
    assert_ne!(ids(node), second);
    // Kill agents during their start.
    for fuse in 0..6 {
        agent.kill();
        agent = Agent::start(node, &[]);
        thread::sleep(Duration::from_millis(fuse * 30));
    }
    agent.wait_until_in_service();
    assert_eq!(attachments(node), attached);
    poller.end();
}

fn larger_maps_get_new_programs(node: &mut StoryNode) {
    if !add_uplink("up0", 0) {
        return;
    }
    let agent = node.agent(&[]);
    wait_until_attached("up0");
    let (attached, before) = (attachments(node), ids(node));
    let poller = AttachmentPoller::start(node, "up0");
    write_wide(node);
    agent.wait_for_log("a larger one takes its place");
    until("programs that use the larger maps run", || ids(node).iter().zip(&before).all(|(now, then)| now != then));
    assert_eq!(attachments(node), attached);
    // A device that appears later gets the same programs.
    assert!(add_uplink("up1", 1));
    wait_until_attached("up1");
    let all = ids(node);
    assert_eq!(all.get(..2), all.get(2..), "{all:?}");
    poller.end();
}

fn has_clsact(device: &str) -> bool {
    tc_output(&["qdisc", "show", "dev", device]).contains("clsact")
}

fn cleanup_detaches(node: &mut StoryNode) {
    if !add_uplink("up0", 0) || !add_uplink("up1", 1) {
        return;
    }
    let mut agent = node.agent(&[]);
    wait_until_attached("up0");
    wait_until_attached("up1");
    agent.kill();
    assert!(run(node, &["cleanup"]).status.success());
    assert!(programs("up0").is_empty() && programs("up1").is_empty() && !node.pins.exists());
    assert!(!has_clsact("up0"), "the agent had added the qdisc");
    let mut agent = node.agent(&["--cleanup-on-exit"]);
    wait_until_attached("up1");
    assert_eq!(agent.terminate().code(), Some(0));
    assert!(programs("up0").is_empty() && programs("up1").is_empty() && !node.pins.exists());
    assert!(!has_clsact("up1"));
}

fn cleanup_from_another_namespace(node: &mut StoryNode) {
    if !add_uplink("up0", 0) {
        return;
    }
    let mut agent = node.agent(&[]);
    wait_until_attached("up0");
    agent.kill();
    let cleanup = || beeline().arg("--pins").arg(&node.pins).arg("cleanup").output();
    let output = LabNamespace::new().enter(cleanup).expect("the beeline binary");
    assert!(output.status.success(), "{output:?}");
    assert!(programs("up0").is_empty() && !has_clsact("up0") && !node.pins.exists());
}

/// Adds a foreign filter that accepts every packet.
fn add_foreign_filter(device: &str) {
    tc(&[
        "filter",
        "add",
        "dev",
        device,
        "ingress",
        "prio",
        "7",
        "protocol",
        "all",
        "handle",
        "1",
        "bpf",
        "direct-action",
        "bytecode",
        "1,6 0 0 4294967295",
    ]);
}

fn foreign_filters_are_kept(node: &mut StoryNode) {
    if !add_uplink("up0", 0) || !add_uplink("up1", 1) || !add_uplink("up2", 2) {
        return;
    }
    // up0 has a foreign filter before the agent starts, up1 gets one later, up2 has none.
    tc(&["qdisc", "add", "dev", "up0", "clsact"]);
    add_foreign_filter("up0");
    let foreign = |device: &str| tc_output(&["filter", "show", "dev", device, "ingress"]).contains("bytecode");
    let mut agent = node.agent(&[]);
    let has_both = |device: &str| BOTH.iter().all(|name| programs(device).contains(&(*name).to_owned()));
    for device in ["up0", "up1", "up2"] {
        until(&format!("{device} has the programs"), || has_both(device));
    }
    if has_tcx(node) {
        tc(&["qdisc", "add", "dev", "up1", "clsact"]);
    }
    add_foreign_filter("up1");
    agent.kill();
    let mut agent = node.agent(&[]);
    assert!(foreign("up0") && foreign("up1"), "a restart keeps foreign filters");
    agent.kill();
    let mut agent = node.agent(&["--devices", "none"]);
    until("our programs are detached", || !["up0", "up1", "up2"].iter().any(|device| has_both(device)));
    assert!(foreign("up0") && foreign("up1"));
    assert!(has_clsact("up0") && has_clsact("up1") && !has_clsact("up2"));
    agent.kill();
    assert!(run(node, &["cleanup"]).status.success());
    assert!(foreign("up0") && foreign("up1"));
}

/// Filters that let all packets pass, and let no filter behind them see one (TC_ACT_OK).
fn filters_of_others_come_later(node: &mut StoryNode) {
    let lan = Lan::make(LanOptions::default());
    let pod = packets::pod(&lan.node1);
    packets::serve(pod);
    let add = |hook: &str, priority: &str| {
        let filter = ["tc", "filter", "add", "dev", "eth0", hook, "prio", priority, "protocol", "all"];
        let matches_all = ["bpf", "bytecode", "1,6 0 0 4294967295,", "classid", "1:1"];
        lan.node1.host.net.run(&[&filter[..], &matches_all].concat());
    };
    lan.node1.host.net.run(&["tc", "qdisc", "add", "dev", "eth0", "clsact"]);
    // The last one is where ours goes.
    for priority in ["3", "1"] {
        ["ingress", "egress"].into_iter().for_each(|hook| add(hook, priority));
    }
    node.write("web.yaml", &packets::service("Cluster", &packets::addresses(pod).map(|ip| (ip, "here"))));
    let mut agent = packets::agent(node, &lan, &[]);
    agent.wait_for("the backends are there", |dump| dump.backends.len() == 4);
    let is_served = || {
        for own in packets::addresses(&lan.node1.host) {
            let to = SocketAddr::from((own, packets::NODE_PORT));
            lan.client.net.enter(|| tcp_ask(to)).expect("an answer");
            lan.client.net.enter(|| Client::udp(to).ask(to));
        }
    };
    is_served();
    let findings = || lan.node1.host.net.enter(|| findings_about_devices(node)).join(", ");
    assert!(!findings().contains("before tc_"), "{}", findings());
    agent.kill();
    let mut agent = packets::agent(node, &lan, &[]);
    is_served();
    if !has_tcx(node) {
        // The newest filter of a priority comes first.
        add("ingress", "1");
        let first = "warning: filter without a name (bpf, priority 1) runs at eth0 before tc_ingress";
        assert!(findings().contains(first), "{}", findings());
    }
    agent.terminate();
}

fn detached_programs_come_back(node: &mut StoryNode) {
    if !add_uplink("up0", 0) {
        return;
    }
    let _agent = node.agent(&[]);
    wait_until_attached("up0");
    if has_tcx(node) {
        for pin in pins(&node.maps()) {
            sys::detach_link(sys::open_pin(&pin).expect("a link").as_fd()).expect("detached");
        }
    } else {
        tc(&["qdisc", "del", "dev", "up0", "clsact"]);
    }
    // The agent checks at every netlink event and every half minute; make an event, in case it has not noticed yet.
    ip(&["addr", "add", "10.0.0.77/32", "dev", "lo"]);
    wait_until_attached("up0");
}

/// Returns the CPU time that the agent has used.
fn cpu(agent: &Agent) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid())).expect("a running agent");
    let words = text.rsplit_once(')').map_or("", |(_, words)| words).split_whitespace();
    let ticks: u64 = words.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10)
}

fn hundreds_of_devices_cost_little(node: &mut StoryNode) {
    const COUNT: usize = 500;
    if !add_uplink("up0", 0) {
        return;
    }
    let agent = node.agent(&[]);
    wait_until_attached("up0");
    let batch = node.directory.join("batch");
    let lines = |line: fn(usize) -> String| (0..COUNT).map(line).collect::<String>();
    let change = |text: String| {
        std::fs::write(&batch, text).expect("a file");
        ip(&["-batch", batch.to_str().expect("a UTF-8 path")]);
    };
    let (start, before) = (Instant::now(), cpu(&agent));
    change(lines(|n| format!("link add p{n} type veth peer name q{n}\nlink set p{n} up\n")));
    // Wait until the agent has handled the last device.
    let last = format!("p{}", COUNT - 1);
    ip(&["addr", "add", "198.18.9.5/24", "dev", &last]);
    ip(&["link", "set", &format!("q{}", COUNT - 1), "up"]);
    ip(&["route", "add", "203.0.9.0/24", "via", "198.18.9.1", "dev", &last]);
    wait_until_attached(&last);
    let (took, used) = (start.elapsed(), cpu(&agent) - before);
    println!("{COUNT} pairs of links in {took:?}, for which the agent used {used:?} of CPU time");
    assert!(used < took / 2 + Duration::from_millis(300), "{used:?} of {took:?}");
    // More netlink events than the socket buffer holds while the agent is stopped.
    agent.signal(Signal::STOP);
    change(lines(|n| format!("link del p{n}\n")));
    agent.signal(Signal::CONT);
    until("no entry and no program of the removed devices is left", || {
        devices(node).len() == 1 && ids(node).len() == 2
    });
    assert!(is_attached("up0"));
}

/// Before Linux 6.6 the qdisc `ingress` of another tool leaves no room for the program at egress. That at ingress
/// alone would break what another proxy serves.
fn qdisc_for_ingress(node: &mut StoryNode) {
    if !add_uplink("up0", 0) {
        return;
    }
    tc(&["qdisc", "add", "dev", "up0", "ingress"]);
    let mut agent = node.agent(&[]);
    if kernel_is_since(6, 6) {
        return until("both programs are there", || is_attached("up0"));
    }
    agent.wait_for_log("another tool has the qdisc `ingress` there");
    assert_eq!(programs("up0"), Vec::<String>::new());
    let findings = findings_about_devices(node).join(", ");
    assert!(findings.contains("up0") && findings.contains("has no program"), "{findings}");
    tc(&["qdisc", "del", "dev", "up0", "ingress"]);
    until("the cure brings both programs", || is_attached("up0"));
    agent.terminate();
}

//! Damage by another program: pins, links, programs, the pin directory and the bpffs are taken away from a running
//! agent, one after the other, and come back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use aya_obj::generated::bpf_attach_type;
use lb_common::Hook;
use lb_dataplane::{
    attach::cgroup::HOOKS,
    bpffs::{BpffsOwner, owner},
    pins::link_name,
};
use lb_kernel::bpf as sys;
use lb_lab::rng::Rng;
use rustix::{
    fs::{FlockOperation, flock},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use crate::{
    Story,
    agent::{Agent, until},
    agent_lifecycle::ConnectionLoad,
    devices::{add_uplink, index, wait_until_attached},
    doctor::returning,
    health_and_metrics::{METRICS, ON_LOOPBACK, codes, get},
    node::{StoryNode, service},
    sockets::{Client, at, tcp_ask, tcp_server, udp_server},
};

pub const STORIES: &[Story] = &[
    ("integrity_every_pin_that_is_removed_comes_back_and_no_connect_fails", pins_come_back),
    ("integrity_every_detached_link_is_attached_again", links_come_back),
    ("integrity_a_program_in_the_place_of_ours_is_replaced", programs_come_back),
    ("integrity_an_unmounted_bpffs_is_mounted_again_and_no_connect_fails", bpffs_comes_back),
    ("integrity_an_agent_that_cannot_mend_is_unwell_until_it_can", unwell_meanwhile),
    ("integrity_of_devices_is_kept", devices_come_back),
    ("integrity_comes_back_after_damage_of_all_kinds_in_any_order", any_order),
    ("integrity_a_start_makes_the_pins_anew_that_were_removed_without_an_agent", pins_removed_without_an_agent),
    ("integrity_checks_cost_next_to_nothing", checks_are_cheap),
];

const TCP: &str = "10.96.0.1:80";
const UDP: &str = "10.96.0.2:53";

fn start(node: &StoryNode, arguments: &[&str]) -> Agent {
    tcp_server("10.0.0.1:8080");
    udp_server("10.0.0.1:5353");
    node.write("tcp.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080"]));
    node.write("udp.yaml", &service("dns", &["10.96.0.2"], "UDP", 53, &["10.0.0.1:5353"]));
    let agent = node.agent(&[&ON_LOOPBACK[..], arguments].concat());
    until("the agent is well", || codes() == [Some(200), Some(200)]);
    agent
}

fn assert_served() {
    assert_eq!(tcp_ask(at(TCP)).map(|(server, _)| server), Ok("10.0.0.1:8080".to_owned()));
    let client = Client::udp(at(UDP));
    assert_eq!(client.ask(at(UDP)), ("10.0.0.1:5353".to_owned(), Some(at(UDP))));
}

/// Lists the files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    // A directory that has gone meanwhile has none.
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let all = entries.map(|entry| entry.path());
    all.flat_map(|path| if path.is_dir() { [files(&path), vec![path]].concat() } else { vec![path] }).collect()
}

/// Counts the lines of the log about damage.
fn lines(agent: &Agent) -> usize {
    agent.log().lines().filter(|line| line.contains("damaged the datapath")).count()
}

/// Half of the maps lose their pins while no agent runs, each time another half.
fn pins_removed_without_an_agent(node: &mut StoryNode) {
    let mut agent = start(node, &[]);
    let is_map =
        |path: &PathBuf| path.is_file() && path.file_name().is_some_and(|name| name.to_ascii_uppercase() == name);
    let mut maps: Vec<PathBuf> = files(&node.maps()).into_iter().filter(is_map).collect();
    maps.sort_unstable();
    assert!(maps.len() > 40, "{maps:?}");
    for (bit, removed) in (0..3).flat_map(|bit| [(bit, 0), (bit, 1)]) {
        agent.kill();
        let half = maps.iter().enumerate().filter(|(number, _)| number >> bit & 1 == removed);
        half.for_each(|(_, path)| fs::remove_file(path).expect("a pin"));
        agent = node.agent(&ON_LOOPBACK[..]);
        assert!(maps.iter().all(|path| path.exists()));
        assert_served();
    }
}

fn pins_come_back(node: &mut StoryNode) {
    let agent = start(node, &[]);
    let load = ConnectionLoad::start_at(at(TCP));
    let all = files(&node.pins);
    assert!(all.len() > 40, "{all:?}");
    for path in &all {
        if path.is_dir() {
            let _with_its_files = fs::remove_dir(path).is_err() && fs::remove_dir_all(path).is_err();
        } else {
            fs::remove_file(path).expect("a pin");
        }
        until(&format!("{} is back", path.display()), || all.iter().all(|path| path.exists()));
    }
    // Another object in the place of ours.
    let services = node.maps().join("SERVICES");
    let backends = sys::open_pin(&node.maps().join("BACKENDS")).expect("a map");
    fs::remove_file(&services).expect("a pin");
    sys::pin(backends, &services).expect("another map");
    let before = lines(&agent);
    until("the log says so", || lines(&agent) > before);
    // All at once.
    let before = lines(&agent);
    fs::remove_dir_all(&node.pins).expect("the pins");
    until("all is back", || all.iter().all(|path| path.exists()));
    load.more(100);
    load.end();
    assert_served();
    until("the log says so", || lines(&agent) > before);
    assert_eq!(lines(&agent), before + 1, "one line");
    assert!(agent.dump().services.len() == 2, "the maps are those in service");
    // The lock is held again.
    let directory = File::open(&node.pins).expect("the pins");
    assert!(flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err());
}

fn link(node: &StoryNode, hook: &str) -> PathBuf {
    node.maps().join(link_name(hook))
}

/// Returns the program of a hook's pinned link; none while there is no attached one.
fn program(node: &StoryNode, hook: &str) -> Option<u32> {
    let link = sys::open_pin(&link(node, hook)).and_then(sys::cgroup_link).ok()?;
    (link.cgroup != 0).then_some(link.program)
}

fn links_come_back(node: &mut StoryNode) {
    let agent = start(node, &[]);
    let programs: BTreeMap<&str, Option<u32>> = HOOKS.into_iter().map(|hook| (hook, program(node, hook))).collect();
    for hook in HOOKS {
        sys::open_pin(&link(node, hook)).and_then(sys::detach_link).expect("detached");
        until(&format!("{hook} is back"), || program(node, hook) == programs[hook]);
        assert_served();
        agent.wait_for_log(&format!("detached from the cgroup: {hook}"));
    }
    // With its pin, too.
    for hook in HOOKS {
        sys::open_pin(&link(node, hook)).and_then(sys::detach_link).expect("detached");
        fs::remove_file(link(node, hook)).expect("a pin");
    }
    until("all are back", || HOOKS.into_iter().all(|hook| program(node, hook) == programs[hook]));
    assert_served();
    assert_eq!(codes(), [Some(200), Some(200)]);
    let (_, metrics) = get(METRICS, "/metrics").expect("an answer");
    let repairs = metrics.lines().find_map(|line| line.strip_prefix("beeline_datapath_repairs_total "));
    assert!(repairs.is_some_and(|count| count.parse::<u32>().expect("a number") >= 22), "{repairs:?}");
}

fn programs_come_back(node: &mut StoryNode) {
    let agent = start(node, &[]);
    let own = program(node, "connect4");
    let foreign = sys::load_connect4(c"foreign", &returning(1)).expect("a program");
    let pin = sys::open_pin(&link(node, "connect4")).expect("a link");
    sys::update_link(&pin, &foreign).expect("another program");
    until("our program is back", || program(node, "connect4") == own);
    assert_served();
    agent.wait_for_log("took the place of connect4");
}

fn bpffs_comes_back(node: &mut StoryNode) {
    let mut agent = start(node, &[]);
    let load = ConnectionLoad::start_at(at(TCP));
    let bpffs = node.pins.parent().expect("a bpffs").to_owned();
    let before = files(&node.pins).len();
    for _ in 0..2 {
        unmount(&bpffs, UnmountFlags::DETACH).expect("unmounted");
        assert!(!node.pins.exists());
        until("the pins are back", || node.pins.exists() && files(&node.pins).len() == before);
    }
    load.more(100);
    load.end();
    agent.wait_for_log(&format!("the bpffs at {} was unmounted", bpffs.display()));
    assert!(!agent.log().contains("ERROR"));
    // The new pins are as good as the first ones: they outlive the agent, and the next one adopts them.
    agent.kill();
    assert_served();
    let agent = node.agent(&[]);
    assert!(agent.log().contains("writes=0"), "{}", agent.log());
    assert_served();
}

/// Attaches programs of another owner to `connect4` until the kernel has room for no more.
fn fill(cgroup: &File, program: &OwnedFd) -> Vec<OwnedFd> {
    let attach = || sys::attach_cgroup(program, cgroup, bpf_attach_type::BPF_CGROUP_INET4_CONNECT).ok();
    std::iter::from_fn(attach).collect()
}

fn unwell_meanwhile(node: &mut StoryNode) {
    let agent = start(node, &[]);
    let cgroup = File::open(&node.cgroup).expect("a cgroup");
    let foreign = sys::load_connect4(c"foreign", &returning(1)).expect("a program");
    let own = program(node, "connect4");
    let mut others = fill(&cgroup, &foreign);
    until("the agent is unwell", || {
        let _detached = sys::open_pin(&link(node, "connect4")).and_then(sys::detach_link);
        others.extend(fill(&cgroup, &foreign));
        codes() == [Some(503), Some(503)]
    });
    agent.wait_for_log("detached from the cgroup: connect4: ");
    thread::sleep(Duration::from_secs(3));
    assert_eq!(agent.log().matches("the datapath is damaged").count(), 1, "said once");
    drop(others);
    until("our program is back", || program(node, "connect4") == own && codes() == [Some(200), Some(200)]);
    agent.wait_for_log("the datapath is whole again");
    assert_served();
    // Pins that belong to another agent are left alone, and Services are served meanwhile.
    let other = node.directory.join("bpffs/other");
    fs::create_dir(&other).expect("a directory");
    let lock = File::open(&other).expect("a directory");
    flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("a lock");
    let aside = node.directory.join("bpffs/aside");
    fs::rename(&node.pins, &aside).expect("a rename");
    fs::rename(&other, &node.pins).expect("a rename");
    until("the agent is unwell and live", || codes() == [Some(503), Some(200)]);
    agent.wait_for_log("another agent");
    assert!(files(&node.pins).iter().all(|path| path.is_dir()), "the agent pins nothing there");
    assert_served();
    drop(lock);
    until("the agent is well", || codes() == [Some(200), Some(200)]);
    assert_eq!(program(node, "connect4"), own);
}

fn devices_come_back(node: &mut StoryNode) {
    if !add_uplink("up0", 0) {
        return;
    }
    let agent = start(node, &[]);
    wait_until_attached("up0");
    let programs = |hook| sys::programs_at_device(index("up0"), hook).unwrap_or_default();
    let both = || [Hook::Ingress, Hook::Egress].map(programs);
    let own = both();
    let links = || {
        let links = files(&node.maps()).into_iter().filter(|path| path.to_string_lossy().contains("link_tc_"));
        links.collect::<BTreeSet<_>>()
    };
    let pins = links();
    for pin in &pins {
        let open = || sys::open_pin(pin).expect("a link");
        let foreign = sys::load_classifier(c"foreign", &returning(-1)).expect("a program");
        sys::update_link(open(), &foreign).expect("another program");
        until("our program is back", || both() == own);
        sys::detach_link(open()).expect("detached");
        until("our program is attached again", || both() == own && links() == pins);
        fs::remove_file(pin).expect("a pin");
        assert_eq!(both(), own, "a removed pin detaches nothing");
        until("the pin is back", || links() == pins);
        assert_eq!(both(), own, "and nothing runs twice");
    }
    if pins.is_empty() {
        // clsact
        let tc = |words: &[&str]| std::process::Command::new("tc").args(words).status().expect("the command tc");
        assert!(tc(&["filter", "del", "dev", "up0", "ingress"]).success());
        wait_until_attached("up0");
    }
    agent.wait_for_log("another program detached or replaced programs at devices devices=\"up0\"");
    until("the agent is well", || codes() == [Some(200), Some(200)]);
    // A deleted device is no damage.
    let before = agent.log().matches("damage").count();
    crate::node::ip(&["link", "del", "up0"]);
    until("the pins are gone", || links().is_empty());
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(agent.log().matches("damage").count(), before);
    assert_eq!(codes(), [Some(200), Some(200)]);
}

/// Kinds of damage.
#[derive(Clone, Copy, Debug)]
enum Damage {
    RemovePin,
    RemoveDirectory,
    RemoveAll,
    Detach,
    Replace,
    Unmount,
    DetachFromDevice,
    ReplaceAtDevice,
    Kill,
}

const DAMAGES: [Damage; 9] = [
    Damage::RemovePin,
    Damage::RemoveDirectory,
    Damage::RemoveAll,
    Damage::Detach,
    Damage::Replace,
    Damage::Unmount,
    Damage::DetachFromDevice,
    Damage::ReplaceAtDevice,
    Damage::Kill,
];

/// Does damage, unless what it needs is damaged already.
fn damage(node: &StoryNode, agent: &mut Agent, rng: &mut Rng, what: Damage) -> io::Result<()> {
    let mut any = |is: &dyn Fn(&Path) -> bool| -> io::Result<PathBuf> {
        let paths: Vec<_> = files(&node.pins).into_iter().filter(|path| is(path)).collect();
        if paths.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(rng.pick(&paths)) }
    };
    let is_at_device = |path: &Path| path.to_string_lossy().contains("link_tc_");
    match what {
        Damage::RemovePin => fs::remove_file(any(&|path| !path.is_dir())?),
        Damage::RemoveDirectory => fs::remove_dir_all(any(&Path::is_dir)?),
        Damage::RemoveAll => fs::remove_dir_all(&node.pins),
        Damage::Unmount => Ok(unmount(node.pins.parent().expect("a bpffs"), UnmountFlags::DETACH)?),
        Damage::Detach => sys::detach_link(sys::open_pin(&link(node, rng.pick(&HOOKS)))?),
        Damage::DetachFromDevice => sys::detach_link(sys::open_pin(&any(&is_at_device)?)?),
        Damage::Replace => {
            let foreign = sys::load_connect4(c"foreign", &returning(1))?;
            sys::update_link(sys::open_pin(&link(node, "connect4"))?, foreign)
        }
        Damage::ReplaceAtDevice => {
            let foreign = sys::load_classifier(c"foreign", &returning(-1))?;
            sys::update_link(sys::open_pin(&any(&is_at_device)?)?, foreign)
        }
        Damage::Kill => {
            agent.kill();
            // An agent that starts mounts none but that at /sys/fs/bpf.
            let bpffs = node.pins.parent().expect("a bpffs");
            if matches!(owner(bpffs), BpffsOwner::NoBpffs) {
                mount("bpf", bpffs, "bpf", MountFlags::empty(), None)?;
            }
            *agent = node.agent(&ON_LOOPBACK);
            Ok(())
        }
    }
}

fn any_order(node: &mut StoryNode) {
    let seed = std::env::var("BEELINE_DAMAGE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("BEELINE_DAMAGE_SEED={seed}");
    let rng = &mut Rng::new(seed);
    let has_device = add_uplink("up0", 0);
    let mut agent = start(node, &[]);
    let programs = || {
        let at_device = |hook| sys::programs_at_device(index("up0"), hook).unwrap_or_default().len();
        let at_cgroup = HOOKS.into_iter().filter(|hook| program(node, hook).is_some()).count();
        (at_cgroup, if has_device { [Hook::Ingress, Hook::Egress].map(at_device) } else { [1, 1] })
    };
    let all = |node: &StoryNode| files(&node.pins).into_iter().collect::<BTreeSet<_>>();
    until("the programs are attached", || programs() == (HOOKS.len(), [1, 1]));
    let whole = all(node);
    for round in 0..if crate::node::is_slow() { 3 } else { 15 } {
        println!("round {round}");
        for _ in 0..=rng.below(4) {
            let what = rng.pick(&DAMAGES);
            println!("{what:?}: {:?}", damage(node, &mut agent, rng, what));
            thread::sleep(Duration::from_millis(rng.pick(&[0, 0, 50, 700, 1500])));
        }
        until("pins and programs are back", || all(node) == whole && programs() == (HOOKS.len(), [1, 1]));
        until("the Services are served", || {
            tcp_ask(at(TCP)).is_ok_and(|(server, _)| server == "10.0.0.1:8080") && codes() == [Some(200), Some(200)]
        });
        assert_served();
    }
}

/// Returns the CPU time that the agent has used, to the nanosecond.
fn cpu(agent: &Agent) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("a running agent").flatten();
    let used = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(used.sum())
}

fn checks_are_cheap(node: &mut StoryNode) {
    const SECONDS: u32 = 10;
    let agent = start(node, &[]);
    let before = cpu(&agent);
    thread::sleep(Duration::from_secs(SECONDS.into()));
    let used = (cpu(&agent) - before) / SECONDS;
    println!("idle, with a check each second: {used:?} of CPU time a second");
    assert!(used < Duration::from_millis(5), "{used:?}");
}

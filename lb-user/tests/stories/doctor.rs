//! `doctor` beside a real agent: no problem on a good node, and a finding with its cure for each thing broken on
//! purpose.

use std::{
    fs::{self, File},
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    process::{Command, Stdio},
};

use aya_obj::generated::bpf_insn;
use lb_common::{Frontend, FrontendKey, LAYOUT_VERSION};
use lb_kernel::{bpf as sys, bpf::typed::TypedMap};
use rustix::process::Signal;

use crate::{
    Story,
    agent::beeline,
    node::{StoryNode, ip, service},
};

pub const STORIES: &[Story] = &[
    ("doctor_reports_no_problem_on_a_good_node", good_node),
    ("doctor_finds_wrong_map_entries_and_missing_links_and_pins", wrong_entries_and_missing_pins),
    ("doctor_finds_programs_at_the_wrong_cgroup", wrong_cgroup),
    ("doctor_finds_foreign_programs", foreign_programs),
    ("doctor_finds_leftovers_of_kube_proxy", leftovers_of_kube_proxy),
    ("doctor_needs_no_agent_and_no_pins", no_agent),
];

/// The exit code and the findings of a run.
pub struct DoctorRun {
    code: Option<i32>,
    findings: Vec<serde_json::Value>,
}

impl DoctorRun {
    pub fn new(node: &StoryNode, arguments: &[&str]) -> Self {
        let output = crate::agent::run(node, &[&["doctor", "-o", "json"], arguments].concat());
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        Self { code: output.status.code(), findings: report["findings"].as_array().expect("a list").clone() }
    }

    /// Returns severity and cure of the finding of a check whose text contains `words`.
    pub fn find(&self, check: &str, words: &str) -> Option<(&str, &str)> {
        let matches = |finding: &&serde_json::Value| {
            finding["check"] == check && finding["what"].as_str().is_some_and(|what| what.contains(words))
        };
        let finding = self.findings.iter().find(matches)?;
        Some((finding["severity"].as_str()?, finding["cure"].as_str().unwrap_or_default()))
    }

    /// Asserts that a check has a finding with this severity and these words, and that its cure contains `cure`.
    pub fn assert_finding(&self, severity: &str, check: &str, words: &str, cure: &str) {
        let found = self.find(check, words);
        let (actual, full_cure) = found.unwrap_or_else(|| panic!("{check} has no finding with {words:?}"));
        assert!(actual == severity && full_cure.contains(cure), "{check}: {actual}, cure: {full_cure}");
    }

    /// Returns the checks with warnings or errors.
    fn problems(&self) -> Vec<&str> {
        let is_problem =
            |finding: &&serde_json::Value| finding["severity"] == "warning" || finding["severity"] == "error";
        self.findings.iter().filter(is_problem).filter_map(|finding| finding["check"].as_str()).collect()
    }
}

/// Checks that warn in every story: the bpffs of the pins is not mounted on the host.
const ALWAYS: [&str; 1] = ["pins"];

fn objects(node: &StoryNode) {
    node.write("dns.yaml", &service("dns", &["10.96.0.53"], "UDP", 53, &["10.0.0.2:53"]));
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080", "10.0.0.2:8080"]));
}

fn good_node(node: &mut StoryNode) {
    objects(node);
    let mut agent = node.agent(&[]);
    let run = DoctorRun::new(node, &[]);
    assert_eq!((run.code, run.problems()), (Some(1), ALWAYS.to_vec()));
    run.assert_finding("warning", "pins", "not mounted on the host", "mount -t bpf");
    run.assert_finding("note", "cgroup", "only processes in", "--cgroup");
    run.assert_finding("ok", "foreign", "no program of others", "");
    run.assert_finding("ok", "probe", "a UDP socket connected to 10.96.0.53:53 has the backend 10.0.0.2:53", "");
    run.assert_finding("ok", "source", "has no errors", "");
    run.assert_finding("ok", "maps", "agree with the objects of 2 Services", "");
    run.assert_finding("ok", "room", "every map has room", "");
    run.assert_finding("ok", "kube-proxy", "nothing", "");
    // The probe uses TCP where there is no UDP Service.
    fs::remove_file(node.yaml.join("dns.yaml")).expect("the file");
    agent.wait_for("one Service", |dump| dump.services.len() == 1);
    let run = DoctorRun::new(node, &[]);
    assert_eq!(run.problems(), ALWAYS);
    run.assert_finding("ok", "probe", "a TCP socket connected to 10.96.0.1:80 has the backend 10.0.0.", "");
    // The probe uses IPv6 where there is no IPv4 frontend.
    node.write("web.yaml", &service("six", &["fd96::1"], "UDP", 53, &["[fd00::1]:53"]));
    agent.wait_for("another Service", |dump| dump.frontends.keys().any(|key| !key.addr.is_v4()));
    let run = DoctorRun::new(node, &[]);
    run.assert_finding("ok", "probe", "connected to [fd96::1]:53 has the backend [fd00::1]:53", "");
    // Without a Service the probe has nothing to dial.
    fs::remove_file(node.yaml.join("web.yaml")).expect("the file");
    agent.wait_for("no Service", |dump| dump.frontends.is_empty());
    DoctorRun::new(node, &[]).assert_finding("note", "probe", "no socket was tried", "");
    agent.kill();

    // In another pid namespace doctor cannot see the host's mounts, accepts the bpffs, and exits as on a good node.
    objects(node);
    let script = r#"mount -t proc proc /proc || exit 99
        "$BEELINE" --pins "$PINS" run --node-name here --directory "$YAML" --cgroup "$CGROUP" >/dev/null 2>&1 &
        for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
            "$BEELINE" --pins "$PINS" doctor; code=$?
            test $code = 0 && break
            sleep 0.5
        done
        exit $code"#;
    let mut unshare = Command::new("unshare");
    unshare.args(["-p", "-m", "-f", "sh", "-c", script]).stdin(Stdio::null());
    unshare.env("BEELINE", beeline().get_program()).env("PINS", &node.pins).env("YAML", &node.yaml);
    let output = unshare.env("CGROUP", &node.cgroup).output().expect("the command unshare");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    let last = text.lines().last().unwrap_or_default();
    assert!(output.status.code() == Some(0) && last.starts_with("0 errors, 0 warnings, "), "{last}");
    assert!(
        text.contains("cannot be seen from this pid namespace")
            && text.contains("agree with the objects of 2 Services")
    );
}

fn wrong_entries_and_missing_pins(node: &mut StoryNode) {
    objects(node);
    let mut agent = node.agent(&[]);
    // A map entry is missing.
    let frontends = TypedMap::<FrontendKey, Frontend>::open(&node.maps(), "FRONTENDS").expect("the map");
    let all = frontends.read().expect("its entries");
    let (key, frontend) = all.into_iter().find(|(key, _)| key.port == 80).expect("the frontend of web");
    frontends.delete(&[key]).expect("the entry is deleted");
    let run = DoctorRun::new(node, &[]);
    run.assert_finding("error", "maps", "default/web differs from its objects by 1 write", "started again");
    assert_eq!((run.code, run.problems()), (Some(2), [ALWAYS[0], "maps"].to_vec()));
    frontends.put(&[key], &[frontend]).expect("the entry is put back");
    assert_eq!(DoctorRun::new(node, &[]).problems(), ALWAYS);

    // The directory has a bad file; the agent keeps the last good version.
    node.write("bad.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [");
    DoctorRun::new(node, &[]).assert_finding("warning", "source", "bad.yaml", "correct the file");
    fs::remove_file(node.yaml.join("bad.yaml")).expect("the file");

    // A link is detached, then its pin is removed, while no agent mends them.
    agent.signal(Signal::STOP);
    let pin = node.maps().join("link_connect4");
    sys::detach_link(sys::open_pin(&pin).expect("the link")).expect("the link is detached");
    let run = DoctorRun::new(node, &[]);
    run.assert_finding("error", "cgroup", "several cgroups", "start the agent again");
    run.assert_finding("error", "probe", "has no backend", "start the agent again");
    fs::remove_file(&pin).expect("the pin");
    let run = DoctorRun::new(node, &[]);
    run.assert_finding("error", "cgroup", "no program at connect4", "start the agent again");
    assert_eq!(run.code, Some(2));
    agent.kill();
    let mut agent = node.agent(&[]);
    assert_eq!(DoctorRun::new(node, &[]).problems(), ALWAYS, "a restart is the cure");

    // Pins of another version, a missing map, a wrong map, and a map that the programs do not read.
    let other = node.pins.join(format!("v{}", LAYOUT_VERSION + 1));
    fs::create_dir(&other).expect("a directory");
    DoctorRun::new(node, &[]).assert_finding("warning", "pins", "another version of the maps", "start the agent");
    fs::remove_dir(&other).expect("the directory");
    let (slots, backends) = (node.maps().join("SLOTS"), node.maps().join("BACKENDS"));
    agent.signal(Signal::STOP);
    fs::rename(&slots, node.pins.join("aside")).expect("a rename");
    let run = DoctorRun::new(node, &[]);
    run.assert_finding("error", "pins", "maps are not pinned", "start the agent again");
    run.assert_finding("error", "maps", "SLOTS", "");
    agent.kill();
    fs::rename(&backends, node.pins.join("aside2")).expect("a rename");
    fs::rename(node.pins.join("aside2"), &slots).expect("a rename");
    DoctorRun::new(node, &[]).assert_finding("error", "pins", "SLOTS is not a map of this Beeline", "beeline cleanup");
    fs::rename(&slots, &backends).expect("a rename");
    fs::rename(node.pins.join("aside"), &slots).expect("a rename");
    let fresh = node.directory.join("bpffs/fresh");
    let mut other_agent = beeline();
    other_agent.arg("--pins").arg(&fresh).args(["run", "--node-name", "here", "--directory"]).arg(&node.yaml);
    other_agent.args(["--healthz-bind-address", "", "--metrics-bind-address", "", "--cgroup"]);
    let child = node.cgroup.join("child");
    fs::create_dir(&child).expect("a cgroup");
    let mut other_agent = other_agent.arg(&child).stderr(Stdio::null()).spawn().expect("the beeline binary");
    let theirs = fresh.join(format!("v{LAYOUT_VERSION}/SLOTS"));
    crate::agent::until("the other Beeline has maps", || theirs.exists());
    fs::remove_file(&slots).expect("the pin");
    fs::rename(&theirs, &slots).expect("a rename");
    other_agent.kill().expect("a running agent");
    other_agent.wait().expect("a running agent");
    DoctorRun::new(node, &[]).assert_finding(
        "error",
        "cgroup",
        "reads another map SLOTS than the pinned one",
        "start the agent again",
    );
}

fn wrong_cgroup(node: &mut StoryNode) {
    objects(node);
    let child = node.cgroup.join("child");
    fs::create_dir(&child).expect("a cgroup");
    let mut agent = node.agent(&["--cgroup", child.to_str().expect("a path")]);
    let run = DoctorRun::new(node, &[]);
    run.assert_finding("note", "cgroup", "only processes in", "without --cgroup");
    run.assert_finding("note", "probe", "this process is in", "in a process of that cgroup");
    agent.kill();
    // Without a running agent no flag explains the cgroup, so the note becomes an error.
    let run = DoctorRun::new(node, &["-f", node.yaml.to_str().expect("a path"), "--node-name", "here"]);
    let words = format!("Beeline's programs are at {}, which is not the root", child.display());
    run.assert_finding("error", "cgroup", &words, "--cgroupns=host");
    run.assert_finding("warning", "pins", "no agent runs", "beeline run");
    run.assert_finding("ok", "maps", "agree with the objects of 2 Services", "");
    assert_eq!(run.code, Some(2));
}

/// Returns the instructions of a program that only returns `value`.
pub fn returning(value: i32) -> [bpf_insn; 2] {
    // r0 = value; exit
    [(0xb7, value), (0x95, 0)].map(|(code, imm)| {
        let registers = bpf_insn::new_bitfield_1(0, 0);
        bpf_insn { code, _bitfield_align_1: [], _bitfield_1: registers, off: 0, imm }
    })
}

/// Attaches a program to `connect4` exclusively: none may run below (`BPF_PROG_ATTACH` without flags).
fn attach_exclusively(cgroup: &Path, program: &OwnedFd) {
    const PROG_ATTACH: libc::c_long = 8;
    const CONNECT4: u32 = 10;
    let directory = File::open(cgroup).expect("a cgroup");
    let number = |fd: i32| u32::try_from(fd).expect("a descriptor");
    let attr = [number(directory.as_raw_fd()), number(program.as_raw_fd()), CONNECT4, 0];
    #[expect(unsafe_code, reason = "aya does not use this older way to attach on a newer kernel")]
    // SAFETY: the kernel reads the four numbers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, attr.as_ptr(), std::mem::size_of_val(&attr)) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn foreign_programs(node: &mut StoryNode) {
    objects(node);
    let _agent = node.agent(&[]);
    let pod = node.cgroup.join("pods/pod");
    fs::create_dir_all(&pod).expect("cgroups");
    let program = sys::load_connect4(c"rewriter", &returning(1)).expect("a program");
    attach_exclusively(&pod, &program);
    let run = DoctorRun::new(node, &[]);
    let holder = format!("pid {}) runs at connect4 of {}", std::process::id(), pod.display());
    run.assert_finding("warning", "foreign", &holder, "bpftool cgroup detach");
    run.assert_finding("warning", "foreign", "rewriter (id ", "socketLB");
    // Programs at a child cgroup do not keep ours from running.
    assert_eq!(run.find("foreign", "Beeline's program does not run"), None);
    assert_eq!((run.code, run.problems()), (Some(1), [ALWAYS[0], "foreign"].to_vec()));
}

fn leftovers_of_kube_proxy(node: &mut StoryNode) {
    objects(node);
    let _agent = node.agent(&[]);
    ip(&["link", "add", "kube-ipvs0", "type", "veth", "peer", "name", "other"]);
    DoctorRun::new(node, &[]).assert_finding("warning", "kube-proxy", "left kube-ipvs0", "ip link delete kube-ipvs0");
    ip(&["link", "delete", "kube-ipvs0"]);
    fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").expect("a setting of this namespace");
    DoctorRun::new(node, &[]).assert_finding("warning", "sysctls", "CVE-2020-8558", "route_localnet=0");
    fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "0").expect("a setting of this namespace");
    assert_eq!(DoctorRun::new(node, &[]).problems(), ALWAYS);

    // doctor reads the tables of iptables-legacy if there are any; the kernel makes one when a process first asks for
    // it.
    let tables = ["ip", "ip6"].map(|family| Path::new("/proc/self/net").join(format!("{family}_tables_names")));
    if make_legacy_table() {
        let names = tables.map(|file| fs::read_to_string(file).unwrap_or_default());
        assert!(names.iter().any(|names| names.contains("filter")), "{names:?}");
        DoctorRun::new(node, &[]).assert_finding("ok", "kube-proxy", "nothing of kube-proxy", "");
    } else {
        println!("this kernel has no iptables-legacy");
    }

    let (v4, v6, inet) = (2, 10, 1);
    let mut rules = vec![(v4, "kube-proxy", Some("services")), (v6, "kube-proxy", None), (inet, "kube-proxy", None)];
    rules.extend(["KUBE-SERVICES", "KUBE-SVC-A", "KUBE-KUBELET-CANARY"].map(|chain| (v4, "nat", Some(chain))));
    rules.extend(["KUBE-FIREWALL", "FORWARD"].map(|chain| (v4, "filter", Some(chain))));
    if let Err(error) = make_rules(&rules) {
        // The kernels of `xtask kernels` come without the module.
        println!("no rules, because the kernel has no nf_tables: {error}");
        return;
    }
    let run = DoctorRun::new(node, &[]);
    run.assert_finding("warning", "kube-proxy", "the table ip kube-proxy in nf_tables", "`beeline handover`");
    run.assert_finding("warning", "kube-proxy", "the table ip6 kube-proxy in nf_tables", "`beeline handover`");
    let words = "left 2 chains: KUBE-SERVICES, KUBE-SVC-A in the table ip nat (iptables-nft)";
    run.assert_finding("warning", "kube-proxy", words, "`beeline handover`");
    // No finding about kubelet's chains, nor about a table of another family.
    assert_eq!(run.problems(), [ALWAYS[0], "kube-proxy", "kube-proxy", "kube-proxy"]);
}

/// Makes the kernel create the table `filter` of iptables-legacy in this network namespace. False if it cannot.
fn make_legacy_table() -> bool {
    const GET_INFO: libc::c_int = 64;
    let mut info = [0_u8; 84];
    info[..6].copy_from_slice(b"filter");
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::RAW,
        rustix::net::SocketFlags::CLOEXEC,
        Some(rustix::net::ipproto::RAW),
    );
    let socket = socket.expect("a raw socket");
    let mut length = libc::socklen_t::try_from(info.len()).expect("small");
    #[expect(unsafe_code, reason = "a socket option of netfilter")]
    // SAFETY: the kernel reads and writes at most `length` octets of `info`.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, GET_INFO, info.as_mut_ptr().cast(), &raw mut length)
    };
    result == 0
}

/// Makes tables of nf_tables and their chains, given as family, table and chain, in one batch as the kernel demands
/// (include/uapi/linux/netfilter/nfnetlink.h).
fn make_rules(rules: &[(u8, &str, Option<&str>)]) -> rustix::io::Result<()> {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

    const BATCH_BEGIN: u16 = 16;
    const BATCH_END: u16 = 17;
    const NEW_TABLE: u16 = 10 << 8;
    const NEW_CHAIN: u16 = (10 << 8) + 3;
    const REQUEST: i32 = libc::NLM_F_REQUEST;
    let message = |kind: u16, flags: i32, family: u8, resource: u8, attributes: &[(u16, &str)]| {
        let mut body = vec![family, 0, 0, resource];
        for (kind, name) in attributes {
            let length = u16::try_from(4 + name.len() + 1).expect("a short name");
            body.extend([length.to_ne_bytes(), kind.to_ne_bytes()].concat());
            body.extend(name.bytes());
            // The terminating zero, and padding to four octets.
            body.resize((body.len() + 1).next_multiple_of(4), 0);
        }
        let length = u32::try_from(16 + body.len()).expect("short");
        let flags = u16::try_from(flags).expect("flags have 16 bits");
        let head = [kind.to_ne_bytes(), flags.to_ne_bytes()].concat();
        [length.to_ne_bytes().to_vec(), head, vec![0; 8], body].concat()
    };
    let mut batch = message(BATCH_BEGIN, REQUEST, 0, 10, &[]);
    for (family, table, chain) in rules {
        let flags = REQUEST | libc::NLM_F_CREATE;
        batch.extend(message(NEW_TABLE, flags, *family, 0, &[(1, table)]));
        batch.extend(
            chain.map(|chain| message(NEW_CHAIN, flags, *family, 0, &[(1, table), (3, chain)])).unwrap_or_default(),
        );
    }
    batch.extend(message(NEW_TABLE, REQUEST | libc::NLM_F_CREATE | libc::NLM_F_ACK, 2, 0, &[(1, "last")]));
    batch.extend(message(BATCH_END, REQUEST, 0, 10, &[]));
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
    send(&socket, &batch, SendFlags::empty())?;
    let mut answer = [0_u8; 4096];
    recv(&socket, &mut answer[..], RecvFlags::empty())?;
    // The first answer is an error, or code 0 for the whole batch.
    let code = answer.get(16..).and_then(<[u8]>::first_chunk).map_or(0, |code| i32::from_ne_bytes(*code));
    if code == 0 { Ok(()) } else { Err(rustix::io::Errno::from_raw_os_error(-code)) }
}

fn no_agent(node: &mut StoryNode) {
    objects(node);
    let run = DoctorRun::new(node, &[]);
    run.assert_finding("note", "pins", "nothing is pinned", "beeline run");
    run.assert_finding("note", "source", "no agent runs", "-f");
    assert_eq!((run.code, run.problems()), (Some(0), Vec::new()));
    let mut agent = node.agent(&[]);
    agent.kill();
    let run = DoctorRun::new(node, &[]);
    run.assert_finding("warning", "pins", "no agent runs", "beeline run");
    run.assert_finding("note", "source", "no agent runs", "-f");
    // An API server that does not answer.
    let run = DoctorRun::new(node, &["--api-server", "https://127.0.0.1:1"]);
    let severity = run.find("source", "").map(|(severity, _)| severity.to_owned());
    assert_eq!((run.code, severity.as_deref()), (Some(2), Some("error")));
}

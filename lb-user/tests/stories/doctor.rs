//! `doctor` beside a real agent: nothing on a good node, and each thing that is broken on purpose, with its cure.

use std::{
    fs::{self, File},
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    process::{Command, Stdio},
};

use aya_obj::generated::bpf_insn;
use lb_common::{Frontend, FrontendKey, LAYOUT_VERSION};
use lb_kernel::{bpf as sys, bpf::typed::TypedMap};

use crate::{
    Story,
    agent::{beeline, run},
    node::{Node, ip, service},
};

pub const STORIES: &[Story] = &[
    ("doctor_has_no_word_of_warning_on_a_good_node", good_node),
    ("doctor_finds_what_differs_and_what_is_missing", what_differs),
    ("doctor_finds_programs_at_the_wrong_cgroup", wrong_cgroup),
    ("doctor_finds_programs_of_others", programs_of_others),
    ("doctor_finds_what_kube_proxy_left", what_kube_proxy_left),
    ("doctor_needs_no_agent_and_no_pins", no_agent),
];

/// What it said.
struct Said {
    code: Option<i32>,
    findings: Vec<serde_json::Value>,
}

impl Said {
    fn by(node: &Node, arguments: &[&str]) -> Self {
        let output = run(node, &[&["doctor", "-o", "json"], arguments].concat());
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        Self { code: output.status.code(), findings: told["findings"].as_array().expect("a list").clone() }
    }

    /// The finding of a check with these words, as severity and cure.
    fn find(&self, check: &str, words: &str) -> Option<(&str, &str)> {
        let is_it = |finding: &&serde_json::Value| {
            finding["check"] == check && finding["what"].as_str().is_some_and(|what| what.contains(words))
        };
        let finding = self.findings.iter().find(is_it)?;
        Some((finding["severity"].as_str()?, finding["cure"].as_str().unwrap_or_default()))
    }

    /// It found this, and its cure has these words.
    fn finds(&self, severity: &str, check: &str, words: &str, cure: &str) {
        let found = self.find(check, words);
        let (its, told) = found.unwrap_or_else(|| panic!("{check} does not say {words:?}"));
        assert!(its == severity && told.contains(cure), "{check}: {its}, cure: {told}");
    }

    /// The checks with warnings and errors.
    fn troubled(&self) -> Vec<&str> {
        let is_trouble =
            |finding: &&serde_json::Value| finding["severity"] == "warning" || finding["severity"] == "error";
        self.findings.iter().filter(is_trouble).filter_map(|finding| finding["check"].as_str()).collect()
    }
}

/// In every story the pins are on a bpffs that the host does not have mounted, which is worth a warning.
const ALWAYS: [&str; 1] = ["pins"];

fn objects(node: &Node) {
    node.write("dns.yaml", &service("dns", &["10.96.0.53"], "UDP", 53, &["10.0.0.2:53"]));
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080", "10.0.0.2:8080"]));
}

fn good_node(node: &mut Node) {
    objects(node);
    let mut agent = node.agent(&[]);
    let said = Said::by(node, &[]);
    assert_eq!((said.code, said.troubled()), (Some(1), ALWAYS.to_vec()));
    said.finds("warning", "pins", "not mounted on the host", "mount -t bpf");
    said.finds("note", "cgroup", "only processes in", "--cgroup");
    said.finds("ok", "foreign", "no program of others", "");
    said.finds("ok", "probe", "a UDP socket connected to 10.96.0.53:53 has the backend 10.0.0.2:53", "");
    said.finds("ok", "source", "has no errors", "");
    said.finds("ok", "maps", "agree with the objects of 2 Services", "");
    said.finds("ok", "room", "every map has room", "");
    said.finds("ok", "kube-proxy", "nothing", "");
    // With TCP alone.
    fs::remove_file(node.yaml.join("dns.yaml")).expect("the file");
    agent.wait_for("one Service", |dump| dump.services.len() == 1);
    let said = Said::by(node, &[]);
    assert_eq!(said.troubled(), ALWAYS);
    said.finds("ok", "probe", "a TCP socket connected to 10.96.0.1:80 has the backend 10.0.0.", "");
    // Only over IPv6.
    node.write("web.yaml", &service("six", &["fd96::1"], "UDP", 53, &["[fd00::1]:53"]));
    agent.wait_for("another Service", |dump| dump.frontends.keys().any(|key| !key.addr.is_v4()));
    let said = Said::by(node, &[]);
    said.finds("ok", "probe", "connected to [fd96::1]:53 has the backend [fd00::1]:53", "");
    // Without any, nothing can be tried.
    fs::remove_file(node.yaml.join("web.yaml")).expect("the file");
    agent.wait_for("no Service", |dump| dump.frontends.is_empty());
    Said::by(node, &[]).finds("note", "probe", "no socket was tried", "");
    agent.kill();

    // Where the host's mounts cannot be seen the bpffs is taken as it is, and the exit code is that of a good node.
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
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    let last = said.lines().last().unwrap_or_default();
    assert!(output.status.code() == Some(0) && last.starts_with("0 errors, 0 warnings, "), "{last}");
    assert!(
        said.contains("cannot be seen from this pid namespace")
            && said.contains("agree with the objects of 2 Services")
    );
}

fn what_differs(node: &mut Node) {
    objects(node);
    let mut agent = node.agent(&[]);
    // An entry of a map.
    let frontends = TypedMap::<FrontendKey, Frontend>::open(&node.maps(), "FRONTENDS").expect("the map");
    let all = frontends.read().expect("its entries");
    let (key, frontend) = all.into_iter().find(|(key, _)| key.port == 80).expect("the frontend of web");
    frontends.delete(&[key]).expect("it goes");
    let said = Said::by(node, &[]);
    said.finds("error", "maps", "default/web differs from its objects by 1 write", "started again");
    assert_eq!((said.code, said.troubled()), (Some(2), [ALWAYS[0], "maps"].to_vec()));
    frontends.put(&[key], &[frontend]).expect("it comes back");
    assert_eq!(Said::by(node, &[]).troubled(), ALWAYS);

    // The directory, of which the last good version counts for the agent.
    node.write("bad.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [");
    Said::by(node, &[]).finds("warning", "source", "bad.yaml", "correct it");
    fs::remove_file(node.yaml.join("bad.yaml")).expect("the file");

    // A hook.
    let pin = node.maps().join("link_connect4");
    sys::detach_link(sys::open_pin(&pin).expect("the link")).expect("it is detached");
    let said = Said::by(node, &[]);
    said.finds("error", "cgroup", "several cgroups", "start the agent again");
    said.finds("error", "probe", "has no backend", "start the agent again");
    fs::remove_file(&pin).expect("the pin");
    let said = Said::by(node, &[]);
    said.finds("error", "cgroup", "no program at connect4", "start the agent again");
    assert_eq!(said.code, Some(2));
    agent.kill();
    let mut agent = node.agent(&[]);
    assert_eq!(Said::by(node, &[]).troubled(), ALWAYS, "the cure is one");

    // Another version's pins, a map that is missing, and one that programs do not read.
    let other = node.pins.join(format!("v{}", LAYOUT_VERSION + 1));
    fs::create_dir(&other).expect("a directory");
    Said::by(node, &[]).finds("warning", "pins", "another version of the maps", "start the agent");
    fs::remove_dir(&other).expect("the directory");
    let (slots, backends) = (node.maps().join("SLOTS"), node.maps().join("BACKENDS"));
    fs::rename(&slots, node.pins.join("aside")).expect("a rename");
    let said = Said::by(node, &[]);
    said.finds("error", "pins", "maps are not pinned", "start the agent again");
    said.finds("error", "maps", "SLOTS", "");
    agent.kill();
    fs::rename(&backends, node.pins.join("aside2")).expect("a rename");
    fs::rename(node.pins.join("aside2"), &slots).expect("a rename");
    Said::by(node, &[]).finds("error", "pins", "SLOTS is not a map of this Beeline", "beeline cleanup");
    fs::rename(&slots, &backends).expect("a rename");
    fs::rename(node.pins.join("aside"), &slots).expect("a rename");
    let fresh = node.directory.join("bpffs/fresh");
    let mut elsewhere = beeline();
    elsewhere.arg("--pins").arg(&fresh).args(["run", "--node-name", "here", "--directory"]).arg(&node.yaml);
    elsewhere.args(["--healthz-bind-address", "", "--metrics-bind-address", "", "--cgroup"]);
    let child = node.cgroup.join("child");
    fs::create_dir(&child).expect("a cgroup");
    let mut elsewhere = elsewhere.arg(&child).stderr(Stdio::null()).spawn().expect("the beeline binary");
    let theirs = fresh.join(format!("v{LAYOUT_VERSION}/SLOTS"));
    crate::agent::until("another Beeline has maps", || theirs.exists());
    fs::remove_file(&slots).expect("the pin");
    fs::rename(&theirs, &slots).expect("a rename");
    elsewhere.kill().expect("a running agent");
    elsewhere.wait().expect("a running agent");
    Said::by(node, &[]).finds(
        "error",
        "cgroup",
        "reads another map SLOTS than the pinned one",
        "start the agent again",
    );
}

fn wrong_cgroup(node: &mut Node) {
    objects(node);
    let child = node.cgroup.join("child");
    fs::create_dir(&child).expect("a cgroup");
    let mut agent = node.agent(&["--cgroup", child.to_str().expect("a path")]);
    let said = Said::by(node, &[]);
    said.finds("note", "cgroup", "only processes in", "without --cgroup");
    said.finds("note", "probe", "this process is in", "in a process of that cgroup");
    agent.kill();
    // Nobody says any more that this is meant.
    let said = Said::by(node, &["-f", node.yaml.to_str().expect("a path"), "--node-name", "here"]);
    let words = format!("Beeline's programs are at {}, which is not the root", child.display());
    said.finds("error", "cgroup", &words, "--cgroupns=host");
    said.finds("warning", "pins", "no agent runs", "beeline run");
    said.finds("ok", "maps", "agree with the objects of 2 Services", "");
    assert_eq!(said.code, Some(2));
}

/// A program that does nothing but return this.
pub fn returning(value: i32) -> [bpf_insn; 2] {
    // r0 = value; exit
    [(0xb7, value), (0x95, 0)].map(|(code, imm)| {
        let registers = bpf_insn::new_bitfield_1(0, 0);
        bpf_insn { code, _bitfield_align_1: [], _bitfield_1: registers, off: 0, imm }
    })
}

/// Attaches a program to `connect4` as one that lets no other run below (`BPF_PROG_ATTACH` without flags).
fn attach(cgroup: &Path, program: &OwnedFd) {
    const PROG_ATTACH: libc::c_long = 8;
    const CONNECT4: u32 = 10;
    let directory = File::open(cgroup).expect("a cgroup");
    let number = |fd: i32| u32::try_from(fd).expect("a descriptor");
    let attr = [number(directory.as_raw_fd()), number(program.as_raw_fd()), CONNECT4, 0];
    #[expect(unsafe_code, reason = "the older way to attach, which aya does not take on a newer kernel")]
    // SAFETY: the kernel reads the four numbers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, attr.as_ptr(), std::mem::size_of_val(&attr)) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn programs_of_others(node: &mut Node) {
    objects(node);
    let _agent = node.agent(&[]);
    let pod = node.cgroup.join("pods/pod");
    fs::create_dir_all(&pod).expect("cgroups");
    let program = sys::load_connect4(c"rewriter", &returning(1)).expect("a program");
    attach(&pod, &program);
    let said = Said::by(node, &[]);
    let holder = format!("pid {}) runs at connect4 of {}", std::process::id(), pod.display());
    said.finds("warning", "foreign", &holder, "bpftool cgroup detach");
    said.finds("warning", "foreign", "rewriter (id ", "socketLB");
    // It does not keep ours from running, however it is attached.
    assert_eq!(said.find("foreign", "Beeline's program does not run"), None);
    assert_eq!((said.code, said.troubled()), (Some(1), [ALWAYS[0], "foreign"].to_vec()));
}

fn what_kube_proxy_left(node: &mut Node) {
    objects(node);
    let _agent = node.agent(&[]);
    ip(&["link", "add", "kube-ipvs0", "type", "veth", "peer", "name", "other"]);
    Said::by(node, &[]).finds("warning", "kube-proxy", "left kube-ipvs0", "ip link delete kube-ipvs0");
    ip(&["link", "delete", "kube-ipvs0"]);
    fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").expect("a setting of this namespace");
    Said::by(node, &[]).finds("warning", "sysctls", "CVE-2020-8558", "route_localnet=0");
    fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "0").expect("a setting of this namespace");
    assert_eq!(Said::by(node, &[]).troubled(), ALWAYS);

    // Tables of the older iptables are read where there are such; the kernel makes one when it is asked for.
    let tables = ["ip", "ip6"].map(|family| Path::new("/proc/self/net").join(format!("{family}_tables_names")));
    if make_older_table() {
        let names = tables.map(|file| fs::read_to_string(file).unwrap_or_default());
        assert!(names.iter().any(|names| names.contains("filter")), "{names:?}");
        Said::by(node, &[]).finds("ok", "kube-proxy", "nothing of kube-proxy", "");
    } else {
        println!("this kernel has no older iptables");
    }

    let (v4, v6, inet) = (2, 10, 1);
    let mut rules = vec![(v4, "kube-proxy", Some("services")), (v6, "kube-proxy", None), (inet, "kube-proxy", None)];
    rules.extend(["KUBE-SERVICES", "KUBE-SVC-A", "KUBE-KUBELET-CANARY"].map(|chain| (v4, "nat", Some(chain))));
    rules.extend(["KUBE-FIREWALL", "FORWARD"].map(|chain| (v4, "filter", Some(chain))));
    if let Err(error) = make_rules(&rules) {
        // The kernels of `xtask kernels` come without the module.
        println!("no rules, since the kernel has no nf_tables: {error}");
        return;
    }
    let said = Said::by(node, &[]);
    said.finds("warning", "kube-proxy", "the table ip kube-proxy in nf_tables", "`beeline handover`");
    said.finds("warning", "kube-proxy", "the table ip6 kube-proxy in nf_tables", "`beeline handover`");
    let words = "left 2 chains: KUBE-SERVICES, KUBE-SVC-A in the table ip nat (iptables-nft)";
    said.finds("warning", "kube-proxy", words, "`beeline handover`");
    // Nothing of kubelet's, and no table of another family.
    assert_eq!(said.troubled(), [ALWAYS[0], "kube-proxy", "kube-proxy", "kube-proxy"]);
}

/// Lets the kernel make the table `filter` of the older iptables in this network namespace, if it can.
fn make_older_table() -> bool {
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

/// Makes tables of nf_tables, and a chain in each that has one: family, table, chain. In one batch, as the kernel demands
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
            // The zero that ends it, and what fills up four.
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
    // The first answer is an error, or says that all of it is done.
    let code = answer.get(16..).and_then(<[u8]>::first_chunk).map_or(0, |code| i32::from_ne_bytes(*code));
    if code == 0 { Ok(()) } else { Err(rustix::io::Errno::from_raw_os_error(-code)) }
}

fn no_agent(node: &mut Node) {
    objects(node);
    let said = Said::by(node, &[]);
    said.finds("note", "pins", "nothing is pinned", "beeline run");
    said.finds("note", "source", "no agent runs", "-f");
    assert_eq!((said.code, said.troubled()), (Some(0), Vec::new()));
    let mut agent = node.agent(&[]);
    agent.kill();
    let said = Said::by(node, &[]);
    said.finds("warning", "pins", "no agent runs", "beeline run");
    said.finds("note", "source", "no agent runs", "-f");
    // A server that nobody is at.
    let said = Said::by(node, &["--api-server", "https://127.0.0.1:1"]);
    let text = said.find("source", "").map(|(severity, _)| severity.to_owned());
    assert_eq!((said.code, text.as_deref()), (Some(2), Some("error")));
}

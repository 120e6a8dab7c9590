//! What the kernel lacks, and what that costs. Features are tried, not concluded from the version: distributions carry them
//! back.

use std::{fs, io};

use aya_obj::generated::bpf_insn;
use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use super::Finding;
use lb_dataplane::environment::{KERNEL_FLOOR, parse_release};
use lb_kernel::{bpf, netns, sock_diag::can_destroy};

const CHECK: &str = "kernel";

/// File systems whose clients are in the kernel, and which may dial a Service.
const CLIENTS: [&str; 6] = ["nfs", "nfs4", "cifs", "smb3", "ceph", "ocfs2"];

/// What the kernel is and can do.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    release: String,
    /// `bpf_set_retval` at connect.
    has_set_retval: bool,
    /// SO_NETNS_COOKIE (5.14).
    has_netns_cookie: bool,
    /// tcx (6.6).
    has_tcx: bool,
    /// Sockets of MPTCP (5.6).
    has_mptcp: bool,
    /// Whether sockets can be ended, or why they cannot even be listed.
    can_end: Result<bool, String>,
    /// Whether a hierarchy of cgroup v1 marks sockets (net_cls, net_prio).
    has_socket_marks: bool,
    /// Mounts by clients in the kernel: type and place.
    mounts: Vec<(String, String)>,
}

/// Asks and tries.
pub(super) fn read() -> Facts {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    Facts {
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        has_set_retval: has_set_retval(),
        has_netns_cookie: netns::cookie().is_ok(),
        has_tcx: bpf::has_tcx(),
        has_mptcp: socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::MPTCP)).is_ok(),
        can_end: can_destroy().map_err(|error| format!("{error:#}")),
        has_socket_marks: marks_sockets(&mounts),
        mounts: clients(&mounts),
    }
}

/// Loads a program that calls it, and runs it nowhere.
fn has_set_retval() -> bool {
    const SET_RETVAL: i32 = 187;
    let instruction = |code, register: u8, imm| bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(register, 0),
        off: 0,
        imm,
    };
    let program = [
        // r1 = -ECONNREFUSED; call; r0 = 1; exit
        instruction(0xb7, 1, -libc::ECONNREFUSED),
        instruction(0x85, 0, SET_RETVAL),
        instruction(0xb7, 0, 1),
        instruction(0x95, 0, 0),
    ];
    let loaded: io::Result<_> = bpf::load_connect4(c"beeline_doctor", &program);
    loaded.is_ok()
}

/// The mounts of [`CLIENTS`], as /proc/mounts tells them.
fn clients(mounts: &str) -> Vec<(String, String)> {
    let client = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let (place, kind) = (words.next()?, words.next()?);
        CLIENTS.contains(&kind).then(|| (kind.to_owned(), place.to_owned()))
    };
    mounts.lines().filter_map(client).collect()
}

fn marks_sockets(mounts: &str) -> bool {
    let is_marking = |option: &str| option == "net_cls" || option == "net_prio";
    let of_version_1 = mounts.lines().map(|line| line.split(' ').skip(2)).filter_map(|mut words| {
        let (kind, options) = (words.next()?, words.next()?);
        (kind == "cgroup").then_some(options)
    });
    of_version_1.flat_map(|options| options.split(',')).any(is_marking)
}

/// What they mean.
pub(super) fn evaluate(facts: &Facts) -> Vec<Finding> {
    let version = parse_release(&facts.release);
    let is_before = |wanted| version.is_some_and(|version| version < wanted);
    let mut findings = Vec::new();
    if is_before(KERNEL_FLOOR) {
        let (major, minor) = KERNEL_FLOOR;
        let what = format!("Linux {} is too old: the programs do not load", facts.release);
        findings.push(Finding::error(CHECK, what, format!("use Linux {major}.{minor} or later")));
    }
    if !facts.has_set_retval {
        findings.push(Finding::note(
            CHECK,
            "bpf_set_retval is missing at connect: a refused connect fails with EPERM, and not with ECONNREFUSED or EHOSTUNREACH",
            "use a kernel that has it there, as Linux 6.1 has",
        ));
    }
    if !facts.has_netns_cookie {
        findings.push(Finding::note(
            CHECK,
            "SO_NETNS_COOKIE is missing: NodePorts are kept free in the first network namespace, whichever the agent runs in",
            "use Linux 5.14 or later, or run the agent in the host's network namespace",
        ));
    }
    if !facts.has_tcx {
        findings.push(Finding::note(
            CHECK,
            "tcx is missing: programs of devices go to clsact, where whoever replaces the qdisc takes them away",
            "use Linux 6.6 or later",
        ));
    }
    if !facts.has_mptcp {
        findings.push(Finding::note(
            CHECK,
            "there are no MPTCP sockets: applications that ask for them get TCP, which is translated",
            "none is needed; a kernel with CONFIG_MPTCP has them",
        ));
    }
    match &facts.can_end {
        Ok(true) => {}
        Ok(false) => findings.push(Finding::warning(
            CHECK,
            "the kernel does not end sockets when told to: UDP sockets go on speaking to a backend that has gone",
            "use a kernel with CONFIG_INET_DIAG_DESTROY",
        )),
        Err(error) => findings.push(Finding::warning(
            CHECK,
            format!("the kernel does not list sockets: {error}"),
            "load the modules tcp_diag and udp_diag (`modprobe udp_diag`), or use a kernel that has them",
        )),
    }
    if facts.has_socket_marks && is_before((5, 14)) {
        findings.push(Finding::warning(
            CHECK,
            "net_cls or net_prio of cgroup v1 is mounted, and before Linux 5.14 a socket that it has marked is lost to the \
             programs of its cgroup: such a process reaches no Service",
            "do without net_cls and net_prio (`grep cgroup /proc/mounts`), or use Linux 5.14 or later",
        ));
    }
    if let Some((kind, place)) = facts.mounts.first()
        && is_before((6, 6))
    {
        let more = if facts.mounts.len() > 1 { format!(" and {} more", facts.mounts.len() - 1) } else { String::new() };
        findings.push(Finding::warning(
            CHECK,
            format!(
                "{kind} is mounted at {place}{more}: if its server is a Service, a kernel before Linux 6.6 without the fixes \
                 keeps the backend in the place of the Service, and hangs when that goes"
            ),
            "use Linux 6.6 or later, or one into which 0bdf399342c5, 86a7e0b69bd5, 01b2885d9415 and (SMB) cedc019b9f26 were \
             carried back: Ubuntu 5.15.0-113, RHEL 5.14.0-427.31.1 and 4.18.0-553.8.1, or a stable one of mid-2024; or \
             mount by an address that is no Service's",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("Linux {} lacks nothing that is used", facts.release)));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_told;

    fn facts(change: impl FnOnce(&mut Facts)) -> Facts {
        let mut facts = Facts {
            release: "6.12.3".to_owned(),
            has_set_retval: true,
            has_netns_cookie: true,
            has_tcx: true,
            has_mptcp: true,
            can_end: Ok(true),
            has_socket_marks: false,
            mounts: Vec::new(),
        };
        change(&mut facts);
        facts
    }

    fn check(change: impl FnOnce(&mut Facts), expected: &[&str]) {
        assert_told(&evaluate(&facts(change)), expected);
    }

    #[test]
    fn what_is_missing_has_its_price() {
        check(|_| {}, &["ok: Linux 6.12.3 lacks nothing"]);
        check(|facts| facts.release = "5.4.0-9".to_owned(), &["error: Linux 5.4.0-9 is too old"]);
        check(|facts| facts.has_set_retval = false, &["note: bpf_set_retval is missing"]);
        check(|facts| facts.has_netns_cookie = false, &["note: SO_NETNS_COOKIE is missing"]);
        check(|facts| facts.has_tcx = false, &["note: tcx is missing"]);
        check(|facts| facts.has_mptcp = false, &["note: there are no MPTCP sockets"]);
        check(|facts| facts.can_end = Ok(false), &["warning: the kernel does not end sockets"]);
        check(|facts| facts.can_end = Err("x".to_owned()), &["warning: the kernel does not list sockets: x"]);
    }

    #[test]
    fn old_traps_count_where_they_are_laid() {
        let nfs = || vec![("nfs4".to_owned(), "/a".to_owned()), ("ceph".to_owned(), "/b".to_owned())];
        check(|facts| facts.mounts = nfs(), &["ok"]);
        let old = |facts: &mut Facts| (facts.mounts, facts.release) = (nfs(), "6.1.0-30-amd64".to_owned());
        check(old, &["warning: nfs4 is mounted at /a and 1 more"]);
        check(|facts| facts.has_socket_marks = true, &["ok"]);
        let old = |facts: &mut Facts| (facts.has_socket_marks, facts.release) = (true, "5.10.0".to_owned());
        check(old, &["warning: net_cls or net_prio"]);
    }

    #[test]
    fn mounts_are_read() {
        let mounts = "\
192.0.2.1:/x /mnt/with\\040space nfs4 rw,vers=4.2 0 0
proc /proc proc rw 0 0
cgroup /sys/fs/cgroup/net_cls cgroup rw,relatime,net_cls 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0
";
        assert_eq!(clients(mounts), [("nfs4".to_owned(), "/mnt/with\\040space".to_owned())]);
        assert!(marks_sockets(mounts));
        assert!(!marks_sockets("cgroup2 /sys/fs/cgroup cgroup2 rw,net_cls 0 0\n"));
    }

    #[test]
    fn this_kernel_answers() {
        // Whatever it says, it says it without failing; the stories look at what.
        assert!(!read().release.is_empty());
    }
}

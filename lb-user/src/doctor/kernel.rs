//! Features that the kernel lacks, and the effect. The check tries them, since distributions backport features to older
//! versions.

use std::{fs, io};

use aya_obj::generated::bpf_insn;
use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use super::Finding;
use lb_dataplane::environment::{KERNEL_FLOOR, parse_release};
use lb_kernel::{bpf, netns, sock_diag::can_destroy};

const CHECK: &str = "kernel";

/// Network file systems with a client in the kernel, which may connect to a Service.
const NETWORK_FILE_SYSTEMS: [&str; 6] = ["nfs", "nfs4", "cifs", "smb3", "ceph", "ocfs2"];

/// Features of the running kernel.
#[derive(Clone, Debug)]
pub(super) struct KernelFacts {
    release: String,
    /// `bpf_set_retval` in programs at connect (5.18).
    has_set_retval: bool,
    /// SO_NETNS_COOKIE (5.14).
    has_netns_cookie: bool,
    /// tcx (6.6).
    has_tcx: bool,
    /// MPTCP sockets (5.6).
    has_mptcp: bool,
    /// True if the kernel ends sockets on request (CONFIG_INET_DIAG_DESTROY); or why it cannot list sockets.
    can_end_sockets: Result<bool, String>,
    /// True if net_cls or net_prio of cgroup v1 is mounted: they mark sockets.
    has_socket_marks: bool,
    /// True on PREEMPT_RT (/sys/kernel/realtime).
    is_realtime: bool,
    /// Mounts of [`NETWORK_FILE_SYSTEMS`]: type and mount point.
    mounts: Vec<(String, String)>,
}

/// Tries each feature.
pub(super) fn read() -> KernelFacts {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    KernelFacts {
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        has_set_retval: has_set_retval(),
        has_netns_cookie: netns::cookie().is_ok(),
        has_tcx: bpf::has_tcx(),
        has_mptcp: socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::MPTCP)).is_ok(),
        can_end_sockets: can_destroy().map_err(|error| format!("{error:#}")),
        has_socket_marks: marks_sockets(&mounts),
        is_realtime: fs::read_to_string("/sys/kernel/realtime").is_ok_and(|flag| flag.trim() == "1"),
        mounts: network_mounts(&mounts),
    }
}

/// Loads a program that calls `bpf_set_retval`, and attaches it nowhere.
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

/// Lists type and mount point of [`NETWORK_FILE_SYSTEMS`] in the text of /proc/mounts.
fn network_mounts(mounts: &str) -> Vec<(String, String)> {
    let client = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let (place, kind) = (words.next()?, words.next()?);
        NETWORK_FILE_SYSTEMS.contains(&kind).then(|| (kind.to_owned(), place.to_owned()))
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

pub(super) fn evaluate(facts: &KernelFacts) -> Vec<Finding> {
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
            "bpf_set_retval is missing at connect: a refused connect fails with EPERM instead of ECONNREFUSED or \
             EHOSTUNREACH",
            "use a kernel with it, such as Linux 6.1",
        ));
    }
    if !facts.has_netns_cookie {
        findings.push(Finding::note(
            CHECK,
            "SO_NETNS_COOKIE is missing: NodePorts are reserved in the initial network namespace, even if the agent \
             runs in another one",
            "use Linux 5.14 or later, or run the agent in the host's network namespace",
        ));
    }
    if !facts.has_tcx {
        findings.push(Finding::note(
            CHECK,
            "tcx is missing: programs of devices are filters of clsact, which are lost if another program replaces the \
             qdisc",
            "use Linux 6.6 or later",
        ));
    }
    if !facts.has_mptcp {
        findings.push(Finding::note(
            CHECK,
            "MPTCP is missing: applications that ask for it get TCP, which is translated",
            "none is needed; a kernel with CONFIG_MPTCP has MPTCP sockets",
        ));
    }
    match &facts.can_end_sockets {
        Ok(true) => {}
        Ok(false) => findings.push(Finding::warning(
            CHECK,
            "the kernel does not end sockets on request: UDP sockets keep sending to a removed backend",
            "use a kernel with CONFIG_INET_DIAG_DESTROY",
        )),
        Err(error) => findings.push(Finding::warning(
            CHECK,
            format!("the kernel does not list sockets: {error}"),
            "load the modules tcp_diag and udp_diag (`modprobe udp_diag`), or use a kernel with them",
        )),
    }
    // Before Linux 6.18 disabling bottom halves took a lock on PREEMPT_RT too, so that a CPU handles a packet at a time
    // (kernel/softirq.c, CONFIG_PREEMPT_RT_NEEDS_BH_LOCK).
    if facts.is_realtime && !is_before((6, 18)) {
        findings.push(Finding::warning(
            CHECK,
            "the kernel is PREEMPT_RT and may handle two packets on a CPU at a time: they would share the memory in \
             which the packet path works, and be translated wrongly",
            "use a kernel with CONFIG_PREEMPT_RT_NEEDS_BH_LOCK, or `--devices none`; sockets are not affected",
        ));
    }
    if facts.has_socket_marks && is_before((5, 14)) {
        findings.push(Finding::warning(
            CHECK,
            "net_cls or net_prio of cgroup v1 is mounted: before Linux 5.14 the programs of a cgroup do not run for \
             sockets that they marked, and the process reaches no Service",
            "unmount net_cls and net_prio (`grep cgroup /proc/mounts`), or use Linux 5.14 or later",
        ));
    }
    if let Some((kind, place)) = facts.mounts.first()
        && is_before((6, 6))
    {
        let more = if facts.mounts.len() > 1 { format!(" and {} more", facts.mounts.len() - 1) } else { String::new() };
        findings.push(Finding::warning(
            CHECK,
            format!(
                "{kind} is mounted at {place}{more}: if its server is a Service, a kernel before Linux 6.6 without the \
                 fixes stores the backend instead of the VIP, and the mount hangs when the backend is removed"
            ),
            "use Linux 6.6 or later, or a kernel with backports of 0bdf399342c5, 86a7e0b69bd5, 01b2885d9415 and (SMB) \
             cedc019b9f26: Ubuntu 5.15.0-113, RHEL 5.14.0-427.31.1 and 4.18.0-553.8.1, or a stable kernel of mid-2024; \
             or mount by an address that is not a VIP",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("Linux {} has every feature that Beeline uses", facts.release)));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_findings;

    fn facts(change: impl FnOnce(&mut KernelFacts)) -> KernelFacts {
        let mut facts = KernelFacts {
            release: "6.12.3".to_owned(),
            has_set_retval: true,
            has_netns_cookie: true,
            has_tcx: true,
            has_mptcp: true,
            can_end_sockets: Ok(true),
            has_socket_marks: false,
            is_realtime: false,
            mounts: Vec::new(),
        };
        change(&mut facts);
        facts
    }

    fn check(change: impl FnOnce(&mut KernelFacts), expected: &[&str]) {
        assert_findings(&evaluate(&facts(change)), expected);
    }

    #[test]
    fn each_missing_feature_is_reported() {
        check(|_| {}, &["ok: Linux 6.12.3 has every feature"]);
        check(|facts| facts.release = "5.4.0-9".to_owned(), &["error: Linux 5.4.0-9 is too old"]);
        check(|facts| facts.has_set_retval = false, &["note: bpf_set_retval is missing"]);
        check(|facts| facts.has_netns_cookie = false, &["note: SO_NETNS_COOKIE is missing"]);
        check(|facts| facts.has_tcx = false, &["note: tcx is missing"]);
        check(|facts| facts.has_mptcp = false, &["note: MPTCP is missing"]);
        check(|facts| facts.can_end_sockets = Ok(false), &["warning: the kernel does not end sockets"]);
        check(|facts| facts.can_end_sockets = Err("x".to_owned()), &["warning: the kernel does not list sockets: x"]);
    }

    #[test]
    fn bugs_of_old_kernels_count_if_they_can_occur() {
        let nfs = || vec![("nfs4".to_owned(), "/a".to_owned()), ("ceph".to_owned(), "/b".to_owned())];
        check(|facts| facts.mounts = nfs(), &["ok"]);
        let old = |facts: &mut KernelFacts| (facts.mounts, facts.release) = (nfs(), "6.1.0-30-amd64".to_owned());
        check(old, &["warning: nfs4 is mounted at /a and 1 more"]);
        check(|facts| facts.has_socket_marks = true, &["ok"]);
        let old = |facts: &mut KernelFacts| (facts.has_socket_marks, facts.release) = (true, "5.10.0".to_owned());
        check(old, &["warning: net_cls or net_prio"]);
        check(|facts| facts.is_realtime = true, &["ok"]);
        let new = |facts: &mut KernelFacts| (facts.is_realtime, facts.release) = (true, "6.18.2-rt1".to_owned());
        check(new, &["warning: the kernel is PREEMPT_RT"]);
    }

    #[test]
    fn network_mounts_and_socket_marks_are_found() {
        let mounts = "\
192.0.2.1:/x /mnt/with\\040space nfs4 rw,vers=4.2 0 0
proc /proc proc rw 0 0
cgroup /sys/fs/cgroup/net_cls cgroup rw,relatime,net_cls 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0
";
        assert_eq!(network_mounts(mounts), [("nfs4".to_owned(), "/mnt/with\\040space".to_owned())]);
        assert!(marks_sockets(mounts));
        assert!(!marks_sockets("cgroup2 /sys/fs/cgroup cgroup2 rw,net_cls 0 0\n"));
    }

    #[test]
    fn reading_the_running_kernel_does_not_fail() {
        // The stories check the findings.
        assert!(!read().release.is_empty());
    }
}

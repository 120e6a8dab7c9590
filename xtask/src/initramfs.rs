//! The root file system of a machine that runs the stories: busybox, modules, the programs, and an init that runs them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::kernel_cache::Kernel;
use crate::{run, setup, vm};

/// Modules of a cloud kernel that a node has loaded. Modules that are built in or that a kernel lacks are left out.
const MODULES: [&str; 38] = [
    "ipv6",
    "veth",
    "dummy",
    "bridge",
    "vxlan",
    "ipip",
    "ip_gre",
    "sit",
    "wireguard",
    "bonding",
    "8021q",
    "ipvlan",
    "sctp",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "nf_conntrack",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_flow_offload",
    "nf_flow_table_inet",
    "geneve",
    "vrf",
    "macvlan",
    "openvswitch",
    "team",
    "team_mode_roundrobin",
    "tun",
    "iptable_filter",
    "ip6table_filter",
    // With what it needs of sunrpc, lockd and nfs.
    "nfsv3",
];

/// Programs and settings of the machine.
pub(crate) struct Inside {
    /// The agent, static like the others.
    pub(crate) agent: PathBuf,
    /// The agent of the made-up next layout.
    pub(crate) next: PathBuf,
    /// The stories.
    pub(crate) stories: PathBuf,
    /// A part of the names of the stories to run; none runs all.
    pub(crate) filter: Option<String>,
    /// True if the kernel blinds the constants of all programs (net.core.bpf_jit_harden=2).
    pub(crate) is_hardened: bool,
    /// True if results renew the goldens of the tree rather than being compared with them.
    pub(crate) is_update: bool,
}

/// Makes the archive that the kernel unpacks.
pub(crate) fn build(kernel: &Kernel, inside: &Inside) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["dev", "proc", "sys", "tmp", "run", "root", "var"] {
        archive.dir(dir);
    }
    // The kernel opens it as the standard output of init before init can mount anything.
    archive.entry("dev/console", 0o020_600, (5, 1), &[]);
    let busybox = run::find("busybox", &[]).context("there is no busybox")?;
    archive.entry("bin/busybox", 0o100_755, (0, 0), &read(&busybox)?);
    archive.program("bin/beeline", &inside.agent)?;
    archive.program("bin/beeline-next", &inside.next)?;
    archive.program("bin/stories", &inside.stories)?;
    archive.entry("etc/hosts", 0o100_644, (0, 0), b"127.0.0.1 localhost\n::1 localhost\n");
    archive.entry("etc/passwd", 0o100_644, (0, 0), b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n");
    let sbin: [PathBuf; 2] = ["/usr/sbin".into(), "/sbin".into()];
    let find = |name: &str| run::find(name, &sbin);
    // With busybox as the shell, its own `ip` would run in place of the real one.
    for (path, tool) in [
        ("bin/sh", find("dash")),
        ("sbin/ip", find("ip")),
        ("sbin/tc", find("tc")),
        ("sbin/bridge", find("bridge")),
        ("sbin/wg", find("wg")),
        ("sbin/nft", find("nft")),
        // Not installed for it: its package starts daemons.
        ("sbin/ovs-dpctl", find("ovs-dpctl")),
        ("sbin/teamnl", find("teamnl")),
        ("sbin/bpftool", setup::bpftool()),
    ] {
        let Some(tool) = tool else { continue };
        archive.program(path, &tool)?;
    }
    archive.entry("bin/sh", 0o120_777, (0, 0), b"busybox");
    let dependencies = std::fs::read_to_string(kernel.modules.join("modules.dep")).context("reading modules.dep")?;
    let mut insmod = String::new();
    for module in load_order(&dependencies, &MODULES) {
        let path = kernel.modules.join(&module);
        let bytes = if module.ends_with(".xz") { unpack(&path)? } else { read(&path)? };
        let name = module.rsplit('/').next().unwrap_or(&module).trim_end_matches(".xz");
        archive.entry(&format!("modules/{name}"), 0o100_644, (0, 0), &bytes);
        insmod += &format!("insmod /modules/{name} || echo \"cannot load {name}\"\n");
    }
    archive.entry("init", 0o100_755, (0, 0), init(&insmod, inside).as_bytes());
    Ok(archive.finish())
}

fn init(insmod: &str, inside: &Inside) -> String {
    // Read back, so that a run counts only if the kernel took the setting.
    let harden = if inside.is_hardened {
        "echo 2 >/proc/sys/net/core/bpf_jit_harden; echo \"bpf_jit_harden $(cat /proc/sys/net/core/bpf_jit_harden)\"\n\
         [ \"$(cat /proc/sys/net/core/bpf_jit_harden)\" = 2 ] || poweroff -f\n"
    } else {
        ""
    };
    let update = if inside.is_update { "UPDATE_EXPECT=1 " } else { "" };
    let filter =
        inside.filter.as_ref().map_or_else(String::new, |filter| format!("'{}'", filter.replace('\'', r"'\''")));
    format!(
        r#"#!/bin/sh
export PATH=/sbin:/bin HOME=/root TERM=dumb NO_COLOR=1 RUST_BACKTRACE=1
/bin/busybox --install -s /bin 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
{insmod}{harden}echo "{release}$(uname -r)"
# The kernel's own messages would run into the lines that are counted.
dmesg -n 1
BEELINE_BIN=/bin/beeline BEELINE_NEXT_BIN=/bin/beeline-next BEELINE_REQUIRE_KERNEL=1 BEELINE_SLOW=1 BEELINE_OWN_MACHINE=1 {update}/bin/stories --test-threads=1 {filter}
echo "{exit}$?"
poweroff -f
"#,
        release = vm::RELEASE,
        exit = vm::EXIT,
    )
}

/// The modules to load and their dependencies, in the order of loading.
fn load_order(dependencies: &str, wanted: &[&str]) -> Vec<String> {
    let by_name: BTreeMap<&str, (&str, &str)> = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (path.rsplit('/').next().unwrap_or(path).split('.').next().unwrap_or(path), (path, needs)))
        .collect();
    let mut order: Vec<String> = Vec::new();
    for (path, needs) in wanted.iter().filter_map(|name| by_name.get(name)) {
        // depmod lists the dependencies of a module in the opposite order of loading.
        for module in needs.split_whitespace().rev().chain([*path]) {
            if !order.iter().any(|loaded| loaded == module) {
                order.push(module.to_owned());
            }
        }
    }
    order
}

/// The shared libraries of a program, as absolute paths, its loader included; none of a static one, at which ldd fails.
fn libraries(program: &Path) -> Vec<String> {
    let text = run::capture(Command::new("ldd").arg(program)).unwrap_or_default();
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(str::to_owned).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn unpack(path: &Path) -> Result<Vec<u8>> {
    let output = Command::new("xz").arg("-dc").arg(path).output().context("starting xz")?;
    output.status.success().then_some(output.stdout).with_context(|| format!("unpacking {}", path.display()))
}

/// A cpio archive in the format `newc`, which is what the kernel unpacks.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    names: Vec<String>,
}

impl Archive {
    /// Adds a directory and those above it.
    fn dir(&mut self, path: &str) {
        if !path.is_empty() && !self.names.iter().any(|name| name == path) {
            self.dir(path.rsplit_once('/').map_or("", |(above, _)| above));
            self.write(path, 0o040_755, (0, 0), &[]);
        }
    }

    /// Adds a program and its libraries.
    fn program(&mut self, path: &str, program: &Path) -> Result<()> {
        self.entry(path, 0o100_755, (0, 0), &read(program)?);
        for library in libraries(program) {
            self.entry(library.trim_start_matches('/'), 0o100_755, (0, 0), &read(Path::new(&library))?);
        }
        Ok(())
    }

    /// Adds anything else; the first of a name stays.
    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        if !self.names.iter().any(|name| name == path) {
            self.dir(path.rsplit_once('/').map_or("", |(above, _)| above));
            self.write(path, mode, device, content);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.write("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn write(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.names.push(path.to_owned());
        let numbers = [
            self.names.len(),  // inode
            mode as usize,     // type and permissions
            0,                 // user
            0,                 // group
            1,                 // links
            0,                 // time
            content.len(),     // size
            0,                 // the device it is on, major
            0,                 // and minor
            device.0 as usize, // the device it is, major
            device.1 as usize, // and minor
            path.len() + 1,    // length of the name with its end
            0,                 // checksum, of another format
        ];
        self.bytes.extend(b"070701");
        self.bytes.extend(numbers.iter().flat_map(|number| format!("{number:08x}").into_bytes()));
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_load_after_their_dependencies() {
        let dependencies =
            "kernel/a.ko: kernel/b.ko kernel/c.ko\nkernel/b.ko: kernel/c.ko\nkernel/c.ko:\nkernel/d.ko.xz:\n";
        assert_eq!(
            load_order(dependencies, &["a", "d", "c", "none"]),
            ["kernel/c.ko", "kernel/b.ko", "kernel/a.ko", "kernel/d.ko.xz"]
        );
    }

    #[test]
    fn an_entry_brings_the_directories_above_it_once() {
        let mut archive = Archive::default();
        archive.entry("a/b/c", 0o100_644, (0, 0), b"hello");
        archive.entry("a/b/d", 0o100_644, (0, 0), b"");
        archive.entry("a/b/c", 0o100_644, (0, 0), b"again");
        assert_eq!(archive.names, ["a", "a/b", "a/b/c", "a/b/d"]);
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(bytes.windows(6).filter(|window| window == b"070701").count(), 5);
        assert!(
            bytes.windows(5).any(|window| window == b"hello") && !bytes.windows(5).any(|window| window == b"again")
        );
    }

    #[test]
    fn a_filter_with_quotes_stays_one_word() {
        let inside = |is_hardened| Inside {
            agent: PathBuf::new(),
            next: PathBuf::new(),
            stories: PathBuf::new(),
            filter: Some("it's".to_owned()),
            is_hardened,
            is_update: is_hardened,
        };
        assert!(init("", &inside(false)).contains(r"--test-threads=1 'it'\''s'"));
        assert!(init("", &inside(true)).contains("echo 2 >/proc/sys/net/core/bpf_jit_harden"));
        assert!(init("", &inside(true)).contains(" UPDATE_EXPECT=1 "));
        assert!(["harden", "UPDATE"].iter().all(|word| !init("", &inside(false)).contains(word)));
    }
}

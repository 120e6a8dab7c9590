//! A node: kubelet and containerd in namespaces that look like a machine. It can lose power, and its pins.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use lb_lab::ChildProcess;
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Pid, Signal, kill_process},
};

use crate::{
    addresses,
    cni::Cni,
    process::{asset, until},
    sandbox::{Hierarchy, copy_cpuset, hierarchies},
};

/// The init of a node: it mounts the node's own view of kernel and cgroups, starts the network of the pods, containerd
/// and kubelet, and reaps orphans. Arguments: directory, name, addresses, and each hierarchy as
/// `kind:directory:options`.
const INIT: &str = r#"
set -eu
dir=$1 name=$2 addresses=$3; shift 3
hostname "$name"
mount --make-rshared /
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
for hierarchy; do
  kind=${hierarchy%%:*} rest=${hierarchy#*:}
  place=/sys/fs/cgroup${rest%%:*} options=${rest#*:}
  mkdir -p "$place"
  mount -t "$kind" ${options:+-o "$options"} none "$place"
done
# With controllers in cgroup2, only leaves may have processes.
if [ -s /sys/fs/cgroup/cgroup.controllers ]; then
  mkdir -p /sys/fs/cgroup/init
  echo $$ > /sys/fs/cgroup/init/cgroup.procs
  for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control; done
fi
mount --bind "$dir/bpf" /sys/fs/bpf
# Mounts of the other nodes' bpffs would keep their pins alive.
for other in "$dir"/../node*/bpf; do if mountpoint -q "$other"; then umount "$other"; fi; done
mount -t tmpfs tmpfs /run
mkdir -p /run/netns
# Kubelet would set these sysctls of the whole machine. Bind mounts show it the values that it wants.
mkdir -p "$dir/sysctl"
for wanted in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file=$dir/sysctl/$(basename "${wanted%=*}")
  echo "${wanted#*=}" > "$file"
  mount --bind "$file" "/proc/sys/${wanted%=*}"
done
if [ -e "$dir/network.sh" ]; then sh -eu "$dir/network.sh" "$dir" "$name" "${name#node}"; fi
containerd --config "$dir/containerd.toml" >> "$dir/../log/$name-containerd.log" 2>&1 &
until ctr version > /dev/null 2>&1; do sleep 0.1; done
for image in "$dir"/../images/*.tar; do ctr --namespace k8s.io images import "$image" > /dev/null; done
kubelet --config "$dir/kubelet.yaml" --kubeconfig "$dir/../admin.conf" --hostname-override "$name" --node-ip "$addresses" \
  --root-dir "$dir/kubelet" --cert-dir "$dir/pki" >> "$dir/../log/$name-kubelet.log" 2>&1 &
while :; do wait; sleep 0.2; done
"#;

/// A node of the cluster.
pub struct E2eNode {
    number: usize,
    directory: PathBuf,
    cgroup: String,
    init: RefCell<Option<ChildProcess>>,
}

impl E2eNode {
    /// Writes the configuration and starts the node, without waiting until it is ready.
    pub fn start(number: usize, cluster: &Path, cgroup: &str) -> Self {
        let directory = cluster.join(format!("node{number}"));
        for part in ["bpf", "cni", "containerd", "kubelet", "pod-logs"] {
            fs::create_dir_all(directory.join(part)).expect("a directory");
        }
        let write = |file: &str, text: String| fs::write(directory.join(file), text).expect("a file");
        write("containerd.toml", containerd(&directory));
        write("kubelet.yaml", kubelet(&directory));
        Cni::chosen().write(number, &directory);
        let cgroup = format!("{cgroup}/node{number}");
        let node = Self { number, directory, cgroup, init: RefCell::default() };
        for Hierarchy { mount, .. } in hierarchies() {
            let path = mount.join(&node.cgroup);
            fs::create_dir(&path).expect("a cgroup");
            let (parent, child) = (path.parent().expect("a parent"), path.file_name().expect("a name"));
            copy_cpuset(parent, &child.to_string_lossy()).expect("CPUs for a cgroup");
        }
        node.mount_bpffs();
        node.power_on();
        node
    }

    /// Name of the node in the cluster.
    pub fn name(&self) -> String {
        format!("node{}", self.number)
    }

    /// Address of the node.
    pub fn address(&self) -> String {
        addresses::node(self.number)
    }

    /// Cgroup of the node in a mounted hierarchy.
    pub fn cgroup_in(&self, hierarchy: &Path) -> PathBuf {
        hierarchy.join(&self.cgroup)
    }

    /// A command for a process of the host: in the node's network namespace and cgroup.
    pub fn host_process(&self, program: impl AsRef<Path>) -> Command {
        let joins = hierarchies().into_iter().filter(|hierarchy| hierarchy.kind == "cgroup2");
        let joins: String = joins
            .map(|cgroup2| format!("echo $$ > {}/{}/cgroup.procs; ", cgroup2.mount.display(), self.cgroup))
            .collect();
        let mut command = Command::new("sh");
        let enter = format!("{joins}exec nsenter --net=/run/netns/{} \"$0\" \"$@\"", self.name());
        command.args(["-ec", &enter]).arg(program.as_ref());
        command
    }

    /// A command in all namespaces of the node but the cgroup namespace.
    pub fn inside(&self, program: &str) -> Command {
        let init = self.init.borrow().as_ref().expect("the node has power").pid();
        // `unshare` is the parent of the init.
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).expect("/proc");
        let mut command = Command::new("nsenter");
        command.args(["--target", children.trim(), "--net", "--mount", "--pid", "--uts", program]);
        command
    }

    /// Kills the processes of the node's pods that run this program, by its path in the pod, and waits for their end:
    /// then their sockets are closed.
    pub fn kill(&self, program: &str) {
        let is_one = |pid: &i32| {
            let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            read("cmdline").split('\0').next() == Some(program) && read("cgroup").contains(&format!("{}/", self.cgroup))
        };
        let all = fs::read_dir("/proc").expect("/proc").flatten();
        let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let victims: Vec<i32> = all.filter(is_one).collect();
        assert!(!victims.is_empty(), "{program} does not run on {}", self.name());
        for pid in &victims {
            // The process may have ended meanwhile.
            let _sent = kill_process(Pid::from_raw(*pid).expect("not 0"), Signal::KILL);
        }
        // The first thread may be a zombie while others still hold the sockets.
        let has_ended = |pid: &i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
            threads <= 1 && stat.rsplit_once(')').is_none_or(|(_, rest)| rest.starts_with(" Z"))
        };
        while !victims.iter().all(has_ended) {
            thread::sleep(Duration::from_micros(100));
        }
    }

    /// Kills all processes of the node at once.
    pub fn power_off(&self) {
        *self.init.borrow_mut() = None;
        // The kernel removes the links of pods, with their namespaces, a moment after the last process.
        until("the node has no process", 30, || {
            let left = hierarchies().into_iter().any(|hierarchy| !is_empty(&hierarchy.mount.join(&self.cgroup)));
            if left { Err("a cgroup has processes".to_owned()) } else { Ok(()) }
        });
    }

    /// Drops the bpffs with its programs, links and maps, while the node has no power.
    pub fn lose_pins(&self) {
        unmount(self.directory.join("bpf"), UnmountFlags::DETACH).expect("the bpffs");
        self.mount_bpffs();
    }

    /// Starts containerd and kubelet.
    pub fn power_on(&self) {
        let mut join = String::new();
        let mut views = Vec::new();
        let hierarchies = hierarchies();
        let has_one = hierarchies.len() == 1;
        for Hierarchy { mount, kind, options } in hierarchies {
            join += &format!("echo $$ > {}/{}/cgroup.procs; ", mount.display(), self.cgroup);
            let name = mount.file_name().expect("a name").to_string_lossy().into_owned();
            let place = if has_one { String::new() } else { format!("/{name}") };
            views.push(format!("{kind}:{place}:{}", if kind == "cgroup2" { "" } else { &options }));
        }
        let name = self.name();
        let enter = format!(
            "{join}exec nsenter --net=/run/netns/{name} unshare --mount --propagation private --uts --pid --cgroup \
             --fork --kill-child --mount-proc sh -c \"$0\" init \"$@\""
        );
        let addresses = addresses::ranges(&format!("172.30.0.1{}", self.number), &format!("fd30::1{}", self.number));
        let assets = asset("");
        let path = format!("{}:{}", assets.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("sh");
        command
            .args(["-ec", &enter, INIT])
            .arg(&self.directory)
            .args([&name, &addresses])
            .args(views)
            .env("PATH", path);
        let log = self.directory.join("../log").join(format!("{name}.log"));
        *self.init.borrow_mut() = Some(ChildProcess::start_appending(&mut command, &log));
    }

    fn mount_bpffs(&self) {
        mount("bpf", self.directory.join("bpf"), "bpf", MountFlags::empty(), None).expect("a bpffs");
    }
}

/// True if a cgroup and its children have no process. Removes empty children.
fn is_empty(cgroup: &Path) -> bool {
    let children = fs::read_dir(cgroup).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    // Visit all children, without stopping at the first that has a process.
    let are_empty: Vec<bool> =
        children.map(|child| is_empty(&child.path()) && fs::remove_dir(child.path()).is_ok()).collect();
    are_empty.into_iter().all(|is_empty| is_empty)
        && fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|procs| procs.trim().is_empty())
}

fn containerd(directory: &Path) -> String {
    let dir = directory.display();
    format!(
        r#"version = 3
root = "{dir}/containerd"
state = "/run/containerd"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{}"
[plugins.'io.containerd.cri.v1.runtime']
disable_apparmor = true
tolerate_missing_hugetlb_controller = true
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{dir}/cni"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = false
"#,
        crate::pods::IMAGE
    )
}

fn kubelet(directory: &Path) -> String {
    // KubeletInUserNamespace, although there is none: with it, kubelet tolerates sysctls that it cannot set.
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         containerRuntimeEndpoint: unix:///run/containerd/containerd.sock\n\
         failCgroupV1: false\ncgroupDriver: cgroupfs\n\
         enforceNodeAllocatable: []\nauthentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}\n\
         authorization: {{mode: AlwaysAllow}}\nclusterDNS: ['{}']\nclusterDomain: cluster.local\nresolvConf: ''\n\
         imageGCHighThresholdPercent: 100\n\
         evictionHard: {{memory.available: 1Mi, nodefs.available: 0%, imagefs.available: 0%, nodefs.inodesFree: 0%}}\n\
         localStorageCapacityIsolation: false\noomScoreAdj: -1\nfailSwapOn: false\nsyncFrequency: 10s\n\
         nodeStatusUpdateFrequency: 3s\nshutdownGracePeriod: 0s\nfeatureGates: {{KubeletInUserNamespace: true}}\n\
         podLogsDir: {}/pod-logs\n",
        addresses::dns(),
        directory.display()
    )
}

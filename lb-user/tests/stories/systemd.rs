//! The unit of `deploy/systemd` under a real systemd, which is the first process in its own namespaces.

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use crate::{
    Story,
    agent::{beeline, run, until},
    load::Load,
    node::{StoryNode, service},
    sockets::{at, tcp_ask, tcp_server},
};

pub const STORIES: &[Story] = &[("systemd_runs_the_unit_and_no_connect_fails", runs_the_unit)];

const SYSTEMD: &str = "/lib/systemd/systemd";
const VIP: &str = "10.96.0.1:80";

/// True if this machine has systemd.
pub fn is_installed() -> bool {
    Path::new(SYSTEMD).exists()
}

/// Script that builds the machine: a root in memory with the host's programs, read-only, and the files of an
/// installation as documented. Arguments: directory of the node, agent binary, directory of the unit, directory of the
/// YAML.
const INIT: &str = r#"
set -eu
dir=$1 agent=$2 unit=$3 yaml=$4 root=$1/machine
mkdir "$root"
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir usr etc proc sys dev run tmp var old
mount --bind /usr usr
mount -o remount,bind,ro usr
mount -t tmpfs tmpfs usr/local
for place in bin sbin lib lib64; do
  if [ -L /$place ]; then cp -P /$place .; elif [ -d /$place ]; then mkdir $place; mount --bind -o ro /$place $place; fi
done
for file in passwd group nsswitch.conf ld.so.cache ld.so.conf ld.so.conf.d; do cp -r /etc/$file etc; done
# Without a machine id systemd runs the interactive first boot.
echo 0123456789abcdef0123456789abcdef > etc/machine-id
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
mount -t cgroup2 none sys/fs/cgroup
mount --bind "$dir/bpffs" sys/fs/bpf
mount -o remount,bind,ro sys
for device in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m 666 dev/${device%:*} c 1 ${device#*:}; done
mkdir -p usr/local/bin etc/systemd/system etc/beeline/services
touch usr/local/bin/beeline
mount --bind "$agent" usr/local/bin/beeline
mount --bind "$yaml" etc/beeline/services
cp "$unit/beeline.service" etc/systemd/system
# Attach to the root of the hierarchy, which is the cgroup of the story.
sed 's,^#cgroup: ,cgroup: ,' "$unit/beeline.yaml" > etc/beeline/beeline.yaml
printf '[Unit]\nRequires=systemd-journald.service\n' > etc/systemd/system/story.target
hostname here
pivot_root . old
umount -l old
exec env -i container=other PATH=/usr/local/bin:/usr/bin:/usr/sbin \
  setpriv --bounding-set=-sys_module,-sys_boot,-sys_time,-sys_rawio \
  /lib/systemd/systemd --system --unit=story.target --log-target=console --show-status=no
"#;

/// A running machine. Killing `unshare` kills its first process, and with that all others.
struct Machine(Child);

impl Machine {
    fn boot(node: &StoryNode) -> Self {
        let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd");
        let child = Command::new("unshare")
            .args(["--mount", "--uts", "--ipc", "--cgroup", "--pid", "--fork", "--kill-child", "sh", "-c", INIT, "sh"])
            .arg(&node.directory)
            .arg(beeline().get_program())
            .args([&unit, &node.yaml])
            .stdin(Stdio::null())
            .spawn()
            .expect("the command unshare");
        let machine = Self(child);
        until("systemd answers", || machine.run("systemctl", &["show", "--property", "Version"]).status.success());
        machine
    }

    /// Runs a program in the machine.
    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let unshare = self.0.id();
        Command::new("nsenter")
            .arg(format!("--target={unshare}"))
            .arg(format!("--pid=/proc/{unshare}/ns/pid_for_children"))
            .args(["--mount", "--uts", "--ipc", "--cgroup", program])
            .args(arguments)
            .output()
            .expect("the command nsenter")
    }

    /// Runs systemctl, asserts success, and returns its output.
    fn systemctl(&self, arguments: &[&str]) -> String {
        let output = self.run("systemctl", arguments);
        assert!(output.status.success(), "systemctl {arguments:?}: {output:?}\n{}", self.journal());
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }

    fn journal(&self) -> String {
        String::from_utf8(self.run("journalctl", &["--unit=beeline", "--output=cat"]).stdout).expect("UTF-8")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        println!("--- the journal\n{}", self.journal());
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

fn served_by(backend: &str) -> bool {
    tcp_ask(at(VIP)).is_ok_and(|(server, _)| server == backend)
}

fn runs_the_unit(node: &mut StoryNode) {
    let backends = ["10.0.0.1:8080", "10.0.0.2:8080"];
    let web =
        |node: &StoryNode, backend| node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &[backend]));
    backends.into_iter().for_each(tcp_server);
    web(node, backends[0]);
    let machine = Machine::boot(node);

    machine.systemctl(&["start", "beeline"]);
    assert!(served_by(backends[0]), "the start command returns when the agent is in service");
    let mut load = Load::default();
    load.add("new TCP", || tcp_ask(at(VIP)).map(drop).map_err(|error| error.to_string()));

    web(node, backends[1]);
    until("an edited file is followed", || served_by(backends[1]));

    machine.systemctl(&["kill", "--signal=KILL", "beeline"]);
    until("systemd starts the agent again", || {
        machine.systemctl(&["show", "--property=NRestarts", "--value", "beeline"]) == "1"
    });
    until("the agent is in service again", || {
        machine.systemctl(&["show", "--property=ActiveState", "--value", "beeline"]) == "active"
    });
    machine.systemctl(&["restart", "beeline"]);
    load.more(20);
    machine.systemctl(&["stop", "beeline"]);
    load.more(20);
    load.end();
    assert!(served_by(backends[1]), "the datapath serves after the stop");
    let journal = machine.journal();
    assert!(
        journal.contains(" INFO in service") && !journal.contains("Z  INFO"),
        "log lines have no time of their own in the journal: {journal}"
    );

    // A start with a bad configuration fails, and the journal has the reason.
    machine.run("sh", &["-c", "echo no-such-flag: 1 > /etc/beeline/beeline.yaml"]);
    assert!(!machine.run("systemctl", &["start", "beeline"]).status.success(), "an unknown flag");
    assert!(machine.journal().contains("no-such-flag"));
    machine.systemctl(&["stop", "beeline"]);

    assert!(run(node, &["cleanup"]).status.success());
    assert!(tcp_ask(at(VIP)).is_err(), "cleanup removes the datapath");
}

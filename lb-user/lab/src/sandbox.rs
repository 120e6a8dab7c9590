//! A sandbox for one process that leaves nothing behind: a cgroup, a directory, namespaces, a bpffs.
//!
//! A runner makes the [`Sandbox`] and starts a program in it by [`Sandbox::run_in`]; that program finds its [`Inside`]
//! in the environment. The runner removes cgroup and directory, and a guard does so if the runner is killed;
//! namespaces, pins and links end with the processes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use lb_kernel::unshare;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::{guard::Guard, netns::LabNamespace};

/// Environment of the process inside: its cgroup and its directory.
const ENVIRONMENT: [&str; 2] = ["BEELINE_LAB_CGROUP", "BEELINE_LAB_DIRECTORY"];

/// The runner's side.
pub struct Sandbox {
    cgroup: PathBuf,
    directory: tempfile::TempDir,
    _guard: Guard,
}

impl Sandbox {
    /// Makes an empty cgroup, whose name contains `name`, and an empty directory.
    ///
    /// # Errors
    /// If the machine has no cgroup2, or the process no right to change it.
    pub fn make(name: &str) -> io::Result<Self> {
        let cgroup = cgroup2()?.join(format!("beeline-lab-{}-{name}", std::process::id()));
        fs::create_dir(&cgroup)?;
        let directory = tempfile::tempdir()?;
        let guard = Guard::of(Some(&cgroup), directory.path())?;
        Ok(Self { cgroup, directory, _guard: guard })
    }

    /// The cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Passes the sandbox to a command, in its environment. The process enters it by [`Inside::enter`].
    pub fn run_in<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env(ENVIRONMENT[0], &self.cgroup).env(ENVIRONMENT[1], self.directory.path())
    }
}

impl Drop for Sandbox {
    /// Kills the processes that are left in the cgroup, and removes it.
    fn drop(&mut self) {
        if !end_cgroup(&self.cgroup, Duration::from_secs(5)) {
            eprintln!("cannot remove {}", self.cgroup.display());
        }
    }
}

/// Runs this program again, with the same arguments, in a sandbox, and returns its exit code: 0 or 1.
pub fn run_again(name: &str) -> i32 {
    let sandbox = Sandbox::make(name).expect("a cgroup and a directory");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    let status = sandbox.run_in(command.args(std::env::args_os().skip(1))).status();
    drop(sandbox);
    i32::from(!status.is_ok_and(|status| status.success()))
}

/// The side of the process that runs in the sandbox.
#[derive(Clone, Debug)]
pub struct Inside {
    /// The cgroup.
    pub cgroup: PathBuf,
    /// The directory.
    pub directory: PathBuf,
}

impl Inside {
    /// The sandbox of this process, if a runner started it in one.
    pub fn find() -> Option<Self> {
        let [cgroup, directory] = ENVIRONMENT.map(|name| std::env::var_os(name).map(PathBuf::from));
        Some(Self { cgroup: cgroup?, directory: directory? })
    }

    /// Moves this process into its cgroup.
    pub fn join_cgroup(&self) {
        fs::write(self.cgroup.join("cgroup.procs"), std::process::id().to_string()).expect("joining the cgroup");
    }

    /// Moves this process, while it has one thread, into a network namespace with loopback up and a mount namespace
    /// with a bpffs of its own, and returns the bpffs.
    pub fn enter(&self) -> PathBuf {
        enter_namespaces();
        LabNamespace::current().setup().up("lo").apply();
        let bpffs = self.directory.join("bpffs");
        fs::create_dir(&bpffs).expect("a directory");
        mount("bpf", &bpffs, "bpf", MountFlags::empty(), None).expect("a bpffs");
        bpffs
    }
}

/// Moves this process, while it has one thread, into a network namespace and a mount namespace of its own.
pub fn enter_namespaces() {
    unshare::network_and_mounts().expect("new namespaces, which need root");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("private mounts");
}

/// The mount point of the cgroup2 hierarchy.
///
/// # Errors
/// None is mounted.
pub fn cgroup2() -> io::Result<PathBuf> {
    const USUAL: &str = "/sys/fs/cgroup";
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mount_point = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        right.starts_with("cgroup2 ").then(|| left.split(' ').nth(4).map(PathBuf::from))?
    };
    let found: Vec<PathBuf> = mounts.lines().filter_map(mount_point).collect();
    let usual = found.iter().find(|path| path.as_os_str() == USUAL).or(found.first());
    let lacking = "no cgroup2 is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup, or another directory";
    usual.cloned().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, lacking))
}

/// Kills the processes of a cgroup and of those below, and removes it; false if it is still there after `limit`.
pub fn end_cgroup(cgroup: &Path, limit: Duration) -> bool {
    let start = std::time::Instant::now();
    while cgroup.exists() && remove(cgroup).is_err() {
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Fails while a process of the cgroup is still ending.
fn remove(cgroup: &Path) -> io::Result<()> {
    for child in fs::read_dir(cgroup)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove(&child.path())?;
    }
    let left = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    for pid in left.lines().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)) {
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    fs::remove_dir(cgroup)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{BufRead as _, BufReader},
        process::Stdio,
    };

    /// Makes this test a runner, which waits to be killed.
    const RUNNER: &str = "BEELINE_LAB_TEST_RUNNER";

    #[test]
    fn a_killed_runner_leaves_nothing_behind() {
        if std::env::var_os(RUNNER).is_some() {
            let sandbox = Sandbox::make("killed").expect("a sandbox");
            let mut process = Command::new("sleep").arg("600").spawn().expect("a process");
            fs::write(sandbox.cgroup.join("cgroup.procs"), process.id().to_string()).expect("joined");
            // As an API server, which has no cgroup: its arguments name the directory.
            let log = sandbox.directory().join("log");
            fs::write(&log, "").expect("a file");
            let mut server = Command::new("tail").arg("-f").arg(log).stdout(Stdio::null()).spawn().expect("a process");
            let (cgroup, directory) = (sandbox.cgroup.display(), sandbox.directory().display());
            println!("\nMADE {cgroup} {directory} /proc/{}", server.id());
            let _ended = (process.wait(), server.wait());
            return;
        }
        if !rustix::process::geteuid().is_root() || cgroup2().is_err() {
            println!("skipped: needs root and a cgroup2");
            assert!(std::env::var_os("BEELINE_REQUIRE_KERNEL").is_none(), "needs root and a cgroup2");
            return;
        }
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["a_killed_runner_leaves_nothing_behind", "--nocapture"]).env(RUNNER, "1").stdout(Stdio::piped());
        let mut runner = command.spawn().expect("a runner");
        let output = BufReader::new(runner.stdout.take().expect("piped"));
        let made = output.lines().map_while(Result::ok).find(|line| line.starts_with("MADE ")).expect("a sandbox");
        let paths: Vec<&Path> = made.split(' ').skip(1).map(Path::new).collect();
        assert!(paths.len() == 3 && paths.iter().all(|path| path.exists()), "{made}");
        runner.kill().expect("our own child");
        runner.wait().expect("our own child");
        let start = std::time::Instant::now();
        while paths.iter().any(|path| path.exists()) {
            assert!(start.elapsed() < Duration::from_secs(10), "{made}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

//! The sandbox of a cluster, removed whatever happens. lb-lab's has one cgroup2; this one has a cgroup in each
//! hierarchy, v1 too, for kubelets, and a process namespace, which ends every program with the process inside.

use std::{
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use lb_lab::sandbox::end_cgroup;

/// The first argument of the process in the sandbox.
pub const INSIDE: &str = "--inside";
/// Environment variable of the process in the sandbox: its directory.
pub const DIRECTORY: &str = "BEELINE_E2E_DIRECTORY";
/// Environment variable of the process in the sandbox: the name of its cgroup in each hierarchy.
pub const CGROUP: &str = "BEELINE_E2E_CGROUP";

/// Makes the sandbox, and runs this program again in it with the same arguments. That process is the first of a process
/// namespace, so its end is the end of every process that it started.
pub fn main(arguments: &[String]) -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("e2e: not root: a cluster needs namespaces and cgroups of its own");
        return ExitCode::FAILURE;
    }
    let sandbox = E2eSandbox::make().expect("a directory and cgroups");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation=private", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().expect("this program"))
        .arg(INSIDE)
        .args(arguments)
        .env(DIRECTORY, &sandbox.directory)
        .env(CGROUP, &sandbox.cgroup)
        // Signals of the terminal reach this process alone, which ends the others in order.
        .process_group(0);
    let mut child = command.spawn().expect("the command unshare (package util-linux)");
    let status = Signals::new().watch(&mut child);
    let succeeded = status.is_some_and(|status| status.success());
    sandbox.remove(succeeded);
    if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Handlers of SIGINT and SIGTERM, whose default action would leave cgroups behind.
struct Signals(tokio::runtime::Runtime);

impl Signals {
    fn new() -> Self {
        Self(tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"))
    }

    /// Waits for a child and returns its status; none if a signal made this process kill it.
    fn watch(&self, child: &mut std::process::Child) -> Option<std::process::ExitStatus> {
        use tokio::signal::unix::{SignalKind, signal};
        self.0.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT");
            let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM");
            loop {
                tokio::select! {
                    _ = interrupt.recv() => break,
                    _ = terminate.recv() => break,
                    () = tokio::time::sleep(Duration::from_millis(100)) => {
                        if let Some(status) = child.try_wait().expect("a child") {
                            return Some(status);
                        }
                    }
                }
            }
            // `unshare --kill-child` kills the process in the sandbox too.
            child.kill().expect("our own child");
            child.wait().expect("our own child");
            None
        })
    }
}

/// Directory and cgroups of the sandbox.
struct E2eSandbox {
    directory: PathBuf,
    cgroup: String,
}

impl E2eSandbox {
    fn make() -> io::Result<Self> {
        let cgroup = format!("beeline-e2e-{}", std::process::id());
        let directory = std::env::temp_dir().join(&cgroup);
        fs::create_dir_all(directory.join("log"))?;
        for Hierarchy { mount, .. } in hierarchies() {
            fs::create_dir(mount.join(&cgroup))?;
            copy_cpuset(&mount, &cgroup)?;
            // Other work of the machine must not starve the cluster: it gets the CPU shares of eight processes.
            let shares = mount.join(&cgroup).join("cpu.shares");
            if shares.is_file() {
                fs::write(shares, "8192")?;
            }
        }
        Ok(Self { directory, cgroup })
    }

    /// Removes cgroups and directory, but keeps the logs of a run that failed.
    fn remove(&self, succeeded: bool) {
        for Hierarchy { mount, .. } in hierarchies() {
            let path = mount.join(&self.cgroup);
            if !end_cgroup(&path, Duration::from_secs(5)) {
                eprintln!("e2e: cannot remove the cgroup {}", path.display());
            }
        }
        let keep = if succeeded { None } else { Some(self.directory.join("log")) };
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if Some(&path) != keep.as_ref() {
                let _gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            }
        }
        match keep {
            Some(log) => eprintln!("e2e: the logs of all programs are in {}", log.display()),
            None => _ = fs::remove_dir_all(&self.directory),
        }
    }
}

/// A mounted cgroup hierarchy.
pub struct Hierarchy {
    /// The mount point.
    pub mount: PathBuf,
    /// `cgroup` or `cgroup2`.
    pub kind: String,
    /// Mount options without flags: the controllers of a v1 hierarchy.
    pub options: String,
}

/// Lists the mounted cgroup hierarchies.
pub fn hierarchies() -> Vec<Hierarchy> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc");
    let hierarchy = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, mount, kind @ ("cgroup" | "cgroup2"), options, ..] = words.as_slice() else { return None };
        let is_no_flag = |option: &&str| !matches!(*option, "rw" | "ro" | "relatime" | "nosuid" | "nodev" | "noexec");
        let options = options.split(',').filter(is_no_flag).collect::<Vec<_>>().join(",");
        Some(Hierarchy { mount: PathBuf::from(mount), kind: (*kind).to_owned(), options })
    };
    mounts.lines().filter_map(hierarchy).collect()
}

/// Copies CPUs and memory nodes to a child of the cpuset hierarchy, which takes no process before it has them.
pub fn copy_cpuset(parent: &Path, child: &str) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(file), parent.join(child).join(file));
        if from.is_file() && to.is_file() {
            fs::write(to, fs::read(from)?)?;
        }
    }
    Ok(())
}

//! A place for a cluster that leaves nothing behind: a directory, cgroups, and namespaces that end with the process inside.

use std::{
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

/// The first argument of the process inside.
pub const INSIDE: &str = "--inside";
/// Environment of the process inside: the directory that is its own.
pub const DIRECTORY: &str = "BEELINE_E2E_DIRECTORY";
/// Environment of the process inside: what its cgroups are called in each hierarchy.
pub const CGROUP: &str = "BEELINE_E2E_CGROUP";

/// Makes the place, and runs this program again inside of it with the same arguments. Whatever becomes of that process, all
/// that it started ends with it, since it is the first of a process namespace.
pub fn main(arguments: &[String]) -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("e2e: not root: a cluster needs namespaces and cgroups of its own");
        return ExitCode::FAILURE;
    }
    let place = Place::make().expect("a directory and cgroups");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation=private", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().expect("this program"))
        .arg(INSIDE)
        .args(arguments)
        .env(DIRECTORY, &place.directory)
        .env(CGROUP, &place.cgroup)
        // A signal of the terminal reaches this process alone, which ends the others in order.
        .process_group(0);
    let mut child = command.spawn().expect("the command unshare (package util-linux)");
    let status = Signals::new().watch(&mut child);
    let succeeded = status.is_some_and(|status| status.success());
    place.remove(succeeded);
    if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// SIGINT and SIGTERM, which would otherwise leave cgroups behind.
struct Signals(tokio::runtime::Runtime);

impl Signals {
    fn new() -> Self {
        Self(tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"))
    }

    /// The status of a child; none if it was ended because this process shall end.
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
            // `unshare --kill-child` takes the process inside with it.
            child.kill().expect("our own child");
            child.wait().expect("our own child");
            None
        })
    }
}

struct Place {
    directory: PathBuf,
    cgroup: String,
}

impl Place {
    fn make() -> io::Result<Self> {
        let cgroup = format!("beeline-e2e-{}", std::process::id());
        let directory = std::env::temp_dir().join(&cgroup);
        fs::create_dir_all(directory.join("log"))?;
        for Hierarchy { mount, .. } in hierarchies() {
            fs::create_dir(mount.join(&cgroup))?;
            copy_cpuset(&mount, &cgroup)?;
            // The stories are about Beeline, and not about what else the machine does meanwhile: all that the cluster runs
            // together weighs as much as eight programs elsewhere.
            let shares = mount.join(&cgroup).join("cpu.shares");
            if shares.is_file() {
                fs::write(shares, "8192")?;
            }
        }
        Ok(Self { directory, cgroup })
    }

    /// Logs of a run that failed are kept.
    fn remove(&self, succeeded: bool) {
        for Hierarchy { mount, .. } in hierarchies() {
            let path = mount.join(&self.cgroup);
            let gone = (0..100).any(|_| {
                let gone = remove_cgroup(&path).is_ok();
                if !gone {
                    std::thread::sleep(Duration::from_millis(50));
                }
                gone
            });
            if !gone {
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
    /// Where.
    pub mount: PathBuf,
    /// `cgroup` or `cgroup2`.
    pub kind: String,
    /// Its controllers, for version 1.
    pub options: String,
}

/// All that this machine has mounted.
pub fn hierarchies() -> Vec<Hierarchy> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc");
    let hierarchy = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, mount, kind @ ("cgroup" | "cgroup2"), options, ..] = words.as_slice() else { return None };
        // Flags of the mount come first, and are none of the hierarchy's.
        let is_its_own = |option: &&str| !matches!(*option, "rw" | "ro" | "relatime" | "nosuid" | "nodev" | "noexec");
        let options = options.split(',').filter(is_its_own).collect::<Vec<_>>().join(",");
        Some(Hierarchy { mount: PathBuf::from(mount), kind: (*kind).to_owned(), options })
    };
    mounts.lines().filter_map(hierarchy).collect()
}

/// A child of the cpuset hierarchy takes no process before it has CPUs and memory.
pub fn copy_cpuset(parent: &Path, child: &str) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(file), parent.join(child).join(file));
        if from.is_file() && to.is_file() {
            fs::write(to, fs::read(from)?)?;
        }
    }
    Ok(())
}

fn remove_cgroup(cgroup: &Path) -> io::Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    for child in fs::read_dir(cgroup)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&child.path())?;
    }
    fs::remove_dir(cgroup)
}

//! A process that removes what a killed owner leaves behind.

use std::{
    io,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

/// Removes cgroup ($1; empty for none) and directory ($2), and kills the processes in the cgroup and those whose
/// arguments name the directory, when the owner has ended, however it did: then its end of the pipe closes.
const SCRIPT: &str = "read -r _
for _ in 1 2 3 4 5 6 7 8 9 10; do
  [ -e \"$1\" ] || break
  find \"$1\" -name cgroup.procs -exec cat {} + | xargs -r kill -9
  sleep 0.1
  find \"$1\" -depth -type d -exec rmdir {} +
done 2> /dev/null
grep -slF -- \"$2\" /proc/[0-9]*/cmdline | cut -d/ -f3 | grep -vx $$ | xargs -r kill -9 2> /dev/null
rm -rf \"$2\"";

/// The owner's hold on the process, which ends with it.
pub struct Guard(Child);

impl Guard {
    /// Starts a process that removes the cgroup and the directory, and kills their processes.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn of(cgroup: Option<&Path>, directory: &Path) -> io::Result<Self> {
        let mut guard = Command::new("sh");
        guard.args(["-c", SCRIPT, "guard"]).arg(cgroup.unwrap_or(Path::new(""))).arg(directory).stdin(Stdio::piped());
        // A signal of the terminal ends the owner, and not its guard.
        Ok(Self(guard.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn()?))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ended = self.0.wait();
    }
}

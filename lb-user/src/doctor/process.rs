//! Processes in /proc: holders of BPF programs, processes by name, and their network namespaces.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt as _, path::Path};

use lb_kernel::process::{Process, comm, entries, processes};

/// Finds, for each program, the first process with a descriptor of the program or of a link to it. Programs held by a
/// pin alone have none.
pub(super) fn holders(proc: &Path, programs: &[u32]) -> BTreeMap<u32, Process> {
    let mut holders = BTreeMap::new();
    for (pid, process) in processes(proc) {
        for descriptor in entries(&process.join("fd")) {
            let link = fs::read_link(&descriptor).unwrap_or_default();
            let is_held = ["anon_inode:bpf-prog", "anon_inode:bpf_link"].map(Path::new).contains(&link.as_path());
            let info = descriptor.file_name().map(|number| process.join("fdinfo").join(number)).filter(|_| is_held);
            let Some(program) = info.and_then(|info| program_id(&fs::read_to_string(info).ok()?)) else { continue };
            if programs.contains(&program) {
                holders.entry(program).or_insert_with(|| Process { pid, comm: comm(&process).unwrap_or_default() });
            }
        }
    }
    holders
}

/// Lists the processes with this name, by pid.
pub(crate) fn named(proc: &Path, name: &str) -> Vec<u32> {
    processes(proc)
        .into_iter()
        .filter(|(_, process)| comm(process).as_deref() == Some(name))
        .map(|(pid, _)| pid)
        .collect()
}

/// Returns the inode of a process's network namespace. `process` is a pid or `self`; `None` if it has ended.
pub(crate) fn network_namespace(process: &str) -> Option<u64> {
    Some(fs::metadata(format!("/proc/{process}/ns/net")).ok()?.ino())
}

/// Returns the program id in the text of /proc/PID/fdinfo/FD.
fn program_id(info: &str) -> Option<u32> {
    info.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn programs_are_held_by_descriptors() {
        let proc = tempfile::tempdir().expect("a directory");
        let program = "pos:\t0\nprog_type:\t18\nprog_id:\t77\n";
        let link = "pos:\t0\nlink_type:\tcgroup\nlink_id:\t5\nprog_tag:\tab\nprog_id:\t78\n";
        let held = [
            ("20", "b\n", "anon_inode:bpf-prog", program),
            ("3", "a\n", "anon_inode:bpf_link", link),
            ("4", "b\n", "anon_inode:bpf-map", program),
        ];
        for (pid, comm, kind, info) in held {
            let process = proc.path().join(pid);
            fs::create_dir_all(process.join("fd")).expect("a directory");
            fs::create_dir_all(process.join("fdinfo")).expect("a directory");
            fs::write(process.join("comm"), comm).expect("a file");
            fs::write(process.join("fdinfo/5"), info).expect("a file");
            symlink(kind, process.join("fd/5")).expect("a link");
        }
        let owner = |pid, comm: &str| Process { pid, comm: comm.to_owned() };
        let wanted = BTreeMap::from([(77, owner(20, "b")), (78, owner(3, "a"))]);
        assert_eq!(holders(proc.path(), &[77, 78, 79]), wanted);
        assert!(holders(proc.path(), &[79]).is_empty());
        assert_eq!(named(proc.path(), "b"), [4, 20]);
    }
}

//! Causes and cures of errors from the kernel when programs are loaded and attached.

use std::{fs, io};

/// Call that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailedCall {
    /// `BPF_PROG_LOAD`.
    LoadProgram,
    /// Creating the qdisc `clsact` (RTM_NEWQDISC).
    AddClsact,
    /// Creating a `bpf` filter at `clsact` (RTM_NEWTFILTER).
    AddFilter,
}

/// Returns the cause of an error of this call and its cure, if a cause is known.
#[must_use]
pub fn explain(call: FailedCall, error: &io::Error) -> Option<String> {
    cause(call, error.raw_os_error()?, &BpfSettings::read())
}

/// Settings of the kernel that are the cause of some errors.
#[derive(Default)]
struct BpfSettings {
    /// net.core.bpf_jit_limit (bytes). `None` if it cannot be read.
    jit_limit: Option<u64>,
    /// Lockdown mode in effect: `none`, `integrity` or `confidentiality`. `None` if it cannot be read.
    lockdown: Option<String>,
}

impl BpfSettings {
    /// Reads the settings from /proc and securityfs.
    fn read() -> Self {
        let text = |path| fs::read_to_string(path).ok();
        Self {
            jit_limit: text("/proc/sys/net/core/bpf_jit_limit").and_then(|text| text.trim().parse().ok()),
            lockdown: text("/sys/kernel/security/lockdown").and_then(|text| lockdown_mode(&text)),
        }
    }
}

/// Returns the mode in brackets, such as in `none [integrity] confidentiality` (security/lockdown/lockdown.c).
fn lockdown_mode(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// `ENOTSUPP` of the kernel, which is no errno of user space and prints as "Unknown error 524".
const ENOTSUPP: i32 = 524;

fn cause(call: FailedCall, errno: i32, settings: &BpfSettings) -> Option<String> {
    let lockdown = settings.lockdown.as_deref().filter(|mode| *mode != "none");
    match (call, errno, lockdown) {
        // Without an interpreter (CONFIG_BPF_JIT_ALWAYS_ON) a program that the JIT does not compile is refused
        // (kernel/bpf/core.c: bpf_prog_select_runtime, bpf_jit_charge_modmem).
        (FailedCall::LoadProgram, ENOTSUPP, _) => {
            let (now, more) = settings.jit_limit.map_or_else(
                || (String::new(), "528482304".to_owned()),
                |limit| (format!(" ({limit} bytes)"), limit.saturating_mul(2).to_string()),
            );
            Some(format!(
                "the JIT has no memory left for another program: net.core.bpf_jit_limit{now} is used up; raise it with \
                 `sysctl -w net.core.bpf_jit_limit={more}`, or remove programs (`bpftool prog list`)"
            ))
        }
        (FailedCall::LoadProgram, libc::EPERM, Some(mode)) => Some(format!(
            "kernel lockdown ({mode}) refuses BPF programs; remove `lockdown=` from the kernel's command line, or \
             disable Secure Boot (`cat /sys/kernel/security/lockdown` shows the mode)"
        )),
        (FailedCall::LoadProgram, libc::EPERM, None) => Some(
            "the process lacks capabilities: run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON \
             (CAP_SYS_ADMIN before Linux 5.8)"
                .to_owned(),
        ),
        (FailedCall::LoadProgram, libc::ENOSYS, _) => {
            Some("the kernel has no bpf(2); use a kernel with CONFIG_BPF_SYSCALL".to_owned())
        }
        // net/sched/sch_api.c: qdisc_create.
        (FailedCall::AddClsact, libc::ENOENT, _) => Some(
            "the kernel has no clsact; load the module (`modprobe sch_ingress`), or use a kernel with \
             CONFIG_NET_SCH_INGRESS, or with tcx (6.6)"
                .to_owned(),
        ),
        // net/sched/cls_api.c: tcf_proto_lookup_ops.
        (FailedCall::AddFilter, libc::ENOENT, _) => Some(
            "the kernel has no BPF classifier; load the module (`modprobe cls_bpf`), or use a kernel with \
             CONFIG_NET_CLS_BPF, or with tcx (6.6)"
                .to_owned(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        FailedCall::{AddClsact, AddFilter, LoadProgram},
        *,
    };

    #[test]
    fn known_errors_name_the_setting_and_the_cure() {
        let settings = |lockdown: &str| BpfSettings { jit_limit: Some(1000), lockdown: Some(lockdown.to_owned()) };
        let unknown = BpfSettings::default();
        let none = settings("none");
        for (call, errno, settings, expected) in [
            (LoadProgram, ENOTSUPP, &none, Some("sysctl -w net.core.bpf_jit_limit=2000")),
            (LoadProgram, ENOTSUPP, &unknown, Some("sysctl -w net.core.bpf_jit_limit=528482304")),
            (LoadProgram, libc::EPERM, &settings("integrity"), Some("kernel lockdown (integrity)")),
            (LoadProgram, libc::EPERM, &none, Some("CAP_BPF")),
            (LoadProgram, libc::EPERM, &unknown, Some("CAP_BPF")),
            (LoadProgram, libc::ENOSYS, &unknown, Some("CONFIG_BPF_SYSCALL")),
            (LoadProgram, libc::EINVAL, &unknown, None),
            (AddClsact, libc::ENOENT, &unknown, Some("CONFIG_NET_SCH_INGRESS")),
            (AddFilter, libc::ENOENT, &unknown, Some("CONFIG_NET_CLS_BPF")),
            (AddFilter, libc::EPERM, &unknown, None),
        ] {
            let text = cause(call, errno, settings);
            match expected {
                None => assert_eq!(text, None, "{call:?} {errno}"),
                Some(expected) => assert!(text.as_ref().is_some_and(|text| text.contains(expected)), "{text:?}"),
            }
        }
    }

    #[test]
    fn the_lockdown_mode_is_in_brackets() {
        assert_eq!(lockdown_mode("none [integrity] confidentiality\n").as_deref(), Some("integrity"));
        assert_eq!(lockdown_mode("[none] integrity confidentiality\n").as_deref(), Some("none"));
        assert_eq!(lockdown_mode(""), None);
    }
}

//! Values that the loader sets before the programs are verified.

use aya_ebpf::Global;

/// 1 if the kernel has bpf_set_retval (5.18). Without it a refused call fails with EPERM.
#[unsafe(no_mangle)]
pub static SET_RETVAL: Global<u8> = Global::new(0);

/// 1 if the kernel has bpf_skc_to_mptcp_sock (6.0). Without it the entry of an MPTCP socket is that of a TCP socket.
#[unsafe(no_mangle)]
pub static MPTCP_SOCK: Global<u8> = Global::new(0);

/// 1 if programs at a cgroup may call bpf_probe_read_kernel: see `SockAddr::is_kept`.
#[unsafe(no_mangle)]
pub static PROBE_READ: Global<u8> = Global::new(0);

/// Generation of this load of the programs: see `Translation::is_forgotten_by`.
#[unsafe(no_mangle)]
pub static GENERATION: Global<u32> = Global::new(1);

/// Cookie of the node's network namespace; 0 if the kernel does not tell it (before 5.14): then the node's is the first
/// namespace.
#[unsafe(no_mangle)]
pub static HOST_NETNS: Global<u64> = Global::new(0);

/// 0 if pings of VIPs are ignored.
#[unsafe(no_mangle)]
pub static ANSWER_PINGS: Global<u8> = Global::new(1);

/// First source port for masqueraded packets.
#[unsafe(no_mangle)]
pub static SNAT_FIRST: Global<u16> = Global::new(1024);

/// Number of source ports for masqueraded packets.
#[unsafe(no_mangle)]
pub static SNAT_COUNT: Global<u32> = Global::new(28_976);

/// Elements of `OPENING` for each CPU.
#[unsafe(no_mangle)]
pub static OPENING_SLOTS: Global<u32> = Global::new(0);

/// Offset of `sk_err` in the kernel's `struct sock`, octets, for [`crate::ejection::socket_error`] only.
#[unsafe(no_mangle)]
pub static SK_ERR: Global<u32> = Global::new(0);

/// 1 if `FLOWS` may lack flows that `FLOWS_BEFORE` has.
#[unsafe(no_mangle)]
pub static FLOWS_MOVE: Global<u8> = Global::new(0);

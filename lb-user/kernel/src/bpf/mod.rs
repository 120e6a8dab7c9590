//! Calls of bpf(2) on plain descriptors and paths.
//!
//! aya has some of these calls as well, but only as methods of objects that it has created or loaded itself: a map that
//! it opens by type, a program of an `Ebpf`, a link that ends with its program. Beeline works on pins that outlive the
//! process and that another version of it may have made, so a descriptor is all there is. aya 0.14 has no call at all
//! for batches, `BPF_LINK_DETACH`, the query of a cgroup's effective programs, and a TCX or cgroup link's device or
//! cgroup.

mod batch;
mod elements;
pub mod errors;
mod features;
mod links;
mod pins;
mod pod;
mod programs;
mod query;
mod syscall;
pub mod typed;

pub use batch::{BatchError, count};
pub use elements::{delete, each_key, lookup, put_socket, update};
pub use features::{has_mptcp_sock, has_probe_read};
pub use links::{
    CgroupLink, SocketLookupLink, TcxLink, attach_cgroup, attach_socket_lookup, attach_tcx, attach_tracepoint,
    cgroup_link, detach_link, link_program, socket_lookup_link, tcx_link, update_link,
};
pub use pins::{open_pin, pin};
pub use pod::from_bytes;
pub use programs::{load_classifier, load_connect4, run_classifier};
pub use query::{has_tcx, programs_at, programs_at_device, programs_at_socket_lookup};

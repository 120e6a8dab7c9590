//! Attachment of programs: links at the cgroup for the socket path, TCX links or clsact filters (kernels before 6.6) at
//! network devices for the packet path, a link at the node's look-up of sockets, and the programs of ejection.

pub mod cgroup;
pub mod clsact;
pub mod ejection;
pub mod socket_lookup;
pub mod tc;

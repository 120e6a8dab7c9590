//! Calls of the kernel: bpf(2), netlink, sock_diag, netfilter, network namespaces. The only user-space crate with
//! `unsafe`; it knows nothing of Services.

pub mod allocator;
pub mod async_fd;
pub mod bpf;
pub mod clock;
pub mod device_options;
pub mod netfilter;
pub mod netlink;
pub mod netns;
pub mod packet_socket;
pub mod process;
pub mod sink;
pub mod sock_diag;
pub mod socket_options;
pub mod tun;
pub mod unshare;

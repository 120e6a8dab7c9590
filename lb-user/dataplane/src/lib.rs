//! The eBPF dataplane: environment, loading and upgrade, attachment to cgroup and devices, flows, and the maps as a
//! store.

pub mod announced_addresses;
pub mod announced_routes;
pub mod api_servers;
pub mod attach;
pub mod balancer_addresses;
pub mod bpffs;
mod btf;
pub mod cgroups;
pub mod cleanup;
pub mod cluster_ranges;
pub mod damage;
pub mod devices;
pub mod environment;
pub mod flows;
mod integrity;
pub mod kube_proxy;
pub mod listeners;
pub mod load;
pub mod log;
pub mod netns_addrs;
mod pinned;
pub mod pins;
mod pod_modes;
pub mod sockets;
pub mod stats;
pub mod store;
pub mod upgrade;
pub mod watch;

//! The laboratory of Beeline's tests, benches and demo: namespaces, networks, processes, an API server, kube-proxy,
//! packets.
//!
//! | Module | Provides |
//! |---|---|
//! | [`netns`], [`link`] | a network namespace; links, addresses and routes in it |
//! | [`network`], [`places`] | two nodes with pods, and a client outside, built from these; hosts by other devices |
//! | [`tunnel`] | a tunnel between two namespaces |
//! | [`neighbour_client`] | a client that asks all the time who answers for addresses, by ARP and NDP |
//! | [`sandbox`], [`machine`] | cgroup, directory, bpffs and namespaces for a process, or for a node with several |
//! | [`process`] | a program with a log, killed when dropped |
//! | [`api_server`], [`kube_proxy`], [`relay`] | the real control plane and the real kube-proxy |
//! | `api_client` (feature `api-client`) | objects on that API server, by the thousand |
//! | `packets` (feature `packets`) | the tc programs, one packet at a time |
//! | [`rng`] | random numbers from a seed |
//! | [`watchdog`] | the time that a busy machine loses |
//! | [`table`], [`traffic`] | the tables of the benches, and their connections |
//!
//! Functions panic on errors, since a test cannot continue without its environment. No dependency embeds the eBPF
//! object, so `xtask` can use this crate before that object exists.

#[cfg(feature = "api-client")]
pub mod api_client;
pub mod api_server;
mod guard;
pub mod kube_proxy;
pub mod link;
pub mod machine;
pub mod neighbour_client;
pub mod netns;
pub mod network;
#[cfg(feature = "packets")]
pub mod packets;
pub mod places;
pub mod process;
pub mod relay;
pub mod rng;
pub mod sandbox;
pub mod table;
pub mod traffic;
pub mod tunnel;
pub mod watchdog;

pub use netns::LabNamespace;
pub use process::ChildProcess;

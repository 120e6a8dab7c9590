//! The agent of Beeline and what its command line stands on.
//!
//! Data flows one way: [`sources`] feed [`event::Event`]s to the [`world`]; [`model`] compiles one Service at a time to
//! a [`spec::ServiceSpec`]; [`plan`] compares it with the [`shadow`] of the maps and returns [`op::Op`]s; a
//! [`store::Store`] performs them. Everything from the world to the plan is pure.

pub mod agent;
pub mod announce;
pub mod cleanup;
pub mod cli;
pub mod datapath;
pub mod devices;
pub mod doctor;
pub mod event;
pub mod few;
pub mod flows;
pub mod handover;
pub mod health;
pub mod health_ports;
pub mod http;
pub mod ids;
pub mod inspect;
pub mod live;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod netfilter;
pub mod netlink;
pub mod objects;
pub mod op;
pub mod paths;
pub mod plan;
pub mod ranges;
pub mod reaper;
pub mod reconcile;
pub mod shadow;
pub mod sockets;
pub mod sources;
pub mod spec;
pub mod store;
pub mod world;

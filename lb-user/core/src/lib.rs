//! The pure core of Beeline: from Kubernetes objects to the map writes that make them true.
//!
//! Data flows one way: [`event::Event`]s change the [`world`]; [`model`] compiles one Service at a time to a
//! [`spec::ServiceSpec`]; [`plan`] compares it with the [`shadow`] of the maps and returns [`op::Op`]s; a
//! [`store::Store`] performs them. No clock, file, socket, thread or randomness: time and ids are passed in.
#![forbid(unsafe_code)]

pub mod allot;
pub mod announce;
mod bloom;
pub mod event;
pub mod host_ports;
pub mod ids;
pub mod label_selector;
pub mod model;
pub mod objects;
pub mod op;
pub mod per_family;
pub mod plan;
pub mod port_ranges;
pub mod ranges;
pub mod shadow;
pub mod spec;
pub mod store;
pub mod text;
pub mod warning;
pub mod world;

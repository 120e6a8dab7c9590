//! The agent: reconciles objects into the maps, answers probes and scrapes, sends Events, ends stale sockets. [`run`]
//! wires these parts to the sources and the dataplane. [`run_balancer`] is the controller that allots load balancer
//! addresses, which needs no dataplane.

mod announcing;
mod balancer;
mod closed_sockets;
mod connection_age;
mod ejections;
mod events;
mod health;
mod health_ports;
mod histogram;
mod http;
pub mod metrics;
pub mod reconcile;
mod termination;
mod wiring;

pub use announcing::{AnnounceOptions, lease::read as read_announcers};
pub use balancer::{BalancerConfig, Served, preview, run_balancer};
pub use http::BindAddress;
pub use wiring::{Config, Source, run};

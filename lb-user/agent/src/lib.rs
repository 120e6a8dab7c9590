//! The agent: passes over the objects, health, metrics, Events, the end of sockets, and the wiring of all parts.

pub mod agent;
pub mod events;
pub mod health;
pub mod health_ports;
pub mod http;
pub mod metrics;
pub mod reconcile;
pub mod termination;

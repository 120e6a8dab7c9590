//! Packets through the programs at tc, one at a time: what comes out, octet by octet, and what stands in `FLOWS` then.
//! Only root may run them.

#[path = "packets/choice.rs"]
mod choice;
#[path = "packets/cost.rs"]
mod cost;
#[path = "packets/errors.rs"]
mod errors;
#[path = "packets/family.rs"]
mod family;
#[path = "packets/fragments.rs"]
mod fragments;
#[path = "packets/full.rs"]
mod full;
#[path = "packets/hops.rs"]
mod hops;
#[path = "packets/host_routing.rs"]
mod host_routing;
#[path = "packets/live.rs"]
mod live;
#[path = "packets/neighbours.rs"]
mod neighbours;
#[path = "packets/netfilter.rs"]
mod netfilter;
#[path = "packets/outside.rs"]
mod outside;
#[path = "packets/pods.rs"]
mod pods;
#[path = "packets/ports.rs"]
mod ports;
#[path = "packets/refusals.rs"]
mod refusals;
#[path = "packets/sizes.rs"]
mod sizes;
#[path = "packets/states.rs"]
mod states;
#[path = "support/packets/mod.rs"]
mod support;
#[path = "packets/untouched.rs"]
mod untouched;

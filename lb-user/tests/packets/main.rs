//! Packets through the programs at tc, one at a time: the result, octet by octet, and the entries of `FLOWS`.
//! Only root may run them.

mod addresses;
mod announce;
mod choice;
mod cost;
mod errors;
mod fragmentation;
mod fragments;
mod full;
mod glance;
mod hops;
mod host_ports;
mod host_routing;
mod limit;
mod live;
mod neighbours;
mod netfilter;
mod other_hosts;
mod outside;
mod own;
mod places;
mod pods;
mod port_ranges;
mod ports;
mod refusals;
mod sizes;
mod slow_path;
mod states;
mod untouched;
mod vips;

use lb_dataplane::upgrade::programs::OBJECT;
use lb_lab::packets::{Fixture, FixtureSizes};

/// Moves this thread to a new node with the programs.
fn enter() -> Fixture {
    Fixture::enter(OBJECT)
}

/// As [`enter`], with smaller maps or fewer ports.
fn enter_with(sizes: FixtureSizes) -> Fixture {
    Fixture::enter_with(OBJECT, sizes)
}

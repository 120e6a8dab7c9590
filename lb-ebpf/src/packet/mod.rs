//! The packet path: translation of packets at a device. Flows are looked up before Services, so that a known flow
//! continues whatever Services and endpoints have become.
//!
//! The stages are called one after the other by `entry`, and pass on their results in `scratch::Scratch`: the frames of
//! functions that call each other share 512 bytes of stack.
#![expect(clippy::needless_borrows_for_generic_args, reason = "by value, keys and flows would be copied to the stack")]

mod announce;
mod clock;
mod early;
mod entry;
mod flow;
mod flow_ends;
mod fragment;
mod glance;
mod icmp;
mod limit;
mod new_flow;
mod opening;
mod own;
mod packet_link;
mod parse;
mod ports;
mod reject;
mod route;
mod scratch;
mod send;
mod sender;
mod skb;
mod socket_lookup;
mod verdict;
mod vip;
mod watch;

pub use entry::{egress, ingress};
pub use socket_lookup::look_up;

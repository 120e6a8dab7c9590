//! Sockets of a network namespace, listed and ended by sock_diag(7).

mod bound;
mod channel;
mod filter;
mod message;
mod own;
mod probe;

pub use bound::{Bound, Owner, bound};
pub use channel::{Channel, Ended};
pub use filter::Filter;
pub use message::{Name, Query, Socket, state};
pub use own::{can_end, find_own};
pub use probe::Probe;

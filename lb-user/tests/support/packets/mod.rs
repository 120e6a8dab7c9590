//! The programs at tc without an agent: loaded over maps that are filled by hand, and run on one packet at a time
//! (BPF_PROG_TEST_RUN), among devices and routes of a network namespace of their own. Nothing is attached, nothing pinned.

pub mod cost;
mod flows;
mod object;
pub mod packet;
mod services;
pub mod site;
mod wire;
mod world;

pub use object::Sizes;
pub use packet::{Packet, Part, Trouble};
pub use services::Wanted;
pub use wire::{FarEnd, without_offloads};
pub use world::{Ran, World};

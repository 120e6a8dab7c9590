//! The programs at tc without an agent: loaded over maps that are filled by hand, and run on one packet at a time
//! (BPF_PROG_TEST_RUN), among devices and routes of a network namespace of their own. Nothing is attached, nothing
//! pinned.

pub mod cost;
mod far_end;
mod fixture;
mod flows;
pub mod node;
mod object;
pub mod packet;
mod services;

pub use far_end::FarEnd;
pub use fixture::{Fixture, PacketOutcome};
pub use object::{FixtureSizes, TcPrograms};
pub use packet::{IcmpReason, PacketSpec, Part};
pub use services::{FixtureService, ProgrammedService};

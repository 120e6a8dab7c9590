//! The command line of Beeline: the agent's flags, and the commands that read the pins.

pub mod cli;
pub mod doctor;
pub mod handover;
pub mod inspect;
pub mod snapshot;

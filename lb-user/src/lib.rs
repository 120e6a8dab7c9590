//! The command line of Beeline: the agent's flags, and the commands that read the pins.

pub mod cli;
mod doctor;
mod handover;
mod inspect;
mod trace;
mod watch;

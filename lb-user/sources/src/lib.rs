//! Where objects come from, and the addresses of the node. Sources parse and never interpret.

pub mod addresses;
pub mod api;
pub mod convert;
pub mod directory;
pub mod kubernetes;

pub mod yaml;

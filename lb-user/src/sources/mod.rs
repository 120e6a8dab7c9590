//! Where objects come from. Sources parse and never interpret.

pub mod convert;
pub mod directory;
pub mod kubernetes;
pub mod wire;
pub mod yaml;

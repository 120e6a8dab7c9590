//! Sources of objects and of the node's addresses. They parse, and leave all decisions to `lb_core::model`.

pub mod addresses;
pub mod api;
pub mod convert;
pub mod directory;
pub mod import;
pub mod kubernetes;
pub mod probes;
pub mod yaml;

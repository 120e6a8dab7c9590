//! What the property tests stand on.

pub mod tape;
pub mod text;
pub mod worlds;

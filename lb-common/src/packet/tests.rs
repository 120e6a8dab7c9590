//! The packet functions against packets and checksums of another's making (etherparse): invariant I11.

mod bytes;
mod errors;
mod made;
mod parsing;
mod replies;
mod rewriting;

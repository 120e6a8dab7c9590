//! Property tests of the path from objects to map writes: random histories, malformed objects, garbled files.
//! `PROPTEST_CASES` sets the number of cases of each.

mod arbitrary;
mod content;
mod garbled;
mod histories;
mod malformed;
mod reads;
mod recording_store;
mod worlds;

//! Property tests of the path from objects to map writes: random histories, arbitrary objects, garbled files.
//! `PROPTEST_CASES` sets how many cases each of them tries.

mod arbitrary;
mod garbled;
mod histories;
mod tape;
mod text;
mod wild;
mod worlds;

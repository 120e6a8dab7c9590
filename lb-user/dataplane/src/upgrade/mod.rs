//! Start over pinned maps, of this layout or another: `pins` says what is there, `btf_fingerprint` what each map holds,
//! `adopt` what goes over from another version, `programs` loads and attaches over the result.

pub mod adopt;
pub mod btf_fingerprint;
pub mod pins;
pub mod programs;

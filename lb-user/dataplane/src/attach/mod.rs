//! Programs at network devices: by TCX links, or by clsact filters on kernels before 6.6.

pub mod clsact;
pub mod tc;

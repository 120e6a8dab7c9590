//! Events of `beeline watch`: the programs' records, joined with the results of handshakes and with names. Pure: the
//! command reads records, maps and clocks.

mod client;
mod event;
mod filter;
mod follow;
mod summary;

pub use client::{PodUid, WatchClient, pod_uid};
pub use event::{PortName, WatchEvent, duration_text, quoted};
pub use filter::WatchFilter;
pub use follow::{Follower, Handshake, Outcome, RESULT_TIMEOUT};
pub use summary::WatchSummary;

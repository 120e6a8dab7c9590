//! The state of announcing, for metrics and the agent's end.

use lb_core::announce::{Held, Node};

/// The state of announcing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct AnnouncingState {
    /// Addresses that this node announces, and until when.
    pub(crate) held: Held,
    /// Number of announcers.
    pub(crate) members: usize,
    /// Announcers from which nothing is heard.
    pub(crate) silent: Vec<Node>,
    /// Times that this node was too late to renew its addresses.
    pub(crate) lapses: u64,
    /// Permits that this node has refused.
    pub(crate) refused: u64,
    /// Datagrams that were read.
    pub(crate) received: u64,
    /// Datagrams that no key verifies.
    pub(crate) unsigned: u64,
    /// Datagrams with a right signature that are of no known form.
    pub(crate) unreadable: u64,
    /// Writes of the Lease.
    pub(crate) lease_writes: u64,
    /// The last error, while it lasts.
    pub(crate) error: Option<String>,
}

//! Result of asking an API server for its version, for `beeline doctor`.

use std::time::Duration;

/// Result of one request to an API server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerReport {
    /// URL of the server.
    pub url: String,
    /// The server's answer, or the reason for its absence.
    pub result: Result<ServerInfo, String>,
}

/// Version and clock of an API server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerInfo {
    /// Kubernetes version.
    pub version: String,
    /// Time from request to answer.
    pub latency: Duration,
    /// Seconds that this node's clock is ahead of the server's; None if the answer has no date.
    pub clock_ahead: Option<i64>,
}

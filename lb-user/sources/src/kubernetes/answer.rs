//! The answer of an API server that was asked for its version.

use std::time::Duration;

/// How an API server answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Its URL.
    pub url: String,
    /// What it said, or why it said nothing.
    pub said: Result<Said, String>,
}

/// What an API server said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    /// Its version.
    pub version: String,
    /// How long that took.
    pub took: Duration,
    /// How many seconds our clock is ahead of its, if it tells the time.
    pub ahead: Option<i64>,
}

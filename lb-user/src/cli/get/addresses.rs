//! `beeline get addresses`: load balancer addresses, and whether this node announces them.

use std::path::Path;

use anyhow::Result;

use super::Row;
use crate::inspect::{self, AddressRow};
use lb_dataplane::announced_addresses::{self, boot_time_ns};

/// Reads the pinned maps.
pub(super) fn read(pins: &Path) -> Result<Vec<AddressRow>> {
    let announced = announced_addresses::read(pins)?;
    Ok(inspect::addresses(&super::super::dump(pins)?, &announced, boot_time_ns()))
}

impl Row for AddressRow {
    const HEAD: &'static [&'static str] = &["ADDRESS", "ANNOUNCED", "DEADLINE", "SINCE", "SERVICES"];
    const WIDE: &'static [&'static str] = &[];

    fn cells(&self) -> Vec<String> {
        let deadline = match (self.announced_here, self.deadline_milliseconds) {
            (false, _) => "-".to_owned(),
            (true, None) => "none".to_owned(),
            (true, Some(milliseconds)) => format!("{milliseconds}ms"),
        };
        let services = if self.services.is_empty() { "-".to_owned() } else { self.services.join(",") };
        vec![
            self.address.to_string(),
            if self.announced_here { "here" } else { "not here" }.to_owned(),
            deadline,
            self.since_seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds}s")),
            services,
        ]
    }

    fn wide(&self) -> Vec<String> {
        Vec::new()
    }
}

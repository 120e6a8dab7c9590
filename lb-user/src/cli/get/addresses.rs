//! `beeline get addresses`: load balancer addresses, and whether this node announces them.

use std::path::Path;

use anyhow::Result;
use lb_common::{Addr, Announced};

use super::Row;
use crate::inspect::{self, AddressRow};
use lb_kernel::{bpf::typed::TypedMap, clock};

/// Reads the pinned maps.
pub(super) fn read(pins: &Path) -> Result<Vec<AddressRow>> {
    let announced = TypedMap::<Addr, Announced>::open(pins, "ANNOUNCED")?.read()?;
    let until = TypedMap::<u32, u64>::open(pins, "ANNOUNCED_UNTIL")?.get(&0)?.unwrap_or_default();
    Ok(inspect::addresses(&super::super::dump(pins)?, &announced, until, clock::boot_time_ns()))
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

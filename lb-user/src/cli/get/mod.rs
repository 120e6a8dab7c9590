//! `beeline get`: rows of the maps as a table, JSON or YAML.

mod addresses;
mod devices;
mod flows;
mod pod_modes;

use std::path::Path;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::table;
use crate::inspect::{self, BackendRow, CounterRow, FrontendRow, ServiceRow};
use lb_core::port_ranges::{PortSpan, offset_text};
use lb_core::text::number;
use lb_dataplane::stats::{self, LiveIds, StatMaps};
use lb_kernel::clock;

/// Arguments of `beeline get`.
#[derive(Args)]
#[command(after_help = "Examples:\n  beeline get services\n  beeline get backends -o json\n  \
                  beeline get frontends -o wide\n  beeline get flows --service default/web --client 192.0.2.0/24")]
pub(super) struct GetArgs {
    /// Rows to show.
    #[arg(value_name = "ROWS")]
    resource: Resource,
    /// Form of the output.
    #[arg(short, long, default_value = "table", value_name = "FORM")]
    output: TableFormat,
    #[command(flatten)]
    filter: flows::FlowArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Resource {
    /// Service ports: frontends, number of backends, counts of sockets.
    #[value(alias = "service", alias = "svc")]
    Services,
    /// Addresses and ports that clients dial.
    #[value(alias = "frontend")]
    Frontends,
    /// Endpoints in the backend lists, and the sockets that hold them.
    #[value(alias = "backend")]
    Backends,
    /// Counters of the programs: refusals by cause, full maps, moved UDP sockets.
    #[value(alias = "counter")]
    Counters,
    /// Flows of the packet path: client, VIP, backend, state, expiry.
    #[value(alias = "flow")]
    Flows,
    /// Network devices with programs, and the kind of attachment.
    #[value(alias = "device")]
    Devices,
    /// Load balancer addresses, and whether this node announces them on the link.
    #[value(alias = "address")]
    Addresses,
    /// Pods with a mode other than `socket`, and the object with the label.
    #[value(alias = "pod-mode", alias = "paths", alias = "path")]
    PodModes,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TableFormat {
    /// Columns of text.
    Table,
    /// Columns of text, with more columns.
    Wide,
    /// A JSON array.
    Json,
    /// A YAML sequence.
    Yaml,
}

pub(super) fn render(pins: &Path, arguments: &GetArgs) -> Result<String> {
    let output = arguments.output;
    let stats = || StatMaps::open(pins)?.read();
    if arguments.resource != Resource::Flows {
        arguments.filter.ensure_unset()?;
    }
    match arguments.resource {
        Resource::Services => rows(&inspect::services(&super::dump(pins)?, &stats()?), output),
        Resource::Frontends => rows(&inspect::frontends(&super::dump(pins)?), output),
        Resource::Backends => {
            let mut stats = stats()?;
            stats.ejected_backends =
                StatMaps::open(pins)?.ejected_backends(&LiveIds::open(pins)?, clock::monotonic_ns())?;
            rows(&inspect::backends(&super::dump(pins)?, &stats), output)
        }
        Resource::Counters => rows(&inspect::counters(&stats::counters(pins)?), output),
        Resource::Flows => rows(&flows::read(pins, &arguments.filter)?, output),
        Resource::Addresses => rows(&addresses::read(pins)?, output),
        Resource::Devices => rows(&devices::read(pins)?, output),
        Resource::PodModes => rows(&pod_modes::read(pins)?, output),
    }
}

/// Row of a table: cells, and further cells of a wide table.
trait Row: Serialize {
    const HEAD: &'static [&'static str];
    /// Heads of the further cells.
    const WIDE: &'static [&'static str];
    fn cells(&self) -> Vec<String>;
    fn wide(&self) -> Vec<String>;
}

fn rows<R: Row>(rows: &[R], output: TableFormat) -> Result<String> {
    match output {
        TableFormat::Json => Ok(serde_json::to_string_pretty(rows)? + "\n"),
        TableFormat::Yaml => Ok(serde_saphyr::to_string(&rows)?),
        TableFormat::Table | TableFormat::Wide => {
            let wide = output == TableFormat::Wide;
            let head = R::HEAD.iter().chain(if wide { R::WIDE } else { &[] });
            let cells = rows.iter().map(|row| {
                let more = if wide { row.wide() } else { Vec::new() };
                row.cells().into_iter().chain(more).collect()
            });
            Ok(table::text(&head.copied().map(table::Column::left).collect::<Vec<_>>(), &cells.collect::<Vec<_>>()))
        }
    }
}

impl Row for ServiceRow {
    const HEAD: &'static [&'static str] =
        &["NAMESPACE", "NAME", "PORT", "PROTOCOL", "FRONTENDS", "BACKENDS", "CONNECTIONS", "OPEN", "REFUSED"];
    const WIDE: &'static [&'static str] = &[
        "NO ENDPOINTS",
        "NO LOCAL ENDPOINTS",
        "MOVED",
        "KILLED",
        "LOCAL",
        "INTERNAL POLICY",
        "EXTERNAL POLICY",
        "SOURCES",
        "SCHEDULER",
        "AFFINITY",
        "DRAIN",
        "ID",
    ];

    fn cells(&self) -> Vec<String> {
        let port = if self.port.is_empty() { "-".to_owned() } else { self.port.clone() };
        vec![
            self.namespace.clone(),
            self.name.clone(),
            port,
            self.protocol.to_owned(),
            self.frontends.join(","),
            self.backends.to_string(),
            self.counts.connections.to_string(),
            self.counts.open.to_string(),
            self.counts.refused.to_string(),
        ]
    }

    fn wide(&self) -> Vec<String> {
        let affinity = if self.affinity_seconds == 0 { "-".to_owned() } else { format!("{}s", self.affinity_seconds) };
        let drain = match self.drain_seconds {
            None => "never".to_owned(),
            Some(0) => "at once".to_owned(),
            Some(seconds) => format!("{seconds}s"),
        };
        vec![
            self.counts.no_endpoints.to_string(),
            self.counts.no_local_endpoints.to_string(),
            self.counts.moved.to_string(),
            self.counts.killed.to_string(),
            self.local_backends.to_string(),
            self.internal_traffic_policy.to_owned(),
            self.external_traffic_policy.to_owned(),
            if self.source_ranges { "ranges" } else { "all" }.to_owned(),
            self.scheduler.to_owned(),
            affinity,
            drain,
            self.id.to_string(),
        ]
    }
}

impl Row for FrontendRow {
    const HEAD: &'static [&'static str] = &["ADDRESS", "PORT", "PROTOCOL", "KIND", "SERVICE"];
    const WIDE: &'static [&'static str] = &["SERVICE ID"];

    fn cells(&self) -> Vec<String> {
        let (protocol, kind) = (self.protocol.to_owned(), self.kind.to_owned());
        let port = match (self.port, self.last_port) {
            (Some(first), Some(last)) => PortSpan { first, last }.to_string(),
            (Some(port), None) => port.to_string(),
            (None, _) => "any".to_owned(),
        };
        vec![self.address.clone(), port, protocol, kind, self.service.clone()]
    }

    fn wide(&self) -> Vec<String> {
        vec![self.service_id.to_string()]
    }
}

impl Row for BackendRow {
    const HEAD: &'static [&'static str] =
        &["SERVICE", "ADDRESS", "PORT", "WHERE", "WEIGHT", "OPEN", "CONNECTIONS", "FAILURES", "EJECTED"];
    const WIDE: &'static [&'static str] = &["LISTS", "ID"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            self.address.clone(),
            match (self.port, self.port_offset) {
                (Some(port), _) => port.to_string(),
                (None, Some(offset)) => offset_text(offset.cast_unsigned()),
                (None, None) => "-".to_owned(),
            },
            self.place.unwrap_or("-").to_owned(),
            self.weight.to_string(),
            self.open.to_string(),
            self.connections.to_string(),
            self.failures.to_string(),
            match self.ejected_by {
                0 => "-".to_owned(),
                count => format!("{}, {}s", number(count, "client"), self.ejected_for_seconds),
            },
        ]
    }

    fn wide(&self) -> Vec<String> {
        let lists = match self.lists.as_slice() {
            // In no list: sockets hold it, and new sockets do not get it.
            [] if self.place.is_some() => "kept".to_owned(),
            [] => "-".to_owned(),
            lists => lists.join(","),
        };
        vec![lists, self.id.to_string()]
    }
}

impl Row for CounterRow {
    const HEAD: &'static [&'static str] = &["COUNTER", "COUNT"];
    const WIDE: &'static [&'static str] = &[];

    fn cells(&self) -> Vec<String> {
        vec![self.counter.to_owned(), self.count.to_string()]
    }

    fn wide(&self) -> Vec<String> {
        Vec::new()
    }
}

//! `beeline get`: rows of the maps as a table, JSON or YAML.

use std::path::Path;

use anyhow::Result;
use clap::{Args, ValueEnum};
use comfy_table::{Table, presets::NOTHING};
use serde::Serialize;

use crate::{
    datapath,
    inspect::{self, BackendRow, CounterRow, FrontendRow, ServiceRow},
};

/// What to show, and how.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  beeline get services\n  beeline get backends -o json\n  beeline get frontends -o wide"
)]
pub(super) struct Arguments {
    /// What to show.
    what: What,
    /// Form of the output.
    #[arg(short, long, default_value = "table", value_name = "FORM")]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Service ports: frontends, number of backends, policy.
    #[value(alias = "service", alias = "svc")]
    Services,
    /// Addresses and ports that clients dial.
    #[value(alias = "frontend")]
    Frontends,
    /// Addresses and ports that answer.
    #[value(alias = "backend")]
    Backends,
    /// Events that the programs count: refusals by cause, overflows, moved UDP sockets.
    #[value(alias = "counter")]
    Counters,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Columns for people.
    Table,
    /// More columns.
    Wide,
    /// A JSON array.
    Json,
    /// A YAML sequence.
    Yaml,
}

pub(super) fn render(pins: &Path, arguments: &Arguments) -> Result<String> {
    let output = arguments.output;
    match arguments.what {
        What::Services => rows(&inspect::services(&super::dump(pins)?), output),
        What::Frontends => rows(&inspect::frontends(&super::dump(pins)?), output),
        What::Backends => rows(&inspect::backends(&super::dump(pins)?), output),
        What::Counters => rows(&inspect::counters(&datapath::counters(pins)?), output),
    }
}

/// A row as cells: those of every table, and those of a wide one.
trait Row: Serialize {
    const HEAD: &'static [&'static str];
    const WIDE: &'static [&'static str];
    fn cells(&self) -> Vec<String>;
    fn wide(&self) -> Vec<String>;
}

fn rows<R: Row>(rows: &[R], output: Output) -> Result<String> {
    match output {
        Output::Json => Ok(serde_json::to_string_pretty(rows)? + "\n"),
        Output::Yaml => Ok(serde_saphyr::to_string(&rows)?),
        Output::Table | Output::Wide => {
            let wide = output == Output::Wide;
            let mut table = Table::new();
            table.load_preset(NOTHING);
            table.set_header(R::HEAD.iter().chain(if wide { R::WIDE } else { &[] }));
            for row in rows {
                let more = if wide { row.wide() } else { Vec::new() };
                table.add_row(row.cells().into_iter().chain(more));
            }
            Ok(table.lines().fold(String::new(), |text, line| text + line.trim() + "\n"))
        }
    }
}

impl Row for ServiceRow {
    const HEAD: &'static [&'static str] = &["NAMESPACE", "NAME", "PORT", "PROTOCOL", "FRONTENDS", "BACKENDS"];
    const WIDE: &'static [&'static str] = &["LOCAL", "INTERNAL POLICY", "ID"];

    fn cells(&self) -> Vec<String> {
        let port = if self.port.is_empty() { "-".to_owned() } else { self.port.clone() };
        let backends = self.backends.to_string();
        vec![
            self.namespace.clone(),
            self.name.clone(),
            port,
            self.protocol.to_owned(),
            self.frontends.join(","),
            backends,
        ]
    }

    fn wide(&self) -> Vec<String> {
        vec![self.local_backends.to_string(), self.internal_traffic_policy.to_owned(), self.id.to_string()]
    }
}

impl Row for FrontendRow {
    const HEAD: &'static [&'static str] = &["ADDRESS", "PORT", "PROTOCOL", "KIND", "SERVICE"];
    const WIDE: &'static [&'static str] = &["SERVICE ID"];

    fn cells(&self) -> Vec<String> {
        let (protocol, kind) = (self.protocol.to_owned(), self.kind.to_owned());
        vec![self.address.clone(), self.port.to_string(), protocol, kind, self.service.clone()]
    }

    fn wide(&self) -> Vec<String> {
        vec![self.service_id.to_string()]
    }
}

impl Row for BackendRow {
    const HEAD: &'static [&'static str] = &["SERVICE", "ADDRESS", "PORT"];
    const WIDE: &'static [&'static str] = &["LISTS", "ID"];

    fn cells(&self) -> Vec<String> {
        vec![self.service.clone(), self.address.clone(), self.port.to_string()]
    }

    fn wide(&self) -> Vec<String> {
        vec![self.lists.join(","), self.id.to_string()]
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

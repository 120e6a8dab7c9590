//! Report of `beeline top`: two samples become rows with rates. Pure.

use std::{collections::BTreeMap, sync::Arc};

use lb_common::{Slot, SlotKey};
use serde::Serialize;

use super::sample::{Sample, ServicePort};
use crate::inspect::{self, BackendRow};
use lb_dataplane::stats::{Stats, counts::PortCounts};

/// Totals and service ports at the time of a sample.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// Pid of the running agent.
    pub(super) agent: Option<u32>,
    /// Time over which the rates were measured (s). `None` for the first sample.
    pub(super) seconds: Option<f64>,
    /// Number of Services.
    pub(super) services: usize,
    /// Number of backends that new sockets may get.
    pub(super) backends: u32,
    /// Number of sockets that hold a backend, including those of removed service ports.
    pub(super) open: u64,
    /// Rates of all service ports together.
    #[serde(flatten)]
    pub(super) rates: Option<Rates>,
    /// Service ports, by name.
    pub(super) ports: Vec<PortRow>,
}

/// Events per second.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rates {
    /// Backends given to sockets.
    pub(super) connections_per_second: f64,
    /// Refusals for any cause.
    pub(super) refused_per_second: f64,
    /// Refusals because no endpoint exists on any node.
    pub(super) no_endpoints_per_second: f64,
    /// Refusals because no endpoint exists on this node.
    pub(super) no_local_endpoints_per_second: f64,
}

/// A service port.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PortRow {
    /// Namespace and name of the Service.
    pub(super) service: String,
    /// Name, if any, and protocol of the port.
    pub(super) port: String,
    /// Id in the maps.
    pub(super) id: u32,
    #[serde(flatten)]
    pub(super) rates: Option<Rates>,
    #[serde(flatten)]
    pub(super) counts: PortCounts,
    /// Backends in the cluster list.
    pub(super) backends: u32,
}

/// A backend with its rate.
pub(super) struct RatedBackend {
    pub(super) row: BackendRow,
    /// Connections per second. `None` for the first sample.
    pub(super) rate: Option<f64>,
}

/// Makes a report of two samples; of the first sample, without rates.
pub(super) fn report(before: Option<&Sample>, now: &Sample) -> Report {
    let earlier = before.map(|before| (before, seconds(before, now)));
    let row = |port: &ServicePort| {
        let counts = now.counts.get(&port.id).copied().unwrap_or_default();
        let rates = earlier.map(|(before, seconds)| {
            // Ids are reused: the id may have been that of another service port.
            let is_same = Arc::ptr_eq(&before.served, &now.served)
                || before.served.dump.names.get(&port.id) == now.served.dump.names.get(&port.id);
            let earlier = before.counts.get(&port.id).filter(|_| is_same).copied().unwrap_or_default();
            Rates::of(&earlier, &counts, seconds)
        });
        let (service, name) = (port.service.clone(), port.port.clone());
        PortRow { service, port: name, id: port.id, rates, counts, backends: port.backends }
    };
    let ports: Vec<PortRow> = now.served.ports.iter().map(row).collect();
    Report {
        agent: now.agent,
        seconds: earlier.map(|(_, seconds)| rounded(seconds)),
        services: now.served.services,
        backends: now.served.backends,
        open: now.backend_stats.iter().map(|(_, backend)| backend.open).sum(),
        rates: earlier.map(|_| ports.iter().filter_map(|row| row.rates).fold(Rates::default(), Rates::plus)),
        ports,
    }
}

/// Lists the backends of a service port, with rates.
pub(super) fn backends(
    before: Option<&Sample>,
    now: &Sample,
    slots: &BTreeMap<SlotKey, Slot>,
    service: u32,
) -> Vec<RatedBackend> {
    let stats_of = |sample: &Sample| -> Stats {
        let backends = sample.backend_stats.iter().filter(|(_, stats)| stats.service == service).copied().collect();
        Stats { backends, ..Stats::default() }
    };
    let (earlier, stats) = (before.map(|before| (stats_of(before), seconds(before, now))), stats_of(now));
    let rated = |row: BackendRow| {
        let rate = earlier.as_ref().map(|(earlier, seconds)| {
            let earlier = earlier.backends.get(&row.id).map_or(0, |stats| stats.connections);
            rate(earlier, row.connections, *seconds)
        });
        RatedBackend { row, rate }
    };
    inspect::backends_of(&now.served.dump, slots, &stats, service).into_iter().map(rated).collect()
}

fn seconds(before: &Sample, now: &Sample) -> f64 {
    now.at.saturating_duration_since(before.at).as_secs_f64()
}

/// Returns events per second. A lower count is that of a new map, which counts from 0.
#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn rate(before: u64, now: u64, seconds: f64) -> f64 {
    let events = now.checked_sub(before).unwrap_or(now);
    if seconds > 0.0 { rounded(events as f64 / seconds) } else { 0.0 }
}

fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

impl Rates {
    fn of(before: &PortCounts, now: &PortCounts, seconds: f64) -> Self {
        let rate = |count: fn(&PortCounts) -> u64| rate(count(before), count(now), seconds);
        Self {
            connections_per_second: rate(|counts| counts.connections),
            refused_per_second: rate(|counts| counts.refused),
            no_endpoints_per_second: rate(|counts| counts.no_endpoints),
            no_local_endpoints_per_second: rate(|counts| counts.no_local_endpoints),
        }
    }

    fn plus(self, other: Self) -> Self {
        let sum = |a: f64, b: f64| rounded(a + b);
        Self {
            connections_per_second: sum(self.connections_per_second, other.connections_per_second),
            refused_per_second: sum(self.refused_per_second, other.refused_per_second),
            no_endpoints_per_second: sum(self.no_endpoints_per_second, other.no_endpoints_per_second),
            no_local_endpoints_per_second: sum(self.no_local_endpoints_per_second, other.no_local_endpoints_per_second),
        }
    }
}

/// Formats a rate.
pub(super) fn format_rate(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"))
}

impl PortRow {
    /// Returns connections per second; 0 in the first report.
    pub(super) fn rate(&self) -> f64 {
        self.rates.map_or(0.0, |rates| rates.connections_per_second)
    }

    /// Returns refusals per second; 0 in the first report.
    pub(super) fn refused_rate(&self) -> f64 {
        self.rates.map_or(0.0, |rates| rates.refused_per_second)
    }

    /// Returns the cells, in the order of the columns.
    pub(super) fn cells(&self) -> [String; 10] {
        let rate = |of: fn(&Rates) -> f64| format_rate(self.rates.as_ref().map(of));
        [
            self.service.clone(),
            self.port.clone(),
            rate(|rates| rates.connections_per_second),
            self.counts.connections.to_string(),
            self.counts.open.to_string(),
            rate(|rates| rates.refused_per_second),
            self.counts.refused.to_string(),
            self.counts.moved.to_string(),
            self.counts.killed.to_string(),
            self.backends.to_string(),
        ]
    }

    /// Returns the cells of the page of refusals by cause.
    pub(super) fn refusal_cells(&self) -> [String; 6] {
        let rate = |of: fn(&Rates) -> f64| format_rate(self.rates.as_ref().map(of));
        [
            self.service.clone(),
            self.port.clone(),
            rate(|rates| rates.no_endpoints_per_second),
            self.counts.no_endpoints.to_string(),
            rate(|rates| rates.no_local_endpoints_per_second),
            self.counts.no_local_endpoints.to_string(),
        ]
    }
}

impl RatedBackend {
    /// Returns the cells, in the order of the columns.
    pub(super) fn cells(&self) -> [String; 6] {
        [
            self.address(),
            self.row.place.unwrap_or("-").to_owned(),
            self.row.weight.to_string(),
            format_rate(self.rate),
            self.row.connections.to_string(),
            self.row.open.to_string(),
        ]
    }

    /// Formats address and port.
    pub(super) fn address(&self) -> String {
        match self.row.port {
            None => self.row.address.clone(),
            Some(port) if self.row.address.contains(':') => format!("[{}]:{port}", self.row.address),
            Some(port) => format!("{}:{port}", self.row.address),
        }
    }
}

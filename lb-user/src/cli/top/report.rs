//! From two samples to rows with rates. Pure: nothing here reads a map or a clock.

use std::{collections::BTreeMap, sync::Arc};

use lb_common::{Slot, SlotKey};
use serde::Serialize;

use super::sample::{Port, Sample};
use crate::inspect::{self, BackendRow};
use lb_dataplane::stats::{Stats, counts::PortCounts};

/// What `top` shows of a moment.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// Pid of the agent, when one runs.
    pub(super) agent: Option<u32>,
    /// Over how many seconds the rates were measured; none for the first look.
    pub(super) seconds: Option<f64>,
    /// Services.
    pub(super) services: usize,
    /// Backends that new sockets may be given.
    pub(super) backends: u32,
    /// Sockets that have a backend, those whose service port is gone included.
    pub(super) open: u64,
    /// Of all service ports together.
    #[serde(flatten)]
    pub(super) rates: Option<Rates>,
    /// All service ports, by name.
    pub(super) ports: Vec<PortRow>,
}

/// Events a second.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rates {
    /// Backends given to sockets.
    pub(super) connections_per_second: f64,
    /// Refusals for any cause.
    pub(super) refused_per_second: f64,
    /// Of these: no endpoint anywhere.
    pub(super) no_endpoints_per_second: f64,
    /// Of these: none on this node.
    pub(super) no_local_endpoints_per_second: f64,
}

/// A service port.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PortRow {
    /// Namespace and name of the Service.
    pub(super) service: String,
    /// Name, if it has one, and protocol of the port.
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
    /// Times a second that a socket was given it.
    pub(super) rate: Option<f64>,
}

/// What happened between two moments, or only what is when there was none before.
pub(super) fn report(before: Option<&Sample>, now: &Sample) -> Report {
    let earlier = before.map(|before| (before, seconds(before, now)));
    let row = |port: &Port| {
        let counts = now.counts.get(&port.id).copied().unwrap_or_default();
        let rates = earlier.map(|(before, seconds)| {
            // A number may name another service port since.
            let same = Arc::ptr_eq(&before.served, &now.served)
                || before.served.dump.names.get(&port.id) == now.served.dump.names.get(&port.id);
            let earlier = before.counts.get(&port.id).filter(|_| same).copied().unwrap_or_default();
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
        open: now.given.iter().map(|(_, backend)| backend.open).sum(),
        rates: earlier.map(|_| ports.iter().filter_map(|row| row.rates).fold(Rates::default(), Rates::plus)),
        ports,
    }
}

/// The backends of a service port.
pub(super) fn backends(
    before: Option<&Sample>,
    now: &Sample,
    slots: &BTreeMap<SlotKey, Slot>,
    service: u32,
) -> Vec<RatedBackend> {
    let of_it = |sample: &Sample| -> Stats {
        let backends = sample.given.iter().filter(|(_, stats)| stats.service == service).copied().collect();
        Stats { backends, ..Stats::default() }
    };
    let (earlier, stats) = (before.map(|before| (of_it(before), seconds(before, now))), of_it(now));
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

/// A count that went backwards is of a map that was made anew, and counts from 0.
#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn rate(before: u64, now: u64, seconds: f64) -> f64 {
    let more = now.checked_sub(before).unwrap_or(now);
    if seconds > 0.0 { rounded(more as f64 / seconds) } else { 0.0 }
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

/// A rate as it is shown.
pub(super) fn shown(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"))
}

impl PortRow {
    /// Connections a second; 0 as long as they are not known.
    pub(super) fn rate(&self) -> f64 {
        self.rates.map_or(0.0, |rates| rates.connections_per_second)
    }

    /// Refusals a second; 0 as long as they are not known.
    pub(super) fn refused_rate(&self) -> f64 {
        self.rates.map_or(0.0, |rates| rates.refused_per_second)
    }

    /// In the order of the columns.
    pub(super) fn cells(&self) -> [String; 10] {
        let rate = |of: fn(&Rates) -> f64| shown(self.rates.as_ref().map(of));
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

    /// By cause.
    pub(super) fn refusal_cells(&self) -> [String; 6] {
        let rate = |of: fn(&Rates) -> f64| shown(self.rates.as_ref().map(of));
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
    /// In the order of the columns.
    pub(super) fn cells(&self) -> [String; 6] {
        [
            self.target(),
            self.row.place.unwrap_or("-").to_owned(),
            self.row.weight.to_string(),
            shown(self.rate),
            self.row.connections.to_string(),
            self.row.open.to_string(),
        ]
    }

    /// Address and port.
    pub(super) fn target(&self) -> String {
        match self.row.port {
            None => self.row.address.clone(),
            Some(port) if self.row.address.contains(':') => format!("[{}]:{port}", self.row.address),
            Some(port) => format!("{}:{port}", self.row.address),
        }
    }
}

//! From two samples to rows with rates. Pure: nothing here reads a map or a clock.

use serde::Serialize;

use super::sample::Sample;
use crate::inspect::{self, BackendRow, PortCounts};

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
    let (sizes, counts) = (inspect::list_sizes(&now.dump), inspect::by_port(&now.stats));
    let earlier = before.map(|before| (before, inspect::by_port(&before.stats), seconds(before, now)));
    let row = |id: &u32| {
        let key = now.dump.names.get(id);
        let counts = counts.get(id).copied().unwrap_or_default();
        let rates = earlier.as_ref().map(|(before, earlier, seconds)| {
            // A number may name another service port since.
            let same = before.dump.names.get(id) == key;
            Rates::of(&earlier.get(id).filter(|_| same).copied().unwrap_or_default(), &counts, *seconds)
        });
        let service = key.map_or_else(|| inspect::name_of(&now.dump, *id), |key| key.service.to_string());
        // As in `default/web:http/TCP`.
        let port = key.map(|key| key.to_string().split_off(service.len() + 1)).unwrap_or_default();
        let backends = sizes.get(id).map_or(0, |[cluster, _]| *cluster);
        PortRow { service, port, id: *id, rates, counts, backends }
    };
    let mut ports: Vec<PortRow> = now.dump.services.keys().map(row).collect();
    ports.sort_by(|a, b| (&a.service, &a.port, a.id).cmp(&(&b.service, &b.port, b.id)));
    let changes = ports.windows(2).filter(|pair| pair[0].service != pair[1].service).count();
    let offered = |backend: &&lb_common::Backend| {
        backend.flags & (lb_common::BackendFlags::CLUSTER | lb_common::BackendFlags::LOCAL) != 0
    };
    Report {
        agent: now.agent,
        seconds: earlier.as_ref().map(|(.., seconds)| rounded(*seconds)),
        services: if ports.is_empty() { 0 } else { changes + 1 },
        backends: u32::try_from(now.dump.backends.values().filter(offered).count()).unwrap_or(u32::MAX),
        open: now.stats.backends.values().map(|backend| backend.open).sum(),
        rates: earlier.map(|_| ports.iter().filter_map(|row| row.rates).fold(Rates::default(), Rates::plus)),
        ports,
    }
}

/// The backends of a service port.
pub(super) fn backends(before: Option<&Sample>, now: &Sample, service: u32) -> Vec<RatedBackend> {
    let rated = |row: BackendRow| {
        let rate = before.map(|before| {
            let earlier = before.stats.backends.get(&row.id).filter(|stats| stats.service == service);
            let earlier = earlier.map_or(0, |stats| stats.connections);
            rate(earlier, row.connections, seconds(before, now))
        });
        RatedBackend { row, rate }
    };
    inspect::backends_of(&now.dump, &now.stats, service).into_iter().map(rated).collect()
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

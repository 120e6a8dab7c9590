//! The families of metrics: name, help and samples of each, one after the other.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use lb_common::Proto;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, NoLabelSet},
    metrics::MetricType,
};

use super::{Histogram, Kernel, Scrape, kernel::Backends};
use crate::{health::Question, reconcile::Status};
use lb_common::Family;
use lb_core::spec::PortKey;
use lb_dataplane::{flows::FlowGcStatus, stats::counts::PortCounts};

/// The labels of a family with one sample.
const NONE: [(&str, &str); 0] = [];

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = To(encoder);
        kube_proxy(&mut to, &self.status)?;
        health(&mut to, &self.told)?;
        agent(&mut to, &self.status)?;
        flows(&mut to, &self.flows)?;
        to.gauge(
            "beeline_maps_readable",
            "Whether this scrape could read the maps; without them it has none of what follows",
            [(NONE, u64::from(self.kernel.is_some()))],
        )?;
        match &self.kernel {
            Some(kernel) => datapath(&mut to, kernel),
            None => Ok(()),
        }
    }
}

/// Those that kube-proxy has too, without its label `ip_family`: a pass is of both.
fn kube_proxy(to: &mut To<'_>, status: &Status) -> fmt::Result {
    to.histogram("kubeproxy_sync_proxy_rules_duration_seconds", "How long passes took", &status.took)?;
    to.gauge(
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "When a pass last succeeded, 0 before the first",
        [(NONE, seconds(status.updated))],
    )?;
    to.gauge(
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        "When something last came to wait for a pass",
        [(NONE, seconds(status.queued))],
    )?;
    let pending = status.seen.since(status.done);
    to.gauge(
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
        "Changes of EndpointSlices and Endpoints that no successful pass has looked at",
        [(NONE, pending.endpoints)],
    )?;
    to.counter(
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "Changes of EndpointSlices and Endpoints",
        [(NONE, status.seen.endpoints)],
    )?;
    to.gauge(
        "kubeproxy_sync_proxy_rules_service_changes_pending",
        "Changes of Services that no successful pass has looked at",
        [(NONE, pending.services)],
    )?;
    to.counter(
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "Changes of Services",
        [(NONE, status.seen.services)],
    )?;
    to.histogram(
        "kubeproxy_network_programming_duration_seconds",
        "How long it took from the change of a pod to the maps",
        &status.programming,
    )
}

fn seconds(time: Option<SystemTime>) -> f64 {
    time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default().as_secs_f64()
}

fn health(to: &mut To<'_>, told: &[(Question, u16, u64)]) -> fmt::Result {
    let of = |question| {
        let own = told.iter().filter(move |(asked, ..)| *asked == question);
        own.map(|(_, code, count)| ([("code", code.to_string())], *count))
    };
    to.counter("kubeproxy_proxy_healthz_total", "Answers of /healthz", of(Question::Healthz))?;
    to.counter("kubeproxy_proxy_livez_total", "Answers of /livez", of(Question::Livez))
}

fn agent(to: &mut To<'_>, status: &Status) -> fmt::Result {
    to.gauge(
        "beeline_build_info",
        "The version that runs; always 1",
        [([("version", env!("CARGO_PKG_VERSION"))], 1_u64)],
    )?;
    to.counter("beeline_passes_total", "Passes", [(NONE, status.passes)])?;
    to.counter("beeline_pass_failures_total", "Passes that failed", [(NONE, status.failures)])?;
    to.counter("beeline_writes_total", "Map writes of passes", [(NONE, status.writes)])?;
    to.gauge(
        "beeline_services_refused",
        "Services that have no room in the maps: they stay as they were",
        [(NONE, status.refused as u64)],
    )?;
    to.gauge("beeline_warnings", "What stands in objects and cannot be used", [(NONE, status.warnings as u64)])?;
    to.gauge(
        "beeline_kinds_forbidden",
        "Kinds of objects that the API server does not let the agent read",
        [(NONE, status.forbidden.len() as u64)],
    )
}

fn flows(to: &mut To<'_>, flows: &FlowGcStatus) -> fmt::Result {
    to.counter(
        "beeline_flow_entries_expired_total",
        "Entries of FLOWS that were removed, since their flow is over",
        [(NONE, flows.expired)],
    )?;
    to.gauge(
        "beeline_flow_round_seconds",
        "How long it took to look for flows that are over in all of FLOWS, 0 before the first time",
        [(NONE, flows.round.as_secs_f64())],
    )?;
    to.gauge(
        "beeline_flow_longest_step_seconds",
        "How long the longest step of that took, without the rests between",
        [(NONE, flows.longest_step.as_secs_f64())],
    )
}

fn datapath(to: &mut To<'_>, kernel: &Kernel) -> fmt::Result {
    to.gauge(
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "Service ports with a policy Local and no endpoint on this node, but some elsewhere",
        ["internal", "external"].map(|policy| [("traffic_policy", policy)]).into_iter().zip(kernel.without_local),
    )?;
    let counted = kernel.maps.iter().filter_map(|map| Some(([("map", map.name.as_str())], map.entries?)));
    to.gauge("beeline_map_entries", "Entries of a hash map", counted)?;
    let sizes = kernel.maps.iter().map(|map| ([("map", map.name.as_str())], u64::from(map.size)));
    to.gauge("beeline_map_max_entries", "How many entries a map may have", sizes)?;
    let programs = || {
        let labels = |name, id: u32| [("program", String::from(name)), ("id", id.to_string())];
        kernel.programs.iter().map(move |program| (labels(program.name.as_str(), program.id), program.runs))
    };
    to.gauge("beeline_program_info", "A program in service; always 1", programs().map(|(labels, _)| (labels, 1_u64)))?;
    let runs = || programs().filter_map(|(labels, runs)| Some((labels, runs?)));
    to.counter(
        "beeline_program_runs_total",
        "Times that a program ran; only while kernel.bpf_stats_enabled is 1",
        runs().map(|(labels, (count, _))| (labels, count)),
    )?;
    to.counter(
        "beeline_program_run_seconds_total",
        "Time that a program ran; only while kernel.bpf_stats_enabled is 1",
        runs().map(|(labels, (_, time)): (_, (u64, Duration))| (labels, time.as_secs_f64())),
    )?;
    let counters = kernel.counters.iter().map(|(counter, count)| ([("event", counter.name())], *count));
    to.counter("beeline_events_total", "Events that the programs count", counters)?;
    ports(to, &kernel.ports)?;
    kernel.backends.as_ref().map_or(Ok(()), |shown| backends(to, shown))
}

type Label = (&'static str, String);

/// Prometheus sets `namespace`, `service` and the like itself, of who is scraped.
fn labels(port: &PortKey) -> [Label; 5] {
    [
        ("service_namespace", port.service.namespace().to_owned()),
        ("service_name", port.service.name().to_owned()),
        ("service_port", port.name.to_string()),
        ("protocol", Proto::name(port.proto).to_owned()),
        ("ip_family", if port.family == Family::V4 { "IPv4" } else { "IPv6" }.to_owned()),
    ]
}

fn ports(to: &mut To<'_>, ports: &[(PortKey, PortCounts)]) -> fmt::Result {
    let of = |value: fn(&PortCounts) -> u64| ports.iter().map(move |(port, counts)| (labels(port), value(counts)));
    to.counter("beeline_connections_total", "Times that a backend was given to a socket", of(|of| of.connections))?;
    to.gauge("beeline_open_sockets", "Sockets that have a backend now", of(|of| of.open))?;
    let refused = ports.iter().flat_map(|(port, counts)| {
        let causes = [("no_endpoints", counts.no_endpoints), ("no_local_endpoints", counts.no_local_endpoints)];
        causes.map(|(cause, count)| {
            let [namespace, name, port, proto, family] = labels(port);
            ([namespace, name, port, proto, family, ("cause", cause.to_owned())], count)
        })
    });
    to.counter("beeline_refused_total", "Times that a socket was refused", refused)?;
    to.counter(
        "beeline_moved_total",
        "UDP sockets that moved to another backend, as their own had gone",
        of(|of| of.moved),
    )?;
    to.counter("beeline_killed_total", "Sockets that the agent ended, as their backend had gone", of(|of| of.killed))
}

fn backends(to: &mut To<'_>, Backends { shown, left_out }: &Backends) -> fmt::Result {
    let of = |value: fn(&lb_common::BackendStats) -> u64| {
        shown.iter().map(move |backend| {
            let [namespace, name, port, proto, family] = labels(&backend.port);
            let labels = [namespace, name, port, proto, family, ("backend", backend.address.clone())];
            (labels, value(&backend.stats))
        })
    };
    to.counter(
        "beeline_backend_connections_total",
        "Times that this backend was given to a socket",
        of(|stats| stats.connections),
    )?;
    to.gauge("beeline_backend_open_sockets", "Sockets that have this backend now", of(|stats| stats.open))?;
    to.gauge(
        "beeline_backends_left_out",
        "Backends without series of their own: those with the fewest connections",
        [(NONE, *left_out as u64)],
    )
}

/// Where families go.
struct To<'a>(DescriptorEncoder<'a>);

impl To<'_> {
    /// A family of counters; its name ends with `_total`.
    fn counter<L: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        name: &'static str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        // The encoder puts it there.
        let name = name.strip_suffix("_total").unwrap_or(name);
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
        Ok(())
    }

    fn gauge<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        name: &'static str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn histogram(&mut self, name: &'static str, help: &str, histogram: &Histogram) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        family.encode_histogram::<NoLabelSet>(histogram.sum(), histogram.count(), &histogram.buckets(), None)
    }
}

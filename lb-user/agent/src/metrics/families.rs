//! The metric families: name, help and samples of each.

use std::{
    fmt,
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use lb_common::Proto;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, NoLabelSet},
    metrics::MetricType,
};

use super::{
    Scrape,
    kernel::{KernelMetrics, TopBackends},
};
use crate::{announcing::AnnouncingState, health::Probe, histogram::Histogram, reconcile::Status};
use lb_common::Family;
use lb_core::{announce::Time, spec::PortKey};
use lb_dataplane::{announced_addresses::boot_time_ns, flows::FlowGcStatus, stats::counts::PortCounts};
use lb_sources::probes::ProbeCounts;

/// Labels of a family with a single sample.
pub(crate) const NO_LABELS: [(&str, &str); 0] = [];

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Families::new(encoder);
        kube_proxy(&mut to, &self.status)?;
        health(&mut to, &self.probes)?;
        agent(&mut to, &self.status)?;
        if let Some(state) = &self.announcing {
            announcing(&mut to, state)?;
        }
        probes(&mut to, &self.endpoint_probes)?;
        flows(&mut to, &self.flows)?;
        to.gauge(
            "beeline_maps_readable",
            "1 if this scrape could read the maps; if 0, metrics of maps, programs and service ports are missing",
            [(NO_LABELS, u64::from(self.kernel.is_some()))],
        )?;
        match &self.kernel {
            Some(kernel) => datapath(&mut to, kernel),
            None => Ok(()),
        }
    }
}

/// Metrics of announcing on the link.
fn announcing(to: &mut Families<'_>, state: &AnnouncingState) -> fmt::Result {
    to.gauge(
        "beeline_announced_addresses",
        "Load balancer addresses that this node announces on the link",
        [(NO_LABELS, state.held.addresses.len() as u64)],
    )?;
    let left = state.held.until.saturating_sub(Time::from_nanos(boot_time_ns()));
    let left = if state.held.until == Time::MAX { f64::INFINITY } else { left.as_secs_f64() };
    to.gauge(
        "beeline_announce_deadline_seconds",
        "Time for which the node may still answer for its announced addresses, in seconds; renewed each 0.3 s. +Inf \
         for an announcer that is alone",
        [(NO_LABELS, left)],
    )?;
    to.gauge("beeline_announcers", "Nodes that announce addresses", [(NO_LABELS, state.members as u64)])?;
    to.gauge(
        "beeline_announcers_silent",
        "Announcers from which this node hears nothing",
        [(NO_LABELS, state.silent.len() as u64)],
    )?;
    to.gauge(
        "beeline_announce_failing",
        "1 while announcing does not work, or the Lease is out of reach; the log has the error",
        [(NO_LABELS, u64::from(state.error.is_some()))],
    )?;
    to.counter(
        "beeline_announce_lapses_total",
        "Times that this node was too late to renew its announced addresses, or cut off from other announcers",
        [(NO_LABELS, state.lapses)],
    )?;
    to.counter(
        "beeline_announce_permits_refused_total",
        "Permits for an address that this node has refused to other announcers, since another one has it",
        [(NO_LABELS, state.refused)],
    )?;
    to.counter(
        "beeline_announce_datagrams_total",
        "Datagrams of announcers, by result",
        [
            ([("result", "read")], state.received),
            ([("result", "not-signed")], state.unsigned),
            ([("result", "unreadable")], state.unreadable),
        ],
    )?;
    to.counter(
        "beeline_announce_lease_writes_total",
        "Writes of the Lease beeline-announce",
        [(NO_LABELS, state.lease_writes)],
    )
}

/// Metrics of kube-proxy, without its label `ip_family`: a pass covers both families.
fn kube_proxy(to: &mut Families<'_>, status: &Status) -> fmt::Result {
    to.histogram("kubeproxy_sync_proxy_rules_duration_seconds", "Duration of passes, in seconds", &status.durations)?;
    to.gauge(
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "Time of the last successful pass, in seconds since 1970; 0 before the first",
        [(NO_LABELS, seconds(status.updated))],
    )?;
    to.gauge(
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        "Time at which a change was last queued for a pass, in seconds since 1970",
        [(NO_LABELS, seconds(status.queued))],
    )?;
    let pending = status.seen.since(status.done);
    to.gauge(
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
        "Changes of EndpointSlices and Endpoints that no successful pass has processed",
        [(NO_LABELS, pending.endpoints)],
    )?;
    to.counter(
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "Changes of EndpointSlices and Endpoints",
        [(NO_LABELS, status.seen.endpoints)],
    )?;
    to.gauge(
        "kubeproxy_sync_proxy_rules_service_changes_pending",
        "Changes of Services that no successful pass has processed",
        [(NO_LABELS, pending.services)],
    )?;
    to.counter(
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "Changes of Services",
        [(NO_LABELS, status.seen.services)],
    )?;
    to.histogram(
        "kubeproxy_network_programming_duration_seconds",
        "Duration from the change of a pod to the maps, in seconds",
        &status.programming,
    )
}

fn seconds(time: Option<SystemTime>) -> f64 {
    time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default().as_secs_f64()
}

fn health(to: &mut Families<'_>, answers: &[(Probe, u16, u64)]) -> fmt::Result {
    let of = |probe| {
        let own = answers.iter().filter(move |(answered, ..)| *answered == probe);
        own.map(|(_, code, count)| ([("code", code.to_string())], *count))
    };
    to.counter("kubeproxy_proxy_healthz_total", "Answers of /healthz by status code", of(Probe::Healthz))?;
    to.counter("kubeproxy_proxy_livez_total", "Answers of /livez by status code", of(Probe::Livez))
}

fn agent(to: &mut Families<'_>, status: &Status) -> fmt::Result {
    to.gauge(
        "beeline_build_info",
        "Version of the agent, as a label; always 1",
        [([("version", env!("CARGO_PKG_VERSION"))], 1_u64)],
    )?;
    to.counter("beeline_passes_total", "Passes of the agent over changed Services", [(NO_LABELS, status.passes)])?;
    to.counter(
        "beeline_pass_failures_total",
        "Failed passes; their changes are tried again",
        [(NO_LABELS, status.failures)],
    )?;
    let missing = [("programs", status.datapath.is_detached), ("pins", status.datapath.is_unpinned)];
    to.gauge(
        "beeline_datapath_damaged",
        "1 while programs or pins are missing that another program took away and the agent cannot put back",
        missing.map(|(part, is_missing)| ([("part", part)], u64::from(is_missing))),
    )?;
    to.counter(
        "beeline_datapath_repairs_total",
        "Programs and pins that the agent put back",
        [(NO_LABELS, status.datapath.repairs)],
    )?;
    to.counter("beeline_writes_total", "Map writes of all passes", [(NO_LABELS, status.writes)])?;
    to.gauge(
        "beeline_services_refused",
        "Services that do not fit into the maps; their old version keeps serving",
        [(NO_LABELS, status.refused as u64)],
    )?;
    to.gauge("beeline_warnings", "Current warnings about Services", [(NO_LABELS, status.warnings as u64)])?;
    to.gauge(
        "beeline_kinds_forbidden",
        "Kinds of objects that the API server does not let the agent read",
        [(NO_LABELS, status.forbidden.len() as u64)],
    )
}

fn probes(to: &mut Families<'_>, counts: &ProbeCounts) -> fmt::Result {
    let ProbeCounts { passed, failed, passing, failing, unknown } = counts;
    let results = [("pass", passed), ("fail", failed)];
    to.counter(
        "beeline_endpoint_probes_total",
        "Probes of hand-written endpoints by their result",
        results.map(|(result, count)| ([("result", result)], count.load(Ordering::Relaxed))),
    )?;
    let states = [("passing", passing), ("failing", failing), ("unknown", unknown)];
    to.gauge(
        "beeline_probed_endpoints",
        "Hand-written endpoints that are probed, by the result so far",
        states.map(|(state, count)| ([("state", state)], count.load(Ordering::Relaxed))),
    )
}

fn flows(to: &mut Families<'_>, flows: &FlowGcStatus) -> fmt::Result {
    to.counter(
        "beeline_flow_entries_expired_total",
        "Entries of FLOWS that the agent removed because the flow was over",
        [(NO_LABELS, flows.expired)],
    )?;
    to.gauge(
        "beeline_flow_round_seconds",
        "Duration of the last walk over all of FLOWS with its pauses, in seconds; 0 before the first",
        [(NO_LABELS, flows.round.as_secs_f64())],
    )?;
    to.gauge(
        "beeline_flow_longest_step_seconds",
        "Duration of the longest step of that walk, in seconds",
        [(NO_LABELS, flows.longest_step.as_secs_f64())],
    )
}

fn datapath(to: &mut Families<'_>, kernel: &KernelMetrics) -> fmt::Result {
    to.gauge(
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "Service ports with traffic policy Local and endpoints, none of them on this node",
        ["internal", "external"].map(|policy| [("traffic_policy", policy)]).into_iter().zip(kernel.without_local),
    )?;
    let counted = kernel.maps.iter().filter_map(|map| Some(([("map", map.name.as_str())], map.entries?)));
    to.gauge("beeline_map_entries", "Entries of a hash map", counted)?;
    let sizes = kernel.maps.iter().map(|map| ([("map", map.name.as_str())], u64::from(map.size)));
    to.gauge("beeline_map_max_entries", "Maximum number of entries of a map", sizes)?;
    let programs = || {
        let labels = |name, id: u32| [("program", String::from(name)), ("id", id.to_string())];
        kernel.programs.iter().map(move |program| (labels(program.name.as_str(), program.id), program.runs))
    };
    to.gauge(
        "beeline_program_info",
        "Program in service, as labels; always 1",
        programs().map(|(labels, _)| (labels, 1_u64)),
    )?;
    let runs = || programs().filter_map(|(labels, runs)| Some((labels, runs?)));
    to.counter(
        "beeline_program_runs_total",
        "Runs of a program, while the sysctl kernel.bpf_stats_enabled is 1",
        runs().map(|(labels, (count, _))| (labels, count)),
    )?;
    to.counter(
        "beeline_program_run_seconds_total",
        "Duration of all runs of a program in seconds, while the sysctl kernel.bpf_stats_enabled is 1",
        runs().map(|(labels, (_, time)): (_, (u64, Duration))| (labels, time.as_secs_f64())),
    )?;
    let counters = kernel.counters.iter().map(|(counter, count)| ([("event", counter.name())], *count));
    to.counter("beeline_events_total", "Events that the programs count", counters)?;
    ports(to, &kernel.ports)?;
    ejections(to, kernel)?;
    kernel.backends.as_ref().map_or(Ok(()), |shown| backends(to, shown))
}

type Label = (&'static str, String);

/// Labels of a service port. Prometheus itself sets `namespace` and `service`, to those of the scraped agent.
fn labels(port: &PortKey) -> [Label; 5] {
    [
        ("service_namespace", port.service.namespace().to_owned()),
        ("service_name", port.service.name().to_owned()),
        ("service_port", port.name.to_string()),
        ("protocol", Proto::name(port.proto).to_owned()),
        ("ip_family", if port.family == Family::V4 { "IPv4" } else { "IPv6" }.to_owned()),
    ]
}

fn ports(to: &mut Families<'_>, ports: &[(PortKey, PortCounts)]) -> fmt::Result {
    let of = |value: fn(&PortCounts) -> u64| ports.iter().map(move |(port, counts)| (labels(port), value(counts)));
    to.counter("beeline_connections_total", "Backends chosen for sockets", of(|counts| counts.connections))?;
    to.gauge("beeline_open_sockets", "Sockets that hold a backend now", of(|counts| counts.open))?;
    let refused = ports.iter().flat_map(|(port, counts)| {
        let causes = [("no_endpoints", counts.no_endpoints), ("no_local_endpoints", counts.no_local_endpoints)];
        causes.map(|(cause, count)| {
            let [namespace, name, port, proto, family] = labels(port);
            ([namespace, name, port, proto, family, ("cause", cause.to_owned())], count)
        })
    });
    to.counter("beeline_refused_total", "Calls of sockets that failed, by cause", refused)?;
    to.counter(
        "beeline_moved_total",
        "UDP sockets that moved to another backend because theirs was removed",
        of(|counts| counts.moved),
    )?;
    to.counter(
        "beeline_killed_total",
        "Sockets that the agent ended because their backend was removed",
        of(|counts| counts.killed),
    )
}

/// Writes ejections of service ports with failed handshakes; most ports never have any.
fn ejections(to: &mut Families<'_>, kernel: &KernelMetrics) -> fmt::Result {
    let of = |value: fn(&PortCounts) -> u64| {
        let failing = kernel.ports.iter().filter(|(_, counts)| counts.failures > 0);
        failing.map(move |(port, counts)| (labels(port), value(counts)))
    };
    to.counter(
        "beeline_connect_failures_total",
        "Failed TCP handshakes with backends of Services with ejection",
        of(|counts| counts.failures),
    )?;
    to.counter(
        "beeline_ejections_total",
        "Ejections of a backend for a client of this node",
        of(|counts| counts.ejections),
    )?;
    let ejected = kernel.ejected.iter().map(|(port, count)| (labels(port), *count));
    to.gauge("beeline_ejected_backends", "Backends that a client of this node does not get now", ejected)
}

fn backends(to: &mut Families<'_>, TopBackends { shown, left_out }: &TopBackends) -> fmt::Result {
    let of = |value: fn(&lb_common::BackendStats) -> u64| {
        shown.iter().map(move |backend| {
            let [namespace, name, port, proto, family] = labels(&backend.port);
            let labels = [namespace, name, port, proto, family, ("backend", backend.address.clone())];
            (labels, value(&backend.stats))
        })
    };
    to.counter(
        "beeline_backend_connections_total",
        "Sockets for which this backend was chosen",
        of(|stats| stats.connections),
    )?;
    to.gauge("beeline_backend_open_sockets", "Sockets that hold this backend now", of(|stats| stats.open))?;
    to.gauge(
        "beeline_backends_left_out",
        "Backends without series of their own, which are those with the fewest connections",
        [(NO_LABELS, *left_out as u64)],
    )
}

/// Encoder of families.
pub(crate) struct Families<'a>(DescriptorEncoder<'a>);

impl<'a> Families<'a> {
    pub(crate) const fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    /// Encodes a family of counters, whose name ends in `_total`.
    pub(crate) fn counter<L: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        name: &'static str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        // The encoder adds the suffix.
        let name = name.strip_suffix("_total").unwrap_or(name);
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
        Ok(())
    }

    pub(crate) fn gauge<L: EncodeLabelSet, V: EncodeGaugeValue>(
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

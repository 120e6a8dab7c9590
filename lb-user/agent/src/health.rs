//! `/healthz` and `/livez`, as kube-proxy defines them (pkg/proxy/healthcheck/proxy_health.go): `/livez` is about the
//! agent, `/healthz` about the agent and its node. Answers are pure functions of status and time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::Result;
use hyper::StatusCode;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use tokio::{sync::watch, time::Instant};

use crate::{
    http::{self, BindAddress, Reply},
    reconcile::Status,
};
use lb_core::event::ObjectKind;

/// Maximum age of a change that no successful pass has handled: twice kube-proxy's default sync period.
const MAX_PENDING: Duration = Duration::from_secs(60);

/// A health endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Probe {
    /// `/healthz`: may load balancers send clients to this node? Not while the node is being removed.
    Healthz,
    /// `/livez`: does the agent work?
    Livez,
}

impl Probe {
    pub(crate) const ALL: [Self; 2] = [Self::Healthz, Self::Livez];

    fn from_path(path: &str) -> Option<Self> {
        match path {
            "/healthz" => Some(Self::Healthz),
            "/livez" => Some(Self::Livez),
            _ => None,
        }
    }
}

/// The current time on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// Clock for ages.
    pub(crate) monotonic: Instant,
    /// Clock for answers.
    pub(crate) wall: SystemTime,
}

impl Now {
    pub(crate) fn read() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }
}

/// True if changes of objects reach the maps in time, and all programs are attached. Unlike kube-proxy, the agent is
/// not live before its first pass: until then the maps are those of an earlier agent, or empty.
pub(crate) fn is_live(status: &Status, now: Now) -> bool {
    let is_late = |since: Instant| now.monotonic.saturating_duration_since(since) >= MAX_PENDING;
    // Services are served without the other kinds.
    let is_required =
        |kind: &ObjectKind| ObjectKind::OF_SERVICES.contains(kind) || (*kind == ObjectKind::Pod && status.needs_pods);
    status.ready
        && !status.datapath.is_detached
        && !status.forbidden.iter().any(is_required)
        && !status.pending_since.is_some_and(is_late)
}

fn answer(probe: Probe, status: &Status, now: Now) -> Reply {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        last_updated: Option<String>,
        current_time: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        node_eligible: Option<bool>,
    }
    let node_eligible = (probe == Probe::Healthz).then_some(!status.node_is_leaving);
    // A restart of the agent would end Services that its descriptors keep alive, so lost pins do not make it dead.
    let may_lose_services = probe == Probe::Healthz && status.datapath.is_unpinned;
    let is_healthy = is_live(status, now) && node_eligible != Some(false) && !may_lose_services;
    // As in kube-proxy, both times are equal while the answer is 200.
    let last_updated = if is_healthy { Some(now.wall) } else { status.updated };
    let body = Body { last_updated: last_updated.and_then(rfc3339), current_time: rfc3339(now.wall), node_eligible };
    Reply {
        status: if is_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE },
        content_type: "application/json",
        header: None,
        body: serde_json::to_string(&body).expect("strings and a bool"),
    }
}

fn rfc3339(time: SystemTime) -> Option<String> {
    Timestamp::try_from(time).ok().map(|time| time.to_string())
}

/// Counts of answers by probe and status code.
#[derive(Debug, Default)]
pub(crate) struct ProbeCounts([[AtomicU64; 2]; 2]);

impl ProbeCounts {
    /// Lists each probe and status code with its count.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (Probe, u16, u64)> {
        Probe::ALL.into_iter().zip(&self.0).flat_map(|(probe, counts)| {
            [200, 503].into_iter().zip(counts).map(move |(code, count)| (probe, code, count.load(Ordering::Relaxed)))
        })
    }

    fn count(&self, probe: Probe, status: StatusCode) {
        let [healthz, livez] = &self.0;
        let [ok, unavailable] = if probe == Probe::Healthz { healthz } else { livez };
        let count = if status == StatusCode::OK { ok } else { unavailable };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Answers on the health port until the future is dropped.
pub(crate) async fn run(
    addresses: Vec<BindAddress>,
    status: watch::Receiver<Status>,
    counts: Arc<ProbeCounts>,
) -> Result<()> {
    let reply = move |path: String| {
        let reply = Probe::from_path(&path).map(|probe| {
            let reply = answer(probe, &status.borrow(), Now::read());
            counts.count(probe, reply.status);
            reply
        });
        async { reply.unwrap_or_else(Reply::not_found) }
    };
    http::serve(addresses, http::LIMITS, reply).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::DatapathState;

    /// Returns the status of an agent whose last pass was 5 s ago, with a change that is `pending` for these seconds.
    fn status(ready: bool, pending: Option<u64>, node_is_leaving: bool, now: Now) -> Status {
        Status {
            ready,
            pending_since: pending.map(|seconds| now.monotonic - Duration::from_secs(seconds)),
            node_is_leaving,
            updated: ready.then(|| now.wall - Duration::from_secs(5)),
            ..Status::default()
        }
    }

    #[test]
    fn rule_9_health_follows_readiness_pending_changes_and_the_node() {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let now = Now { monotonic: Instant::now() + Duration::from_secs(3600), wall };
        // Ready, age of the oldest change, node is leaving; codes of /healthz and /livez.
        let cases = [
            (false, None, false, [503, 503]),
            (false, Some(1), false, [503, 503]),
            (true, None, false, [200, 200]),
            (true, Some(0), false, [200, 200]),
            (true, Some(59), false, [200, 200]),
            (true, Some(60), false, [503, 503]),
            (true, Some(3600), false, [503, 503]),
            (true, None, true, [503, 200]),
            (true, Some(59), true, [503, 200]),
            (true, Some(60), true, [503, 503]),
            (false, None, true, [503, 503]),
        ];
        for (ready, pending, leaving, expected) in cases {
            let status = status(ready, pending, leaving, now);
            let codes = Probe::ALL.map(|probe| answer(probe, &status, now).status.as_u16());
            assert_eq!(codes, expected, "ready {ready}, pending {pending:?}, leaving {leaving}");
        }
    }

    #[test]
    fn an_agent_that_may_not_read_endpoints_is_unhealthy() {
        let now = Now { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1000) };
        let mut status = status(true, None, false, now);
        status.forbidden.insert(ObjectKind::Endpoints);
        let codes = Probe::ALL.map(|probe| answer(probe, &status, now).status.as_u16());
        assert_eq!(codes, [503, 503]);
    }

    #[test]
    fn an_agent_that_may_not_read_pods_is_unhealthy_where_it_serves_host_ports() {
        let now = Now { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1000) };
        for (needs_pods, expected) in [(false, [200, 200]), (true, [503, 503])] {
            let mut status = Status { needs_pods, ..status(true, None, false, now) };
            status.forbidden.insert(ObjectKind::Pod);
            let codes = Probe::ALL.map(|probe| answer(probe, &status, now).status.as_u16());
            assert_eq!(codes, expected, "{needs_pods}");
        }
    }

    #[test]
    fn an_agent_without_its_programs_is_not_live_and_one_without_its_pins_is() {
        let now = Now { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1000) };
        let cases = [(false, false, [200, 200]), (true, false, [503, 503]), (false, true, [503, 200])];
        for (is_detached, is_unpinned, expected) in cases {
            let datapath = DatapathState { is_detached, is_unpinned, repairs: 3 };
            let status = Status { datapath, ..status(true, None, false, now) };
            let codes = Probe::ALL.map(|probe| answer(probe, &status, now).status.as_u16());
            assert_eq!(codes, expected, "detached {is_detached}, unpinned {is_unpinned}");
        }
    }

    #[test]
    fn bodies_equal_those_of_kube_proxy_with_times_in_rfc_3339() {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let now = Now { monotonic: Instant::now() + Duration::from_secs(3600), wall };
        let check = |probe, status: &Status, expected: &str| {
            let reply = answer(probe, status, now);
            assert_eq!((reply.content_type, reply.body.as_str()), ("application/json", expected));
        };
        check(
            Probe::Healthz,
            &status(true, None, false, now),
            r#"{"lastUpdated":"1970-01-01T00:16:40Z","currentTime":"1970-01-01T00:16:40Z","nodeEligible":true}"#,
        );
        check(
            Probe::Healthz,
            &status(true, None, true, now),
            r#"{"lastUpdated":"1970-01-01T00:16:35Z","currentTime":"1970-01-01T00:16:40Z","nodeEligible":false}"#,
        );
        check(
            Probe::Livez,
            &status(true, Some(99), true, now),
            r#"{"lastUpdated":"1970-01-01T00:16:35Z","currentTime":"1970-01-01T00:16:40Z"}"#,
        );
        check(
            Probe::Livez,
            &status(false, None, false, now),
            r#"{"lastUpdated":null,"currentTime":"1970-01-01T00:16:40Z"}"#,
        );
    }

    #[test]
    fn answers_are_counted_by_probe_and_code() {
        let counts = ProbeCounts::default();
        counts.count(Probe::Livez, StatusCode::OK);
        counts.count(Probe::Livez, StatusCode::OK);
        counts.count(Probe::Healthz, StatusCode::SERVICE_UNAVAILABLE);
        let listed: Vec<_> = counts.counts().map(|(_, code, count)| (code, count)).collect();
        assert_eq!(listed, [(200, 0), (503, 1), (200, 2), (503, 0)]);
    }
}

//! Whether the node is served, in the words of kube-proxy (pkg/proxy/healthcheck/proxy_health.go): `/livez` asks about the
//! agent, `/healthz` about the agent and its node. The decision is a pure function of status and time.

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
    http::{self, Port, Reply},
    reconcile::Status,
};
use lb_core::event::Kind;

/// For so long a change may wait for a pass that succeeds: twice kube-proxy's default sync period.
const PENDING: Duration = Duration::from_secs(60);

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// `/healthz`: shall load balancers outside send clients to this node? Not while it is being removed.
    Healthz,
    /// `/livez`: does the agent do its work?
    Livez,
}

impl Question {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Healthz, Self::Livez];

    /// What a path asks.
    #[must_use]
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/healthz" => Some(Self::Healthz),
            "/livez" => Some(Self::Livez),
            _ => None,
        }
    }
}

/// A moment, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Which only goes on.
    pub monotonic: Instant,
    /// Which others know.
    pub wall: SystemTime,
}

impl Now {
    /// This one.
    #[must_use]
    pub fn read() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }
}

/// Whether changes reach the agent, and from it the maps. Unlike kube-proxy the agent is not well before the first of them did: what serves then
/// is what an earlier one left, if anything.
#[must_use]
pub fn is_live(status: &Status, now: Now) -> bool {
    let is_late = |since: Instant| now.monotonic.saturating_duration_since(since) >= PENDING;
    // Without the others Services are served all the same.
    let is_needed = |kind| Kind::OF_SERVICES.contains(kind);
    status.ready && !status.forbidden.iter().any(is_needed) && !status.pending_since.is_some_and(is_late)
}

/// The answer to a question.
#[must_use]
pub fn answer(question: Question, status: &Status, now: Now) -> Reply {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        last_updated: Option<String>,
        current_time: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        node_eligible: Option<bool>,
    }
    let node_eligible = (question == Question::Healthz).then_some(!status.node_is_leaving);
    let is_well = is_live(status, now) && node_eligible != Some(false);
    // Those who compare the two times see no age while all is well, as with kube-proxy.
    let last_updated = if is_well { Some(now.wall) } else { status.updated };
    let body = Body { last_updated: last_updated.and_then(text), current_time: text(now.wall), node_eligible };
    Reply {
        status: if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE },
        content_type: "application/json",
        header: None,
        body: serde_json::to_string(&body).expect("strings and a bool"),
    }
}

/// RFC 3339.
fn text(time: SystemTime) -> Option<String> {
    Timestamp::try_from(time).ok().map(|time| time.to_string())
}

/// How often each question was answered in each way.
#[derive(Debug, Default)]
pub struct Told([[AtomicU64; 2]; 2]);

impl Told {
    /// Question, code, and how often.
    pub fn counts(&self) -> impl Iterator<Item = (Question, u16, u64)> {
        Question::ALL.into_iter().zip(&self.0).flat_map(|(question, counts)| {
            [200, 503].into_iter().zip(counts).map(move |(code, count)| (question, code, count.load(Ordering::Relaxed)))
        })
    }

    fn count(&self, question: Question, status: StatusCode) {
        let [healthz, livez] = &self.0;
        let [well, ill] = if question == Question::Healthz { healthz } else { livez };
        let count = if status == StatusCode::OK { well } else { ill };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Answers on the health port until it is dropped.
///
/// # Errors
/// Never.
pub async fn run(port: Port, status: watch::Receiver<Status>, told: Arc<Told>) -> Result<()> {
    let reply = move |path: String| {
        let reply = Question::of(&path).map(|question| {
            let reply = answer(question, &status.borrow(), Now::read());
            told.count(question, reply.status);
            reply
        });
        async { reply.unwrap_or_else(Reply::not_found) }
    };
    http::serve(port, http::LIMITS, reply).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The status of an agent that was updated 5 s ago and waits since so many seconds.
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
    fn rule_9_who_is_well() {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let now = Now { monotonic: Instant::now() + Duration::from_secs(3600), wall };
        // Whether it is ready, for how long something waits, whether the node leaves: /healthz, /livez.
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
            let codes = Question::ALL.map(|question| answer(question, &status, now).status.as_u16());
            assert_eq!(codes, expected, "ready {ready}, pending {pending:?}, leaving {leaving}");
        }
    }

    #[test]
    fn who_may_not_read_what_it_serves_is_not_well() {
        let now = Now { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1000) };
        let mut status = status(true, None, false, now);
        status.forbidden.insert(Kind::Endpoints);
        let codes = Question::ALL.map(|question| answer(question, &status, now).status.as_u16());
        assert_eq!(codes, [503, 503]);
    }

    #[test]
    fn bodies_are_those_of_kube_proxy_with_times_that_can_be_read() {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let now = Now { monotonic: Instant::now() + Duration::from_secs(3600), wall };
        let check = |question, status: &Status, expected: &str| {
            let reply = answer(question, status, now);
            assert_eq!((reply.content_type, reply.body.as_str()), ("application/json", expected));
        };
        check(
            Question::Healthz,
            &status(true, None, false, now),
            r#"{"lastUpdated":"1970-01-01T00:16:40Z","currentTime":"1970-01-01T00:16:40Z","nodeEligible":true}"#,
        );
        check(
            Question::Healthz,
            &status(true, None, true, now),
            r#"{"lastUpdated":"1970-01-01T00:16:35Z","currentTime":"1970-01-01T00:16:40Z","nodeEligible":false}"#,
        );
        check(
            Question::Livez,
            &status(true, Some(99), true, now),
            r#"{"lastUpdated":"1970-01-01T00:16:35Z","currentTime":"1970-01-01T00:16:40Z"}"#,
        );
        check(
            Question::Livez,
            &status(false, None, false, now),
            r#"{"lastUpdated":null,"currentTime":"1970-01-01T00:16:40Z"}"#,
        );
    }

    #[test]
    fn answers_are_counted_by_question_and_code() {
        let told = Told::default();
        told.count(Question::Livez, StatusCode::OK);
        told.count(Question::Livez, StatusCode::OK);
        told.count(Question::Healthz, StatusCode::SERVICE_UNAVAILABLE);
        let counts: Vec<_> = told.counts().map(|(_, code, count)| (code, count)).collect();
        assert_eq!(counts, [(200, 0), (503, 1), (200, 2), (503, 0)]);
    }
}

//! The Lease by which one of several controllers is the leader, as client-go's leader election does it: a candidate
//! takes the Lease over once it has seen no renewal for the Lease's whole duration, by its own monotonic clock. Clocks
//! that differ or jump do not count. Every write names the version that it replaces, so of two candidates one fails.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{Instant, sleep, timeout};

/// Name of the Lease.
const NAME: &str = "beeline-lb";
/// Duration of the Lease: the longest time without a leader after one has died.
pub(super) const DURATION: Duration = Duration::from_secs(15);
/// Time after the last renewal at which the leader stops to write.
pub(super) const VALIDITY: Duration = Duration::from_secs(10);
/// Interval of renewals, and of looks at another one's Lease.
const INTERVAL: Duration = Duration::from_secs(2);
/// Timeout of a request. A write that began within [`VALIDITY`] has ended before another leader begins.
pub(super) const TIMEOUT: Duration = Duration::from_secs(4);

/// A candidate for the Lease.
pub(super) struct Candidate {
    leases: Api<Lease>,
    identity: String,
    seen: Seen,
}

/// The last known state of the Lease, and the time since when it is known.
#[derive(Clone, PartialEq, Debug)]
struct Seen {
    lease: Option<Lease>,
    since: Instant,
}

/// The next step of a candidate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Write the own name: the Lease is the own one, is free, or was not renewed in time.
    Take,
    /// Wait: another candidate holds it.
    Wait,
}

impl Candidate {
    pub(super) fn new(client: Client, namespace: &str, identity: String) -> Self {
        let leases = Api::namespaced(client, namespace);
        Self { leases, identity, seen: Seen { lease: None, since: Instant::now() } }
    }

    /// Waits until this candidate holds the Lease; returns the time until which that is certain.
    ///
    /// # Errors
    /// If the API server does not answer, or refuses the Lease.
    pub(super) async fn acquire(&mut self) -> Result<Instant> {
        loop {
            if let Some(until) = self.step().await? {
                return Ok(until);
            }
            sleep(INTERVAL).await;
        }
    }

    /// Renews the Lease for as long as it can, and reports each time until which it is certain. Returns when another
    /// candidate has it, or when it has expired.
    pub(super) async fn hold(&mut self, mut until: Instant, report: impl Fn(Instant)) {
        loop {
            report(until);
            sleep(INTERVAL).await;
            match self.step().await {
                Ok(Some(renewed)) => until = renewed,
                Ok(None) => return tracing::warn!("another controller took the Lease {NAME}"),
                Err(error) if Instant::now() < until => tracing::debug!("the Lease was not renewed: {error:#}"),
                Err(error) => return tracing::warn!("the Lease {NAME} was lost, as it was not renewed: {error:#}"),
            }
        }
    }

    /// Gives the Lease free, if this candidate holds it.
    pub(super) async fn release(&mut self) {
        let Some(lease) = self.seen.lease.clone() else { return };
        if holder(&lease) != Some(self.identity.as_str()) {
            return;
        }
        let spec = LeaseSpec { holder_identity: None, ..lease.spec.unwrap_or_default() };
        let lease = Lease { spec: Some(spec), ..lease };
        let written = timeout(TIMEOUT, self.leases.replace(NAME, &PostParams::default(), &lease)).await;
        if !matches!(written, Ok(Ok(_))) {
            tracing::debug!(?written, "the Lease was not released; it expires");
        }
    }

    /// Takes or renews the Lease if it may; returns the time until which it is certain, or None if another candidate
    /// holds it.
    async fn step(&mut self) -> Result<Option<Instant>> {
        let now = Instant::now();
        let found = timeout(TIMEOUT, self.leases.get_opt(NAME)).await.context("no answer")?;
        self.seen.observe(found.with_context(|| format!("reading the Lease {NAME}"))?, now);
        if self.seen.step(&self.identity, now) == Step::Wait {
            return Ok(None);
        }
        let wanted = self.seen.taken(&self.identity, Timestamp::now());
        let parameters = PostParams::default();
        // The time before the request: the server stores the renewal later.
        let start = Instant::now();
        let written = match &self.seen.lease {
            None => timeout(TIMEOUT, self.leases.create(&parameters, &wanted)).await,
            Some(_) => timeout(TIMEOUT, self.leases.replace(NAME, &parameters, &wanted)).await,
        };
        match written.context("no answer")? {
            Ok(lease) => {
                self.seen.observe(Some(lease), start);
                Ok(Some(start + VALIDITY))
            }
            // Another candidate was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(error).with_context(|| format!("writing the Lease {NAME}")),
        }
    }
}

impl Seen {
    /// Records the Lease as it was read at `now`. A change begins its duration anew.
    fn observe(&mut self, lease: Option<Lease>, now: Instant) {
        if self.lease != lease {
            *self = Self { lease, since: now };
        }
    }

    fn step(&self, identity: &str, now: Instant) -> Step {
        let Some(lease) = &self.lease else { return Step::Take };
        let duration = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        let duration = duration.and_then(|seconds| u64::try_from(seconds).ok()).map_or(DURATION, Duration::from_secs);
        match holder(lease) {
            None => Step::Take,
            Some(holder) if holder == identity => Step::Take,
            Some(_) if now >= self.since + duration => Step::Take,
            Some(_) => Step::Wait,
        }
    }

    /// Returns the Lease as this candidate would hold it.
    fn taken(&self, identity: &str, now: Timestamp) -> Lease {
        let before = self.lease.clone().unwrap_or_default();
        let spec = before.spec.unwrap_or_default();
        let is_own = spec.holder_identity.as_deref() == Some(identity);
        let acquired = spec.acquire_time.filter(|_| is_own).unwrap_or(MicroTime(now));
        let transitions = spec.lease_transitions.unwrap_or_default() + i32::from(!is_own && self.lease.is_some());
        Lease {
            metadata: ObjectMeta { name: Some(NAME.to_owned()), managed_fields: None, ..before.metadata },
            spec: Some(LeaseSpec {
                holder_identity: Some(identity.to_owned()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: Some(acquired),
                renew_time: Some(MicroTime(now)),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The Lease of `holder`, renewed at this second by the clock of its node.
    fn lease(holder: &str, renewed: i64) -> Lease {
        let seen = Seen { lease: None, since: Instant::now() };
        let mut lease = seen.taken(holder, Timestamp::from_second(renewed).expect("a time"));
        lease.metadata.resource_version = Some(renewed.to_string());
        lease
    }

    #[test]
    fn a_lease_is_taken_if_it_is_free_own_or_not_renewed_for_its_duration() {
        let start = Instant::now();
        let mut seen = Seen { lease: None, since: start };
        assert_eq!(seen.step("a", start), Step::Take);
        seen.observe(Some(lease("b", 1)), start);
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!([seen.step("a", later(14)), seen.step("a", later(15))], [Step::Wait, Step::Take]);
        assert_eq!(seen.step("b", start), Step::Take, "after a restart under the same name");
        seen.observe(Some(lease("b", 2)), later(14));
        assert_eq!([seen.step("a", later(28)), seen.step("a", later(29))], [Step::Wait, Step::Take]);
        let mut free = lease("b", 3);
        free.spec.as_mut().expect("a spec").holder_identity = Some(String::new());
        seen.observe(Some(free), later(15));
        assert_eq!(seen.step("a", later(15)), Step::Take);
    }

    #[test]
    fn the_clock_of_the_holder_does_not_count() {
        let start = Instant::now();
        let mut seen = Seen { lease: None, since: start };
        // A renewal of an hour ago, and one of tomorrow.
        for renewed in [-3600, 86_400] {
            seen.observe(Some(lease("b", renewed)), start);
            assert_eq!(seen.step("a", start), Step::Wait, "{renewed}");
            assert_eq!(seen.step("a", start + DURATION), Step::Take, "{renewed}");
        }
    }

    #[test]
    fn a_taken_lease_counts_the_change_and_keeps_the_version_that_it_replaces() {
        let mut seen = Seen { lease: Some(lease("b", 1)), since: Instant::now() };
        let now = Timestamp::from_second(7).expect("a time");
        let taken = seen.taken("a", now);
        let spec = taken.spec.clone().expect("a spec");
        assert_eq!((taken.metadata.resource_version.as_deref(), spec.lease_transitions), (Some("1"), Some(1)));
        assert_eq!((spec.acquire_time, spec.renew_time), (Some(MicroTime(now)), Some(MicroTime(now))));
        seen.observe(Some(taken), Instant::now());
        let renewed = seen.taken("a", Timestamp::from_second(9).expect("a time")).spec.expect("a spec");
        assert_eq!((renewed.lease_transitions, renewed.acquire_time), (Some(1), Some(MicroTime(now))));
    }

    #[test]
    fn a_leader_stops_to_write_before_another_one_begins() {
        assert!(VALIDITY + TIMEOUT < DURATION && INTERVAL + TIMEOUT < VALIDITY);
    }
}

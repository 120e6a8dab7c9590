//! Problems of Services as Events of the cluster. Parts of the agent put problems on the [`EventQueue`] without
//! waiting; one task sends them to the API server at its own pace. The log has every problem, with or without an Event.

mod problem;
mod reporter;
mod schedule;
mod sender;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

pub(crate) use self::{
    problem::{ProblemOrigin, ServiceEvent},
    reporter::{Problems, Reporter},
};
use self::{
    schedule::{Next, Schedule},
    sender::Sender,
};
use lb_core::{objects::Key, warning::Warning};
use lb_sources::kubernetes;

/// Maximum number of Services in the queue. More Services with problems share a cause, and the log has all of them.
const MAX_SERVICES: usize = 1000;
/// Maximum number of problems of one origin for one Service.
const MAX_PROBLEMS: usize = 10;
/// Minimum time between two Events.
const PACE: Duration = Duration::from_millis(200);

/// Queue of current problems. Clones share one queue.
#[derive(Clone, Default)]
pub(crate) struct EventQueue(Option<Arc<Shared>>);

#[derive(Default)]
struct Shared {
    open: Mutex<OpenProblems>,
    changed: Notify,
}

/// Current problems by Service and origin.
type OpenProblems = BTreeMap<Key, BTreeMap<ProblemOrigin, Vec<Warning>>>;

impl EventQueue {
    /// Creates an event queue with a reader. `default()` discards.
    pub(crate) fn with_reader() -> Self {
        Self(Some(Arc::default()))
    }

    pub(crate) fn has_reader(&self) -> bool {
        self.0.is_some()
    }

    /// Replaces all problems of this origin for a Service; an empty list ends them.
    pub(crate) fn report(&self, origin: ProblemOrigin, service: &Key, mut problems: Vec<Warning>) {
        let Some(shared) = &self.0 else { return };
        let mut open = shared.lock();
        problems.truncate(MAX_PROBLEMS);
        if problems.is_empty() {
            remove(&mut open, origin, service);
        } else if open.len() < MAX_SERVICES || open.contains_key(service) {
            open.entry(service.clone()).or_default().insert(origin, problems);
        } else {
            tracing::debug!(%service, "no Event: the event queue is full");
        }
        drop(open);
        shared.changed.notify_one();
    }

    #[cfg(test)]
    pub(crate) fn open_problems(&self) -> Vec<ServiceEvent> {
        self.0.as_ref().map(|shared| service_events(&shared.lock())).unwrap_or_default()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, OpenProblems> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove(open: &mut OpenProblems, origin: ProblemOrigin, service: &Key) {
    if let Some(origins) = open.get_mut(service) {
        origins.remove(&origin);
        if origins.is_empty() {
            open.remove(service);
        }
    }
}

/// Sends the problems of the queue as Events. Never returns without an error.
///
/// # Errors
/// If the client configuration cannot be read.
pub(crate) async fn run(queue: EventQueue, options: kubernetes::KubernetesOptions) -> anyhow::Result<()> {
    let Some(shared) = queue.0 else { return std::future::pending().await };
    let node = options.node_name.clone();
    let (mut schedule, mut sender) = (Schedule::new(&node), Sender::new(options));
    loop {
        let next = schedule.next(&service_events(&shared.lock()), Instant::now());
        match next {
            Next::Send(event) => {
                let outcome = sender.send(&event, &node).await?;
                schedule.record(&event, outcome, Instant::now());
                if event.origin.is_one_shot() && outcome.is_final() {
                    remove(&mut shared.lock(), event.origin, &event.service);
                }
            }
            Next::WaitUntil(time) => tokio::select! {
                () = sleep_until(time) => {}
                () = shared.changed.notified() => {}
            },
            Next::WaitForProblem => shared.changed.notified().await,
        }
        sleep(PACE).await;
    }
}

fn service_events(open: &OpenProblems) -> Vec<ServiceEvent> {
    let mut events = Vec::new();
    for (service, origins) in open {
        for (origin, problems) in origins {
            events.extend(problems.iter().map(|warning| ServiceEvent {
                service: service.clone(),
                origin: *origin,
                warning: warning.clone(),
            }));
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(count: usize) -> Vec<Warning> {
        (0..count).map(|number| Warning::InvalidValue { object: None, problem: number.to_string() }).collect()
    }

    #[test]
    fn the_queue_holds_current_problems_up_to_its_limits() {
        let queue = EventQueue::with_reader();
        let key = |number: usize| Key::new("default", &number.to_string());
        queue.report(ProblemOrigin::Objects, &key(0), problems(2));
        queue.report(ProblemOrigin::MapSize, &key(0), problems(1));
        assert_eq!(queue.open_problems().len(), 3);
        queue.report(ProblemOrigin::Objects, &key(0), problems(1));
        assert_eq!(queue.open_problems().len(), 2, "a report replaces the one before");
        queue.report(ProblemOrigin::Objects, &key(0), Vec::new());
        queue.report(ProblemOrigin::MapSize, &key(0), Vec::new());
        queue.report(ProblemOrigin::MapSize, &key(0), Vec::new());
        assert!(queue.open_problems().is_empty());
        (0..MAX_SERVICES + 5).for_each(|number| queue.report(ProblemOrigin::Objects, &key(number), problems(1)));
        assert_eq!(queue.open_problems().len(), MAX_SERVICES);
        queue.report(ProblemOrigin::Objects, &key(0), problems(1000));
        assert_eq!(
            queue.open_problems().len(),
            MAX_SERVICES + MAX_PROBLEMS - 1,
            "a Service in a full queue may still change"
        );
    }

    #[test]
    fn a_queue_without_a_reader_discards() {
        let queue = EventQueue::default();
        queue.report(ProblemOrigin::Objects, &Key::new("default", "a"), problems(1));
        assert!(!queue.has_reader() && queue.open_problems().is_empty());
    }
}

//! Tells owners of Services what is wrong with them, as Events of the cluster. Whoever finds a problem puts it on the [`EventQueue`],
//! which costs a moment and never waits; one task reads the board and asks the API server at its own pace. What it does not
//! get to stands in the log as ever.

mod problem;
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

pub use self::problem::{Origin, ServiceEvent};
use self::{
    schedule::{Due, Schedule},
    sender::Sender,
};
use lb_core::objects::Key;
use lb_core::warning::Warning;
use lb_sources::kubernetes;

/// Services on the board. A cluster where more have problems has one problem, and the log has all of them.
const MOST_SERVICES: usize = 1000;
/// Problems of one origin about one Service.
const MOST_PROBLEMS: usize = 10;
/// At least so long from one look at the board to the next, and so from one Event to the next.
const PACE: Duration = Duration::from_millis(200);

/// What is wrong now. Its clones are one board.
#[derive(Clone, Default)]
pub struct EventQueue(Option<Arc<Shared>>);

#[derive(Default)]
struct Shared {
    standing: Mutex<Standing>,
    changed: Notify,
}

/// All that is wrong, by Service and by who found it.
type Standing = BTreeMap<Key, BTreeMap<Origin, Vec<Warning>>>;

impl EventQueue {
    /// One that somebody reads. The default is one that takes nothing.
    #[must_use]
    pub fn read() -> Self {
        Self(Some(Arc::default()))
    }

    /// Whether somebody reads it.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.0.is_some()
    }

    /// These are now all problems of this origin about a Service.
    pub fn tell(&self, origin: Origin, service: &Key, mut problems: Vec<Warning>) {
        let Some(shared) = &self.0 else { return };
        let mut standing = shared.lock();
        problems.truncate(MOST_PROBLEMS);
        if problems.is_empty() {
            forget(&mut standing, origin, service);
        } else if standing.len() < MOST_SERVICES || standing.contains_key(service) {
            standing.entry(service.clone()).or_default().insert(origin, problems);
        } else {
            tracing::debug!(%service, "the board is full: no Event");
        }
        drop(standing);
        shared.changed.notify_one();
    }

    /// All that stands on it.
    #[cfg(test)]
    pub(crate) fn all(&self) -> Vec<ServiceEvent> {
        self.0.as_ref().map(|shared| announcements(&shared.lock())).unwrap_or_default()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget(standing: &mut Standing, origin: Origin, service: &Key) {
    if let Some(of_service) = standing.get_mut(service) {
        of_service.remove(&origin);
        if of_service.is_empty() {
            standing.remove(service);
        }
    }
}

/// Makes Events of what stands on the board, for as long as it runs.
///
/// # Errors
/// When the configuration cannot be read.
pub async fn run(board: EventQueue, options: kubernetes::Options) -> anyhow::Result<()> {
    let Some(shared) = board.0 else { return std::future::pending().await };
    let node = options.node_name.clone();
    let (mut schedule, mut sender) = (Schedule::new(&node), Sender::new(options));
    loop {
        let due = schedule.due(&announcements(&shared.lock()), Instant::now());
        match due {
            Due::Now(announcement) => {
                let said = sender.send(&announcement, &node).await?;
                schedule.said(&announcement, said, Instant::now());
                if announcement.origin.is_moment() && said.is_over() {
                    forget(&mut shared.lock(), announcement.origin, &announcement.service);
                }
            }
            Due::At(time) => tokio::select! {
                () = sleep_until(time) => {}
                () = shared.changed.notified() => {}
            },
            Due::Nothing => shared.changed.notified().await,
        }
        sleep(PACE).await;
    }
}

fn announcements(standing: &Standing) -> Vec<ServiceEvent> {
    let of_service = |(service, origins): (&Key, &BTreeMap<Origin, Vec<Warning>>)| {
        let of_origin = |(origin, problems): (&Origin, &Vec<Warning>)| {
            let event = |warning: &Warning| ServiceEvent {
                service: service.clone(),
                origin: *origin,
                warning: warning.clone(),
            };
            problems.iter().map(event).collect::<Vec<_>>()
        };
        origins.iter().flat_map(of_origin).collect::<Vec<_>>()
    };
    standing.iter().flat_map(of_service).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(count: usize) -> Vec<Warning> {
        (0..count).map(|number| Warning::InvalidValue { object: None, problem: number.to_string() }).collect()
    }

    #[test]
    fn the_board_holds_what_stands_and_no_more_than_has_room() {
        let board = EventQueue::read();
        let key = |number: usize| Key::new("default", &number.to_string());
        board.tell(Origin::Objects, &key(0), problems(2));
        board.tell(Origin::Room, &key(0), problems(1));
        assert_eq!(board.all().len(), 3);
        board.tell(Origin::Objects, &key(0), problems(1));
        assert_eq!(board.all().len(), 2, "these are all now");
        board.tell(Origin::Objects, &key(0), Vec::new());
        board.tell(Origin::Room, &key(0), Vec::new());
        board.tell(Origin::Room, &key(0), Vec::new());
        assert!(board.all().is_empty());
        (0..MOST_SERVICES + 5).for_each(|number| board.tell(Origin::Objects, &key(number), problems(1)));
        assert_eq!(board.all().len(), MOST_SERVICES);
        board.tell(Origin::Objects, &key(0), problems(1000));
        assert_eq!(board.all().len(), MOST_SERVICES + MOST_PROBLEMS - 1, "who is there may change");
    }

    #[test]
    fn a_board_that_nobody_reads_takes_nothing() {
        let board = EventQueue::default();
        board.tell(Origin::Objects, &Key::new("default", "a"), problems(1));
        assert!(!board.is_read() && board.all().is_empty());
    }
}

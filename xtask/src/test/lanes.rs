//! Jobs beside each other: each lane takes the next job when its last one ends. The output of a job is printed in one
//! block.
//!
//! A row of jobs has jobs that wait first, and jobs that compute last. One lane more than asked for begins at the end
//! of the row: it computes with what the waiting jobs leave of the cores.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use crate::run;

/// A piece of work with an outcome.
pub(crate) struct Job<'a, T> {
    work: Box<dyn FnOnce() -> T + Send + 'a>,
}

impl<'a, T> Job<'a, T> {
    /// A job that does this.
    pub(crate) fn new(work: impl FnOnce() -> T + Send + 'a) -> Self {
        Self { work: Box::new(work) }
    }
}

/// Does all jobs, `lanes` at once from the first on and one from the last on, and returns the outcomes in the order of
/// the jobs.
pub(crate) fn run_all<T: Send>(jobs: Vec<Job<'_, T>>, lanes: usize) -> Vec<T> {
    let count = jobs.len();
    let queue: Mutex<VecDeque<_>> = Mutex::new(jobs.into_iter().enumerate().collect());
    let outcomes: Mutex<Vec<Option<T>>> = Mutex::new((0..count).map(|_| None).collect());
    std::thread::scope(|scope| {
        for lane in 0..=lanes {
            let take = if lane < lanes { VecDeque::pop_front } else { VecDeque::pop_back };
            let (queue, outcomes) = (&queue, &outcomes);
            scope.spawn(move || {
                loop {
                    let next = take(&mut queue.lock().unwrap_or_else(PoisonError::into_inner));
                    let Some((place, job)) = next else { break };
                    let (outcome, output) = run::in_block(job.work);
                    if !output.is_empty() {
                        run::print(output.trim_end());
                    }
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner)[place] = Some(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn outcomes_have_the_order_of_their_jobs() {
        let jobs = (0..7).map(|number| Job::new(move || number)).collect();
        assert_eq!(run_all(jobs, 3), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn jobs_run_beside_each_other_and_no_more_than_there_are_lanes() {
        let (running, most, all) = (AtomicUsize::new(0), AtomicUsize::new(0), Barrier::new(3));
        let work = || {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            all.wait();
            running.fetch_sub(1, Ordering::SeqCst);
        };
        run_all((0..6).map(|_| Job::new(work)).collect(), 2);
        assert_eq!(most.into_inner(), 3);
    }

    #[test]
    fn one_lane_begins_at_the_end() {
        let (begun, both) = (Mutex::new(Vec::new()), Barrier::new(2));
        let work = |number: usize| {
            let (begun, both) = (&begun, &both);
            Job::new(move || {
                begun.lock().unwrap().push(number);
                both.wait();
            })
        };
        run_all((0..4).map(work).collect(), 1);
        let mut first: Vec<usize> = begun.into_inner().unwrap();
        first.truncate(2);
        first.sort_unstable();
        assert_eq!(first, [0, 3]);
    }
}

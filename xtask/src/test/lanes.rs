//! Jobs beside each other: each lane takes the next job when its last one ends. The output of a job is printed in one
//! block.

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

/// Does all jobs, at most `lanes` at once, and returns the outcomes in the order of the jobs.
pub(crate) fn run_all<T: Send>(jobs: Vec<Job<'_, T>>, lanes: usize) -> Vec<T> {
    let count = jobs.len();
    let queue: Mutex<VecDeque<_>> = Mutex::new(jobs.into_iter().enumerate().collect());
    let outcomes: Mutex<Vec<Option<T>>> = Mutex::new((0..count).map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
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
        let (running, most, both) = (AtomicUsize::new(0), AtomicUsize::new(0), Barrier::new(2));
        let work = || {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            both.wait();
            running.fetch_sub(1, Ordering::SeqCst);
        };
        run_all((0..4).map(|_| Job::new(work)).collect(), 2);
        assert_eq!(most.into_inner(), 2);
    }
}

//! Load: threads that repeat an action and record its failures.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{agent::until, node::is_slow};

/// Pause before each turn; ten times as long on an emulated machine.
const PAUSE: Duration = Duration::from_millis(2);

struct Worker {
    what: &'static str,
    turns: Arc<AtomicU32>,
    thread: thread::JoinHandle<()>,
}

/// Workers that run until [`Load::end`].
#[derive(Default)]
pub struct Load {
    is_over: Arc<AtomicBool>,
    failures: Arc<Mutex<Vec<String>>>,
    workers: Vec<Worker>,
}

impl Load {
    /// Starts a worker that repeats `turn`.
    pub fn add(&mut self, what: &'static str, mut turn: impl FnMut() -> Result<(), String> + Send + 'static) {
        let turns = Arc::<AtomicU32>::default();
        let (is_over, failures, done) = (Arc::clone(&self.is_over), Arc::clone(&self.failures), Arc::clone(&turns));
        let pause = if is_slow() { PAUSE * 10 } else { PAUSE };
        let work = move || {
            while !is_over.load(Ordering::Relaxed) {
                // Leave CPU time to the agent.
                thread::sleep(pause);
                if let Err(error) = turn() {
                    println!("{what}: {error}");
                    failures.lock().expect("no panic").push(format!("{what}: {error}"));
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        };
        self.workers.push(Worker { what, turns, thread: thread::spawn(work) });
    }

    /// Waits until each worker has done `turns` more turns.
    pub fn more(&self, turns: u32) {
        let now = |worker: &Worker| worker.turns.load(Ordering::Relaxed);
        let before: Vec<_> = self.workers.iter().map(now).collect();
        until("every worker makes its turns", || {
            self.workers.iter().zip(&before).all(|(worker, before)| now(worker) >= before + turns)
        });
    }

    /// Ends the workers and asserts that no turn failed.
    pub fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        for Worker { what, turns, thread } in self.workers {
            thread.join().expect("a worker that does not panic");
            println!("{what}: {} times", turns.load(Ordering::Relaxed));
        }
        let failures = self.failures.lock().expect("no panic");
        assert!(failures.is_empty(), "{} failures, the first: {:?}", failures.len(), failures.first());
    }
}

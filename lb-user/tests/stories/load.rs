//! Load: workers that do one thing over and over, each turn of which succeeds or tells why not.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{agent::until, node::is_slow};

/// Before each turn, and ten times that where all is slow.
const PAUSE: Duration = Duration::from_millis(2);

struct Worker {
    what: &'static str,
    turns: Arc<AtomicU32>,
    thread: thread::JoinHandle<()>,
}

/// The workers. They go on until [`Load::end`].
#[derive(Default)]
pub struct Load {
    is_over: Arc<AtomicBool>,
    failures: Arc<Mutex<Vec<String>>>,
    workers: Vec<Worker>,
}

impl Load {
    /// Adds a worker.
    pub fn add(&mut self, what: &'static str, mut turn: impl FnMut() -> Result<(), String> + Send + 'static) {
        let turns = Arc::<AtomicU32>::default();
        let (is_over, failures, done) = (Arc::clone(&self.is_over), Arc::clone(&self.failures), Arc::clone(&turns));
        let pause = if is_slow() { PAUSE * 10 } else { PAUSE };
        let work = move || {
            while !is_over.load(Ordering::Relaxed) {
                // The agent needs the processor too.
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

    /// Waits until each has done so many more turns.
    pub fn more(&self, turns: u32) {
        let now = |worker: &Worker| worker.turns.load(Ordering::Relaxed);
        let before: Vec<_> = self.workers.iter().map(now).collect();
        until("the workers go on", || {
            self.workers.iter().zip(&before).all(|(worker, before)| now(worker) >= before + turns)
        });
    }

    /// Ends it: nothing failed.
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

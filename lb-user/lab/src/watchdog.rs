//! A watchdog of the machine: a thread that shall wake up and write to a file all the time, and measures how late it
//! is. Tests of times leave out what a busy machine lost.

use std::{
    fs::File,
    io::{Seek as _, Write as _},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Interval of wake-ups.
const INTERVAL: Duration = Duration::from_millis(10);
/// Steps of programs one after the other, each of which may be as late.
const STEPS: u32 = 10;

/// A thread that does as little as an agent at rest: it sleeps, wakes up and writes.
pub struct Watchdog {
    /// The time of each write, and by how much it was late.
    writes: Arc<Mutex<Vec<(Instant, Duration)>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts the thread, with a file in `directory`.
    ///
    /// # Panics
    /// If the file cannot be made.
    pub fn start(directory: &Path) -> Self {
        let mut file = File::create(directory.join("watchdog")).expect("a file");
        let writes = Arc::new(Mutex::new(vec![(Instant::now(), Duration::ZERO)]));
        let ended = Arc::<AtomicBool>::default();
        let thread = std::thread::spawn({
            let (writes, ended) = (Arc::clone(&writes), Arc::clone(&ended));
            move || {
                while !ended.load(Ordering::Relaxed) {
                    let before = Instant::now();
                    std::thread::sleep(INTERVAL);
                    file.rewind().and_then(|()| file.write_all(b"awake")).expect("a disk with room");
                    let late = before.elapsed().saturating_sub(INTERVAL);
                    writes.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), late));
                }
            }
        });
        Self { writes, ended, thread: Some(thread) }
    }

    /// Returns the time that a chain of steps may have lost on this machine since `since`, over that on an idle one.
    pub fn lost(&self, since: Instant) -> Duration {
        let writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        let late = writes.iter().rev().take_while(|(at, _)| *at >= since).map(|(_, late)| *late);
        let next = writes.last().map_or(Duration::ZERO, |(at, _)| at.elapsed().saturating_sub(INTERVAL));
        STEPS * late.chain([next]).max().unwrap_or_default()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
    }
}

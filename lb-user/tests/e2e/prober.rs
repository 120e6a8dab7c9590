//! A client outside that connects to an address all the time, and notes each attempt.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lb_kernel::netns::NetNamespace;

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(10);

/// An attempt.
struct Attempt {
    start: Instant,
    end: Instant,
    /// The error of the connect.
    refused: Option<String>,
    /// The error of the question after it.
    broken: Option<String>,
}

/// The client, which connects, asks one question and disconnects, until it is dropped.
pub struct Prober {
    target: SocketAddr,
    attempts: Arc<Mutex<Vec<Attempt>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    /// Starts it in the namespace `outside`. An attempt fails if the connect, or the answer, takes longer than
    /// `timeout`.
    pub fn start(target: SocketAddr, timeout: Duration) -> Self {
        let (attempts, ended) = (Arc::<Mutex<Vec<Attempt>>>::default(), Arc::<AtomicBool>::default());
        let thread = thread::spawn({
            let (attempts, ended) = (Arc::clone(&attempts), Arc::clone(&ended));
            move || {
                let outside = NetNamespace::open(Path::new("/run/netns/outside"));
                outside.and_then(|outside| outside.enter()).expect("the namespace");
                while !ended.load(Ordering::Relaxed) {
                    let attempt = attempt(target, timeout);
                    attempts.lock().unwrap_or_else(PoisonError::into_inner).push(attempt);
                    thread::sleep(PAUSE);
                }
            }
        });
        Self { target, attempts, ended, thread: Some(thread) }
    }

    fn attempts(&self) -> MutexGuard<'_, Vec<Attempt>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the time from `since` to the answer of the first attempt after it that has one.
    pub fn answered_after(&self, since: Instant) -> Option<Duration> {
        let is_answered =
            |attempt: &&Attempt| attempt.start >= since && attempt.refused.is_none() && attempt.broken.is_none();
        self.attempts().iter().find(is_answered).map(|attempt| attempt.end - since)
    }

    /// Prints the counts since `since`, and asserts that no connect failed. A connection that is open while its address
    /// moves may break.
    #[track_caller]
    pub fn assert_no_connect_failed(&self, since: Instant, what: &str) {
        let attempts = self.attempts();
        let of_interest = || attempts.iter().filter(|attempt| attempt.end >= since);
        let errors = |error: fn(&Attempt) -> Option<&String>| of_interest().filter_map(error).collect::<Vec<_>>();
        let (refused, broken) = (errors(|attempt| attempt.refused.as_ref()), errors(|attempt| attempt.broken.as_ref()));
        let longest = of_interest().map(|attempt| attempt.end - attempt.start).max().unwrap_or_default();
        println!(
            "   {what}: {} connects to {}, {} failed; {} were open at a move and broke; the longest took {longest:.1?}",
            of_interest().count(),
            self.target,
            refused.len(),
            broken.len(),
        );
        assert!(of_interest().count() > 0 && refused.is_empty(), "{refused:?}");
        assert!(broken.len() <= 3, "{broken:?}");
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn attempt(target: SocketAddr, timeout: Duration) -> Attempt {
    let start = Instant::now();
    let (refused, broken) = match TcpStream::connect_timeout(&target, timeout) {
        Ok(stream) => (None, ask(stream, timeout).err().map(|error| error.to_string())),
        Err(error) => (Some(error.to_string()), None),
    };
    Attempt { start, end: Instant::now(), refused, broken }
}

fn ask(stream: TcpStream, timeout: Duration) -> std::io::Result<()> {
    stream.set_read_timeout(Some(timeout))?;
    (&stream).write_all(b"who\n")?;
    let mut line = String::new();
    match BufReader::new(stream).read_line(&mut line)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

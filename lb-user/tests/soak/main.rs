//! A soak: the agent of a node under churn of objects, pods and links, kills and floods, for as long as asked. At the
//! end every count must be exact and memory flat: `cargo xtask soak`.
//!
//! Two thirds of the time the agent is killed again and again. Then one agent lives on under the same churn, and its
//! memory is watched. At last all ends, and what is left is counted. One Service is never changed, and must answer all
//! the time.
#![expect(clippy::unwrap_used, reason = "a test")]

mod churn;
mod clients;
mod exact;
mod flood;
mod objects;
mod testbed;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use lb_lab::{
    rng::Rng,
    sandbox::{Inside, run_again},
};

use crate::{
    clients::Clients,
    exact::{Row, fails},
    testbed::Testbed,
};

/// Activities of a soak, and what they did.
#[derive(Default)]
pub(crate) struct Activity {
    is_over: AtomicBool,
    objects: AtomicU64,
    pods: AtomicU64,
    links: AtomicU64,
    packets: AtomicU64,
}

impl Activity {
    /// Waits, and returns false if all is over.
    fn goes_on_after(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.is_over.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(20).min(pause));
        }
        !self.is_over.load(Ordering::Relaxed)
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let text: Vec<&str> = words.iter().map(String::as_str).collect();
    match text.as_slice() {
        ["--client", place, steady] => {
            clients::main(place, steady.parse().unwrap());
            ExitCode::SUCCESS
        }
        ["--minutes", minutes] => {
            let minutes: f64 = minutes.parse().unwrap();
            assert!(rustix::process::geteuid().is_root(), "a soak needs root");
            match Inside::find() {
                Some(inside) => soak(&inside, Duration::from_secs_f64(minutes * 60.0)),
                None => std::process::exit(run_again("soak")),
            }
        }
        _ => {
            println!("usage: soak --minutes N; by `cargo xtask soak`");
            ExitCode::SUCCESS
        }
    }
}

fn soak(inside: &Inside, time: Duration) -> ExitCode {
    let mut testbed = Testbed::make(inside);
    let activity = Activity::default();
    let (began, alone) = (Instant::now(), time.mul_f64(2.0 / 3.0));
    let clients = Clients::start(&testbed);
    let start = testbed.memory_of_maps();
    let (mut kills, mut samples) = (0, Vec::new());
    let net = testbed.lan.clone();
    let (yaml, cgroup) = (testbed.yaml.clone(), testbed.pods_cgroup());
    thread::scope(|scope| {
        // The scope ends by a panic, too.
        let ended = Ended(&activity);
        scope.spawn(|| churn::objects(&activity, &yaml));
        scope.spawn(|| churn::pods(&activity, &net, &yaml, &cgroup));
        scope.spawn(|| churn::links(&activity, &net));
        scope.spawn(|| flood::flood(&activity, &net));
        let mut rng = Rng::new(7);
        while began.elapsed() < alone {
            thread::sleep(Duration::from_millis(1_000 + rng.below(7_000)));
            testbed.restart_agent();
            kills += 1;
            print_progress(began, time, &activity, kills);
        }
        while began.elapsed() < time {
            thread::sleep(Duration::from_secs(5));
            samples.push(testbed.agent_sample());
            print_progress(began, time, &activity, kills);
        }
        drop(ended);
    });
    let mut rows = vec![
        Row::told("time", format!("{:.0} min", time.as_secs_f64() / 60.0)),
        Row::told("changes of objects", activity.objects.load(Ordering::Relaxed)),
        Row::told("pods that came and went", activity.pods.load(Ordering::Relaxed)),
        Row::told("links that came and went", activity.links.load(Ordering::Relaxed)),
        Row::told("agents killed (-9)", kills),
        Row::told("packets of floods", activity.packets.load(Ordering::Relaxed)),
    ];
    rows.extend(clients.end());
    rows.push(exact::memory(&samples));
    rows.extend(exact::counts(&testbed, &start));
    let log = testbed.log_tail();
    rows.extend(exact::at_rest(&mut testbed));
    println!("\n| what | figure | must be |\n|---|---|---|");
    rows.iter().for_each(|row| println!("{row}"));
    let failed = fails(&rows);
    match failed.as_slice() {
        [] => println!("\nsoak: every count is exact, and memory is flat"),
        failed => println!("\n{log}\nsoak: FAILED: {}", failed.join("; ")),
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ends all activities when dropped.
struct Ended<'a>(&'a Activity);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

fn print_progress(began: Instant, time: Duration, activity: &Activity, kills: u32) {
    println!(
        "{} s: {:.0} of {:.0} s: {} changes of objects, {} pods, {} links, {kills} kills, {} packets",
        clients::clock(),
        began.elapsed().as_secs_f64(),
        time.as_secs_f64(),
        activity.objects.load(Ordering::Relaxed),
        activity.pods.load(Ordering::Relaxed),
        activity.links.load(Ordering::Relaxed),
        activity.packets.load(Ordering::Relaxed)
    );
}

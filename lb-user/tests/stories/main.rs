//! Stories: real sockets on a real kernel through the real agent, each in a process, network namespace, cgroup and bpffs
//! of its own, which the runner removes whatever happens.
//!
//! `stories [FILTER]` runs them; `stories --story NAME` is one of them, as the runner starts it.

mod addresses;
mod agent;
mod bad_input;
mod capabilities;
mod choice;
mod counts;
mod devices;
mod doctor;
mod explain;
mod flows;
mod health;
mod held;
mod kill;
mod life;
mod links;
mod load;
mod monitoring;
mod node;
mod node_ports;
mod outside;
mod packets;
mod paths;
mod policy;
mod rot;
mod routes;
mod sockets;
mod systemd;
mod tcp;
mod udp;
mod upgrade;
mod verifier;

use std::{process::ExitCode, thread, time::Duration};

use lb_lab::sandbox::Sandbox;
use libtest_mimic::{Arguments, Failed, Trial};

/// A story: its name, and what happens.
type Story = (&'static str, fn(&mut node::Node));

fn stories() -> Vec<Story> {
    [
        tcp::STORIES,
        udp::STORIES,
        life::STORIES,
        kill::STORIES,
        choice::STORIES,
        held::STORIES,
        rot::STORIES,
        node_ports::STORIES,
        addresses::STORIES,
        explain::STORIES,
        counts::STORIES,
        bad_input::STORIES,
        health::STORIES,
        devices::STORIES,
        outside::STORIES,
        links::STORIES,
        packets::STORIES,
        paths::STORIES,
        policy::STORIES,
        doctor::STORIES,
        monitoring::STORIES,
        capabilities::STORIES,
        systemd::STORIES,
        routes::STORIES,
        flows::STORIES,
        upgrade::STORIES,
        verifier::STORIES,
    ]
    .concat()
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, flag, name] = arguments.as_slice()
        && flag == "--story"
    {
        let (_, story) = stories().into_iter().find(|(known, _)| known == name).expect("a story of that name");
        story(&mut node::Node::enter());
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // Each story opens connections by the hundred and waits for little: more than two at once only disturb each other.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    if let Some(reason) = node::lacking() {
        println!("stories: skipped, {reason}");
        let required = std::env::var_os("BEELINE_REQUIRE_KERNEL").is_some();
        return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let trial = |(name, _)| {
        // Other kernels are booted without a Prometheus and a systemd: not run there, rather than passed. So is what needs a next
        // version where nobody has built one.
        let is_of = |stories: &[Story]| stories.iter().any(|(of, _)| *of == name);
        let cannot_run = is_of(monitoring::STORIES) && !monitoring::has_prometheus()
            || is_of(systemd::STORIES) && !systemd::is_there()
            || is_of(upgrade::STORIES) && agent::next_beeline().is_none();
        Trial::test(name, move || run(name)).with_ignored_flag(cannot_run)
    };
    let trials = stories().into_iter().map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs one story in a process of its own.
fn run(name: &str) -> Result<(), Failed> {
    let sandbox = Sandbox::make(name)?;
    let mut command = std::process::Command::new(std::env::current_exe()?);
    sandbox.run_in(command.args(["--story", name]));
    let log = sandbox.directory().join("output");
    let output = std::fs::File::create(&log)?;
    let mut child = command.stdout(output.try_clone()?).stderr(output).spawn()?;
    // An emulated machine verifies the programs for half a minute, and some stories start the agent twenty times.
    let limit = Duration::from_secs(if node::is_slow() { 900 } else { 120 });
    let deadline = std::time::Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if std::time::Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(5));
    };
    let said = std::fs::read_to_string(&log)?;
    for line in said.lines().filter(|line| line.starts_with("LACKS ") || line.starts_with(verifier::ROW)) {
        // On a line of its own, whatever the runner has begun.
        print!("\n{line}\n");
    }
    let failure = match status {
        Some(status) if status.success() => return Ok(()),
        Some(_) => said,
        None => format!("not finished after {limit:?}\n{said}"),
    };
    if node::is_slow() {
        // Its time may be over before the runner comes to tell the failures.
        print!("\n{failure}\n");
    }
    Err(failure.into())
}

//! The real kube-proxy as an oracle: random Services and endpoints of every shape that an API server stores, and for
//! clients in, at and outside of the node kube-proxy's answer beside Beeline's.
//!
//! kube-proxy runs in nftables mode in a network namespace of its own, against a server of lists and watches that
//! serves any object; its rules are read with nft and interpreted. Each seed is a world of several generations, in
//! which objects come, change and go. `BEELINE_ORACLE_SEEDS` is the number of seeds, or `FIRST..LAST`.
#![expect(clippy::unwrap_used, reason = "a test")]

mod answer;
mod api;
mod beeline;
mod exceptions;
mod objects;
mod ruleset;
mod world;

use std::{
    ops::Range,
    process::{Command, ExitCode},
};

use lb_lab::{
    kube_proxy::{KubeProxy, Mode},
    sandbox::{Inside, Sandbox},
};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if let [_, flag, seed] = words.as_slice()
        && flag == "--seed"
    {
        Inside::find().expect("set by the runner").enter();
        world::compare(seed.parse().unwrap());
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    if let Some(obstacle) = obstacle() {
        println!("oracle: skipped, {obstacle}");
        let required = std::env::var_os("BEELINE_REQUIRE_KERNEL").is_some();
        return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let trials =
        seeds().map(|seed| Trial::test(format!("answers_equal_kube_proxys_for_seed_{seed}"), move || run(seed)));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn seeds() -> Range<u64> {
    let given = std::env::var("BEELINE_ORACLE_SEEDS").unwrap_or_else(|_| "2".to_owned());
    match given.split_once("..") {
        Some((first, last)) => first.parse().unwrap()..last.parse().unwrap(),
        None => 0..given.parse().unwrap(),
    }
}

/// The reason why kube-proxy cannot run on this machine, if there is one.
fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    KubeProxy::find(Mode::Nftables).err()
}

/// Compares the world of a seed in a process of its own.
fn run(seed: u64) -> Result<(), Failed> {
    let sandbox = Sandbox::make(&format!("oracle-{seed}"))?;
    let output = sandbox.run_in(Command::new(std::env::current_exe()?).args(["--seed", &seed.to_string()])).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        text.lines().filter(|line| line.starts_with("COMPARED ")).for_each(|line| println!("\n{line}"));
        Ok(())
    } else {
        Err(text.into())
    }
}

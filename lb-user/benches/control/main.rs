//! The cost of the control plane between parsed objects and real BPF maps: `cargo xtask bench control`.
//!
//! Every round of every scenario is a process of its own with new maps, so that no round inherits memory; the
//! rounds of the scenarios alternate, and a figure is the median over them.

mod objects;
mod rounds;

use std::process::Command;

use lb_lab::{
    sandbox::{Inside, Sandbox},
    table::{Spread, header, row},
};

use rounds::{ControlFigure, SCENARIOS};

/// Rounds of a figure; odd, so that there is a median.
const ROUNDS: usize = 7;

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, flag, name] = arguments.as_slice()
        && flag == "--round"
    {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).expect("a scenario of that name");
        let bpffs = Inside::find().expect("the first process sets it").enter();
        (scenario.run)(&bpffs).iter().for_each(|figure| println!("{}", figure.to_line()));
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("the bench of the control plane needs root");
        std::process::exit(1);
    }
    let mut measured: Vec<Vec<Vec<ControlFigure>>> = SCENARIOS.iter().map(|_| Vec::new()).collect();
    for number in 1..=ROUNDS {
        eprintln!("round {number} of {ROUNDS}");
        for (scenario, rounds) in SCENARIOS.iter().zip(&mut measured) {
            rounds.push(round(scenario.name));
        }
    }
    header();
    for (scenario, rounds) in SCENARIOS.iter().zip(&measured) {
        for (index, figure) in rounds.first().into_iter().flatten().enumerate() {
            let values = rounds.iter().filter_map(|figures| figures.get(index)).map(|figure| figure.value);
            row(&format!("{}: {}", scenario.title, figure.what), &figure.aim, &figure.unit, &Spread::of(values));
        }
    }
}

/// Runs a round in a process of its own.
fn round(name: &str) -> Vec<ControlFigure> {
    let sandbox = Sandbox::make("bench").expect("a cgroup and a directory");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--round", name]).stderr(std::process::Stdio::inherit());
    let output = sandbox.run_in(&mut command).output().expect("this program starts");
    assert!(output.status.success(), "the round {name} ended with {}", output.status);
    let text = String::from_utf8(output.stdout).expect("figures are text");
    text.lines().map(ControlFigure::from_line).collect()
}

//! What the control plane costs between objects already parsed and real BPF maps: `cargo xtask bench control`.
//!
//! Every round of every scenario is a process of its own with new maps, so that none inherits another's memory; the
//! rounds of the scenarios alternate, and a figure is the median over them.

mod objects;
#[expect(dead_code, reason = "no process joins the cgroup: nothing is attached")]
#[path = "../../tests/stories/place.rs"]
mod place;
mod rounds;
#[path = "../support/table.rs"]
mod table;

use std::{path::Path, process::Command};

use rounds::{Figure, SCENARIOS};
use table::{Spread, header, row};

/// Rounds of a figure; odd, so that there is a median.
const ROUNDS: usize = 7;

/// Environment of the process that measures: its directory, which the first process removes after it.
const DIRECTORY: &str = "BEELINE_BENCH_DIRECTORY";

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, flag, name] = arguments.as_slice()
        && flag == "--round"
    {
        let directory = std::env::var_os(DIRECTORY).expect("the first process sets it");
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).expect("a scenario of that name");
        place::enter_namespaces();
        let bpffs = place::mount_bpffs(Path::new(&directory));
        (scenario.run)(&bpffs).iter().for_each(|figure| println!("{}", figure.to_line()));
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("the bench of the control plane needs root");
        std::process::exit(1);
    }
    let mut measured: Vec<Vec<Vec<Figure>>> = SCENARIOS.iter().map(|_| Vec::new()).collect();
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

/// One round in a process of its own.
fn round(name: &str) -> Vec<Figure> {
    let place = place::Place::make("bench").expect("a cgroup and a directory");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--round", name]).env(DIRECTORY, place.directory()).stderr(std::process::Stdio::inherit());
    let output = command.output().expect("this program starts");
    assert!(output.status.success(), "the round {name} ended with {}", output.status);
    let text = String::from_utf8(output.stdout).expect("figures are text");
    text.lines().map(Figure::from_line).collect()
}

//! A real cluster on one machine: kube-apiserver and its controllers, two nodes with kubelet, containerd and runc, pods from
//! images, and Beeline as `deploy/` installs it, without kube-proxy. `cargo xtask e2e` brings what it needs and runs it.
//!
//! `e2e [FILTER]` tells the stories; the program is also what runs in the pods: `e2e serve`, `e2e load`, `e2e pause`.
#![expect(clippy::unwrap_used, reason = "a test")]

mod cluster;
mod control_plane;
mod figures;
mod install;
mod kube_proxy;
mod load;
mod network;
mod node;
mod place;
mod pods;
mod process;
mod serve;
mod stories;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["pause"] => serve::pause(),
        ["serve", ports @ ..] => serve::main(ports),
        ["load", targets @ ..] => load::main(targets),
        ["ask", target] => load::ask_once(target),
        [place::INSIDE, "--figures"] => figures::main(),
        [place::INSIDE, ..] => stories::main(),
        // The runner of all tests of the package asks what there is.
        ["--list", ..] => ExitCode::SUCCESS,
        _ => place::main(&arguments),
    }
}

//! A real cluster on one machine: kube-apiserver and its controllers, two nodes with kubelet, containerd and runc, pods
//! from images, and Beeline as `deploy/` installs it, without kube-proxy. `cargo xtask e2e` fetches the programs and
//! runs it.
//!
//! `e2e [FILTER]` runs the stories; pods run the same program as `e2e serve`, `e2e load`, `e2e pause`.
#![expect(clippy::unwrap_used, reason = "a test")]

mod addresses;
mod cluster;
mod cni;
mod control_plane;
mod figures;
mod install;
mod kube_proxy;
mod load;
mod network;
mod node;
mod pods;
mod prober;
mod process;
mod resolver;
mod sandbox;
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
        ["ask-often", target, times] => load::ask_often(target, times),
        ["resolve", target] => resolver::main(target),
        ["resolve-steadily", file, server] => resolver::ask_steadily(file, server),
        [sandbox::INSIDE, "--figures"] => figures::main(),
        [sandbox::INSIDE, ..] => stories::main(),
        // `cargo test` lists the tests of every target.
        ["--list", ..] => ExitCode::SUCCESS,
        _ => sandbox::main(&arguments),
    }
}

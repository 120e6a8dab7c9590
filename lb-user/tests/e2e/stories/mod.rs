//! The stories, which run one after the other in one cluster.

mod announce;
mod beside;
mod calls;
mod dns_cache;
mod docker;
mod endpoints;
mod host_ports;
mod life;
mod metallb;
mod nodes;
mod plain;
mod services;

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use libtest_mimic::{Arguments, Trial};

use crate::{cluster::Cluster, cni::Cni, install, sandbox};

/// A story: its name and its steps.
type Story = (&'static str, fn(&Cluster));

fn stories() -> Vec<Story> {
    let of_the_network = if Cni::chosen() == Cni::Docker { docker::STORIES } else { &[] };
    [
        services::STORIES,
        host_ports::STORIES,
        dns_cache::STORIES,
        endpoints::STORIES,
        calls::STORIES,
        of_the_network,
        life::STORIES,
        announce::STORIES,
        metallb::STORIES,
        nodes::STORIES,
        plain::STORIES,
        beside::STORIES,
    ]
    .concat()
}

/// Runs the stories. The first starts the cluster and installs Beeline.
pub fn main() -> ExitCode {
    let own_arguments = std::env::args().filter(|argument| argument != sandbox::INSIDE);
    let mut arguments = Arguments::from_iter(own_arguments);
    // The stories share one cluster.
    arguments.test_threads = Some(1);
    let cluster: Arc<Mutex<Option<Cluster>>> = Arc::default();
    let trials = stories().into_iter().map(|(name, story)| {
        let cluster = Arc::clone(&cluster);
        Trial::test(name, move || {
            let mut cluster = cluster.lock().unwrap_or_else(PoisonError::into_inner);
            story(cluster.get_or_insert_with(start));
            Ok(())
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn start() -> Cluster {
    let begun = Instant::now();
    let cluster = Cluster::start();
    println!("\n   the cluster is up after {:.1} s", begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    install::install(&cluster, install::PLAIN);
    println!("   Beeline is on both nodes {:.1} s after `kubectl apply -k`", begun.elapsed().as_secs_f64());
    cluster
}

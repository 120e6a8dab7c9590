//! Stories: tests of the real agent with real sockets on a real kernel. Each runs in its own process, network
//! namespace, cgroup and bpffs, which the runner removes also after a failure.
//!
//! `stories [FILTER]` runs them; the runner starts each one with `stories --story NAME`.

mod agent;
mod agent_lifecycle;
mod announced_addresses;
mod announced_routes;
mod backend_choice;
mod bad_input;
mod capabilities;
mod connection_age;
mod devices;
mod dns_cache;
mod doctor;
mod ejection;
mod ejection_udp;
mod explain;
mod external_traffic;
mod firewalls;
mod flow_expiry;
mod get_and_top;
mod health_and_metrics;
mod host_ports;
mod integrity;
mod io_uring;
mod kernel_clients;
mod lab_network;
mod link_kinds;
mod load;
mod monitoring;
mod mptcp;
mod near_endpoints;
mod network_policy;
mod node;
mod node_addresses;
mod node_ports;
mod own_addresses;
mod packet_links;
mod packets;
mod places;
mod pod_link_kinds;
mod pod_modes;
mod port_ranges;
mod probes;
mod room;
mod routing_daemons;
mod sctp_and_vlan;
mod service_changes;
mod slow_path;
mod slow_start;
mod socket_counts;
mod socket_termination;
mod sockets;
mod source_ranges;
mod stale_sockets;
mod standing_connections;
mod systemd;
mod tcp;
mod traced;
mod udp;
mod udp_connect;
mod unusual_routes;
mod upgrade;
mod uplink_kinds;
mod verifier;
mod vips;
mod watch;

use std::{process::ExitCode, thread, time::Duration};

use lb_lab::sandbox::Sandbox;
use libtest_mimic::{Arguments, Failed, Trial};

/// A story: its name and its function.
type Story = (&'static str, fn(&mut node::StoryNode));

fn stories() -> Vec<Story> {
    [
        tcp::STORIES,
        udp::STORIES,
        udp_connect::STORIES,
        mptcp::STORIES,
        own_addresses::STORIES,
        dns_cache::STORIES,
        dns_cache::REAL,
        mptcp::LONG,
        agent_lifecycle::STORIES,
        announced_addresses::STORIES,
        announced_routes::STORIES,
        routing_daemons::STORIES,
        socket_termination::STORIES,
        backend_choice::STORIES,
        socket_counts::STORIES,
        kernel_clients::STORIES,
        source_ranges::STORIES,
        stale_sockets::STORIES,
        service_changes::STORIES,
        near_endpoints::STORIES,
        port_ranges::STORIES,
        slow_start::STORIES,
        connection_age::STORIES,
        probes::STORIES,
        ejection::STORIES,
        ejection_udp::STORIES,
        node_ports::STORIES,
        node_addresses::STORIES,
        host_ports::STORIES,
        explain::STORIES,
        get_and_top::STORIES,
        bad_input::STORIES,
        health_and_metrics::STORIES,
        integrity::STORIES,
        io_uring::STORIES,
        devices::STORIES,
        external_traffic::STORIES,
        room::STORIES,
        sctp_and_vlan::STORIES,
        packet_links::STORIES,
        packets::STORIES,
        places::STORIES,
        slow_path::STORIES,
        standing_connections::STORIES,
        pod_link_kinds::STORIES,
        pod_modes::STORIES,
        network_policy::STORIES,
        doctor::STORIES,
        monitoring::STORIES,
        capabilities::STORIES,
        systemd::STORIES,
        lab_network::STORIES,
        link_kinds::STORIES,
        flow_expiry::STORIES,
        firewalls::STORIES,
        upgrade::STORIES,
        upgrade::OWN,
        unusual_routes::STORIES,
        uplink_kinds::STORIES,
        verifier::STORIES,
        traced::STORIES,
        vips::STORIES,
        watch::STORIES,
    ]
    .concat()
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, flag, name] = arguments.as_slice()
        && flag == "--story"
    {
        let (_, story) = stories().into_iter().find(|(known, _)| known == name).expect("a story with this name exists");
        story(&mut node::StoryNode::enter());
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // Most stories wait for two thirds of their time. More of them at once on two cores would not be done earlier, and
    // would disturb the stories that measure times.
    arguments.test_threads = arguments.test_threads.or(Some(3));
    if let Some(reason) = node::missing_requirement() {
        println!("stories: skipped, {reason}");
        let required = std::env::var_os("BEELINE_REQUIRE_KERNEL").is_some();
        return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let trial = |(name, _)| {
        // Mark stories as ignored, not as passed, where their tools are missing: the machines of other kernels have
        // neither Prometheus nor systemd, and not every run builds a next version.
        let is_one_of = |stories: &[Story]| stories.iter().any(|(story, _)| *story == name);
        let cannot_run = is_one_of(mptcp::LONG)
            || is_one_of(monitoring::STORIES) && !monitoring::has_prometheus()
            || is_one_of(routing_daemons::STORIES) && !routing_daemons::has_daemons()
            || is_one_of(dns_cache::REAL) && !dns_cache::has_coredns()
            || is_one_of(systemd::STORIES) && !systemd::is_installed()
            || is_one_of(upgrade::STORIES) && agent::next_beeline().is_none();
        let limit = story_limit(is_one_of(mptcp::LONG));
        Trial::test(name, move || run(name, limit)).with_ignored_flag(cannot_run)
    };
    let trials = stories().into_iter().map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Time limit of a story.
fn story_limit(is_long: bool) -> Duration {
    // On an emulated machine each agent start takes half a minute in the verifier, and some stories start it twenty
    // times.
    Duration::from_secs(if is_long || node::is_slow() { 900 } else { 120 })
}

/// Runs one story in its own process.
fn run(name: &str, limit: Duration) -> Result<(), Failed> {
    let sandbox = Sandbox::make(name)?;
    let mut command = std::process::Command::new(std::env::current_exe()?);
    sandbox.run_in(command.args(["--story", name]));
    let log = sandbox.directory().join("output");
    let output = std::fs::File::create(&log)?;
    let mut child = command.stdout(output.try_clone()?).stderr(output).spawn()?;
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
    let output_text = std::fs::read_to_string(&log)?;
    for line in output_text.lines().filter(|line| line.starts_with("LACKS ") || line.starts_with(verifier::ROW)) {
        // Start a new line: the runner may have printed part of one.
        print!("\n{line}\n");
    }
    let failure = match status {
        Some(status) if status.success() => return Ok(()),
        Some(_) => output_text,
        None => format!("not finished after {limit:?}\n{output_text}"),
    };
    if node::is_slow() {
        // The machine may reach its time limit before the runner prints the list of failures.
        print!("\n{failure}\n");
    }
    Err(failure.into())
}

//! Hand-written endpoints: the server of one is killed, that of another falls silent, and the API is not told.

use std::{thread, time::Duration};

use lb_lab::ChildProcess;

use super::Story;
use crate::{
    addresses::{self, at},
    cluster::Cluster,
    install,
    load::Count,
    pods::PodLoad,
    process::{run, try_run, until, within},
};

pub const STORIES: &[Story] = &[(
    "clients_leave_a_killed_hand_written_endpoint_after_k_connects_or_its_probe",
    clients_leave_a_killed_hand_written_endpoint_after_k_connects_or_its_probe,
)];

const PORT: u16 = 9400;
const SERVERS: usize = 4;
/// Failures after which a client leaves an endpoint.
const FAILURES: u64 = 3;
/// Connects that must all succeed.
const MORE: u64 = 300;

/// The Services, with their annotations. The last one shows what the others are spared.
const SERVICES: [(&str, &str); 4] = [
    ("ejecting", "beeline.io/eject: 3 in 1m for 10m"),
    ("probing", "beeline.io/probe: tcp every 1s fail 2"),
    ("both", "beeline.io/eject: 3 in 1m for 10m, beeline.io/probe: tcp every 1s fail 2"),
    ("plain", "beeline.io/scheduler: random"),
];
/// The number of Services that watch their endpoints.
const WATCHING: usize = 3;

fn address(number: usize) -> String {
    addresses::first(&format!("172.30.0.{}", 30 + number), &format!("fd30::30:{number}")).to_owned()
}

fn start_server(cluster: &Cluster, number: usize) -> ChildProcess {
    let log = cluster.directory.join(format!("log/hand-written-{number}.log"));
    let own = std::env::current_exe().expect("this program");
    ChildProcess::start_appending(within("outside", own).args(["serve", &at(&address(number), PORT)]), &log)
}

/// Makes the Services with the same endpoints, and returns their cluster IPs.
fn make(cluster: &Cluster) -> Vec<String> {
    let ips: Vec<String> = (0..SERVERS).map(|number| format!("{{ip: '{}'}}", address(number))).collect();
    for (name, annotations) in SERVICES {
        let annotations = annotations.replace(": ", ": '").replace(", ", "', ") + "'";
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\n\
             spec: {{ports: [{{port: 80, targetPort: {PORT}}}]}}\n---\n\
             apiVersion: v1\nkind: Endpoints\nmetadata: {{name: {name}}}\nsubsets:\n\
             - addresses: [{}]\n  ports: [{{port: {PORT}}}]\n",
            ips.join(", ")
        ));
    }
    let vip = |name: &str| {
        let service = cluster.get(&format!("service {name}"));
        at(service["spec"]["clusterIP"].as_str().expect("a cluster IP"), 80)
    };
    SERVICES.iter().map(|(name, _)| vip(name)).collect()
}

/// Lets packets of a server's clients be dropped (`-I`), or no more (`-D`).
fn silence(action: &str, number: usize) {
    let iptables = addresses::first("iptables", "ip6tables");
    let rule = format!("{action} INPUT -p tcp --dport {PORT} -d {} -j DROP", address(number));
    try_run(within("outside", iptables).args(rule.split(' '))).unwrap_or_else(|error| panic!("{error}"));
}

/// Waits until both nodes have taken the endpoint out of the probed Services, or back.
fn until_probed(cluster: &Cluster, number: usize, fails: bool) {
    for node in ["node1", "node2"] {
        until("the probe has noticed", 120, || {
            let shown = install::beeline(cluster, node, "explain default/probing")?;
            let shown = shown + &install::beeline(cluster, node, "explain default/both")?;
            let place = at(&address(number), PORT);
            let lines: Vec<&str> = shown.lines().filter(|line| line.contains(&place)).collect();
            let is_so = |line: &&str| line.contains("not used: its probe fails") == fails;
            if lines.len() == 2 && lines.iter().all(is_so) { Ok(()) } else { Err(shown) }
        });
    }
}

/// Waits until every client has succeeded so many times more.
fn until_more(loads: &[PodLoad<'_>], more: u64) {
    let now = || loads.iter().flat_map(watching).collect::<Vec<Count>>();
    let before = now();
    until("every client connects", 300, || {
        let counts = now();
        let has_grown = |(now, before): (&Count, &Count)| now.done >= before.done + more;
        if counts.iter().zip(&before).all(has_grown) { Ok(()) } else { Err(format!("{counts:?}")) }
    });
}

/// The counts of a client's calls to Services that watch their endpoints.
fn watching(load: &PodLoad<'_>) -> Vec<Count> {
    load.counts().into_iter().take(WATCHING).collect()
}

/// The failures of each client at such Services: those of the first node's, then those of the second's.
fn failures(loads: &[PodLoad<'_>]) -> Vec<u64> {
    loads.iter().flat_map(watching).map(|count| count.failed).collect()
}

/// The failures of each client at the Service that does not watch.
fn failures_at_plain(loads: &[PodLoad<'_>]) -> Vec<u64> {
    loads.iter().filter_map(|load| Some(load.counts().get(WATCHING)?.failed)).collect()
}

fn clients_leave_a_killed_hand_written_endpoint_after_k_connects_or_its_probe(cluster: &Cluster) {
    for number in 0..SERVERS {
        let address =
            addresses::first(&format!("{}/24", address(number)), &format!("{}/64", address(number))).to_owned();
        run("ip", &["-n", "outside", "addr", "add", &address, "dev", "eth0", "nodad"]);
    }
    let mut servers: Vec<_> = (0..SERVERS).map(|number| Some(start_server(cluster, number))).collect();
    let vips = make(cluster);
    let targets: Vec<String> = vips.iter().map(|vip| format!("tcp={vip}")).collect();
    let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
    let loads = ["node1", "node2"].map(|node| PodLoad::start(cluster, &format!("caller-{node}"), node, &targets));
    until_probed(cluster, SERVERS - 1, false);
    until_more(&loads, MORE);
    assert_eq!(failures(&loads), [0; 6], "all servers answer");

    let of = |node: &str| SERVICES.iter().take(WATCHING).map(move |(name, _)| format!("{node}, {name}")).collect();
    let names: Vec<String> = ["node1", "node2"].into_iter().flat_map::<Vec<_>, _>(of).collect();
    let mut before = failures(&loads);
    for (what, number) in [("killed", SERVERS - 1), ("silent", SERVERS - 2)] {
        match what {
            "killed" => servers[number] = None,
            _ => silence("-I", number),
        }
        until_probed(cluster, number, true);
        until("each ejecting client has met it", 300, || {
            let counts = failures(&loads);
            if [0, WATCHING].iter().all(|at| counts[*at] >= before[*at] + FAILURES) {
                Ok(())
            } else {
                Err(format!("{counts:?}"))
            }
        });
        // Connects that were begun before.
        thread::sleep(Duration::from_secs(6));
        let after = failures(&loads);
        for ((name, after), before) in names.iter().zip(&after).zip(&before) {
            println!("   {what}: {name}: {} failed connects", after - before);
        }
        until_more(&loads, MORE);
        assert_eq!(failures(&loads), after, "{what}: failed connects afterwards");
        for (at, (after, before)) in after.iter().zip(&before).enumerate() {
            let (failed, is_probed) = (after - before, at % WATCHING == 1);
            assert!(failed <= FAILURES || is_probed, "{what}: {failed} failed connects of client {at}");
        }
        let plain = failures_at_plain(&loads);
        println!("   {what}: {plain:?} failed connects without an annotation, and more to come");
        assert!(plain.iter().all(|failed| *failed > FAILURES), "{plain:?}");
        before = after;
    }

    silence("-D", SERVERS - 2);
    servers[SERVERS - 1] = Some(start_server(cluster, SERVERS - 1));
    for number in [SERVERS - 1, SERVERS - 2] {
        until_probed(cluster, number, false);
    }
    until_more(&loads, MORE);
    assert_eq!(failures(&loads), before, "servers that are back");
    for load in &loads {
        load.counts().iter().for_each(|count| println!("   {count}"));
    }
    drop(loads);
    for (name, _) in SERVICES {
        cluster.kubectl(&["delete", "service,endpoints", name, "--ignore-not-found"]);
    }
}

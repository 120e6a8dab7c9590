//! Load balancer addresses from `beeline lb`, announced on the link by the agents of two nodes, with clients outside:
//! the end of an agent, an upgrade, a drain, and the loss of a node's power. Another client asks all the while who has
//! the address.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use lb_kernel::{netns::NetNamespace, packet_socket::PacketSocket};
use lb_lab::neighbour_client::NeighbourClient;

use super::Story;
use crate::{
    addresses,
    cluster::Cluster,
    install,
    network::set_link,
    pods::Web,
    prober::Prober,
    process::{run, until},
};

pub const STORIES: &[Story] = &[(
    "announced_addresses_stay_with_agents_that_end_and_leave_nodes_that_lose_power",
    announced_addresses_stay_with_agents_that_end_and_leave_nodes_that_lose_power,
)];

/// Interval of questions.
const ROUND: Duration = Duration::from_millis(20);
/// Patience of clients whose connects must not fail.
pub(super) const PATIENT: Duration = Duration::from_secs(5);
/// Patience of clients that measure the time of a move.
const IMPATIENT: Duration = Duration::from_millis(100);
/// The time within which a node that has lost its power is replaced.
const REPLACED: Duration = Duration::from_secs(3);
/// The time in which the addresses of a group settle, and after which late failures have shown.
pub(super) const SETTLED: Duration = Duration::from_secs(6);

const NAME: &str = "announced";

fn web<'a>(node: Option<&'a str>) -> Web<'a> {
    Web { name: NAME, replicas: 2, node, service: "type: LoadBalancer\n  loadBalancerClass: beeline.io/lb", port: "" }
}

/// The addresses of a Service, with the clients' port.
pub(super) fn targets(cluster: &Cluster, name: &str) -> Vec<SocketAddr> {
    until("the Service has its addresses", 60, || {
        let service = cluster.get(&format!("service {name}"));
        let ingress = service["status"]["loadBalancer"]["ingress"].as_array().ok_or_else(|| service.to_string())?;
        let addresses = ingress.iter().filter_map(|entry| entry["ip"].as_str()?.parse::<IpAddr>().ok());
        Ok(addresses.map(|address| SocketAddr::new(address, 80)).collect())
    })
}

/// The Lease: the holder of the API server's vote, and the group.
fn lease(cluster: &Cluster) -> Result<(String, String), String> {
    let path = r"--output=jsonpath={.spec.holderIdentity}|{.metadata.annotations.beeline\.io/announcers}";
    let text = cluster.try_kubectl(&["get", "lease/beeline-announce", "--namespace=kube-system", path])?;
    text.split_once('|').map(|(holder, group)| (holder.to_owned(), group.to_owned())).ok_or(text)
}

/// The index of a device in a namespace, and its link address.
fn device(namespace: &str) -> (u32, [u8; 6]) {
    let link = run("ip", &["-n", namespace, "-oneline", "link", "show", "eth0"]);
    let index = link.split(':').next().and_then(|index| index.parse().ok()).expect("an index");
    let text = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("a link address");
    let octets: Vec<u8> = text.split(':').map(|octet| u8::from_str_radix(octet, 16).expect("hex")).collect();
    (index, octets.try_into().expect("6 octets"))
}

/// Starts the client that asks who has the addresses.
pub(super) fn ask_on_link(targets: &[SocketAddr]) -> NeighbourClient {
    let open = |frames| {
        let open = move || {
            NetNamespace::open(Path::new("/run/netns/outside"))?.enter()?;
            PacketSocket::open_for(device("outside").0, frames)
        };
        thread::spawn(open).join().expect("no panic")
    };
    let senders = (Ipv4Addr::new(172, 30, 0, 100), Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, 0x100));
    NeighbourClient::start(open, senders, targets.iter().map(SocketAddr::ip), ROUND)
}

/// The name of the node whose agent announces an address.
pub(super) fn holder(cluster: &Cluster, address: IpAddr) -> Result<String, String> {
    let line = |node: &str| {
        let shown = install::beeline(cluster, node, "get addresses")?;
        let line = shown.lines().find(|line| line.split_whitespace().next() == Some(&address.to_string()));
        line.map(str::to_owned).ok_or(shown)
    };
    let lines = ["node1", "node2"].map(|node| line(node).map(|line| (node, line)));
    let here: Vec<_> = lines.iter().flatten().filter(|(_, line)| !line.contains("not here")).collect();
    match here.as_slice() {
        [(node, _)] => Ok((*node).to_owned()),
        _ => Err(format!("{lines:?}")),
    }
}

fn announced_addresses_stay_with_agents_that_end_and_leave_nodes_that_lose_power(cluster: &Cluster) {
    install::install_announced(cluster);
    let pool = addresses::ranges("172.30.0.200-172.30.0.203", "fd30::200-fd30::203").replace(',', "', '");
    cluster.apply(&format!(
        "apiVersion: beeline.io/v1alpha1\nkind: AddressPool\nmetadata: {{name: e2e}}\nspec: {{addresses: ['{pool}']}}\n"
    ));
    web(None).make(cluster);
    let targets = targets(cluster, NAME);
    let first = targets[0].ip();
    until("both nodes are a group", 60, || {
        let (holder, group) = lease(cluster)?;
        if group.ends_with(r#""members":["node1","node2"]}"#) { Ok(()) } else { Err(format!("{holder} {group}")) }
    });
    let asking = ask_on_link(&targets);
    let probers = || targets.iter().map(|target| Prober::start(*target, PATIENT)).collect::<Vec<_>>();
    thread::sleep(SETTLED);
    let lost = until("one node announces the address", 30, || holder(cluster, first));
    let other = if lost == "node1" { "node2" } else { "node1" };
    println!("   {targets:?}: {lost} announces {first}");
    let until_back = || {
        until("the address is back", 60, || match holder(cluster, first)? {
            node if node == lost => Ok(()),
            node => Err(node),
        });
        thread::sleep(SETTLED);
    };
    let assert_no_connect_failed = |probers: &[Prober], since: Instant, what: &str| {
        probers.iter().for_each(|prober| prober.assert_no_connect_failed(since, what));
    };

    let clients = probers();
    let start = Instant::now();
    let agent = install::agent_on(cluster, &lost);
    cluster.kubectl(&["delete", "pod", &agent, "--namespace=kube-system"]);
    cluster.until_rolled_out("daemonset/beeline", "kube-system");
    until_back();
    assert_no_connect_failed(&clients, start, "the holder's agent is deleted, and the next one starts");

    let start = Instant::now();
    cluster.kubectl(&["rollout", "restart", "daemonset/beeline", "--namespace=kube-system"]);
    cluster.until_rolled_out("daemonset/beeline", "kube-system");
    until_back();
    assert_no_connect_failed(&clients, start, "both agents are replaced");

    let start = Instant::now();
    let drain = ["drain", &lost, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s"];
    cluster.kubectl(&drain);
    until("the other node announces the address", 30, || match holder(cluster, first)? {
        node if node == other => Ok(()),
        node => Err(node),
    });
    thread::sleep(SETTLED);
    assert_no_connect_failed(&clients, start, "the holder is drained");
    let start = Instant::now();
    cluster.kubectl(&["uncordon", &lost]);
    until_back();
    assert_no_connect_failed(&clients, start, "it comes back");
    drop(clients);

    // The backends go to the other node: those of the lost one would be endpoints until it is NotReady.
    web(Some(other)).make(cluster);
    let clients: Vec<Prober> = targets.iter().map(|target| Prober::start(*target, IMPATIENT)).collect();
    thread::sleep(Duration::from_secs(12));
    let start = Instant::now();
    set_link(&lost, "down");
    cluster.node(&lost).power_off();
    for (client, target) in clients.iter().zip(&targets) {
        let after = until("the client is answered", 30, || client.answered_after(start).ok_or_else(String::new));
        println!("   the holder loses its power: {target} answers the client again after {after:.1?}");
        assert!(after < REPLACED, "{after:?}");
    }
    let (voter, _) = lease(cluster).expect("the Lease");
    println!("   of two announcers one is left, with the vote of the API server: {voter}");
    assert_eq!(voter, other);
    drop(clients);

    let clients = probers();
    let start = Instant::now();
    set_link(&lost, "up");
    cluster.node(&lost).power_on();
    cluster.until_nodes_are_ready();
    cluster.until_rolled_out("daemonset/beeline", "kube-system");
    until("the agent answers", 60, || install::beeline(cluster, &lost, "get services"));
    until_back();
    assert_no_connect_failed(&clients, start, "power comes back");
    drop(clients);

    println!("   {} questions on the link, none with answers of two hosts", asking.end());
    web(None).remove(cluster);
    install::remove_announced(cluster);
    install::install(cluster, install::PLAIN);
}

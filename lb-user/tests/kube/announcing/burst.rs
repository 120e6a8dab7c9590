//! A thousand load balancer addresses at once, allotted by `beeline lb` and announced by three nodes.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use lb_lab::{api_client::ApiClient, api_server::ApiServer, neighbour_client::Heard};
use rustix::process::Signal;
use serde_json::json;

use super::{
    REPLACED, until,
    wire::{Wire, delete_nodes, lease, make_nodes, signal, until_group},
};
use crate::{
    bootstrap::is_skipped,
    load_balancers::{Controller, install, pool, uninstall},
};

const SERVICES: usize = 1000;
const NODES: usize = 3;
/// Interval of questions for each address.
const ROUND: Duration = Duration::from_millis(250);

/// Returns the highest number of announcements in 100 ms.
fn most_at_once(heard: &[Heard]) -> usize {
    let in_window = |first: usize| {
        let end = heard[first].at + Duration::from_millis(100);
        heard[first..].iter().take_while(|heard| heard.at < end).count()
    };
    (0..heard.len()).map(in_window).max().unwrap_or_default()
}

/// All addresses are answered, and the Lease is not written for them; the loss of a node moves its third.
pub(crate) fn a_thousand_addresses_are_announced(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    let controllers_kubeconfig = install(server);
    server.apply(&pool("burst", "addresses: [10.98.0.0/16]"));
    make_nodes(server, NODES);
    let wire = Wire::make(server, NODES);
    let agents: Vec<_> = (1..=NODES).map(|number| wire.start_agent(number)).collect();
    until_group(server, &[1, 2, 3]);
    let controller = Controller::start(&controllers_kubeconfig, &[]);
    until("it leads", || controller.is_leader());
    // The controller allots from the lowest on.
    let asked = (1..=SERVICES as u32 + 24)
        .map(|number| Ipv4Addr::from_bits(Ipv4Addr::new(10, 98, 0, 0).to_bits() + number).into());
    let client = wire.client_of(asked, ROUND);
    let before = lease(server);

    let start = Instant::now();
    let objects = (0..SERVICES).map(|number| {
        let name = format!("burst-{number}");
        let service = json!({"metadata": {"name": name, "labels": {"story": "lb"}}, "spec": {"type": "LoadBalancer",
            "loadBalancerClass": "beeline.io/lb", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]}});
        let slice = json!({"metadata": {"name": name, "labels": {"story": "lb",
            "kubernetes.io/service-name": name}}, "addressType": "IPv4", "endpoints": []});
        (service, slice)
    });
    ApiClient::new(&server.kubeconfig()).add_services(objects);
    let made = start.elapsed();
    let allotted = || controller.metric("beeline_lb_services{state=\"allotted\"}") == Some(SERVICES as f64);
    until("all have an address", allotted);
    let allotted = start.elapsed();
    until("all are answered", || client.answerers().len() == SERVICES);
    let answered = start.elapsed();
    println!(
        "1,000 Services: made in {made:.1?}, all allotted after {allotted:.1?}, all answered after {answered:.1?}"
    );
    assert_eq!(lease(server), before, "the Lease is not written for addresses");
    until("three requests and three replies for each", || client.heard(start).len() >= 6 * SERVICES);
    let heard = client.heard(start);
    println!("{} announcements, at most {} in 100 ms", heard.len(), most_at_once(&heard));
    let shares = || {
        let answerers = client.answerers();
        let of = |mac| answerers.values().filter(|answerer| **answerer == mac).count();
        [1, 2, 3].map(|number| of(wire.mac(number)))
    };
    until("every node has its share", || {
        let shares = shares();
        shares.iter().sum::<usize>() == SERVICES && shares.iter().all(|share| (200..500).contains(share))
    });
    let shares = shares();
    println!("shares of the nodes: {shares:?}");

    let (start, before) = (Instant::now(), lease(server));
    signal(&agents[0], Signal::STOP);
    wire.set_link(1, "down");
    let lost = wire.mac(1);
    until("others answer for all", || {
        let answerers = client.answerers();
        answerers.len() == SERVICES && answerers.values().all(|mac| *mac != lost)
    });
    let moved = start.elapsed();
    println!("power loss of a node: its {} addresses are answered by others after {moved:.1?}", shares[0]);
    // The client asks again each quarter of a second.
    wire.assert_gap(&client, "power loss of a node", start, REPLACED + ROUND);
    assert_eq!(lease(server), before, "a majority of three needs no vote of the API server");

    let questions = client.end();
    println!("{questions} questions, none with two answers");
    drop((agents, wire, controller));
    for collection in
        ["/api/v1/namespaces/default/services", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"]
    {
        server.kubectl(&["delete", "--raw", &format!("{collection}?labelSelector=story%3Dlb")]);
    }
    delete_nodes(server, NODES);
    uninstall(server);
}

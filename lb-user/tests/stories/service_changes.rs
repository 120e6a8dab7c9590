//! Sockets and flows while Services change around them: they stay while their endpoint serves at the frontend that they
//! dialled, and go when it does not.

use std::net::SocketAddr;

use crate::{
    Story,
    agent::until,
    flow_expiry::{self, Entry},
    node::StoryNode,
    packets::{self, NODE_PORT},
    sockets::Client,
};
use lb_lab::network::{Lan, Options};

pub const STORIES: &[Story] =
    &[("udp_flows_end_with_the_last_endpoint_of_their_service_and_tcp_flows_stay", flows_end_with_the_last_endpoint)];

/// Returns the entries of `FLOWS` of a protocol that lead to a backend, or back.
fn flows(node: &StoryNode, proto: u8) -> Vec<Entry> {
    let entries = flow_expiry::open(node).read().expect("the map");
    entries.into_iter().filter(|(key, flow)| key.proto == proto && flow.backend != 0).collect()
}

fn flows_end_with_the_last_endpoint(node: &mut StoryNode) {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let lan = Lan::make(Options::default());
    let pod = packets::pod(&lan.node1);
    packets::serve(pod);
    node.write("web.yaml", &packets::service("Cluster", &packets::addresses(pod).map(|ip| (ip, "here"))));
    let agent = packets::agent(node, &lan, &[]);
    agent.wait_for("all backends", |dump| dump.backends.len() == 4);
    let node_ports = packets::addresses(&lan.node1.host).map(|ip| SocketAddr::from((ip, NODE_PORT)));
    for to in node_ports {
        lan.client.net.enter(|| (Client::udp(to).ask(to), crate::sockets::tcp_ask(to).expect("an answer")));
    }
    assert_eq!(flows(node, UDP).len(), 4, "two clients, two directions");
    let tcp = flows(node, TCP).len();
    node.write("web.yaml", &packets::service("Cluster", &[]));
    agent.wait_for("no backend", |dump| dump.backends.is_empty());
    until("the UDP flows are removed", || flows(node, UDP).is_empty());
    assert_eq!(flows(node, TCP).len(), tcp);
}

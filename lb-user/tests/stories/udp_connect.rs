//! UDP connect() to a Service without endpoints: refused, or with `beeline.io/udp-connect: allow` as with kube-proxy.

use std::{net::SocketAddr, time::Duration};

use lb_lab::network::{Host, Lan, LanOptions};
use rustix::{
    io::Errno,
    net::sockopt::{Timeout, set_socket_timeout},
};

use crate::{
    Story,
    agent::until,
    node::StoryNode,
    packets::{TARGET, addresses, serve, service},
    sockets::{Client, assert_refused, has_netns_cookie},
};

pub const STORIES: &[Story] =
    &[("a_udp_socket_that_connects_before_there_is_an_endpoint_is_served_later", served_later)];

const VIPS: [&str; 2] = ["10.96.0.1:80", "[fd96::1]:80"];

/// Sends and receives once.
fn ask(client: &Client) -> Result<String, Errno> {
    client.send()?;
    client.try_receive().map(|(answer, _)| answer)
}

fn served_later(node: &mut StoryNode) {
    if !has_netns_cookie() {
        return;
    }
    let lan = Lan::make(LanOptions { pods: 2, ..LanOptions::default() });
    let [pod, near] = lan.node1.pods.as_slice() else { panic!("two pods") };
    let far = &lan.node2.pods[0];
    [near, far].into_iter().for_each(serve);
    let write = |endpoints: &[(&Host, &str)]| {
        let endpoints: Vec<_> = endpoints.iter().flat_map(|(of, at)| addresses(of).map(|ip| (ip, *at))).collect();
        let allowed = "{name: web, annotations: {beeline.io/udp-connect: allow}}";
        node.write("web.yaml", &service("Cluster", &endpoints).replacen("{name: web}", allowed, 1));
    };
    node.write("web.yaml", &service("Cluster", &[]));
    let agent = lan.node1.host.net.enter(|| node.agent(&["--devices", "eth0"]));
    let vips = VIPS.map(|vip| vip.parse::<SocketAddr>().expect("an address"));
    let refused = |host: &Host| {
        for vip in vips {
            host.net.enter(|| assert_refused(Client::udp(vip).connect(vip), Errno::CONNREFUSED));
        }
    };
    refused(pod);

    write(&[]);
    let connected = || {
        let client = pod.net.enter(|| Client::udp(vips[0]));
        client.connect(vips[0]).is_ok()
    };
    until("a connect succeeds", connected);
    refused(&lan.node1.host);
    let clients = vips.map(|vip| {
        pod.net.enter(|| {
            assert_refused(Client::tcp(vip).connect(vip), Errno::CONNREFUSED);
            assert_refused(Client::udp(vip).send_to(vip), Errno::CONNREFUSED);
            let client = Client::udp(vip);
            set_socket_timeout(client.fd(), Timeout::Recv, Some(Duration::from_millis(100))).expect("SO_RCVTIMEO");
            client.connect(vip).expect("connected");
            client
        })
    });
    for (client, vip) in clients.iter().zip(vips) {
        assert_eq!(client.peer(), Some(vip));
        until("the datagrams are refused", || ask(client) == Err(Errno::CONNREFUSED));
    }

    // The same sockets are served when there is an endpoint, and by the next one when that has gone.
    for (backend, at) in [(near, "here"), (far, "there")] {
        write(&[(backend, at)]);
        for (client, ip) in clients.iter().zip(addresses(backend)) {
            let server = SocketAddr::from((ip, TARGET)).to_string();
            until("the endpoint answers", || ask(client).as_ref() == Ok(&server));
        }
    }
    write(&[]);
    for client in &clients {
        until("the datagrams are refused again", || ask(client) == Err(Errno::CONNREFUSED));
    }
    assert!(agent.log().contains("their links get the programs"));
}

//! UDP through a VIP as an application sees it: connected and unconnected sockets, many VIPs on one socket, reply
//! sources.

use rustix::io::Errno;

use crate::{
    Story,
    node::{StoryNode, service},
    sockets::{Client, any, assert_refused, at, mapped, udp_server},
};

pub const STORIES: &[Story] = &[
    ("i10_udp_peers_are_the_vip_in_the_form_dialled", connected_sockets_see_the_vip),
    ("i10_udp_replies_come_from_the_vip_in_the_form_dialled", unconnected_sockets_see_the_vip),
    ("one_udp_socket_talks_to_many_vips_and_plain_addresses", one_socket_many_destinations),
    ("a_plain_udp_send_to_the_backend_shows_the_backend", plain_send_shows_the_backend),
    ("an_unconnected_udp_socket_keeps_its_backend_until_it_is_removed", keeps_its_backend_until_removed),
    ("a_udp_reconnect_elsewhere_shows_the_new_peer", reconnect_elsewhere),
    ("a_udp_connect_to_af_unspec_leaves_an_unconnected_socket", af_unspec),
    ("udp_refusals_return_the_documented_errno", refusals_return_their_errno),
    ("udp_translations_beyond_the_limit_of_a_socket_are_counted", translations_beyond_the_limit),
    ("a_bound_udp_source_address_is_kept", bound_source_is_kept),
    ("i10_udp_servers_and_traffic_to_no_service_are_untouched", servers_are_untouched),
    ("the_documented_udp_example_with_hand_written_endpoints_works", documented_example),
];

const VIP: &str = "10.96.0.53:53";
const VIP6: &str = "[fd96::53]:53";

fn serve_dns(node: &StoryNode) {
    let backends = ["10.0.0.1:5353", "10.0.0.2:5353", "[fd00::1]:5353"];
    node.write("dns.yaml", &service("dns", &["10.96.0.53", "fd96::53"], "UDP", 53, &backends));
    for backend in backends {
        udp_server(backend);
    }
}

fn connected_sockets_see_the_vip(node: &mut StoryNode) {
    serve_dns(node);
    let _agent = node.agent(&[]);
    for vip in [at(VIP), at(VIP6), mapped(at(VIP))] {
        let client = Client::udp(vip);
        client.connect(vip).expect("connected");
        assert_eq!(client.peer(), Some(vip));
        client.send().expect("sent");
        let (_, from) = client.receive();
        assert_eq!(from, Some(vip));
    }
}

fn unconnected_sockets_see_the_vip(node: &mut StoryNode) {
    serve_dns(node);
    let _agent = node.agent(&[]);
    for vip in [at(VIP), at(VIP6), mapped(at(VIP))] {
        let client = Client::udp(vip);
        for _ in 0..3 {
            let (answer, from) = client.ask(vip);
            assert_eq!(from, Some(vip), "{answer}");
        }
    }
}

fn one_socket_many_destinations(node: &mut StoryNode) {
    serve_dns(node);
    node.write("b.yaml", &service("b", &["10.96.0.2"], "UDP", 53, &["10.0.0.3:5353"]));
    udp_server("10.0.0.3:5353");
    udp_server("10.0.0.4:7");
    let _agent = node.agent(&[]);
    let client = Client::udp(at(VIP));
    let destinations = [at(VIP), at("10.96.0.2:53"), at("10.0.0.4:7")];
    for _ in 0..3 {
        for to in destinations {
            let (answer, from) = client.ask(to);
            assert_eq!(from, Some(to), "{answer}");
        }
    }
    // Send every datagram before the first answer is read.
    for to in destinations {
        client.send_to(to).expect("sent");
    }
    let mut from: Vec<_> = destinations.iter().map(|_| client.receive().1).collect();
    from.sort();
    let mut wanted: Vec<_> = destinations.iter().copied().map(Some).collect();
    wanted.sort();
    assert_eq!(from, wanted);
}

fn plain_send_shows_the_backend(node: &mut StoryNode) {
    node.write("b.yaml", &service("b", &["10.96.0.2"], "UDP", 53, &["10.0.0.3:5353"]));
    udp_server("10.0.0.3:5353");
    let _agent = node.agent(&[]);
    let client = Client::udp(at(VIP));
    let (vip, backend) = (at("10.96.0.2:53"), at("10.0.0.3:5353"));
    assert_eq!(client.ask(vip).1, Some(vip));
    assert_eq!(client.ask(backend).1, Some(backend));
    assert_eq!(client.ask(vip).1, Some(vip));
}

fn keeps_its_backend_until_removed(node: &mut StoryNode) {
    let both = ["10.0.0.1:5353", "10.0.0.2:5353"];
    node.write("dns.yaml", &service("dns", &["10.96.0.53"], "UDP", 53, &both));
    both.into_iter().for_each(udp_server);
    let agent = node.agent(&[]);
    let client = Client::udp(at(VIP));
    let (first, _) = client.ask(at(VIP));
    for _ in 0..20 {
        assert_eq!(client.ask(at(VIP)).0, first);
    }
    // An additional endpoint does not affect the socket.
    let three = ["10.0.0.1:5353", "10.0.0.2:5353", "10.0.0.3:5353"];
    node.write("dns.yaml", &service("dns", &["10.96.0.53"], "UDP", 53, &three));
    agent.wait_for("three backends", |dump| dump.backends.len() == 3);
    udp_server("10.0.0.3:5353");
    assert_eq!(client.ask(at(VIP)).0, first);
    // When its backend is removed, the socket moves, and the answer still comes from the VIP.
    let rest: Vec<_> = both.into_iter().filter(|backend| *backend != first).collect();
    node.write("dns.yaml", &service("dns", &["10.96.0.53"], "UDP", 53, &rest));
    agent.wait_for("one backend", |dump| dump.backends.len() == 1);
    let (second, from) = client.ask(at(VIP));
    assert_eq!((second.as_str(), from), (*rest.first().expect("one is left"), Some(at(VIP))));
    let counters = lb_dataplane::stats::counters(&node.maps()).expect("the counters");
    assert!(counters.contains(&(lb_common::Counter::UdpMoved, 1)), "{counters:?}");
}

fn reconnect_elsewhere(node: &mut StoryNode) {
    serve_dns(node);
    udp_server("10.0.0.4:7");
    let _agent = node.agent(&[]);
    let client = Client::udp(at(VIP));
    client.connect(at(VIP)).expect("connected");
    client.connect(at("10.0.0.4:7")).expect("connected");
    assert_eq!(client.peer(), Some(at("10.0.0.4:7")));
    client.send().expect("sent");
    assert_eq!(client.receive().1, Some(at("10.0.0.4:7")));
    // Connect to the address of the same backend directly.
    client.connect(at(VIP)).expect("connected");
    client.send().expect("sent");
    let backend = at(&client.receive().0);
    client.connect(backend).expect("connected");
    assert_eq!(client.peer(), Some(backend));
}

fn af_unspec(node: &mut StoryNode) {
    serve_dns(node);
    udp_server("10.0.0.4:7");
    let _agent = node.agent(&[]);
    let client = Client::udp(at(VIP));
    client.connect(at(VIP)).expect("connected");
    client.disconnect();
    assert_eq!(client.peer(), None);
    assert_eq!(client.ask(at("10.0.0.4:7")).1, Some(at("10.0.0.4:7")));
    assert_eq!(client.ask(at(VIP)).1, Some(at(VIP)));
}

fn refusals_return_their_errno(node: &mut StoryNode) {
    node.write("empty.yaml", &service("empty", &["10.96.0.2", "fd96::2"], "UDP", 53, &[]));
    let local = service("local", &["10.96.0.3"], "UDP", 53, &["10.0.0.1:5353"])
        .replace("spec:\n", "spec:\n  internalTrafficPolicy: Local\n");
    node.write("local.yaml", &local);
    let _agent = node.agent(&[]);
    for vip in [at("10.96.0.2:53"), at("[fd96::2]:53"), mapped(at("10.96.0.2:53"))] {
        assert_refused(Client::udp(vip).connect(vip), Errno::CONNREFUSED);
        assert_refused(Client::udp(vip).send_to(vip), Errno::CONNREFUSED);
    }
    let vip = at("10.96.0.3:53");
    assert_refused(Client::udp(vip).connect(vip), Errno::HOSTUNREACH);
    assert_refused(Client::udp(vip).send_to(vip), Errno::HOSTUNREACH);
}

fn translations_beyond_the_limit(node: &mut StoryNode) {
    let count = lb_common::MAX_TRANSLATIONS + 2;
    for n in 1..=count {
        let name = format!("s{n}");
        let backend = format!("10.0.0.1:{}", 6000 + n);
        node.write(&format!("{name}.yaml"), &service(&name, &[&format!("10.96.1.{n}")], "UDP", 53, &[&backend]));
        udp_server(&backend);
    }
    let _agent = node.agent(&[]);
    let client = Client::udp(at(VIP));
    for n in 1..=count {
        let vip = at(&format!("10.96.1.{n}:53"));
        assert_eq!(client.ask(vip).1, Some(vip));
    }
    let counters = lb_dataplane::stats::counters(&node.maps()).expect("the counters");
    assert!(counters.contains(&(lb_common::Counter::UdpOverflow, 2)), "{counters:?}");
}

fn bound_source_is_kept(node: &mut StoryNode) {
    serve_dns(node);
    let server = std::net::UdpSocket::bind("10.0.0.4:5353").expect("a free port");
    node.write("b.yaml", &service("b", &["10.96.0.2"], "UDP", 53, &["10.0.0.4:5353"]));
    let _agent = node.agent(&[]);
    let client = Client::udp(at(VIP));
    client.bind("10.0.0.9:4000");
    client.send_to(at("10.96.0.2:53")).expect("sent");
    let (_, from) = server.recv_from(&mut [0; 16]).expect("a datagram");
    assert_eq!(from, at("10.0.0.9:4000"));
}

fn servers_are_untouched(node: &mut StoryNode) {
    serve_dns(node);
    let _agent = node.agent(&[]);
    // A server of no Service sees the source addresses of its clients, also that of a backend.
    let server = Client::udp(at("10.0.0.4:99"));
    server.bind("10.0.0.4:99");
    for client_address in ["10.0.0.1:4001", "10.0.0.9:4002"] {
        let client = Client::udp(at(client_address));
        client.bind(client_address);
        client.send_to(at("10.0.0.4:99")).expect("sent");
        assert_eq!(server.receive().1, Some(at(client_address)));
    }
    let plain = Client::udp(at("10.0.0.1:5353"));
    assert_eq!(plain.ask(at("10.0.0.1:5353")).1, Some(at("10.0.0.1:5353")));
    assert_eq!(
        rustix::net::getsockname(plain.fd())
            .ok()
            .and_then(|name| std::net::SocketAddr::try_from(name).ok())
            .map(|a| a.ip()),
        Some(any(at(VIP)).ip())
    );
}

fn documented_example(node: &mut StoryNode) {
    node.write("my-service.yaml", &service("my-service", &["10.96.0.80"], "UDP", 80, &["192.0.2.42:9376"]));
    udp_server("192.0.2.42:9376");
    let _agent = node.agent(&[]);
    let client = Client::udp(at(VIP));
    assert_eq!(client.ask(at("10.96.0.80:80")), ("192.0.2.42:9376".to_owned(), Some(at("10.96.0.80:80"))));
}

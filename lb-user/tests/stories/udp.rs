//! UDP through a VIP as an application sees it: connected and unconnected sockets, many VIPs on one socket, reply
//! sources.

use lb_common::UdpSock;
use lb_dataplane::stats::StatMaps;
use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use crate::{
    Story,
    agent::until,
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
    ("udp_entries_end_with_their_sockets", entries_end_with_their_sockets),
    ("udp_sockets_beyond_the_places_show_their_vip_and_are_counted", sockets_beyond_the_places),
    ("udp_sockets_that_a_new_map_has_not_counted_keep_their_vip", sockets_that_are_not_counted),
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

/// Returns the number of places that sockets hold, and the sum of the counts of sockets with entries.
fn held_and_counted(node: &StoryNode) -> (usize, u64) {
    let open = |name: &str| aya::maps::MapData::from_pin(node.maps().join(name)).expect("the pinned map");
    let places: aya::maps::Array<_, UdpSock> = aya::maps::Map::Array(open("UDP_SOCKS")).try_into().expect("its types");
    let counts: aya::maps::Array<_, u64> = aya::maps::Map::Array(open("UDP_COUNTS")).try_into().expect("its types");
    let sum = counts.iter().flatten().map(|word| [0, 16, 32, 48].map(|bit| word >> bit & 0xffff).iter().sum::<u64>());
    (places.iter().flatten().filter(|place| place.socket != 0).count(), sum.sum())
}

fn open_sockets(node: &StoryNode) -> u64 {
    let stats = StatMaps::open(&node.maps()).and_then(|maps| maps.read()).expect("the counts");
    stats.backends.values().map(|backend| backend.open).sum()
}

fn entries_end_with_their_sockets(node: &mut StoryNode) {
    serve_dns(node);
    node.write("b.yaml", &service("b", &["10.96.0.2"], "UDP", 53, &["10.0.0.3:5353"]));
    udp_server("10.0.0.3:5353");
    let _agent = node.agent(&[]);
    let sockets: Vec<_> = (0..100).map(|_| Client::udp(at(VIP))).collect();
    sockets.iter().for_each(|socket| drop(socket.ask(at(VIP))));
    let (held, counted) = held_and_counted(node);
    // Sockets whose addresses in memory differ by a multiple of 16 MiB share a place: all but one have storage.
    let shared = 100_usize.saturating_sub(held);
    assert!(shared < 50, "one entry, in a place: {held}");
    assert_eq!((counted, open_sockets(node)), (100, 100));
    sockets.iter().take(40).for_each(|socket| drop(socket.ask(at("10.96.0.2:53"))));
    let (held, counted) = held_and_counted(node);
    assert!((60 - shared.min(60)..=60).contains(&held), "two entries, in storage: {held}, {shared} shared");
    assert_eq!((counted, open_sockets(node)), (100, 140));
    assert!(sockets.iter().all(|socket| socket.ask(at(VIP)).1 == Some(at(VIP))));
    // A connect ends the other entries, and a connect elsewhere all.
    sockets.iter().for_each(|socket| socket.connect(at(VIP)).expect("connected"));
    assert_eq!(open_sockets(node), 100);
    sockets.iter().take(70).for_each(|socket| socket.connect(at("10.0.0.4:7")).expect("connected"));
    let (held, counted) = held_and_counted(node);
    assert!((30 - shared.min(30)..=30).contains(&held), "{held}, {shared} shared");
    assert!((70..=70 + shared as u64).contains(&counted), "{counted}, {shared} shared");
    assert_eq!(open_sockets(node), 30);
    drop(sockets);
    until("no entry is left", || (held_and_counted(node), open_sockets(node)) == ((0, 0), 0));
}

fn sockets_beyond_the_places(node: &mut StoryNode) {
    const SOCKETS: usize = lb_common::capacity::UDP_SOCKS + 1_000;
    node.write("dns.yaml", &service("dns", &["10.96.0.53"], "UDP", 53, &["10.0.0.1:5353"]));
    let _agent = node.agent(&[]);
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("the hard limit is allowed");
    let sockets: Vec<_> = (0..SOCKETS).map(|_| Client::udp(at(VIP))).collect();
    sockets.iter().for_each(|socket| socket.connect(at(VIP)).expect("connected"));
    assert!(sockets.iter().all(|socket| socket.peer() == Some(at(VIP))));
    let (held, counted) = held_and_counted(node);
    println!("{held} of {SOCKETS} sockets hold a place");
    assert_eq!((counted, open_sockets(node)), (SOCKETS as u64, SOCKETS as u64));
    drop(sockets);
    until("no entry is left", || (held_and_counted(node), open_sockets(node)) == ((0, 0), 0));
}

fn sockets_that_are_not_counted(node: &mut StoryNode) {
    serve_dns(node);
    node.write("b.yaml", &service("b", &["10.96.0.2"], "UDP", 53, &["10.0.0.3:5353"]));
    udp_server("10.0.0.3:5353");
    let mut agent = node.agent(&[]);
    let sockets: Vec<_> = (0..20).map(|_| Client::udp(at(VIP))).collect();
    sockets.iter().for_each(|socket| drop(socket.ask(at(VIP))));
    sockets.iter().take(10).for_each(|socket| drop(socket.ask(at("10.96.0.2:53"))));
    agent.kill();
    // Layout 6 had no such map.
    std::fs::remove_file(node.maps().join("UDP_COUNTS")).expect("a pin");
    let _agent = node.agent(&[]);
    sockets.iter().for_each(|socket| socket.connect(at(VIP)).expect("connected"));
    assert!(sockets.iter().all(|socket| socket.peer() == Some(at(VIP))));
    assert_eq!(open_sockets(node), 20);
    drop(sockets);
    until("no socket is counted as open", || open_sockets(node) == 0);
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

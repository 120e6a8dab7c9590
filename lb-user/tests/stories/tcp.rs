//! TCP through a VIP as an application sees it: peer name, retries, errors, source address, external addresses.

use std::thread;

use rustix::io::Errno;

use crate::{
    Story,
    agent::until,
    node::{StoryNode, service},
    sockets::{Client, assert_refused, at, mapped, tcp_ask, tcp_server},
};

pub const STORIES: &[Story] = &[
    ("tcp_reaches_both_backends_and_shows_the_vip", reaches_both_backends_and_shows_the_vip),
    ("i10_tcp_shows_the_vip_in_the_form_dialled", v6_and_mapped_sockets_are_served),
    ("i10_tcp_to_an_address_of_no_service_is_untouched", other_addresses_are_untouched),
    ("a_tcp_retry_on_the_same_socket_picks_another_backend", retry_picks_another_backend),
    ("a_tcp_translation_is_cleared_by_a_connect_elsewhere", translation_ends_with_a_connect_elsewhere),
    ("tcp_refusals_return_the_documented_errno", refusals_return_their_errno),
    ("tcp_refusals_are_all_counted_and_few_are_logged", refusals_are_counted),
    ("a_bound_tcp_source_address_is_kept", bound_source_is_kept),
    ("a_tcp_socket_can_connect_elsewhere_after_af_unspec", af_unspec_allows_another_connect),
    ("the_tcp_rev_nat_entry_ends_with_the_socket", rev_nat_entry_ends_with_the_socket),
    ("tcp_external_and_load_balancer_addresses_are_served", external_addresses_are_served),
];

const VIP: &str = "10.96.0.1:80";

fn two_backends(node: &StoryNode) {
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080", "10.0.0.2:8080"]));
    tcp_server("10.0.0.1:8080");
    tcp_server("10.0.0.2:8080");
}

fn reaches_both_backends_and_shows_the_vip(node: &mut StoryNode) {
    two_backends(node);
    let _agent = node.agent(&[]);
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..400 {
        let client = Client::tcp(at(VIP));
        client.connect(at(VIP)).expect("a connection");
        assert_eq!(client.peer(), Some(at(VIP)));
        let (answer, _) = client.receive();
        *seen.entry(answer.split(' ').next().unwrap_or_default().to_owned()).or_insert(0u32) += 1;
    }
    println!("{seen:?}");
    // Uniform: 200 each, with a standard deviation of 10.
    assert_eq!(seen.len(), 2);
    assert!(seen.values().all(|&count| count > 140), "{seen:?}");
}

fn v6_and_mapped_sockets_are_served(node: &mut StoryNode) {
    two_backends(node);
    node.write("six.yaml", &service("six", &["fd96::1", "10.96.0.6"], "TCP", 80, &["[fd00::1]:8080", "10.0.0.1:8080"]));
    tcp_server("[fd00::1]:8080");
    let _agent = node.agent(&[]);

    let vip = at("[fd96::1]:80");
    let client = Client::tcp(vip);
    client.connect(vip).expect("a connection");
    assert_eq!(client.peer(), Some(vip));
    assert!(client.receive().0.starts_with("[fd00::1]:8080"));

    assert_eq!(tcp_ask(at("10.96.0.6:80")).map(|(server, _)| server), Ok("10.0.0.1:8080".to_owned()));

    let vip = mapped(at(VIP));
    let client = Client::tcp(vip);
    client.connect(vip).expect("a connection");
    assert_eq!(client.peer(), Some(vip), "the VIP in the form that was dialled");
    assert!(client.receive().0.starts_with("10.0.0."));
}

fn other_addresses_are_untouched(node: &mut StoryNode) {
    two_backends(node);
    tcp_server("[fd00::1]:8080");
    let _agent = node.agent(&[]);
    for direct in [at("10.0.0.1:8080"), at("[fd00::1]:8080"), mapped(at("10.0.0.2:8080"))] {
        let client = Client::tcp(direct);
        client.connect(direct).expect("a connection");
        assert_eq!(client.peer(), Some(direct));
    }
    let other = Client::tcp(at("10.97.0.1:80")).connect(at("10.97.0.1:80"));
    assert_eq!(other, Err(Errno::NETUNREACH), "no route leads there");
}

fn retry_picks_another_backend(node: &mut StoryNode) {
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080", "10.0.0.2:8080"]));
    tcp_server("10.0.0.2:8080");
    let _agent = node.agent(&[]);
    let mut retried = 0;
    for _ in 0..60 {
        let client = Client::tcp(at(VIP));
        if let Err(error) = client.connect(at(VIP)) {
            assert_eq!(error, Errno::CONNREFUSED);
            client.connect(at(VIP)).expect("the other backend");
            retried += 1;
        }
        assert_eq!(client.peer(), Some(at(VIP)));
    }
    assert!((10..50).contains(&retried), "about half of the first attempts get the dead backend: {retried}");
}

fn translation_ends_with_a_connect_elsewhere(node: &mut StoryNode) {
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080"]));
    tcp_server("10.0.0.2:8080");
    let _agent = node.agent(&[]);

    let client = Client::tcp(at(VIP));
    assert_eq!(client.connect(at(VIP)), Err(Errno::CONNREFUSED), "the backend does not listen yet");
    client.connect(at("10.0.0.2:8080")).expect("a plain connection");
    assert_eq!(client.peer(), Some(at("10.0.0.2:8080")));

    // Even a direct connection to the same backend does not show the VIP, which the application did not dial.
    let client = Client::tcp(at(VIP));
    assert_eq!(client.connect(at(VIP)), Err(Errno::CONNREFUSED));
    tcp_server("10.0.0.1:8080");
    client.connect(at("10.0.0.1:8080")).expect("a plain connection");
    assert_eq!(client.peer(), Some(at("10.0.0.1:8080")));
}

fn refusals_return_their_errno(node: &mut StoryNode) {
    node.write("empty.yaml", &service("empty", &["10.96.0.2", "fd96::2"], "TCP", 80, &[]));
    let local = service("local", &["10.96.0.3"], "TCP", 80, &["10.0.0.1:8080"])
        .replace("spec:\n", "spec:\n  internalTrafficPolicy: Local\n");
    node.write("local.yaml", &local);
    let agent = node.agent(&[]);
    for vip in [at("10.96.0.2:80"), at("[fd96::2]:80"), mapped(at("10.96.0.2:80"))] {
        assert_refused(Client::tcp(vip).connect(vip), Errno::CONNREFUSED);
    }
    assert_refused(Client::tcp(at("10.96.0.3:80")).connect(at("10.96.0.3:80")), Errno::HOSTUNREACH);
    // The agent logs the refusals with the name of the Service.
    agent.wait_for_log("refused: default/empty");
    agent.wait_for_log("refused: default/local");
    let counters = lb_dataplane::stats::counters(&node.maps()).expect("the counters");
    println!("{counters:?}");
    let count = |wanted| counters.iter().find(|(counter, _)| *counter == wanted).map(|(_, count)| *count);
    assert_eq!(count(lb_common::Counter::NoEndpoints), Some(3));
    assert_eq!(count(lb_common::Counter::NoLocalEndpoints), Some(1));
}

fn refusals_are_counted(node: &mut StoryNode) {
    node.write("empty.yaml", &service("empty", &["10.96.0.2"], "TCP", 80, &[]));
    let agent = node.agent(&[]);
    let started = std::time::Instant::now();
    for _ in 0..2000 {
        assert!(Client::tcp(at("10.96.0.2:80")).connect(at("10.96.0.2:80")).is_err());
    }
    let seconds = started.elapsed().as_secs() + 2;
    agent.wait_for_log("refused: default/empty");
    let counters = lb_dataplane::stats::counters(&node.maps()).expect("the counters");
    assert!(counters.contains(&(lb_common::Counter::NoEndpoints, 2000)), "{counters:?}");
    let logged = agent.log().matches("refused: default/empty").count();
    let cpus = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    println!("{logged} logged in less than {seconds} s on {cpus} CPUs");
    assert!(logged <= 10 * cpus * usize::try_from(seconds).expect("few"), "ten a second on each CPU: {logged}");
}

fn bound_source_is_kept(node: &mut StoryNode) {
    two_backends(node);
    let _agent = node.agent(&[]);
    let client = Client::tcp(at(VIP));
    client.bind("10.0.0.9:0");
    client.connect(at(VIP)).expect("a connection");
    assert!(client.receive().0.ends_with(" 10.0.0.9"));
}

fn af_unspec_allows_another_connect(node: &mut StoryNode) {
    two_backends(node);
    tcp_server("10.0.0.3:8080");
    let _agent = node.agent(&[]);
    let client = Client::tcp(at(VIP));
    client.connect(at(VIP)).expect("a connection");
    client.disconnect();
    assert_eq!(client.peer(), None);
    client.connect(at("10.0.0.3:8080")).expect("a plain connection");
    assert_eq!(client.peer(), Some(at("10.0.0.3:8080")));
}

fn rev_nat_entry_ends_with_the_socket(node: &mut StoryNode) {
    two_backends(node);
    let _agent = node.agent(&[]);
    let entries = || {
        let map = aya::maps::MapData::from_pin(node.maps().join("TCP_SOCKS")).expect("the pinned map");
        let map: aya::maps::Array<_, lb_common::TcpSock> = aya::maps::Map::Array(map).try_into().expect("its types");
        map.iter().flatten().filter(|slot| slot.cookie != 0).count()
    };
    let open: Vec<_> = (0..100)
        .map(|_| {
            let client = Client::tcp(at(VIP));
            client.connect(at(VIP)).expect("a connection");
            client
        })
        .collect();
    assert_eq!(entries(), 100);
    drop(open);
    until("the entries of closed sockets are removed", || entries() == 0);
}

fn external_addresses_are_served(node: &mut StoryNode) {
    let yaml = service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080"]).replace(
        "spec:\n",
        "status: {loadBalancer: {ingress: [{ip: 203.0.113.2}, {ip: 203.0.113.3, ipMode: Proxy}]}}\n\
         spec:\n  externalIPs: [203.0.113.1]\n",
    );
    node.write("web.yaml", &yaml);
    tcp_server("10.0.0.1:8080");
    let _agent = node.agent(&[]);
    for vip in ["203.0.113.1:80", "203.0.113.2:80"] {
        assert_eq!(tcp_ask(at(vip)).map(|(server, _)| server), Ok("10.0.0.1:8080".to_owned()));
    }
    assert_eq!(tcp_ask(at("203.0.113.3:80")), Err(Errno::NETUNREACH), "an address with ipMode Proxy is not translated");
}

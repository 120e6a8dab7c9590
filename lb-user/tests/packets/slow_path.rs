//! Flows that the kernel itself forwards, since a redirect would lose their packets or bypass what applies to them.

use lb_common::{Counter, DeviceFlags, Hook, MASQUERADE_MARK};
use lb_lab::packets::{Fixture, PacketOutcome, PacketSpec, node};

use crate::{
    addresses::{BOTH, Net, V4, V6, each},
    enter,
};

/// Asserts that a flow from `client` by `from` takes the slow path: netfilter masquerades it, and the programs restore
/// the address that the client dialled.
#[track_caller]
fn takes_the_slow_path(fixture: &mut Fixture, from: &str, first: &PacketSpec, backend: &str, counter: Counter) {
    let (client, dialled) = (first.from.to_string(), first.to.to_string());
    let before = fixture.count(counter);
    let later = first.clone().flags("A");
    for packet in [first, first, &later] {
        let packet = if from == "bare" { packet.clone().bare() } else { packet.clone() };
        let passed = fixture.ingress(from, &packet);
        passed.passes_as(&packet.becomes(&client, backend));
        assert_eq!(passed.mark, MASQUERADE_MARK, "{packet:?}");
    }
    // Netfilter has put the client back in the place of its own address.
    let answer = first.becomes(backend, &client).flags("SA");
    let passed = fixture.egress("uplink", &answer);
    passed.passes_as(&answer.becomes(&dialled, &client));
    assert_eq!((passed.mark, fixture.count(counter) - before), (0, 4), "{first:?}");
}

#[test]
fn flows_by_a_device_without_ethernet_take_the_slow_path() {
    for (net, backend) in [(V4, "8.1.2.3:8080"), (V6, "[fd08::7]:8080")] {
        for (first, service) in each(net) {
            let mut fixture = enter();
            fixture.serve(service.node_port(net.any).backends(&[backend]));
            takes_the_slow_path(&mut fixture, "uplink", &first, backend, Counter::SlowNoEthernet);
        }
    }
}

/// For the addresses of the clients see `outside::a_device_without_ethernet_is_served`.
#[test]
fn flows_from_a_device_without_ethernet_take_the_slow_path() {
    for (net, client) in [(V4, "8.0.3.4:4000"), (V6, "[fd08:0:86dd::9]:4000")] {
        for (first, service) in each(Net { client, ..net }) {
            let mut fixture = enter();
            fixture.serve(service.node_port(net.any).backends(&[net.remote]));
            takes_the_slow_path(&mut fixture, "bare", &first, net.remote, Counter::SlowNoEthernet);
        }
    }
}

#[test]
fn flows_to_which_policies_or_rules_about_marks_may_apply_take_the_slow_path() {
    for (flag, counter) in [(DeviceFlags::IPSEC, Counter::SlowIpsec), (DeviceFlags::MARKS, Counter::SlowMarks)] {
        for net in BOTH {
            for (first, service) in each(net) {
                let mut fixture = enter();
                fixture.set_flags("uplink", flag);
                fixture.serve(service.node_port(net.any).backends(&[net.remote]));
                takes_the_slow_path(&mut fixture, "uplink", &first, net.remote, counter);
            }
        }
    }
}

#[test]
fn flows_by_a_route_that_encapsulates_take_the_slow_path() {
    for (net, backend, prefix) in
        [(V4, "10.0.7.1:8080", "10.0.7.0/24"), (V6, "[fd00:0:0:7::1]:8080", "fd00:0:0:7::/64")]
    {
        for (first, service) in each(net) {
            let mut fixture = enter();
            node::ip(&format!("route add {prefix} encap seg6 mode encap segs 2001:db8::fe dev uplink\n"));
            fixture.serve(service.node_port(net.any).backends(&[backend]));
            takes_the_slow_path(&mut fixture, "uplink", &first, backend, Counter::SlowEncap);
        }
    }
}

#[test]
fn a_backend_on_this_node_needs_no_slow_path() {
    for net in BOTH {
        for (first, service) in each(net) {
            let mut fixture = enter();
            fixture.set_flags("uplink", DeviceFlags::IPSEC | DeviceFlags::MARKS);
            fixture.serve(service.node_port(net.any).backends(&[net.local]));
            let passed = fixture.ingress("uplink", &first);
            passed.passes_as(&first.becomes(net.client, net.local));
            assert_eq!((passed.mark, fixture.count(Counter::SlowIpsec)), (0, 0));
        }
    }
}

#[test]
fn clients_are_always_masqueraded_if_the_node_wants_it_and_the_policy_is_cluster() {
    for net in BOTH {
        for (first, service) in each(net) {
            let mut fixture = enter();
            fixture.set_flags("uplink", DeviceFlags::MASQUERADE);
            fixture.serve(service.node_port(net.any).backends(&[net.local]));
            takes_the_slow_path(&mut fixture, "uplink", &first, net.local, Counter::SlowPolicy);
        }
    }
}

#[test]
fn clients_keep_their_address_where_the_policy_is_local_or_the_backend_is_the_node() {
    for net in BOTH {
        let own = format!("{}:8080", net.node_port.strip_suffix(":30080").expect("the NodePort"));
        for (backend, is_local) in [(net.local, true), (own.as_str(), false)] {
            for (first, service) in each(net) {
                let mut fixture = enter();
                fixture.set_flags("uplink", DeviceFlags::MASQUERADE);
                let service = service.node_port(net.any).backends(&[backend]);
                fixture.serve(if is_local { service.external_local() } else { service });
                let passed = fixture.ingress("uplink", &first);
                passed.passes_as(&first.becomes(net.client, backend));
                assert_eq!((passed.mark, fixture.count(Counter::SlowPolicy)), (0, 0));
            }
        }
    }
}

#[test]
fn a_flow_that_was_redirected_keeps_its_port_when_the_kernel_must_forward() {
    for net in BOTH {
        for (first, service) in each(net) {
            let mut fixture = enter();
            fixture.serve(service.node_port(net.any).backends(&[net.remote]));
            let node = fixture.ingress("uplink", &first).ends().0;
            fixture.set_flags("uplink", DeviceFlags::MARKS);
            fixture.ingress("uplink", &first).passes_as(&first.becomes(net.client, net.remote));
            let routed = first.becomes(net.client, net.remote);
            fixture.egress("uplink", &routed).passes_as(&first.becomes(&node, net.remote));
            let answer = first.becomes(net.remote, &node).flags("SA");
            let routed = answer.becomes(net.remote, net.client);
            fixture.ingress("uplink", &answer).passes_as(&routed);
            fixture.egress("uplink", &routed).passes_as(&answer.becomes(net.node_port, net.client));
            assert_eq!(fixture.count(Counter::SlowMarks), 2);
        }
    }
}

/// With `fib_multipath_hash_policy` 1 the ports choose one of several next hops.
#[test]
fn all_packets_of_a_flow_take_one_of_several_next_hops() {
    for net in BOTH {
        let mut fixture = enter();
        let (family, route) = if net.is_v4() {
            ("ipv4", "10.0.8.0/24 nexthop via 192.0.2.2 dev uplink nexthop via 172.16.0.2 dev thin")
        } else {
            ("ipv6", "fd00:0:0:8::/64 nexthop via 2001:db8::2 dev uplink nexthop via fd16::2 dev thin")
        };
        let backend = if net.is_v4() { "10.0.8.1:8080" } else { "[fd00:0:0:8::1]:8080" };
        node::set(&format!("{family}/fib_multipath_hash_policy"), "1");
        node::ip(&format!("route add {route}\n"));
        let (_, service) = each(net).into_iter().next().expect("TCP");
        fixture.serve(service.node_port(net.any).backends(&[backend]));
        let mut devices = std::collections::BTreeSet::new();
        for port in 4000..4032 {
            let client = net.client.replace(":4000", &format!(":{port}"));
            let hop = |fixture: &mut Fixture, sent: PacketOutcome| {
                assert!(sent.is_redirected(), "{sent:?}");
                fixture.flow(Hook::Ingress, &client, net.node_port).expect("an entry").hop
            };
            let sent = fixture.ingress("uplink", &PacketSpec::syn(&client, net.node_port));
            let first = hop(&mut fixture, sent);
            fixture.forget_hops();
            let sent = fixture.ingress("uplink", &PacketSpec::tcp(&client, net.node_port));
            let later = hop(&mut fixture, sent);
            assert_eq!((first.ifindex, first.ends), (later.ifindex, later.ends), "{client}");
            devices.insert(first.ifindex);
        }
        assert_eq!(devices.len(), 2, "both next hops are taken");
    }
}

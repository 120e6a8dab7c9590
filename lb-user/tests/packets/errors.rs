//! ICMP errors about packets of a flow: translated, and routed to the sender of the packet.

use lb_lab::packets::{FixtureService, IcmpReason, PacketSpec, packet::IcmpErrorSpec};

use crate::{
    addresses::{BOTH, Net, ip},
    enter,
};

const REASONS: [IcmpReason; 4] =
    [IcmpReason::PortUnreachable, IcmpReason::NoRoute, IcmpReason::TimeExceeded, IcmpReason::TooBig(1280)];

/// Lists each kind of error about each protocol, with eight octets of the transport header and with the whole packet.
fn each(net: Net) -> impl Iterator<Item = (IcmpReason, PacketSpec, FixtureService, usize)> {
    REASONS.into_iter().flat_map(move |reason| {
        let (client, dialled) = (net.client, net.node_port);
        [
            (PacketSpec::syn(client, dialled), FixtureService::tcp()),
            (PacketSpec::udp(client, dialled), FixtureService::udp()),
            (PacketSpec::udp(client, dialled).without_sum(), FixtureService::udp()),
        ]
        .into_iter()
        .flat_map(move |(packet, service)| {
            [net.header + 8, 1000].map(|keep| (reason, packet.clone(), service.clone(), keep))
        })
    })
}

#[test]
fn errors_about_a_local_flow_reach_client_and_backend() {
    for net in BOTH {
        for (reason, packet, service, keep) in each(net) {
            let mut fixture = enter();
            fixture.serve(service.node_port(net.any).backends(&[net.local]));
            let seen = packet.becomes(net.client, net.local);
            fixture.ingress("uplink", &packet).passes_as(&seen);
            // The client sees the Service's address in place of the backend's, and a router's own address.
            for (from, shown) in [(ip(net.local), net.node.to_owned()), (net.router.to_owned(), net.router.to_owned())]
            {
                let error = IcmpErrorSpec::new(&from, reason, &seen, keep);
                let want = error.becomes(&shown, &ip(net.client), &packet);
                fixture.egress("uplink", &error).passes_as(&want);
            }
            // Errors about an answer go to the backend.
            let (answer, seen) = (packet.becomes(net.local, net.client), packet.becomes(net.node_port, net.client));
            for from in [ip(net.client), net.router.to_owned()] {
                let error = IcmpErrorSpec::new(&from, reason, &seen, keep);
                fixture.ingress("uplink", &error).passes_as(&error.becomes(&from, &ip(net.local), &answer));
            }
        }
    }
}

#[test]
fn errors_about_a_masqueraded_flow_reach_client_and_backend() {
    for net in BOTH {
        for (reason, packet, service, keep) in each(net) {
            let mut fixture = enter();
            fixture.serve(service.node_port(net.any).backends(&[net.remote]));
            let node = fixture.ingress("uplink", &packet).ends().0;
            let seen = packet.becomes(&node, net.remote);
            for (from, shown) in [(ip(net.remote), net.node.to_owned()), (net.router.to_owned(), net.router.to_owned())]
            {
                let error = IcmpErrorSpec::new(&from, reason, &seen, keep);
                let want = error.becomes(&shown, &ip(net.client), &packet).routed();
                fixture.ingress("uplink", &error).is_redirected_as(&want);
            }
            let (answer, seen) = (packet.becomes(net.remote, &node), packet.becomes(net.node_port, net.client));
            for (from, shown) in [(ip(net.client), net.node.to_owned()), (net.router.to_owned(), net.router.to_owned())]
            {
                let error = IcmpErrorSpec::new(&from, reason, &seen, keep);
                let want = error.becomes(&shown, &ip(net.remote), &answer).routed();
                fixture.ingress("uplink", &error).is_redirected_as(&want);
            }
        }
    }
}

#[test]
fn errors_about_a_pods_flow_show_the_cluster_ip() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().cluster_ip(net.cluster_ip).backends(&[net.remote]));
        let packet = PacketSpec::udp(net.pod, net.cluster_ip);
        let seen = packet.becomes(net.pod, net.remote);
        fixture.ingress("pod1", &packet).passes_as(&seen);
        let error = IcmpErrorSpec::new(&ip(net.remote), IcmpReason::PortUnreachable, &seen, 1000);
        let want = error.becomes(&ip(net.cluster_ip), &ip(net.pod), &packet);
        fixture.egress("pod1", &error).passes_as(&want);
    }
}

#[test]
fn an_error_about_sctp_keeps_the_quoted_checksum() {
    // The checksum covers octets that the error does not quote, and no receiver checks it.
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::sctp().node_port(net.any).backends(&[net.local]));
        let packet = PacketSpec::sctp_init(net.client, net.node_port);
        let seen = packet.becomes(net.client, net.local);
        fixture.ingress("uplink", &packet).passes_as(&seen);
        let error = IcmpErrorSpec::new(&ip(net.local), IcmpReason::PortUnreachable, &seen, net.header + 8);
        let want = error.becomes(net.node, &ip(net.client), &packet);
        fixture.egress("uplink", &error).passes_as(&want);
    }
}

#[test]
fn an_error_whose_ttl_ends_is_dropped() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.remote]));
        let packet = PacketSpec::udp(net.client, net.node_port);
        let node = fixture.ingress("uplink", &packet).ends().0;
        let mut error =
            IcmpErrorSpec::new(net.router, IcmpReason::TimeExceeded, &packet.becomes(&node, net.remote), 1000);
        error.ttl = 1;
        fixture.ingress("uplink", &error).is_dropped();
    }
}

#[test]
fn errors_about_other_packets_pass_unchanged() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.local]));
        let packet = PacketSpec::udp(net.client, net.node_port);
        fixture.ingress("uplink", &packet).passes_as(&packet.becomes(net.client, net.local));
        let other = PacketSpec::udp(&net.client.replace(":4000", ":4001"), net.local);
        for reason in REASONS {
            fixture.egress("uplink", &IcmpErrorSpec::new(net.router, reason, &other, 1000)).passes_unchanged();
            fixture.ingress("uplink", &IcmpErrorSpec::new(net.router, reason, &other, 1000)).passes_unchanged();
        }
    }
}

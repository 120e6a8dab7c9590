//! Fragments: only the first of a datagram has the ports.

use lb_lab::packets::{FarEnd, FixtureService, PacketOutcome, PacketSpec, Part};

use crate::{
    addresses::{BOTH, V4, each},
    enter,
};

#[test]
fn later_fragments_follow_the_first() {
    for net in BOTH {
        for backends in [&[net.local][..], &[net.remote]] {
            let mut fixture = enter();
            fixture.serve(FixtureService::udp().node_port(net.any).backends(backends));
            let first = PacketSpec::udp(net.client, net.node_port).part(Part::First, 77);
            let later = first.clone().part(Part::Later, 77);
            let sent = fixture.ingress("uplink", &first);
            let node = sent.ends().0;
            let on =
                |packet: &PacketSpec| if backends[0] == net.local { packet.clone() } else { packet.clone().routed() };
            let is = |outcome: PacketOutcome, packet: &PacketSpec| {
                if backends[0] == net.local { outcome.passes_as(packet) } else { outcome.is_redirected_as(packet) }
            };
            is(sent, &on(&first.becomes(&node, backends[0])));
            is(fixture.ingress("uplink", &later), &on(&later.becomes(&node, backends[0])));
            is(fixture.ingress("uplink", &later), &on(&later.becomes(&node, backends[0])));
            // A fragment of another datagram, and of another protocol with the same identification.
            fixture.ingress("uplink", &later.clone().part(Part::Later, 78)).is_dropped();
            fixture.ingress("uplink", &PacketSpec::tcp(net.client, net.node_port).part(Part::Later, 77)).is_dropped();
            // Answers in fragments.
            let first = PacketSpec::udp(backends[0], &node).part(Part::First, 79);
            let later = first.clone().part(Part::Later, 79);
            let (back, rest) =
                (on(&first.becomes(net.node_port, net.client)), on(&later.becomes(net.node_port, net.client)));
            if backends[0] == net.local {
                fixture.egress("uplink", &first).passes_as(&back);
                fixture.egress("uplink", &later).passes_as(&rest);
            } else {
                fixture.ingress("uplink", &first).is_redirected_as(&back);
                fixture.ingress("uplink", &later).is_redirected_as(&rest);
            }
        }
    }
}

#[test]
fn fragments_with_options_or_extension_headers_are_served() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.local]));
        let first = PacketSpec::udp(net.client, net.node_port).part(Part::First, 77).with_extras();
        fixture.ingress("uplink", &first).passes_as(&first.becomes(net.client, net.local));
        let later = first.part(Part::Later, 77);
        fixture.ingress("uplink", &later).passes_as(&later.becomes(net.client, net.local));
    }
}

#[test]
fn fragments_of_tcp_are_served() {
    let mut fixture = enter();
    fixture.serve(FixtureService::tcp().node_port(V4.any).backends(&[V4.local]));
    let syn = PacketSpec::syn(V4.client, V4.node_port);
    fixture.ingress("uplink", &syn).passes_as(&syn.becomes(V4.client, V4.local));
    let first = PacketSpec::tcp(V4.client, V4.node_port).part(Part::First, 77);
    fixture.ingress("uplink", &first).passes_as(&first.becomes(V4.client, V4.local));
    let later = first.part(Part::Later, 77);
    fixture.ingress("uplink", &later).passes_as(&later.becomes(V4.client, V4.local));
}

#[test]
fn a_first_fragment_of_sctp_is_dropped_as_its_checksum_covers_the_rest() {
    let mut fixture = enter();
    fixture.serve(FixtureService::sctp().node_port(V4.any).backends(&[V4.local]));
    let first = PacketSpec::sctp_init(V4.client, V4.node_port).part(Part::First, 77);
    fixture.ingress("uplink", &first).is_dropped();
}

#[test]
fn later_fragments_may_come_before_the_first() {
    for net in BOTH {
        for backend in [net.local, net.remote] {
            for (packet, service) in each(net).into_iter().take(2) {
                let mut fixture = enter();
                fixture.serve(service.node_port(net.any).backends(&[backend]));
                fixture.attach();
                // A test run makes the flow, and shows its masquerade port.
                let node = fixture.ingress("uplink", &packet).ends().0;
                let (uplink, pod) = (FarEnd::of("uplink"), FarEnd::of("pod1"));
                for id in [77, 78] {
                    let first = packet.clone().flags("A").part(Part::First, id);
                    let later = first.clone().part(Part::Later, id);
                    uplink.send(&later);
                    uplink.send(&first);
                    let receives = |part: &PacketSpec| {
                        let sent = part.becomes(&node, backend).routed();
                        if backend == net.local {
                            pod.receives(&sent.out_to(0x11));
                        } else {
                            uplink.receives(&sent.out_to(2));
                        }
                    };
                    receives(&first);
                    receives(&later);
                }
            }
        }
    }
}

#[test]
fn later_fragments_of_no_service_may_come_before_the_first() {
    let net = V4;
    let mut fixture = enter();
    fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.local]));
    fixture.attach();
    let own = net.node_port.replace(":30080", ":9999");
    let socket = std::net::UdpSocket::bind(&own).expect("a free port");
    socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("a time-out");
    let uplink = FarEnd::of("uplink");
    for (id, is_reversed) in [(5, false), (6, true)] {
        // The length in the UDP header is that of the first fragment: the kernel cuts off the rest.
        let first = PacketSpec::udp(net.client, &own).sized(1500).part(Part::First, id);
        let mut parts = [first.clone(), first.part(Part::Later, id)];
        if is_reversed {
            parts.reverse();
        }
        parts.iter().for_each(|part| uplink.send(&part.clone()));
        let mut buffer = vec![0; 2000];
        let (len, from) = socket.recv_from(&mut buffer).expect("the datagram");
        assert_eq!((len, from.to_string()), (1472, net.client.to_owned()), "{is_reversed}");
    }
}

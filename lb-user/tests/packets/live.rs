//! With the programs attached: where packets really go, and what real sockets hear.

use std::{
    io::ErrorKind,
    net::{TcpStream, UdpSocket},
    time::Duration,
};

use lb_lab::packets::{FarEnd, Packet, Reason, ServicePort, node, packet::Error};

use crate::{enter, family::BOTH};

/// Neighbours, by the last octet of their link addresses.
const GATEWAY: u8 = 0xfe;
const NODE2: u8 = 2;
const POD1: u8 = 0x11;

#[test]
fn a_flow_by_the_node_goes_to_the_next_hop_each_way() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.there]));
        fixture.attach();
        let uplink = FarEnd::of("uplink");
        let syn = Packet::syn(of.client, of.node_port);
        // Which port it will have is told by a run that leaves the flow behind.
        let node = fixture.comes_in("uplink", &syn).ends().0;
        uplink.send(&syn);
        uplink.receives(&syn.becomes(&node, of.there).one_hop_on().out_to(NODE2));
        let answer = Packet::tcp(of.there, &node).flags("SA");
        uplink.send(&answer);
        uplink.receives(&answer.becomes(of.node_port, of.client).one_hop_on().out_to(GATEWAY));
    }
}

#[test]
fn a_backend_on_this_node_is_reached_by_the_kernels_own_routes() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.here]));
        fixture.attach();
        let (uplink, pod) = (FarEnd::of("uplink"), FarEnd::of("pod1"));
        let packet = Packet::udp(of.client, of.node_port);
        uplink.send(&packet);
        pod.receives(&packet.becomes(of.client, of.here).one_hop_on().out_to(POD1));
        let answer = Packet::udp(of.here, of.client);
        pod.send(&answer);
        uplink.receives(&answer.becomes(of.node_port, of.client).one_hop_on().out_to(GATEWAY));
    }
}

#[test]
fn a_pod_reaches_itself() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().cluster_ip(of.cluster_ip).backends(&[of.here]));
        fixture.attach();
        let pod = FarEnd::of("pod1");
        let packet = Packet::udp(of.pod, of.cluster_ip);
        let node = fixture.comes_in("pod1", &packet).ends().0;
        pod.send(&packet);
        pod.receives(&packet.becomes(&node, of.here).one_hop_on().out_to(POD1));
        let answer = Packet::udp(of.here, &node);
        pod.send(&answer);
        pod.receives(&answer.becomes(of.cluster_ip, of.pod).one_hop_on().out_to(POD1));
    }
}

#[test]
fn what_is_refused_goes_back_where_it_came_from() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any));
        fixture.serve(ServicePort::udp().node_port(of.any));
        fixture.attach();
        let uplink = FarEnd::of("uplink");
        let syn = Packet::syn(of.client, of.node_port);
        uplink.send(&syn);
        uplink.receives(&syn.reset());
        for len in [of.header + 8, 1500] {
            let packet = Packet::udp(of.client, of.node_port).sized(len);
            uplink.send(&packet);
            uplink.receives(&Error::answer(Reason::PortUnreachable, &packet));
        }
    }
}

#[test]
fn the_nodes_own_sockets_hear_that_nobody_serves_a_port() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().cluster_ip(of.cluster_ip).backends(&[of.here]));
        fixture.attach();
        let other = of.cluster_ip.replace(":80", ":81");
        let to = other.parse().expect("an address and port");
        let error = TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect_err("nobody serves it");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        // Short and long, since what a device is to do about the checksum of the packet must not be done to the answer.
        for len in [1, 1400] {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).expect("a port");
            socket.connect(to).expect("a way");
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            socket.send(&vec![7; len]).expect("sent");
            let error = socket.recv(&mut [0; 8]).expect_err("nobody serves it");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        }
    }
}

#[test]
fn a_checksum_that_a_device_was_to_finish_is_finished_right() {
    for of in BOTH {
        for (packet, wanted) in [
            (Packet::syn(of.client, of.node_port), ServicePort::tcp()),
            (Packet::udp(of.client, of.node_port), ServicePort::udp()),
        ] {
            let mut fixture = enter();
            let mut web = fixture.serve(wanted.node_port(of.any).backends(&[of.there]));
            fixture.attach();
            node::disable_offloads("uplink");
            let uplink = FarEnd::of("uplink");
            let node = fixture.comes_in("uplink", &packet).ends().0;
            FarEnd::send_unfinished("uplink", &packet, 0);
            uplink.receives(&packet.becomes(&node, of.there).one_hop_on().out_to(NODE2));
            // The kernel's own way out of another device.
            node::disable_offloads("pod1");
            web.change(fixture.maps(), &[of.here]);
            let pod = FarEnd::of("pod1");
            FarEnd::send_unfinished("uplink", &packet, 0);
            pod.receives(&packet.becomes(of.client, of.here).one_hop_on().out_to(POD1));
        }
    }
}

#[test]
fn a_checksum_that_a_device_was_to_finish_is_not_finished_in_the_answer() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any));
        fixture.serve(ServicePort::udp().node_port(of.any));
        fixture.attach();
        node::disable_offloads("uplink");
        let uplink = FarEnd::of("uplink");
        for syn in [Packet::syn(of.client, of.node_port), Packet::tcp(of.client, of.node_port).flags("S").sized(1500)] {
            FarEnd::send_unfinished("uplink", &syn, 0);
            uplink.receives(&syn.reset());
        }
        for len in [of.header + 8, of.header + 9, 1500] {
            let packet = Packet::udp(of.client, of.node_port).sized(len);
            FarEnd::send_unfinished("uplink", &packet, 0);
            uplink.receives(&Error::answer(Reason::PortUnreachable, &packet.unfinished()));
        }
    }
}

#[test]
fn a_packet_that_a_device_was_to_cut_is_cut_right() {
    for of in BOTH {
        for backend in [of.there, of.here] {
            let mut fixture = enter();
            fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[backend]));
            fixture.attach();
            let packet = Packet::tcp(of.client, of.node_port).sized(5000);
            let node = fixture.comes_in("uplink", &Packet::syn(of.client, of.node_port)).ends().0;
            let (device, neighbour) = if backend == of.there { ("uplink", NODE2) } else { ("pod1", POD1) };
            node::disable_offloads(device);
            let far_end = FarEnd::of(device);
            FarEnd::send_unfinished("uplink", &packet, 1400);
            let becomes = packet.becomes(&node, backend).one_hop_on().out_to(neighbour);
            for at in (0..packet.payload.len()).step_by(1400) {
                far_end.receives(&becomes.segment(at, 1400));
            }
        }
    }
}

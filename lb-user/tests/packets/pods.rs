//! Packets of a pod of this node, whose link has the programs.

use lb_common::{Counter, DeviceFlags};
use lb_lab::packets::{FixtureService, PacketSpec};

use crate::{
    addresses::{BOTH, V4, ip},
    enter,
};

#[test]
fn a_pods_address_is_kept_for_local_and_remote_backends() {
    for net in BOTH {
        for backend in [net.remote, net.local2] {
            let mut fixture = enter();
            fixture.serve(FixtureService::tcp().cluster_ip(net.cluster_ip).backends(&[backend]));
            let syn = PacketSpec::syn(net.pod, net.cluster_ip);
            fixture.ingress("pod1", &syn).passes_as(&syn.becomes(net.pod, backend));
            let answer = PacketSpec::tcp(backend, net.pod).flags("SA");
            fixture.egress("pod1", &answer).passes_as(&answer.becomes(net.cluster_ip, net.pod));
        }
    }
}

#[test]
fn a_pod_that_is_its_own_backend_sees_the_nodes_address() {
    for net in BOTH {
        for (packet, service) in [
            (PacketSpec::syn(net.pod, net.cluster_ip), FixtureService::tcp()),
            (PacketSpec::udp(net.pod, net.cluster_ip), FixtureService::udp()),
        ] {
            let mut fixture = enter();
            fixture.serve(service.cluster_ip(net.cluster_ip).backends(&[net.local]));
            let sent = fixture.ingress("pod1", &packet);
            let (node, _) = sent.ends();
            // The node's address on the pod's link.
            let want = if net.is_v4() { "10.0.1.254" } else { "fd00:0:0:1::fe" };
            assert_eq!(ip(&node), want);
            sent.is_redirected_as(&packet.becomes(&node, net.local).routed());
            let answer = packet.becomes(net.local, &node);
            fixture.ingress("pod1", &answer).is_redirected_as(&answer.becomes(net.cluster_ip, net.pod).routed());
        }
    }
}

#[test]
fn the_external_policy_does_not_bind_pods() {
    // As if the pod's packet left the cluster for the load balancer and came back: every backend counts (rule 4).
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).external_local().backends(&[net.remote]));
        let syn = PacketSpec::syn(net.pod, net.node_port);
        fixture.ingress("pod1", &syn).passes_as(&syn.becomes(net.pod, net.remote));
        fixture.ingress("uplink", &PacketSpec::syn(net.client, net.node_port)).is_dropped();
    }
}

#[test]
fn the_internal_policy_binds_cluster_ips_only() {
    for net in BOTH {
        let mut fixture = enter();
        let service = FixtureService::tcp().cluster_ip(net.cluster_ip).node_port(net.any).internal_local();
        let mut web = fixture.serve(service.backends(&[net.remote]));
        let syn = PacketSpec::syn(net.pod, net.cluster_ip);
        fixture.ingress("pod1", &syn).is_dropped();
        assert_eq!(fixture.count(Counter::NoLocalEndpoints), 1);
        let external = PacketSpec::syn(net.pod, net.node_port);
        fixture.ingress("pod1", &external).passes_as(&external.becomes(net.pod, net.remote));
        web.change(fixture.maps(), &[net.remote, net.local2]);
        for _ in 0..8 {
            fixture.ingress("pod1", &syn).passes_as(&syn.becomes(net.pod, net.local2));
        }
    }
}

#[test]
fn packets_between_pods_without_a_service_pass_unchanged() {
    let mut fixture = enter();
    fixture.serve(FixtureService::tcp().cluster_ip(V4.cluster_ip).backends(&[V4.local]));
    fixture.egress("pod1", &PacketSpec::syn("10.0.1.2:6000", V4.local)).passes_unchanged();
    fixture.ingress("pod1", &PacketSpec::tcp(V4.local, "10.0.1.2:6000").flags("SA")).passes_unchanged();
    assert_eq!(fixture.flows().len(), 0);
}

#[test]
fn in_mode_off_a_pods_flows_continue_and_no_flow_begins() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().cluster_ip(net.cluster_ip).backends(&[net.remote]));
        fixture.serve(FixtureService::udp().cluster_ip(net.cluster_ip).backends(&[net.remote]));
        let syn = PacketSpec::syn(net.pod, net.cluster_ip);
        fixture.ingress("pod1", &syn).passes_as(&syn.becomes(net.pod, net.remote));
        fixture.set_flags("pod1", DeviceFlags::POD | DeviceFlags::OFF);
        let ack = PacketSpec::tcp(net.pod, net.cluster_ip).flags("A");
        fixture.ingress("pod1", &ack).passes_as(&ack.becomes(net.pod, net.remote));
        let answer = PacketSpec::tcp(net.remote, net.pod).flags("A");
        fixture.egress("pod1", &answer).passes_as(&answer.becomes(net.cluster_ip, net.pod));
        // Nor does it get an error for an unknown port.
        let other = net.pod.replace(":5000", ":5001");
        let unknown = net.cluster_ip.replace(":80", ":81");
        for packet in [
            PacketSpec::syn(&other, net.cluster_ip),
            PacketSpec::udp(&other, net.cluster_ip),
            PacketSpec::syn(&other, &unknown),
        ] {
            fixture.ingress("pod1", &packet).passes_unchanged();
        }
        assert_eq!((fixture.flows().len(), fixture.count(Counter::UnknownPort)), (2, 0));
        fixture.ingress("uplink", &PacketSpec::syn(net.client, net.cluster_ip));
        assert_eq!(fixture.flows().len(), 4, "clients outside are still served");
    }
}

//! From a pod of this node, whose link has the programs.

use lb_common::{Counter, DeviceFlags};
use lb_lab::packets::{Packet, ServicePort};

use crate::{
    enter,
    family::{BOTH, V4, ip},
};

#[test]
fn a_pod_keeps_its_address_wherever_the_backend_is() {
    for of in BOTH {
        for backend in [of.there, of.beside] {
            let mut fixture = enter();
            fixture.serve(ServicePort::tcp().cluster_ip(of.cluster_ip).backends(&[backend]));
            let syn = Packet::syn(of.pod, of.cluster_ip);
            fixture.comes_in("pod1", &syn).goes_on_as(&syn.becomes(of.pod, backend));
            let answer = Packet::tcp(backend, of.pod).flags("SA");
            fixture.goes_out("pod1", &answer).goes_on_as(&answer.becomes(of.cluster_ip, of.pod));
        }
    }
}

#[test]
fn a_pod_that_is_its_own_backend_hears_the_node() {
    for of in BOTH {
        for (packet, wanted) in [
            (Packet::syn(of.pod, of.cluster_ip), ServicePort::tcp()),
            (Packet::udp(of.pod, of.cluster_ip), ServicePort::udp()),
        ] {
            let mut fixture = enter();
            fixture.serve(wanted.cluster_ip(of.cluster_ip).backends(&[of.here]));
            let sent = fixture.comes_in("pod1", &packet);
            let (node, _) = sent.ends();
            // The node's address on the pod's link.
            let want = if of.header == 20 { "10.0.1.254" } else { "fd00:0:0:1::fe" };
            assert_eq!(ip(&node), want);
            sent.is_sent_as(&packet.becomes(&node, of.here).one_hop_on());
            let answer = packet.becomes(of.here, &node);
            fixture.comes_in("pod1", &answer).is_sent_as(&answer.becomes(of.cluster_ip, of.pod).one_hop_on());
        }
    }
}

#[test]
fn a_pod_is_not_outside() {
    // Up and out to a load balancer, as it were, and back: any backend will do (rule 4).
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any).external_local().backends(&[of.there]));
        let syn = Packet::syn(of.pod, of.node_port);
        fixture.comes_in("pod1", &syn).goes_on_as(&syn.becomes(of.pod, of.there));
        fixture.comes_in("uplink", &Packet::syn(of.client, of.node_port)).is_dropped();
    }
}

#[test]
fn the_internal_policy_is_for_cluster_ips() {
    for of in BOTH {
        let mut fixture = enter();
        let wanted = ServicePort::tcp().cluster_ip(of.cluster_ip).node_port(of.any).internal_local();
        let mut web = fixture.serve(wanted.backends(&[of.there]));
        let syn = Packet::syn(of.pod, of.cluster_ip);
        fixture.comes_in("pod1", &syn).is_dropped();
        assert_eq!(fixture.count(Counter::NoLocalEndpoints), 1);
        let external = Packet::syn(of.pod, of.node_port);
        fixture.comes_in("pod1", &external).goes_on_as(&external.becomes(of.pod, of.there));
        web.change(fixture.maps(), &[of.there, of.beside]);
        for _ in 0..8 {
            fixture.comes_in("pod1", &syn).goes_on_as(&syn.becomes(of.pod, of.beside));
        }
    }
}

#[test]
fn what_comes_to_a_pod_from_elsewhere_is_left_alone() {
    let mut fixture = enter();
    fixture.serve(ServicePort::tcp().cluster_ip(V4.cluster_ip).backends(&[V4.here]));
    fixture.goes_out("pod1", &Packet::syn("10.0.1.2:6000", V4.here)).is_untouched();
    fixture.comes_in("pod1", &Packet::tcp(V4.here, "10.0.1.2:6000").flags("SA")).is_untouched();
    assert_eq!(fixture.flows().len(), 0);
}

#[test]
fn where_a_pod_has_chosen_off_flows_that_stand_go_on_and_none_begins() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().cluster_ip(of.cluster_ip).backends(&[of.there]));
        fixture.serve(ServicePort::udp().cluster_ip(of.cluster_ip).backends(&[of.there]));
        let syn = Packet::syn(of.pod, of.cluster_ip);
        fixture.comes_in("pod1", &syn).goes_on_as(&syn.becomes(of.pod, of.there));
        fixture.set_flags("pod1", DeviceFlags::POD | DeviceFlags::OFF);
        let ack = Packet::tcp(of.pod, of.cluster_ip).flags("A");
        fixture.comes_in("pod1", &ack).goes_on_as(&ack.becomes(of.pod, of.there));
        let answer = Packet::tcp(of.there, of.pod).flags("A");
        fixture.goes_out("pod1", &answer).goes_on_as(&answer.becomes(of.cluster_ip, of.pod));
        // Nor is it told that nobody is there.
        let other = of.pod.replace(":5000", ":5001");
        let unknown = of.cluster_ip.replace(":80", ":81");
        for packet in
            [Packet::syn(&other, of.cluster_ip), Packet::udp(&other, of.cluster_ip), Packet::syn(&other, &unknown)]
        {
            fixture.comes_in("pod1", &packet).is_untouched();
        }
        assert_eq!((fixture.flows().len(), fixture.count(Counter::UnknownPort)), (2, 0));
        fixture.comes_in("uplink", &Packet::syn(of.client, of.cluster_ip));
        assert_eq!(fixture.flows().len(), 4, "others are served");
    }
}

//! From a pod of this node, whose link has the programs.

use lb_common::{Counter, DeviceFlags};

use crate::{
    family::{BOTH, V4, ip},
    support::{Packet, Wanted, World},
};

#[test]
fn a_pod_keeps_its_address_wherever_the_backend_is() {
    for of in BOTH {
        for backend in [of.there, of.beside] {
            let mut world = World::enter();
            world.serve(Wanted::tcp().cluster_ip(of.cluster_ip).backends(&[backend]));
            let syn = Packet::syn(of.pod, of.cluster_ip);
            world.comes_in("pod1", &syn).goes_on_as(&syn.becomes(of.pod, backend));
            let answer = Packet::tcp(backend, of.pod).flags("SA");
            world.goes_out("pod1", &answer).goes_on_as(&answer.becomes(of.cluster_ip, of.pod));
        }
    }
}

#[test]
fn a_pod_that_is_its_own_backend_hears_the_node() {
    for of in BOTH {
        for (packet, wanted) in
            [(Packet::syn(of.pod, of.cluster_ip), Wanted::tcp()), (Packet::udp(of.pod, of.cluster_ip), Wanted::udp())]
        {
            let mut world = World::enter();
            world.serve(wanted.cluster_ip(of.cluster_ip).backends(&[of.here]));
            let sent = world.comes_in("pod1", &packet);
            let (node, _) = sent.ends();
            // The node's address on the pod's link.
            let want = if of.header == 20 { "10.0.1.254" } else { "fd00:0:0:1::fe" };
            assert_eq!(ip(&node), want);
            sent.is_sent_as(&packet.becomes(&node, of.here).one_hop_on());
            let answer = packet.becomes(of.here, &node);
            world.comes_in("pod1", &answer).is_sent_as(&answer.becomes(of.cluster_ip, of.pod).one_hop_on());
        }
    }
}

#[test]
fn a_pod_is_not_outside() {
    // Up and out to a load balancer, as it were, and back: any backend will do (rule 4).
    for of in BOTH {
        let mut world = World::enter();
        world.serve(Wanted::tcp().node_port(of.any).external_local().backends(&[of.there]));
        let syn = Packet::syn(of.pod, of.node_port);
        world.comes_in("pod1", &syn).goes_on_as(&syn.becomes(of.pod, of.there));
        world.comes_in("uplink", &Packet::syn(of.client, of.node_port)).is_dropped();
    }
}

#[test]
fn the_internal_policy_is_for_cluster_ips() {
    for of in BOTH {
        let mut world = World::enter();
        let wanted = Wanted::tcp().cluster_ip(of.cluster_ip).node_port(of.any).internal_local();
        let mut web = world.serve(wanted.backends(&[of.there]));
        let syn = Packet::syn(of.pod, of.cluster_ip);
        world.comes_in("pod1", &syn).is_dropped();
        assert_eq!(world.count(Counter::NoLocalEndpoints), 1);
        let external = Packet::syn(of.pod, of.node_port);
        world.comes_in("pod1", &external).goes_on_as(&external.becomes(of.pod, of.there));
        web.change(world.maps(), &[of.there, of.beside]);
        for _ in 0..8 {
            world.comes_in("pod1", &syn).goes_on_as(&syn.becomes(of.pod, of.beside));
        }
    }
}

#[test]
fn what_comes_to_a_pod_from_elsewhere_is_left_alone() {
    let mut world = World::enter();
    world.serve(Wanted::tcp().cluster_ip(V4.cluster_ip).backends(&[V4.here]));
    world.goes_out("pod1", &Packet::syn("10.0.1.2:6000", V4.here)).is_untouched();
    world.comes_in("pod1", &Packet::tcp(V4.here, "10.0.1.2:6000").flags("SA")).is_untouched();
    assert_eq!(world.flows().len(), 0);
}

#[test]
fn where_a_pod_has_chosen_off_flows_that_stand_go_on_and_none_begins() {
    for of in BOTH {
        let mut world = World::enter();
        world.serve(Wanted::tcp().cluster_ip(of.cluster_ip).backends(&[of.there]));
        world.serve(Wanted::udp().cluster_ip(of.cluster_ip).backends(&[of.there]));
        let syn = Packet::syn(of.pod, of.cluster_ip);
        world.comes_in("pod1", &syn).goes_on_as(&syn.becomes(of.pod, of.there));
        world.set_flags("pod1", DeviceFlags::POD | DeviceFlags::OFF);
        let ack = Packet::tcp(of.pod, of.cluster_ip).flags("A");
        world.comes_in("pod1", &ack).goes_on_as(&ack.becomes(of.pod, of.there));
        let answer = Packet::tcp(of.there, of.pod).flags("A");
        world.goes_out("pod1", &answer).goes_on_as(&answer.becomes(of.cluster_ip, of.pod));
        // Nor is it told that nobody is there.
        let other = of.pod.replace(":5000", ":5001");
        let unknown = of.cluster_ip.replace(":80", ":81");
        for packet in
            [Packet::syn(&other, of.cluster_ip), Packet::udp(&other, of.cluster_ip), Packet::syn(&other, &unknown)]
        {
            world.comes_in("pod1", &packet).is_untouched();
        }
        assert_eq!((world.flows().len(), world.count(Counter::UnknownPort)), (2, 0));
        world.comes_in("uplink", &Packet::syn(of.client, of.cluster_ip));
        assert_eq!(world.flows().len(), 4, "others are served");
    }
}

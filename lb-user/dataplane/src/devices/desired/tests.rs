//! Tables of wanted devices: links with programs, and entries of `DEVICES`.

use super::*;
use crate::devices::fixture::network;

const NONE: &BTreeSet<u32> = &BTreeSet::new();
const NO_PODS: &BTreeMap<u32, u32> = &BTreeMap::new();

fn devices(
    network: &NetworkState,
    choice: &UplinkChoice,
    pod_links: &BTreeMap<u32, u32>,
    node: &[IpAddr],
) -> BTreeMap<u32, DesiredDevice> {
    let uplinks = &uplinks(network, choice, node, NONE);
    desired_devices(network, node, Selection { uplinks, pod_links, host_routing: false, slow_path: 0 })
}

/// The links of pods that get programs, where no pod sent packets without a socket.
fn links_of(
    network: &NetworkState,
    patterns: &LinkPatterns,
    host_routing: &BTreeSet<u32>,
    modes: Option<&BTreeMap<u32, PodMode>>,
    before: &BTreeMap<u32, Device>,
) -> BTreeMap<u32, u32> {
    let facts = DeviceFacts { written: before.clone(), pod_modes: modes.cloned(), ..facts(network, NONE) };
    pod_links(patterns, host_routing, &facts)
}

fn facts<'a>(network: &'a NetworkState, packet_links: &'a BTreeSet<u32>) -> DeviceFacts<'a> {
    DeviceFacts {
        network,
        node: &[],
        attached: BTreeMap::new(),
        complete: BTreeSet::new(),
        written: BTreeMap::new(),
        pod_modes: Some(BTreeMap::new()),
        packet_links,
        made: BTreeSet::new(),
        netfilter_translates: false,
        slow_path: 0,
    }
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

/// Renders devices as lines.
fn lines(devices: &BTreeMap<u32, DesiredDevice>) -> String {
    let line = |desired: &DesiredDevice| {
        let Device { snat_v4, snat_v6, flags, mtu } = desired.device;
        let role = desired.role.map_or("-".to_owned(), |role| format!("{role:?}"));
        format!("{} {role} {snat_v4} {snat_v6} flags {flags} mtu {mtu}\n", desired.name)
    };
    devices.values().map(line).collect()
}

#[track_caller]
fn check(text: &str, node: &[&str], expected: &str) {
    let expected: String =
        expected.lines().map(str::trim).filter(|line| !line.is_empty()).map(|l| format!("{l}\n")).collect();
    assert_eq!(lines(&devices(&network(text), &UplinkChoice::ByRoute, NO_PODS, &ips(node))), expected);
}

#[test]
fn a_plain_node_with_an_overlay_has_programs_at_uplink_overlay_and_bridge() {
    check(
        "1 lo up loopback layer 772 mtu 65536
         2 eth0 up
         3 flannel.1 up kind vxlan mtu 1450
         4 cni0 up kind bridge mtu 1450
         5 veth1 up kind veth port-of 4
         6 cali2 up kind veth peer 0
         addr 1 127.0.0.1/8
         addr 2 192.0.2.5/24
         addr 2 2001:db8::5/64
         addr 3 10.244.0.0/32
         addr 4 10.244.0.1/24
         route 2 default
         route 2 ::/0
         route 3 10.244.1.0/24",
        &["192.0.2.5"],
        "eth0 Uplink 192.0.2.5 2001:db8::5 flags 0 mtu 1500
         flannel.1 Uplink 10.244.0.0 2001:db8::5 flags 0 mtu 1450
         cni0 Uplink 10.244.0.1 2001:db8::5 flags 8192 mtu 1450
         cali2 - 192.0.2.5 2001:db8::5 flags 129 mtu 1500",
    );
}

#[test]
fn a_bond_is_served_and_its_ports_are_not_and_vlans_by_their_own_addresses() {
    check(
        "2 eth0 up port-of 4
         3 eth1 up port-of 4
         4 bond0 up kind bond
         5 bond0.7 up kind vlan
         6 bond0.8 up kind vlan
         addr 4 192.0.2.5/24
         addr 5 198.51.100.5/24
         addr 6 203.0.113.5/24
         route 2 default
         route 4 default
         route 5 10.0.0.0/8",
        &[],
        "bond0 Uplink 192.0.2.5 :: flags 0 mtu 1500
         bond0.7 Uplink 198.51.100.5 :: flags 0 mtu 1500
         bond0.8 Uplink 203.0.113.5 :: flags 0 mtu 1500",
    );
    // Whatever routes name; and a VRF only chooses routes.
    check(
        "2 eth0 up port-of 4
         3 eth1 up port-of 5
         4 br0 up kind bridge
         5 red up kind vrf
         route 2 default
         route 3 default
         route 5 default",
        &[],
        "eth1 Uplink 0.0.0.0 :: flags 0 mtu 1500
         br0 Uplink 0.0.0.0 :: flags 8192 mtu 1500
         red Uplink 0.0.0.0 :: flags 0 mtu 1500",
    );
}

#[test]
fn a_link_with_the_nodes_address_or_the_default_routes_source_is_an_uplink() {
    // Two nodes in one: a cluster network without routes; and routes learned by BGP, with the node's address on a
    // dummy.
    check(
        "1 lo up loopback layer 772
         2 eth0 up
         3 eth1 up
         4 dum0 up kind dummy
         5 wg0 up kind wireguard layer 65534 mtu 1420
         addr 1 203.0.113.1/32
         addr 2 192.0.2.5/24
         addr 3 198.51.100.5/24
         addr 4 203.0.113.9/32
         addr 5 10.9.0.1/24
         route 2 default src 203.0.113.9",
        &["198.51.100.5", "203.0.113.1"],
        "eth0 Uplink 203.0.113.9 :: flags 16384 mtu 1500
         eth1 Uplink 198.51.100.5 :: flags 0 mtu 1500
         dum0 Uplink 203.0.113.9 :: flags 0 mtu 1500
         wg0 Uplink 10.9.0.1 :: flags 2 mtu 1420",
    );
}

#[test]
fn a_link_without_addresses_uses_those_of_the_node() {
    let text = "1 lo up loopback layer 772
         2 eth0 up
         3 tun0 up layer 65534
         addr 1 192.0.2.1/32
         route 2 default
         route 3 10.0.0.0/8";
    let both = "eth0 Uplink 192.0.2.1 :: flags 0 mtu 1500
         tun0 Uplink 192.0.2.1 :: flags 2 mtu 1500";
    check(text, &["192.0.2.1"], both);
    check(text, &[], both);
    // An address that no link has does not count.
    check(text, &["198.51.100.9"], both);
}

#[test]
fn the_masquerade_address_is_the_routes_source_and_then_a_permanent_one() {
    let check = |addresses: &str, routes: &str, node: &[&str], v4: &str, v6: &str| {
        let network = network(&format!("2 eth0 up\n{addresses}\nroute 2 default\n{routes}"));
        let devices = devices(&network, &UplinkChoice::ByRoute, NO_PODS, &ips(node));
        let Device { snat_v4, snat_v6, .. } = devices.get(&2).expect("it is there").device;
        assert_eq!([snat_v4.to_string(), snat_v6.to_string()], [v4, v6], "{addresses}");
    };
    let two = "addr 2 192.0.2.5/24\naddr 2 192.0.2.6/24 secondary\naddr 2 198.51.100.1/32";
    check(two, "", &[], "192.0.2.5", "::");
    check(two, "route 2 10.0.0.0/8 src 192.0.2.6", &[], "192.0.2.6", "::");
    check(two, "route 2 10.0.0.0/8 src 192.0.2.6\nroute 2 default src 192.0.2.5 metric 9", &[], "192.0.2.5", "::");
    // The source of a stale route does not count.
    check(two, "route 2 10.0.0.0/8 src 192.0.2.99", &[], "192.0.2.5", "::");
    check(two, "", &["198.51.100.1"], "198.51.100.1", "::");
    check("addr 2 169.254.0.5/16\naddr 2 10.0.0.9/8 link\naddr 2 192.0.2.5/32", "", &[], "192.0.2.5", "::");
    let v6 =
        "addr 2 2001:db8::9/64 created 90 secondary\naddr 2 2001:db8::8/64 created 80\naddr 2 2001:db8::a/64 created 7";
    check(v6, "", &[], "0.0.0.0", "2001:db8::a");
    check(&format!("{v6}\naddr 2 2001:db8::1/128 created 1"), "", &[], "0.0.0.0", "2001:db8::a");
}

#[test]
fn a_link_with_sources_of_several_networks_leaves_the_choice_to_the_kernels_routes() {
    const SEVERAL: u32 = DeviceFlags::SEVERAL_SOURCES;
    let check = |text: &str, expected: u32| {
        let network = network(&format!("2 eth0 up\nroute 2 default\naddr 2 192.0.2.5/24\n{text}"));
        let devices = devices(&network, &UplinkChoice::ByRoute, NO_PODS, &[]);
        assert_eq!(devices.get(&2).expect("it is there").device.flags, expected, "{text}");
    };
    check("addr 2 2001:db8::5/64\naddr 2 2001:db8::6/64", 0);
    check("addr 2 10.9.0.1/24", SEVERAL);
    check("addr 2 2001:db8::5/64\naddr 2 fd09::1/64", SEVERAL);
    check("route 2 10.0.0.0/8 src 192.0.2.5", 0);
    check("1 lo up loopback layer 772\naddr 1 203.0.113.9/32\nroute 2 default src 203.0.113.9", SEVERAL);
    check("addr 2 192.0.2.6/24 secondary\nroute 2 10.0.0.0/8 src 192.0.2.6\nroute 2 default src 192.0.2.5", SEVERAL);
    // Without hosts of their network: alone in its prefix, as a virtual router's; deprecated; of the link only.
    check("addr 2 198.51.100.1/32\naddr 2 2001:db8::5/64\naddr 2 fd09::1/64 secondary\naddr 2 10.0.0.9/8 link", 0);
}

#[test]
fn a_link_without_addresses_and_routes_is_an_uplink_if_packets_for_the_node_may_arrive_there() {
    let network = network(
        "2 eth0 up
         3 tunl0 up noarp layer 768
         4 vxlan0 up kind vxlan
         5 dummy0 up noarp kind dummy
         6 ifb0 up noarp kind ifb
         7 trunk up
         8 trunk.5 up kind vlan on 7
         9 port up port-of 10
         10 ovs-system kind openvswitch
         11 in-vrf up port-of 12
         12 red up noarp kind vrf
         13 cali13 up kind veth peer 1
         14 pair up kind veth on 15
         15 other up kind veth on 14
         16 down0
         addr 8 198.51.100.5/24
         route 2 default",
    );
    let devices = devices(&network, &UplinkChoice::ByRoute, NO_PODS, &[]);
    let uplinks = devices.values().filter(|desired| desired.role.is_some()).map(|desired| desired.name.as_str());
    assert_eq!(uplinks.collect::<Vec<_>>(), ["eth0", "tunl0", "vxlan0", "trunk.5", "in-vrf"]);
}

#[test]
fn every_link_but_those_of_pods_and_ports_is_an_uplink() {
    const POD: u32 = DeviceFlags::POD | DeviceFlags::NO_PROGRAMS;
    check(
        "1 lo up loopback layer 772
         2 eth0 up
         3 eth1 up kind veth peer 9
         4 docker0 up kind bridge
         5 veth5 up kind veth peer 0 port-of 4
         6 cali6 up kind veth peer 1
         7 ptp7 up kind veth peer 2
         8 nk8 up kind netkit peer 3
         9 tap9 up kind tun
         10 eth2 up
         11 here0 up kind veth
         12 wg0 up kind wireguard layer 65534
         addr 1 127.0.0.1/8
         addr 2 192.0.2.5/24
         addr 3 10.9.0.1/24
         addr 4 172.17.0.1/16
         addr 7 10.244.0.1/32
         addr 7 fd44::1/128
         addr 11 10.5.0.1/32
         route 2 default
         on-link 6
         on-link 7
         on-link 8
         on-link 9
         on-link 12",
        &[],
        &format!(
            "eth0 Uplink 192.0.2.5 :: flags 0 mtu 1500
             eth1 Uplink 10.9.0.1 :: flags 0 mtu 1500
             docker0 Uplink 172.17.0.1 :: flags 8192 mtu 1500
             cali6 - 192.0.2.5 fd44::1 flags {POD} mtu 1500
             ptp7 - 10.244.0.1 fd44::1 flags {POD} mtu 1500
             nk8 - 192.0.2.5 fd44::1 flags {POD} mtu 1500
             tap9 Uplink 192.0.2.5 fd44::1 flags 0 mtu 1500
             eth2 Uplink 192.0.2.5 fd44::1 flags 0 mtu 1500
             here0 Uplink 10.5.0.1 fd44::1 flags 0 mtu 1500
             wg0 Uplink 192.0.2.5 fd44::1 flags 2 mtu 1500"
        )
        .replace(" ::", " fd44::1"),
    );
}

#[test]
fn a_pods_link_of_a_node_in_a_container_is_told_from_its_uplink_by_neighbours_and_gateways() {
    const POD: u32 = DeviceFlags::POD | DeviceFlags::NO_PROGRAMS;
    // The uplink has no prefix and a gateway, or it has the node's address.
    let text = "2 eth0 up kind veth peer 0
         3 eth1 up kind veth peer 1
         4 cali4 up kind veth peer 2
         addr 2 192.0.2.5/32
         addr 3 198.51.100.5/32
         route 2 default";
    let expected = format!(
        "eth0 Uplink 192.0.2.5 :: flags 0 mtu 1500
         eth1 Uplink 198.51.100.5 :: flags 0 mtu 1500
         cali4 - 198.51.100.5 :: flags {POD} mtu 1500"
    );
    check(text, &["198.51.100.5"], &expected);
}

#[test]
fn links_without_programs_are_marked_where_flags_choose_the_devices() {
    let network = network(
        "2 eth0 up
         3 eth1 up
         addr 2 192.0.2.5/24
         addr 3 10.9.0.1/24
         route 2 default",
    );
    let Ok(choice) = "eth0".parse::<UplinkChoice>();
    let devices = devices(&network, &choice, NO_PODS, &[]);
    let flags: Vec<_> = devices.values().map(|desired| (desired.role, desired.device.flags)).collect();
    assert_eq!(flags, [(Some(Role::Uplink), 0), (None, DeviceFlags::NO_PROGRAMS)]);
}

#[test]
fn flags_take_the_place_of_routes() {
    let network = network(
        "1 lo up loopback layer 772
         2 eth0 up
         3 wg0 layer 65534
         4 lxc1 up kind veth
         5 bond0 up kind bond
         6 eth1 up port-of 5
         addr 2 192.0.2.5/24
         route 2 default",
    );
    let check = |uplinks: &str, pods: &str, expected: &[(&str, Role)]| {
        let (Ok(uplinks), Ok(pods)) = (uplinks.parse::<UplinkChoice>(), pods.parse::<LinkPatterns>());
        let pods = links_of(&network, &pods, NONE, Some(&BTreeMap::new()), &BTreeMap::new());
        let devices = devices(&network, &uplinks, &pods, &[]);
        let with_role = devices.values().filter_map(|desired| Some((desired.name.as_str(), desired.role?)));
        assert_eq!(with_role.collect::<Vec<_>>(), expected);
        devices
    };
    check("none", "", &[]);
    check("wg*", "", &[("wg0", Role::Uplink)]);
    // A port needs no programs if its bond is named too; a port alone may be named.
    check("bond0,eth1", "", &[("bond0", Role::Uplink)]);
    check("eth1", "", &[("eth1", Role::Uplink)]);
    let devices = check(
        "*",
        "lxc*",
        &[("eth0", Role::Uplink), ("wg0", Role::Uplink), ("lxc1", Role::Pod), ("bond0", Role::Uplink)],
    );
    let lxc = devices.get(&4).expect("it is there");
    assert_eq!(lxc.device.flags, DeviceFlags::POD);
    assert_eq!(lxc.device.snat_v4.to_string(), "192.0.2.5");
    assert!(!devices.contains_key(&1), "never lo");
}

#[test]
fn a_link_that_is_down_keeps_its_programs() {
    let network = network("2 eth0\n3 eth1 up port-of 5\n4 eth2\n5 br0 kind bridge");
    let attached = BTreeSet::from([2, 3, 9]);
    assert_eq!(uplinks(&network, &UplinkChoice::ByRoute, &[], &attached), BTreeSet::from([2]));
}

#[test]
fn a_link_that_had_programs_because_of_a_pods_mode_keeps_them() {
    const POD: u32 = DeviceFlags::POD;
    const CHOSEN: u32 = POD | DeviceFlags::CHOSEN;
    const OFF: u32 = DeviceFlags::OFF;
    let network = network("2 lxc2 up kind veth\n3 veth3 up kind veth");
    let check = |mode: Option<PodMode>, before: [u32; 2], expected: [Option<u32>; 2]| {
        let before = [2, 3].into_iter().zip(before.map(|flags| Device { flags, ..Device::default() })).collect();
        let modes = mode.map(|mode| BTreeMap::from([(2, mode), (3, mode)]));
        let Ok(patterns) = "lxc*".parse::<LinkPatterns>();
        let links = links_of(&network, &patterns, NONE, modes.as_ref(), &before);
        assert_eq!([links.get(&2).copied(), links.get(&3).copied()], expected, "{mode:?} after {before:?}");
    };
    use PodMode::{Off, Packet, Socket};
    check(Some(Socket), [0, 0], [Some(POD), None]);
    check(Some(Packet), [0, 0], [Some(CHOSEN), Some(CHOSEN)]);
    check(Some(Off), [0, 0], [Some(POD | OFF), None]);
    check(Some(Socket), [POD, CHOSEN], [Some(POD), Some(CHOSEN)]);
    check(Some(Off), [POD, CHOSEN], [Some(POD | OFF), Some(CHOSEN | OFF)]);
    check(Some(Packet), [POD | OFF, CHOSEN | OFF], [Some(CHOSEN), Some(CHOSEN)]);
    // The agent has just started.
    check(None, [0, 0], [Some(POD), None]);
    check(None, [POD | OFF, CHOSEN | OFF], [Some(POD | OFF), Some(CHOSEN | OFF)]);
    check(None, [CHOSEN, POD], [Some(CHOSEN), None]);
}

#[test]
fn a_link_by_which_a_pod_sent_packets_to_frontends_gets_programs_unless_the_pod_has_mode_off() {
    const POD: u32 = DeviceFlags::POD;
    const CHOSEN: u32 = POD | DeviceFlags::CHOSEN;
    let network = network("2 eth0 up\n3 cali3 up kind veth peer 0\n4 cali4 up kind veth peer 1");
    let found = BTreeSet::from([3]);
    let check = |modes: Option<BTreeMap<u32, PodMode>>, before: u32, expected: &[(u32, u32)]| {
        let written = BTreeMap::from([(3, Device { flags: before, ..Device::default() })]);
        let facts = DeviceFacts { written, pod_modes: modes, ..facts(&network, &found) };
        let links = pod_links(&LinkPatterns::default(), NONE, &facts);
        assert_eq!(links.into_iter().collect::<Vec<_>>(), expected);
    };
    check(Some(BTreeMap::new()), 0, &[(3, CHOSEN)]);
    check(Some(BTreeMap::from([(3, PodMode::Off)])), 0, &[]);
    check(Some(BTreeMap::from([(3, PodMode::Packet)])), 0, &[(3, CHOSEN)]);
    // The mode may be off: it is not known yet.
    check(None, 0, &[]);
    check(None, CHOSEN, &[(3, CHOSEN)]);
}

#[test]
fn host_routing_is_between_uplinks_and_pod_links_outside_of_bridges() {
    const POD: u32 = DeviceFlags::POD;
    const ENTERED: u32 = POD | DeviceFlags::CHOSEN | DeviceFlags::HOST_ROUTING;
    let network = network(
        "1 lo up loopback layer 772
         2 eth0 up
         3 wg0 up layer 65534
         4 cali4 up kind veth peer 0
         5 bridged up kind veth peer 1 port-of 6
         6 cni0 up kind bridge
         7 here up kind veth on 10
         8 l3 up kind netkit layer 65534 peer 2
         10 here-end up kind veth on 7
         9 node up kind veth peer 3
         addr 2 192.0.2.5/24
         route 2 default
         route 3 10.9.0.0/16
         route 9 10.8.0.0/16",
    );
    let pods = |wanted: &BTreeSet<u32>, mode, before: u32| {
        let before = BTreeMap::from([(4, Device { flags: before, ..Device::default() })]);
        links_of(&network, &LinkPatterns::default(), wanted, Some(&BTreeMap::from([(4, mode)])), &before)
    };
    let uplinks = uplinks(&network, &UplinkChoice::ByRoute, &[], NONE);
    let wanted = host_routing_links(&network, &uplinks);
    assert_eq!(wanted, BTreeSet::from([4]));
    let links = pods(&wanted, PodMode::Socket, 0);
    assert_eq!(links, BTreeMap::from([(4, ENTERED)]));
    let selection = Selection { uplinks: &uplinks, pod_links: &links, host_routing: true, slow_path: 0 };
    let devices = desired_devices(&network, &[], selection);
    let flags: Vec<_> = devices.values().map(|desired| (desired.name.as_str(), desired.device.flags)).collect();
    const ROUTED: u32 = DeviceFlags::HOST_ROUTING;
    const BARE: u32 = DeviceFlags::NO_ETHERNET;
    let cni0 = ("cni0", ROUTED | DeviceFlags::BRIDGE);
    let l3 = ("l3", POD | BARE | DeviceFlags::NO_PROGRAMS);
    assert_eq!(flags, [("eth0", ROUTED), ("wg0", BARE), ("cali4", ENTERED), cni0, l3, ("node", ROUTED)]);
    assert_eq!(pods(&wanted, PodMode::Off, 0), BTreeMap::from([(4, ENTERED | DeviceFlags::OFF)]));
    assert_eq!(
        pods(NONE, PodMode::Socket, ENTERED),
        BTreeMap::from([(4, POD | DeviceFlags::CHOSEN)]),
        "flows depend on the programs after host routing is off"
    );
}

#[test]
fn reasons_for_the_slow_path_are_at_all_devices_but_links_of_pods() {
    const MARKS: u32 = DeviceFlags::MARKS;
    let mut network = network(
        "2 eth0 up
         3 gre1 up layer 778
         4 cali4 up kind veth peer 1
         addr 2 192.0.2.5/24
         route 2 default
         route 3 10.9.0.0/16",
    );
    assert_eq!(slow_path(&DeviceOptions::default(), &network, false), (0, true), "the tunnel alone needs masquerade");
    assert_eq!(slow_path(&DeviceOptions::default(), &network, true), (DeviceFlags::IPSEC, true));
    network.routes_by_mark_or_class = true;
    let (flags, needs_masquerade) = slow_path(&DeviceOptions::default(), &network, false);
    assert!(needs_masquerade);
    let uplinks = uplinks(&network, &UplinkChoice::ByRoute, &[], NONE);
    let pod_links = BTreeMap::from([(4, DeviceFlags::POD)]);
    let selection = Selection { uplinks: &uplinks, pod_links: &pod_links, host_routing: false, slow_path: flags };
    let devices = desired_devices(&network, &[], selection);
    let flags: Vec<_> = devices.values().map(|desired| (desired.name.as_str(), desired.device.flags)).collect();
    const GRE: u32 = DeviceFlags::NO_ETHERNET | DeviceFlags::OUTER_HEADERS;
    assert_eq!(flags, [("eth0", MARKS), ("gre1", GRE | MARKS), ("cali4", DeviceFlags::POD)]);
    network.links.remove(&3);
    network.routes_by_mark_or_class = false;
    assert_eq!(slow_path(&DeviceOptions::default(), &network, false), (0, false));
    let always = DeviceOptions { masquerade: Masquerade::Always, ..DeviceOptions::default() };
    assert_eq!(slow_path(&always, &network, false), (DeviceFlags::MASQUERADE, true));
    network.encapsulates = true;
    assert_eq!(slow_path(&DeviceOptions::default(), &network, false), (0, true));
}

#[test]
fn rules_by_sources_are_at_all_devices_but_links_of_pods() {
    let mut network = network(
        "2 eth0 up
         3 eth1 up
         4 cali4 up kind veth peer 1
         addr 2 192.0.2.5/24
         route 2 default
         route 3 10.9.0.0/16",
    );
    network.routes_by_source = true;
    let pod_links = BTreeMap::from([(4, DeviceFlags::POD)]);
    let uplinks = uplinks(&network, &UplinkChoice::ByRoute, &[], NONE);
    let selection = Selection { uplinks: &uplinks, pod_links: &pod_links, host_routing: false, slow_path: 0 };
    let devices = desired_devices(&network, &[], selection);
    let flags: Vec<_> = devices.values().map(|desired| (desired.name.as_str(), desired.device.flags)).collect();
    const RULES: u32 = DeviceFlags::SOURCE_RULES;
    assert_eq!(flags, [("eth0", RULES), ("eth1", RULES), ("cali4", DeviceFlags::POD)]);
}

//! From facts to the devices that a pass wants: links with programs of the packet path, and entries of `DEVICES`. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use lb_common::{Addr, Device, DeviceFlags, PodMode};

use super::options::{DeviceOptions, LinkPatterns, Masquerade, UplinkChoice};
use crate::attach::tc::Attachment;
use lb_kernel::netlink::address::Address;
use lb_kernel::netlink::network_state::{Link, NetworkState, Route};

/// State that a pass reads before it plans.
#[derive(Clone, Debug)]
pub(super) struct DeviceFacts<'a> {
    /// Links, addresses and routes.
    pub(super) network: &'a NetworkState,
    /// Addresses of the Node object.
    pub(super) node: &'a [IpAddr],
    /// Programs that are attached now.
    pub(super) attached: BTreeMap<u32, Attachment>,
    /// Links at which all loaded programs are attached.
    pub(super) complete: BTreeSet<u32>,
    /// Entries of `DEVICES`.
    pub(super) written: BTreeMap<u32, Device>,
    /// Modes of pods by their links; none until the pods are known.
    pub(super) pod_modes: Option<BTreeMap<u32, PodMode>>,
    /// Links without programs by which pods sent packets to frontends.
    pub(super) packet_links: &'a BTreeSet<u32>,
    /// Links that did not exist in the pass before.
    pub(super) made: BTreeSet<u32>,
    /// True if netfilter translates connections now.
    pub(super) netfilter_translates: bool,
    /// Flags of devices by which flows enter or leave on the slow path.
    pub(super) slow_path: u32,
}

/// Reason for programs at a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// Leads to other nodes and to clients outside.
    Uplink,
    /// Leads to a pod of this node.
    Pod,
}

/// Wanted state of a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct DesiredDevice {
    pub(super) name: String,
    /// Reason for programs; none for a link without programs.
    pub(super) role: Option<Role>,
    /// Entry of `DEVICES`.
    pub(super) device: Device,
}

/// Links selected for programs.
#[derive(Clone, Copy, Debug)]
struct Selection<'a> {
    uplinks: &'a BTreeSet<u32>,
    /// Links to pods, with their flags in `DEVICES`.
    pod_links: &'a BTreeMap<u32, u32>,
    /// True if flows to pods of this node bypass the kernel's routing.
    host_routing: bool,
    /// Flags of uplinks by which flows leave on the slow path.
    slow_path: u32,
}

/// Returns the reasons for the slow path at all uplinks, as flags of devices, and true if there is one at some device
/// at least: then netfilter must masquerade. `ipsec` is true if there are IPsec policies.
pub(super) fn slow_path(options: &DeviceOptions, network: &NetworkState, ipsec: bool) -> (u32, bool) {
    let always = options.masquerade == Masquerade::Always;
    let reasons = [
        (ipsec, DeviceFlags::IPSEC),
        (network.routes_by_mark_or_class, DeviceFlags::MARKS),
        (always, DeviceFlags::MASQUERADE),
    ];
    let flags = reasons.iter().filter(|(holds, _)| *holds).fold(0, |flags, (_, flag)| flags | flag);
    let is_l3 = |link: &Link| link.is_up() && !link.is_loopback() && !link.has_ethernet_header();
    (flags, flags != 0 || network.encapsulates || network.links.values().any(is_l3))
}

/// Decides which links get programs, and all entries of `DEVICES`, by index of the link.
pub(super) fn desired(options: &DeviceOptions, facts: &DeviceFacts<'_>) -> BTreeMap<u32, DesiredDevice> {
    let DeviceFacts { network, node, attached, .. } = facts;
    let uplinks = uplinks(network, &options.uplinks, node, &attached.keys().copied().collect());
    let routed = if options.host_routing { host_routing_links(network, &uplinks) } else { BTreeSet::new() };
    let pod_links = pod_links(&options.pods, &routed, facts);
    if options.are_off() && pod_links.is_empty() {
        return BTreeMap::new();
    }
    let selection = Selection {
        uplinks: &uplinks,
        pod_links: &pod_links,
        host_routing: options.host_routing,
        slow_path: facts.slow_path,
    };
    desired_devices(network, node, selection)
}

/// Returns the wanted state of selected links, and of links without programs by which translated packets may leave:
/// links with an own address, and links of pods.
fn desired_devices(network: &NetworkState, node: &[IpAddr], selection: Selection<'_>) -> BTreeMap<u32, DesiredDevice> {
    let primary = [Family::V4, Family::V6].map(|family| primary(network, node, family));
    let of_pods = links_of_pods(network);
    let desired = |(index, link): (&u32, &Link)| {
        let role = if link.is_loopback() {
            None
        } else if selection.pod_links.contains_key(index) {
            Some(Role::Pod)
        } else {
            selection.uplinks.contains(index).then_some(Role::Uplink)
        };
        let own = [Family::V4, Family::V6].map(|family| source(network, node, *index, family));
        let is_pod_link = of_pods.contains(index);
        let is_way_out = link.is_up() && !link.is_loopback() && (is_pod_link || own.iter().any(Option::is_some));
        if role.is_none() && !is_way_out {
            return None;
        }
        let [v4, v6] = [0, 1].map(|at| own.get(at).copied().flatten().or(primary.get(at).copied().flatten()));
        let mut flags = match role {
            Some(Role::Pod) => selection.pod_links.get(index).copied().unwrap_or(0),
            Some(Role::Uplink) if selection.host_routing && link.has_ethernet_header() => DeviceFlags::HOST_ROUTING,
            Some(Role::Uplink) => 0,
            None if is_pod_link => DeviceFlags::NO_PROGRAMS | DeviceFlags::POD,
            None => DeviceFlags::NO_PROGRAMS,
        };
        if !link.has_ethernet_header() {
            flags |= DeviceFlags::NO_ETHERNET;
        }
        if link.may_have_outer_headers() {
            flags |= DeviceFlags::OUTER_HEADERS;
        }
        if flags & DeviceFlags::POD == 0 {
            flags |= selection.slow_path;
            if network.routes_by_source {
                flags |= DeviceFlags::SOURCE_RULES;
            }
            if link.kind == "bridge" {
                flags |= DeviceFlags::BRIDGE;
            }
            if [Family::V4, Family::V6].into_iter().any(|family| has_several_sources(network, node, *index, family)) {
                flags |= DeviceFlags::SEVERAL_SOURCES;
            }
        }
        let device = Device {
            snat_v4: v4.map_or(Addr::from_v4_word(0), Addr::from),
            snat_v6: v6.map_or(Addr::default(), Addr::from),
            flags,
            mtu: link.mtu,
        };
        Some((*index, DesiredDevice { name: link.name.clone(), role, device }))
    };
    network.links.iter().filter_map(desired).collect()
}

/// Returns the uplinks: links by which packets of clients outside or of backends may arrive. `node` are the addresses
/// of the Node object, `attached` the links that have programs now.
#[must_use]
pub fn uplinks(
    network: &NetworkState,
    choice: &UplinkChoice,
    node: &[IpAddr],
    attached: &BTreeSet<u32>,
) -> BTreeSet<u32> {
    let chosen: BTreeSet<u32> = match choice {
        UplinkChoice::Named(patterns) => named(network, patterns),
        UplinkChoice::ByRoute => {
            let default_sources = network.routes.iter().filter(|route| route.prefix_len == 0);
            let of_node: BTreeSet<IpAddr> =
                default_sources.filter_map(|route| route.source).chain(node.iter().copied()).collect();
            let holders = network.addresses.iter().filter(|address| of_node.contains(&address.ip));
            let by_address = holders.map(|address| address.interface);
            // A link that is down has lost its routes, and gets them back when it is up: it keeps its programs.
            let is_down = |index: &u32| network.links.get(index).is_some_and(|link| !link.is_up());
            let kept = attached.iter().copied().filter(is_down);
            // Neighbours on a directly connected network are clients and backends too.
            let own = network.addresses.iter().filter(|address| !address.ip.is_loopback());
            let neighbours = own.map(|address| address.interface).chain(network.on_link.iter().copied());
            let of_pods = links_of_pods(network);
            let of_hosts = neighbours.chain(bare_receivers(network)).filter(|index| !of_pods.contains(index));
            network.routes.iter().map(|route| route.device).chain(by_address).chain(kept).chain(of_hosts).collect()
        }
    };
    let is_served_by_controller = |index: &u32| {
        let link = network.links.get(index);
        link.and_then(|link| controller(network, link)).is_some_and(|controller| chosen.contains(&controller))
    };
    let is_loopback = |index: &u32| network.links.get(index).is_some_and(Link::is_loopback);
    chosen.iter().copied().filter(|index| !is_served_by_controller(index) && !is_loopback(index)).collect()
}

/// Lists the links by which packets of hosts may arrive though neither an address nor a route is there, such as the end
/// of a load balancer's tunnel: the kernel serves these packets as any others. Left out are links that pass their
/// packets to another one, as the lower device of a VLAN and a port do, and Ethernet links without neighbours (NOARP),
/// as dummies are.
fn bare_receivers(network: &NetworkState) -> impl Iterator<Item = u32> {
    let lower: BTreeSet<u32> = network.links.values().filter_map(|link| link.lower).collect();
    let receives = move |(index, link): &(&u32, &Link)| {
        let is_addressed = link.has_neighbours() || !link.has_ethernet_header();
        link.is_up() && is_addressed && controller(network, link).is_none() && !lower.contains(index)
    };
    network.links.iter().filter(receives).map(|(index, _)| *index)
}

/// Returns the bond, bridge or the like by which the packets of a port pass too. A VRF is different: it only chooses
/// routes.
fn controller(network: &NetworkState, link: &Link) -> Option<u32> {
    link.controller.filter(|index| network.links.get(index).is_none_or(|controller| controller.kind != "vrf"))
}

/// Lists the links that lead to one pod of this node each: ends of pairs whose other end is in another network
/// namespace, without a controller, and without neighbours or a gateway behind them. The plugins ptp and kindnet give
/// such links an address alone in its prefix, Calico and others give none. The second network of a node that is itself
/// a container has a prefix.
fn links_of_pods(network: &NetworkState) -> BTreeSet<u32> {
    let wide = network.addresses.iter().filter(|address| !address.is_alone_in_its_prefix());
    let others: BTreeSet<u32> =
        wide.map(|address| address.interface).chain(network.routes.iter().map(|route| route.device)).collect();
    let is_pair = |link: &Link| link.peer_nsid.is_some() && link.controller.is_none();
    let links = network.links.iter().filter(|(index, link)| is_pair(link) && !others.contains(index));
    links.map(|(index, _)| *index).collect()
}

/// Lists the links whose names match.
fn named(network: &NetworkState, patterns: &LinkPatterns) -> BTreeSet<u32> {
    network.links.iter().filter(|(_, link)| patterns.matches(&link.name)).map(|(index, _)| *index).collect()
}

/// Lists the links by which host routing may enter a pod: ends of pairs whose other end is in another network
/// namespace. A port of a bridge is excluded, since routes lead to the bridge, and so is an uplink, which leads to no
/// pod.
fn host_routing_links(network: &NetworkState, uplinks: &BTreeSet<u32>) -> BTreeSet<u32> {
    let leads_to_a_pod =
        |link: &Link| link.peer_nsid.is_some() && link.controller.is_none() && link.has_ethernet_header();
    let links = network.links.iter().filter(|(index, link)| leads_to_a_pod(link) && !uplinks.contains(index));
    links.map(|(index, _)| *index).collect()
}

/// Returns the links to pods that get programs, with their flags: links with matching names, links of `host_routing`,
/// links of pods in mode `packet`, and those of other pods that sent packets to frontends. Until the modes are known,
/// those with programs stay. A link that once had programs because of its pod keeps them, since flows may depend on
/// them.
fn pod_links(patterns: &LinkPatterns, host_routing: &BTreeSet<u32>, facts: &DeviceFacts<'_>) -> BTreeMap<u32, u32> {
    const POD: u32 = DeviceFlags::POD;
    const OFF: u32 = DeviceFlags::OFF;
    const CHOSEN: u32 = DeviceFlags::CHOSEN;
    const HOST_ROUTING: u32 = DeviceFlags::HOST_ROUTING;
    let flags = |index: &u32, name: &str| {
        let before = facts.written.get(index).map_or(0, |device| device.flags);
        let by_packets = if facts.packet_links.contains(index) { CHOSEN } else { 0 };
        let by_routing = if host_routing.contains(index) { HOST_ROUTING | CHOSEN } else { 0 };
        let by_mode = match facts.pod_modes.as_ref().map(|modes| modes.get(index).copied().unwrap_or_default()) {
            None => before & (CHOSEN | OFF),
            Some(PodMode::Socket) => before & CHOSEN | by_packets,
            Some(PodMode::Packet) => CHOSEN,
            Some(PodMode::Off) => before & CHOSEN | OFF,
        };
        let flags = POD | by_routing | by_mode;
        (patterns.matches(name) || flags & CHOSEN != 0).then_some(flags)
    };
    facts.network.links.iter().filter_map(|(index, link)| Some((*index, flags(index, &link.name)?))).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const fn has(self, ip: &IpAddr) -> bool {
        matches!((self, ip), (Self::V4, IpAddr::V4(_)) | (Self::V6, IpAddr::V6(_)))
    }
}

/// Returns the masquerade address of packets that leave by a link: the source of its routes, else the best of its own
/// addresses.
fn source(network: &NetworkState, node: &[IpAddr], link: u32, family: Family) -> Option<IpAddr> {
    let own = network.addresses.iter().filter(|address| address.interface == link);
    sources_of_routes(network, link, family).min().map(|(.., ip)| ip).or_else(|| best(own, node, family))
}

/// Lists the sources of a link's routes: prefix length, metric and address.
fn sources_of_routes(network: &NetworkState, link: u32, family: Family) -> impl Iterator<Item = (u8, u32, IpAddr)> {
    let of_route = move |route: &Route| {
        let source = route.source.filter(|ip| family.has(ip) && network.addresses.iter().any(|own| own.ip == *ip))?;
        (route.device == link).then_some((route.prefix_len, route.metric, source))
    };
    network.routes.iter().filter_map(of_route)
}

/// True if the masquerade address of a link does not fit all packets that leave by it: a route has another source, or
/// the address is none of a network that is directly there.
fn has_several_sources(network: &NetworkState, node: &[IpAddr], link: u32, family: Family) -> bool {
    let Some(chosen) = source(network, node, link, family) else { return false };
    let own = network.addresses.iter().filter(|own| own.interface == link && family.has(&own.ip) && is_global(own));
    let usual = own.filter(|own| !own.is_alone_in_its_prefix() && !own.is_deprecated_or_secondary());
    let mut networks = usual.filter_map(|own| IpNet::new(own.ip, own.prefix_len).ok());
    networks.any(|network| !network.contains(&chosen))
        || sources_of_routes(network, link, family).any(|(.., ip)| ip != chosen)
}

/// Returns the best of some addresses: an address of the Node object, else a permanent one, else the oldest.
fn best<'a>(addresses: impl Iterator<Item = &'a Address>, node: &[IpAddr], family: Family) -> Option<IpAddr> {
    let rank = |(at, address): &(usize, &Address)| {
        // The kernel lists IPv4 addresses by age, and itself prefers the first.
        let order = if family == Family::V4 { (0, *at) } else { (address.created, 0) };
        (
            !node.contains(&address.ip),
            address.is_deprecated_or_secondary(),
            address.is_alone_in_its_prefix(),
            order,
            address.ip,
        )
    };
    let global = addresses.filter(|address| family.has(&address.ip) && is_global(address));
    global.enumerate().min_by_key(rank).map(|(_, address)| address.ip)
}

/// True if other hosts can reply to the address.
const fn is_global(address: &Address) -> bool {
    let is_world = address.scope == libc::RT_SCOPE_UNIVERSE;
    let is_near = match address.ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_loopback(),
    };
    is_world && !is_near
}

/// Returns the masquerade address of links without an address of their own.
fn primary(network: &NetworkState, node: &[IpAddr], family: Family) -> Option<IpAddr> {
    let is_own = |ip: &IpAddr| network.addresses.iter().any(|address| address.ip == *ip);
    let known = node.iter().copied().find(|ip| family.has(ip) && is_own(ip));
    let by_default = || {
        let of_family = network.routes.iter().filter(|route| route.is_v6 == (family == Family::V6));
        let mut routes: Vec<&Route> = of_family.filter(|route| route.prefix_len == 0).collect();
        routes.sort_by_key(|route| (route.metric, route.device));
        routes.iter().find_map(|route| source(network, node, route.device, family))
    };
    known.or_else(by_default).or_else(|| best(network.addresses.iter(), node, family))
}

#[cfg(test)]
mod tests;

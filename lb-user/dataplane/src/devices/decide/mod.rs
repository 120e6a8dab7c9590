//! From facts to what is wanted: which links get the programs of the packet path, and what stands in `DEVICES`. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{Addr, Device, DeviceFlags, PodMode};

use super::choice::{Choice, Patterns};
use lb_kernel::netlink::address::Address;
use lb_kernel::netlink::network_state::{Link, NetworkState, Route};

/// Why a link has the programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It leads to other nodes and to clients outside.
    Uplink,
    /// Its other end is a pod of this node.
    Pod,
}

/// What is wanted of a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    /// Its name.
    pub name: String,
    /// Why it shall have the programs; none: it shall have none.
    pub role: Option<Role>,
    /// What shall stand in `DEVICES`.
    pub device: Device,
}

/// What is known besides the kernel's facts.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The links that packets from outside may come by.
    pub uplinks: &'a BTreeSet<u32>,
    /// The links to pods that shall have the programs, by index, with their flags in `DEVICES`.
    pub pod_links: &'a BTreeMap<u32, u32>,
    /// Whether flows to pods of this node go past the kernel's own routing.
    pub host_routing: bool,
    /// The addresses by which the cluster knows this node.
    pub node: &'a [IpAddr],
}

/// The links whose names fit.
fn named(facts: &NetworkState, patterns: &Patterns) -> BTreeSet<u32> {
    facts.links.iter().filter(|(_, link)| patterns.has(&link.name)).map(|(index, _)| *index).collect()
}

/// The links to pods into which packets can be put at once: ends of pairs whose other ends are in another network namespace. A
/// port of a bridge is none, since the routes lead to the bridge; and an uplink leads to no pod.
#[must_use]
pub fn entrances(facts: &NetworkState, uplinks: &BTreeSet<u32>) -> BTreeSet<u32> {
    let leads_to_a_pod =
        |link: &Link| link.peer_nsid.is_some() && link.controller.is_none() && link.has_ethernet_header();
    let links = facts.links.iter().filter(|(index, link)| leads_to_a_pod(link) && !uplinks.contains(index));
    links.map(|(index, _)| *index).collect()
}

/// The links to pods that shall have the programs, and the flags that say so: those whose names fit, those of `host_routing`,
/// and those of which the pod has chosen the packet path. None of `choices`: nobody has told yet, and what was chosen `before`
/// stays. A link that once had the programs by choice keeps them, since flows may stand that need them.
#[must_use]
pub fn pod_links(
    facts: &NetworkState,
    patterns: &Patterns,
    host_routing: &BTreeSet<u32>,
    choices: Option<&BTreeMap<u32, PodMode>>,
    before: &BTreeMap<u32, Device>,
) -> BTreeMap<u32, u32> {
    const POD: u32 = DeviceFlags::POD;
    const OFF: u32 = DeviceFlags::OFF;
    const CHOSEN: u32 = DeviceFlags::CHOSEN;
    const HOST_ROUTING: u32 = DeviceFlags::HOST_ROUTING;
    let flags = |index: &u32, name: &str| {
        let before = before.get(index).map_or(0, |device| device.flags);
        let by_routing = if host_routing.contains(index) { HOST_ROUTING | CHOSEN } else { 0 };
        let by_pod = match choices.map(|choices| choices.get(index).copied().unwrap_or_default()) {
            None => before & (CHOSEN | OFF),
            Some(PodMode::Socket) => before & CHOSEN,
            Some(PodMode::Packet) => CHOSEN,
            Some(PodMode::Off) => before & CHOSEN | OFF,
        };
        let flags = POD | by_routing | by_pod;
        (patterns.has(name) || flags & CHOSEN != 0).then_some(flags)
    };
    facts.links.iter().filter_map(|(index, link)| Some((*index, flags(index, &link.name)?))).collect()
}

/// What is wanted, by index of the link.
#[must_use]
pub fn decide(facts: &NetworkState, setting: Setting<'_>) -> BTreeMap<u32, Wish> {
    let primary = [Family::V4, Family::V6].map(|family| primary(facts, setting.node, family));
    let wish = |(index, link): (&u32, &Link)| {
        let role = if link.is_loopback() {
            None
        } else if setting.pod_links.contains_key(index) {
            Some(Role::Pod)
        } else {
            setting.uplinks.contains(index).then_some(Role::Uplink)
        };
        let own = [Family::V4, Family::V6].map(|family| source(facts, setting.node, *index, family));
        let is_way_out = link.is_up() && !link.is_loopback() && own.iter().any(Option::is_some);
        if role.is_none() && !is_way_out {
            return None;
        }
        let [v4, v6] = [0, 1].map(|at| own.get(at).copied().flatten().or(primary.get(at).copied().flatten()));
        let mut flags = match role {
            Some(Role::Pod) => setting.pod_links.get(index).copied().unwrap_or(0),
            Some(Role::Uplink) if setting.host_routing && link.has_ethernet_header() => DeviceFlags::HOST_ROUTING,
            _ => 0,
        };
        if !link.has_ethernet_header() {
            flags |= DeviceFlags::NO_ETHERNET;
        }
        let device = Device {
            snat_v4: v4.map_or(Addr::from_v4_word(0), Addr::from),
            snat_v6: v6.map_or(Addr::default(), Addr::from),
            flags,
            mtu: link.mtu,
        };
        Some((*index, Wish { name: link.name.clone(), role, device }))
    };
    facts.links.iter().filter_map(wish).collect()
}

/// The links that packets from outside may come by: as they are chosen, where `node` are the addresses by which the cluster
/// knows this node, and `attached` the links that have the programs now.
#[must_use]
pub fn uplinks(facts: &NetworkState, choice: &Choice, node: &[IpAddr], attached: &BTreeSet<u32>) -> BTreeSet<u32> {
    let chosen: BTreeSet<u32> = match choice {
        Choice::Named(patterns) => named(facts, patterns),
        Choice::ByRoute => {
            let default_sources = facts.routes.iter().filter(|route| route.prefix_len == 0);
            let named: BTreeSet<IpAddr> =
                default_sources.filter_map(|route| route.source).chain(node.iter().copied()).collect();
            let holders = facts.addresses.iter().filter(|address| named.contains(&address.ip));
            let by_address = holders.map(|address| address.interface);
            // One that is switched off has lost its routes, and has them again soon: until then nothing is changed.
            let is_off = |index: &u32| facts.links.get(index).is_some_and(|link| !link.is_up());
            let kept = attached.iter().copied().filter(is_off);
            facts.routes.iter().map(|route| route.device).chain(by_address).chain(kept).collect()
        }
    };
    // What a port of a bond or bridge takes in comes by that one; a VRF is none, as it only chooses routes.
    let is_served_by_another = |index: &u32| {
        let controller = facts.links.get(index).and_then(|link| link.controller);
        controller.is_some_and(|controller| {
            chosen.contains(&controller) && facts.links.get(&controller).is_some_and(|link| link.kind != "vrf")
        })
    };
    chosen.iter().copied().filter(|index| !is_served_by_another(index)).collect()
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

/// The source of packets that go out by a link on behalf of others: as its routes say, else the best of its own addresses.
fn source(facts: &NetworkState, node: &[IpAddr], link: u32, family: Family) -> Option<IpAddr> {
    let said = |route: &Route| {
        let source = route.source.filter(|ip| family.has(ip) && facts.addresses.iter().any(|own| own.ip == *ip))?;
        (route.device == link).then_some((route.prefix_len, route.metric, source))
    };
    let own = facts.addresses.iter().filter(|address| address.interface == link);
    facts.routes.iter().filter_map(said).min().map(|(.., ip)| ip).or_else(|| best(own, node, family))
}

/// The best of some addresses: one of the node's names, else one that stays, else the first that came.
fn best<'a>(addresses: impl Iterator<Item = &'a Address>, node: &[IpAddr], family: Family) -> Option<IpAddr> {
    let rank = |(at, address): &(usize, &Address)| {
        let is_single = address.prefix_len == if family == Family::V4 { 32 } else { 128 };
        // IPv4 addresses stand in the order in which they came, and the kernel takes the first.
        let order = if family == Family::V4 { (0, *at) } else { (address.created, 0) };
        (!node.contains(&address.ip), address.is_deprecated_or_secondary(), is_single, order, address.ip)
    };
    let global = addresses.filter(|address| family.has(&address.ip) && is_global(address));
    global.enumerate().min_by_key(rank).map(|(_, address)| address.ip)
}

/// Whether other hosts can answer to it.
const fn is_global(address: &Address) -> bool {
    let is_world = address.scope == libc::RT_SCOPE_UNIVERSE;
    let is_near = match address.ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_loopback(),
    };
    is_world && !is_near
}

/// The node's own address, for links that have none.
fn primary(facts: &NetworkState, node: &[IpAddr], family: Family) -> Option<IpAddr> {
    let is_own = |ip: &IpAddr| facts.addresses.iter().any(|address| address.ip == *ip);
    let known = node.iter().copied().find(|ip| family.has(ip) && is_own(ip));
    let by_default = || {
        let of_family = facts.routes.iter().filter(|route| route.is_v6 == (family == Family::V6));
        let mut routes: Vec<&Route> = of_family.filter(|route| route.prefix_len == 0).collect();
        routes.sort_by_key(|route| (route.metric, route.device));
        routes.iter().find_map(|route| source(facts, node, route.device, family))
    };
    known.or_else(by_default).or_else(|| best(facts.addresses.iter(), node, family))
}

#[cfg(test)]
mod tests;

//! Links, addresses and routes of a network namespace, read by rtnetlink as far as devices are chosen by them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd as _},
};

use crate::netlink::{
    NetlinkSocket,
    address::{self, Address, ip},
    codec::{attributes, put_attribute, text, u16_at, u32_at},
};

/// Links, addresses and routes at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NetworkState {
    /// Links by index.
    pub links: BTreeMap<u32, Link>,
    /// Usable addresses ([`Address::is_usable`]), in the kernel's order.
    pub addresses: Vec<Address>,
    /// Routes that lead beyond a link's own neighbours.
    pub routes: Vec<Route>,
    /// Links of unicast routes to neighbours, but for the routes that come with an address.
    pub on_link: BTreeSet<u32>,
    /// True if a route encapsulates (`RTA_ENCAP`), as MPLS and SRv6 do.
    pub encapsulates: bool,
    /// True if a rule chooses a routing table of its own for packets with a mark or of a traffic class (DSCP, TOS), or
    /// a route is for a traffic class.
    pub routes_by_mark_or_class: bool,
    /// True if a rule chooses a routing table of its own for packets from some addresses.
    pub routes_by_source: bool,
}

/// A network device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Link {
    /// Name, such as `eth0`.
    pub name: String,
    /// Driver kind (`IFLA_INFO_KIND`), such as `veth`, `bond` or `vxlan`; empty for hardware.
    pub kind: String,
    /// Link layer type (`ARPHRD_`).
    pub link_type: u16,
    /// `IFF_` bits.
    pub flags: u32,
    /// MTU in octets.
    pub mtu: u32,
    /// Link address, of six octets as Ethernet has it; None for others.
    pub address: Option<[u8; 6]>,
    /// Index of the bond, bridge or VRF that has the device as a port.
    pub controller: Option<u32>,
    /// Id of the network namespace of a veth or netkit device's peer, as this namespace numbers it; None if the peer is
    /// here.
    pub peer_nsid: Option<i32>,
    /// Index of the device of this namespace on which the device stands, as a VLAN or a macvlan does, or of the other
    /// end of a pair.
    pub lower: Option<u32>,
}

impl Link {
    /// True if the device is administratively up, with or without a carrier.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.has(libc::IFF_UP)
    }

    /// True if the device is up and has a carrier.
    #[must_use]
    pub const fn has_carrier(&self) -> bool {
        self.is_up() && self.has(libc::IFF_RUNNING)
    }

    /// True if hosts find each other by ARP or neighbour discovery there.
    #[must_use]
    pub const fn has_neighbours(&self) -> bool {
        self.has_ethernet_header() && !self.is_loopback() && !self.has(libc::IFF_NOARP)
    }

    /// True for `lo`.
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        self.has(libc::IFF_LOOPBACK)
    }

    /// True if packets of the device begin with an Ethernet header (include/uapi/linux/if_arp.h).
    #[must_use]
    pub const fn has_ethernet_header(&self) -> bool {
        matches!(self.link_type, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK)
    }

    /// True if packets of the device may begin with the outer headers of a tunnel (include/uapi/linux/if_arp.h).
    #[must_use]
    pub const fn may_have_outer_headers(&self) -> bool {
        const IP6GRE: u16 = 823;
        matches!(
            self.link_type,
            libc::ARPHRD_TUNNEL | libc::ARPHRD_TUNNEL6 | libc::ARPHRD_SIT | libc::ARPHRD_IPGRE | IP6GRE
        )
    }

    const fn has(&self, flag: libc::c_int) -> bool {
        self.flags & flag.cast_unsigned() != 0
    }

    fn parse(body: &[u8]) -> Option<(u32, Self)> {
        let (link_type, index, flags) = (u16_at(body, 2)?, u32_at(body, 4)?, u32_at(body, 8)?);
        let mut link = Self { link_type, flags, ..Self::default() };
        let mut lower_nsid = None;
        for (kind, value) in attributes(body.get(LINK_HEADER..)?) {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_ADDRESS => link.address = value.try_into().ok(),
                libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
                IFLA_LINK_NETNSID => lower_nsid = u32_at(value, 0).map(u32::cast_signed),
                libc::IFLA_LINK => link.lower = u32_at(value, 0).filter(|lower| *lower != index),
                libc::IFLA_MASTER => link.controller = u32_at(value, 0),
                libc::IFLA_LINKINFO => {
                    let kind = attributes(value).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                    link.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
                }
                _ => {}
            }
        }
        // For other kinds the id is that of the namespace where the device was made, or of a lower device.
        link.peer_nsid = lower_nsid.filter(|_| matches!(link.kind.as_str(), "veth" | "netkit"));
        link.lower = link.lower.filter(|lower| lower_nsid.is_none() && *lower != 0);
        Some((index, link))
    }
}

/// include/uapi/linux/if_link.h
const IFLA_LINK_NETNSID: u16 = 37;

/// Length of a `struct ifinfomsg`.
const LINK_HEADER: usize = 16;

/// Length of a `struct rtmsg`.
pub(super) const ROUTE_HEADER: usize = 12;

/// Length of a `struct fib_rule_hdr`.
const RULE_HEADER: usize = 12;

/// A next hop of a unicast route that leads beyond the device's own neighbours: by a gateway, or as the default route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Index of the device.
    pub device: u32,
    /// True for IPv6.
    pub is_v6: bool,
    /// Prefix length of the destination; 0 is the default route.
    pub prefix_len: u8,
    /// Metric; lower goes first.
    pub metric: u32,
    /// Preferred source address (`RTA_PREFSRC`).
    pub source: Option<IpAddr>,
}

/// Parses a route, which may have several next hops. Returns the next hops beyond a link, and the links of the other
/// next hops; None for a route that is not unicast.
fn routes(body: &[u8]) -> Option<(Vec<Route>, Vec<u32>)> {
    // Cached routes for one destination.
    const RTM_F_CLONED: u32 = 0x200;
    let &[family, prefix_len, _, _, _, origin, _, kind] = body.first_chunk()?;
    let is_v6 = match i32::from(family) {
        libc::AF_INET => false,
        libc::AF_INET6 => true,
        _ => return None,
    };
    if kind != libc::RTN_UNICAST || u32_at(body, 8)? & RTM_F_CLONED != 0 {
        return None;
    }
    let attributes_of_route = body.get(ROUTE_HEADER..)?;
    let (mut metric, mut source, mut hops) = (0, None, vec![Hop::parse(attributes_of_route)]);
    for (kind, value) in attributes(attributes_of_route) {
        match kind {
            libc::RTA_PRIORITY => metric = u32_at(value, 0)?,
            libc::RTA_PREFSRC => source = ip(value),
            libc::RTA_MULTIPATH => hops = Hop::parse_all(value),
            _ => {}
        }
    }
    let (beyond, on_link): (Vec<Hop>, Vec<Hop>) = hops.into_iter().partition(|hop| hop.has_gateway || prefix_len == 0);
    let route = |hop: Hop| Some(Route { device: hop.device?, is_v6, prefix_len, metric, source });
    let added = on_link.into_iter().filter(|_| origin != libc::RTPROT_KERNEL).filter_map(|hop| hop.device);
    Some((beyond.into_iter().filter_map(route).collect(), added.collect()))
}

/// True if the route is for packets of a traffic class (`rtm_tos`). Routes of IPv6 have none.
fn has_class(route: &[u8]) -> bool {
    matches!(route, [family, _, _, class, ..] if i32::from(*family) == libc::AF_INET && *class != 0)
}

/// True if a next hop of the route encapsulates.
fn encapsulating(route: &[u8]) -> bool {
    let mut attributes_of_route = attributes(route.get(ROUTE_HEADER..).unwrap_or_default());
    attributes_of_route.any(|(kind, value)| match kind {
        libc::RTA_ENCAP => true,
        libc::RTA_MULTIPATH => Hop::parse_all(value).iter().any(|hop| hop.encapsulates),
        _ => false,
    })
}

/// Properties of packets by which a rule leads them to a routing table of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Selectors {
    /// A mark or a traffic class.
    mark_or_class: bool,
    source: bool,
}

/// Reads the selectors of a rule that leads to a table of its own. Rules that lead to the main table, as those of VPNs
/// and cloud plugins do for packets of their own, do not change the routes of others; and rules for packets without
/// some mark need no mark. None for a truncated rule.
fn selectors(body: &[u8]) -> Option<Selectors> {
    // FIB_RULE_INVERT, FR_ACT_TO_TBL, FRA_SRC, FRA_FWMARK, FRA_TABLE and FRA_DSCP (include/uapi/linux/fib_rules.h)
    const INVERT: u32 = 2;
    const TO_TABLE: u8 = 1;
    const SRC: u16 = 2;
    const FWMARK: u16 = 10;
    const TABLE: u16 = 15;
    const DSCP: u16 = 25;
    let (class, action, flags) = (*body.get(3)?, *body.get(7)?, u32_at(body, 8)?);
    let find = |of| attributes(body.get(RULE_HEADER..).unwrap_or_default()).find(|(kind, _)| *kind == of);
    let number = |of| find(of).and_then(|(_, value)| u32_at(value, 0)).unwrap_or(0);
    let own_tables = [libc::RT_TABLE_DEFAULT, libc::RT_TABLE_MAIN, libc::RT_TABLE_LOCAL].map(u32::from);
    if action != TO_TABLE || own_tables.contains(&number(TABLE)) {
        return Some(Selectors::default());
    }
    let by_mark = flags & INVERT == 0 && number(FWMARK) != 0;
    Some(Selectors { mark_or_class: by_mark || class != 0 || find(DSCP).is_some(), source: find(SRC).is_some() })
}

struct Hop {
    encapsulates: bool,
    device: Option<u32>,
    has_gateway: bool,
}

impl Hop {
    fn parse(bytes: &[u8]) -> Self {
        let mut hop = Self { encapsulates: false, device: None, has_gateway: false };
        for (kind, value) in attributes(bytes) {
            match kind {
                libc::RTA_OIF => hop.device = u32_at(value, 0),
                // RTA_ENCAP is the outer header of a tunnel, which leads beyond the link as a gateway does.
                libc::RTA_ENCAP => (hop.has_gateway, hop.encapsulates) = (true, true),
                libc::RTA_GATEWAY | libc::RTA_VIA => hop.has_gateway = true,
                _ => {}
            }
        }
        hop
    }

    /// Parses the next hops of a multipath route (`struct rtnexthop`).
    fn parse_all(mut bytes: &[u8]) -> Vec<Self> {
        let mut hops = Vec::new();
        while let Some(length) = u16_at(bytes, 0).map(usize::from)
            && let Some(own) = bytes.get(8..length)
        {
            hops.push(Self { device: u32_at(bytes, 4), ..Self::parse(own) });
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        hops
    }
}

impl NetworkState {
    /// Reads the state of the socket's network namespace.
    ///
    /// # Errors
    /// The kernel's errno, or an error if a list changes during every reading.
    pub fn read(netlink: &mut NetlinkSocket) -> io::Result<Self> {
        let links = links(netlink)?;
        let mut addresses = netlink.dump(address::GET, &address::ALL, Address::parse)?;
        addresses.retain(Address::is_usable);
        let (mut encapsulates, mut by_class) = (false, false);
        let routes = netlink.dump(libc::RTM_GETROUTE, &[0; ROUTE_HEADER], |body| {
            encapsulates |= encapsulating(body);
            by_class |= has_class(body);
            routes(body)
        })?;
        let (routes, on_link): (Vec<_>, Vec<_>) = routes.into_iter().unzip();
        let on_link = on_link.into_iter().flatten().collect();
        let routes = routes.into_iter().flatten().collect();
        let rules = netlink.dump(libc::RTM_GETRULE, &[0; RULE_HEADER], selectors)?;
        let routes_by_mark_or_class = by_class || rules.iter().any(|rule| rule.mark_or_class);
        let routes_by_source = rules.iter().any(|rule| rule.source);
        Ok(Self { links, addresses, routes, on_link, encapsulates, routes_by_mark_or_class, routes_by_source })
    }
}

/// Lists the link-local IPv6 address of each device that has one, past duplicate address detection.
///
/// # Errors
/// The kernel's errno, or an error if the list changes during every reading.
pub fn link_local(netlink: &mut NetlinkSocket) -> io::Result<BTreeMap<u32, Ipv6Addr>> {
    let addresses = netlink.dump(address::GET, &address::ALL, Address::parse)?;
    Ok(addresses.iter().filter_map(|address| Some((address.interface, address.link_local()?))).collect())
}

/// Lists all links by index.
///
/// # Errors
/// The kernel's errno, or an error if the list changes during every reading.
pub fn links(netlink: &mut NetlinkSocket) -> io::Result<BTreeMap<u32, Link>> {
    // include/uapi/linux/rtnetlink.h: counters would be the larger part of each answer.
    const RTEXT_FILTER_SKIP_STATS: u32 = 8;
    let mut all = vec![0; LINK_HEADER];
    put_attribute(&mut all, libc::IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    Ok(netlink.dump(libc::RTM_GETLINK, &all, Link::parse)?.into_iter().collect())
}

/// Returns the id by which the socket's network namespace numbers another one, whose file is open as `fd`; None if it
/// has no id there, since no link leads there.
///
/// # Errors
/// The kernel's errno.
pub fn nsid(netlink: &mut NetlinkSocket, fd: impl AsFd) -> io::Result<Option<i32>> {
    // include/uapi/linux/net_namespace.h
    const RTM_GETNSID: u16 = 90;
    const NETNSA_NSID: u16 = 1;
    const NETNSA_FD: u16 = 3;
    // Length of a `struct rtgenmsg`, aligned.
    const HEADER: usize = 4;
    let mut body = vec![0; HEADER];
    put_attribute(&mut body, NETNSA_FD, &fd.as_fd().as_raw_fd().to_ne_bytes());
    let nsid = netlink.get(RTM_GETNSID, &body, |body| {
        let (_, value) = attributes(body.get(HEADER..)?).find(|(kind, _)| *kind == NETNSA_NSID)?;
        u32_at(value, 0).map(u32::cast_signed)
    })?;
    Ok(nsid.filter(|nsid| *nsid >= 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(family: i32, prefix_len: u8, kind: u8, build: impl FnOnce(&mut Vec<u8>)) -> Option<Vec<Route>> {
        let mut body = vec![u8::try_from(family).expect("a family"), prefix_len, 0, 0, 254, 3, 0, kind, 0, 0, 0, 0];
        build(&mut body);
        routes(&body).map(|(routes, _)| routes)
    }

    fn hop(device: u32, gateway: Option<[u8; 4]>) -> Vec<u8> {
        let mut own = Vec::new();
        if let Some(gateway) = gateway {
            put_attribute(&mut own, libc::RTA_GATEWAY, &gateway);
        }
        let length = u16::try_from(8 + own.len()).expect("short");
        [&length.to_ne_bytes()[..], &[0, 0], &device.to_ne_bytes()[..], &own].concat()
    }

    #[test]
    fn only_routes_with_a_gateway_and_default_routes_are_kept() {
        let oif = |body: &mut Vec<u8>| put_attribute(body, libc::RTA_OIF, &7_u32.to_ne_bytes());
        let plain = |prefix_len| Route { device: 7, is_v6: false, prefix_len, metric: 0, source: None };
        let with_gateway = |body: &mut Vec<u8>| {
            oif(body);
            put_attribute(body, libc::RTA_GATEWAY, &[10, 0, 0, 1]);
            put_attribute(body, libc::RTA_PREFSRC, &[10, 0, 0, 9]);
            put_attribute(body, libc::RTA_PRIORITY, &100_u32.to_ne_bytes());
        };
        let source = Some("10.0.0.9".parse().expect("an address"));
        let wanted = Route { metric: 100, source, ..plain(24) };
        assert_eq!(route(libc::AF_INET, 24, libc::RTN_UNICAST, with_gateway), Some(vec![wanted]));
        assert_eq!(route(libc::AF_INET, 24, libc::RTN_UNICAST, oif), Some(vec![]), "neighbours only");
        assert_eq!(route(libc::AF_INET, 0, libc::RTN_UNICAST, oif), Some(vec![plain(0)]), "a line to one peer");
        assert_eq!(route(libc::AF_INET, 24, libc::RTN_LOCAL, with_gateway), None);
        assert_eq!(route(128, 24, libc::RTN_UNICAST, with_gateway), None, "multicast routes");
        let via = |body: &mut Vec<u8>| {
            oif(body);
            put_attribute(body, libc::RTA_VIA, &[10, 0, 0xfe, 0x80]);
        };
        assert_eq!(route(libc::AF_INET, 24, libc::RTN_UNICAST, via), Some(vec![plain(24)]));
        let several = |body: &mut Vec<u8>| {
            let hops = [hop(7, Some([10, 0, 0, 1])), hop(8, None), hop(9, Some([10, 0, 0, 2]))].concat();
            put_attribute(body, libc::RTA_MULTIPATH, &hops);
        };
        let wanted = vec![plain(24), Route { device: 9, ..plain(24) }];
        assert_eq!(route(libc::AF_INET, 24, libc::RTN_UNICAST, several), Some(wanted));
    }

    #[test]
    fn links_of_routes_to_neighbours_are_kept_unless_an_address_made_the_route() {
        for (origin, wanted) in [(libc::RTPROT_BOOT, vec![7]), (libc::RTPROT_KERNEL, vec![])] {
            let family = u8::try_from(libc::AF_INET).expect("small");
            let mut body = vec![family, 24, 0, 0, 0, origin, 0, libc::RTN_UNICAST, 0, 0, 0, 0];
            put_attribute(&mut body, libc::RTA_OIF, &7_u32.to_ne_bytes());
            assert_eq!(routes(&body), Some((vec![], wanted)));
        }
    }

    #[test]
    fn rules_by_marks_classes_and_sources_count_unless_they_lead_to_a_common_table() {
        let rule_of = |class: u8, action: u8, flags: u32, (kind, value): (u16, [u8; 4]), table: u32| {
            let mut body = vec![2, 0, 0, class, 0, 0, 0, action];
            body.extend(flags.to_ne_bytes());
            put_attribute(&mut body, kind, &value);
            put_attribute(&mut body, 15, &table.to_ne_bytes());
            selectors(&body).map(|selectors| (selectors.mark_or_class, selectors.source))
        };
        let rule = |action, flags, selector, table| rule_of(0, action, flags, selector, table);
        let mark = |mark: u32| (10, mark.to_ne_bytes());
        let (source, destination) = ((2, [10, 244, 1, 7]), (1, [10, 244, 1, 7]));
        assert_eq!(rule(1, 0, mark(7), 101), Some((true, false)));
        assert_eq!(rule(1, 2, mark(7), 101), Some((false, false)), "not fwmark 7, as WireGuard's");
        assert_eq!(rule(1, 0, mark(0x80), 254), Some((false, false)), "to the main table");
        assert_eq!(rule(7, 0, mark(7), 0), Some((false, false)), "unreachable");
        assert_eq!(rule(1, 0, source, 2), Some((false, true)));
        assert_eq!(rule(1, 2, source, 2), Some((false, true)), "not from there");
        assert_eq!(rule(1, 0, source, 254), Some((false, false)), "to the main table");
        assert_eq!(rule(1, 0, destination, 101), Some((false, false)));
        assert_eq!(rule_of(0x10, 1, 0, destination, 101), Some((true, false)), "tos 0x10");
        assert_eq!(rule_of(0x10, 1, 0, destination, 254), Some((false, false)), "to the main table");
        assert_eq!(rule(1, 0, (25, [4, 0, 0, 0]), 101), Some((true, false)), "dscp 4");
        assert_eq!(selectors(&[2, 0]), None);
    }

    #[test]
    fn routes_of_ipv4_may_be_for_a_traffic_class() {
        let [v4, v6] = [libc::AF_INET, libc::AF_INET6].map(|family| u8::try_from(family).expect("small"));
        assert!(has_class(&[v4, 24, 0, 0x10, 254]) && !has_class(&[v4, 24, 0, 0, 254]) && !has_class(&[v4, 24]));
        assert!(!has_class(&[v6, 24, 0, 0x10, 254]));
    }

    #[test]
    fn a_route_encapsulates_if_one_of_its_next_hops_does() {
        let mut body = vec![0; ROUTE_HEADER];
        put_attribute(&mut body, libc::RTA_MULTIPATH, &[hop(7, None), hop(8, None)].concat());
        assert!(!encapsulating(&body));
        let mut own = Vec::new();
        put_attribute(&mut own, libc::RTA_ENCAP, &[]);
        let length = u16::try_from(8 + own.len()).expect("short");
        let second = [&length.to_ne_bytes()[..], &[0, 0], &8_u32.to_ne_bytes()[..], &own].concat();
        let mut body = vec![0; ROUTE_HEADER];
        put_attribute(&mut body, libc::RTA_MULTIPATH, &[hop(7, None), second].concat());
        assert!(encapsulating(&body));
        let mut body = vec![0; ROUTE_HEADER];
        put_attribute(&mut body, libc::RTA_ENCAP, &[]);
        assert!(encapsulating(&body));
    }

    #[test]
    fn a_link_is_parsed() {
        let mut info = Vec::new();
        put_attribute(&mut info, libc::IFLA_INFO_KIND, b"vxlan\0");
        let mut body = vec![0, 0, 1, 0];
        body.extend(7_u32.to_ne_bytes());
        body.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        put_attribute(&mut body, libc::IFLA_IFNAME, b"flannel.1\0");
        put_attribute(&mut body, libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 9]);
        put_attribute(&mut body, libc::IFLA_MTU, &1450_u32.to_ne_bytes());
        put_attribute(&mut body, libc::IFLA_MASTER, &3_u32.to_ne_bytes());
        put_attribute(&mut body, libc::IFLA_LINKINFO, &info);
        put_attribute(&mut body, IFLA_LINK_NETNSID, &5_i32.to_ne_bytes());
        put_attribute(&mut body, libc::IFLA_LINK, &4_u32.to_ne_bytes());
        let (index, link) = Link::parse(&body).expect("a link");
        assert!(link.is_up() && !link.is_loopback() && index == 7);
        let wanted = Link {
            name: "flannel.1".to_owned(),
            kind: "vxlan".to_owned(),
            link_type: u16::from_ne_bytes([1, 0]),
            flags: link.flags,
            mtu: 1450,
            address: Some([2, 0, 0, 0, 0, 9]),
            controller: Some(3),
            peer_nsid: None,
            lower: None,
        };
        assert_eq!(link, wanted, "the namespace id of a vxlan device is not a peer's, and its lower device is there");
        for (lower, known) in [(4_u32, Some(4)), (7, None), (0, None)] {
            let mut vlan = body.get(..LINK_HEADER).expect("a header").to_vec();
            put_attribute(&mut vlan, libc::IFLA_LINK, &lower.to_ne_bytes());
            assert_eq!(Link::parse(&vlan).and_then(|(_, link)| link.lower), known);
        }
        let mut pair = body.get(..LINK_HEADER).expect("a header").to_vec();
        let mut info = Vec::new();
        put_attribute(&mut info, libc::IFLA_INFO_KIND, b"veth\0");
        put_attribute(&mut pair, IFLA_LINK_NETNSID, &5_i32.to_ne_bytes());
        put_attribute(&mut pair, libc::IFLA_LINKINFO, &info);
        assert_eq!(Link::parse(&pair).and_then(|(_, link)| link.peer_nsid), Some(5));
        for end in 0..body.len() {
            let _no_panic = Link::parse(body.get(..end).expect("a prefix"));
        }
    }
}

//! What the kernel says of links, addresses and routes: read by rtnetlink, and only as much of it as decides something.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd as _},
};

use crate::netlink::{
    Channel,
    address::{self, Address, ip},
    wire::{attribute, attributes, text, u16_at, u32_at},
};

/// All of it, of one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// By index.
    pub links: BTreeMap<u32, Link>,
    /// Those that can be used, in the kernel's order.
    pub addresses: Vec<Address>,
    /// Those that lead beyond a link.
    pub routes: Vec<Route>,
}

/// A network device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Link {
    /// As people know it.
    pub name: String,
    /// What the kernel made it by, such as `veth`, `bond` or `vxlan`; empty for hardware.
    pub kind: String,
    /// Its link layer (`ARPHRD_`).
    pub layer: u16,
    /// `IFF_` bits.
    pub flags: u32,
    /// The largest packet that it carries.
    pub mtu: u32,
    /// Index of the bond, bridge or VRF of which it is a port.
    pub controller: Option<u32>,
    /// For one end of a pair: by which number this network namespace knows that of the other end, where it is another one.
    pub peer: Option<i32>,
}

impl Link {
    /// Whether it is switched on; it may have no carrier.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.has(libc::IFF_UP)
    }

    /// Whether it leads back to this node.
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        self.has(libc::IFF_LOOPBACK)
    }

    /// Whether its packets begin with an Ethernet header (include/uapi/linux/if_arp.h).
    #[must_use]
    pub const fn has_ethernet_header(&self) -> bool {
        matches!(self.layer, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK)
    }

    const fn has(&self, flag: libc::c_int) -> bool {
        self.flags & flag.cast_unsigned() != 0
    }

    fn parse(body: &[u8]) -> Option<(u32, Self)> {
        let (layer, index, flags) = (u16_at(body, 2)?, u32_at(body, 4)?, u32_at(body, 8)?);
        let mut link = Self { layer, flags, ..Self::default() };
        for (kind, value) in attributes(body.get(LINK_HEADER..)?) {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
                IFLA_LINK_NETNSID => link.peer = u32_at(value, 0).map(u32::cast_signed),
                libc::IFLA_MASTER => link.controller = u32_at(value, 0),
                libc::IFLA_LINKINFO => {
                    let kind = attributes(value).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                    link.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
                }
                _ => {}
            }
        }
        // Of others it is where they were made, or what lies below them.
        link.peer = link.peer.filter(|_| matches!(link.kind.as_str(), "veth" | "netkit"));
        Some((index, link))
    }
}

/// include/uapi/linux/if_link.h
const IFLA_LINK_NETNSID: u16 = 37;

/// Length of a `struct ifinfomsg`.
const LINK_HEADER: usize = 16;

/// Length of a `struct rtmsg`.
const ROUTE_HEADER: usize = 12;

/// One way of a unicast route that leads to other hosts than the device's own neighbours: by a gateway, or everywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Index of the device.
    pub device: u32,
    /// Whether it is of IPv6.
    pub is_v6: bool,
    /// How many bits of its destination count: 0 is the default route.
    pub prefix_len: u8,
    /// The lower the better.
    pub metric: u32,
    /// From where packets go out that way, if it says.
    pub source: Option<IpAddr>,
}

/// Takes a route apart, which may lead several ways. None of those that do not matter.
fn routes(body: &[u8]) -> Option<Vec<Route>> {
    // Those that the kernel made of others for one destination.
    const RTM_F_CLONED: u32 = 0x200;
    let &[family, prefix_len, _, _, _, _, _, kind] = body.first_chunk()?;
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
    let leads = hops.into_iter().filter(|hop| hop.has_gateway || prefix_len == 0);
    Some(leads.filter_map(|hop| Some(Route { device: hop.device?, is_v6, prefix_len, metric, source })).collect())
}

struct Hop {
    device: Option<u32>,
    has_gateway: bool,
}

impl Hop {
    fn parse(bytes: &[u8]) -> Self {
        let mut hop = Self { device: None, has_gateway: false };
        for (kind, value) in attributes(bytes) {
            match kind {
                libc::RTA_OIF => hop.device = u32_at(value, 0),
                // The last is the outer header of a tunnel: as good as a gateway.
                libc::RTA_GATEWAY | libc::RTA_VIA | libc::RTA_ENCAP => hop.has_gateway = true,
                _ => {}
            }
        }
        hop
    }

    /// Those of a route with several (`struct rtnexthop`).
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

impl Facts {
    /// Reads them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn read(channel: &mut Channel) -> io::Result<Self> {
        let links = links(channel)?;
        let mut addresses = channel.list(address::GET, &address::ALL, Address::parse)?;
        addresses.retain(Address::is_usable);
        let routes = channel.list(libc::RTM_GETROUTE, &[0; ROUTE_HEADER], routes)?;
        Ok(Self { links, addresses, routes: routes.into_iter().flatten().collect() })
    }
}

/// All links, by index.
///
/// # Errors
/// What the kernel says.
pub fn links(channel: &mut Channel) -> io::Result<BTreeMap<u32, Link>> {
    // include/uapi/linux/rtnetlink.h: counters would be the larger part of each answer.
    const RTEXT_FILTER_SKIP_STATS: u32 = 8;
    let mut all = vec![0; LINK_HEADER];
    attribute(&mut all, libc::IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    Ok(channel.list(libc::RTM_GETLINK, &all, Link::parse)?.into_iter().collect())
}

/// By which number the network namespace of the channel knows another one, whose file is open as `fd`; none where it knows
/// none, since no link leads there.
///
/// # Errors
/// What the kernel says.
pub fn number_of(channel: &mut Channel, fd: impl AsFd) -> io::Result<Option<i32>> {
    // include/uapi/linux/net_namespace.h
    const RTM_GETNSID: u16 = 90;
    const NETNSA_NSID: u16 = 1;
    const NETNSA_FD: u16 = 3;
    // A `struct rtgenmsg`, filled up.
    const HEADER: usize = 4;
    let mut body = vec![0; HEADER];
    attribute(&mut body, NETNSA_FD, &fd.as_fd().as_raw_fd().to_ne_bytes());
    let number = channel.get(RTM_GETNSID, &body, |body| {
        let (_, value) = attributes(body.get(HEADER..)?).find(|(kind, _)| *kind == NETNSA_NSID)?;
        u32_at(value, 0).map(u32::cast_signed)
    })?;
    Ok(number.filter(|number| *number >= 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(family: i32, prefix_len: u8, kind: u8, build: impl FnOnce(&mut Vec<u8>)) -> Option<Vec<Route>> {
        let mut body = vec![u8::try_from(family).expect("a family"), prefix_len, 0, 0, 254, 3, 0, kind, 0, 0, 0, 0];
        build(&mut body);
        routes(&body)
    }

    fn hop(device: u32, gateway: Option<[u8; 4]>) -> Vec<u8> {
        let mut own = Vec::new();
        if let Some(gateway) = gateway {
            attribute(&mut own, libc::RTA_GATEWAY, &gateway);
        }
        let length = u16::try_from(8 + own.len()).expect("short");
        [&length.to_ne_bytes()[..], &[0, 0], &device.to_ne_bytes()[..], &own].concat()
    }

    #[test]
    fn only_routes_that_lead_beyond_a_link_matter() {
        let oif = |body: &mut Vec<u8>| attribute(body, libc::RTA_OIF, &7_u32.to_ne_bytes());
        let plain = |prefix_len| Route { device: 7, is_v6: false, prefix_len, metric: 0, source: None };
        let with_gateway = |body: &mut Vec<u8>| {
            oif(body);
            attribute(body, libc::RTA_GATEWAY, &[10, 0, 0, 1]);
            attribute(body, libc::RTA_PREFSRC, &[10, 0, 0, 9]);
            attribute(body, libc::RTA_PRIORITY, &100_u32.to_ne_bytes());
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
            attribute(body, libc::RTA_VIA, &[10, 0, 0xfe, 0x80]);
        };
        assert_eq!(route(libc::AF_INET, 24, libc::RTN_UNICAST, via), Some(vec![plain(24)]));
        let several = |body: &mut Vec<u8>| {
            let hops = [hop(7, Some([10, 0, 0, 1])), hop(8, None), hop(9, Some([10, 0, 0, 2]))].concat();
            attribute(body, libc::RTA_MULTIPATH, &hops);
        };
        let wanted = vec![plain(24), Route { device: 9, ..plain(24) }];
        assert_eq!(route(libc::AF_INET, 24, libc::RTN_UNICAST, several), Some(wanted));
    }

    #[test]
    fn a_link_is_read() {
        let mut info = Vec::new();
        attribute(&mut info, libc::IFLA_INFO_KIND, b"vxlan\0");
        let mut body = vec![0, 0, 1, 0];
        body.extend(7_u32.to_ne_bytes());
        body.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        attribute(&mut body, libc::IFLA_IFNAME, b"flannel.1\0");
        attribute(&mut body, libc::IFLA_MTU, &1450_u32.to_ne_bytes());
        attribute(&mut body, libc::IFLA_MASTER, &3_u32.to_ne_bytes());
        attribute(&mut body, libc::IFLA_LINKINFO, &info);
        attribute(&mut body, IFLA_LINK_NETNSID, &5_i32.to_ne_bytes());
        let (index, link) = Link::parse(&body).expect("a link");
        assert!(link.is_up() && !link.is_loopback() && index == 7);
        let wanted = Link {
            name: "flannel.1".to_owned(),
            kind: "vxlan".to_owned(),
            layer: u16::from_ne_bytes([1, 0]),
            flags: link.flags,
            mtu: 1450,
            controller: Some(3),
            peer: None,
        };
        assert_eq!(link, wanted, "its number of a namespace is not that of another end");
        let mut pair = body.get(..LINK_HEADER).expect("a header").to_vec();
        let mut info = Vec::new();
        attribute(&mut info, libc::IFLA_INFO_KIND, b"veth\0");
        attribute(&mut pair, IFLA_LINK_NETNSID, &5_i32.to_ne_bytes());
        attribute(&mut pair, libc::IFLA_LINKINFO, &info);
        assert_eq!(Link::parse(&pair).and_then(|(_, link)| link.peer), Some(5));
        for end in 0..body.len() {
            let _no_panic = Link::parse(body.get(..end).expect("a prefix"));
        }
    }
}

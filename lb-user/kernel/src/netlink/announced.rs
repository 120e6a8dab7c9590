//! Routes to single addresses in tables of their own, marked by a protocol number: for routing daemons, which announce
//! them. No packet of the node uses them, unless a rule leads to the table.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    NetlinkSocket,
    codec::{attributes, put_attribute, u32_at},
    network_state::ROUTE_HEADER,
};

/// Protocol number of Beeline's routes (`rtm_protocol`): `proto 119` of ip-route(8). FRR takes routes with 186 to 198
/// for its own (zebra/rt_netlink.h), and does not redistribute them.
pub const PROTOCOL: u8 = 119;
/// Index of `lo`, in every network namespace.
const LOOPBACK: u32 = 1;
/// RTM_F_CLONED: an entry of a cache, not of a table.
const CLONED: u32 = 0x200;

/// A route of Beeline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct AnnouncedRoute {
    /// Number of the table.
    pub table: u32,
    /// The address, with all its bits.
    pub address: IpAddr,
}

/// Lists Beeline's routes in a table, or in all. The kernel sends no others: a node may have a million.
///
/// # Errors
/// The kernel's errno.
pub fn list(netlink: &mut NetlinkSocket, table: Option<u32>) -> io::Result<BTreeSet<AnnouncedRoute>> {
    netlink.filter_dumps()?;
    let mut routes = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        match netlink.dump(libc::RTM_GETROUTE, &filter(family, table), parse) {
            Ok(found) => routes.extend(found),
            // The kernel makes a table with its first route.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(routes)
}

/// The request of a list: protocol and table are filters.
fn filter(family: i32, table: Option<u32>) -> Vec<u8> {
    let mut body = vec![family as u8, 0, 0, 0, libc::RT_TABLE_UNSPEC, PROTOCOL, 0, 0, 0, 0, 0, 0];
    if let Some(table) = table {
        put_attribute(&mut body, libc::RTA_TABLE, &table.to_ne_bytes());
    }
    body
}

/// Adds a route.
///
/// # Errors
/// The kernel's errno; EEXIST if the table has a route to the address.
pub fn add(netlink: &mut NetlinkSocket, route: AnnouncedRoute) -> io::Result<()> {
    netlink.execute(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &body(route))
}

/// Removes a route of Beeline; others with the same address stay.
///
/// # Errors
/// The kernel's errno; ESRCH if it is not there.
pub fn remove(netlink: &mut NetlinkSocket, route: AnnouncedRoute) -> io::Result<()> {
    netlink.execute(libc::RTM_DELROUTE, 0, &body(route))
}

fn body(AnnouncedRoute { table, address }: AnnouncedRoute) -> Vec<u8> {
    let (family, bits, scope) = match address {
        IpAddr::V4(_) => (libc::AF_INET, 32, libc::RT_SCOPE_LINK),
        IpAddr::V6(_) => (libc::AF_INET6, 128, libc::RT_SCOPE_UNIVERSE),
    };
    // struct rtmsg: family, lengths of both prefixes, TOS, table (in an attribute), protocol, scope, type, flags.
    let mut body =
        vec![family as u8, bits, 0, 0, libc::RT_TABLE_UNSPEC, PROTOCOL, scope, libc::RTN_UNICAST, 0, 0, 0, 0];
    match address {
        IpAddr::V4(ip) => put_attribute(&mut body, libc::RTA_DST, &ip.octets()),
        IpAddr::V6(ip) => put_attribute(&mut body, libc::RTA_DST, &ip.octets()),
    }
    put_attribute(&mut body, libc::RTA_OIF, &LOOPBACK.to_ne_bytes());
    put_attribute(&mut body, libc::RTA_TABLE, &table.to_ne_bytes());
    body
}

/// Parses a route; None if it is not Beeline's.
fn parse(body: &[u8]) -> Option<AnnouncedRoute> {
    let (family, bits, protocol) = (i32::from(*body.first()?), *body.get(1)?, *body.get(5)?);
    if protocol != PROTOCOL || u32_at(body, 8)? & CLONED != 0 {
        return None;
    }
    let (mut table, mut address) = (u32::from(*body.get(4)?), None);
    for (kind, value) in attributes(body.get(ROUTE_HEADER..)?) {
        match kind {
            libc::RTA_TABLE => table = u32_at(value, 0)?,
            libc::RTA_DST => {
                address = match (family, bits) {
                    (libc::AF_INET, 32) => Some(Ipv4Addr::from(*value.first_chunk::<4>()?).into()),
                    (libc::AF_INET6, 128) => Some(Ipv6Addr::from(*value.first_chunk::<16>()?).into()),
                    _ => None,
                };
            }
            _ => {}
        }
    }
    Some(AnnouncedRoute { table, address: address? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_read_as_it_is_written_and_routes_of_others_are_not() {
        for text in ["192.0.2.7", "2001:db8::7"] {
            let route = AnnouncedRoute { table: 1000, address: text.parse().expect("an address") };
            let written = body(route);
            assert_eq!(parse(&written), Some(route));
            let changed = |at: usize, value: u8| {
                let mut changed = written.clone();
                changed[at] = value;
                parse(&changed)
            };
            assert_eq!(changed(5, libc::RTPROT_BOOT), None, "of another protocol");
            assert_eq!(changed(1, 24), None, "a prefix");
            assert_eq!(changed(9, (CLONED >> 8) as u8), None, "of a cache");
            for end in 0..written.len() {
                let _no_panic = parse(&written[..end]);
            }
        }
    }
}

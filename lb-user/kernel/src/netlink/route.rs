//! The route of one forwarded packet, as `ip route get DESTINATION from SOURCE iif DEVICE` shows it.

use std::{io, net::IpAddr};

use super::{
    NetlinkSocket,
    address::ip,
    codec::{attributes, put_attribute, u32_at},
};

/// A route that was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoundRoute {
    /// Index of the output device; of `lo` for an address of this node.
    pub device: u32,
    /// True if the destination is this node itself.
    pub is_local: bool,
    /// True if the route encapsulates (`RTA_ENCAP`).
    pub encapsulates: bool,
    /// The source address that a packet of this node gets; None for a packet that entered by a device.
    pub source: Option<IpAddr>,
}

/// Finds the route to a destination, of a packet from `source` that entered by a device; without them, of a packet of
/// this node.
///
/// # Errors
/// The kernel's errno: ENETUNREACH and EHOSTUNREACH without a route, EXDEV if the check of the reverse path refuses the
/// source.
pub fn find(
    netlink: &mut NetlinkSocket,
    destination: IpAddr,
    from: Option<(IpAddr, u32)>,
) -> io::Result<Option<FoundRoute>> {
    let (family, bits) = if destination.is_ipv4() { (libc::AF_INET, 32) } else { (libc::AF_INET6, 128) };
    // struct rtmsg: family, and the lengths of both prefixes.
    let mut body = vec![family as u8, bits, if from.is_some() { bits } else { 0 }, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    put_address(&mut body, libc::RTA_DST, destination);
    if let Some((source, device)) = from {
        put_address(&mut body, libc::RTA_SRC, source);
        put_attribute(&mut body, libc::RTA_IIF, &device.to_ne_bytes());
    }
    netlink.get(libc::RTM_GETROUTE, &body, parse)
}

fn put_address(body: &mut Vec<u8>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(ip) => put_attribute(body, kind, &ip.octets()),
        IpAddr::V6(ip) => put_attribute(body, kind, &ip.octets()),
    }
}

fn parse(body: &[u8]) -> Option<FoundRoute> {
    let is_local = *body.get(7)? == libc::RTN_LOCAL;
    let (mut device, mut encapsulates, mut source) = (None, false, None);
    for (kind, value) in attributes(body.get(super::network_state::ROUTE_HEADER..)?) {
        match kind {
            libc::RTA_OIF => device = u32_at(value, 0),
            libc::RTA_ENCAP => encapsulates = true,
            libc::RTA_PREFSRC => source = ip(value),
            _ => {}
        }
    }
    Some(FoundRoute { device: device?, is_local, encapsulates, source })
}

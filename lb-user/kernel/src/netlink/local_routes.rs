//! Addresses that a node has by a route alone (`ip route add local ADDRESS dev DEVICE`), as the guest agents of some
//! clouds give it those of load balancers.

use std::{io, net::IpAddr};

use super::{NetlinkSocket, address::ip, codec::attributes, network_state::ROUTE_HEADER};

/// Lists the addresses with a local route of their own in the table `local`, but for those of interfaces, whose routes
/// the kernel makes. The kernel sends no other routes: a node may have a million.
///
/// # Errors
/// The kernel's errno.
pub fn list(netlink: &mut NetlinkSocket) -> io::Result<Vec<IpAddr>> {
    netlink.filter_dumps()?;
    let mut addresses = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        // struct rtmsg: family, lengths of both prefixes, TOS, table, protocol, scope, type, flags.
        let local = [family as u8, 0, 0, 0, libc::RT_TABLE_LOCAL, 0, 0, libc::RTN_LOCAL, 0, 0, 0, 0];
        addresses.extend(netlink.dump(libc::RTM_GETROUTE, &local, parse)?);
    }
    Ok(addresses)
}

/// Parses a route; None if it is not a local route to one address that the kernel itself has not made.
fn parse(body: &[u8]) -> Option<IpAddr> {
    let &[family, bits, _, _, table, protocol, _, kind] = body.first_chunk()?;
    let is_single = match i32::from(family) {
        libc::AF_INET => bits == 32,
        libc::AF_INET6 => bits == 128,
        _ => false,
    };
    if !is_single || table != libc::RT_TABLE_LOCAL || protocol == libc::RTPROT_KERNEL || kind != libc::RTN_LOCAL {
        return None;
    }
    let (_, value) = attributes(body.get(ROUTE_HEADER..)?).find(|(kind, _)| *kind == libc::RTA_DST)?;
    ip(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::codec::put_attribute;

    #[test]
    fn only_local_routes_to_one_address_that_the_kernel_has_not_made_are_taken() {
        let route = |family: i32, bits: u8, table: u8, protocol: u8, kind: u8| {
            let mut body = vec![u8::try_from(family).expect("small"), bits, 0, 0, table, protocol, 0, kind, 0, 0, 0, 0];
            match family {
                libc::AF_INET => put_attribute(&mut body, libc::RTA_DST, &[192, 0, 2, 7]),
                _ => put_attribute(&mut body, libc::RTA_DST, &[0xfd; 16]),
            }
            (parse(&body), parse(body.get(..14).expect("a prefix")))
        };
        let (local, boot) = (libc::RT_TABLE_LOCAL, libc::RTPROT_BOOT);
        let (v4, v6) = (IpAddr::from([192, 0, 2, 7]), IpAddr::from([0xfd; 16]));
        assert_eq!(route(libc::AF_INET, 32, local, boot, libc::RTN_LOCAL), (Some(v4), None));
        assert_eq!(route(libc::AF_INET6, 128, local, 66, libc::RTN_LOCAL), (Some(v6), None), "Google's guest agent");
        for (bits, table, protocol, kind) in [
            (24, local, boot, libc::RTN_LOCAL),
            (32, libc::RT_TABLE_MAIN, boot, libc::RTN_LOCAL),
            (32, local, libc::RTPROT_KERNEL, libc::RTN_LOCAL),
            (32, local, boot, libc::RTN_BROADCAST),
        ] {
            assert_eq!(route(libc::AF_INET, bits, table, protocol, kind).0, None);
        }
        assert_eq!(route(libc::AF_INET6, 32, local, boot, libc::RTN_LOCAL).0, None);
    }
}

//! Addresses of interfaces in rtnetlink's form (include/uapi/linux/if_addr.h). Pure.

use std::net::{IpAddr, Ipv6Addr};

use super::codec::{attributes, u32_at};

/// Message type of the request for a list.
pub const GET: u16 = libc::RTM_GETADDR;

/// Body of that request, for both families.
pub const ALL: [u8; 8] = [0; 8];

/// An address of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// Index of the interface.
    pub interface: u32,
    /// The address.
    pub ip: IpAddr,
    /// Prefix length of its network.
    pub prefix_len: u8,
    /// Scope (`RT_SCOPE_`): 0 is global.
    pub scope: u8,
    /// `IFA_F_` bits.
    pub flags: u32,
    /// Time of creation, in hundredths of a second since the node started.
    pub created: u32,
}

impl Address {
    /// Parses the body of a message; None if it has no address.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let &[_, prefix_len, flags, scope] = body.first_chunk()?;
        let (mut address, mut local, mut flags, mut created) = (None, None, u32::from(flags), 0);
        for (kind, value) in attributes(body.get(8..)?) {
            match kind {
                libc::IFA_ADDRESS => address = ip(value),
                libc::IFA_LOCAL => local = ip(value),
                // The third field of a `struct ifa_cacheinfo`.
                libc::IFA_CACHEINFO => created = u32_at(value, 8).unwrap_or(0),
                libc::IFA_FLAGS => flags = u32_at(value, 0).unwrap_or(flags),
                _ => {}
            }
        }
        // On a point-to-point link IFA_ADDRESS is the peer's address.
        Some(Self { interface: u32_at(body, 4)?, ip: local.or(address)?, prefix_len, scope, flags, created })
    }

    /// True if a socket can be bound to the address and clients elsewhere can use it: not link-local, and past
    /// duplicate address detection.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.is_bindable() && !matches!(self.ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
    }

    /// The address, if it is a link-local IPv6 address past duplicate address detection.
    #[must_use]
    pub fn link_local(&self) -> Option<Ipv6Addr> {
        match self.ip {
            IpAddr::V6(ip) if ip.is_unicast_link_local() && self.is_bindable() => Some(ip),
            _ => None,
        }
    }

    fn is_bindable(&self) -> bool {
        // Duplicate address detection is under way. An optimistic address is used meanwhile (RFC 4429).
        let tentative = self.has(libc::IFA_F_TENTATIVE) && !self.has(libc::IFA_F_OPTIMISTIC);
        !tentative && !self.has(libc::IFA_F_DADFAILED)
    }

    /// True if no other address is in the prefix: the address makes no neighbours known.
    #[must_use]
    pub const fn is_alone_in_its_prefix(&self) -> bool {
        self.prefix_len == if self.ip.is_ipv4() { 32 } else { 128 }
    }

    /// True if other addresses go first as a source: this one is deprecated, or secondary in its network.
    #[must_use]
    pub fn is_deprecated_or_secondary(&self) -> bool {
        self.has(libc::IFA_F_DEPRECATED) || self.has(libc::IFA_F_SECONDARY)
    }

    const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// Parses the value of an address attribute.
pub fn ip(value: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(value).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::codec::put_attribute;

    fn message(flags: u32, address: Option<&str>, local: Option<&str>) -> Vec<u8> {
        let mut body = vec![2, 24, 0, 0];
        body.extend(7_u32.to_ne_bytes());
        let mut add = |kind: u16, text: &str| match text.parse().expect("an address") {
            IpAddr::V4(ip) => put_attribute(&mut body, kind, &ip.octets()),
            IpAddr::V6(ip) => put_attribute(&mut body, kind, &ip.octets()),
        };
        if let Some(text) = address {
            add(libc::IFA_ADDRESS, text);
        }
        if let Some(text) = local {
            add(libc::IFA_LOCAL, text);
        }
        put_attribute(&mut body, libc::IFA_LABEL, b"lo\0");
        put_attribute(&mut body, libc::IFA_FLAGS, &flags.to_ne_bytes());
        body
    }

    #[test]
    fn an_address_is_usable_after_duplicate_address_detection_unless_link_local() {
        let check = |flags: u32, address: Option<&str>, local: Option<&str>, expected: Option<&str>| {
            let read = Address::parse(&message(flags, address, local));
            assert!(read.is_none_or(|read| (read.interface, read.prefix_len) == (7, 24)));
            let usable = read.filter(Address::is_usable).map(|read| read.ip);
            assert_eq!(usable, expected.map(|text| text.parse().expect("an address")), "{flags} {address:?} {local:?}");
        };
        check(0, Some("10.0.0.1"), Some("10.0.0.1"), Some("10.0.0.1"));
        check(0, Some("10.0.0.2"), Some("10.0.0.1"), Some("10.0.0.1"));
        check(0, Some("fd00::1"), None, Some("fd00::1"));
        check(0, Some("fd00::2"), Some("fd00::1"), Some("fd00::1"));
        check(0, Some("127.0.0.1"), Some("127.0.0.1"), Some("127.0.0.1"));
        check(0, Some("169.254.20.10"), Some("169.254.20.10"), Some("169.254.20.10"));
        check(0, Some("fe80::1"), None, None);
        check(0, Some("febf::1"), None, None);
        check(0, Some("fec0::1"), None, Some("fec0::1"));
        check(0, None, None, None);
        let v6 = |flags, expected| check(flags, Some("fd00::1"), None, expected);
        v6(libc::IFA_F_PERMANENT, Some("fd00::1"));
        v6(libc::IFA_F_DEPRECATED, Some("fd00::1"));
        v6(libc::IFA_F_SECONDARY, Some("fd00::1"));
        v6(libc::IFA_F_TENTATIVE | libc::IFA_F_PERMANENT, None);
        v6(libc::IFA_F_TENTATIVE | libc::IFA_F_OPTIMISTIC, Some("fd00::1"));
        v6(libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED, None);
        v6(libc::IFA_F_DADFAILED, None);
    }
}

//! Keys of the trie `SOURCE_RANGES`, from and to prefixes. The model decides which ranges apply.

use ipnet::IpNet;
use lb_common::{Addr, Range, RangeKey};

/// Bits of a key before the address.
const SERVICE_BITS: u32 = 32;
/// Bits before the IPv4 address in its mapped form.
const MAPPED_BITS: u32 = 96;

/// Returns the key of a prefix for the service port `service`.
#[must_use]
pub fn key(service: u32, net: &IpNet) -> RangeKey {
    let mapped = if matches!(net, IpNet::V4(_)) { MAPPED_BITS } else { 0 };
    let prefix_len = SERVICE_BITS + mapped + u32::from(net.prefix_len());
    RangeKey { prefix_len, range: Range { service, addr: Addr::from(net.network()) } }
}

/// Formats a key as a prefix; a key that is no valid prefix shows its raw bits.
#[must_use]
pub fn text(key: &RangeKey) -> String {
    let addr = key.range.addr;
    let before = if addr.is_v4() { SERVICE_BITS + MAPPED_BITS } else { SERVICE_BITS };
    let len = key.prefix_len.checked_sub(before).and_then(|len| u8::try_from(len).ok());
    let net = len.and_then(|len| IpNet::new(addr.to_ip(), len).ok());
    net.map_or_else(|| format!("{addr} to bit {}", key.prefix_len), |net| net.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_matches_the_addresses_of_its_prefix() {
        let check = |net: &str, inside: &[&str], outside: &[&str]| {
            let net: IpNet = net.parse().expect("a network");
            let key = key(7, &net);
            assert_eq!((text(&key), key.range.service), (net.to_string(), 7));
            let has = |addr: &&str| key.has(&addr.parse::<std::net::IpAddr>().expect("an address").into());
            assert!(inside.iter().all(has) && !outside.iter().any(has), "{net}");
        };
        check("192.0.2.0/24", &["192.0.2.0", "192.0.2.255"], &["192.0.3.0", "192.0.1.255", "::"]);
        check("192.0.2.1/32", &["192.0.2.1"], &["192.0.2.0"]);
        check("0.0.0.0/1", &["127.255.255.255"], &["128.0.0.0", "fd00::1"]);
        check("2001:db8::/33", &["2001:db8::1"], &["2001:db8:8000::", "192.0.2.1"]);
        check("2001:db8::1/128", &["2001:db8::1"], &["2001:db8::2"]);
    }

    #[test]
    fn an_invalid_key_is_shown_too() {
        let range = Range { service: 1, addr: std::net::Ipv4Addr::new(192, 0, 2, 1).into() };
        assert_eq!(text(&RangeKey { prefix_len: 33, range }), "192.0.2.1 to bit 33");
        assert_eq!(text(&RangeKey { prefix_len: u32::MAX, range }), format!("192.0.2.1 to bit {}", u32::MAX));
    }
}

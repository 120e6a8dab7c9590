//! Ranges of addresses as MetalLB and Cilium write them, in the form of an AddressPool: always by both ends, since
//! these controllers use the first and the last address of a prefix as well.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// Most entries of an AddressPool.
const MAX_ENTRIES: usize = 1024;

/// Returns the ends of a prefix, of a range or of an address; None if the text is none of them. Bits behind a prefix do
/// not count.
pub(super) fn ends(text: &str) -> Option<(IpAddr, IpAddr)> {
    if let Some((first, last)) = text.split_once('-') {
        return Some((first.trim().parse().ok()?, last.trim().parse().ok()?));
    }
    if let Ok(prefix) = text.trim().parse::<IpNet>() {
        return Some((prefix.network(), prefix.broadcast()));
    }
    let single = text.trim().parse().ok()?;
    Some((single, single))
}

/// Writes a range.
pub(super) fn range(first: IpAddr, last: IpAddr) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// Writes a range without its IPv4 addresses that end in .0 and .255; None if that takes more entries than a pool may
/// have.
pub(super) fn without_zero_and_255(first: IpAddr, last: IpAddr) -> Option<Vec<String>> {
    let (IpAddr::V4(first), IpAddr::V4(last)) = (first, last) else { return Some(vec![range(first, last)]) };
    let (first, last) = (first.to_bits(), last.to_bits());
    let blocks = first >> 8..=last >> 8;
    if blocks.clone().count() > MAX_ENTRIES {
        return None;
    }
    let part = |block: u32| {
        let (low, high) = (first.max(block << 8 | 1), last.min(block << 8 | 254));
        (low <= high).then(|| range(Ipv4Addr::from(low).into(), Ipv4Addr::from(high).into()))
    };
    Some(blocks.filter_map(part).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_written_by_its_ends() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(ends(text).map(|(first, last)| range(first, last)).as_deref(), expected, "{text}");
        };
        check("192.0.2.0/30", Some("192.0.2.0-192.0.2.3"));
        check("192.0.2.9/30", Some("192.0.2.8-192.0.2.11"));
        check("192.0.2.9/32", Some("192.0.2.9"));
        check("192.0.2.9 - 192.0.2.11", Some("192.0.2.9-192.0.2.11"));
        check("192.0.2.9", Some("192.0.2.9"));
        check("2001:db8::/124", Some("2001:db8::-2001:db8::f"));
        check("web", None);
        check("192.0.2.9-web", None);
    }

    #[test]
    fn addresses_that_end_in_0_and_255_are_left_out_in_each_block_of_256() {
        let check = |text: &str, expected: Option<&[&str]>| {
            let (first, last) = ends(text).expect("a range");
            let entries = without_zero_and_255(first, last);
            let entries: Option<Vec<&str>> = entries.as_ref().map(|all| all.iter().map(String::as_str).collect());
            assert_eq!(entries.as_deref(), expected, "{text}");
        };
        check("192.0.2.0/24", Some(&["192.0.2.1-192.0.2.254"]));
        check("192.0.2.0/23", Some(&["192.0.2.1-192.0.2.254", "192.0.3.1-192.0.3.254"]));
        check("192.0.2.254-192.0.3.1", Some(&["192.0.2.254", "192.0.3.1"]));
        check("192.0.2.255-192.0.3.0", Some(&[]));
        check("192.0.2.64/26", Some(&["192.0.2.64-192.0.2.127"]));
        check("2001:db8::/124", Some(&["2001:db8::-2001:db8::f"]));
        check("10.0.0.0/8", None);
        check("255.255.255.0/24", Some(&["255.255.255.1-255.255.255.254"]));
    }
}

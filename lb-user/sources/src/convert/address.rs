//! IP addresses and ranges as kube-proxy reads them (`ParseIPSloppy`, `ParseCIDRSloppy` of k8s.io/utils/net, which are
//! Go's parsers before 1.17): leading zeros are decimal, and `::ffff:a.b.c.d` is IPv4. Older API servers stored such
//! texts.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

/// Parses an address in any form that kube-proxy accepts.
pub(super) fn parse_ip(text: &str) -> Option<IpAddr> {
    // Few texts have leading zeros, so try the strict parser first.
    let addr = text.parse::<IpAddr>().or_else(|_| without_leading_zeros(text).parse()).ok()?;
    Some(addr.to_canonical())
}

/// Parses a range in any form that kube-proxy accepts. The bits behind the prefix are cleared, as by the API.
pub(super) fn parse_range(text: &str) -> Option<IpNet> {
    let (addr, prefix_len) = text.split_once('/')?;
    let is_mapped = addr.contains(':');
    let addr = parse_ip(addr)?;
    if prefix_len.is_empty() || !prefix_len.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let prefix_len: u8 = prefix_len.parse().ok()?;
    // The prefix of a mapped range counts the 96 bits before the IPv4 address. A shorter one is no IPv4 range.
    let prefix_len = if addr.is_ipv4() && is_mapped { prefix_len.checked_sub(96)? } else { prefix_len };
    Some(IpNet::new(addr, prefix_len).ok()?.trunc())
}

/// True if a text that was read as `range` is in the API's present form. ipnet's parser would accept leading zeros.
pub(super) fn is_standard_range(text: &str, range: &IpNet) -> bool {
    text.split_once('/').is_some_and(|(addr, prefix_len)| {
        let addr = addr.parse::<IpAddr>();
        addr.is_ok_and(|addr| addr.is_ipv4() == range.addr().is_ipv4()) && prefix_len == range.prefix_len().to_string()
    })
}

/// Strips the leading zeros of each number.
fn without_leading_zeros(text: &str) -> String {
    let mut stripped = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let significant = number.trim_start_matches('0');
        stripped.push_str(if significant.is_empty() && !number.is_empty() { "0" } else { significant });
        let separator = after.chars().next().map_or(0, char::len_utf8);
        stripped.push_str(&after[..separator]);
        rest = &after[separator..];
    }
    stripped
}

/// Parses the address in the field `place`. Adds a problem if it cannot be read, or is not in the API's present form.
pub(super) fn addr(problems: &mut Vec<String>, place: fmt::Arguments<'_>, text: &str) -> Option<IpAddr> {
    let addr = parse_ip(text);
    match addr {
        None => problems.push(format!("{place} {text:?}: not an IP address; fix or remove it")),
        Some(addr) if text.parse() != Ok(addr) => {
            problems.push(format!("{place} {text:?}: not in standard form, read as {addr}; write it as {addr}"));
        }
        Some(_) => {}
    }
    addr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_kube_proxy_does() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(parse_ip(text).map(|addr| addr.to_string()).as_deref(), expected, "{text:?}");
        };
        check("10.0.0.1", Some("10.0.0.1"));
        check("010.001.002.003", Some("10.1.2.3"));
        check("0000000010.08.09.0000", Some("10.8.9.0"));
        check("::ffff:10.0.0.1", Some("10.0.0.1"));
        check("::FFFF:010.0.0.01", Some("10.0.0.1"));
        check("::ffff:a00:1", Some("10.0.0.1"));
        check("fd00::1", Some("fd00::1"));
        check("fd00::00001", Some("fd00::1"));
        check("::", Some("::"));
        check("::10.0.0.1", Some("::a00:1"));
        for bad in [
            "",
            "10.0.0",
            "10.0.0.256",
            "10.0.0.0256",
            "10.0.0.1.",
            "10.0.0.1 ",
            " 10.0.0.1",
            "10.0.0.1/32",
            "0x0a.0.0.1",
            "0a.0.0.1",
            "-1.0.0.1",
            "fe80::1%eth0",
            "fd00::10000",
            "1::2::3",
            "localhost",
            "٠10.0.0.1",
            ":",
            ":::",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn ranges_are_read_as_kube_proxy_does() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(parse_range(text).map(|range| range.to_string()).as_deref(), expected, "{text:?}");
        };
        for standard in ["10.1.2.3/8", "::/0", "fd00::1/64"] {
            assert!(is_standard_range(standard, &parse_range(standard).unwrap()), "{standard}");
        }
        for other in ["010.1.2.3/8", "10.1.2.3/08", "::ffff:10.0.0.0/104"] {
            assert!(!is_standard_range(other, &parse_range(other).unwrap()), "{other}");
        }
        check("10.1.2.3/8", Some("10.0.0.0/8"));
        check("010.001.000.000/016", Some("10.1.0.0/16"));
        check("0.0.0.0/0", Some("0.0.0.0/0"));
        check("::ffff:10.0.0.0/104", Some("10.0.0.0/8"));
        check("::ffff:010.0.0.5/128", Some("10.0.0.5/32"));
        check("::ffff:0.0.0.0/96", Some("0.0.0.0/0"));
        check("fd00::1/0008", Some("fd00::/8"));
        check("::/0", Some("::/0"));
        for bad in [
            "",
            "10.0.0.1",
            "fd00::1",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            "10.0.0/8",
            "fd00::/129",
            "fd00::/256",
            "::ffff:10.0.0.0/8",
            "::ffff:10.0.0.0/95",
            "x/8",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn an_address_in_another_form_is_read_with_a_problem() {
        let check = |text: &str, expected: Option<&str>, expected_problems: &[&str]| {
            let mut problems = Vec::new();
            let addr = addr(&mut problems, format_args!("ip"), text).map(|addr| addr.to_string());
            assert_eq!((addr.as_deref(), problems.as_slice()), (expected, &*own(expected_problems)), "{text:?}");
        };
        check("10.0.0.1", Some("10.0.0.1"), &[]);
        check("fd00::1", Some("fd00::1"), &[]);
        check("fd00:0::1", Some("fd00::1"), &[]);
        let problem = "ip \"10.0.0.01\": not in standard form, read as 10.0.0.1; write it as 10.0.0.1";
        check("10.0.0.01", Some("10.0.0.1"), &[problem]);
        let problem = "ip \"::ffff:10.0.0.1\": not in standard form, read as 10.0.0.1; write it as 10.0.0.1";
        check("::ffff:10.0.0.1", Some("10.0.0.1"), &[problem]);
        check("10.0.0", None, &["ip \"10.0.0\": not an IP address; fix or remove it"]);
    }

    fn own(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }
}

//! Checks that names can be served: that they fit into the maps, and into a line of output without ambiguity. The API
//! refuses all others; files are not validated.

use lb_common::NAME_LEN;

use crate::{
    objects::{Service, ServicePort},
    warning::NameFlaw,
};

/// Returns the flaw of the name of a Service, a namespace or a port, if it has one.
pub(super) fn flaw(name: &str) -> Option<NameFlaw> {
    if name.len() >= NAME_LEN { Some(NameFlaw::TooLong) } else { unreadable(name) }
}

fn unreadable(name: &str) -> Option<NameFlaw> {
    let is_plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
    (!name.bytes().all(is_plain)).then_some(NameFlaw::BadCharacter)
}

/// Returns the flaw of the name of a port, if it has one. The agent itself names port ranges.
pub(super) fn flaw_of(port: &ServicePort) -> Option<NameFlaw> {
    if port.ranges.is_some() { None } else { flaw(&port.name) }
}

/// Returns the first of a Service's own names that cannot be served, with its flaw.
pub(super) fn service_flaw(service: &Service) -> Option<(&str, NameFlaw)> {
    let flawed = |name| Some((name, flaw(name)?));
    let of_name = || match &service.pod {
        // A long name is shortened for the maps.
        Some(pod) => unreadable(pod.key.name()).map(|flaw| (pod.key.name(), flaw)),
        None => flawed(service.key.name()),
    };
    flawed(service.key.namespace()).or_else(of_name)
}

/// True if an earlier port has the name and protocol of the port with this index. The earlier port is served.
pub(super) fn is_repeated(ports: &[ServicePort], index: usize) -> bool {
    let same = |other: &ServicePort| ports.get(index).is_some_and(|p| p.name == other.name && p.proto == other.proto);
    ports.iter().take(index).any(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_api_allows_can_be_served_and_no_others() {
        for good in ["", "a", "a-1", "a.b", "A_b", &"n".repeat(63)] {
            assert_eq!(flaw(good), None, "{good}");
        }
        for bad in ["a/b", "a:b", "a b", "a\n", "\0", "a\0b", "\u{e9}", "\u{1b}[0m"] {
            assert_eq!(flaw(bad), Some(NameFlaw::BadCharacter), "{bad:?}");
        }
        for long in [64, 253] {
            assert_eq!(flaw(&"n".repeat(long)), Some(NameFlaw::TooLong), "{long}");
        }
        // 32 letters, 64 octets.
        assert_eq!(flaw(&"\u{e9}".repeat(32)), Some(NameFlaw::TooLong));
    }
}

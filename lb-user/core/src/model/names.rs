//! Which names can be served: those that the maps hold as they are, and that a line of output holds without doubt. The API
//! refuses all others; files were checked by nobody.

use lb_common::NAME_LEN;

use crate::objects::{Service, ServicePort};

/// What is wrong with the name of a Service, a namespace or a port, with its cure.
#[must_use]
pub fn flaw(name: &str) -> Option<&'static str> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
    if name.len() >= NAME_LEN {
        Some("has more than 63 octets; choose a shorter one")
    } else if !name.bytes().all(plain) {
        Some("has more than letters, digits and -; choose another one")
    } else {
        None
    }
}

/// What of a Service's own names cannot be served, and why.
#[must_use]
pub fn flaw_of(service: &Service) -> Option<(&str, &'static str)> {
    let names = [service.key.namespace(), service.key.name()];
    names.into_iter().find_map(|name| Some((name, flaw(name)?)))
}

/// Whether an earlier port has the name and protocol of that with this index, and so is the one that is served.
#[must_use]
pub fn is_repeated(ports: &[ServicePort], index: usize) -> bool {
    let same = |other: &ServicePort| ports.get(index).is_some_and(|p| p.name == other.name && p.proto == other.proto);
    ports.iter().take(index).any(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_in_the_api_or_served_under_no_other() {
        for good in ["", "a", "a-1", "a.b", "A_b", &"n".repeat(63)] {
            assert_eq!(flaw(good), None, "{good}");
        }
        for bad in ["a/b", "a:b", "a b", "a\n", "\0", "a\0b", "\u{e9}", "\u{1b}[0m"] {
            assert_eq!(flaw(bad), Some("has more than letters, digits and -; choose another one"), "{bad:?}");
        }
        for long in [64, 253] {
            assert_eq!(flaw(&"n".repeat(long)), Some("has more than 63 octets; choose a shorter one"), "{long}");
        }
        // 32 letters, 64 octets.
        assert_eq!(flaw(&"\u{e9}".repeat(32)), Some("has more than 63 octets; choose a shorter one"));
    }
}

//! The two address families.

use crate::Addr;

/// An address family. A dual-stack service port has a backend list of its own for each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// 4 or 6, as in the maps.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }

    /// The family of an address; a mapped one is IPv4.
    #[inline(always)]
    #[must_use]
    pub const fn of(addr: &Addr) -> Self {
        if addr.is_v4() { Self::V4 } else { Self::V6 }
    }

    /// The name in the Kubernetes API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The family of a number in the maps.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            4 => Some(Self::V4),
            6 => Some(Self::V6),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn a_family_is_found_by_its_number() {
        for family in Family::ALL {
            assert_eq!(Family::from_number(family.number()), Some(family));
        }
        assert_eq!(Family::from_number(5), None);
    }

    #[test]
    fn a_mapped_address_is_ipv4() {
        let mapped = Ipv4Addr::new(10, 96, 0, 1).to_ipv6_mapped();
        let cases = [(Addr::from(mapped), Family::V4, "IPv4"), (Ipv6Addr::LOCALHOST.into(), Family::V6, "IPv6")];
        for (addr, family, name) in cases {
            assert_eq!((Family::of(&addr), family.name()), (family, name));
        }
    }
}

//! The address type of the kernel side and the user side, and the transport protocols.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address as in the maps: 16 octets in network order, IPv4 mapped into IPv6 (`::ffff:a.b.c.d`, RFC 4291,
/// 2.5.5.2).
///
/// One form for both families gives one set of maps and one code path for IPv4, IPv6 and mapped sockets.
#[repr(C, align(4))]
#[derive(Clone, Copy, Eq, PartialOrd, Ord, Default)]
pub struct Addr {
    /// Network order.
    pub octets: [u8; 16],
}

/// The third 32-bit word of a mapped address, in memory order.
const MAPPED_WORD: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Addr {
    /// An address of four words in memory order: an IPv6 address of the kernel's socket hooks.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: [u32; 4]) -> Self {
        #[expect(unsafe_code, reason = "built from octets, an address would be written octet by octet by the programs")]
        // SAFETY: the sizes are equal, and every value of an octet is valid.
        let octets = unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) };
        Self { octets }
    }

    /// An address of one word in memory order: an IPv4 address of the kernel's socket hooks.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4_word(word: u32) -> Self {
        Self::from_words([0, 0, MAPPED_WORD, word])
    }

    /// The four words in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> [u32; 4] {
        #[expect(unsafe_code, reason = "as above")]
        // SAFETY: as above.
        let words = unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(self.octets) };
        words
    }

    /// True for a mapped IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.words();
        a == 0 && b == 0 && c == MAPPED_WORD
    }

    /// True for the unspecified address of either family.
    #[inline(always)]
    #[must_use]
    pub const fn is_unspecified(&self) -> bool {
        let [a, b, c, d] = self.words();
        a == 0 && b == 0 && (c == 0 || c == MAPPED_WORD) && d == 0
    }

    /// The unspecified address of the same family.
    #[inline(always)]
    #[must_use]
    pub const fn unspecified(&self) -> Self {
        if self.is_v4() { Self::from_v4_word(0) } else { Self::from_words([0; 4]) }
    }

    /// The loopback address of the same family.
    #[inline(always)]
    #[must_use]
    pub const fn loopback(&self) -> Self {
        if self.is_v4() {
            Self::from_v4_word(u32::from_ne_bytes([127, 0, 0, 1]))
        } else {
            Self::from_words([0, 0, 0, u32::from_ne_bytes([0, 0, 0, 1])])
        }
    }

    /// True for a loopback address of either family.
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.words();
        if self.is_v4() {
            d.to_ne_bytes()[0] == 127
        } else {
            a == 0 && b == 0 && c == 0 && d == u32::from_ne_bytes([0, 0, 0, 1])
        }
    }

    /// The address for output: IPv4 without its mapping.
    #[must_use]
    pub fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self.octets).to_canonical()
    }
}

// Compared by words: the bpf target turns the derived comparison of a byte array into a call of memcmp.
impl PartialEq for Addr {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.words(), other.words());
        ((a ^ e) | (b ^ f) | (c ^ g) | (d ^ h)) == 0
    }
}

impl core::hash::Hash for Addr {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.octets.hash(state);
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self { octets: ip.to_ipv6_mapped().octets() }
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        Self { octets: ip.octets() }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => ip.into(),
        }
    }
}

impl core::fmt::Display for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.to_ip().fmt(f)
    }
}

impl core::fmt::Debug for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

/// A transport protocol of Service ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Proto {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// SCTP. No socket hook sees it: the packet path serves it.
    Sctp = 132,
}

impl Proto {
    /// All protocols, ordered by number.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The protocol of an IP protocol number (IANA).
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The name in the Kubernetes API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn an_address_of_either_family_is_written_as_it_was_parsed() {
        for text in ["10.96.0.1", "0.0.0.0", "fd00::1", "::", "::1"] {
            let ip: IpAddr = text.parse().expect("an address");
            assert_eq!(Addr::from(ip).to_string(), text);
            assert_eq!(Addr::from(ip).is_v4(), ip.is_ipv4());
        }
    }

    #[test]
    fn the_unspecified_and_loopback_addresses_keep_the_family() {
        for (text, any, loopback) in [
            ("10.96.0.1", "0.0.0.0", "127.0.0.1"),
            ("fd00::1", "::", "::1"),
            ("::", "::", "::1"),
            ("0.0.0.0", "0.0.0.0", "127.0.0.1"),
        ] {
            let addr = Addr::from(text.parse::<IpAddr>().expect("an address"));
            assert_eq!((addr.unspecified().to_string(), addr.loopback().to_string()), (any.into(), loopback.into()));
            assert!(addr.unspecified().is_unspecified() && !addr.loopback().is_unspecified());
            assert_eq!(addr.is_unspecified(), text == any);
            assert!(!addr.is_loopback() && addr.loopback().is_loopback());
        }
    }

    #[test]
    fn words_are_the_octets_in_memory_order() {
        let addr = Addr::from(Ipv4Addr::new(10, 96, 0, 1));
        assert_eq!(addr, Addr::from_v4_word(u32::from_ne_bytes([10, 96, 0, 1])));
        assert_eq!(addr, Addr::from_words(addr.words()));
        let other = Addr::from("fd00::12:3".parse::<Ipv6Addr>().expect("an address"));
        assert_eq!(other, Addr::from_words(other.words()));
        assert_ne!(addr, other);
    }
}

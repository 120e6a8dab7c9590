//! A set of addresses that may err on the side of "present": it says when a search through all objects is in vain.

use lb_common::Addr;

/// 64-bit words of a filter: 65,536 bits, 8 KiB.
const WORDS: usize = 1024;

/// A Bloom filter of one hash. Entries are never removed, since a stale bit costs only a search. Takes no memory while
/// it is empty.
#[derive(Default)]
pub(crate) struct BloomFilter(Option<Box<[u64; WORDS]>>);

impl BloomFilter {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn insert(&mut self, hash: u16) {
        let (word, bit) = position(hash);
        self.0.get_or_insert_with(|| Box::new([0; WORDS]))[word] |= bit;
    }

    pub(crate) fn may_contain(&self, hash: u16) -> bool {
        let (word, bit) = position(hash);
        self.0.as_ref().is_some_and(|words| words[word] & bit != 0)
    }
}

fn position(hash: u16) -> (usize, u64) {
    (usize::from(hash >> 6), 1 << (hash & 63))
}

/// Hash of an address. Consecutive addresses have different hashes.
pub(crate) fn addr_hash(addr: &Addr) -> u16 {
    fold(addr.octets.as_chunks::<2>().0)
}

/// Hash of the network of an address: /16 of IPv4, /64 of IPv6.
pub(crate) fn network_hash(addr: &Addr) -> u16 {
    let words = addr.octets.as_chunks::<2>().0;
    if addr.is_v4() { u16::from_be_bytes(words[6]) } else { fold(&words[..4]) }
}

fn fold(words: &[[u8; 2]]) -> u16 {
    words.iter().fold(0, |hash: u16, word| hash.rotate_left(5) ^ u16::from_be_bytes(*word))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_filter_contains_every_address_inserted_and_few_others() {
        let hash = |last: u8| addr_hash(&Ipv4Addr::new(10, 0, 0, last).into());
        let mut filter = BloomFilter::default();
        assert!(filter.is_empty() && !filter.may_contain(hash(1)));
        (0..200).for_each(|last| filter.insert(hash(last)));
        assert!((0..200).all(|last| filter.may_contain(hash(last))));
        assert!((200..=255).all(|last| !filter.may_contain(hash(last))));
    }

    #[test]
    fn addresses_of_one_network_share_its_hash() {
        let hash = |text: &str| network_hash(&text.parse::<std::net::IpAddr>().expect("an address").into());
        assert_eq!(hash("10.1.2.3"), hash("10.1.9.9"));
        assert_ne!(hash("10.1.2.3"), hash("10.2.2.3"));
        assert_eq!(hash("fd00::1"), hash("fd00::ffff:1"));
        assert_ne!(hash("fd00::1"), hash("fd00:0:0:1::1"));
    }
}

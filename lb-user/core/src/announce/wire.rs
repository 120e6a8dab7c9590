//! The bytes of a datagram. Integers are big-endian; an address has 16 bytes, IPv4 mapped, and that of a network its
//! length behind it; a name has a length of one byte. The key's signature follows these bytes, and is not part of them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv6Net};

use super::{Body, Datagram, MAX_ADDRESSES, MAX_MEMBERS, MAX_NAME, MAX_NETWORKS, Membership, Node, PeerState, Time};

/// The first bytes: the protocol and its version. Another version would be another protocol.
const MAGIC: &[u8; 4] = b"BLA2";
/// Most bytes of a datagram: a membership of two sets with the longest names.
pub const MAX_BYTES: usize = MAX_HEAD + 8 + 2 * (2 + MAX_MEMBERS * (1 + MAX_NAME)) + 1;
const MAX_HEAD: usize = 4 + 2 + 2 * (1 + MAX_NAME) + 5 * 8 + 1 + MAX_NETWORKS * 17;
/// Bits of the prefix in front of an IPv4 address.
const MAPPED: u8 = 96;

const SETTLED: u8 = 1;
const SILENT: u8 = 2;
const LAST: u8 = 4;
const WILLING: u8 = 8;
const HELD_DOWN: u8 = 16;

const HELLO: u8 = 0;
const ASK: u8 = 1;
const ANSWER: u8 = 2;
const VOID: u8 = 3;
const MEMBERSHIP: u8 = 4;

/// Writes a datagram. Names and lists over the limits are cut, which the receiver refuses.
#[must_use]
pub fn encode(datagram: &Datagram) -> Vec<u8> {
    let Datagram { from, to, session, sequence, echo, cookie, state, body } = datagram;
    let kind = match body {
        Body::Hello => HELLO,
        Body::Ask { .. } => ASK,
        Body::Answer { .. } => ANSWER,
        Body::Void(_) => VOID,
        Body::Membership(_) => MEMBERSHIP,
    };
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    let flags = flag(state.is_settled, SETTLED)
        | flag(state.is_silent, SILENT)
        | flag(state.is_last, LAST)
        | flag(state.is_willing, WILLING)
        | flag(state.is_held_down, HELD_DOWN);
    let mut bytes = Vec::with_capacity(256);
    bytes.extend(MAGIC);
    bytes.extend([kind, flags]);
    put_name(&mut bytes, from);
    put_name(&mut bytes, to);
    for number in [*session, *sequence, *echo, *cookie, state.version] {
        bytes.extend(number.to_be_bytes());
    }
    put_networks(&mut bytes, &state.networks);
    match body {
        Body::Hello => {}
        Body::Ask { sent, addresses } => {
            put_time(&mut bytes, *sent);
            put_addresses(&mut bytes, addresses);
        }
        Body::Answer { sent, granted, refused } => {
            put_time(&mut bytes, *sent);
            put_addresses(&mut bytes, granted);
            put_addresses(&mut bytes, refused);
        }
        Body::Void(addresses) => put_addresses(&mut bytes, addresses),
        Body::Membership(membership) => {
            bytes.extend(membership.version.to_be_bytes());
            put_names(&mut bytes, &membership.members);
            bytes.push(u8::from(membership.next.is_some()));
            if let Some(next) = &membership.next {
                put_names(&mut bytes, next);
            }
        }
    }
    bytes
}

fn put_name(bytes: &mut Vec<u8>, name: &str) {
    let name = &name.as_bytes()[..name.len().min(u8::MAX.into())];
    bytes.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    bytes.extend(name);
}

fn put_names(bytes: &mut Vec<u8>, names: &BTreeSet<Node>) {
    bytes.push(u8::try_from(names.len()).unwrap_or(u8::MAX));
    names.iter().for_each(|name| put_name(bytes, name));
}

fn put_time(bytes: &mut Vec<u8>, time: Time) {
    bytes.extend(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).to_be_bytes());
}

fn put_addresses(bytes: &mut Vec<u8>, addresses: &[IpAddr]) {
    bytes.push(u8::try_from(addresses.len()).unwrap_or(u8::MAX));
    for addr in addresses {
        bytes.extend(mapped(addr));
    }
}

fn put_networks(bytes: &mut Vec<u8>, networks: &BTreeSet<IpNet>) {
    bytes.push(u8::try_from(networks.len()).unwrap_or(u8::MAX));
    for network in networks {
        bytes.extend(mapped(&network.addr()));
        bytes.push(network.prefix_len() + if network.addr().is_ipv4() { MAPPED } else { 0 });
    }
}

fn mapped(addr: &IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped().octets(),
        IpAddr::V6(addr) => addr.octets(),
    }
}

/// Reads a datagram; none if the bytes are no datagram of this version, or one over the limits.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Datagram> {
    let mut reader = Reader(bytes);
    let magic: [u8; 4] = reader.array()?;
    let [kind, flags] = reader.array()?;
    if magic != *MAGIC || flags & !(SETTLED | SILENT | LAST | WILLING | HELD_DOWN) != 0 {
        return None;
    }
    let (from, to) = (reader.name()?, reader.name()?);
    let [session, sequence, echo, cookie, version] = [(); 5].map(|()| reader.number());
    let networks = reader.networks()?;
    let state = PeerState {
        version: version?,
        is_settled: flags & SETTLED != 0,
        is_silent: flags & SILENT != 0,
        is_last: flags & LAST != 0,
        is_willing: flags & WILLING != 0,
        is_held_down: flags & HELD_DOWN != 0,
        networks: networks.into(),
    };
    let body = match kind {
        HELLO => Body::Hello,
        ASK => Body::Ask { sent: reader.time()?, addresses: reader.addresses()? },
        ANSWER => Body::Answer { sent: reader.time()?, granted: reader.addresses()?, refused: reader.addresses()? },
        VOID => Body::Void(reader.addresses()?),
        MEMBERSHIP => {
            let (version, members) = (reader.number()?, reader.names()?);
            let next = match reader.array()? {
                [0] => None,
                [1] => Some(reader.names()?),
                _ => return None,
            };
            Body::Membership(Membership { version, members, next })
        }
        _ => return None,
    };
    let (session, sequence, echo, cookie) = (session?, sequence?, echo?, cookie?);
    reader.0.is_empty().then_some(Datagram { from, to, session, sequence, echo, cookie, state, body })
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn time(&mut self) -> Option<Time> {
        self.number().map(Time::from_nanos)
    }

    fn name(&mut self) -> Option<Node> {
        let [length] = self.array()?;
        let (name, rest) = self.0.split_at_checked(length.into())?;
        self.0 = rest;
        let name = str::from_utf8(name).ok().filter(|name| !name.is_empty() && name.len() <= MAX_NAME)?;
        Some(name.into())
    }

    fn names(&mut self) -> Option<BTreeSet<Node>> {
        let [count] = self.array()?;
        let count = usize::from(count);
        let names: BTreeSet<Node> = (0..count).map_while(|_| self.name()).collect();
        (count <= MAX_MEMBERS && names.len() == count).then_some(names)
    }

    fn addresses(&mut self) -> Option<Vec<IpAddr>> {
        let [count] = self.array()?;
        let count = usize::from(count);
        let addr = |octets: [u8; 16]| Ipv6Addr::from(octets).to_canonical();
        let addresses: Vec<IpAddr> = (0..count).map_while(|_| self.array().map(addr)).collect();
        (count <= MAX_ADDRESSES && addresses.len() == count).then_some(addresses)
    }

    fn networks(&mut self) -> Option<BTreeSet<IpNet>> {
        let [count] = self.array()?;
        let count = usize::from(count);
        let networks: BTreeSet<IpNet> = (0..count).map_while(|_| self.network()).collect();
        (count <= MAX_NETWORKS && networks.len() == count).then_some(networks)
    }

    fn network(&mut self) -> Option<IpNet> {
        let (addr, [length]) = (Ipv6Addr::from(self.array::<16>()?), self.array()?);
        let network = match addr.to_ipv4_mapped() {
            Some(addr) => IpNet::new(addr.into(), length.checked_sub(MAPPED)?).ok()?,
            None => Ipv6Net::new(addr, length).ok()?.into(),
        };
        (network.trunc() == network).then_some(network)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, option, prelude::*};

    use super::*;

    fn names() -> impl Strategy<Value = BTreeSet<Node>> {
        collection::btree_set("[a-z0-9.-]{1,253}".prop_map(Node::from), 0..=MAX_MEMBERS)
    }

    fn addresses() -> impl Strategy<Value = Vec<IpAddr>> {
        let addr = any::<IpAddr>().prop_map(|addr| addr.to_canonical());
        collection::vec(addr, 0..=MAX_ADDRESSES)
    }

    fn networks() -> impl Strategy<Value = BTreeSet<IpNet>> {
        let network = (any::<IpAddr>(), 0..=128_u8).prop_map(|(addr, length)| {
            let addr = addr.to_canonical();
            IpNet::new(addr, length.min(if addr.is_ipv4() { 32 } else { 128 })).expect("a network").trunc()
        });
        // A network of IPv6 around the mapped addresses is none that a link has.
        let is_real = |network: &IpNet| match network {
            IpNet::V4(_) => true,
            IpNet::V6(network) => network.addr().to_ipv4_mapped().is_none(),
        };
        collection::btree_set(network.prop_filter("mapped", is_real), 0..=MAX_NETWORKS)
    }

    fn body() -> impl Strategy<Value = Body> {
        let time = || any::<u64>().prop_map(Time::from_nanos);
        prop_oneof![
            Just(Body::Hello),
            (time(), addresses()).prop_map(|(sent, addresses)| Body::Ask { sent, addresses }),
            (time(), addresses(), addresses()).prop_map(|(sent, granted, refused)| Body::Answer {
                sent,
                granted,
                refused
            }),
            addresses().prop_map(Body::Void),
            (any::<u64>(), names(), option::of(names()))
                .prop_map(|(version, members, next)| Body::Membership(Membership { version, members, next })),
        ]
    }

    fn datagram() -> impl Strategy<Value = Datagram> {
        let name = || "[a-z0-9.-]{1,253}".prop_map(Node::from);
        let state = (any::<u64>(), any::<[bool; 5]>(), networks()).prop_map(|(version, flags, networks)| {
            let [is_settled, is_silent, is_last, is_willing, is_held_down] = flags;
            let networks = networks.into();
            PeerState { version, is_settled, is_silent, is_last, is_willing, is_held_down, networks }
        });
        (name(), name(), any::<[u64; 4]>(), state, body()).prop_map(|(from, to, numbers, state, body)| {
            let [session, sequence, echo, cookie] = numbers;
            Datagram { from, to, session, sequence, echo, cookie, state, body }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn a_datagram_is_read_as_it_was_written(datagram in datagram()) {
            let bytes = encode(&datagram);
            prop_assert!(bytes.len() <= MAX_BYTES);
            prop_assert_eq!(decode(&bytes), Some(datagram));
        }

        #[test]
        fn a_part_of_a_datagram_or_more_than_one_is_none(datagram in datagram(), cut in any::<prop::sample::Index>()) {
            let mut bytes = encode(&datagram);
            prop_assert_eq!(decode(&bytes[..cut.index(bytes.len())]), None);
            bytes.push(0);
            prop_assert_eq!(decode(&bytes), None);
        }

        #[test]
        fn other_bytes_are_refused_or_mean_what_they_say(
            mut bytes in collection::vec(any::<u8>(), 0..400),
            datagram in datagram(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let _refused = decode(&bytes);
            bytes = encode(&datagram);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Some(decoded) = decode(&bytes) {
                prop_assert_eq!(decode(&encode(&decoded)), Some(decoded));
            }
        }
    }
}

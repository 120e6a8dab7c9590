//! Port ranges of a Service (`beeline.io/ports`): their grammar, and their blocks in the map `PORT_RANGES`.

use std::fmt;

use lb_common::{Addr, AddrPort, BackendFlags, FrontendKey, Proto};

/// Most items of the annotation. A range has at most 30 blocks at each address.
pub(crate) const MAX_ITEMS: usize = 64;

/// A range of ports; both ends are part of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortSpan {
    /// First port, at least 1.
    pub first: u16,
    /// Last port, at least the first.
    pub last: u16,
}

impl PortSpan {
    /// All ports.
    pub const ALL: Self = Self { first: 1, last: u16::MAX };

    /// True if the port is in the range.
    #[must_use]
    pub const fn contains(&self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl fmt::Display for PortSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ALL => f.write_str("all"),
            Self { first, last } if first == last => write!(f, "{first}"),
            Self { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

/// The port ranges of a Service that have one protocol and one offset: together a service port.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PortRanges {
    /// Protocol.
    pub proto: Proto,
    /// Added to the port dialled; 0 keeps it.
    pub offset: i32,
    /// The ranges, sorted, without common or adjacent ports.
    pub spans: Vec<PortSpan>,
}

impl PortRanges {
    /// Returns the name of the service port. No port of a Service can have it.
    #[must_use]
    pub fn name(&self) -> String {
        match self.offset {
            0 => "[ports]".to_owned(),
            offset => format!("[ports{offset:+}]"),
        }
    }

    /// Returns the offset modulo 65,536, as the maps have it.
    #[must_use]
    pub(crate) fn wrapped_offset(&self) -> u16 {
        u16::try_from(self.offset.rem_euclid(0x1_0000)).unwrap_or_default()
    }
}

/// Parses the annotation. Of two items with one port the first counts.
///
/// # Errors
/// The part that cannot be read, with the reason and the cure.
pub fn parse(text: &str) -> Result<Vec<PortRanges>, String> {
    let items: Vec<&str> = text.split(',').map(str::trim).collect();
    if items.len() > MAX_ITEMS {
        return Err(format!("{} items; write at most {MAX_ITEMS}", items.len()));
    }
    let mut groups: Vec<PortRanges> = Vec::new();
    for text in items {
        let item = Item::parse(text).map_err(|flaw| format!("{text:?}: {flaw}"))?;
        let mut is_new = false;
        for proto in item.protos() {
            let taken = groups.iter().filter(|group| group.proto == *proto).flat_map(|group| &group.spans);
            let spans = subtract(&[item.span], taken.copied());
            is_new |= !spans.is_empty();
            match groups.iter_mut().find(|group| (group.proto, group.offset) == (*proto, item.offset)) {
                Some(group) => group.spans = union(group.spans.iter().copied().chain(spans)),
                None if spans.is_empty() => {}
                None => groups.push(PortRanges { proto: *proto, offset: item.offset, spans: union(spans) }),
            }
        }
        if !is_new {
            return Err(format!("{text:?}: earlier items have all its ports; remove it, or write it before them"));
        }
    }
    Ok(groups)
}

/// An item of the annotation.
struct Item {
    span: PortSpan,
    /// None: every protocol that a Service can have.
    proto: Option<Proto>,
    offset: i32,
}

impl Item {
    /// Parses PORTS, PORTS/PROTOCOL, and either with an offset.
    fn parse(text: &str) -> Result<Self, &'static str> {
        const GRAMMAR: &str = "write all, a port as in 5060, or a range as in 5060-5160; then, if wanted, /tcp, /udp \
                               or /sctp; then, if wanted, an offset as in +1000 or -1000";
        let (ports, rest) = match text.strip_prefix("all") {
            Some(rest) => (PortSpan::ALL, rest),
            None => {
                let (first, rest) = number(text).ok_or(GRAMMAR)?;
                // An offset needs a sign too: a number after the first one is the end of the range.
                match rest.strip_prefix('-').and_then(number) {
                    Some((last, rest)) => (PortSpan { first, last }, rest),
                    None => (PortSpan { first, last: first }, rest),
                }
            }
        };
        if ports.first == 0 || ports.first > ports.last {
            return Err("no port is in it; write the ends in order, from 1 to 65535");
        }
        let (proto, rest) = match rest.strip_prefix('/') {
            None => (None, rest),
            Some(rest) => {
                let (name, rest) = rest.split_at(rest.find(['+', '-']).unwrap_or(rest.len()));
                let proto = Proto::ALL.into_iter().find(|proto| proto.name().eq_ignore_ascii_case(name));
                (Some(proto.ok_or("unknown protocol; write tcp, udp or sctp")?), rest)
            }
        };
        let offset: i32 = if rest.is_empty() {
            0
        } else if let Some((number, "")) = rest.strip_prefix('+').and_then(number) {
            number.into()
        } else if let Some((number, "")) = rest.strip_prefix('-').and_then(number) {
            -i32::from(number)
        } else {
            return Err(GRAMMAR);
        };
        if i32::from(ports.first) + offset < 1 || i32::from(ports.last) + offset > i32::from(u16::MAX) {
            return Err("the offset leads beyond the ports from 1 to 65535; write a smaller one");
        }
        Ok(Self { span: ports, proto, offset })
    }

    fn protos(&self) -> &[Proto] {
        self.proto.as_ref().map_or(&Proto::ALL, std::slice::from_ref)
    }
}

/// Splits a decimal port off the front of a text.
fn number(text: &str) -> Option<(u16, &str)> {
    let (digits, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    Some((digits.parse().ok()?, rest))
}

/// Returns the ports of `spans` that are in none of `taken`, as ranges, sorted if `spans` are.
#[must_use]
pub fn subtract(spans: &[PortSpan], taken: impl IntoIterator<Item = PortSpan>) -> Vec<PortSpan> {
    let mut left = spans.to_vec();
    for taken in taken {
        left = left
            .into_iter()
            .flat_map(|span| {
                let before = (span.first < taken.first)
                    .then(|| PortSpan { first: span.first, last: span.last.min(taken.first - 1) });
                let after = (span.last > taken.last)
                    .then(|| PortSpan { first: span.first.max(taken.last + 1), last: span.last });
                [before, after].into_iter().flatten()
            })
            .collect();
    }
    left
}

/// Returns the ports of ranges, sorted, without common or adjacent ports.
#[must_use]
pub fn union(spans: impl IntoIterator<Item = PortSpan>) -> Vec<PortSpan> {
    let mut spans: Vec<PortSpan> = spans.into_iter().collect();
    spans.sort_unstable();
    let mut joined: Vec<PortSpan> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(last) if span.first <= last.last.saturating_add(1) => last.last = last.last.max(span.last),
            _ => joined.push(span),
        }
    }
    joined
}

/// Splits a range at an address into the fewest blocks, in ascending order: at most 30.
pub fn blocks(addr: Addr, proto: Proto, span: PortSpan) -> impl Iterator<Item = FrontendKey> {
    let end = u32::from(span.last) + 1;
    let mut next = u32::from(span.first);
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        // The largest block that begins here, and that ends in the range.
        let free = next.trailing_zeros().min((end - next).ilog2());
        let port = u16::try_from(next).ok()?;
        next += 1 << free;
        let block = u8::try_from(free).ok()? + 1;
        Some(FrontendKey { block, ..FrontendKey::new(addr, port, proto) })
    })
}

/// Joins blocks into ranges, for people: address, protocol number, range, and the value of its blocks. Sorted.
#[must_use]
pub fn joined<V: PartialEq + Copy>(blocks: impl IntoIterator<Item = (FrontendKey, V)>) -> Vec<(Addr, u8, PortSpan, V)> {
    let mut blocks: Vec<(FrontendKey, V)> = blocks.into_iter().collect();
    blocks.sort_by_key(|(key, _)| (key.addr, key.proto, key.port));
    let mut ranges: Vec<(Addr, u8, PortSpan, V)> = Vec::new();
    for (key, value) in blocks {
        let (first, last) = key.ports();
        match ranges.last_mut() {
            Some((addr, proto, span, of))
                if (*addr, *proto, u32::from(span.last) + 1) == (key.addr, key.proto, first.into()) && *of == value =>
            {
                span.last = last;
            }
            _ => ranges.push((key.addr, key.proto, PortSpan { first, last }, value)),
        }
    }
    ranges
}

/// Returns the text of a range of ports at an address, as that of a frontend.
#[must_use]
pub fn frontend_text(addr: Addr, proto: u8, span: PortSpan) -> String {
    let proto = Proto::from_number(proto.into()).map_or("?", Proto::name);
    if addr.is_v4() { format!("{addr}:{span}/{proto}") } else { format!("[{addr}]:{span}/{proto}") }
}

/// Returns the text of a backend with these [`BackendFlags`]; the port of a service port of port ranges is `*`, the
/// port dialled, and the offset.
#[must_use]
pub(crate) fn target_text(target: &AddrPort, flags: u16) -> String {
    if flags & BackendFlags::OFFSET == 0 {
        return target.to_string();
    }
    let port = offset_text(target.port);
    if target.addr.is_v4() { format!("{}:{port}", target.addr) } else { format!("[{}]:{port}", target.addr) }
}

/// Returns the text of an offset modulo 65,536: the number nearest to 0.
#[must_use]
pub fn offset_text(offset: u16) -> String {
    match offset.cast_signed() {
        0 => "*".to_owned(),
        offset => format!("*{offset:+}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::PortBlockKey;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn text(groups: &[PortRanges]) -> String {
        let group = |group: &PortRanges| {
            let spans: Vec<String> = group.spans.iter().map(ToString::to_string).collect();
            format!("{}{} {}", group.name(), group.proto.name(), spans.join(" "))
        };
        groups.iter().map(group).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn an_annotation_names_ranges_by_protocol_and_offset() {
        let check = |annotation: &str, expected: &str| {
            let parsed = parse(annotation).map(|groups| text(&groups));
            assert_eq!(parsed.as_deref(), Ok(expected), "{annotation}");
        };
        check("5060-5160/udp", "[ports]UDP 5060-5160");
        check(" 5060-5160/udp, 30000/tcp ", "[ports]UDP 5060-5160, [ports]TCP 30000");
        check("5060-5160/UDP+1000", "[ports+1000]UDP 5060-5160");
        check("15060-15160/sctp-10000", "[ports-10000]SCTP 15060-15160");
        check("1/tcp+65534, 65535/tcp-65534", "[ports+65534]TCP 1, [ports-65534]TCP 65535");
        check("7", "[ports]TCP 7, [ports]UDP 7, [ports]SCTP 7");
        check("7+1", "[ports+1]TCP 7, [ports+1]UDP 7, [ports+1]SCTP 7");
        check("3-5-2", "[ports-2]TCP 3-5, [ports-2]UDP 3-5, [ports-2]SCTP 3-5");
        let offset = |annotation: &str| parse(annotation).map(|groups| groups[0].wrapped_offset());
        assert_eq!((offset("5/tcp-4"), offset("5/tcp+4")), (Ok(u16::MAX - 3), Ok(4)));
    }

    #[test]
    fn of_two_items_with_a_port_the_first_counts() {
        let check = |annotation: &str, expected: &str| {
            let parsed = parse(annotation).map(|groups| text(&groups));
            assert_eq!(parsed.as_deref(), Ok(expected), "{annotation}");
        };
        check("5060-5160/udp, 5100-5200/udp", "[ports]UDP 5060-5200");
        check("10-20/udp, 21-30/udp", "[ports]UDP 10-30");
        check("5060-5160/udp+1000, all/udp", "[ports+1000]UDP 5060-5160, [ports]UDP 1-5059 5161-65535");
        check("all/tcp", "[ports]TCP all");
    }

    #[test]
    fn unreadable_ranges_are_named_with_their_cure() {
        let check = |annotation: &str, expected: &[&str]| {
            let error = parse(annotation).map(|groups| text(&groups)).expect_err(annotation);
            assert!(expected.iter().all(|part| error.contains(part)), "{annotation}: {error}");
        };
        for bad in ["", "a", "5060/udp,", "5060 - 5160", "5060/udp+", "5060/udp+1x", "70000", "all5", "1-2-3-4"] {
            check(bad, &["write all, a port as in 5060"]);
        }
        check("5160-5060/udp", &["\"5160-5060/udp\"", "in order"]);
        check("0/udp", &["from 1 to 65535"]);
        check("5060/icmp", &["unknown protocol; write tcp, udp or sctp"]);
        check("all+1", &["the offset leads beyond"]);
        check("all-5", &["the offset leads beyond"]);
        check("65000/tcp+536", &["the offset leads beyond"]);
        check("5/tcp-5", &["the offset leads beyond"]);
        check("all/udp, 5060/udp", &["\"5060/udp\": earlier items have all its ports"]);
        check(&vec!["1"; 65].join(","), &["65 items; write at most 64"]);
    }

    fn span() -> impl Strategy<Value = PortSpan> {
        let ends = prop_oneof![(1_u16.., 1_u16..), (1_u16..40, 1_u16..40)];
        ends.prop_map(|(a, b)| PortSpan { first: a.min(b), last: a.max(b) })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_blocks_of_a_range_are_its_ports_each_once_and_at_most_30(span in span()) {
            let addr: Addr = Ipv4Addr::new(10, 96, 0, 1).into();
            let blocks: Vec<_> = blocks(addr, Proto::Udp, span).collect();
            prop_assert!((1..=30).contains(&blocks.len()));
            let mut next = u32::from(span.first);
            for block in &blocks {
                let (first, last) = block.ports();
                prop_assert_eq!(u32::from(first), next);
                next = u32::from(last) + 1;
                // A look-up compares the significant bits of the key.
                let key = PortBlockKey::of(block);
                prop_assert_eq!(key.frontend(), Some(*block));
                let free = PortBlockKey::EXACT - key.prefix_len;
                for port in [first, last] {
                    prop_assert_eq!(u32::from(port) >> free, u32::from(first) >> free);
                }
                prop_assert_eq!(u32::from(first) & ((1 << free) - 1), 0);
            }
            prop_assert_eq!(next, u32::from(span.last) + 1);
            let joined = joined(blocks.iter().map(|block| (*block, ())));
            prop_assert_eq!(joined, [(addr, Proto::Udp as u8, span, ())]);
        }

        #[test]
        fn subtract_and_union_are_those_of_sets(
            spans in proptest::collection::vec(span(), 0..5),
            taken in proptest::collection::vec(span(), 0..5),
            port in prop_oneof![1_u16.., 1_u16..40],
        ) {
            let has = |spans: &[PortSpan]| spans.iter().any(|span| span.contains(port));
            let joined = union(spans.iter().copied());
            prop_assert_eq!(has(&joined), has(&spans));
            prop_assert!(joined.windows(2).all(|pair| pair[0].last < pair[1].first - 1));
            let left = subtract(&joined, taken.iter().copied());
            prop_assert_eq!(has(&left), has(&spans) && !has(&taken));
            prop_assert!(left.iter().all(|span| span.first <= span.last && span.first > 0));
        }
    }
}

//! Netlink messages as bytes (include/uapi/linux/netlink.h): encoding of requests, decoding of answers. Pure.

/// Length of a netlink header.
pub(crate) const HEADER: usize = 16;

/// Mask of an attribute's type; the other bits are NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const TYPE: u16 = 0x3fff;
/// NLA_F_NESTED
const NESTED: u16 = 0x8000;

/// A message and the fields of its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Frame<'a> {
    /// Message type.
    pub kind: u16,
    /// `NLM_F_` bits.
    pub flags: u16,
    /// Sequence number of the request that it answers.
    pub sequence: u32,
    /// Octets behind the header.
    pub body: &'a [u8],
}

impl Frame<'_> {
    /// Returns the errno, or 0, of a message that ends an answer; None for any other message.
    #[must_use]
    pub(crate) fn end_code(&self) -> Option<i32> {
        let is_end = matches!(i32::from(self.kind), libc::NLMSG_DONE | libc::NLMSG_ERROR);
        is_end.then(|| u32_at(self.body, 0).map_or(0, |code| code.cast_signed().wrapping_neg()))
    }
}

/// Lists the messages of one datagram, up to the first truncated one.
pub(crate) fn frames(mut bytes: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let (kind, flags, sequence) = (u16_at(bytes, 4)?, u16_at(bytes, 6)?, u32_at(bytes, 8)?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Frame { kind, flags, sequence, body })
    })
}

/// Lists the attributes of a body or of a nested attribute, up to the first truncated one: type and value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Returns the first attribute of a type.
pub(crate) fn find(nest: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(nest).find(|(of, _)| *of == kind).map(|(_, value)| value)
}

/// Encodes a request; NLM_F_REQUEST is added to `flags`.
pub(crate) fn request(kind: u16, flags: i32, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).expect("a request is short");
    let flags = u16::try_from(libc::NLM_F_REQUEST | flags).expect("flags have 16 bits");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // The kernel fills in the sender's port.
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

/// Appends an attribute.
pub fn put_attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("an attribute is short");
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// Appends an attribute that holds the attributes `inner`.
pub(crate) fn put_nested(to: &mut Vec<u8>, kind: u16, inner: &[u8]) {
    put_attribute(to, kind | NESTED, inner);
}

/// Reads a number of 16 bits in network order.
pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Reads a number of 32 bits in network order.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Reads a number of 16 bits in host order.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Reads a number of 32 bits in host order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Reads a string up to its terminating zero.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_messages_are_decoded_and_no_prefix_panics() {
        let mut body = vec![7; 4];
        put_attribute(&mut body, 3, b"eth0\0");
        put_attribute(&mut body, 4 | 0x8000, &1500_u32.to_ne_bytes());
        let bytes = [request(16, libc::NLM_F_MULTI, 9, &body), request(3, 0, 9, &0_u32.to_ne_bytes())].concat();
        let [link, done] = frames(&bytes).collect::<Vec<_>>()[..] else { panic!("two messages") };
        assert_eq!((link.kind, link.sequence, link.end_code(), done.end_code()), (16, 9, None, Some(0)));
        let [(3, name), (4, mtu)] = attributes(link.body.get(4..).expect("a body")).collect::<Vec<_>>()[..] else {
            panic!("two attributes, without NLA_F_NESTED")
        };
        assert_eq!((text(name).as_str(), u32_at(mtu, 0)), ("eth0", Some(1500)));
        for end in 0..bytes.len() {
            let cut = bytes.get(..end).expect("a prefix");
            for frame in frames(cut) {
                assert!(attributes(frame.body).count() <= 3);
            }
        }
        assert_eq!(frames(&[0; 64]).count(), 0, "a length of zero ends the list");
        assert_eq!(attributes(&[0; 64]).count(), 0);
    }

    #[test]
    fn an_error_is_a_positive_number() {
        let bytes = request(2, 0, 1, &(-libc::ENODEV).to_ne_bytes());
        assert_eq!(frames(&bytes).next().and_then(|frame| frame.end_code()), Some(libc::ENODEV));
    }
}

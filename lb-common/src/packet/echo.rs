//! Turns an ICMP echo request into its reply, in place: the data stays where it is (RFC 792, RFC 4443, 4.2).

use super::{Fragment, Packet, Patch, Skb, SkbSum, WriteError, number, rewrite::put_header, sum};
use crate::Tuple;

/// Type and code of a request over IPv4.
const REQUEST_V4: [u8; 2] = [8, 0];
/// Type and code of a request over IPv6.
const REQUEST_V6: [u8; 2] = [128, 0];
/// Type of a reply over IPv4.
const REPLY_V4: u8 = 0;
/// Type of a reply over IPv6.
const REPLY_V6: u8 = 129;
/// Hops of a reply, as of the kernel's own packets.
const HOPS: u8 = 64;

/// True for an echo request in one packet. The programs do not reassemble fragments.
#[inline(always)]
pub fn is_echo_request(skb: &impl Skb, packet: &Packet) -> bool {
    if packet.fragment as u8 != Fragment::Whole as u8 {
        return false;
    }
    let Some([first, _]) = skb.words::<2>(packet.l4) else {
        return false;
    };
    let [kind, code, ..] = first.to_ne_bytes();
    let request = if packet.v6 { REQUEST_V6 } else { REQUEST_V4 };
    kind == request[0] && code == request[1] && (packet.proto == number::ICMPV6) == packet.v6
}

/// Makes an echo request its reply. `back` are the reversed addresses of the packet.
///
/// # Errors
/// If a write fails; the packet is inconsistent then, and must be dropped.
#[inline(always)]
pub fn answer_echo(skb: &mut impl Skb, packet: &Packet, back: &Tuple) -> Result<(), WriteError> {
    let (from, to) = if packet.v6 { (REQUEST_V6, [REPLY_V6, 0]) } else { (REQUEST_V4, [REPLY_V4, 0]) };
    // Addresses that change places leave each sum as it is.
    put_header(skb, packet, back, packet.ttl.wrapping_sub(HOPS))?;
    skb.store(packet.l4, &to, SkbSum::Keep)?;
    skb.patch_sum(packet.l4 + 2, sum::of_half(from, to), Patch { pseudo_header: false, may_be_none: false })
}

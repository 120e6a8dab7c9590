//! State and time-outs of flows. The time-outs are those of netfilter
//! (net/netfilter/nf_conntrack_proto_{tcp,udp,sctp}.c), as kube-proxy sets them
//! (`--conntrack-tcp-timeout-established`).

use crate::{Flow, FlowFlags, FlowKey, Hook, Proto};

/// Bits of [`Flow::forward`] and [`Flow::reverse`]: events of one direction.
pub struct Seen;

impl Seen {
    /// A packet.
    pub const ANY: u8 = 1;
    /// TCP's FIN, or SCTP's SHUTDOWN.
    pub const FIN: u8 = 2;
    /// TCP's RST, or SCTP's ABORT or SHUTDOWN COMPLETE.
    pub const RST: u8 = 4;
    /// A FIN before that of the other direction: this end waits in TIME-WAIT.
    pub const FIN_FIRST: u8 = 8;
    /// A datagram of the client after the first reply: the flow is a stream (netfilter's ASSURED), not a single query.
    pub const AGAIN: u8 = 16;
    /// The client of a connection has not answered the first reply yet, so that its address may be forged. Only in
    /// [`Flow::forward`] of both entries from the beginning; the end of the handshake is in the client's entry alone.
    pub const HANDSHAKE: u8 = 32;
}

/// Number that the end of a connection (TCP RST and FIN, SCTP ABORT and SHUTDOWN) must have to count, in the low half
/// of [`Flow::used`]: for TCP, the sequence number after the last octet of its sender; for SCTP, the verification tag
/// of its sender's packets. 0 is unknown. A forger outside of the path does not know it, and cannot move it: a TCP
/// segment must be near. Netfilter checks the same (RFC 5961, 3.2), with the windows that both ends tell.
pub struct Serial;

impl Serial {
    const MASK: u64 = 0xffff_ffff;
    /// A segment that ends by less beyond the highest end continues. Others are retransmissions, late, or forged, and
    /// what was lost comes again. Above the windows of connections (Linux: `tcp_rmem`, at most 6 MiB by default).
    const NEAR: u32 = 8 << 20;

    /// The number in [`Flow::used`].
    #[inline(always)]
    const fn of(used: u64) -> u32 {
        (used & Self::MASK) as u32
    }

    /// [`Flow::used`] after a packet that is no reset, from its value before (0 for none) and the packet's number (0 if
    /// no packet of the direction has come yet).
    #[inline(always)]
    #[must_use]
    pub const fn note(proto: u8, before: u64, now: u64, serial: u32) -> u64 {
        if proto == Proto::Udp as u8 {
            return now;
        }
        let known = Self::of(before);
        let continues = serial.wrapping_sub(known) < Self::NEAR || known == 0 || proto == Proto::Sctp as u8;
        (now & !Self::MASK) | (if continues { serial } else { known }) as u64
    }

    /// [`Flow::used`] of a copy, whose sender may be far ahead: without the number.
    #[must_use]
    pub const fn of_copy(proto: u8, used: u64) -> u64 {
        if proto == Proto::Udp as u8 { used } else { used & !Self::MASK }
    }

    /// True if a reset with this number counts; or a FIN, after [`Serial::note`].
    #[inline(always)]
    #[must_use]
    pub const fn ends(used: u64, serial: u32) -> bool {
        let known = Self::of(used);
        known == 0 || known == serial
    }
}

/// Time of the last packet of a direction, at most 4.3 s late (CLOCK_MONOTONIC, ns).
#[must_use]
pub const fn last_used(flow: &Flow, proto: u8) -> u64 {
    if proto == Proto::Udp as u8 { flow.used } else { flow.used | Serial::MASK }
}

/// One second, in ns.
const SECOND: u64 = 1_000_000_000;

/// TCP, before the end of the handshake.
const TCP_OPENING: u64 = 60 * SECOND;
/// An idle established TCP connection.
const TCP_ESTABLISHED: u64 = 24 * 3600 * SECOND;
/// TCP, closed by one end.
const TCP_HALF_CLOSED: u64 = 3600 * SECOND;
/// TCP, closed by both ends or reset. Late packets are still translated.
pub const TCP_CLOSED: u64 = 10 * SECOND;
/// TCP, with the backend in TIME-WAIT: within this time (2 MSL in Linux) it would take a new connection from the same
/// address and port for the old one.
const TCP_TIME_WAIT: u64 = 60 * SECOND;
/// Datagrams without a reply, or a query and its reply, as in DNS. (Netfilter tells a query from a stream by two
/// seconds between its packets.)
const UDP_UNREPLIED: u64 = 30 * SECOND;
/// A stream of datagrams.
const UDP_REPLIED: u64 = 120 * SECOND;
/// Datagrams that netfilter translates: less than its time-out of an unreplied connection, so that it never gets a flow
/// that it has dropped.
pub const UDP_OF_NETFILTER: u64 = 25 * SECOND;
/// SCTP, before the end of the handshake.
const SCTP_OPENING: u64 = 60 * SECOND;
/// An established SCTP association: heartbeats come every 30 s (RFC 9260, 8.3).
const SCTP_ESTABLISHED: u64 = 210 * SECOND;

/// State of a flow, as in conntrack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowState {
    /// No packet of the backend yet.
    Opening,
    /// The backend has answered the first packet of a connection, and the client has not answered that.
    Answered,
    /// Packets in both directions.
    Established,
    /// Closed by one end.
    HalfClosed,
    /// Closed by both ends, or reset.
    Closed,
    /// Closed by both ends, with the backend in TIME-WAIT.
    TimeWait,
}

impl FlowState {
    /// The state by the [`Seen`] bits of both directions.
    #[inline(always)]
    #[must_use]
    pub const fn of(forward: u8, reverse: u8) -> Self {
        if (forward | reverse) & Seen::RST != 0 {
            return Self::Closed;
        }
        if forward & reverse & Seen::FIN != 0 {
            return if reverse & Seen::FIN_FIRST != 0 { Self::TimeWait } else { Self::Closed };
        }
        if (forward | reverse) & Seen::FIN != 0 {
            return Self::HalfClosed;
        }
        match (reverse & Seen::ANY, forward & Seen::HANDSHAKE) {
            (0, _) => Self::Opening,
            (_, 0) => Self::Established,
            _ => Self::Answered,
        }
    }

    /// True if the flow makes room for another one: its client may be forged.
    #[inline(always)]
    #[must_use]
    pub const fn gives_way(self) -> bool {
        matches!(self, Self::Opening | Self::Answered)
    }

    /// True if the client may reuse its port for a new connection.
    #[inline(always)]
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Closed | Self::TimeWait)
    }

    /// Time-out after the last packet, in ns.
    #[must_use]
    pub const fn lasts(self, proto: u8) -> u64 {
        const UDP: u8 = Proto::Udp as u8;
        const SCTP: u8 = Proto::Sctp as u8;
        match (proto, self) {
            (UDP, Self::Opening) => UDP_UNREPLIED,
            (UDP, _) => UDP_REPLIED,
            (SCTP, Self::Opening | Self::Answered) => SCTP_OPENING,
            (SCTP, Self::Established | Self::HalfClosed) => SCTP_ESTABLISHED,
            (_, Self::Opening | Self::Answered) => TCP_OPENING,
            (_, Self::Established) => TCP_ESTABLISHED,
            (_, Self::HalfClosed) => TCP_HALF_CLOSED,
            (_, Self::Closed) => TCP_CLOSED,
            (_, Self::TimeWait) => TCP_TIME_WAIT,
        }
    }

    /// The name in output.
    #[must_use]
    pub const fn name(self, proto: u8) -> &'static str {
        const UDP: u8 = Proto::Udp as u8;
        match (proto, self) {
            (UDP, Self::Opening) => "UNREPLIED",
            (UDP, _) => "ASSURED",
            (_, Self::Opening) => "SYN_SENT",
            (_, Self::Answered) => "SYN_RECV",
            (_, Self::Established) => "ESTABLISHED",
            (_, Self::HalfClosed) => "CLOSE_WAIT",
            (_, Self::Closed) => "CLOSE",
            (_, Self::TimeWait) => "TIME_WAIT",
        }
    }
}

/// The state of a flow by its two entries, either of which may have seen more.
#[must_use]
pub fn state(own: &Flow, partner: Option<&Flow>) -> FlowState {
    let (forward, reverse) = partner.map_or((own.forward, 0), |partner| (partner.forward, partner.reverse));
    let is_over = if own.forward & forward & Seen::HANDSHAKE == 0 { Seen::HANDSHAKE } else { 0 };
    FlowState::of((own.forward | forward) & !is_over, own.reverse | reverse)
}

/// Expiry of a flow without further packets (CLOCK_MONOTONIC, ns). Both entries of a flow expire together.
#[must_use]
pub fn expires_at(own: &Flow, partner: Option<&Flow>, proto: u8) -> u64 {
    let used = last_used(partner.filter(|partner| partner.used > own.used).unwrap_or(own), proto);
    let netfilter = own.flags & FlowFlags::NETFILTER != 0 && proto == Proto::Udp as u8;
    let is_stream = (own.forward | partner.map_or(0, |partner| partner.forward)) & Seen::AGAIN != 0;
    let lasts = match state(own, partner) {
        _ if netfilter => UDP_OF_NETFILTER,
        FlowState::Established if proto == Proto::Udp as u8 && !is_stream => UDP_UNREPLIED,
        state => state.lasts(proto),
    };
    used.saturating_add(lasts)
}

/// Key of the entry of the other direction.
#[inline(always)]
#[must_use]
pub const fn partner_key(key: &FlowKey, flow: &Flow) -> FlowKey {
    let hook = if flow.flags & FlowFlags::PARTNER_EGRESS != 0 { Hook::Egress } else { Hook::Ingress };
    FlowKey::new(flow.to.reversed(), key.proto, hook)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Addr, Hop, Tuple};

    fn flow(forward: u8, reverse: u8, used: u64) -> Flow {
        let to = Tuple { src: Addr::default(), dst: Addr::default(), src_port: 1, dst_port: 2 };
        Flow { to, service: 1, backend: 1, flags: 0, forward, reverse, used, hop: Hop::UNKNOWN }
    }

    #[test]
    fn the_state_of_a_flow_follows_from_both_directions() {
        use FlowState::{Answered, Closed, Established, HalfClosed, Opening, TimeWait};
        const ANY: u8 = Seen::ANY;
        const FIN: u8 = Seen::ANY | Seen::FIN;
        for (forward, reverse, want) in [
            (ANY, 0, Opening),
            (ANY, ANY, Established),
            (ANY | Seen::HANDSHAKE, 0, Opening),
            (ANY | Seen::HANDSHAKE, ANY, Answered),
            (FIN | Seen::HANDSHAKE, ANY, HalfClosed),
            (FIN, ANY, HalfClosed),
            (ANY, FIN | Seen::FIN_FIRST, HalfClosed),
            (FIN, FIN | Seen::FIN_FIRST, TimeWait),
            (FIN | Seen::FIN_FIRST, FIN, Closed),
            (ANY | Seen::RST, ANY, Closed),
            (ANY, Seen::RST, Closed),
        ] {
            assert_eq!(FlowState::of(forward, reverse), want, "{forward} {reverse}");
        }
    }

    #[test]
    fn the_handshake_is_over_when_the_clients_entry_says_so() {
        const ANY: u8 = Seen::ANY;
        const BEGUN: u8 = Seen::ANY | Seen::HANDSHAKE;
        let state = |own: u8, partner: u8| state(&flow(own, 0, 0), Some(&flow(partner, ANY, 0)));
        assert_eq!(state(BEGUN, BEGUN), FlowState::Answered);
        assert_eq!([state(ANY, BEGUN), state(BEGUN, ANY)], [FlowState::Established; 2]);
        assert_eq!(super::state(&flow(BEGUN, ANY, 0), None), FlowState::Answered);
    }

    #[test]
    fn a_flow_expires_by_the_later_use_of_its_entries_and_what_either_has_seen() {
        let (own, partner) = (flow(Seen::ANY, 0, 5 * SECOND), flow(0, Seen::ANY, 7 * SECOND));
        // The low half of a connection's time is a serial number.
        let [five, seven] = [5, 7].map(|seconds| (seconds * SECOND) | 0xffff_ffff);
        assert_eq!(expires_at(&own, None, 6), five + 60 * SECOND);
        assert_eq!(expires_at(&own, Some(&partner), 6), seven + TCP_ESTABLISHED);
        assert_eq!(expires_at(&own, Some(&partner), 17), 37 * SECOND);
        let again = Flow { forward: Seen::ANY | Seen::AGAIN, ..partner };
        assert_eq!(expires_at(&own, Some(&again), 17), 127 * SECOND);
        assert_eq!(expires_at(&own, None, 17), 35 * SECOND);
        let netfilter = Flow { flags: FlowFlags::NETFILTER, ..own };
        assert_eq!(expires_at(&netfilter, Some(&partner), 17), 7 * SECOND + UDP_OF_NETFILTER);
        assert_eq!(expires_at(&netfilter, Some(&partner), 6), seven + TCP_ESTABLISHED);
    }

    #[test]
    fn a_reset_counts_with_the_next_number_of_its_sender_alone() {
        const TCP: u8 = 6;
        let now = 100 * SECOND;
        let mut used = Serial::note(TCP, 0, now, 0);
        assert!(Serial::ends(used, 77));
        const END: u32 = u32::MAX;
        used = Serial::note(TCP, used, now, END - 100);
        // A retransmission, the next segments, one beyond the highest number, a late one, two forged ones, and one
        // after lost ones.
        for (serial, known) in [
            (END - 200, END - 100),
            (END - 100, END - 100),
            (END - 99, END - 99),
            (8, 8),
            (END, 8),
            (1 << 30, 8),
            (0x8000_0000, 8),
            (1 << 19, 1 << 19),
        ] {
            used = Serial::note(TCP, used, now, serial);
            assert!(Serial::ends(used, known), "{serial}");
            assert!(![known - 1, known + 1, 0, known ^ 0x8000_0000].iter().any(|other| Serial::ends(used, *other)));
            let last = last_used(&flow(0, 0, used), TCP);
            assert!((now..now + (1 << 32)).contains(&last), "{last}");
        }
        let copy = Serial::of_copy(TCP, used);
        assert!(Serial::ends(copy, 77) && last_used(&flow(0, 0, copy), TCP) == last_used(&flow(0, 0, used), TCP));
        assert_eq!(Serial::of_copy(17, used), used);
        // A restarted association has another tag.
        assert!(Serial::ends(Serial::note(132, used, now, 1 << 30), 1 << 30));
        assert_eq!(Serial::note(17, used, now, 0), now);
        assert_eq!(last_used(&flow(0, 0, now), 17), now);
    }

    #[test]
    fn the_partner_key_of_a_partner_is_the_own_key() {
        let ip = |text: &str| Addr::from(text.parse::<core::net::IpAddr>().expect("an address"));
        let dialled = Tuple { src: ip("192.0.2.9"), dst: ip("192.0.2.1"), src_port: 4000, dst_port: 30080 };
        let to = Tuple { src: ip("192.0.2.9"), dst: ip("10.0.0.1"), src_port: 4000, dst_port: 8080 };
        let forward = Flow { to, flags: FlowFlags::PARTNER_EGRESS, ..flow(0, 0, 0) };
        let key = FlowKey::new(dialled, 6, Hook::Ingress);
        let other = partner_key(&key, &forward);
        assert_eq!(other, FlowKey::new(to.reversed(), 6, Hook::Egress));
        let reverse = Flow { to: dialled.reversed(), flags: FlowFlags::REVERSE, ..flow(0, 0, 0) };
        assert_eq!(partner_key(&other, &reverse), key);
    }
}

//! Verdict on a packet, in one register.

use lb_common::{Counter, packet::IcmpError};

/// A code for the kernel, or the next stage.
#[derive(Clone, Copy)]
pub struct PacketVerdict(u32);

/// With the number of a counter in the lower bits.
const DROPPED: u32 = 0x80;
const FLOW: u32 = 0x100;
const REJECT: u32 = 0x200;
const HOST_UNREACHABLE: u32 = 0x300;
const TIME_EXCEEDED: u32 = 0x400;
const NO_ROUTE: u32 = 0x500;
/// The MTU is in the upper half.
const TOO_BIG: u32 = 0x600;

impl PacketVerdict {
    /// Pass to the next program of the device, or to the kernel: TC_ACT_UNSPEC and TCX_NEXT are equal.
    pub const PASS: Self = Self(u32::MAX);
    /// Drop silently.
    pub const DROP: Self = Self(2);
    /// Translate by the flow in `Scratch`.
    pub const FLOW: Self = Self(FLOW);
    /// Reply with an ICMP error: host unreachable.
    pub const HOST_UNREACHABLE: Self = Self(HOST_UNREACHABLE);
    /// Reply with an ICMP error: time exceeded.
    pub const TIME_EXCEEDED: Self = Self(TIME_EXCEEDED);
    /// Reply with an ICMP error: no route.
    pub const NO_ROUTE: Self = Self(NO_ROUTE);

    /// The result of a redirect helper.
    #[inline(always)]
    pub fn of_helper(code: i64) -> Self {
        Self(code as u32)
    }

    /// Drop silently, for the cause that is counted there.
    #[inline(always)]
    pub fn dropped(counter: Counter) -> Self {
        Self(DROPPED | counter as u32)
    }

    /// Reject, and count.
    #[inline(always)]
    pub fn reject(counter: Counter) -> Self {
        Self(REJECT | counter as u32)
    }

    /// Reply with an ICMP error: packet too big for this MTU.
    #[inline(always)]
    pub fn too_big(mtu: u32) -> Self {
        Self(TOO_BIG | mtu << 16)
    }

    /// True for [`PacketVerdict::PASS`].
    #[inline(always)]
    pub fn is_pass(self) -> bool {
        self.0 == u32::MAX
    }

    /// True for [`PacketVerdict::FLOW`].
    #[inline(always)]
    pub fn is_flow(self) -> bool {
        self.0 == FLOW
    }

    #[inline(always)]
    fn is_dropped(self) -> bool {
        self.0 & !0x7f == DROPPED
    }

    /// Number of the counter of a refused first packet.
    #[inline(always)]
    pub fn refusal(self) -> Option<u32> {
        if self.is_dropped() {
            Some(self.0 & 0x7f)
        } else if self.0 == HOST_UNREACHABLE {
            Some(Counter::UnknownClusterIp as u32)
        } else {
            self.reject_counter()
        }
    }

    /// True if the sender gets a reset or an ICMP error.
    #[inline(always)]
    pub fn is_reply(self) -> bool {
        !self.is_pass() && self.0 & 0xff00 >= REJECT
    }

    /// True if the packet is too big for the next link.
    #[inline(always)]
    pub fn is_too_big(self) -> bool {
        self.0 & 0xff00 == TOO_BIG
    }

    /// Number of the counter of a reject.
    #[inline(always)]
    pub fn reject_counter(self) -> Option<u32> {
        if self.0 & 0xff00 == REJECT { Some(self.0 & 0xff) } else { None }
    }

    /// The ICMP error for the sender; a rejected TCP segment gets a reset instead.
    #[inline(always)]
    pub fn icmp_error(self) -> IcmpError {
        match self.0 & 0xff00 {
            HOST_UNREACHABLE => IcmpError::HostUnreachable,
            TIME_EXCEEDED => IcmpError::TimeExceeded,
            NO_ROUTE => IcmpError::NoRoute,
            TOO_BIG => IcmpError::TooBig((self.0 >> 16) as u16),
            _ => IcmpError::PortUnreachable,
        }
    }

    /// The code for the kernel.
    #[inline(always)]
    pub fn code(self) -> i32 {
        if self.is_dropped() {
            return Self::DROP.0.cast_signed();
        }
        self.0.cast_signed()
    }
}

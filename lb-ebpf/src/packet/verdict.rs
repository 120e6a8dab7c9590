//! Verdict on a packet, in one register.

use lb_common::{Counter, packet::IcmpError};

use crate::paths;

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
/// The rest is in the lower bits: see [`Onward`].
const ONWARD: u32 = 0x700;

impl PacketVerdict {
    /// Code for the kernel: redirect, as a helper has been told (TC_ACT_REDIRECT and TCX_REDIRECT are equal).
    pub const REDIRECT: i32 = 7;
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

    /// The course of a packet that is to be translated first; `None` for a verdict that needs no translation.
    #[inline(always)]
    pub fn onward(self) -> Option<Onward> {
        if self.0 & !0xff == ONWARD { Some(Onward(self.0)) } else { None }
    }

    /// The same verdict, of which the verifier knows nothing: see [`paths::join`].
    #[inline(always)]
    pub fn joined(self, any: u16) -> Self {
        Self(paths::join(self.0.into(), any) as u32)
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

/// The course of a packet once it is translated, in one register.
#[derive(Clone, Copy)]
pub struct Onward(u32);

impl Onward {
    /// To the peer of a device, in the network namespace of a pod.
    pub const POD: u32 = 1;
    /// To the neighbour that a lookup has found.
    pub const NEIGHBOUR: u32 = 2;
    /// To a device, with the link addresses of the flow.
    pub const LINK: u32 = 3;
    /// Through the kernel anew.
    pub const ANEW: u32 = 4;
    /// The time to live sinks by one.
    const HOP: u32 = 0x10;

    /// On through the kernel.
    #[inline(always)]
    pub fn to_the_kernel() -> Self {
        Self(ONWARD)
    }

    /// See [`Onward::ANEW`].
    #[inline(always)]
    pub fn anew() -> Self {
        Self(ONWARD | Self::ANEW)
    }

    /// See [`Onward::POD`].
    #[inline(always)]
    pub fn into_a_pod() -> Self {
        Self(ONWARD | Self::POD)
    }

    /// See [`Onward::NEIGHBOUR`].
    #[inline(always)]
    pub fn to_neighbour() -> Self {
        Self(ONWARD | Self::NEIGHBOUR)
    }

    /// See [`Onward::LINK`].
    #[inline(always)]
    pub fn to_link() -> Self {
        Self(ONWARD | Self::LINK)
    }

    /// The same, with one hop less to live.
    #[inline(always)]
    pub fn one_hop_further(self) -> Self {
        Self(self.0 | Self::HOP)
    }

    /// The same value, of which the verifier knows nothing: see [`paths::join`].
    #[inline(always)]
    pub fn joined(self, any: u16) -> Self {
        Self(paths::join(self.0.into(), any) as u32)
    }

    /// The hops by which the time to live sinks.
    #[inline(always)]
    pub fn hops(self) -> u8 {
        u8::from(self.0 & Self::HOP != 0)
    }

    /// One of the constants, or another value for the kernel.
    #[inline(always)]
    pub fn target(self) -> u32 {
        self.0 & 0xf
    }

    /// This course as a verdict.
    #[inline(always)]
    pub fn verdict(self) -> PacketVerdict {
        PacketVerdict(self.0)
    }
}

//! What is decided about a packet, in one register.

use lb_common::{Counter, packet::Trouble};

/// A packet's fate: a code for the kernel, or what is still to be done.
#[derive(Clone, Copy)]
pub struct Fate(u32);

const FLOW: u32 = 0x100;
const REJECT: u32 = 0x200;
const TIME_EXCEEDED: u32 = 0x400;
const NO_ROUTE: u32 = 0x500;
/// The largest size is in the upper half.
const TOO_BIG: u32 = 0x600;

impl Fate {
    /// The next program of the device decides, or the kernel: the same number for clsact and for TCX.
    pub const PASS: Self = Self(u32::MAX);
    /// It goes nowhere, and nobody hears of it.
    pub const DROP: Self = Self(2);
    /// It has a flow now, which it follows.
    pub const FLOW: Self = Self(FLOW);
    /// It has made too many hops.
    pub const TIME_EXCEEDED: Self = Self(TIME_EXCEEDED);
    /// There is no way to where it shall go.
    pub const NO_ROUTE: Self = Self(NO_ROUTE);

    /// What a helper says that sends it elsewhere.
    #[inline(always)]
    pub fn of_helper(code: i64) -> Self {
        Self(code as u32)
    }

    /// Nobody serves here.
    #[inline(always)]
    pub fn reject(why: Counter) -> Self {
        Self(REJECT | why as u32)
    }

    /// It is longer than what the next link carries.
    #[inline(always)]
    pub fn too_big(mtu: u32) -> Self {
        Self(TOO_BIG | mtu << 16)
    }

    /// Whether it is [`Fate::FLOW`].
    #[inline(always)]
    pub fn is_flow(self) -> bool {
        self.0 == FLOW
    }

    /// Whether its sender hears of it.
    #[inline(always)]
    pub fn is_answer(self) -> bool {
        self.0 != u32::MAX && self.0 & 0xff00 >= REJECT
    }

    /// What counts a rejection.
    #[inline(always)]
    pub fn rejected(self) -> Option<u32> {
        if self.0 & 0xff00 == REJECT { Some(self.0 & 0xff) } else { None }
    }

    /// What its sender hears, but for TCP's reset.
    #[inline(always)]
    pub fn trouble(self) -> Trouble {
        match self.0 & 0xff00 {
            TIME_EXCEEDED => Trouble::TimeExceeded,
            NO_ROUTE => Trouble::NoRoute,
            TOO_BIG => Trouble::TooBig((self.0 >> 16) as u16),
            _ => Trouble::PortUnreachable,
        }
    }

    /// The code for the kernel.
    #[inline(always)]
    pub fn code(self) -> i32 {
        self.0.cast_signed()
    }
}

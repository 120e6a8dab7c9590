//! Result of a choice.

use crate::{
    Addr, Counter, List,
    errno::{ECONNREFUSED, EHOSTUNREACH},
};

/// A chosen backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// Id of the service port.
    pub service: u32,
    /// Id of the backend.
    pub backend: u32,
    /// Address of the backend.
    pub addr: Addr,
    /// Port of the backend, host order.
    pub port: u16,
    /// The part in ejection, if the result of the connect counts for it.
    pub followed: Option<Followed>,
    /// The reason for this backend.
    pub reason: Reason,
}

/// Reason for a backend. None is 0, which the verifier of Linux 5.10 and 6.1 tells from other numbers on the stack, and
/// so would walk what follows twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reason {
    /// At random; for packets by the hash of their flow, so that each packet of a flow gets the same.
    Random = 1,
    /// `rr`, `wrr`: its turn.
    Turn = 2,
    /// `sh`: the hash of the client.
    ClientHash = 3,
    /// `dh`: the hash of the address dialled.
    DestinationHash = 4,
    /// `mh`: the Maglev table, at the hash of a packet's flow, or at random for a socket.
    MaglevTable = 5,
    /// The client's affinity.
    Affinity = 6,
    /// In place of a backend that failed the caller just before.
    Avoided = 7,
    /// In place of a backend that the client's own failed connects eject.
    Ejected = 8,
    /// Ejected itself: of all backends that were looked at, none is free.
    AllEjected = 9,
}

impl Reason {
    /// All reasons, ordered by number.
    pub const ALL: [Self; 9] = [
        Self::Random,
        Self::Turn,
        Self::ClientHash,
        Self::DestinationHash,
        Self::MaglevTable,
        Self::Affinity,
        Self::Avoided,
        Self::Ejected,
        Self::AllEjected,
    ];

    /// The reason of this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == number)
    }

    /// The reason in words that follow a backend; empty at random, which the name of the scheduler tells.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Random | Self::MaglevTable => "",
            Self::Turn => "whose turn it is",
            Self::ClientHash => "always for this client",
            Self::DestinationHash => "always at this address",
            Self::Affinity => "by affinity",
            Self::Avoided => "in place of one that failed just before",
            Self::Ejected => "in place of an ejected one",
            Self::AllEjected => "although it is ejected, since no other was found",
        }
    }
}

/// A choice whose handshake counts for ejection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Followed {
    /// A backend in this list.
    In(List),
    /// A backend whose ejection is over: the connect tries it. The caller tells `EJECTIONS` when it begins.
    Trial,
}

impl Choice {
    /// The choice of this backend, for a choice whose port is the one to add to the backend's.
    #[inline(always)]
    pub(super) const fn to(self, backend: u32, addr: Addr, port: u16) -> Self {
        Self { backend, addr, port: port.wrapping_add(self.port), ..self }
    }
}

/// Cause of a refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The service port has no endpoint anywhere.
    NoEndpoints,
    /// The service port has endpoints, but none on this node, and the policy is Local.
    NoLocalEndpoints,
    /// The client is in none of the Service's source ranges.
    SourceRange,
    /// A cluster IP for a port that no Service has there: of no service port.
    UnknownPort,
    /// A cluster IP that no Service has: of no service port.
    UnknownClusterIp,
}

impl Cause {
    /// The error of the system call on kernels with `bpf_set_retval` (5.18); older kernels return EPERM.
    #[inline(always)]
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::NoEndpoints | Self::UnknownPort => ECONNREFUSED,
            Self::NoLocalEndpoints | Self::SourceRange | Self::UnknownClusterIp => EHOSTUNREACH,
        }
    }

    /// The counter of these refusals.
    #[inline(always)]
    #[must_use]
    pub const fn counter(self) -> Counter {
        match self {
            Self::NoEndpoints => Counter::NoEndpoints,
            Self::NoLocalEndpoints => Counter::NoLocalEndpoints,
            Self::SourceRange => Counter::SourceRange,
            Self::UnknownPort => Counter::UnknownPort,
            Self::UnknownClusterIp => Counter::UnknownClusterIp,
        }
    }
}

/// Verdict on a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// No Service: the destination stays.
    NotService,
    /// As [`Verdict::NotService`]: no frontend has the port. The address may be a VIP, by the first look of
    /// [`super::may_be_vip`], which the caller need not repeat.
    NoPort,
    /// Translate to this backend.
    Backend(Choice),
    /// A service port, by its id, that cannot serve the client; 0 if there is none.
    Refused(u32, Cause),
}

impl Verdict {
    /// True for the verdicts of a destination that no Service translates.
    #[must_use]
    pub const fn is_not_service(&self) -> bool {
        matches!(self, Self::NotService | Self::NoPort)
    }
}

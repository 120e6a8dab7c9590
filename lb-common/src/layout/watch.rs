//! Records of `beeline watch`, and the gate that lets the programs write them.

use crate::{Addr, Counter};

/// Octets of a process name with its terminating zero (TASK_COMM_LEN, include/linux/sched.h).
pub const COMM_LEN: usize = 16;

/// Index into `WATCH`, an array of 64 bits each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum WatchCell {
    /// Time (CLOCK_MONOTONIC, ns) until which a reader wants records of sockets, which it puts off while it runs; 0
    /// without a reader. A program that finds the time over sets it to 0.
    Sockets = 0,
    /// As [`WatchCell::Sockets`], for the first packets of flows.
    Packets = 1,
    /// Calls and packets whose record found no room, since the map was created.
    LostCalls = 2,
    /// Handshakes whose record found no room, since the map was created.
    LostResults = 3,
}

impl WatchCell {
    /// Number of cells.
    pub const COUNT: usize = 4;
}

/// Kind of a [`WatchRecord`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum WatchKind {
    /// A connect.
    Connect = 1,
    /// The first datagram of an unconnected socket to a frontend, or the first to another backend.
    Datagram = 2,
    /// The first packet of a flow.
    Packet = 3,
    /// The handshake of a TCP socket succeeded.
    Established = 4,
    /// The handshake of a TCP socket failed.
    Failed = 5,
    /// The application closes a TCP socket during its handshake; a [`WatchKind::Failed`] of the socket follows.
    GivenUp = 6,
    /// A connect of TCP without records of its handshake: of MPTCP, or of a socket without a rev-nat entry.
    Unfollowed = 7,
}

impl WatchKind {
    /// All kinds, ordered by number.
    pub const ALL: [Self; 7] =
        [Self::Connect, Self::Datagram, Self::Packet, Self::Established, Self::Failed, Self::GivenUp, Self::Unfollowed];

    /// The kind of this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// A record. Those of a handshake are written as a [`WatchResult`], and have its fields only.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WatchRecord {
    /// Time of the event (CLOCK_MONOTONIC, ns).
    pub time: u64,
    /// Cookie of a TCP socket, by which its [`WatchResult`] is found; 0 of others, and of a packet.
    pub socket: u64,
    /// Id of the cgroup of the process; 0 of a packet.
    pub cgroup: u64,
    /// Address dialled.
    pub dialled: Addr,
    /// Address of the backend; unspecified if refused.
    pub backend_addr: Addr,
    /// Source address of a packet; unspecified of a socket.
    pub client: Addr,
    /// Name of the process, padded with zeros: what the process calls itself.
    pub comm: [u8; COMM_LEN],
    /// Id of the process in the first pid namespace; 0 of a packet.
    pub pid: u32,
    /// Id of the service port; 0 if there is none.
    pub service: u32,
    /// Id of the backend; 0 if refused.
    pub backend: u32,
    /// Errno of the refused call; 0 of a packet, and if not refused.
    pub errno: u32,
    /// Port dialled, host order.
    pub dialled_port: u16,
    /// Port of the backend, host order; 0 if refused.
    pub backend_port: u16,
    /// Source port of a packet, host order; 0 of a socket.
    pub client_port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// A [`WatchKind`].
    pub kind: u8,
    /// 1 and the number of the [`Counter`] of a refusal; 0 if not refused.
    pub refusal: u8,
    /// SYN segments sent, up to 255.
    pub syns: u8,
    /// Segments received before the handshake failed, up to 255: a reset, or none.
    pub answers: u8,
    /// Number of the [`crate::Reason`] for the backend; 0 if refused.
    pub reason: u8,
    /// Zero.
    pub _pad: [u8; 4],
}

impl WatchRecord {
    /// A record without content.
    pub const EMPTY: Self = Self {
        time: 0,
        socket: 0,
        cgroup: 0,
        dialled: Addr::from_words([0; 4]),
        backend_addr: Addr::from_words([0; 4]),
        client: Addr::from_words([0; 4]),
        comm: [0; COMM_LEN],
        pid: 0,
        service: 0,
        backend: 0,
        errno: 0,
        dialled_port: 0,
        backend_port: 0,
        client_port: 0,
        proto: 0,
        kind: 0,
        refusal: 0,
        syns: 0,
        answers: 0,
        reason: 0,
        _pad: [0; 4],
    };

    /// The counter of a refusal.
    #[must_use]
    pub fn refused_by(&self) -> Option<Counter> {
        Counter::ALL.into_iter().find(|counter| *counter as u32 + 1 == u32::from(self.refusal))
    }

    /// True if a refusal is of a destination that no Service has.
    #[inline(always)]
    #[must_use]
    pub const fn is_of_no_service(refusal: u8) -> bool {
        refusal == Counter::UnknownPort as u8 + 1 || refusal == Counter::UnknownClusterIp as u8 + 1
    }
}

/// A record of a handshake of a TCP socket, as the programs write it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WatchResult {
    /// Time of the event (CLOCK_MONOTONIC, ns).
    pub time: u64,
    /// Cookie of the socket.
    pub socket: u64,
    /// A [`WatchKind`].
    pub kind: u8,
    /// SYN segments sent, up to 255.
    pub syns: u8,
    /// Segments received before the handshake failed, up to 255: a reset, or none.
    pub answers: u8,
    /// Zero.
    pub _pad: [u8; 5],
}

impl From<WatchResult> for WatchRecord {
    fn from(result: WatchResult) -> Self {
        let WatchResult { time, socket, kind, syns, answers, .. } = result;
        Self { time, socket, kind, syns, answers, ..Self::EMPTY }
    }
}

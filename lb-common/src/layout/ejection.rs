//! Layout of ejection (`beeline.io/eject`): the policy of a service port, clients, and counts. The verdicts are in
//! `ejection`.

use super::List;

const SECOND: u64 = 1_000_000_000;

/// Doublings of the time of an ejection, from the first one on.
const MAX_DOUBLINGS: u16 = 4;

/// Times of an ejection after a return in which the next ejection is longer.
const MEMORY: u64 = 10;

/// Part of [`super::ServiceEntry`]: the annotation of a Service. Zero without it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EjectPolicy {
    /// Consecutive failures that eject a backend; 0 without ejection.
    pub failures: u16,
    /// Time in which they happen, s.
    pub window: u16,
    /// Time of the first ejection, s.
    pub seconds: u16,
    /// Backends of the cluster list that a client may eject at a time: at most half of them.
    pub cluster_most: u16,
    /// As `cluster_most`, of the local list.
    pub local_most: u16,
    /// Zero.
    pub _pad: u16,
}

impl EjectPolicy {
    /// True if the results of handshakes count.
    #[inline(always)]
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.failures != 0
    }

    /// Number of backends of `list` that a client may eject at a time.
    #[inline(always)]
    #[must_use]
    pub const fn most(&self, list: List) -> u32 {
        match list {
            List::Cluster => self.cluster_most as u32,
            List::Local => self.local_most as u32,
        }
    }

    /// Time of an ejection after `before` others, ns.
    #[inline(always)]
    #[must_use]
    pub const fn time(&self, before: u16) -> u64 {
        let doublings = if before < MAX_DOUBLINGS { before } else { MAX_DOUBLINGS };
        (self.seconds as u64 * SECOND) << doublings
    }

    /// Time after a return in which the next ejection is longer than the first one, ns.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn until_forgotten(&self) -> u64 {
        self.time(0) * MEMORY
    }

    /// Time from the last change of an entry until all of it is forgotten, ns.
    #[inline(always)]
    #[must_use]
    pub const fn memory(&self) -> u64 {
        self.time(MAX_DOUBLINGS) + self.until_forgotten() + self.window as u64 * SECOND
    }
}

/// Key of `EJECTIONS`: a client of a service port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EjectionKey {
    /// Cookie of the client's network namespace.
    pub netns: u64,
    /// Id of the process's cgroup, for a client in the network namespace of the node, which many share; else 0.
    pub cgroup: u64,
    /// Id of the service port.
    pub service: u32,
    /// Zero.
    pub _pad: u32,
}

/// Key of `EJECT_STATS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EjectStatsKey {
    /// Id of the service port.
    pub service: u32,
    /// Id of the backend; 0 for the sum of all, those included that are gone.
    pub backend: u32,
}

/// Value of `EJECT_STATS`: counts of all clients of this node.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EjectStats {
    /// Failed handshakes.
    pub failures: u64,
    /// Ejections.
    pub ejections: u64,
}

//! Ejection (`beeline.io/eject`): results that a client saw of a service port's backends, and the verdict on each.
//!
//! The verdict belongs to the client that saw the failures, so that nothing must tell a failed backend from a client's
//! own mistake: a wrong verdict harms the client that caused it only.

use crate::{EjectPolicy, EjectionKey, SCOPE_SIZE, bpf_spin_lock};

const SECOND: u64 = 1_000_000_000;

/// Backends of one service port about which a client remembers something. Each backend has two places, by its id.
pub const EJECTION_PLACES: usize = 64;

/// Time that other connects wait for the result of a trial, ns: longer than the first retransmission of a SYN (1 s, RFC
/// 6298), which is a failure.
const TRIAL: u64 = 2 * SECOND;

/// Length of a handshake, in ns, from which a close by the client is a failure of the backend; before, it is none.
/// The shortest retransmission time-out of established connections (TCP_RTO_MIN, include/net/tcp.h).
pub const CLOSE_GRACE: u64 = SECOND / 5;

/// Value of `ATTEMPTS` (`BPF_MAP_TYPE_SK_STORAGE`): a connect to a backend, whose result is the handshake of a TCP
/// socket, and an error, or a close without one, of a UDP socket.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// The client and the service port.
    pub client: EjectionKey,
    /// Time of the connect (CLOCK_MONOTONIC, ns).
    pub began: u64,
    /// Id of the backend; 0 in new storage.
    pub backend: u32,
    /// 1 if its failure has been counted.
    pub counted: u32,
}

/// State of a backend for one client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
enum Phase {
    /// The client gets the backend.
    InUse = 0,
    /// The client does not get the backend until a time.
    Ejected = 1,
    /// One connect of the client has got the backend, and others wait for its result.
    OnTrial = 2,
}

/// Results that a client saw of one backend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EjectionPlace {
    /// First of the consecutive failures (CLOCK_MONOTONIC, ns).
    pub since: u64,
    /// End of the ejection, or of the wait for a trial; of a backend in use, the time of its return, or 0.
    pub until: u64,
    /// Id of the backend; 0 if free.
    pub backend: u32,
    /// Number of backends that the client had ejected when this one was, or was last tried, this one included.
    pub rank: u32,
    /// A `Phase`: 0 in use, 1 ejected, 2 on trial.
    pub phase: u32,
    /// Consecutive failures, of a backend in use.
    pub failures: u16,
    /// Ejections in a row.
    pub times: u16,
}

impl EjectionPlace {
    /// True if a client does not get the backend, so far as the list allows.
    #[inline(always)]
    #[must_use]
    pub const fn is_out(&self, now: u64) -> bool {
        self.phase != Phase::InUse as u32 && self.until > now
    }
}

/// The verdict on a backend, for one client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    /// The client gets the backend.
    Free,
    /// The client gets another backend.
    Held,
    /// The time of the ejection is over: one connect tries the backend.
    Trial,
}

/// Value of `EJECTIONS`: what a client saw of the backends of a service port. Created by the first failure.
///
/// The programs change it under its lock. `rank` keeps the client from missing more than half of a list without a
/// search through the places at each connect: of the backends that are out, the last one ejected or tried counted all
/// others, so that at most `most` of them have a rank up to `most`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ejections {
    /// Guards all other fields.
    pub lock: bpf_spin_lock,
    /// Zero.
    pub _pad: u32,
    /// Time of the last failure (CLOCK_MONOTONIC, ns).
    pub used: u64,
    /// The backends, by id.
    pub places: [EjectionPlace; EJECTION_PLACES],
}

impl Ejections {
    /// The value of a client without failures.
    pub const EMPTY: Self = Self {
        lock: bpf_spin_lock { val: 0 },
        _pad: 0,
        used: 0,
        places: [EjectionPlace { since: 0, until: 0, backend: 0, rank: 0, phase: 0, failures: 0, times: 0 };
            EJECTION_PLACES],
    };

    /// Index of the first place of a backend; the other one follows.
    #[inline(always)]
    const fn first(backend: u32) -> usize {
        // The ids of a service port that shares affinity are equal in the lowest bits.
        (backend ^ (backend / SCOPE_SIZE)) as usize % (EJECTION_PLACES / 2) * 2
    }

    /// The place of a backend.
    #[inline(always)]
    #[must_use]
    pub fn place(&self, backend: u32) -> Option<&EjectionPlace> {
        let first = Self::first(backend);
        let (one, other) = (self.places.get(first)?, self.places.get(first + 1)?);
        if one.backend == backend {
            Some(one)
        } else if other.backend == backend {
            Some(other)
        } else {
            None
        }
    }

    #[inline(always)]
    fn place_mut(&mut self, backend: u32) -> Option<&mut EjectionPlace> {
        let first = Self::first(backend);
        let at = if self.places.get(first)?.backend == backend { first } else { first + 1 };
        self.places.get_mut(at).filter(|place| place.backend == backend)
    }

    /// The verdict on a backend of a list of which the client may eject `most`.
    #[inline(always)]
    #[must_use]
    pub fn hold(&self, backend: u32, most: u32, now: u64) -> Hold {
        let Some(place) = self.place(backend) else { return Hold::Free };
        if place.phase == Phase::InUse as u32 || place.rank > most {
            Hold::Free
        } else if place.until > now {
            Hold::Held
        } else {
            Hold::Trial
        }
    }

    /// Number of backends besides `backend` that are out.
    #[inline(always)]
    fn others_out(&self, backend: u32, now: u64) -> u32 {
        let mut out = 0;
        for place in &self.places {
            if place.backend != backend && place.is_out(now) {
                out += 1;
            }
        }
        out
    }

    /// Takes over that a connect tries a backend whose time is over.
    #[inline(always)]
    pub fn begin_trial(&mut self, backend: u32, now: u64) {
        let rank = self.others_out(backend, now) + 1;
        if let Some(place) = self.place_mut(backend)
            && place.phase != Phase::InUse as u32
        {
            place.phase = Phase::OnTrial as u32;
            place.until = now + TRIAL;
            place.rank = rank;
        }
    }

    /// Takes over a failed connect. Returns true if it ejects the backend.
    #[inline(always)]
    pub fn fail(&mut self, backend: u32, policy: &EjectPolicy, now: u64) -> bool {
        self.used = now;
        let rank = self.others_out(backend, now) + 1;
        let Some(place) = self.place_or_new(backend, now) else { return false };
        if place.phase == Phase::InUse as u32 {
            if place.failures == 0 || now.saturating_sub(place.since) > policy.window as u64 * SECOND {
                place.since = now;
                place.failures = 0;
            }
            place.failures = place.failures.saturating_add(1);
            if place.failures < policy.failures {
                return false;
            }
            if now.saturating_sub(place.until) > policy.until_forgotten() {
                place.times = 0;
            }
        } else if place.phase == Phase::Ejected as u32 && place.until > now {
            // A connect that began before the ejection, or a backend beyond the half of the list.
            return false;
        }
        place.phase = Phase::Ejected as u32;
        place.until = now + policy.time(place.times);
        place.rank = rank;
        place.failures = 0;
        place.times = place.times.saturating_add(1);
        true
    }

    /// Takes over a connect that succeeded: the backend is in use again.
    #[inline(always)]
    pub fn succeed(&mut self, backend: u32, now: u64) {
        if let Some(place) = self.place_mut(backend) {
            place.failures = 0;
            if place.phase != Phase::InUse as u32 {
                place.phase = Phase::InUse as u32;
                place.until = now;
            }
        }
    }

    /// The place of a backend, or a place that is free or whose backend is not out. `None` if both are taken: failures
    /// of this backend do not count then.
    #[inline(always)]
    fn place_or_new(&mut self, backend: u32, now: u64) -> Option<&mut EjectionPlace> {
        let first = Self::first(backend);
        let (one, other) = (self.places.get(first)?, self.places.get(first + 1)?);
        let at = if one.backend == backend {
            first
        } else if other.backend == backend || (one.backend != 0 && other.backend == 0) || one.is_out(now) {
            first + 1
        } else {
            first
        };
        let place = self.places.get_mut(at)?;
        if place.backend != backend {
            if place.is_out(now) {
                return None;
            }
            // Field by field: a whole place of zeros is a call of memset, which kernels before 6.8 refuse under a lock.
            // The time and the rank of a backend in use mean nothing before its first failure.
            place.backend = backend;
            place.until = 0;
            place.phase = Phase::InUse as u32;
            place.failures = 0;
            place.times = 0;
        }
        Some(place)
    }

    /// True if the client remembers nothing any more.
    #[must_use]
    pub fn is_over(&self, policy: &EjectPolicy, now: u64) -> bool {
        !policy.is_on() || now.saturating_sub(self.used) > policy.memory()
    }
}

const _: () = assert!(size_of::<Attempt>() == 40);
const _: () = assert!(size_of::<EjectionPlace>() == 32);
const _: () = assert!(size_of::<Ejections>() == 16 + 32 * EJECTION_PLACES);

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "the promise to aya that a layout is plain bytes")]
    // SAFETY: repr(C), integers and structs of them only, no padding.
    unsafe impl aya::Pod for super::Attempt {}
    // SAFETY: repr(C), integers and arrays of structs of them only, no padding.
    unsafe impl aya::Pod for super::Ejections {}
}

#[cfg(test)]
mod tests;

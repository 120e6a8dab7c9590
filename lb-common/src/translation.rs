//! What a socket was given: VIP and backend, and the short list of them that a UDP socket keeps.

use crate::{Addr, Choice, bpf_spin_lock};

/// One translation of one socket: the application dialled the VIP and speaks to the backend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Translation {
    /// What the application dialled.
    pub vip: Addr,
    /// What it got.
    pub backend_addr: Addr,
    /// Host order.
    pub vip_port: u16,
    /// Host order.
    pub backend_port: u16,
    /// Id of the service port.
    pub service: u32,
    /// Id of the backend; 0 marks a free place.
    pub backend: u32,
    /// Which load of the programs wrote it: see [`Translation::is_forgotten_by`].
    pub generation: u32,
}

impl Translation {
    /// The translation of `vip`:`vip_port` to `choice`.
    #[inline(always)]
    #[must_use]
    pub const fn new(vip: Addr, vip_port: u16, choice: &Choice, generation: u32) -> Self {
        Self {
            vip,
            backend_addr: choice.addr,
            vip_port,
            backend_port: choice.port,
            service: choice.service,
            backend: choice.backend,
            generation,
        }
    }

    /// Whether this leads to `addr`:`port`.
    #[inline(always)]
    #[must_use]
    pub fn leads_to(&self, addr: &Addr, port: u16) -> bool {
        self.backend != 0 && self.backend_port == port && self.backend_addr == *addr
    }

    /// Whether a program of `generation` forgets this when the socket turns to the plain address `addr`:`port`.
    ///
    /// While an upgrade is under way, a second program may run behind the one that has just translated, and sees the
    /// backend as a plain destination. It tells that case by the other's generation (invariant I9).
    #[inline(always)]
    #[must_use]
    pub fn is_forgotten_by(&self, generation: u32, addr: &Addr, port: u16) -> bool {
        self.generation == generation || !self.leads_to(addr, port)
    }
}

/// A place of `TCP_SOCKS`, an array indexed by the low bits of the socket cookie: one cache line, no look-up.
///
/// Cookies are numbered, so the places fill evenly; a socket whose place another one still holds goes to `TCP_MORE`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpSock {
    /// Held while the place is being taken, and while `more` changes.
    pub lock: bpf_spin_lock,
    /// How many sockets of this place are in `TCP_MORE`.
    pub more: u32,
    /// Cookie of the socket that holds the place; 0 when it is free.
    pub cookie: u64,
    /// What the socket was given.
    pub given: Translation,
}

const NONE: Translation = Translation {
    vip: Addr { octets: [0; 16] },
    backend_addr: Addr { octets: [0; 16] },
    vip_port: 0,
    backend_port: 0,
    service: 0,
    backend: 0,
    generation: 0,
};

/// What became of a translation that was stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Put {
    /// The backend that the socket held in that place; 0 for none.
    pub replaced: u32,
    /// All places were taken: another VIP was forgotten.
    pub overflow: bool,
}

/// How many VIPs one UDP socket can speak to at a time.
pub const MAX_TRANSLATIONS: usize = 8;

/// What a UDP socket holds, in `SOCKS` (`BPF_MAP_TYPE_SK_STORAGE`): it lives and dies with the socket.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translations {
    /// In no order; a free place has backend 0.
    pub entries: [Translation; MAX_TRANSLATIONS],
    /// The place that gives way when all are taken.
    pub next: u32,
    /// The place that was used last: it wins where two VIPs lead to one backend.
    pub last: u32,
}

impl Translations {
    /// An empty list.
    pub const EMPTY: Self = Self { entries: [NONE; MAX_TRANSLATIONS], next: 0, last: 0 };

    /// The translation of a VIP, and from now on the last used.
    #[inline(always)]
    pub fn of_vip(&mut self, vip: &Addr, port: u16) -> Option<Translation> {
        for (index, entry) in (0u32..).zip(&self.entries) {
            if entry.backend != 0 && entry.vip_port == port && entry.vip == *vip {
                self.last = index;
                return Some(*entry);
            }
        }
        None
    }

    /// The translation that leads to a backend: what a reply from there is shown as.
    #[inline(always)]
    #[must_use]
    pub fn of_backend(&self, addr: &Addr, port: u16) -> Option<Translation> {
        if let Some(last) = self.entries.get(self.last as usize)
            && last.leads_to(addr, port)
        {
            return Some(*last);
        }
        for entry in &self.entries {
            if entry.leads_to(addr, port) {
                return Some(*entry);
            }
        }
        None
    }

    /// Stores a translation in the place of the same VIP, in a free place, or in that of the oldest.
    #[inline(always)]
    pub fn put(&mut self, translation: &Translation) -> Put {
        let mut place = None;
        for (index, entry) in (0u32..).zip(&self.entries) {
            if entry.backend == 0 {
                if place.is_none() {
                    place = Some(index);
                }
            } else if entry.vip_port == translation.vip_port && entry.vip == translation.vip {
                place = Some(index);
                break;
            }
        }
        let mut put = Put { replaced: 0, overflow: false };
        let place = if let Some(place) = place {
            place
        } else {
            let place = self.next % MAX_TRANSLATIONS as u32;
            self.next = place + 1;
            put.overflow = true;
            place
        };
        if let Some(entry) = self.entries.get_mut(place as usize) {
            put.replaced = entry.backend;
            *entry = *translation;
            self.last = place;
        }
        put
    }

    /// The backends that the socket holds.
    #[inline(always)]
    pub fn each(&self, mut what: impl FnMut(u32)) {
        for entry in &self.entries {
            if entry.backend != 0 {
                what(entry.backend);
            }
        }
    }

    /// The socket turns to a plain address: what comes from there is shown as itself from now on. `closed` is told what
    /// it holds no more.
    #[inline(always)]
    pub fn forget(&mut self, generation: u32, addr: &Addr, port: u16, mut closed: impl FnMut(u32)) {
        for entry in &mut self.entries {
            if entry.leads_to(addr, port) && entry.is_forgotten_by(generation, addr, port) {
                closed(entry.backend);
                entry.backend = 0;
            }
        }
    }
}

const _: () = assert!(size_of::<Translation>() == 48);
const _: () = assert!(size_of::<Translations>() == 392);
const _: () = assert!(size_of::<TcpSock>() == 64);

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "the promise to aya that a layout is plain bytes")]
    // SAFETY: repr(C), integers and arrays of them only, no padding.
    unsafe impl aya::Pod for super::Translation {}
    // SAFETY: repr(C), integers and arrays of them only, no padding.
    unsafe impl aya::Pod for super::Translations {}
    // SAFETY: repr(C), integers and structs of them only, no padding.
    unsafe impl aya::Pod for super::TcpSock {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const GENERATION: u32 = 7;

    fn vip(last: u8) -> Addr {
        Ipv4Addr::new(10, 96, 0, last).into()
    }

    fn server(last: u8) -> Addr {
        Ipv4Addr::new(10, 0, 0, last).into()
    }

    fn to(vip_last: u8, backend_last: u8) -> Translation {
        let choice = Choice { service: 1, backend: u32::from(backend_last), addr: server(backend_last), port: 53 };
        Translation::new(vip(vip_last), 53, &choice, GENERATION)
    }

    #[test]
    fn each_vip_keeps_its_own_backend_and_reply() {
        let mut list = Translations::EMPTY;
        assert!(!list.put(&to(1, 11)).overflow);
        assert!(!list.put(&to(2, 12)).overflow);
        assert_eq!(list.of_vip(&vip(1), 53).map(|t| t.backend), Some(11));
        assert_eq!(list.of_vip(&vip(2), 53).map(|t| t.backend), Some(12));
        assert_eq!(list.of_vip(&vip(2), 54), None);
        assert_eq!(list.of_backend(&server(11), 53).map(|t| t.vip), Some(vip(1)));
        assert_eq!(list.of_backend(&server(11), 54), None);
        assert_eq!(list.of_backend(&server(13), 53), None);
    }

    #[test]
    fn the_same_vip_takes_the_same_place() {
        let mut list = Translations::EMPTY;
        assert_eq!(list.put(&to(1, 11)).replaced, 0);
        assert_eq!(list.put(&to(1, 12)).replaced, 11);
        assert_eq!(list.of_backend(&server(11), 53), None);
        assert_eq!(list.entries.iter().filter(|e| e.backend != 0).count(), 1);
    }

    #[test]
    fn the_ninth_vip_takes_the_place_of_the_oldest_and_counts() {
        let mut list = Translations::EMPTY;
        for n in 1..=8 {
            assert!(!list.put(&to(n, n)).overflow);
        }
        assert!(list.put(&to(9, 9)).overflow);
        assert_eq!(list.of_vip(&vip(1), 53), None);
        assert!(list.put(&to(10, 10)).overflow);
        assert_eq!(list.of_vip(&vip(2), 53), None);
        assert!((3..=10).all(|n| list.of_vip(&vip(n), 53).is_some()));
    }

    #[test]
    fn of_two_vips_with_one_backend_the_last_used_is_shown() {
        let mut list = Translations::EMPTY;
        list.put(&to(1, 11));
        list.put(&to(2, 11));
        assert_eq!(list.of_backend(&server(11), 53).map(|t| t.vip), Some(vip(2)));
        list.of_vip(&vip(1), 53);
        assert_eq!(list.of_backend(&server(11), 53).map(|t| t.vip), Some(vip(1)));
    }

    #[test]
    fn a_plain_send_to_the_backend_forgets_it_but_not_behind_another_program() {
        let mut list = Translations::EMPTY;
        list.put(&to(1, 11));
        list.put(&to(2, 12));
        let mut closed = std::vec::Vec::new();
        list.forget(GENERATION + 1, &server(11), 53, |backend| closed.push(backend));
        assert!(list.of_backend(&server(11), 53).is_some(), "a second program behind the first");
        list.forget(GENERATION, &server(11), 53, |backend| closed.push(backend));
        assert_eq!(closed, [11]);
        assert_eq!(list.of_backend(&server(11), 53), None);
        assert!(list.of_backend(&server(12), 53).is_some());
    }

    #[test]
    fn a_tcp_translation_is_forgotten_by_a_connect_elsewhere() {
        let t = to(1, 11);
        assert!(t.is_forgotten_by(GENERATION, &server(12), 53));
        assert!(t.is_forgotten_by(GENERATION, &server(11), 53));
        assert!(t.is_forgotten_by(GENERATION + 1, &server(12), 53));
        assert!(!t.is_forgotten_by(GENERATION + 1, &server(11), 53));
    }
}

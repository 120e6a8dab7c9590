//! Rev-nat entries of sockets: one translation for TCP, a short list for UDP.

use crate::{Addr, Choice, Reason, bpf_spin_lock, capacity};

/// [`Translation::backend`] of a client, which is no backend. Ids are allotted from 1 upwards.
const CLIENT: u32 = u32::MAX;

/// A translation of a socket: the application dials the VIP, the socket talks to the backend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Translation {
    /// The VIP.
    pub vip: Addr,
    /// Address of the backend.
    pub backend_addr: Addr,
    /// Port of the VIP, host order.
    pub vip_port: u16,
    /// Port of the backend, host order.
    pub backend_port: u16,
    /// Id of the service port.
    pub service: u32,
    /// Id of the backend; 0 marks an empty entry.
    pub backend: u32,
    /// Generation of the programs that wrote the entry: see [`Translation::is_forgotten_by`].
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

    /// The entry of a client, which is `addr`:`port` for the application and the socket alike: see
    /// [`Translation::is_client`].
    #[inline(always)]
    #[must_use]
    pub const fn of_client(addr: Addr, port: u16, generation: u32) -> Self {
        let choice = Choice { service: 0, backend: CLIENT, addr, port, followed: None, reason: Reason::Random };
        Self::new(addr, port, &choice, generation)
    }

    /// True if `vip` is a client of this socket, whose address and port are a frontend's too: replies go to the client.
    #[inline(always)]
    #[must_use]
    pub const fn is_client(&self) -> bool {
        self.backend == CLIENT
    }

    /// True if the entry is that of the VIP `addr`:`port`.
    #[inline(always)]
    #[must_use]
    pub fn is_of(&self, addr: &Addr, port: u16) -> bool {
        self.backend != 0 && self.vip_port == port && self.vip == *addr
    }

    /// True if the backend is `addr`:`port`.
    #[inline(always)]
    #[must_use]
    pub fn leads_to(&self, addr: &Addr, port: u16) -> bool {
        self.backend != 0 && self.backend_port == port && self.backend_addr == *addr
    }

    /// True if a program of `generation` removes the entry when the socket connects to `addr`:`port`, which is no
    /// frontend.
    ///
    /// During an upgrade, a second program may run behind the program that has just translated, and sees the backend as
    /// a plain destination. It recognises this case by the generation of the entry (invariant I9).
    #[inline(always)]
    #[must_use]
    pub fn is_forgotten_by(&self, generation: u32, addr: &Addr, port: u16) -> bool {
        self.generation == generation || !self.leads_to(addr, port)
    }
}

/// A place in `TCP_SOCKS`, an array indexed by the low bits of the socket cookie: one cache line, no hash.
///
/// Cookies are sequential, so that the places fill evenly; `TCP_MORE` has the sockets whose place another socket holds.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpSock {
    /// Guards the taking of the place, and `more`.
    pub lock: bpf_spin_lock,
    /// Number of sockets of this place in `TCP_MORE`.
    pub more: u32,
    /// Cookie of the socket that holds the place; 0 if free.
    pub cookie: u64,
    /// The rev-nat entry of the socket.
    pub given: Translation,
}

/// A place in `UDP_SOCKS`, an array. A socket that needs a second entry, or whose place another socket holds, has its
/// entries in `SOCKS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UdpSock {
    /// Guards the taking of the place.
    pub lock: bpf_spin_lock,
    /// Zero.
    pub _pad: u32,
    /// The socket that holds the place, as [`UdpSock::index`] takes it; 0 if free.
    pub socket: u64,
    /// The rev-nat entry of the socket.
    pub given: Translation,
}

impl UdpSock {
    /// Bits of a socket's address that its index leaves out. A socket is larger than that, and neighbours in memory,
    /// which are used one after the other, get neighbouring places.
    pub const SHIFT: u32 = 10;

    /// Index of the place of a socket, which is given as the distance of its address from that of the first element of
    /// `UDP_SOCKS`: programs get it without a call, and a new socket's cookie takes two.
    #[inline(always)]
    #[must_use]
    pub const fn index(socket: u64) -> u32 {
        (socket >> Self::SHIFT) as u32 % capacity::UDP_SOCKS as u32
    }

    /// The count of the sockets with entries that share some bits of their address: index of its word in `UDP_COUNTS`,
    /// and its lowest bit there; it has 16 bits. Small enough to stay in the cache of the processor.
    #[inline(always)]
    #[must_use]
    pub const fn count(socket: u64) -> (u32, u32) {
        let place = (socket >> Self::SHIFT) as u32;
        (place / 4 % capacity::UDP_COUNTS as u32, place % 4 * 16)
    }
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

/// Result of [`Translations::put`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Put {
    /// The backend of the overwritten entry; 0 for none.
    pub replaced: u32,
    /// The list was full: the entry of another VIP was overwritten.
    pub overflow: bool,
}

/// VIPs of a UDP socket at a time.
pub const MAX_TRANSLATIONS: usize = 8;

/// Value of `SOCKS` (`BPF_MAP_TYPE_SK_STORAGE`): rev-nat entries of a socket that has no place in `UDP_SOCKS`, for the
/// life of the socket.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translations {
    /// The entries, unordered; an empty entry has backend 0.
    pub entries: [Translation; MAX_TRANSLATIONS],
    /// The entry to overwrite when the list is full.
    pub next: u32,
    /// The entry used last: it wins if two VIPs have the same backend.
    pub last: u32,
}

impl Translations {
    /// An empty list.
    pub const EMPTY: Self = Self { entries: [NONE; MAX_TRANSLATIONS], next: 0, last: 0 };

    /// The entry of a VIP, which becomes the entry used last.
    #[inline(always)]
    pub fn of_vip(&mut self, vip: &Addr, port: u16) -> Option<Translation> {
        for (index, entry) in (0u32..).zip(&self.entries) {
            if entry.is_of(vip, port) {
                self.last = index;
                return Some(*entry);
            }
        }
        None
    }

    /// The entry of a backend: replies of the backend show its VIP.
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

    /// Stores an entry: over that of the same VIP, in an empty place, or over the oldest.
    #[inline(always)]
    pub fn put(&mut self, translation: &Translation) -> Put {
        let mut place = None;
        for (index, entry) in (0u32..).zip(&self.entries) {
            if entry.backend == 0 {
                if place.is_none() {
                    place = Some(index);
                }
            } else if entry.is_of(&translation.vip, translation.vip_port) {
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

    /// Stores a client of this socket, unless the socket itself dials that address: in an empty place, or over the
    /// oldest entry. Returns the backend of the overwritten entry; 0 for none.
    #[inline(always)]
    pub fn put_client(&mut self, addr: Addr, port: u16, generation: u32) -> u32 {
        let mut place = MAX_TRANSLATIONS as u32;
        for (index, entry) in (0u32..).zip(&self.entries) {
            if entry.backend == 0 {
                place = index;
            } else if entry.is_of(&addr, port) {
                return 0;
            }
        }
        if place == MAX_TRANSLATIONS as u32 {
            place = self.next % MAX_TRANSLATIONS as u32;
            self.next = place + 1;
        }
        let Some(entry) = self.entries.get_mut(place as usize) else {
            return 0;
        };
        let replaced = entry.backend;
        *entry = Translation::of_client(addr, port, generation);
        replaced
    }

    /// True if an entry is of the backend.
    #[inline(always)]
    #[must_use]
    pub fn has_backend(&self, backend: u32) -> bool {
        self.entries.iter().any(|entry| entry.backend == backend)
    }

    /// Calls `visit` with the backend of each entry.
    #[inline(always)]
    pub fn each(&self, mut visit: impl FnMut(u32)) {
        for entry in &self.entries {
            if entry.backend != 0 {
                visit(entry.backend);
            }
        }
    }

    /// Removes the entries that a connect to `addr`:`port` ends: a connected socket receives from its peer only. Calls
    /// `closed` with the backend of each removed entry.
    #[inline(always)]
    pub fn forget_all(&mut self, generation: u32, addr: &Addr, port: u16, mut closed: impl FnMut(u32)) {
        for entry in &mut self.entries {
            if entry.backend != 0 && entry.is_forgotten_by(generation, addr, port) {
                closed(entry.backend);
                entry.backend = 0;
            }
        }
    }

    /// Removes the entries of the backend `addr`:`port`, to which the socket talks directly now: its replies show its
    /// own address. Calls `closed` with the backend of each removed entry.
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
const _: () = assert!(size_of::<UdpSock>() == 64);
const _: () = assert!(capacity::UDP_SOCKS.is_power_of_two() && capacity::UDP_COUNTS.is_power_of_two());

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "the promise to aya that a layout is plain bytes")]
    // SAFETY: repr(C), integers and arrays of them only, no padding.
    unsafe impl aya::Pod for super::Translation {}
    // SAFETY: repr(C), integers and arrays of them only, no padding.
    unsafe impl aya::Pod for super::Translations {}
    // SAFETY: repr(C), integers and structs of them only, no padding.
    unsafe impl aya::Pod for super::TcpSock {}
    // SAFETY: repr(C), integers and structs of them only, no padding.
    unsafe impl aya::Pod for super::UdpSock {}
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
        let choice = Choice {
            service: 1,
            backend: u32::from(backend_last),
            addr: server(backend_last),
            port: 53,
            followed: None,
            reason: Reason::Random,
        };
        Translation::new(vip(vip_last), 53, &choice, GENERATION)
    }

    #[test]
    fn a_client_is_kept_beside_what_the_socket_dials() {
        let mut list = Translations::EMPTY;
        list.put(&to(1, 1));
        assert_eq!(list.put_client(vip(1), 53, GENERATION), 0);
        assert_eq!(list.of_vip(&vip(1), 53), Some(to(1, 1)), "the socket dials it");
        assert_eq!(list.put_client(vip(2), 53, GENERATION), 0);
        let client = list.of_vip(&vip(2), 53).expect("an entry");
        assert!(client.is_client() && client.leads_to(&vip(2), 53));
        assert!(!to(1, 1).is_client());
        // A full list loses its oldest entry.
        (3..=8).for_each(|n| assert_eq!(list.put_client(vip(n), 53, GENERATION), 0));
        assert_eq!(list.put_client(vip(8), 53, GENERATION), 0);
        assert!((2..=8).all(|n| list.of_vip(&vip(n), 53).is_some()));
        assert_eq!(list.put_client(vip(9), 53, GENERATION), 1);
        assert!(list.of_vip(&vip(1), 53).is_none() && list.of_vip(&vip(9), 53).is_some());
        // A socket that dials the address of a client does so from then on.
        list.put(&to(9, 3));
        assert_eq!(list.of_vip(&vip(9), 53), Some(to(9, 3)));
    }

    #[test]
    fn each_vip_has_its_own_backend_and_reply() {
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
    fn a_vip_overwrites_its_own_entry() {
        let mut list = Translations::EMPTY;
        assert_eq!(list.put(&to(1, 11)).replaced, 0);
        assert_eq!(list.put(&to(1, 12)).replaced, 11);
        assert_eq!(list.of_backend(&server(11), 53), None);
        assert_eq!(list.entries.iter().filter(|e| e.backend != 0).count(), 1);
    }

    #[test]
    fn the_ninth_vip_overwrites_the_oldest_entry_and_is_an_overflow() {
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
    fn the_vip_used_last_is_shown_for_a_backend_of_two_vips() {
        let mut list = Translations::EMPTY;
        list.put(&to(1, 11));
        list.put(&to(2, 11));
        assert_eq!(list.of_backend(&server(11), 53).map(|t| t.vip), Some(vip(2)));
        list.of_vip(&vip(1), 53);
        assert_eq!(list.of_backend(&server(11), 53).map(|t| t.vip), Some(vip(1)));
    }

    #[test]
    fn a_direct_send_to_the_backend_removes_the_entry_but_not_behind_another_program() {
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
    fn a_connect_elsewhere_removes_all_entries_but_not_behind_another_program() {
        let mut list = Translations::EMPTY;
        list.put(&to(1, 11));
        list.put(&to(2, 12));
        let mut closed = std::vec::Vec::new();
        list.forget_all(GENERATION + 1, &server(12), 53, |backend| closed.push(backend));
        assert_eq!(closed, [11]);
        assert!(list.of_backend(&server(12), 53).is_some(), "a second program behind the first");
        list.forget_all(GENERATION, &server(13), 53, |backend| closed.push(backend));
        assert_eq!(closed, [11, 12]);
        list.each(|backend| panic!("{backend} is left"));
    }

    #[test]
    fn a_connect_elsewhere_removes_a_tcp_translation() {
        let t = to(1, 11);
        assert!(t.is_forgotten_by(GENERATION, &server(12), 53));
        assert!(t.is_forgotten_by(GENERATION, &server(11), 53));
        assert!(t.is_forgotten_by(GENERATION + 1, &server(12), 53));
        assert!(!t.is_forgotten_by(GENERATION + 1, &server(11), 53));
    }
}

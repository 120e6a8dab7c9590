//! Rev-nat entries of UDP sockets. A socket with one entry has it in a place of `UDP_SOCKS`. A socket that needs a
//! second one, or whose place another socket holds, has a list in its storage, whose creation costs about 1 µs.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::{
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    helpers::generated::{bpf_sk_storage_get, bpf_spin_lock, bpf_spin_unlock},
};
use lb_common::{Addr, Put, Translation, Translations, UdpSock};

use crate::{
    context::SockAddr,
    globals::GENERATION,
    maps::{SOCKS, UDP_COUNTS, UDP_SOCKS},
    stats,
};

/// A UDP socket at one of its hooks. The kernel holds the lock of the socket during each of these hooks
/// (include/linux/bpf-cgroup.h), or runs the last one, so that access to its entries is exclusive.
pub struct UdpSocket {
    /// The `struct bpf_sock`.
    sock: *mut c_void,
    /// Identifies the socket: see [`UdpSock::index`].
    id: u64,
    /// Word of `UDP_COUNTS`, and the lowest bit of the count there.
    count: (*mut u64, u32),
}

/// The place of a socket: held by this socket, by another, or free.
#[derive(Clone, Copy)]
struct Place {
    /// See [`UdpSocket::id`].
    socket: u64,
    at: *mut UdpSock,
}

impl UdpSocket {
    /// The socket of a socket address hook.
    #[inline(always)]
    pub fn of<const V6: bool>(ctx: &SockAddr<V6>) -> Option<Self> {
        Self::at(ctx.sock())
    }

    /// The socket of a context, which is the socket itself when a socket closes.
    #[inline(always)]
    pub fn at(sock: *mut c_void) -> Option<Self> {
        let (mut id, base) = (sock as u64, UDP_SOCKS.get_ptr(0)? as u64);
        // In assembly, since the difference is the only arithmetic on two pointers that the verifier allows
        // (kernel/bpf/verifier.c, `adjust_reg_min_max_vals`).
        // SAFETY: arithmetic on registers.
        unsafe { asm!("{0} -= {1}", inout(reg) id, in(reg) base, options(nomem, nostack)) };
        let (word, shift) = UdpSock::count(id);
        Some(Self { sock, id, count: (UDP_COUNTS.get_ptr_mut(word)?, shift) })
    }

    /// False if the socket has no entries. Most sockets never dial a VIP: this spares them the look-ups.
    #[inline(always)]
    pub fn may_have_entries(&self) -> bool {
        let (word, shift) = self.count;
        // SAFETY: an element of an array map, which is never freed.
        (unsafe { word.read_volatile() } >> shift) & 0xffff != 0
    }

    /// Adds the socket to the sockets with entries (1), or removes it (-1).
    #[inline(always)]
    fn count(&self, by: i64) {
        let (word, shift) = self.count;
        stats::add(word, (by << shift) as u64);
    }

    #[inline(always)]
    fn place(&self) -> Option<Place> {
        Some(Place { socket: self.id, at: UDP_SOCKS.get_ptr_mut(UdpSock::index(self.id))? })
    }

    /// The list in the socket's storage.
    #[inline(always)]
    fn list(&self) -> Option<&'static mut Translations> {
        self.storage(0)
    }

    #[inline(always)]
    fn storage(&self, flags: u32) -> Option<&'static mut Translations> {
        // New storage is zero, an empty list.
        // SAFETY: the storage lives as long as the socket, which outlives this run; access is exclusive. The call of
        // aya takes contexts of socket addresses only; the helper also takes that of sock_release (5.9).
        unsafe {
            let map = (&raw const SOCKS).cast_mut().cast();
            bpf_sk_storage_get(map, self.sock, core::ptr::null_mut(), flags.into()).cast::<Translations>().as_mut()
        }
    }

    /// The entry of a VIP, which becomes the entry used last.
    #[inline(always)]
    pub fn of_vip(&self, vip: &Addr, port: u16) -> Option<Translation> {
        if !self.may_have_entries() {
            return None;
        }
        match self.place()?.translation() {
            Some(single) if single.is_of(vip, port) => Some(*single),
            _ => self.list()?.of_vip(vip, port),
        }
    }

    /// The entry of a backend: replies of the backend show its VIP.
    #[inline(always)]
    pub fn of_backend(&self, addr: &Addr, port: u16) -> Option<Translation> {
        if !self.may_have_entries() {
            return None;
        }
        match self.place()?.translation() {
            Some(single) if single.leads_to(addr, port) => Some(*single),
            _ => self.list()?.of_backend(addr, port),
        }
    }

    /// True if the socket, which may have entries, has one of a backend.
    #[inline(always)]
    pub fn has_backend(&self, backend: u32) -> bool {
        let is_single =
            self.place().and_then(|place| place.translation()).is_some_and(|single| single.backend == backend);
        is_single || self.list().is_some_and(|list| list.has_backend(backend))
    }

    /// Adds an entry for a datagram, and replaces that of the same VIP. `None` without memory.
    #[inline(always)]
    pub fn put(&self, translation: &Translation) -> Option<Put> {
        match self.single_or_list(&translation.vip, translation.vip_port)? {
            Entries::Single(place, before) => {
                place.write(*translation);
                Some(Put { replaced: before, overflow: false })
            }
            Entries::List(list) => Some(list.put(translation)),
        }
    }

    /// Adds the entry of a client, unless the socket dials that address: see [`Translations::put_client`]. Returns the
    /// backend of the overwritten entry; 0 for none.
    #[inline(always)]
    pub fn put_client(&self, addr: Addr, port: u16) -> u32 {
        match self.single_or_list(&addr, port) {
            Some(Entries::Single(place, 0)) => {
                place.write(Translation::of_client(addr, port, GENERATION.load()));
                0
            }
            Some(Entries::List(list)) => list.put_client(addr, port, GENERATION.load()),
            _ => 0,
        }
    }

    /// Makes an entry the only one, as a connect does: a connected socket receives from its peer only. Returns the
    /// backend of the entry that was in the place, 0 for none. `None` without memory.
    #[inline(always)]
    pub fn replace(&self, translation: &Translation) -> Option<u32> {
        let place = self.place()?;
        if self.may_have_entries() {
            if let Some(before) = place.translation() {
                let before = before.backend;
                place.write(*translation);
                return Some(before);
            }
            if let Some(list) = self.list() {
                list.forget_all(translation.generation, &translation.vip, translation.vip_port, stats::closed);
                return Some(list.put(translation).replaced);
            }
        }
        if self.take(&place) {
            place.write(*translation);
            return Some(0);
        }
        Some(self.new_list()?.put(translation).replaced)
    }

    /// Removes the entries that a connect to `addr`:`port`, which is no frontend, ends, and counts them as closed.
    #[inline(always)]
    pub fn forget_all(&self, addr: &Addr, port: u16) {
        if !self.may_have_entries() {
            return;
        }
        self.forget_single(|single| single.is_forgotten_by(GENERATION.load(), addr, port));
        if let Some(list) = self.list() {
            list.forget_all(GENERATION.load(), addr, port, stats::closed);
        }
    }

    /// Removes the entries of the backend `addr`:`port`, to which the socket talks directly now, and counts them as
    /// closed: see [`Translations::forget`].
    #[inline(always)]
    pub fn forget(&self, addr: &Addr, port: u16) {
        self.forget_single(|single| {
            single.leads_to(addr, port) && single.is_forgotten_by(GENERATION.load(), addr, port)
        });
        if let Some(list) = self.list() {
            list.forget(GENERATION.load(), addr, port, stats::closed);
        }
    }

    #[inline(always)]
    fn forget_single(&self, is_forgotten: impl FnOnce(&Translation) -> bool) {
        if let Some(place) = self.place()
            && let Some(single) = place.translation()
            && is_forgotten(single)
        {
            let backend = single.backend;
            place.free();
            self.count(-1);
            stats::closed(backend);
        }
    }

    /// Removes all entries of the socket, which closes, and counts them as closed.
    #[inline(always)]
    pub fn release(&self) {
        if !self.may_have_entries() {
            return;
        }
        self.forget_single(|_| true);
        if let Some(list) = self.list() {
            list.each(stats::closed);
            self.count(-1);
        }
    }

    /// The place that has the entry of this VIP or may take it, with its backend (0 if free), or else the list.
    #[inline(always)]
    fn single_or_list(&self, vip: &Addr, port: u16) -> Option<Entries> {
        let place = self.place()?;
        if self.may_have_entries() {
            if let Some(single) = place.translation() {
                if single.is_of(vip, port) {
                    return Some(Entries::Single(place, single.backend));
                }
                let list = self.new_list()?;
                list.put(single);
                place.free();
                self.count(-1);
                return Some(Entries::List(list));
            }
            if let Some(list) = self.list() {
                return Some(Entries::List(list));
            }
        }
        if self.take(&place) {
            return Some(Entries::Single(place, 0));
        }
        Some(Entries::List(self.new_list()?))
    }

    /// Creates the list in the socket's storage.
    #[inline(always)]
    fn new_list(&self) -> Option<&'static mut Translations> {
        let list = self.storage(BPF_SK_STORAGE_GET_F_CREATE)?;
        self.count(1);
        Some(list)
    }

    /// Takes the place if it is free; false if another socket holds it.
    #[inline(always)]
    fn take(&self, place: &Place) -> bool {
        let taken = place.take();
        if taken {
            self.count(1);
        }
        taken
    }
}

/// Where an entry of a socket is, or goes.
enum Entries {
    /// To the place, with the backend of the entry there; 0 if there is none.
    Single(Place, u32),
    List(&'static mut Translations),
}

impl Place {
    /// True if the socket holds its place.
    #[inline(always)]
    fn is_held(&self) -> bool {
        // SAFETY: an element of an array map, which is never freed.
        unsafe { (*self.at).socket == self.socket }
    }

    /// The entry of the socket in its place. By reference: a copy would exceed the stack.
    #[inline(always)]
    fn translation(&self) -> Option<&'static Translation> {
        // SAFETY: as above. Only the socket that holds the place writes its `given`, and only after the last use of
        // this reference.
        if self.is_held() { Some(unsafe { &(*self.at).given }) } else { None }
    }

    /// Takes the place if it is free; false if another socket holds it.
    #[inline(always)]
    fn take(&self) -> bool {
        // SAFETY: as above; the lock lets only one socket take a free place.
        unsafe {
            if (*self.at).socket != 0 {
                return self.is_held();
            }
            bpf_spin_lock((&raw mut (*self.at).lock).cast());
            if (*self.at).socket == 0 {
                (*self.at).socket = self.socket;
            }
            bpf_spin_unlock((&raw mut (*self.at).lock).cast());
        }
        self.is_held()
    }

    /// Writes the entry of the socket, which holds the place.
    #[inline(always)]
    fn write(&self, translation: Translation) {
        // SAFETY: as in `translation`.
        unsafe { (*self.at).given = translation };
    }

    /// Frees the place, which the socket holds.
    #[inline(always)]
    fn free(&self) {
        // SAFETY: as in `translation`; only the holder frees its place.
        unsafe { (*self.at).socket = 0 };
    }
}

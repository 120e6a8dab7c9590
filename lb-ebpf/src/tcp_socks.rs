//! Rev-nat entries of TCP sockets, from connect to sock_release: for getpeername and for a retry.
//!
//! A place in an array, indexed by the cookie of the socket, costs a connection about half as much as a hash. If an
//! open socket of 65,536 cookies ago holds the place, the entry goes to a hash.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_ANY,
    helpers::generated::{bpf_get_socket_cookie, bpf_spin_lock, bpf_spin_unlock},
};
use lb_common::{Choice, FrontendKey, TcpSock, Translation, capacity};

use crate::{
    context::SockAddr,
    globals::GENERATION,
    maps::{TCP_MORE, TCP_SOCKS},
    paths, stats,
};

/// A TCP socket and its place.
pub struct TcpSocket {
    cookie: u64,
    place: *mut TcpSock,
}

impl TcpSocket {
    /// The socket of a context whose program type has bpf_get_socket_cookie (sock_addr 4.12, sock 5.6). Never `None`,
    /// which the verifier does not know of an array's element.
    #[inline(always)]
    pub fn of(ctx: *mut core::ffi::c_void) -> Option<Self> {
        // SAFETY: see above.
        Self::with_cookie(unsafe { bpf_get_socket_cookie(ctx) })
    }

    /// The socket with this cookie.
    #[inline(always)]
    pub fn with_cookie(cookie: u64) -> Option<Self> {
        Some(Self { cookie, place: TCP_SOCKS.get_ptr_mut((cookie % capacity::TCP_SOCKS as u64) as u32)? })
    }

    /// The socket of a connect; of another protocol than TCP a place that is not used, for the verifier's sake.
    #[inline(always)]
    pub fn of_connect<const V6: bool>(ctx: &SockAddr<V6>, is_tcp: bool) -> Option<Self> {
        // SAFETY: as above.
        let cookie = if is_tcp { unsafe { bpf_get_socket_cookie(ctx.raw().as_ptr()) } } else { 0 };
        Self::with_cookie(paths::join(cookie, ctx.port()))
    }

    /// The backend of an earlier connect of a TCP socket, which failed; 0 for none.
    #[inline(always)]
    pub fn before(&self, is_tcp: bool) -> u32 {
        match self.translation() {
            Some(translation) if is_tcp => translation.backend,
            _ => 0,
        }
    }

    /// The translation of the socket. By reference: a copy would exceed the stack.
    #[inline(always)]
    pub fn translation(&self) -> Option<&'static Translation> {
        let Self { cookie, place } = *self;
        // SAFETY: an element of an array map, which is never freed. Only the socket that holds it writes its `given`,
        // and only after the last use of this reference.
        unsafe {
            if (*place).cookie == cookie {
                return Some(&(*place).given);
            }
            if (*place).more == 0 {
                return None;
            }
            // SAFETY: only calls of this socket write or remove the entry, and an element stays until the program ends.
            TCP_MORE.get(cookie)
        }
    }

    /// Stores the translation of the socket; false if the maps are full.
    #[inline(always)]
    pub fn put(&self, dest: &FrontendKey, choice: &Choice) -> bool {
        let Self { cookie, place } = *self;
        // SAFETY: as in `translation`; the lock lets only one socket take a free place.
        unsafe {
            if (*place).cookie != cookie {
                bpf_spin_lock((&raw mut (*place).lock).cast());
                if (*place).cookie == 0 {
                    (*place).cookie = cookie;
                }
                bpf_spin_unlock((&raw mut (*place).lock).cast());
            }
            if (*place).cookie == cookie {
                (*place).given = Translation::new(dest.addr, dest.port, choice, GENERATION.load());
                return true;
            }
        }
        put_more(cookie, place, dest, choice)
    }

    /// Removes the translation of a socket that is closed, and counts the close.
    #[inline(always)]
    pub fn release(&self) {
        if let Some(translation) = self.translation() {
            let backend = translation.backend;
            self.clear();
            stats::closed(backend);
        }
    }

    /// Removes the translation of the socket.
    #[inline(always)]
    pub fn clear(&self) {
        let Self { cookie, place } = *self;
        // SAFETY: as in `translation`; only the holder frees its place.
        unsafe {
            if (*place).cookie == cookie {
                (*place).cookie = 0;
            } else if (*place).more != 0 && TCP_MORE.remove(cookie).is_ok() {
                add(place, u32::MAX);
            }
        }
    }
}

/// Stores a translation in `TCP_MORE`. Not inlined, since the value is on the stack.
#[inline(never)]
fn put_more(cookie: u64, place: *mut TcpSock, dest: &FrontendKey, choice: &Choice) -> bool {
    let translation = Translation::new(dest.addr, dest.port, choice, GENERATION.load());
    // SAFETY: the value is not read.
    let known = unsafe { TCP_MORE.get(cookie) }.is_some();
    if TCP_MORE.insert(cookie, translation, u64::from(BPF_ANY)).is_err() {
        return false;
    }
    if !known {
        add(place, 1);
    }
    true
}

/// Adds to the count of a place; `u32::MAX` subtracts 1.
#[inline(always)]
fn add(place: *mut TcpSock, value: u32) {
    // SAFETY: as in `TcpSocket::translation`, under the lock.
    unsafe {
        bpf_spin_lock((&raw mut (*place).lock).cast());
        (*place).more = (*place).more.wrapping_add(value);
        bpf_spin_unlock((&raw mut (*place).lock).cast());
    }
}

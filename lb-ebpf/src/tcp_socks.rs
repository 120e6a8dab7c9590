//! What TCP sockets were given: kept from connect to sock_release, for getpeername and for a retry.
//!
//! A place in an array, found by the socket's cookie, costs a connection about half of what a hash does. Where the
//! place is held by a socket of 65,536 cookies ago that is still open, a hash serves.

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::generated::{bpf_get_socket_cookie, bpf_spin_lock, bpf_spin_unlock},
};
use lb_common::{Choice, FrontendKey, TcpSock, Translation, capacity};

use crate::maps::{GENERATION, TCP_MORE, TCP_SOCKS};

/// A TCP socket and its place.
pub struct TcpSocket {
    cookie: u64,
    place: Option<*mut TcpSock>,
}

impl TcpSocket {
    /// The socket of a context whose program type has bpf_get_socket_cookie (sock_addr 4.12, sock 5.6).
    #[inline(always)]
    pub fn of(ctx: *mut core::ffi::c_void) -> Self {
        // SAFETY: see above.
        let cookie = unsafe { bpf_get_socket_cookie(ctx) };
        Self { cookie, place: TCP_SOCKS.get_ptr_mut((cookie % capacity::TCP_SOCKS as u64) as u32) }
    }

    /// What the socket was given, where it stands: a copy would take more stack than there is.
    #[inline(always)]
    pub fn given(&self) -> Option<&'static Translation> {
        let place = self.place?;
        // SAFETY: an element of an array map, which stays for ever. Only the socket that holds it writes its `given`, and
        // not before it was read.
        unsafe {
            if (*place).cookie == self.cookie {
                return Some(&(*place).given);
            }
            if (*place).more == 0 {
                return None;
            }
            // SAFETY: only this socket's own calls write or remove it, and an element stays until the program has ended.
            TCP_MORE.get(self.cookie)
        }
    }

    /// Keeps what the socket is given; false when there is no room for it.
    #[inline(always)]
    pub fn put(&mut self, dest: &FrontendKey, choice: &Choice) -> bool {
        let Some(place) = self.place else { return false };
        // SAFETY: as in `given`; a free place is taken under its lock, so that two sockets cannot both take it.
        unsafe {
            if (*place).cookie != self.cookie {
                bpf_spin_lock((&raw mut (*place).lock).cast());
                if (*place).cookie == 0 {
                    (*place).cookie = self.cookie;
                }
                bpf_spin_unlock((&raw mut (*place).lock).cast());
            }
            if (*place).cookie == self.cookie {
                (*place).given = Translation::new(dest.addr, dest.port, choice, GENERATION.load());
                return true;
            }
        }
        put_more(self.cookie, place, dest, choice)
    }

    /// The socket was given nothing that still counts.
    #[inline(always)]
    pub fn clear(&mut self) {
        let Some(place) = self.place else { return };
        // SAFETY: as in `given`; only the holder frees its place.
        unsafe {
            if (*place).cookie == self.cookie {
                (*place).cookie = 0;
            } else if (*place).more != 0 && TCP_MORE.remove(self.cookie).is_ok() {
                add(place, u32::MAX);
            }
        }
    }
}

/// Keeps what a socket is given beside its place. A function of its own, since the value is made on the stack.
#[inline(never)]
fn put_more(cookie: u64, place: *mut TcpSock, dest: &FrontendKey, choice: &Choice) -> bool {
    let given = Translation::new(dest.addr, dest.port, choice, GENERATION.load());
    // SAFETY: only asked whether it is there.
    let known = unsafe { TCP_MORE.get(cookie) }.is_some();
    if TCP_MORE.insert(cookie, given, u64::from(BPF_ANY)).is_err() {
        return false;
    }
    if !known {
        add(place, 1);
    }
    true
}

/// Adds to the count of a place; `u32::MAX` takes one away.
#[inline(always)]
fn add(place: *mut TcpSock, value: u32) {
    // SAFETY: as in `TcpSocket::given`, under the lock.
    unsafe {
        bpf_spin_lock((&raw mut (*place).lock).cast());
        (*place).more = (*place).more.wrapping_add(value);
        bpf_spin_unlock((&raw mut (*place).lock).cast());
    }
}

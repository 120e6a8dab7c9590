//! The context of a socket address hook, read and written as an [`Addr`] and a port in host order.

use aya_ebpf::{EbpfContext as _, bindings::bpf_sock_addr, programs::SockAddrContext};
use lb_common::{Addr, FrontendKey, Proto};

/// The form in which the hook carries its address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// sockaddr_in
    V4,
    /// sockaddr_in6
    V6,
}

/// A context with its family. The family is a constant of each entry point, so that no branch on it is left.
pub struct SockAddr {
    ctx: SockAddrContext,
    family: Family,
}

impl SockAddr {
    #[inline(always)]
    pub fn new(ctx: SockAddrContext, family: Family) -> Self {
        Self { ctx, family }
    }

    /// aya's context, for its helpers.
    #[inline(always)]
    pub fn raw(&self) -> &SockAddrContext {
        &self.ctx
    }

    #[inline(always)]
    fn fields(&self) -> *mut bpf_sock_addr {
        self.ctx.as_ptr().cast()
    }

    /// The transport protocol, when it is one that Services have.
    #[inline(always)]
    pub fn proto(&self) -> Option<Proto> {
        // SAFETY: the context is valid for the program's run; the verifier checks each access.
        Proto::from_number(unsafe { (*self.fields()).protocol })
    }

    /// The address, IPv4 in its mapped form.
    #[inline(always)]
    pub fn addr(&self) -> Addr {
        let fields = self.fields();
        match self.family {
            // SAFETY: as above.
            Family::V4 => Addr::from_v4_word(unsafe { (*fields).user_ip4 }),
            // The kernel wants user_ip6 in single words, and LLVM would join them: hence the volatile reads.
            // SAFETY: as above.
            Family::V6 => unsafe {
                let word = core::ptr::addr_of!((*fields).user_ip6).cast::<u32>();
                Addr::from_words([
                    word.read_volatile(),
                    word.add(1).read_volatile(),
                    word.add(2).read_volatile(),
                    word.add(3).read_volatile(),
                ])
            },
        }
    }

    /// The port, host order.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        // SAFETY: as above. The port stands in network order in the lower half.
        u16::from_be(unsafe { (*self.fields()).user_port } as u16)
    }

    /// The destination as a key of `FRONTENDS`.
    #[inline(always)]
    pub fn key(&self, proto: Proto) -> FrontendKey {
        FrontendKey::new(self.addr(), self.port(), proto)
    }

    /// Whether the destination is the one that the socket is connected to, as far as IPv4 goes.
    ///
    /// The kernel sends from an IPv6 socket that is connected to a mapped address as if the peer had been named in each
    /// call (net/ipv6/udp.c, `udpv6_sendmsg`): the hook then sees a destination that no application named.
    #[inline(always)]
    pub fn is_peer(&self) -> bool {
        const ESTABLISHED: u32 = 1;
        let fields = self.fields();
        // SAFETY: as above; a socket address hook always has a socket (5.3), and these fields of it are readable (5.1).
        unsafe {
            let sk = (*fields).__bindgen_anon_1.sk;
            self.family == Family::V4
                && !sk.is_null()
                && (*sk).state == ESTABLISHED
                && (*sk).dst_ip4 == (*fields).user_ip4
                && u16::from_be((*sk).dst_port) == self.port()
        }
    }

    /// Puts another address in its place.
    #[inline(always)]
    pub fn set(&self, addr: &Addr, port: u16) {
        let fields = self.fields();
        let words = addr.words();
        // SAFETY: as above; single words, as for reading.
        unsafe {
            match self.family {
                Family::V4 => (*fields).user_ip4 = words[3],
                Family::V6 => {
                    let word = core::ptr::addr_of_mut!((*fields).user_ip6).cast::<u32>();
                    word.write_volatile(words[0]);
                    word.add(1).write_volatile(words[1]);
                    word.add(2).write_volatile(words[2]);
                    word.add(3).write_volatile(words[3]);
                }
            }
            (*fields).user_port = u32::from(port.to_be());
        }
    }
}

//! The context of a socket address hook, as an [`Addr`] and a port in host order.

use core::arch::asm;

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::{
        bpf_ktime_get_ns,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_probe_read_kernel, bpf_set_retval,
        },
    },
    programs::SockAddrContext,
};
use lb_common::{Addr, Caller, Client, EjectionKey, FrontendKey, Proto};

use crate::{
    globals::{HOST_NETNS, PROBE_READ, SET_RETVAL},
    handshakes,
    maps::{NETNS_ADDRS, POD_MODES, POD_MODES_USED},
    paths,
};

/// The call proceeds, with the address in the context.
pub const PROCEED: i32 = 1;
/// The call fails.
const REFUSE: i32 = 0;

/// The context of a hook with a sockaddr_in, or with a sockaddr_in6 (`V6`).
pub struct SockAddr<const V6: bool> {
    ctx: SockAddrContext,
}

/// The hooks for IPv4.
pub const V4: bool = false;
/// The hooks for IPv6, with mapped addresses too.
pub const V6: bool = true;

impl<const V6: bool> SockAddr<V6> {
    #[inline(always)]
    pub fn new(ctx: SockAddrContext) -> Self {
        Self { ctx }
    }

    /// The context, for the helpers of aya.
    #[inline(always)]
    pub fn raw(&self) -> &SockAddrContext {
        &self.ctx
    }

    /// Cookie of the socket's network namespace.
    #[inline(always)]
    pub fn netns(&self) -> u64 {
        // SAFETY: the context of a socket address hook, which has the helper since 5.7.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    #[inline(always)]
    fn fields(&self) -> *mut bpf_sock_addr {
        let mut fields = self.ctx.as_ptr() as u64;
        // The verifier refuses access by a pointer into the context, and the compiler would make one for a field that
        // is read here and written there.
        // SAFETY: a move of a register to itself.
        unsafe { asm!("{0} = {0}", inout(reg) fields, options(nomem, nostack)) };
        fields as *mut bpf_sock_addr
    }

    /// The socket: a socket address hook always has one (5.3).
    #[inline(always)]
    pub fn sock(&self) -> *mut core::ffi::c_void {
        // SAFETY: as in `fields`; the verifier checks each access.
        unsafe { (*self.fields()).__bindgen_anon_1.sk.cast() }
    }

    /// The transport protocol; `None` if Services cannot have it.
    #[inline(always)]
    pub fn proto(&self) -> Option<Proto> {
        Proto::from_number(self.proto_number())
    }

    /// The protocol of the socket.
    #[inline(always)]
    pub fn proto_number(&self) -> u32 {
        // SAFETY: the context is valid for the program's run; the verifier checks each access.
        unsafe { (*self.fields()).protocol }
    }

    /// The address, IPv4 as mapped.
    #[inline(always)]
    pub fn addr(&self) -> Addr {
        let fields = self.fields();
        // The kernel allows single words of user_ip6 only, and LLVM would merge them: hence the volatile reads.
        // SAFETY: as above.
        unsafe {
            if V6 {
                let word = core::ptr::addr_of!((*fields).user_ip6).cast::<u32>();
                Addr::from_words([
                    word.read_volatile(),
                    word.add(1).read_volatile(),
                    word.add(2).read_volatile(),
                    word.add(3).read_volatile(),
                ])
            } else {
                Addr::from_v4_word((*fields).user_ip4)
            }
        }
    }

    /// The port, host order.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        // SAFETY: as above. The port is in the lower half, in network order.
        u16::from_be(unsafe { (*self.fields()).user_port } as u16)
    }

    /// The destination as a key of `FRONTENDS`.
    #[inline(always)]
    pub fn key(&self, proto: Proto) -> FrontendKey {
        FrontendKey::new(self.addr(), self.port(), proto)
    }

    /// As [`Self::key`], with a protocol that the verifier does not know: see [`paths::join`].
    #[inline(always)]
    pub fn joined_key(&self, proto: Proto) -> FrontendKey {
        let mut key = self.key(proto);
        key.proto = paths::join(proto as u64, key.port) as u8;
        key
    }

    /// True if the destination is the peer of an IPv6 socket that is connected to a mapped address.
    ///
    /// The kernel sends from such a socket as if each call had named the peer (net/ipv6/udp.c, `udpv6_sendmsg`): the
    /// hook then sees a destination that the application did not name.
    #[inline(always)]
    pub fn is_peer(&self) -> bool {
        const AF_INET6: u32 = 10;
        let fields = self.fields();
        // SAFETY: as above; a socket address hook always has a socket (5.3), and these fields of it are readable (5.1).
        unsafe {
            let sk = (*fields).__bindgen_anon_1.sk;
            !V6 && !sk.is_null()
                // For an IPv4 socket the hook runs only if the call names a destination.
                && (*sk).family == AF_INET6
                && (*sk).state == handshakes::ESTABLISHED
                && (*sk).dst_ip4 == (*fields).user_ip4
                && u16::from_be((*sk).dst_port) == self.port()
        }
    }

    /// True if the destination is not on the stack of the call, as that of a system call is: io_uring keeps it
    /// elsewhere, and sends again once the socket's buffer has room (io_uring/net.c, `struct io_async_msghdr`). By then
    /// the hook has put a backend in the place of the VIP. False if the kernel does not tell.
    #[inline(always)]
    pub fn is_kept(&self) -> bool {
        /// Size of a stack of the kernel (THREAD_SIZE).
        const STACK: u64 = 16 * 1024;
        if PROBE_READ.load() == 0 {
            return false;
        }
        // The context as the kernel has it begins with pointers to socket and destination (include/linux/filter.h,
        // `struct bpf_sock_addr_kern`, since 4.17).
        let mut kernel = [0_u64; 2];
        let here = &raw mut kernel;
        // SAFETY: the helper checks the access; where the verifier does not know it, it prunes this branch, since
        // PROBE_READ is a constant.
        if unsafe { bpf_probe_read_kernel(here.cast(), size_of_val(&kernel) as u32, self.ctx.as_ptr()) } != 0 {
            return false;
        }
        let [sock, dest] = kernel;
        let mut stack = here as u64;
        // In assembly: see `UdpSocket::at`.
        // SAFETY: arithmetic on registers.
        unsafe { asm!("{0} -= {1}", inout(reg) stack, in(reg) self.sock() as u64, options(nomem, nostack)) };
        dest.wrapping_sub(sock).wrapping_sub(stack) >= STACK
    }

    /// The address to which the socket is bound.
    #[inline(always)]
    fn bound(&self) -> Option<Addr> {
        let fields = self.fields();
        // SAFETY: as above; the kernel allows single words of the addresses only: hence the volatile reads.
        unsafe {
            let sk = (*fields).__bindgen_anon_1.sk;
            if sk.is_null() {
                return None;
            }
            if !V6 {
                let word = (*sk).src_ip4;
                return if word == 0 { None } else { Some(Addr::from_v4_word(word)) };
            }
            let word = core::ptr::addr_of!((*sk).src_ip6).cast::<u32>();
            let words = [
                word.read_volatile(),
                word.add(1).read_volatile(),
                word.add(2).read_volatile(),
                word.add(3).read_volatile(),
            ];
            // Unspecified in either form. One comparison, since the verifier walks all later code for each.
            if words[0] | words[1] | words[3] == 0 { None } else { Some(Addr::from_words(words)) }
        }
    }

    /// Fails the call: with `errno` on kernels with bpf_set_retval, with EPERM on others.
    #[inline(always)]
    pub fn refuse(&self, errno: i32) -> i32 {
        if SET_RETVAL.load() != 0 {
            // SAFETY: allowed at bind, connect and sendmsg since 5.18; on older kernels the verifier prunes this
            // branch, since SET_RETVAL is a constant.
            unsafe { bpf_set_retval(-errno) };
        }
        REFUSE
    }

    /// Replaces address and port.
    #[inline(always)]
    pub fn set(&self, addr: &Addr, port: u16) {
        let fields = self.fields();
        let words = addr.words();
        // SAFETY: as above; single words, as for reading.
        unsafe {
            if V6 {
                let word = core::ptr::addr_of_mut!((*fields).user_ip6).cast::<u32>();
                word.write_volatile(words[0]);
                word.add(1).write_volatile(words[1]);
                word.add(2).write_volatile(words[2]);
                word.add(3).write_volatile(words[3]);
            } else {
                (*fields).user_ip4 = words[3];
            }
            (*fields).user_port = u32::from(port.to_be());
        }
    }
}

impl<const V6: bool> Caller for SockAddr<V6> {
    const IS_FOLLOWED: bool = true;

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no precondition.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn client(&self) -> Client {
        Client::of_netns(self.netns())
    }

    #[inline(always)]
    fn source(&self, dest: &Addr) -> Option<Addr> {
        if let Some(bound) = self.bound() {
            return Some(bound);
        }
        // SAFETY: copied at once; an element that is replaced meanwhile stays until the RCU grace period ends.
        unsafe { NETNS_ADDRS.get(self.netns()) }.and_then(|addrs| addrs.towards(dest))
    }

    #[inline(always)]
    fn is_host(&self) -> bool {
        let host = match HOST_NETNS.load() {
            // SAFETY: without a context, the helper returns the cookie of the first namespace.
            0 => unsafe { bpf_get_netns_cookie(core::ptr::null_mut()) },
            host => host,
        };
        self.netns() == host
    }

    #[inline(always)]
    fn is_bypassed(&self) -> bool {
        // SAFETY: an element of an array map, which is never freed; the agent writes it atomically.
        let used = POD_MODES_USED.get_ptr(0).is_some_and(|used| unsafe { used.read_volatile() } != 0);
        used && POD_MODES.get_ptr(self.netns()).is_some()
    }

    #[inline(always)]
    fn ejection_key(&self, service: u32) -> Option<EjectionKey> {
        // SAFETY: no precondition; a helper of socket address programs since 5.7.
        let cgroup = if self.is_host() { unsafe { bpf_get_current_cgroup_id() } } else { 0 };
        Some(EjectionKey { netns: self.netns(), cgroup, service, _pad: 0 })
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: no precondition.
        unsafe { bpf_ktime_get_ns() }
    }
}

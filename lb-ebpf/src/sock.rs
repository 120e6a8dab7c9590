//! The socket path: translation at the socket hooks, for both families.

use aya_ebpf::{EbpfContext as _, helpers::bpf_get_current_pid_tgid, programs::SockContext};
use lb_common::{
    Caller as _, Cause, Choice, Counter, FrontendKey, Proto, ServiceFlags, Tables as _, Translation, Verdict,
    WatchKind, first_look, goes_before_listener, pass_over_ejected, refusal, second_look,
};

use crate::{
    context::{PROCEED, SockAddr},
    counters::count,
    ejection,
    globals::GENERATION,
    handshakes, log,
    maps::{BACKENDS, NAMES},
    mptcp::{self, MptcpSocket},
    own, paths, stats,
    tables::Kernel,
    tcp_socks::TcpSocket,
    udp_socks::UdpSocket,
    watch,
};

/// A connect: translates a VIP to a backend. One way for TCP and UDP up to the verdict, since the verifier would walk
/// the choice for each.
#[inline(always)]
pub fn connect<const V6: bool>(ctx: &SockAddr<V6>) -> i32 {
    let Some(proto @ (Proto::Tcp | Proto::Udp)) = ctx.proto() else { return PROCEED };
    let dest = ctx.joined_key(proto);
    let is_tcp = || dest.proto == Proto::Tcp as u8;
    let Some(socket) = TcpSocket::of_connect(ctx, is_tcp()) else { return PROCEED };
    // An earlier connect of this socket failed: avoid its backend.
    let avoid = paths::join(socket.before(is_tcp()).into(), dest.port) as u32;
    let verdict = match decide(ctx, &dest, avoid) {
        Verdict::Backend(first) if first.followed.is_some() => Verdict::Backend(pass_over(ctx, &dest, avoid, &first)),
        verdict => verdict,
    };
    match verdict {
        Verdict::NotService | Verdict::NoPort if !is_tcp() => {
            if let Some(socket) = UdpSocket::of(ctx) {
                socket.forget_all(&dest.addr, dest.port);
            }
            PROCEED
        }
        Verdict::NotService => {
            forget_tcp(&socket, &dest);
            unserved(ctx, &dest, WatchKind::Connect)
        }
        Verdict::NoPort => {
            forget_tcp(&socket, &dest);
            refuse_unserved(ctx, &dest, WatchKind::Connect as u32)
        }
        Verdict::Backend(choice) => {
            if let Some(followed) = choice.followed {
                ejection::follow(ctx, choice.service, choice.backend, followed);
            }
            let kind = if is_tcp() {
                connected_tcp(ctx, &socket, &dest, &choice)
            } else {
                replace(ctx, &dest, &choice);
                WatchKind::Connect
            };
            watch::chosen(ctx, &dest, &choice, kind);
            ctx.set(&choice.addr, choice.port);
            PROCEED
        }
        Verdict::Refused(service, cause) => {
            if !is_tcp() && connects_all_the_same(ctx, service, cause) {
                if let Some(socket) = UdpSocket::of(ctx) {
                    socket.forget_all(&dest.addr, dest.port);
                }
                return PROCEED;
            }
            refuse(ctx, &dest, service, cause, WatchKind::Connect)
        }
    }
}

/// True if a UDP socket connects to a frontend without endpoints itself (`beeline.io/udp-connect`): the packet path
/// refuses its datagrams, and serves them when there are endpoints. Not in the namespace of the node, whose packets the
/// packet path does not serve.
#[inline(never)]
fn connects_all_the_same<const V6: bool>(ctx: &SockAddr<V6>, service: u32, cause: Cause) -> bool {
    cause == Cause::NoEndpoints
        && Kernel.service(service).is_some_and(|service| service.flags & ServiceFlags::UDP_CONNECT != 0)
        && !ctx.is_host()
}

/// Stores the rev-nat entry of a TCP connect; the kind of its record.
#[inline(always)]
fn connected_tcp<const V6: bool>(
    ctx: &SockAddr<V6>,
    socket: &TcpSocket,
    dest: &FrontendKey,
    choice: &Choice,
) -> WatchKind {
    if let Some(mptcp) = MptcpSocket::of(ctx) {
        mptcp.put(dest, choice);
        return WatchKind::Unfollowed;
    }
    let before = socket.before(true);
    if socket.put(dest, choice) {
        stats::reopened(before, choice);
        return WatchKind::Connect;
    }
    stats::connected(choice);
    tcp_socks_full(choice);
    WatchKind::Unfollowed
}

/// Ends the entry of an earlier connect of this socket, which connects to a destination of no Service.
#[inline(always)]
fn forget_tcp(place: &TcpSocket, dest: &FrontendKey) {
    if let Some(translation) = place.translation()
        && translation.is_forgotten_by(GENERATION.load(), &dest.addr, dest.port)
    {
        let backend = translation.backend;
        place.clear();
        stats::closed(backend);
    }
}

/// A datagram with a destination: translates a VIP to the socket's backend for it, while that backend exists.
#[inline(always)]
pub fn sendmsg<const V6: bool>(ctx: &SockAddr<V6>) -> i32 {
    if ctx.proto() != Some(Proto::Udp) {
        return PROCEED;
    }
    let dest = ctx.key(Proto::Udp);
    let mut moved = false;
    if let Some(kept) = UdpSocket::of(ctx).and_then(|socket| socket.of_vip(&dest.addr, dest.port)) {
        if kept.is_client() {
            return PROCEED;
        }
        // The mode of a pod may change while its sockets are open.
        if is_valid(&kept) && !ctx.is_bypassed() {
            ctx.set(&kept.backend_addr, kept.backend_port);
            return PROCEED;
        }
        moved = true;
    }
    match decide(ctx, &dest, 0) {
        Verdict::NotService => {
            forget_udp(ctx, &dest);
            unserved(ctx, &dest, WatchKind::Datagram)
        }
        Verdict::NoPort => {
            forget_udp(ctx, &dest);
            refuse_unserved(ctx, &dest, WatchKind::Datagram as u32)
        }
        Verdict::Backend(choice) => {
            if moved {
                count(Counter::UdpMoved);
                stats::moved(choice.service);
            }
            remember(ctx, &dest, &choice);
            watch::chosen(ctx, &dest, &choice, WatchKind::Datagram);
            ctx.set(&choice.addr, choice.port);
            PROCEED
        }
        Verdict::Refused(service, cause) => refuse(ctx, &dest, service, cause, WatchKind::Datagram),
    }
}

/// Ends the socket's entry of a backend to which it talks directly now, unless the kernel tries a datagram again.
#[inline(always)]
fn forget_udp<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey) {
    // Found anew: kept on the stack, it would be read where it is unset, which Linux 5.10 refuses.
    if !ctx.is_peer()
        && let Some(socket) = UdpSocket::of(ctx)
        && socket.may_have_entries()
        && !ctx.is_kept()
    {
        socket.forget(&dest.addr, dest.port);
    }
}

/// A received datagram: replaces the address of a backend by the VIP, and remembers a client that looks like a VIP.
#[inline(always)]
pub fn recvmsg<const V6: bool>(ctx: &SockAddr<V6>) -> i32 {
    if ctx.proto() == Some(Proto::Udp) && !show_vip(ctx) {
        remember_client(ctx);
    }
    PROCEED
}

/// A query for the peer: replaces the address of a backend by the VIP.
#[inline(always)]
pub fn getpeername<const V6: bool>(ctx: &SockAddr<V6>) -> i32 {
    match ctx.proto() {
        Some(Proto::Tcp) => {
            if let Some(socket) = TcpSocket::of(ctx.raw().as_ptr())
                && let Some(translation) = socket.translation()
                && translation.leads_to(&ctx.addr(), ctx.port())
            {
                ctx.set(&translation.vip, translation.vip_port);
            }
        }
        Some(Proto::Udp) => {
            show_vip(ctx);
        }
        _ => {
            if ctx.proto_number() == mptcp::PROTO
                && let Some(translation) = mptcp::of_peer(ctx)
            {
                ctx.set(&translation.vip, translation.vip_port);
            }
        }
    }
    PROCEED
}

/// A closed socket: removes its rev-nat entries.
#[inline(always)]
pub fn release(ctx: &SockContext) -> i32 {
    // SAFETY: the context is valid for the program's run; the verifier checks the access.
    let (proto, state) = unsafe { ((*ctx.sock).protocol, (*ctx.sock).state) };
    if proto == Proto::Tcp as u32 {
        let Some(socket) = TcpSocket::of(ctx.as_ptr()) else { return PROCEED };
        if state == handshakes::SYN_SENT {
            ejection::given_up(ctx);
            watch::given_up(ctx, &socket);
        }
        socket.release();
    } else if proto == mptcp::PROTO {
        mptcp::release(ctx);
    } else if proto == Proto::Udp as u32
        && let Some(socket) = UdpSocket::at(ctx.as_ptr())
    {
        if socket.may_have_entries() && state == handshakes::ESTABLISHED {
            ejection::closed(ctx, &socket);
        }
        socket.release();
    }
    PROCEED
}

/// Selects a backend, unless a socket of the caller's network namespace listens at the destination.
#[inline(always)]
fn decide<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey, avoid: u32) -> Verdict {
    let verdict = match choose(ctx, dest, avoid) {
        Verdict::Refused(..) => choose_again(ctx, dest),
        verdict => verdict,
    };
    match verdict {
        verdict @ (Verdict::NotService | Verdict::NoPort) => verdict,
        // Last, since it is rare, and a frame deeper in `choose` would have no room for it.
        verdict => {
            // A NodePort belongs to its Service in the node's own namespace, as with kube-proxy: see `bind_guard`.
            if own::is_own(ctx, dest) && !(ctx.is_host() && goes_before_listener(&Kernel, dest)) {
                Verdict::NotService
            } else {
                verdict
            }
        }
    }
}

/// The first step of a choice. Not inlined: the frames of callers and callees share 512 bytes of stack.
#[inline(never)]
fn choose<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey, avoid: u32) -> Verdict {
    first_look(&Kernel, ctx, dest, avoid)
}

/// The second step of a choice, after a refusal. Not inlined: see [`choose`].
#[inline(never)]
fn choose_again<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey) -> Verdict {
    second_look(&Kernel, ctx, dest)
}

/// Passes over a backend that the client's failures eject. Not inlined: see [`choose`].
#[inline(never)]
fn pass_over<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey, avoid: u32, first: &Choice) -> Choice {
    pass_over_ejected(&Kernel, ctx, dest, avoid, first)
}

/// Stores the rev-nat entry of a datagram.
#[inline(never)]
fn remember<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey, choice: &Choice) {
    let translation = Translation::new(dest.addr, dest.port, choice, GENERATION.load());
    let Some(put) = UdpSocket::of(ctx).and_then(|socket| socket.put(&translation)) else {
        return stats::connected(choice);
    };
    stats::reopened(put.replaced, choice);
    if put.overflow {
        count(Counter::UdpOverflow);
        if log::open() {
            aya_log_ebpf_macros::warn!(
                ctx.raw(),
                "UDP socket has too many VIPs: dropped its oldest translation; latest: service#{}",
                choice.service
            );
        }
    }
}

/// Stores the rev-nat entry of a connect, which ends the socket's others.
#[inline(never)]
fn replace<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey, choice: &Choice) {
    let translation = Translation::new(dest.addr, dest.port, choice, GENERATION.load());
    match UdpSocket::of(ctx).and_then(|socket| socket.replace(&translation)) {
        Some(before) => stats::reopened(before, choice),
        None => stats::connected(choice),
    }
}

/// Replaces the address of a backend by the VIP; false if the address is of no backend.
#[inline(always)]
fn show_vip<const V6: bool>(ctx: &SockAddr<V6>) -> bool {
    let Some(translation) = UdpSocket::of(ctx).and_then(|socket| socket.of_backend(&ctx.addr(), ctx.port())) else {
        return false;
    };
    ctx.set(&translation.vip, translation.vip_port);
    true
}

/// Remembers the sender of a datagram if its address and port, those of this node, are a frontend's too: the reply goes
/// to the sender, and is no request to the Service.
#[inline(always)]
fn remember_client<const V6: bool>(ctx: &SockAddr<V6>) {
    let client = ctx.key(Proto::Udp);
    if !Kernel.may_have(&client)
        || Kernel.node_addr(&client.addr).is_none()
        || (Kernel.frontend(&client).is_none() && Kernel.frontend(&client.node_port()).is_none())
    {
        return;
    }
    let replaced = UdpSocket::of(ctx).map_or(0, |socket| socket.put_client(client.addr, client.port));
    if replaced != 0 {
        stats::closed(replaced);
    }
}

/// True if the backend of a translation still belongs to its service port. Compares the address too, in case the id was
/// reused.
#[inline(always)]
fn is_valid(translation: &Translation) -> bool {
    // SAFETY: read at once; a replaced element stays until the RCU grace period ends.
    unsafe { BACKENDS.get(translation.backend) }.is_some_and(|backend| {
        backend.service == translation.service
            && backend.port_for(translation.vip_port) == translation.backend_port
            && backend.addr == translation.backend_addr
    })
}

/// Reports a TCP socket without a rev-nat entry: the connection works, and `getpeername` shows the backend.
#[inline(always)]
fn tcp_socks_full(choice: &Choice) {
    count(Counter::TcpSocksFull);
    if log::open() {
        aya_log_ebpf_macros::warn!((), "TCP_MORE is full: getpeername shows the backend of service#{}", choice.service);
    }
}

/// A destination of no Service, at an address that is no VIP of one: refuses the call if it is a cluster IP. A connect
/// of UDP is none, since resolvers make it to learn their own address; its datagrams are refused as packets.
#[inline(always)]
fn unserved<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey, kind: WatchKind) -> i32 {
    if Kernel.in_cluster_ranges(&dest.addr) { refuse_unserved(ctx, dest, kind as u32) } else { PROCEED }
}

#[inline(never)]
fn refuse_unserved<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey, kind: u32) -> i32 {
    let Some(cause) = refusal(&Kernel, ctx, dest) else {
        return PROCEED;
    };
    // The address may be the caller's own, as for an answer to a client of the same network namespace.
    if own::may_be_own(ctx, dest) {
        return PROCEED;
    }
    count(cause.counter());
    watch::refused(ctx, dest, 0, cause, kind);
    if log::open() {
        let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        if cause == Cause::UnknownPort {
            aya_log_ebpf_macros::warn!(
                ctx.raw(),
                "refused: process#{} asked for port {} of the cluster IP {:i}, which no Service has",
                pid,
                dest.port,
                dest.addr.octets
            );
        } else {
            aya_log_ebpf_macros::warn!(
                ctx.raw(),
                "refused: process#{} asked for the cluster IP {:i}, which no Service has",
                pid,
                dest.addr.octets
            );
        }
    }
    ctx.refuse(cause.errno())
}

#[inline(always)]
fn refuse<const V6: bool>(ctx: &SockAddr<V6>, dest: &FrontendKey, service: u32, cause: Cause, kind: WatchKind) -> i32 {
    count(cause.counter());
    stats::refused(service, cause);
    watch::refused(ctx, dest, service, cause, kind as u32);
    // The agent is removing a service port without a name: no record.
    if NAMES.get_ptr(service).is_some() && log::open() {
        match cause {
            Cause::NoEndpoints => {
                aya_log_ebpf_macros::warn!(
                    ctx.raw(),
                    "refused: service#{} port {} has no endpoints",
                    service,
                    dest.port
                );
            }
            Cause::NoLocalEndpoints => {
                aya_log_ebpf_macros::warn!(
                    ctx.raw(),
                    "refused: service#{} port {} has policy Local and no endpoint on this node",
                    service,
                    dest.port
                );
            }
            Cause::SourceRange => {
                aya_log_ebpf_macros::warn!(
                    ctx.raw(),
                    "refused: service#{} port {} lets in other source ranges",
                    service,
                    dest.port
                );
            }
            // Never of a service port.
            Cause::UnknownPort | Cause::UnknownClusterIp => {}
        }
    }
    ctx.refuse(cause.errno())
}

//! Which backend a destination gets: one function for the programs in the kernel, the tests and `beeline trace`.

use crate::mix::{folded, hash, scale};
use crate::{
    Addr, Affinity, AffinityKey, Backend, BackendFlags, Counter, Frontend, FrontendKey, Kind, List, MAGLEV_LEN,
    MaglevKey, NodeAddr, NodeAddrFlags, Scheduler, Service, ServiceFlags, Slot, SlotKey,
};

/// The maps that a choice reads: BPF maps in the kernel, pinned maps in `trace`, ordered maps in the tests.
pub trait Tables {
    /// Whether `FRONTENDS` can have an entry of this port, or, without a port, of this address: see [`FrontendKey::bit`]. Who
    /// does not know says yes.
    fn may_have(&self, _key: &FrontendKey) -> bool {
        true
    }
    /// An entry of `FRONTENDS`.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// An entry of `SERVICES`.
    fn service(&self, id: u32) -> Option<Service>;
    /// An entry of `SLOTS`.
    fn slot(&self, key: &SlotKey) -> Option<Slot>;
    /// An entry of `BACKENDS`.
    fn backend(&self, id: u32) -> Option<Backend>;
    /// An entry of `NODE_ADDRS`.
    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr>;
    /// Whether one of the service port's `SOURCE_RANGES` has the address.
    fn in_source_ranges(&self, service: u32, addr: &Addr) -> bool;
    /// The backend at a place of a table of `MAGLEV`, below [`crate::MAGLEV_LEN`].
    fn maglev(&self, key: &MaglevKey, place: u32) -> Option<u32>;
}

/// What changes from choice to choice: counts, turns, and who sticks to what.
pub trait State {
    /// How many sockets of this node have a backend now.
    fn open(&self, backend: u32) -> u64;
    /// Takes a turn in a list of `len` slots: the index whose turn it is. None when turns cannot be kept.
    fn turn(&self, service: u32, list: List, len: u32, stride: u32) -> Option<u32>;
    /// An entry of `AFFINITY`.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Lets a client stick to a backend from `now` on.
    fn stick(&self, key: &AffinityKey, backend: u32, now: u64);
}

/// Who opens a socket, or sends the first packet of a flow.
pub trait Caller {
    /// 32 random bits.
    fn random(&self) -> u32;
    /// 32 bits that are the same for each packet of a flow, on all nodes; for a socket, random ones.
    fn spread(&self) -> u32 {
        self.random()
    }
    /// What is the same each time that this client calls.
    fn client(&self) -> Client;
    /// Whether it is a socket of the node's own network namespace.
    fn is_host(&self) -> bool;
    /// Whether it is outside of this node.
    fn is_outside(&self) -> bool {
        false
    }
    /// Whether it is a socket of a pod that has chosen another path ([`crate::PathChoice`]). Asked only where a Service
    /// answers, so that it costs nobody else anything.
    fn is_left_alone(&self) -> bool {
        false
    }
    /// CLOCK_MONOTONIC, ns.
    fn now(&self) -> u64;
}

/// A client, as affinity, hashing and source ranges know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Client {
    /// Its address; or, for a socket, the cookie of its network namespace in the first half.
    addr: Addr,
    is_netns: bool,
}

impl Client {
    /// A socket, which has no address yet when it connects. All containers of a pod share the network namespace.
    #[inline(always)]
    #[must_use]
    pub const fn of_netns(cookie: u64) -> Self {
        Self { addr: Addr::from_words([cookie as u32, (cookie >> 32) as u32, 0, 0]), is_netns: true }
    }

    /// The sender of a packet.
    #[inline(always)]
    #[must_use]
    pub const fn of_addr(addr: Addr) -> Self {
        Self { addr, is_netns: false }
    }

    /// Its address, where it is known.
    #[inline(always)]
    #[must_use]
    pub const fn addr(&self) -> Option<Addr> {
        if self.is_netns { None } else { Some(self.addr) }
    }

    /// Its key in `AFFINITY`.
    #[inline(always)]
    #[must_use]
    pub const fn affinity_key(&self, service: u32) -> AffinityKey {
        AffinityKey { client: self.addr, service, is_netns: self.is_netns as u32 }
    }
}

/// A backend that was chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// Id of the service port.
    pub service: u32,
    /// Id of the backend.
    pub backend: u32,
    /// Its address.
    pub addr: Addr,
    /// Its port, host order.
    pub port: u16,
}

/// Why a destination is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The service port has no endpoint anywhere.
    NoEndpoints,
    /// There are endpoints, but policy Local allows none of them here.
    NoLocalEndpoints,
    /// The client is in none of the Service's source ranges.
    SourceRange,
}

impl Cause {
    /// The error that the application sees where the kernel has `bpf_set_retval` (5.18); older kernels give EPERM.
    #[inline(always)]
    #[must_use]
    pub const fn errno(self) -> i32 {
        const ECONNREFUSED: i32 = 111;
        const EHOSTUNREACH: i32 = 113;
        match self {
            Self::NoEndpoints => ECONNREFUSED,
            // No socket comes to the latter: its address is not known yet.
            Self::NoLocalEndpoints | Self::SourceRange => EHOSTUNREACH,
        }
    }

    /// What counts it.
    #[inline(always)]
    #[must_use]
    pub const fn counter(self) -> Counter {
        match self {
            Self::NoEndpoints => Counter::NoEndpoints,
            Self::NoLocalEndpoints => Counter::NoLocalEndpoints,
            Self::SourceRange => Counter::SourceRange,
        }
    }

    /// The error's name.
    #[must_use]
    pub const fn errno_name(self) -> &'static str {
        match self {
            Self::NoEndpoints => "ECONNREFUSED",
            Self::NoLocalEndpoints | Self::SourceRange => "EHOSTUNREACH",
        }
    }
}

/// What becomes of a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// No Service answers here: leave it alone.
    NotService,
    /// Goes to this backend.
    Backend(Choice),
    /// A Service that cannot answer: its id, and why.
    Refused(u32, Cause),
}

/// The list that a frontend of `kind` uses. External kinds take the cluster list for a caller on this node, whatever their
/// policy (kube-proxy, pkg/proxy/nftables/proxier.go, "simulates going up and out").
#[inline(always)]
#[must_use]
pub const fn list_for(kind: u8, service: &Service, outside: bool) -> List {
    let local = if kind == Kind::ClusterIp as u8 {
        service.flags & ServiceFlags::INTERNAL_LOCAL != 0
    } else {
        outside && service.flags & ServiceFlags::EXTERNAL_LOCAL != 0
    };
    if local { List::Local } else { List::Cluster }
}

/// Chooses a backend for `dest`. `avoid` names a backend that has just failed this caller (0 for none): another one is
/// taken where there is one, but not by a client that sticks to it.
///
/// The writer moves lengths and slots one by one (invariant I1), so a reader may meet a slot or a service that has just
/// gone. It then looks again, once, from the start; should even that index be gone, slot 0 exists as long as the list
/// has any.
#[inline(always)]
pub fn select(tables: &(impl Tables + State), caller: &impl Caller, dest: &FrontendKey, avoid: u32) -> Verdict {
    if !tables.may_have(dest) {
        return Verdict::NotService;
    }
    let mut outcome = attempt(tables, caller, dest, |service, list, choice| {
        schedule(tables, caller, dest, service, list, avoid, choice)
    });
    // A refusal is looked at twice as well: the frontend may just have moved to another service port. This is rare, and
    // any backend is right then.
    if !matches!(outcome.step, Step::NotService | Step::Chosen) {
        outcome = attempt(tables, caller, dest, |service, list, choice| {
            let index = scale(caller.random(), service.len(list));
            match tables.slot(&SlotKey::new(choice.service, list, index)) {
                Some(slot) => chosen(Step::Chosen, &slot, choice),
                None => fallback(tables, list, choice),
            }
        });
    }
    match outcome.step {
        Step::NotService => Verdict::NotService,
        Step::Chosen => Verdict::Backend(outcome.choice),
        Step::NoLocalEndpoints => Verdict::Refused(outcome.choice.service, Cause::NoLocalEndpoints),
        Step::NoEndpoints => Verdict::Refused(outcome.choice.service, Cause::NoEndpoints),
        Step::SourceRange => Verdict::Refused(outcome.choice.service, Cause::SourceRange),
        // Twice something had just gone: what stood in slot 0, if anything did.
        Step::Again if outcome.choice.backend != 0 => Verdict::Backend(outcome.choice),
        Step::Again => Verdict::Refused(outcome.choice.service, Cause::NoEndpoints),
    }
}

/// The frontend that answers at `dest`: the exact one first, then a NodePort, at the node's own addresses only.
#[inline(always)]
pub fn frontend_at(tables: &impl Tables, caller: &impl Caller, dest: &FrontendKey) -> Option<Frontend> {
    let exact = tables.frontend(dest);
    let found = match exact {
        // Nobody owns the unspecified address, under which NodePorts stand.
        None if !dest.addr.is_unspecified() => tables.frontend(&dest.node_port()),
        other => other,
    };
    let frontend = found?;
    if frontend.kind == Kind::NodePort as u8 && !is_own(tables, caller, &dest.addr) {
        return None;
    }
    Some(frontend)
}

/// Whether NodePorts answer at an address. To connect to the unspecified address means the loopback address (connect(2),
/// net/ipv4/route.c).
#[inline(always)]
pub fn is_own(tables: &impl Tables, caller: &impl Caller, addr: &Addr) -> bool {
    let addr = if addr.is_unspecified() { addr.loopback() } else { *addr };
    match tables.node_addr(&addr) {
        // A pod's loopback is the pod's own.
        Some(own) => own.flags & NodeAddrFlags::HOST_ONLY == 0 || caller.is_host(),
        None => false,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    NotService,
    Chosen,
    NoEndpoints,
    NoLocalEndpoints,
    SourceRange,
    Again,
}

/// Every field is always set, also where it has no meaning: as an enum with data this would leave registers undefined
/// on some paths, which the kernel's verifier refuses.
struct Outcome {
    step: Step,
    choice: Choice,
}

#[inline(always)]
fn attempt(
    tables: &impl Tables,
    caller: &impl Caller,
    dest: &FrontendKey,
    pick: impl FnOnce(&Service, List, Choice) -> Outcome,
) -> Outcome {
    let mut choice = Choice { service: 0, backend: 0, addr: Addr::from_words([0; 4]), port: 0 };
    let Some(frontend) = frontend_at(tables, caller, dest) else {
        return Outcome { step: Step::NotService, choice };
    };
    // Before anything is chosen, since a choice takes turns and is kept for affinity.
    if caller.is_left_alone() {
        return Outcome { step: Step::NotService, choice };
    }
    choice.service = frontend.service;
    let Some(service) = tables.service(frontend.service) else {
        return Outcome { step: Step::Again, choice };
    };
    if frontend.kind == Kind::LoadBalancer as u8
        && service.flags & ServiceFlags::SOURCE_RANGES != 0
        && let Some(source) = caller.client().addr()
        && !tables.in_source_ranges(frontend.service, &source)
    {
        return Outcome { step: Step::SourceRange, choice };
    }
    let list = list_for(frontend.kind, &service, caller.is_outside());
    if service.len(list) == 0 {
        let step = if service.cluster_len == 0 { Step::NoEndpoints } else { Step::NoLocalEndpoints };
        return Outcome { step, choice };
    }
    pick(&service, list, choice)
}

/// Chooses from a list that has an entry: the backend to which the client sticks, or one as the scheduler says.
#[inline(always)]
fn schedule(
    tables: &(impl Tables + State),
    caller: &impl Caller,
    dest: &FrontendKey,
    service: &Service,
    list: List,
    avoid: u32,
    choice: Choice,
) -> Outcome {
    if service.affinity_seconds == 0 {
        return pick(tables, caller, dest, service, list, avoid, choice);
    }
    let key = caller.client().affinity_key(choice.service);
    let now = caller.now();
    if let Some(choice) = kept(tables, &key, service, list, now) {
        tables.stick(&key, choice.backend, now);
        return Outcome { step: Step::Chosen, choice };
    }
    let outcome = pick(tables, caller, dest, service, list, avoid, choice);
    if outcome.step == Step::Chosen {
        tables.stick(&key, outcome.choice.backend, now);
    }
    outcome
}

/// The backend of `list` to which a client sticks. One that has left the list in use counts no more (semantics: rule 7).
#[inline(always)]
pub fn kept(
    tables: &(impl Tables + State),
    key: &AffinityKey,
    service: &Service,
    list: List,
    now: u64,
) -> Option<Choice> {
    let affinity = tables.affinity(key)?;
    if !affinity.lasts(service.affinity_seconds, now) {
        return None;
    }
    let Backend { addr, port, flags, service } = tables.backend(affinity.backend)?;
    let stands = service == key.service && flags & BackendFlags::of(list) != 0;
    if stands { Some(Choice { service, backend: affinity.backend, addr, port }) } else { None }
}

/// Chooses as the scheduler says. Never walks the list.
#[inline(always)]
fn pick(
    tables: &(impl Tables + State),
    caller: &impl Caller,
    dest: &FrontendKey,
    service: &Service,
    list: List,
    avoid: u32,
    choice: Choice,
) -> Outcome {
    let (len, stride, scheduler) = (service.len(list), service.stride(list), service.scheduler);
    let index = if scheduler == Scheduler::Rr as u32 || scheduler == Scheduler::Wrr as u32 {
        match tables.turn(choice.service, list, len, stride) {
            Some(index) => index,
            None => scale(caller.random(), len),
        }
    } else if scheduler == Scheduler::Sh as u32 {
        scale(hash(folded(&caller.client().addr), choice.service), len)
    } else if scheduler == Scheduler::Dh as u32 {
        scale(hash(folded(&dest.addr), choice.service), len)
    } else {
        scale(caller.spread(), len)
    };
    let at = |index| tables.slot(&SlotKey::new(choice.service, list, index));
    let by_table =
        if scheduler == Scheduler::Mh as u32 { by_maglev(tables, caller, list, choice.service) } else { None };
    let Some(mut slot) = by_table.or_else(|| at(index)) else {
        return fallback(tables, list, choice);
    };
    let counts = counts_open(scheduler);
    if len > 1 && (counts || (avoid != 0 && slot.backend == avoid)) {
        // As far away as a turn goes, since the slots of one backend mostly lie together.
        let by = if counts { 1 + scale(caller.random(), len - 1) } else { stride };
        if let Some(other) = at(after(index, by, len))
            && (slot.backend == avoid || (other.backend != avoid && better(tables, scheduler, &other, &slot)))
        {
            slot = other;
        }
    }
    chosen(Step::Chosen, &slot, choice)
}

/// The backend at the flow's place of the table, as a slot. One that has just gone counts no more: the lists follow the
/// table.
#[inline(always)]
fn by_maglev(tables: &impl Tables, caller: &impl Caller, list: List, service: u32) -> Option<Slot> {
    let place = scale(caller.spread(), MAGLEV_LEN as u32);
    let backend = tables.maglev(&MaglevKey { service, list: list as u32 }, place)?;
    let Backend { addr, port, flags, service: of } = tables.backend(backend)?;
    let stands = of == service && flags & BackendFlags::of(list) != 0;
    if stands { Some(Slot { addr, port, weight: 1, backend }) } else { None }
}

/// What stands in slot 0, if anything does, where something has just gone.
#[inline(always)]
fn fallback(tables: &impl Tables, list: List, choice: Choice) -> Outcome {
    match tables.slot(&SlotKey::new(choice.service, list, 0)) {
        Some(slot) => chosen(Step::Again, &slot, choice),
        None => Outcome { step: Step::Again, choice },
    }
}

#[inline(always)]
const fn chosen(step: Step, slot: &Slot, choice: Choice) -> Outcome {
    Outcome {
        step,
        choice: Choice { backend: slot.backend, addr: slot.addr, port: slot.port, service: choice.service },
    }
}

#[inline(always)]
const fn counts_open(scheduler: u32) -> bool {
    scheduler >= Scheduler::Lc as u32 && scheduler <= Scheduler::Nq as u32
}

/// Whether `other` is to be preferred to `slot` (Linux, net/netfilter/ipvs/ip_vs_lc.c, _wlc.c, _sed.c, _nq.c; of two
/// instead of all). A tie goes to `slot`, which came by chance as well.
#[inline(always)]
fn better(state: &impl State, scheduler: u32, other: &Slot, slot: &Slot) -> bool {
    let (mut a, mut b) = (state.open(other.backend), state.open(slot.backend));
    if scheduler == Scheduler::Lc as u32 {
        return a < b;
    }
    if scheduler == Scheduler::Nq as u32 && (a == 0 || b == 0) {
        return b != 0;
    }
    if scheduler != Scheduler::Wlc as u32 {
        (a, b) = (a + 1, b + 1);
    }
    a * u64::from(slot.weight) < b * u64::from(other.weight)
}

/// The index `by` further on; both are below `len`.
#[inline(always)]
const fn after(index: u32, by: u32, len: u32) -> u32 {
    let next = index.wrapping_add(by);
    if next >= len { next - len } else { next }
}

/// Takes a turn: the index whose turn it is, and then the next one's. A list may have become shorter since.
#[inline(always)]
#[must_use]
pub const fn take_turn(turn: u32, len: u32, stride: u32) -> (u32, u32) {
    let index = if turn < len { turn } else { 0 };
    (index, after(index, stride, len))
}

#[cfg(test)]
mod tests;

//! Chooses a backend for a destination: one function for the programs in the kernel, the tests and `beeline trace`.

mod eject;
mod input;
mod observe;
mod schedule;
mod verdict;

pub use eject::pass_over_ejected;
pub use input::{Caller, Client, Origin, State, Stateless, Tables};
pub use observe::{Access, AffinityOutcome, ListReason, Match, Observer, Pair, SelectEvent, Unobserved};
pub use schedule::take_turn;
pub use verdict::{Cause, Choice, Followed, Reason, Verdict};

use crate::{
    Addr, Frontend, FrontendKey, Kind, List, NodeAddrFlags, ServiceEntry, ServiceFlags, Slot, SlotKey, hash::scale,
};

/// Chooses a backend for `dest`. `avoid` is the backend that failed the caller just before (0 for none): another
/// backend is chosen if there is one, except for a client with affinity.
///
/// The writer changes lengths and slots one by one (invariant I1), so that a reader may meet a slot or a service port
/// that has just been removed. It then looks again, once, from the start; if that slot is missing too, slot 0 exists as
/// long as the list has any.
#[inline(always)]
pub fn select(tables: &(impl Tables + State), caller: &impl Caller, dest: &FrontendKey, avoid: u32) -> Verdict {
    select_observed(tables, caller, dest, avoid, &Unobserved)
}

/// As [`select`], and tells an observer each step.
#[inline(always)]
pub fn select_observed(
    tables: &(impl Tables + State),
    caller: &impl Caller,
    dest: &FrontendKey,
    avoid: u32,
    observer: &impl Observer,
) -> Verdict {
    let verdict = match first_look_observed(tables, caller, dest, avoid, observer) {
        Verdict::Refused(..) => second_look_observed(tables, caller, dest, observer),
        verdict => verdict,
    };
    match verdict {
        Verdict::Backend(first) => {
            let choice = eject::pass_over_ejected_observed(tables, caller, dest, avoid, &first, observer);
            if choice.followed == Some(Followed::Trial)
                && let Some(client) = caller.ejection_key(choice.service)
            {
                tables.begin_trial(&client, choice.backend, caller.now());
            }
            observer.note(|| SelectEvent::Chosen(choice));
            Verdict::Backend(choice)
        }
        Verdict::Refused(service, cause) => {
            observer.note(|| SelectEvent::Refused(service, cause));
            verdict
        }
        Verdict::NotService | Verdict::NoPort => verdict,
    }
}

/// The first of the three steps of [`select`]: the usual one, and the only one for most destinations. A refusal calls
/// for [`second_look`]; a backend that is followed, for [`pass_over_ejected`].
#[inline(always)]
pub fn first_look(tables: &(impl Tables + State), caller: &impl Caller, dest: &FrontendKey, avoid: u32) -> Verdict {
    first_look_observed(tables, caller, dest, avoid, &Unobserved)
}

#[inline(always)]
fn first_look_observed(
    tables: &(impl Tables + State),
    caller: &impl Caller,
    dest: &FrontendKey,
    avoid: u32,
    observer: &impl Observer,
) -> Verdict {
    let may_have_port = tables.may_have(dest);
    if !may_have_port && !tables.may_have(&dest.address()) {
        observer.note(|| SelectEvent::NoFrontend);
        return Verdict::NotService;
    }
    let look = Look { tables, caller, dest, observer };
    look.attempt(may_have_port, |service, list, choice| look.schedule(service, list, avoid, choice))
}

/// The second step of [`select`], after a refusal: the frontend may just have moved to another service port, or a slot
/// have been removed. This is rare, and any backend is right then. A step of its own, since the verifier would follow
/// all of it for each way to the refusal.
#[inline(always)]
pub fn second_look(tables: &(impl Tables + State), caller: &impl Caller, dest: &FrontendKey) -> Verdict {
    second_look_observed(tables, caller, dest, &Unobserved)
}

#[inline(always)]
fn second_look_observed(
    tables: &(impl Tables + State),
    caller: &impl Caller,
    dest: &FrontendKey,
    observer: &impl Observer,
) -> Verdict {
    observer.note(|| SelectEvent::SecondLook);
    let look = Look { tables, caller, dest, observer };
    // Without the first look at the port, which asks twice for what a map tells once.
    look.attempt(true, |service, list, choice| {
        let index = scale(caller.random(), service.len(list));
        match tables.slot(&SlotKey::new(choice.service, list, index)) {
            Some(slot) => {
                observer.note(|| SelectEvent::Scheduled { backend: slot.backend, reason: Reason::Random });
                Outcome::of(&slot, choice)
            }
            None => look.first_slot(list, choice),
        }
    })
}

/// True if NodePorts, or the hostPorts of this `kind`, are served at an address. A connect to the unspecified address
/// means the loopback address (connect(2), net/ipv4/route.c).
#[inline(always)]
pub fn is_served_at(tables: &impl Tables, caller: &impl Caller, kind: u8, addr: &Addr) -> bool {
    match tables.node_addr(&node_addr_key(addr)) {
        // The loopback address of a pod is the pod's own.
        Some(own) => own.serves(kind) && (own.flags & NodeAddrFlags::HOST_ONLY == 0 || caller.is_host()),
        None => false,
    }
}

/// True if the frontend of `dest` goes before a socket of the node that listens at exactly this address: a NodePort,
/// and a hostPort unless the address is a loopback address, where processes of the node reach each other.
#[inline(always)]
pub fn goes_before_listener(tables: &impl Tables, dest: &FrontendKey) -> bool {
    match tables.frontend(dest).or_else(|| tables.frontend(&dest.node_port())) {
        Some(frontend) if frontend.kind == Kind::HostPort as u8 => !dest.addr.is_loopback(),
        Some(frontend) => frontend.kind == Kind::NodePort as u8,
        None => false,
    }
}

#[inline(always)]
const fn node_addr_key(addr: &Addr) -> Addr {
    if addr.is_unspecified() { addr.loopback() } else { *addr }
}

/// True if the traffic policy of a frontend is Local for clients outside, which promises the backend their address.
#[inline(always)]
pub fn is_local_outside(tables: &impl Tables, dest: &FrontendKey) -> bool {
    let exact = tables.frontend(dest).or_else(|| tables.frontend(&dest.node_port()));
    let Some(frontend) = exact.or_else(|| tables.port_range(dest)) else {
        return false;
    };
    let reason = |service: &ServiceEntry| ListReason::of(frontend.kind, service, Origin::Outside);
    tables.service(frontend.service).is_some_and(|service| matches!(reason(&service).list(), List::Local))
}

/// True if the port of `dest` belongs to its address: to a frontend or a port range there, and to no NodePort.
/// `may_be_vip` is the first look at the address: [`Tables::may_have`].
#[inline(always)]
pub fn is_at_address(tables: &impl Tables, dest: &FrontendKey, may_be_vip: bool) -> bool {
    (tables.may_have(dest) && tables.frontend(dest).is_some()) || (may_be_vip && tables.port_range(dest).is_some())
}

/// The cause to refuse a socket's call to `dest`, for which [`select`] has found no Service; `None` if the call goes
/// on.
#[inline(always)]
pub fn refusal(tables: &impl Tables, caller: &impl Caller, dest: &FrontendKey) -> Option<Cause> {
    let cause = match vip(tables, dest) {
        Some(Vip::Cluster) => Cause::UnknownPort,
        Some(Vip::Unallotted) => Cause::UnknownClusterIp,
        Some(Vip::External) | None => return None,
    };
    // A pod with another mode reaches cluster IPs by packets.
    if caller.is_bypassed() { None } else { Some(cause) }
}

/// A kind of address of Services.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vip {
    /// A cluster IP that no interface of the node owns. The API server allots it, so that no host has it.
    Cluster,
    /// A load balancer's address or an external IP. It may also be the address of a host, even of another node.
    External,
    /// An address that the API server could allot as a cluster IP, and has not.
    Unallotted,
}

/// False if the address of `dest` is no VIP, by the first look, which spares most sockets and packets the others.
#[inline(always)]
pub fn may_be_vip(tables: &impl Tables, dest: &FrontendKey) -> bool {
    tables.may_have(&dest.address()) || tables.in_cluster_ranges(&dest.addr)
}

/// The kind of VIP that the address of `dest` is, whatever the port.
#[inline(always)]
pub fn vip(tables: &impl Tables, dest: &FrontendKey) -> Option<Vip> {
    if tables.may_have(&dest.address()) {
        match tables.frontend(&dest.address()) {
            Some(frontend) if frontend.kind == Kind::Address as u8 => return Some(Vip::Cluster),
            Some(_) => return None,
            None if tables.frontend(&dest.external_address()).is_some() => return Some(Vip::External),
            None => {}
        }
    }
    if tables.in_cluster_ranges(&dest.addr) { Some(Vip::Unallotted) } else { None }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    NotService,
    /// See [`Verdict::NoPort`].
    NoPort,
    Chosen,
    /// No endpoint, or an entry was missing.
    NoEndpoints,
    NoLocalEndpoints,
    SourceRange,
}

/// Result of a look. Every field is always set, even if it has no meaning: an enum with data would leave registers
/// undefined on some paths, which the verifier refuses.
struct Outcome {
    step: Step,
    choice: Choice,
}

impl Outcome {
    #[inline(always)]
    const fn of(slot: &Slot, choice: Choice) -> Self {
        Self { step: Step::Chosen, choice: choice.to(slot.backend, slot.addr, slot.port) }
    }

    #[inline(always)]
    const fn verdict(self) -> Verdict {
        match self.step {
            Step::NotService => Verdict::NotService,
            Step::NoPort => Verdict::NoPort,
            Step::Chosen => Verdict::Backend(self.choice),
            Step::NoLocalEndpoints => Verdict::Refused(self.choice.service, Cause::NoLocalEndpoints),
            Step::NoEndpoints => Verdict::Refused(self.choice.service, Cause::NoEndpoints),
            Step::SourceRange => Verdict::Refused(self.choice.service, Cause::SourceRange),
        }
    }
}

/// A look at the maps for one destination.
struct Look<'a, T, C, O> {
    tables: &'a T,
    caller: &'a C,
    dest: &'a FrontendKey,
    observer: &'a O,
}

/// The frontend of a destination. Every field is always set, as in [`Outcome`].
struct Found {
    /// [`Step::Chosen`] if there is one.
    step: Step,
    frontend: Frontend,
    /// Port that is added to that of the backend: the port dialled at a port range, otherwise 0.
    add: u16,
}

impl<T: Tables, C: Caller, O: Observer> Look<'_, T, C, O> {
    /// Finds frontend, service port and list, and lets `pick` choose from a list with at least one slot.
    #[inline(always)]
    fn attempt(&self, may_have_port: bool, pick: impl FnOnce(&ServiceEntry, List, Choice) -> Outcome) -> Verdict {
        self.outcome(may_have_port, pick).verdict()
    }

    #[inline(always)]
    fn outcome(&self, may_have_port: bool, pick: impl FnOnce(&ServiceEntry, List, Choice) -> Outcome) -> Outcome {
        let Self { tables, caller, observer, .. } = self;
        let Found { step, frontend, add } = self.frontend(may_have_port);
        // The address of the destination, until there is a backend's: zeros would be written by a loop.
        let mut choice =
            Choice { service: 0, backend: 0, addr: self.dest.addr, port: add, followed: None, reason: Reason::Random };
        if step != Step::Chosen {
            return Outcome { step, choice };
        }
        // Before anything is chosen, since a choice takes turns and stores affinity.
        if caller.is_bypassed() {
            observer.note(|| SelectEvent::Bypassed);
            return Outcome { step: Step::NotService, choice };
        }
        choice.service = frontend.service;
        let Some(service) = tables.service(frontend.service) else {
            observer.note(|| SelectEvent::NoService(frontend.service));
            return Outcome { step: Step::NoEndpoints, choice };
        };
        if frontend.kind == Kind::LoadBalancer as u8 && service.flags & ServiceFlags::SOURCE_RANGES != 0 {
            let Some(client) = caller.source(&self.dest.addr) else {
                observer.note(|| SelectEvent::UnknownSource);
                return Outcome { step: Step::NotService, choice };
            };
            if !tables.in_source_ranges(frontend.service, &client) {
                observer.note(|| SelectEvent::SourceRange { client, access: Access::Denied });
                return Outcome { step: Step::SourceRange, choice };
            }
            observer.note(|| SelectEvent::SourceRange { client, access: Access::Allowed });
        }
        let reason = ListReason::of(frontend.kind, &service, caller.origin());
        let list = reason.list();
        observer.note(|| SelectEvent::List { list, reason, len: service.len(list) });
        if service.len(list) == 0 {
            let step = if service.cluster_len == 0 { Step::NoEndpoints } else { Step::NoLocalEndpoints };
            return Outcome { step, choice };
        }
        if C::IS_FOLLOWED && service.eject.is_on() {
            choice.followed = Some(Followed::In(list));
        }
        pick(&service, list, choice)
    }

    /// The frontend of the destination: the exact one first, then a port of the node, at addresses of the node only,
    /// then a port range of the address. `may_have_port` is the answer of [`Tables::may_have`] for the port.
    #[inline(always)]
    fn frontend(&self, may_have_port: bool) -> Found {
        let Self { tables, caller, dest, observer } = self;
        let exact = if may_have_port { tables.frontend(dest) } else { None };
        let found = match exact {
            // The unspecified address is the key of ports of the node, and no VIP.
            None if may_have_port && !dest.addr.is_unspecified() => tables.frontend(&dest.node_port()),
            other => other,
        };
        if let Some(frontend) = found
            && (!Kind::is_port_of_node(frontend.kind) || is_served_at(*tables, *caller, frontend.kind, &dest.addr))
        {
            observer.note(|| {
                let is_exact = exact.is_some() && !dest.addr.is_unspecified();
                let matched = if is_exact { Match::Exact } else { Match::PortOfNode };
                SelectEvent::Frontend { frontend, matched }
            });
            return Found { step: Step::Chosen, frontend, add: 0 };
        }
        // Without the bit of the port, that of the address is set: see `select_observed`.
        let may_be_vip = !may_have_port || tables.may_have(&dest.address());
        if may_be_vip && let Some(frontend) = tables.port_range(dest) {
            observer.note(|| SelectEvent::Frontend { frontend, matched: Match::PortRange });
            return Found { step: Step::Chosen, frontend, add: dest.port };
        }
        observer.note(|| match found {
            None => SelectEvent::NoFrontend,
            Some(frontend) => {
                SelectEvent::NotServedAt { frontend, node_addr: tables.node_addr(&node_addr_key(&dest.addr)) }
            }
        });
        Found { step: if may_be_vip { Step::NoPort } else { Step::NotService }, frontend: Frontend::NONE, add: 0 }
    }
}

#[cfg(test)]
mod tests;

//! Which backend a destination gets: one function for the programs in the kernel, the tests and `beeline trace`.

use crate::{Addr, Frontend, FrontendKey, Kind, List, Service, ServiceFlags, Slot, SlotKey};

/// The maps that a choice reads: BPF maps in the kernel, pinned maps in `trace`, ordered maps in the tests.
pub trait Tables {
    /// An entry of `FRONTENDS`.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// An entry of `SERVICES`.
    fn service(&self, id: u32) -> Option<Service>;
    /// An entry of `SLOTS`.
    fn slot(&self, key: &SlotKey) -> Option<Slot>;
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
            Self::NoLocalEndpoints => EHOSTUNREACH,
        }
    }

    /// The error's name.
    #[must_use]
    pub const fn errno_name(self) -> &'static str {
        match self {
            Self::NoEndpoints => "ECONNREFUSED",
            Self::NoLocalEndpoints => "EHOSTUNREACH",
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

/// The list that a frontend of `kind` uses. External kinds always take the cluster list at a socket, whatever their
/// policy: every caller is local (kube-proxy, pkg/proxy/nftables/proxier.go, "simulates going up and out").
#[inline(always)]
#[must_use]
pub const fn list_for(kind: u8, service: &Service) -> List {
    if kind == Kind::ClusterIp as u8 && service.flags & ServiceFlags::INTERNAL_LOCAL != 0 {
        List::Local
    } else {
        List::Cluster
    }
}

/// Chooses a backend for `dest`, uniformly by `random`. `avoid` names a backend that has just failed this caller (0 for
/// none): its neighbour is taken when there is another.
///
/// The writer moves lengths and slots one by one (invariant I1), so a reader may meet a slot or a service that has just
/// gone. It then looks again, once, from the start; should even that index be gone, slot 0 exists as long as the list
/// has any.
#[inline(always)]
pub fn select(tables: &impl Tables, dest: &FrontendKey, avoid: u32, random: impl Fn() -> u32) -> Verdict {
    let mut outcome = attempt(tables, dest, avoid, &random);
    // A refusal is looked at twice as well: the frontend may just have moved to another service port.
    if !matches!(outcome.step, Step::NotService | Step::Chosen) {
        outcome = attempt(tables, dest, avoid, &random);
    }
    match outcome.step {
        Step::NotService => Verdict::NotService,
        Step::Chosen => Verdict::Backend(outcome.choice),
        Step::NoLocalEndpoints => Verdict::Refused(outcome.choice.service, Cause::NoLocalEndpoints),
        Step::NoEndpoints => Verdict::Refused(outcome.choice.service, Cause::NoEndpoints),
        // Twice something had just gone: what stood in slot 0, if anything did.
        Step::Again if outcome.choice.backend != 0 => Verdict::Backend(outcome.choice),
        Step::Again => Verdict::Refused(outcome.choice.service, Cause::NoEndpoints),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    NotService,
    Chosen,
    NoEndpoints,
    NoLocalEndpoints,
    Again,
}

/// Every field is always set, also where it has no meaning: as an enum with data this would leave registers undefined
/// on some paths, which the kernel's verifier refuses.
struct Outcome {
    step: Step,
    choice: Choice,
}

#[inline(always)]
fn attempt(tables: &impl Tables, dest: &FrontendKey, avoid: u32, random: &impl Fn() -> u32) -> Outcome {
    let mut choice = Choice { service: 0, backend: 0, addr: Addr { octets: [0; 16] }, port: 0 };
    let Some(frontend) = tables.frontend(dest) else {
        return Outcome { step: Step::NotService, choice };
    };
    choice.service = frontend.service;
    let Some(service) = tables.service(frontend.service) else {
        return Outcome { step: Step::Again, choice };
    };
    let list = list_for(frontend.kind, &service);
    let len = service.len(list);
    if len == 0 {
        let elsewhere = matches!(list, List::Local) && service.cluster_len > 0;
        let step = if elsewhere { Step::NoLocalEndpoints } else { Step::NoEndpoints };
        return Outcome { step, choice };
    }
    let index = scale(random(), len);
    let (step, slot) = match tables.slot(&SlotKey::new(frontend.service, list, index)) {
        None => (Step::Again, tables.slot(&SlotKey::new(frontend.service, list, 0))),
        Some(slot) if avoid != 0 && slot.backend == avoid && len > 1 => {
            let next = if index + 1 == len { 0 } else { index + 1 };
            let other = tables.slot(&SlotKey::new(frontend.service, list, next));
            (Step::Chosen, Some(other.unwrap_or(slot)))
        }
        Some(slot) => (Step::Chosen, Some(slot)),
    };
    if let Some(slot) = slot {
        choice = Choice { service: frontend.service, backend: slot.backend, addr: slot.addr, port: slot.port };
    }
    Outcome { step, choice }
}

/// Maps 32 random bits to 0..len without a division (Lemire); the bias is below len / 2^32.
#[inline(always)]
const fn scale(random: u32, len: u32) -> u32 {
    ((random as u64 * len as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Proto;
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    #[derive(Default)]
    struct Mem {
        frontends: BTreeMap<FrontendKey, Frontend>,
        services: BTreeMap<u32, Service>,
        slots: BTreeMap<SlotKey, Slot>,
    }

    impl Tables for Mem {
        fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
            self.frontends.get(key).copied()
        }
        fn service(&self, id: u32) -> Option<Service> {
            self.services.get(&id).copied()
        }
        fn slot(&self, key: &SlotKey) -> Option<Slot> {
            self.slots.get(key).copied()
        }
    }

    fn vip(port: u16) -> FrontendKey {
        FrontendKey::new(Ipv4Addr::new(10, 96, 0, 1).into(), port, Proto::Tcp)
    }

    fn mem(kind: Kind, cluster: u32, local: u32, flags: u32) -> Mem {
        let mut mem = Mem::default();
        mem.frontends.insert(vip(80), Frontend::new(1, kind));
        mem.services.insert(1, Service { cluster_len: cluster, local_len: local, flags, ..Service::default() });
        for (list, len, base) in [(List::Cluster, cluster, 10), (List::Local, local, 100)] {
            for index in 0..len {
                let addr = Ipv4Addr::new(10, 0, 0, u8::try_from(index + 1).expect("few")).into();
                mem.slots
                    .insert(SlotKey::new(1, list, index), Slot { addr, port: 8080, weight: 1, backend: base + index });
            }
        }
        mem
    }

    fn backend(verdict: Verdict) -> Option<u32> {
        match verdict {
            Verdict::Backend(choice) => Some(choice.backend),
            _ => None,
        }
    }

    #[test]
    fn what_is_no_frontend_is_left_alone() {
        assert_eq!(select(&mem(Kind::ClusterIp, 1, 0, 0), &vip(81), 0, || 0), Verdict::NotService);
    }

    #[test]
    fn every_slot_is_reached_and_none_beyond() {
        let mem = mem(Kind::ClusterIp, 3, 0, 0);
        let pick = |random| backend(select(&mem, &vip(80), 0, || random));
        assert_eq!(pick(0), Some(10));
        assert_eq!(pick(u32::MAX / 2), Some(11));
        assert_eq!(pick(u32::MAX), Some(12));
    }

    #[test]
    fn no_endpoint_refuses_and_no_local_endpoint_is_unreachable() {
        let cases = [
            (Kind::ClusterIp, 0, 0, 0, Some(Cause::NoEndpoints)),
            (Kind::ClusterIp, 0, 0, ServiceFlags::INTERNAL_LOCAL, Some(Cause::NoEndpoints)),
            (Kind::ClusterIp, 2, 0, ServiceFlags::INTERNAL_LOCAL, Some(Cause::NoLocalEndpoints)),
            (Kind::ExternalIp, 2, 0, ServiceFlags::INTERNAL_LOCAL, None),
            (Kind::LoadBalancer, 0, 0, 0, Some(Cause::NoEndpoints)),
        ];
        for (kind, cluster, local, flags, cause) in cases {
            let got = match select(&mem(kind, cluster, local, flags), &vip(80), 0, || 0) {
                Verdict::Refused(1, cause) => Some(cause),
                _ => None,
            };
            assert_eq!(got, cause, "{kind:?} {cluster} {local} {flags}");
        }
        assert_eq!(Cause::NoEndpoints.errno(), 111);
        assert_eq!(Cause::NoLocalEndpoints.errno(), 113);
    }

    #[test]
    fn internal_local_takes_the_local_list() {
        assert_eq!(
            backend(select(&mem(Kind::ClusterIp, 2, 1, ServiceFlags::INTERNAL_LOCAL), &vip(80), 0, || u32::MAX)),
            Some(100)
        );
    }

    #[test]
    fn a_retry_avoids_the_backend_that_failed_when_there_is_another() {
        let two = mem(Kind::ClusterIp, 2, 0, 0);
        assert_eq!(backend(select(&two, &vip(80), 10, || 0)), Some(11));
        assert_eq!(backend(select(&two, &vip(80), 11, || u32::MAX)), Some(10));
        assert_eq!(backend(select(&mem(Kind::ClusterIp, 1, 0, 0), &vip(80), 10, || 0)), Some(10));
    }

    #[test]
    fn a_slot_that_has_just_gone_is_not_a_refusal() {
        let mut mem = mem(Kind::ClusterIp, 3, 0, 0);
        mem.slots.remove(&SlotKey::new(1, List::Cluster, 2));
        assert_eq!(backend(select(&mem, &vip(80), 0, || u32::MAX)), Some(10));
    }
}

//! Affinity that service ports share (`beeline.io/affinity-scope`).

use super::*;
use crate::{EjectPolicy, FIRST_SCOPE, SCOPE_SIZE};

/// The number of the endpoint of a backend.
fn endpoint(backend: u32) -> u32 {
    (backend - FIRST_SCOPE) / SCOPE_SIZE
}

/// Service ports with the first two ids of one block, at ports 80 and 81 of the VIP, with backends at the same `count`
/// addresses.
fn two_ports(count: u32, eject: EjectPolicy) -> Mem {
    let service =
        ServiceEntry { affinity_seconds: 10, cluster_len: count, cluster_stride: 1, eject, ..ServiceEntry::default() };
    let mut mem = Mem::default();
    for place in 0..2 {
        let id = FIRST_SCOPE + place;
        mem.frontends.insert(vip(80 + u16::try_from(place).expect("small")), Frontend::new(id, Kind::ClusterIp));
        mem.services.insert(id, service);
        for nth in 0..count {
            let addr = IpAddr::from([10, 0, 0, u8::try_from(nth + 1).expect("few")]).into();
            let (port, backend) =
                (8080 + u16::try_from(place).expect("small"), FIRST_SCOPE + (nth + 1) * SCOPE_SIZE + place);
            mem.backends.insert(backend, Backend { addr, port, flags: BackendFlags::CLUSTER, service: id });
            mem.slots.insert(SlotKey::new(id, List::Cluster, nth), Slot { addr, port, weight: 1, backend });
        }
    }
    mem
}

#[test]
fn a_client_meets_one_endpoint_at_all_ports_of_a_service() {
    let mem = two_ports(8, EjectPolicy::default());
    let mut met = BTreeMap::<u32, u32>::new();
    for netns in 1..50 {
        let client = Client::new(netns);
        let ask = |port| backend(select(&mem, &client, &vip(port), 0)).expect("a backend");
        // Either port may be the first.
        let [first, other] = if netns % 2 == 0 { [80, 81] } else { [81, 80] };
        let chosen = ask(first);
        assert_eq!(chosen % SCOPE_SIZE, u32::from(first) - 80, "a backend of the port itself");
        for _ in 0..5 {
            assert_eq!([endpoint(ask(other)), ask(first)], [endpoint(chosen), chosen]);
        }
        *met.entry(endpoint(chosen)).or_default() += 1;
    }
    assert_eq!(mem.affinity.borrow().len(), 49, "one entry a client");
    assert!(met.len() > 4, "{met:?}");
}

#[test]
fn an_endpoint_that_a_port_does_not_have_is_replaced_at_all_ports() {
    let mut mem = two_ports(2, EjectPolicy::default());
    let client = Client::new(1);
    let ask = |mem: &Mem, port| backend(select(mem, &client, &vip(port), 0)).expect("a backend");
    let gone = endpoint(ask(&mem, 80));
    mem.backends.remove(&(FIRST_SCOPE + gone * SCOPE_SIZE + 1));
    let stays = Slot { ..mem.slots[&SlotKey::new(FIRST_SCOPE + 1, List::Cluster, 2 - gone)] };
    mem.slots.insert(SlotKey::new(FIRST_SCOPE + 1, List::Cluster, 0), stays);
    mem.services.get_mut(&(FIRST_SCOPE + 1)).expect("the port").cluster_len = 1;
    let next = endpoint(ask(&mem, 81));
    assert_ne!(next, gone);
    assert_eq!(endpoint(ask(&mem, 80)), next);
}

#[test]
fn an_ejected_endpoint_is_left_at_all_ports() {
    let eject = EjectPolicy { failures: 1, window: 10, seconds: 30, cluster_most: 4, ..EjectPolicy::default() };
    let mem = two_ports(8, eject);
    let client = Client::new(1);
    let ask = |port| backend(select(&mem, &client, &vip(port), 0)).expect("a backend");
    let key = client.ejection_key(FIRST_SCOPE).expect("a client");
    for _ in 0..3 {
        let failing = ask(80);
        mem.ejections.borrow_mut().entry(key).or_insert(Ejections::EMPTY).fail(failing, &eject, 0);
        let next = ask(80);
        assert_ne!(next, failing);
        assert_eq!(endpoint(ask(81)), endpoint(next));
    }
}

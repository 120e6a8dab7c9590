//! Adoption of maps: ids continue, and oddities are reported.

use std::net::Ipv4Addr;

use lb_common::{Backend, FIRST_SCOPE, Frontend, FrontendKey, Kind, List, Proto, ServiceEntry, Slot, SlotKey};

use super::*;
use crate::{objects::Key, op::Table};
use lb_common::Family;

fn slot(backend: u32) -> Slot {
    Slot { addr: Ipv4Addr::new(10, 0, 0, 1).into(), port: 80, weight: 1, backend }
}

fn whole() -> Dump {
    let mut dump = Dump::default();
    let service = Key::new("default", "a");
    dump.names.insert(3, PortKey { service, name: "".into(), proto: Proto::Tcp, family: Family::V4 });
    dump.services.insert(3, ServiceEntry { cluster_len: 1, ..ServiceEntry::default() });
    dump.slots.insert(SlotKey::new(3, List::Cluster, 0), slot(8));
    let Slot { addr, port, .. } = slot(8);
    dump.backends.insert(8, Backend { addr, port, flags: 1, service: 3 });
    let key = FrontendKey::new(Ipv4Addr::new(10, 96, 0, 1).into(), 80, Proto::Tcp);
    dump.frontends.insert(key, Frontend::new(3, Kind::ClusterIp));
    dump.with_bits()
}

fn check(change: impl FnOnce(&mut Dump), oddities: &[&str]) -> Shadow {
    let mut dump = whole();
    change(&mut dump);
    let (shadow, odd) = Shadow::from_dump(&dump);
    assert_eq!(odd, oddities);
    assert_eq!(shadow.to_dump(), dump);
    for table in Table::ALL {
        assert_eq!(shadow.count(table), dump.count(table), "{table:?}");
    }
    shadow
}

#[test]
fn i7_ids_continue_after_the_highest_id_in_any_map() {
    let take = |shadow: &Shadow| {
        let (mut ports, mut backends) = shadow.ids();
        (ports.take(|id| shadow.port_in_use(id)), backends.take(|id| shadow.backend_in_use(id)))
    };
    assert_eq!(take(&check(|_| {}, &[])), (4, 9));
    let dangling = check(
        |dump| dump.slots.values_mut().for_each(|at| *at = slot(FIRST_SCOPE - 1)),
        &["the Cluster list of default/a/TCP names a backend that is not its own", "1 backends are named by no slot"],
    );
    assert_eq!(take(&dangling), (4, 1));
    assert!(dangling.backend_in_use(FIRST_SCOPE - 1));
    let frontend = check(
        |dump| dump.frontends.values_mut().for_each(|frontend| frontend.service = 7),
        &["service port 7 has no name"],
    );
    assert_eq!(take(&frontend), (8, 9));
}

#[test]
fn a_frontend_without_its_bit_is_reported() {
    check(|dump| dump.frontend_bits.clear(), &["1 frontends do not answer: FRONTEND_BITS has no bit for them"]);
}

#[test]
fn a_gap_a_duplicate_name_and_a_stray_slot_are_reported() {
    check(
        |dump| {
            let services = dump.services[&3];
            dump.services.insert(3, ServiceEntry { cluster_len: 4, ..services });
            dump.slots.insert(SlotKey::new(3, List::Cluster, 2), slot(8));
            dump.slots.insert(SlotKey::new(3, List::Cluster, u32::MAX), slot(8));
            dump.slots.insert(SlotKey { service: 3, list: 9, index: 0 }, slot(8));
            let name = dump.names[&3].clone();
            dump.names.insert(5, name);
        },
        &[
            "the Cluster list of default/a/TCP has length 4, and 2 slots below that",
            "service ports 3 and 5 both are default/a/TCP",
            "service port 5, default/a/TCP, has no entry in SERVICES",
            "2 slots belong to no list",
        ],
    );
}

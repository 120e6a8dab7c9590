//! Port ranges: which destinations they have, and to which port of the backend these lead.

use super::*;

/// Service port 1 with port 80 of the VIP, and with the ports 5060 to 5063 of the VIP, which lead to the port dialled
/// and `offset`.
fn ranged(offset: u16) -> Mem {
    let mut mem = plain(Kind::ClusterIp, 2, 0, 0);
    mem.frontends.insert(vip(80).address(), Frontend::new(1, Kind::Address));
    mem.blocks.push((FrontendKey { block: 3, ..vip(5060) }, Frontend::new(2, Kind::ClusterIp)));
    for (index, backend) in [(0, 20), (1, 21)] {
        let addr = IpAddr::from([10, 0, 1, 1 + u8::try_from(index).expect("few")]).into();
        mem.slots.insert(SlotKey::new(2, List::Cluster, index), Slot { addr, port: offset, weight: 1, backend });
        let flags = BackendFlags::CLUSTER | BackendFlags::OFFSET;
        mem.backends.insert(backend, Backend { addr, port: offset, flags, service: 2 });
    }
    mem.services.insert(2, ServiceEntry { cluster_len: 2, cluster_stride: 1, ..ServiceEntry::default() });
    mem
}

fn port_of(mem: &Mem, dest: &FrontendKey) -> Option<u16> {
    match select(mem, &Client::new(1), dest, 0) {
        Verdict::Backend(choice) => Some(choice.port),
        _ => None,
    }
}

#[test]
fn a_port_of_a_range_is_kept_or_shifted() {
    for (dialled, offset, port) in
        [(5060, 0, 5060), (5063, 0, 5063), (5061, 1000, 6061), (5062, 0_u16.wrapping_sub(62), 5000)]
    {
        assert_eq!(port_of(&ranged(offset), &vip(dialled)), Some(port), "{dialled} {offset}");
    }
    // With affinity, for which the port comes from the backend, and by a Maglev table.
    let mut mem = ranged(1000);
    mem.services.entry(2).and_modify(|service| service.affinity_seconds = 10);
    assert_eq!([5060, 5061, 5060].map(|port| port_of(&mem, &vip(port))), [Some(6060), Some(6061), Some(6060)]);
    assert_eq!(mem.affinity.borrow().len(), 1, "one entry for all ports");
    let mut mem = ranged(1000);
    mem.services.entry(2).and_modify(|service| service.scheduler = Scheduler::Mh as u32);
    mem.maglev.insert(MaglevKey { service: 2, list: 0 }, std::vec![21; crate::MAGLEV_LEN]);
    assert_eq!(port_of(&mem, &vip(5060)), Some(6060));
}

#[test]
fn ports_of_no_range_are_refused_and_exact_ports_go_first() {
    let mut mem = ranged(0);
    for dest in [vip(5059), vip(5064)] {
        assert_eq!(select(&mem, &Client::new(1), &dest, 0), Verdict::NoPort);
        assert_eq!(refusal(&mem, &Client::new(1), &dest), Some(Cause::UnknownPort));
    }
    assert_eq!(select(&mem, &Client::new(1), &key("192.0.2.1", 5060), 0), Verdict::NotService);
    let other_proto = FrontendKey::new(vip(1).addr, 5060, Proto::Udp);
    assert_eq!(select(&mem, &Client::new(1), &other_proto, 0), Verdict::NoPort);
    // A port of the Service within its range, and a NodePort elsewhere with a port of the range.
    mem.frontends.insert(vip(5061), Frontend::new(1, Kind::ClusterIp));
    let node_port = key("0.0.0.0", 5062);
    mem.frontends.insert(node_port, Frontend::new(1, Kind::NodePort));
    assert_eq!([5060, 5061, 5062].map(|port| port_of(&mem, &vip(port))), [Some(5060), Some(8080), Some(5062)]);
    assert!(is_at_address(&mem, &vip(5062), true) && !is_at_address(&mem, &key("192.0.2.1", 5062), true));
}

#[test]
fn a_range_has_its_own_policies() {
    let mut mem = ranged(0);
    mem.blocks[0].1 = Frontend::new(2, Kind::LoadBalancer);
    mem.services.entry(2).and_modify(|service| {
        service.flags = ServiceFlags::EXTERNAL_LOCAL | ServiceFlags::SOURCE_RANGES;
    });
    assert!(is_local_outside(&mem, &vip(5060)) && !is_local_outside(&mem, &vip(5064)));
    let verdict = select(&mem, &Outside("198.51.100.7"), &vip(5060), 0);
    assert_eq!(verdict, Verdict::Refused(2, Cause::SourceRange));
    mem.services.entry(2).and_modify(|service| service.flags = ServiceFlags::EXTERNAL_LOCAL);
    let verdict = select(&mem, &Outside("198.51.100.7"), &vip(5060), 0);
    assert_eq!(verdict, Verdict::Refused(2, Cause::NoLocalEndpoints));
}

struct Outside(&'static str);

impl Caller for Outside {
    fn random(&self) -> u32 {
        0
    }
    fn client(&self) -> super::super::Client {
        super::super::Client::of_addr(self.0.parse::<IpAddr>().expect("an address").into())
    }
    fn is_host(&self) -> bool {
        false
    }
    fn origin(&self) -> Origin {
        Origin::Outside
    }
    fn now(&self) -> u64 {
        0
    }
}

/// Counts the look-ups of a call to an address of no Service.
#[test]
fn a_call_to_an_address_of_no_service_costs_a_look_at_two_bits() {
    struct Counting(Mem, RefCell<Vec<&'static str>>);
    impl Tables for Counting {
        fn may_have(&self, key: &FrontendKey) -> bool {
            self.1.borrow_mut().push(if key.is_address() { "bit of the address" } else { "bit of the port" });
            self.0.may_have(key)
        }
        fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
            self.1.borrow_mut().push("frontend");
            self.0.frontend(key)
        }
        fn port_range(&self, dest: &FrontendKey) -> Option<Frontend> {
            self.1.borrow_mut().push("range");
            self.0.port_range(dest)
        }
        fn service(&self, id: u32) -> Option<ServiceEntry> {
            self.0.service(id)
        }
        fn slot(&self, key: &SlotKey) -> Option<Slot> {
            self.0.slot(key)
        }
        fn backend(&self, id: u32) -> Option<Backend> {
            self.0.backend(id)
        }
        fn node_addr(&self, addr: &Addr) -> Option<NodeAddr> {
            self.0.node_addr(addr)
        }
        fn in_source_ranges(&self, service: u32, addr: &Addr) -> bool {
            self.0.in_source_ranges(service, addr)
        }
        fn maglev(&self, key: &MaglevKey, place: u32) -> Option<u32> {
            self.0.maglev(key, place)
        }
    }
    impl State for Counting {
        fn open_sockets(&self, backend: u32) -> u64 {
            self.0.open_sockets(backend)
        }
        fn turn(&self, service: u32, list: List, len: u32, stride: u32) -> Option<u32> {
            self.0.turn(service, list, len, stride)
        }
        fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
            self.0.affinity(key)
        }
        fn set_affinity(&self, key: &AffinityKey, backend: u32, now: u64) {
            self.0.set_affinity(key, backend, now);
        }
    }
    let look_ups = |dest: &FrontendKey| {
        let counting = Counting(ranged(0), RefCell::default());
        let _verdict = select(&counting, &Client::new(1), dest, 0);
        counting.1.into_inner()
    };
    // The second look is the first one of `may_be_vip`, which programs do not repeat.
    assert_eq!(look_ups(&key("192.0.2.1", 5060)), ["bit of the port", "bit of the address"]);
    assert_eq!(look_ups(&key("192.0.2.1", 80)), ["bit of the port", "frontend", "frontend", "bit of the address"]);
    assert_eq!(look_ups(&vip(80)), ["bit of the port", "frontend"]);
    assert_eq!(look_ups(&vip(5060)), ["bit of the port", "bit of the address", "range"]);
}

//! Beeline's answers: the objects through the code of the agent into maps in memory, and `select` over these.

use std::{
    cell::Cell,
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
};

use ipnet::IpNet;
use lb_agent::reconcile::Reconciler;
use lb_common::{
    Addr, Backend, Caller, Cause, Client, ClusterRanges, Family, Frontend, FrontendKey, Kind, List, MaglevKey,
    NodeAddr, Proto, SelectEvent, ServiceEntry, Slot, SlotKey, Stateless, Tables, Verdict, Vip, refusal,
    select_observed, vip,
};
use lb_core::{
    event::{Event, Object, ObjectKind},
    model::{Settings, cluster_ranges},
    objects::Key,
    store::{Dump, MemoryStore},
};
use lb_sources::{api, convert::ApiObject};
use serde_json::Value;

use crate::{
    answer::{Answer, Origin, Outcome, Packet},
    objects::{NODE, Objects},
};

/// The agent of the node.
pub struct Beeline {
    reconciler: Reconciler<MemoryStore>,
    cluster_ranges: ClusterRanges,
}

impl Beeline {
    pub fn new(settings: Settings, node: &Value, addresses: &BTreeSet<IpAddr>, ranges: &[IpNet]) -> Self {
        let mut reconciler = Reconciler::new(MemoryStore::default(), NODE, settings);
        reconciler.handle([
            Event::NodeAddresses(addresses.iter().copied().collect()),
            Event::Replace(ObjectKind::Node, converted::<api::Node>(std::slice::from_ref(node))),
            Event::Replace(ObjectKind::Endpoints, Vec::new()),
        ]);
        Self { reconciler, cluster_ranges: cluster_ranges::value(ranges) }
    }

    /// Makes these all objects, and returns them as they were read.
    pub fn replace(&mut self, objects: &Objects) -> Vec<Object> {
        let services = converted::<api::Service>(&objects.services);
        let slices = converted::<api::EndpointSlice>(&objects.slices);
        self.reconciler.handle([
            Event::Replace(ObjectKind::Service, services.clone()),
            Event::Replace(ObjectKind::EndpointSlice, slices.clone()),
        ]);
        let report = self.reconciler.pass();
        assert!(report.failure.is_none() && report.waiting.is_empty(), "{report:?}");
        services.into_iter().chain(slices).collect()
    }

    /// Ready endpoints on the node that the Service's `healthCheckNodePort` tells, for each family with an answer.
    pub fn health(&self, service: &Key) -> Option<(NonZeroU16, Vec<(Family, usize)>)> {
        let health = self.reconciler.spec(service).health?;
        let counts = Family::ALL.into_iter().filter_map(|family| Some((family, health.ready[family]?)));
        Some((health.port, counts.collect()))
    }

    fn dump(&self) -> &Dump {
        &self.reconciler.store().dump
    }

    /// Frontends without those of NodePorts.
    pub fn frontends(&self) -> BTreeSet<(SocketAddr, Proto)> {
        let keys = self.dump().frontends.keys().filter(|key| !key.is_address() && !key.addr.is_unspecified());
        keys.map(|key| (SocketAddr::new(key.addr.to_ip(), key.port), proto(key))).collect()
    }

    /// Addresses of `spec.clusterIPs`.
    pub fn cluster_ips(&self) -> BTreeSet<IpAddr> {
        let frontends = self.dump().frontends.iter().filter(|(_, frontend)| frontend.kind == Kind::Address as u8);
        frontends.map(|(key, _)| key.addr.to_ip()).collect()
    }

    /// Protocols and ports of NodePorts.
    pub fn node_ports(&self) -> BTreeSet<(u16, Proto)> {
        let keys = self.dump().frontends.keys().filter(|key| !key.is_address() && key.addr.is_unspecified());
        keys.map(|key| (key.port, proto(key))).collect()
    }

    /// Answers a packet, or the call of a socket for a client of the node.
    pub fn answer(&self, packet: &Packet<'_>) -> Answer {
        let maps = Maps { dump: self.dump(), cluster_ranges: self.cluster_ranges };
        let dest = FrontendKey::new(packet.to.ip().into(), packet.to.port(), packet.proto);
        let caller = PacketCaller(packet);
        let list = Cell::new(List::Cluster);
        let verdict = select_observed(&maps, &caller, &dest, 0, &|event| {
            if let SelectEvent::List { list: chosen, .. } = event {
                list.set(chosen);
            }
        });
        match verdict {
            Verdict::Backend(choice) => {
                let (service, list) = (choice.service, list.get());
                let range = SlotKey::new(service, list, 0)..=SlotKey::new(service, list, u32::MAX);
                let slots = maps.dump.slots.range(range);
                let to = slots.map(|(_, slot)| SocketAddr::new(slot.addr.to_ip(), slot.port)).collect();
                let affinity = maps.dump.services[&service].affinity_seconds;
                Answer { outcome: Outcome::Endpoints(to), affinity_seconds: (affinity != 0).then_some(affinity) }
            }
            Verdict::Refused(_, cause) => refused(cause).into(),
            Verdict::NotService | Verdict::NoPort if packet.origin == Origin::Outside => match vip(&maps, &dest) {
                Some(Vip::Cluster | Vip::Unallotted) => Outcome::Rejected.into(),
                Some(Vip::External) | None => Outcome::Unchanged.into(),
            },
            Verdict::NotService | Verdict::NoPort => {
                refusal(&maps, &caller, &dest).map_or(Outcome::Unchanged, refused).into()
            }
        }
    }
}

fn refused(cause: Cause) -> Outcome {
    match cause {
        Cause::NoEndpoints | Cause::UnknownPort => Outcome::Rejected,
        Cause::NoLocalEndpoints | Cause::SourceRange | Cause::UnknownClusterIp => Outcome::Dropped,
    }
}

fn proto(key: &FrontendKey) -> Proto {
    Proto::from_number(key.proto.into()).expect("a protocol of Services")
}

/// Reads objects as the source of an API server does.
fn converted<T: ApiObject>(values: &[Value]) -> Vec<Object> {
    let read =
        |value: &Value| serde_json::from_value::<T>(value.clone()).unwrap_or_else(|error| panic!("{error}: {value}"));
    values.iter().filter_map(|value| read(value).convert(None)).collect()
}

/// A packet as a caller. Its random number is always 0.
struct PacketCaller<'a>(&'a Packet<'a>);

impl Caller for PacketCaller<'_> {
    fn random(&self) -> u32 {
        0
    }
    fn client(&self) -> Client {
        match self.0.origin {
            Origin::Process => Client::of_netns(1),
            Origin::Pod => Client::of_netns(2),
            Origin::Outside => Client::of_addr(self.0.from.into()),
        }
    }
    fn source(&self, _: &Addr) -> Option<Addr> {
        Some(self.0.from.into())
    }
    fn is_host(&self) -> bool {
        self.0.origin == Origin::Process
    }
    fn origin(&self) -> lb_common::Origin {
        match self.0.origin {
            Origin::Process | Origin::Pod => lb_common::Origin::Node,
            Origin::Outside => lb_common::Origin::Outside,
        }
    }
    fn now(&self) -> u64 {
        0
    }
}

/// The maps with the ranges of cluster IPs, which no dump contains.
struct Maps<'a> {
    dump: &'a Dump,
    cluster_ranges: ClusterRanges,
}

impl Tables for Maps<'_> {
    fn may_have(&self, key: &FrontendKey) -> bool {
        self.dump.may_have(key)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.dump.frontend(key)
    }
    fn in_cluster_ranges(&self, addr: &Addr) -> bool {
        self.cluster_ranges.contain(addr)
    }
    fn service(&self, id: u32) -> Option<ServiceEntry> {
        self.dump.service(id)
    }
    fn slot(&self, key: &SlotKey) -> Option<Slot> {
        self.dump.slot(key)
    }
    fn backend(&self, id: u32) -> Option<Backend> {
        self.dump.backend(id)
    }
    fn node_addr(&self, addr: &Addr) -> Option<NodeAddr> {
        self.dump.node_addr(addr)
    }
    fn in_source_ranges(&self, service: u32, addr: &Addr) -> bool {
        self.dump.in_source_ranges(service, addr)
    }
    fn maglev(&self, key: &MaglevKey, place: u32) -> Option<u32> {
        self.dump.maglev(key, place)
    }
}

impl Stateless for Maps<'_> {}

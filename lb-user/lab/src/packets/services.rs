//! Service ports written into the maps as the agent writes them.

use std::net::SocketAddr;

use aya::maps::lpm_trie::Key;
use lb_common::{
    Addr, Backend, BackendFlags, Frontend, FrontendKey, Kind, List, Maglev, MaglevKey, Proto, Range, Scheduler,
    ServiceEntry, ServiceFlags, Slot, SlotKey,
};

use super::object::TcPrograms;

/// A service port to be served.
#[derive(Clone, Debug)]
pub struct FixtureService {
    proto: Proto,
    frontends: Vec<(Kind, SocketAddr)>,
    backends: Vec<SocketAddr>,
    ranges: Vec<(std::net::IpAddr, u32)>,
    /// Blocks of port ranges at cluster IPs: the first port, and [`FrontendKey::block`].
    blocks: Vec<(SocketAddr, u8)>,
    service: ServiceEntry,
}

/// A service port in the maps.
#[derive(Clone, Debug)]
pub struct ProgrammedService {
    port: FixtureService,
    /// Id of the service port.
    pub id: u32,
}

impl FixtureService {
    fn new(proto: Proto) -> Self {
        let service = ServiceEntry { scheduler: Scheduler::Random as u32, ..ServiceEntry::default() };
        Self { proto, frontends: Vec::new(), backends: Vec::new(), ranges: Vec::new(), blocks: Vec::new(), service }
    }

    /// A TCP port without frontends and backends.
    pub fn tcp() -> Self {
        Self::new(Proto::Tcp)
    }

    /// A UDP port.
    pub fn udp() -> Self {
        Self::new(Proto::Udp)
    }

    /// An SCTP port.
    pub fn sctp() -> Self {
        Self::new(Proto::Sctp)
    }

    fn at(mut self, kind: Kind, frontend: &str) -> Self {
        self.frontends.push((kind, socket(frontend)));
        self
    }

    /// Adds a frontend of kind NodePort, as in `0.0.0.0:30080`.
    pub fn node_port(self, frontend: &str) -> Self {
        self.at(Kind::NodePort, frontend)
    }

    /// Adds a hostPort of a pod of this node, with a hostIP or as in `0.0.0.0:30080`.
    pub fn host_port(self, frontend: &str) -> Self {
        self.at(Kind::HostPort, frontend).external_local()
    }

    /// Adds a frontend of kind ClusterIP.
    pub fn cluster_ip(self, frontend: &str) -> Self {
        self.at(Kind::ClusterIp, frontend)
    }

    /// Adds a frontend of kind LoadBalancer.
    pub fn load_balancer(self, frontend: &str) -> Self {
        self.at(Kind::LoadBalancer, frontend)
    }

    /// Adds a block of a port range at a cluster IP: its first port, and [`FrontendKey::block`]. The port of each
    /// backend is an offset then.
    pub fn port_block(mut self, first: &str, block: u8) -> Self {
        self.blocks.push((socket(first), block));
        self
    }

    /// Sets the backends. Pods of this node have addresses of 10.0.1.0/24 or fd00:0:0:1::/64.
    pub fn backends(mut self, backends: &[&str]) -> Self {
        self.backends = backends.iter().map(|backend| socket(backend)).collect();
        self
    }

    /// Sets externalTrafficPolicy: Local.
    pub fn external_local(mut self) -> Self {
        self.service.flags |= ServiceFlags::EXTERNAL_LOCAL;
        self
    }

    /// Sets internalTrafficPolicy: Local.
    pub fn internal_local(mut self) -> Self {
        self.service.flags |= ServiceFlags::INTERNAL_LOCAL;
        self
    }

    /// Sets loadBalancerSourceRanges.
    pub fn source_ranges(mut self, ranges: &[&str]) -> Self {
        self.service.flags |= ServiceFlags::SOURCE_RANGES;
        self.ranges = ranges
            .iter()
            .map(|range| {
                let (addr, bits) = range.split_once('/').expect("a prefix");
                (addr.parse().expect("an address"), bits.parse().expect("a length"))
            })
            .collect();
        self
    }

    /// Sets ClientIP affinity with this time-out.
    pub fn affinity(mut self, seconds: u32) -> Self {
        self.service.affinity_seconds = seconds;
        self
    }

    /// Sets the scheduler.
    pub fn scheduler(mut self, scheduler: Scheduler) -> Self {
        self.service.scheduler = scheduler as u32;
        self
    }
}

/// The id of a backend, derived from its address.
pub(crate) fn id_of(service: u32, backend: SocketAddr) -> u32 {
    let last = match backend.ip() {
        std::net::IpAddr::V4(ip) => u32::from(ip.octets()[2]) << 8 | u32::from(ip.octets()[3]),
        std::net::IpAddr::V6(ip) => u32::from(ip.segments()[3]) << 8 | u32::from(ip.segments()[7]),
    };
    service << 16 | last
}

/// True if the `nodeName` of an endpoint with this address names this node: for the pods `pod1` and `pod2`, and for one
/// pod behind `bridge`.
fn is_here(addr: SocketAddr) -> bool {
    match addr.ip() {
        std::net::IpAddr::V4(ip) => ip.octets()[..3] == [10, 0, 1] || ip.octets() == [10, 0, 6, 1],
        std::net::IpAddr::V6(ip) => {
            ip.segments()[..4] == [0xfd00, 0, 0, 1] || ip.segments() == [0xfd00, 0, 0, 6, 0, 0, 0, 1]
        }
    }
}

impl ProgrammedService {
    /// Writes a service port under an id.
    pub fn new(object: &mut TcPrograms, port: FixtureService, id: u32) -> Self {
        let served = Self { port, id };
        served.write_backends(object);
        let proto = served.port.proto;
        for &(addr, bits) in &served.port.ranges {
            let bits = 32 + bits + if addr.is_ipv4() { 96 } else { 0 };
            let key = Key::new(bits, Range { service: id, addr: addr.into() });
            object.source_ranges().insert(&key, 1, 0).expect("room");
        }
        for &(kind, addr) in &served.port.frontends {
            let key = FrontendKey::new(addr.ip().into(), addr.port(), proto);
            object.put_frontend(key, Frontend::new(id, kind));
            match kind {
                Kind::ClusterIp => object.put_frontend(key.address(), Frontend::new(id, Kind::Address)),
                Kind::LoadBalancer => {
                    object.put_frontend(key.external_address(), Frontend::new(id, Kind::ExternalAddress));
                }
                _ => {}
            }
        }
        for &(first, block) in &served.port.blocks {
            let key = FrontendKey { block, ..FrontendKey::new(first.ip().into(), first.port(), proto) };
            object.put_frontend(key, Frontend::new(id, Kind::ClusterIp));
            object.put_frontend(key.address(), Frontend::new(id, Kind::Address));
        }
        served
    }

    /// Replaces the backends.
    pub fn change(&mut self, object: &mut TcPrograms, backends: &[&str]) {
        self.clear_backends(object);
        self.port = self.port.clone().backends(backends);
        self.write_backends(object);
    }

    /// Makes a backend serving-terminating: it keeps its flows and gets no new ones.
    pub fn drain(&mut self, object: &mut TcPrograms, backend: &str) {
        let (addr, id) = (socket(backend), id_of(self.id, socket(backend)));
        let left: Vec<String> =
            self.port.backends.iter().filter(|&&other| other != addr).map(ToString::to_string).collect();
        self.change(object, &left.iter().map(String::as_str).collect::<Vec<_>>());
        let on_node = if is_here(addr) { BackendFlags::ON_NODE } else { 0 };
        object.map("BACKENDS").insert(id, self.backend(addr, on_node), 0).expect("room");
    }

    /// The id of a backend.
    pub fn backend_id(&self, backend: &str) -> u32 {
        id_of(self.id, socket(backend))
    }

    /// Writes a Maglev table: `choose` names the backend of each place.
    pub fn maglev(&self, object: &mut TcPrograms, choose: impl Fn(usize) -> &'static str) {
        let backends = std::array::from_fn(|place| self.backend_id(choose(place)));
        let key = MaglevKey { service: self.id, list: List::Cluster as u32 };
        object.map("MAGLEV").insert(key, Maglev { backends }, 0).expect("room");
    }

    fn backend(&self, addr: SocketAddr, flags: u16) -> Backend {
        let offset = if self.port.blocks.is_empty() { 0 } else { BackendFlags::OFFSET };
        Backend { addr: addr.ip().into(), port: addr.port(), flags: flags | offset, service: self.id }
    }

    fn lists(&self) -> [(List, Vec<SocketAddr>); 2] {
        let all = &self.port.backends;
        let is_local = self.port.service.flags & (ServiceFlags::EXTERNAL_LOCAL | ServiceFlags::INTERNAL_LOCAL) != 0;
        let local = if is_local { all.iter().copied().filter(|&addr| is_here(addr)).collect() } else { Vec::new() };
        [(List::Cluster, all.clone()), (List::Local, local)]
    }

    fn write_backends(&self, object: &mut TcPrograms) {
        let lists = self.lists();
        for &addr in &self.port.backends {
            let mut flags = if is_here(addr) { BackendFlags::ON_NODE } else { 0 };
            for (list, of) in &lists {
                flags |= if of.contains(&addr) { BackendFlags::of(*list) } else { 0 };
            }
            object.map("BACKENDS").insert(id_of(self.id, addr), self.backend(addr, flags), 0).expect("room");
        }
        for (list, of) in &lists {
            for (index, &addr) in (0..).zip(of) {
                let slot = Slot { addr: addr.ip().into(), port: addr.port(), weight: 1, backend: id_of(self.id, addr) };
                object.map("SLOTS").insert(SlotKey::new(self.id, *list, index), slot, 0).expect("room");
            }
        }
        let len = |n: usize| u32::try_from(lists[n].1.len()).expect("few");
        let service = ServiceEntry {
            cluster_len: len(0),
            local_len: len(1),
            cluster_stride: 1,
            local_stride: 1,
            ..self.port.service
        };
        object.map("SERVICES").insert(self.id, service, 0).expect("room");
    }

    fn clear_backends(&self, object: &mut TcPrograms) {
        for &addr in &self.port.backends {
            object.map::<u32, Backend>("BACKENDS").remove(&id_of(self.id, addr)).expect("written before");
        }
        for (list, of) in self.lists() {
            for (index, _) in (0..).zip(of) {
                let mut slots = object.map::<SlotKey, Slot>("SLOTS");
                slots.remove(&SlotKey::new(self.id, list, index)).expect("written before");
            }
        }
    }
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// An address of a map.
pub fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<std::net::IpAddr>().unwrap_or_else(|error| panic!("{text}: {error}")))
}

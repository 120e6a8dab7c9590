//! Random Services and EndpointSlices of every shape that an API server stores, as JSON. Forms that its validation
//! forbids today are among them, since objects of older servers have them.
//!
//! Left out are the shapes on which kube-proxy itself fails: an endpoint or a cluster IP of another family than its
//! object's (nft refuses the whole transaction), ports without a protocol and affinity without a timeout (it panics),
//! and a slice that moves to another Service (its endpoints stay with the former one too).

use std::net::IpAddr;

use lb_lab::rng::Rng;
use serde_json::{Map, Value, json};

/// The node of both proxies.
pub const NODE: &str = "node1";
/// Namespaces of the Services.
const NAMESPACES: [&str; 2] = ["apps", "default"];
/// Zones in hints, and of the node.
pub const ZONES: [&str; 2] = ["zone-a", "zone-b"];

/// All objects at one time.
#[derive(Default)]
pub struct Objects {
    pub services: Vec<Value>,
    pub slices: Vec<Value>,
}

/// Generates `count` Services. Of a Service that exists in two generations name and namespace are the same.
pub fn generate(rng: &mut Rng, count: u64) -> Objects {
    let mut objects = Objects::default();
    for index in 0..count {
        if rng.chance(10) {
            continue;
        }
        let namespace = NAMESPACES[usize::from(index % 3 == 0)];
        let mut service = RandomService { rng, index, namespace, families: Families::V4 };
        service.families = service.rng.pick(&[Families::V4, Families::V4, Families::V6, Families::Both]);
        let ports = service.ports();
        objects.services.push(service.service(&ports));
        let count = service.rng.pick(&[0, 1, 1, 1, 2, 2, 3]);
        for number in 0..count {
            objects.slices.push(service.slice(number, &ports));
        }
    }
    objects
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Families {
    V4,
    V6,
    Both,
}

struct Port {
    name: String,
    proto: &'static str,
    port: u16,
}

struct RandomService<'a> {
    rng: &'a mut Rng,
    index: u64,
    namespace: &'static str,
    families: Families,
}

impl RandomService<'_> {
    fn ports(&mut self) -> Vec<Port> {
        let all = [("http", "TCP", 80), ("dns", "UDP", 53), ("dns-tcp", "TCP", 53), ("sctp", "SCTP", 7000)];
        let count = self.rng.pick(&[1, 1, 1, 2, 2, 4]);
        let first = usize::try_from(self.rng.below(all.len() as u64)).expect("an index");
        let ports = all.iter().cycle().skip(first).take(count);
        let mut ports: Vec<Port> =
            ports.map(|&(name, proto, port)| Port { name: name.to_owned(), proto, port }).collect();
        if count == 1 && self.rng.chance(50) {
            ports[0].name = String::new();
        }
        ports
    }

    fn service(&mut self, ports: &[Port]) -> Value {
        let kind = self.rng.pick(&["ClusterIP", "ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"]);
        let mut spec = Map::new();
        spec.insert("type".to_owned(), json!(kind));
        self.cluster_ips(&mut spec);
        spec.insert("ports".to_owned(), self.service_ports(kind, ports));
        if self.rng.chance(80) {
            spec.insert("selector".to_owned(), json!({"app": "a"}));
        }
        if let Some(policy) = self.rng.pick(&[None, Some("Cluster"), Some("Local"), Some("Local")]) {
            spec.insert("internalTrafficPolicy".to_owned(), json!(policy));
        }
        let external = self.rng.pick(&[None, Some("Cluster"), Some("Local"), Some("Local")]);
        if let Some(policy) = external {
            spec.insert("externalTrafficPolicy".to_owned(), json!(policy));
        }
        if external == Some("Local") && (kind == "LoadBalancer" || self.rng.chance(5)) {
            spec.insert("healthCheckNodePort".to_owned(), json!(31_000 + self.index));
        }
        if self.rng.chance(25) {
            let seconds = self.rng.pick(&[1, 30, 10_800, 86_400]);
            spec.insert("sessionAffinity".to_owned(), json!("ClientIP"));
            spec.insert("sessionAffinityConfig".to_owned(), json!({"clientIP": {"timeoutSeconds": seconds}}));
        }
        if self.rng.chance(25) {
            let count = self.rng.pick(&[1, 1, 2]);
            let ips: Vec<String> = (0..count).map(|_| self.external_ip()).collect();
            spec.insert("externalIPs".to_owned(), json!(ips));
        }
        if self.rng.chance(30) {
            spec.insert("loadBalancerSourceRanges".to_owned(), self.source_ranges());
        }
        let mut status = json!({});
        if kind == "LoadBalancer" || self.rng.chance(3) {
            status = json!({"loadBalancer": {"ingress": self.ingress()}});
        }
        let mut labels = Map::new();
        match self.rng.below(40) {
            0 => _ = labels.insert("service.kubernetes.io/service-proxy-name".to_owned(), json!("other")),
            1 => _ = labels.insert("service.kubernetes.io/headless".to_owned(), json!("")),
            _ => {}
        }
        let created = format!("2026-01-0{}T00:00:00Z", 1 + self.rng.below(9));
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "namespace": self.namespace, "name": self.name(), "labels": labels, "creationTimestamp": created,
            },
            "spec": spec, "status": status,
        })
    }

    fn name(&self) -> String {
        format!("s{}", self.index)
    }

    fn cluster_ips(&mut self, spec: &mut Map<String, Value>) {
        let index = self.index;
        match self.rng.below(40) {
            0 => {
                spec.insert("clusterIP".to_owned(), json!("None"));
                spec.insert("clusterIPs".to_owned(), json!(["None"]));
                return;
            }
            1 => {
                spec.insert("type".to_owned(), json!("ExternalName"));
                spec.insert("externalName".to_owned(), json!("example.org"));
                return;
            }
            _ => {}
        }
        // Some have the cluster IP of another one.
        let index = if self.rng.chance(2) { index / 2 } else { index };
        let v4 = self.sloppy_v4([10, 96, u8::try_from(index / 200).expect("few"), 1 + (index % 200) as u8]);
        let v6 = self.rng.pick(&[format!("fd96::{:x}", index + 1), format!("fd96:0::{:04X}", index + 1)]);
        let (ips, families) = match self.families {
            Families::V4 => (vec![v4], vec!["IPv4"]),
            Families::V6 => (vec![v6], vec!["IPv6"]),
            Families::Both if self.rng.chance(30) => (vec![v6, v4], vec!["IPv6", "IPv4"]),
            Families::Both => (vec![v4, v6], vec!["IPv4", "IPv6"]),
        };
        spec.insert("clusterIP".to_owned(), json!(ips[0]));
        spec.insert("clusterIPs".to_owned(), json!(ips));
        spec.insert("ipFamilies".to_owned(), json!(families));
    }

    /// An address in the form that older API servers stored, in a few of cases.
    fn sloppy_v4(&mut self, [a, b, c, d]: [u8; 4]) -> String {
        match self.rng.below(12) {
            0 => format!("{a:03}.{b:03}.{c:03}.{d:03}"),
            1 => format!("::ffff:{a}.{b}.{c}.{d}"),
            2 => format!("{a}.{b}.{c}.0{d}"),
            _ => format!("{a}.{b}.{c}.{d}"),
        }
    }

    fn service_ports(&mut self, kind: &str, ports: &[Port]) -> Value {
        let has_node_ports = kind == "NodePort" || (kind == "LoadBalancer" && self.rng.chance(80));
        let mut list = Vec::new();
        for (place, Port { name, proto, port }) in ports.iter().enumerate() {
            let mut value = json!({"protocol": proto, "port": port, "targetPort": 8080});
            if !name.is_empty() {
                value["name"] = json!(name);
            }
            if has_node_ports {
                // Some have the NodePort of another one.
                let index = if self.rng.chance(2) { self.index / 2 } else { self.index };
                value["nodePort"] = json!(30_000 + index * 4 + place as u64);
            }
            list.push(value);
        }
        list.into()
    }

    /// An external IP or load balancer address; some are another Service's, of another family, or no address.
    fn external_ip(&mut self) -> String {
        let index = if self.rng.chance(4) { self.index / 2 } else { self.index };
        let (high, low) = (u8::try_from(index / 200).expect("few"), 1 + (index % 200) as u8);
        match self.rng.below(30) {
            0 => self.rng.pick(&["", "203.0.113", "127.0.0.9", "169.254.7.7", "host.example", "224.0.0.7"]).to_owned(),
            // The own cluster IP.
            1 => format!("10.96.{high}.{low}"),
            // An address of the node.
            2 => "172.30.0.11".to_owned(),
            3..=10 if self.families != Families::V4 => format!("2001:db8::{:x}", index + 1),
            11 if self.families == Families::V4 => format!("2001:db8::{:x}", index + 1),
            _ => self.sloppy_v4([203, 0, 113 + high, low]),
        }
    }

    fn ingress(&mut self) -> Value {
        let count = self.rng.pick(&[0, 1, 1, 1, 2]);
        let mut list = Vec::new();
        for number in 0..count {
            let index = if self.rng.chance(3) { self.index / 2 } else { self.index };
            let (high, low) = (u8::try_from(index / 200).expect("few"), 1 + (index % 200) as u8);
            let ip = match self.families {
                Families::V6 => format!("2001:db8:1::{:x}", index + 1),
                Families::Both if number == 1 => format!("2001:db8:1::{:x}", index + 1),
                // External IP and load balancer address of one Service, or a second address.
                _ if self.rng.chance(10) => self.external_ip(),
                _ => self.sloppy_v4([198, 18 + number, high, low]),
            };
            // Validation has always required an address here.
            let ip = if kube_proxy_reads(&ip) { json!({"ip": ip}) } else { json!({}) };
            let mut entry = ip;
            if entry.get("ip").is_none() || self.rng.chance(10) {
                entry["hostname"] = json!("lb.example.org");
            }
            if entry.get("ip").is_some()
                && let Some(mode) = self.rng.pick(&[None, None, Some("VIP"), Some("Proxy")])
            {
                entry["ipMode"] = json!(mode);
            }
            list.push(entry);
        }
        list.into()
    }

    fn source_ranges(&mut self) -> Value {
        let all = [
            "192.0.2.0/24",
            "192.0.2.77/32",
            " 10.244.0.0/16 ",
            "172.30.0.0/16",
            "172.030.000.000/016",
            "198.51.100.0/24",
            "::ffff:192.0.2.0/120",
            "0.0.0.0/0",
            "2001:db8:77::/64",
            "fd44::/48",
            "fd30::/64",
            "::/0",
            "10.0.0.0/33",
            "unreadable",
            "192.0.2.77",
        ];
        let count = self.rng.pick(&[0, 1, 1, 2, 2, 3]);
        (0..count).map(|_| self.rng.pick(&all)).collect::<Vec<_>>().into()
    }

    fn slice(&mut self, number: usize, ports: &[Port]) -> Value {
        let is_v4 = match self.families {
            Families::V4 => !self.rng.chance(4),
            Families::V6 => self.rng.chance(4),
            Families::Both => number.is_multiple_of(2),
        };
        let address_type = if self.rng.chance(2) {
            "FQDN"
        } else if is_v4 {
            "IPv4"
        } else {
            "IPv6"
        };
        let count = self.rng.pick(&[0, 1, 1, 2, 3, 3, 5, 8]);
        // Hints are written for all endpoints of a Service, or for none, but a slice may be older than another.
        let hints = self.rng.pick(&[Hints::None, Hints::None, Hints::Zones, Hints::Nodes, Hints::Random]);
        let endpoints: Vec<Value> = (0..count).map(|_| self.endpoint(address_type, hints)).collect();
        let mut labels = json!({"kubernetes.io/service-name": self.name()});
        // The type of a slice never changes, and its Service should not.
        let mut name = format!("{}-{number}-{}", self.name(), address_type.to_lowercase());
        match self.rng.below(40) {
            0 => {
                labels["kubernetes.io/service-name"] = json!("");
                name += "-unnamed";
            }
            1 => {
                labels = json!({});
                name += "-bare";
            }
            2 => labels["service.kubernetes.io/headless"] = json!(""),
            3 => {
                labels["kubernetes.io/service-name"] = json!("missing");
                name += "-missing";
            }
            4..20 => {
                labels["endpointslice.kubernetes.io/managed-by"] = json!("endpointslice-controller.k8s.io");
            }
            _ => {}
        }
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": self.namespace, "name": name, "labels": labels},
            "addressType": address_type, "ports": self.endpoint_ports(ports), "endpoints": endpoints,
        })
    }

    fn endpoint_ports(&mut self, ports: &[Port]) -> Value {
        let mut list = Vec::new();
        for Port { name, proto, port } in ports {
            let number = self.rng.pick(&[8080, 8080, 8080, 9090, *port]);
            match self.rng.below(30) {
                0 => {}
                1 => list.push(json!({"name": null, "protocol": proto, "port": number})),
                2 => list.push(json!({"name": name, "protocol": proto, "port": null})),
                3 => list.push(json!({"name": name, "protocol": proto, "port": 0})),
                4 => list.push(json!({"name": "other", "protocol": proto, "port": number})),
                5 => list.push(json!({"name": name, "protocol": "SCTP", "port": number})),
                _ => list.push(json!({"name": name, "protocol": proto, "port": number})),
            }
        }
        list.into()
    }

    fn endpoint(&mut self, address_type: &str, hints: Hints) -> Value {
        // Some addresses stand in two slices, or twice in one.
        let (high, low) = (u8::try_from(self.index / 200).expect("few"), (self.index % 200) as u8);
        let last = 1 + self.rng.below(120) as u8;
        let address = match address_type {
            "FQDN" => "host.example.org".to_owned(),
            "IPv6" => match self.rng.below(60) {
                0 => format!("fd96::{:x}", self.index / 2 + 1),
                1 => "fe80::7".to_owned(),
                _ => format!("fd44:0:{:x}::{last:x}", self.index),
            },
            _ => match self.rng.below(60) {
                // A cluster IP, a load balancer address and an address of the node.
                0 => format!("10.96.{high}.{}", 1 + low / 2),
                1 => format!("198.18.{high}.{}", 1 + low / 2),
                2 => "172.30.0.11".to_owned(),
                3 => self.rng.pick(&["127.0.0.1", "169.254.1.1"]).to_owned(),
                _ => self.sloppy_v4([11, high, low, last]),
            },
        };
        let mut addresses = vec![address];
        if self.rng.chance(3) {
            addresses.push(if address_type == "IPv6" { "fd44::99" } else { "11.99.99.99" }.to_owned());
        }
        let mut conditions = Map::new();
        match self.rng.below(10) {
            0..5 => _ = conditions.insert("ready".to_owned(), json!(true)),
            5 => {}
            // A pod that terminates, or is not ready; publishNotReadyAddresses makes it ready all the same.
            _ => {
                for (name, percent) in [("ready", 40), ("serving", 60), ("terminating", 60)] {
                    if self.rng.chance(85) {
                        conditions.insert(name.to_owned(), json!(self.rng.chance(percent)));
                    }
                }
            }
        }
        let mut endpoint = json!({"addresses": addresses, "conditions": conditions});
        if let Some(node) = self.rng.pick(&[None, Some(""), Some(NODE), Some(NODE), Some("node2"), Some("node3")]) {
            endpoint["nodeName"] = json!(node);
        }
        let (zones, nodes) = match hints {
            Hints::None => (false, false),
            Hints::Zones => (self.rng.chance(95), false),
            Hints::Nodes => (self.rng.chance(95), self.rng.chance(95)),
            Hints::Random => (self.rng.chance(50), self.rng.chance(50)),
        };
        if zones || nodes || self.rng.chance(5) {
            endpoint["hints"] = json!({});
        }
        let count = 1 + self.rng.below(2);
        if zones {
            let names: Vec<_> = (0..count).map(|_| json!({"name": self.rng.pick(&ZONES)})).collect();
            endpoint["hints"]["forZones"] = names.into();
        }
        if nodes {
            let names: Vec<_> =
                (0..count).map(|_| json!({"name": self.rng.pick(&[NODE, NODE, "node2", ""])})).collect();
            endpoint["hints"]["forNodes"] = names.into();
        }
        endpoint
    }
}

#[derive(Clone, Copy)]
enum Hints {
    None,
    Zones,
    Nodes,
    Random,
}

/// True if kube-proxy can read an address where it expects a valid one: it takes the rest for an address too, and
/// panics.
fn kube_proxy_reads(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || text.split('.').filter(|part| part.parse::<u8>().is_ok()).count() == 4
}

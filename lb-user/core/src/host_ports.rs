//! A pod with hostPorts as a Service of its own: the same code then serves, explains and counts it. The Service has the
//! frontends of the hostPorts, a port for each container port, and one endpoint for each address of the pod.

use std::{borrow::Cow, fmt, net::IpAddr, sync::Arc};

use lb_common::{NAME_LEN, Scheduler};

use crate::objects::{
    Endpoint, EndpointGroup, EndpointPort, EndpointSlice, HostPort, Key, Pod, Policy, ServedPod, Service, ServicePort,
    SliceManager, Tuning,
};

/// Start of the name of a pod's Service. No object of the API has such a name.
const PREFIX: &str = "pod/";
/// Mark between the start of a long name and the hash of the whole.
const SHORTENED: char = '~';
/// Hexadecimal digits of the hash.
const HASH_DIGITS: usize = 8;

/// Returns the key of the Service of a pod. The maps hold names of up to 63 octets, and pods may have longer ones.
#[must_use]
pub fn service_key(pod: &Key) -> Key {
    let room = NAME_LEN - 1 - PREFIX.len();
    let name = pod.name();
    let name = if name.len() > room {
        let end = name.floor_char_boundary(room - HASH_DIGITS - SHORTENED.len_utf8());
        Cow::Owned(format!("{}{SHORTENED}{:08x}", &name[..end], hash(name)))
    } else {
        Cow::Borrowed(name)
    };
    Key::new(pod.namespace(), &format!("{PREFIX}{name}"))
}

/// True for the key of a pod's Service.
#[must_use]
pub fn is_pod(service: &Key) -> bool {
    service.name().starts_with(PREFIX)
}

/// Returns the name of a pod's Service without its mark, for the name of an object: that of the pod, if it is not too
/// long.
#[must_use]
pub fn pod_name(service: &Key) -> Option<String> {
    service.name().strip_prefix(PREFIX).map(|name| name.replace(SHORTENED, "-"))
}

/// FNV-1a, 32 bits.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The owner of a frontend in words: `the Service a/b`, or `the pod a/b`.
pub(crate) struct Owner<'a>(pub(crate) &'a Key);

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.name().strip_prefix(PREFIX) {
            Some(pod) => write!(f, "the pod {}", Key::new(self.0.namespace(), pod)),
            None => write!(f, "the Service {}", self.0),
        }
    }
}

/// Returns the Service of a pod of the node `node`, and its endpoints. None for a pod without hostPorts or without an
/// address yet, and for a pod in the node's network: its processes listen at the node themselves.
#[must_use]
pub(crate) fn service(pod: &Pod, node: &Arc<str>) -> Option<(Service, EndpointSlice)> {
    let is_elsewhere = pod.node.as_ref().is_some_and(|of| of != node);
    if is_elsewhere || pod.host_network || pod.ips.is_empty() || pod.host_ports.is_empty() {
        return None;
    }
    let key = service_key(&pod.key);
    let mut ports: Vec<ServicePort> = pod.host_ports.iter().map(service_port).collect();
    ports.sort_by_key(|port| (port.port, port.proto as u8));
    ports.dedup();
    let endpoint_port =
        |port: &ServicePort| EndpointPort { name: port.name.clone(), proto: port.proto, port: port.port };
    let group = EndpointGroup {
        ports: ports.iter().map(endpoint_port).collect(),
        endpoints: pod.ips.iter().map(|&ip| Endpoint { node: Some(Arc::clone(node)), ..Endpoint::new(ip) }).collect(),
    };
    let slice = EndpointSlice {
        key: key.clone(),
        service: Some(key.clone()),
        manager: SliceManager::Selecting,
        group,
        triggered: None,
        problems: Vec::new(),
    };
    let served = ServedPod {
        key: pod.key.clone(),
        ips: pod.ips.clone(),
        host_ports: pod.host_ports.clone(),
        terminating: pod.terminating,
    };
    let service = Service {
        // A pod that ends gives way to any other.
        created: pod.created.filter(|_| !pod.terminating),
        // The pod is on this node, and sees the client's address.
        external_policy: Policy::Local,
        ports: ports.into(),
        // The only choice is one backend.
        tuning: Some(Box::new(Tuning { scheduler: Some(Scheduler::Random), ..Tuning::default() })),
        problems: pod.host_port_problems.clone(),
        pod: Some(Box::new(served)),
        ..Service::new(key)
    };
    Some((service, slice))
}

/// Returns the Service port of a hostPort: one for each container port and protocol, and named after it.
fn service_port(host_port: &HostPort) -> ServicePort {
    ServicePort::new(&host_port.container_port.to_string(), host_port.proto, host_port.container_port)
}

/// Returns the index of the Service port of a hostPort.
pub(crate) fn index_of(service: &Service, host_port: &HostPort) -> Option<usize> {
    let is_own = |port: &ServicePort| (port.port, port.proto) == (host_port.container_port, host_port.proto);
    service.ports.iter().position(is_own)
}

/// Returns the kind of an address that cannot be a hostIP, with its article; none for other addresses. The unspecified
/// address means every address of its family.
pub(crate) fn unusable(addr: &IpAddr) -> Option<&'static str> {
    match addr {
        _ if addr.is_multicast() => Some("a multicast"),
        IpAddr::V4(addr) if addr.is_broadcast() => Some("a broadcast"),
        // Clients need a device to dial such an address.
        IpAddr::V6(addr) if addr.is_unicast_link_local() => Some("a link-local"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_of_a_pod_is_shortened_and_stays_its_own() {
        let name = |pod: &str| service_key(&Key::new("default", pod)).name().to_owned();
        assert_eq!(name("web"), "pod/web");
        let fits = "a".repeat(59);
        assert_eq!(name(&fits), format!("pod/{fits}"));
        let names = [name(&"a".repeat(60)), name(&"a".repeat(61)), name(&format!("{}b", "a".repeat(60)))];
        assert_eq!(names[0], format!("pod/{}~{:08x}", "a".repeat(50), hash(&"a".repeat(60))));
        assert!(names[0] != names[1] && names[1] != names[2], "{names:?}");
        // Octets, and no character is cut.
        for pod in [fits, "a".repeat(60), "\u{e9}".repeat(40), format!("a{}", "\u{e9}".repeat(40))] {
            assert!(name(&pod).len() < NAME_LEN, "{pod}");
        }
    }

    #[test]
    fn an_owner_is_a_service_or_a_pod() {
        assert_eq!(Owner(&Key::new("a", "b")).to_string(), "the Service a/b");
        assert_eq!(Owner(&service_key(&Key::new("a", "b"))).to_string(), "the pod a/b");
        assert!(is_pod(&service_key(&Key::new("a", "b"))) && !is_pod(&Key::new("pod/", "pod")));
    }
}

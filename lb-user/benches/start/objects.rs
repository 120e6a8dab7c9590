//! The objects of the bench, on the API server.

use std::{
    net::Ipv4Addr,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use kube::api::{Patch, PatchParams};
use lb_common::{Addr, LAYOUT_VERSION, List, Slot, SlotKey};
use lb_core::{op::Table, store::Store as _};
use lb_dataplane::store::BpfStore;
use lb_kernel::bpf as sys;
use lb_lab::api_client::{ApiClient, NAMESPACE};
use serde_json::{Value, json};

use crate::proxies::{BenchNode, NODE};

/// Port of the VIPs.
pub const PORT: u16 = 80;
/// Port of the backends.
pub const TARGET: u16 = 8080;
/// Backends that answer: 10.0.0.1 and so on.
pub const BACKENDS: u32 = 3;

/// The VIP of a Service.
pub fn vip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 1, 0).to_bits() + service)
}

/// Makes the node, and the Services with their slices.
pub fn fill(cluster: &ApiClient, services: u32) {
    cluster.add_node(NODE, &[Ipv4Addr::new(192, 0, 2, 1).into()]);
    cluster.add_services((0..services).map(|number| (service(number), slice(number))));
}

/// Changes the first endpoint of a Service. Returns the milliseconds until the API server answers, and until the map
/// has it.
pub fn change(cluster: &ApiClient, node: &BenchNode, change: u32) -> (f64, f64) {
    let number = change * 7;
    let (map, key) = place(node, number);
    // Each round sets another address.
    let now: Slot = sys::lookup(map.as_fd(), &key).unwrap().expect("the slot exists");
    let next = Ipv4Addr::new(10, 0, 1, now.addr.octets[15].wrapping_add(1).max(1));
    let mut endpoints = slice(number)["endpoints"].take();
    endpoints[0]["addresses"] = json!([next]);
    // The Service has one endpoint: its only slot has the new address.
    endpoints.as_array_mut().unwrap().truncate(1);
    let slices = cluster.slices();
    let start = Instant::now();
    let answered = std::thread::scope(|scope| {
        let patch = scope.spawn(|| {
            let patch = Patch::Merge(json!({"endpoints": endpoints}));
            let name = slice_name(number);
            cluster.wait(slices.patch(&name, &PatchParams::default(), &patch)).expect("patched");
            start.elapsed()
        });
        let is_new = |slot: Option<Slot>| slot.is_some_and(|slot| slot.addr == Addr::from(next));
        while !is_new(sys::lookup(map.as_fd(), &key).unwrap()) {
            assert!(start.elapsed() < Duration::from_secs(10), "the change does not arrive");
            std::thread::sleep(Duration::from_micros(50));
        }
        let arrived = start.elapsed();
        (patch.join().expect("no panic"), arrived)
    });
    (answered.0.as_secs_f64() * 1e3, answered.1.as_secs_f64() * 1e3)
}

/// The first slot of a Service, and the map of the slots.
fn place(node: &BenchNode, service: u32) -> (std::os::fd::OwnedFd, SlotKey) {
    let pins = node.pins.join(format!("v{LAYOUT_VERSION}"));
    let dump = BpfStore::open(&pins).and_then(|store| store.dump()).expect("the pinned maps");
    let name = service_name(service);
    let id =
        dump.names.iter().find_map(|(&id, key)| key.service.to_string().ends_with(&format!("/{name}")).then_some(id));
    let map = sys::open_pin(&pins.join(Table::Slots.map_name())).expect("the pinned map");
    (map, SlotKey::new(id.expect("the Service is in the maps"), List::Cluster, 0))
}

fn service_name(number: u32) -> String {
    format!("service-{number:05}")
}

fn slice_name(number: u32) -> String {
    format!("service-{number:05}-x7k2p")
}

fn service(number: u32) -> Value {
    json!({
        "metadata": {"name": service_name(number), "labels": {"app": service_name(number)}},
        "spec": {
            "clusterIP": vip(number),
            "selector": {"app": service_name(number)},
            "ports": [{"name": "http", "port": PORT, "targetPort": TARGET}],
        },
    })
}

fn slice(number: u32) -> Value {
    let endpoints: Vec<Value> = (0..=number % BACKENDS)
        .map(|at| {
            json!({
                "addresses": [Ipv4Addr::new(10, 0, 0, 1 + at as u8)],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": format!("node-{}", (number + at) % 200),
                "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": format!("{}-{at}", service_name(number))},
            })
        })
        .collect();
    json!({
        "metadata": {
            "name": slice_name(number),
            "labels": {
                "kubernetes.io/service-name": service_name(number),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": TARGET, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

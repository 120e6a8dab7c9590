//! The objects of the bench on the API server.

use std::{
    net::Ipv4Addr,
    os::fd::AsFd as _,
    path::Path,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::{
    core::v1::{Node as KubeNode, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Config, Resource,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use lb_common::{Addr, LAYOUT_VERSION, List, Slot, SlotKey};
use lb_user::{
    datapath::sys,
    op::Table,
    store::{BpfStore, Store as _},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::proxies::{NODE, Node};

/// Port of the VIPs.
pub const PORT: u16 = 80;
/// Port of the backends.
pub const TARGET: u16 = 8080;
/// Backends that answer: 10.0.0.1 and so on.
pub const BACKENDS: u32 = 3;

const NAMESPACE: &str = "default";
/// Requests at a time.
const AT_ONCE: usize = 48;

/// The VIP of a Service.
pub fn vip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 1, 0).to_bits() + service)
}

/// A client of the API server.
pub struct Cluster {
    runtime: Runtime,
    client: Client,
}

impl Cluster {
    /// With these credentials.
    pub fn new(kubeconfig: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
            Client::try_from(config).unwrap()
        });
        Self { runtime, client }
    }

    /// Makes the node, and the Services with their slices.
    pub fn fill(&self, services: u32) {
        self.runtime.block_on(async {
            let nodes: Api<KubeNode> = Api::all(self.client.clone());
            create(&nodes, json!({"metadata": {"name": NODE}})).await;
            let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
            nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
            let services = stream::iter(0..services).for_each_concurrent(AT_ONCE, |number| async move {
                create(&Api::<Service>::namespaced(self.client.clone(), NAMESPACE), service(number)).await;
                create(&Api::<EndpointSlice>::namespaced(self.client.clone(), NAMESPACE), slice(number)).await;
            });
            services.await;
        });
    }

    /// Changes the first endpoint of a Service; milliseconds until the API server answers, and until the map says so.
    pub fn change(&self, node: &Node, change: u32) -> (f64, f64) {
        let number = change * 7;
        let (map, key) = place(node, number);
        // Each round finds another one there.
        let now: Slot = sys::lookup(map.as_fd(), &key).unwrap().expect("the slot exists");
        let next = Ipv4Addr::new(10, 0, 1, now.addr.octets[15].wrapping_add(1).max(1));
        let mut endpoints = slice(number)["endpoints"].take();
        endpoints[0]["addresses"] = json!([next]);
        // The Service has one endpoint: what stands in its only slot is the new one.
        endpoints.as_array_mut().unwrap().truncate(1);
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), NAMESPACE);
        let start = Instant::now();
        let answered = std::thread::scope(|scope| {
            let patch = scope.spawn(|| {
                let patch = Patch::Merge(json!({"endpoints": endpoints}));
                let name = slice_name(number);
                self.runtime.block_on(slices.patch(&name, &PatchParams::default(), &patch)).expect("patched");
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
}

/// The first slot of a Service, and the map of the slots.
fn place(node: &Node, service: u32) -> (std::os::fd::OwnedFd, SlotKey) {
    let pins = node.pins.join(format!("v{LAYOUT_VERSION}"));
    let dump = BpfStore::open(&pins).and_then(|store| store.dump()).expect("the pinned maps");
    let name = service_name(service);
    let id =
        dump.names.iter().find_map(|(&id, key)| key.service.to_string().ends_with(&format!("/{name}")).then_some(id));
    let map = sys::open_pin(&pins.join(Table::Slots.map_name())).expect("the pinned map");
    (map, SlotKey::new(id.expect("the Service is in the maps"), List::Cluster, 0))
}

async fn create<K>(api: &Api<K>, object: Value)
where
    K: Resource + Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    let object: K = serde_json::from_value(object).expect("an object");
    api.create(&PostParams::default(), &object).await.expect("created");
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

//! A client of the API server that makes the objects of a bench.

use std::{future::Future, net::IpAddr, path::Path};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Config, Resource,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// The namespace of the objects.
pub const NAMESPACE: &str = "default";
/// Requests in flight.
const CONCURRENT: usize = 48;

/// A client of the API server.
pub struct ApiClient {
    runtime: Runtime,
    client: Client,
}

impl ApiClient {
    /// Connects with these credentials.
    pub fn new(kubeconfig: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let client = runtime.block_on(async {
            let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
            Client::try_from(config.expect("a context")).expect("a client")
        });
        Self { runtime, client }
    }

    /// Makes a Node with these addresses.
    pub fn add_node(&self, name: &str, addresses: &[IpAddr]) {
        let addresses: Vec<Value> =
            addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        self.wait(async {
            let nodes: Api<Node> = Api::all(self.client.clone());
            create(&nodes, json!({"metadata": {"name": name}})).await;
            let status = Patch::Merge(json!({"status": {"addresses": addresses}}));
            nodes.patch_status(name, &PatchParams::default(), &status).await.expect("patched");
        });
    }

    /// Makes Services and their EndpointSlices, many at a time.
    pub fn add_services(&self, objects: impl Iterator<Item = (Value, Value)>) {
        self.wait(stream::iter(objects).for_each_concurrent(CONCURRENT, |(service, slice)| async {
            create(&Api::<Service>::namespaced(self.client.clone(), NAMESPACE), service).await;
            create(&self.slices(), slice).await;
        }));
    }

    /// The EndpointSlices.
    pub fn slices(&self) -> Api<EndpointSlice> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Waits for requests to the API server.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

async fn create<K>(api: &Api<K>, object: Value)
where
    K: Resource + Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    let object: K = serde_json::from_value(object).expect("an object");
    api.create(&PostParams::default(), &object).await.expect("created");
}

//! The part of each Kubernetes object that Beeline reads, in the shape in which it travels. The rest (managedFields, most
//! of metadata and spec) is skipped while decoding, so that a list of 10,000 Services never holds it in memory.

use std::collections::BTreeMap;

use k8s_openapi::{
    ClusterResourceScope, NamespaceResourceScope,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};

use super::convert;
use lb_core::{
    event::{Kind, Object},
    objects::Key,
};

/// A kind of object that a source reads.
pub trait Wire:
    k8s_openapi::Metadata<Ty = ObjectMeta> + DeserializeOwned + Clone + std::fmt::Debug + Send + Sync + 'static
{
    /// Our name of the kind.
    const WHICH: Kind;

    /// The object as Beeline knows it. `proxy_name` is the value of `--service-proxy-name`. None if the object decides
    /// nothing here, whatever else there is.
    fn convert(&self, proxy_name: Option<&str>) -> Option<Object>;

    /// Namespace and name.
    fn key(&self) -> Key {
        convert::key(self.metadata())
    }
}

macro_rules! kind {
    ($kind:ident, $group:literal, $version:literal, $api_version:literal, $path:literal, $scope:ty, $convert:expr) => {
        impl k8s_openapi::Resource for $kind {
            const API_VERSION: &'static str = $api_version;
            const GROUP: &'static str = $group;
            const KIND: &'static str = stringify!($kind);
            const VERSION: &'static str = $version;
            const URL_PATH_SEGMENT: &'static str = $path;
            type Scope = $scope;
        }

        impl k8s_openapi::Metadata for $kind {
            type Ty = ObjectMeta;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }

        impl Wire for $kind {
            const WHICH: Kind = Kind::$kind;

            fn convert(&self, proxy_name: Option<&str>) -> Option<Object> {
                let convert: fn(&Self, Option<&str>) -> Option<Object> = $convert;
                convert(self, proxy_name)
            }
        }
    };
}

kind!(Service, "", "v1", "v1", "services", NamespaceResourceScope, |wire, proxy_name| {
    Some(Object::Service(convert::service(wire, proxy_name)))
});
kind!(
    EndpointSlice,
    "discovery.k8s.io",
    "v1",
    "discovery.k8s.io/v1",
    "endpointslices",
    NamespaceResourceScope,
    |wire, _| Some(Object::EndpointSlice(convert::endpoint_slice(wire)))
);
kind!(Endpoints, "", "v1", "v1", "endpoints", NamespaceResourceScope, |wire, _| {
    // Nothing reads an Endpoints object that the mirroring controller would pass over.
    let endpoints = convert::endpoints(wire);
    endpoints.mirrorable.then_some(Object::Endpoints(endpoints))
});
kind!(Node, "", "v1", "v1", "nodes", ClusterResourceScope, |wire, _| Some(Object::Node(convert::node(wire))));
kind!(Pod, "", "v1", "v1", "pods", NamespaceResourceScope, |wire, _| convert::pod(wire).map(Object::Pod));
kind!(Namespace, "", "v1", "v1", "namespaces", ClusterResourceScope, |wire, _| {
    Some(Object::Namespace(convert::namespace(wire)))
});

/// v1 Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Name, labels, annotations, creationTimestamp.
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: Option<ServiceSpec>,
    /// What the load balancer's controller wrote.
    pub status: Option<ServiceStatus>,
}

/// `spec` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    #[serde(rename = "type")]
    pub type_: Option<String>,
    /// Labels of the pods.
    pub selector: Option<BTreeMap<String, String>>,
    /// The first of `clusterIPs`.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// One for each family.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Option<Vec<String>>,
    /// Addresses that a user claims.
    #[serde(rename = "externalIPs")]
    pub external_ips: Option<Vec<String>>,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: Option<String>,
    /// `Cluster` or `Local`.
    pub external_traffic_policy: Option<String>,
    /// `None` or `ClientIP`.
    pub session_affinity: Option<String>,
    /// What there is to say about it.
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// Who may use the load balancer's addresses.
    pub load_balancer_source_ranges: Option<Vec<String>>,
    /// Where a load balancer asks whether to send clients to a node; wider than a port, as of [`Port`].
    pub health_check_node_port: Option<i64>,
    /// The ports.
    pub ports: Option<Vec<Port>>,
}

/// `spec.sessionAffinityConfig` of a Service.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SessionAffinityConfig {
    /// For `ClientIP`.
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// `clientIP` of it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// How long a client keeps its endpoint; wider than it may be, so that a wrong one is named.
    pub timeout_seconds: Option<i64>,
}

/// `status` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceStatus {
    /// What the load balancer's controller wrote.
    pub load_balancer: Option<LoadBalancer>,
}

/// `status.loadBalancer` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoadBalancer {
    /// Its addresses.
    pub ingress: Option<Vec<Ingress>>,
}

/// An address of a load balancer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Ingress {
    /// Absent where it has a hostname.
    pub ip: Option<String>,
    /// `VIP` or `Proxy`.
    pub ip_mode: Option<String>,
}

/// A port of a Service, an EndpointSlice or a subset.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Port {
    /// Its name.
    pub name: Option<String>,
    /// TCP by default.
    pub protocol: Option<String>,
    /// Its number; wider than a port, so that a wrong one is named instead of costing the object.
    pub port: Option<i64>,
    /// A Service's port at the addresses of the nodes; 0 and absent are the same.
    pub node_port: Option<i64>,
}

/// discovery.k8s.io/v1 EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Name, labels, annotations.
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: Option<String>,
    /// The endpoints.
    pub endpoints: Option<Vec<Endpoint>>,
    /// Ports of each of them.
    pub ports: Option<Vec<Port>>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Endpoint {
    /// Only the first counts.
    pub addresses: Option<Vec<String>>,
    /// How it fares.
    pub conditions: Option<Conditions>,
    /// Whom it should serve.
    pub hints: Option<Hints>,
    /// Where it runs.
    pub node_name: Option<String>,
}

/// `conditions` of an endpoint.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Absent counts as true.
    pub ready: Option<bool>,
    /// Absent counts as true.
    pub serving: Option<bool>,
    /// Absent counts as false.
    pub terminating: Option<bool>,
}

/// `hints` of an endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Hints {
    /// Zones that it should serve.
    pub for_zones: Option<Vec<Hint>>,
    /// Nodes that it should serve.
    pub for_nodes: Option<Vec<Hint>>,
}

/// A zone or a node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Hint {
    /// Its name.
    pub name: String,
}

/// v1 Endpoints.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    /// Name, labels, annotations.
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// Addresses × ports.
    pub subsets: Option<Vec<Subset>>,
}

/// A subset of an Endpoints object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Subset {
    /// Those that are ready.
    pub addresses: Option<Vec<Address>>,
    /// Those that are not.
    pub not_ready_addresses: Option<Vec<Address>>,
    /// Ports of each of them.
    pub ports: Option<Vec<Port>>,
}

/// An address of a subset.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Address {
    /// The address.
    pub ip: String,
    /// Where it is.
    pub node_name: Option<String>,
}

/// v1 Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Name, labels, deletionTimestamp.
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// What is wanted of it.
    pub spec: Option<NodeSpec>,
    /// What kubelet wrote.
    pub status: Option<NodeStatus>,
}

/// `spec` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// What keeps pods away.
    pub taints: Option<Vec<Taint>>,
}

/// A taint of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Its name.
    pub key: String,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// What the node is called.
    pub addresses: Option<Vec<NodeAddress>>,
}

/// An address of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// `InternalIP`, or any other.
    #[serde(rename = "type")]
    pub type_: String,
    /// An IP address or a name.
    pub address: String,
}

/// v1 Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Name, uid, labels, annotations.
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// What is wanted of it.
    pub spec: Option<PodSpec>,
    /// What kubelet wrote.
    pub status: Option<PodStatus>,
    /// Where its network namespace is mounted. No object that travels says so: with a pod's own words for it, whoever may
    /// write a pod could choose for another one.
    #[serde(skip)]
    pub netns: Option<String>,
}

/// `spec` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// Where it runs.
    pub node_name: Option<String>,
    /// Whether it has the node's own network namespace.
    pub host_network: Option<bool>,
}

/// `status` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: Option<String>,
    /// Its addresses, one for each family.
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
}

/// An address of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// The address.
    pub ip: String,
}

/// v1 Namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// Name, labels.
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
}

/// The metadata that decides something here, or that kube's watcher needs (resourceVersion).
fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Slim {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<BTreeMap<String, String>>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        resource_version: Option<String>,
    }
    let slim = Option::<Slim>::deserialize(deserializer)?.unwrap_or_default();
    Ok(ObjectMeta {
        name: slim.name,
        namespace: slim.namespace,
        uid: slim.uid,
        labels: slim.labels,
        annotations: slim.annotations,
        creation_timestamp: slim.creation_timestamp,
        deletion_timestamp: slim.deletion_timestamp,
        resource_version: slim.resource_version,
        ..ObjectMeta::default()
    })
}

//! Slim API types: the fields of each Kubernetes object that Beeline reads, in the API's shape. Other fields
//! (managedFields, most of metadata and spec) are skipped while decoding, so that a list of 10,000 Services never holds
//! them in memory.

use std::collections::BTreeMap;

use k8s_openapi::{
    ClusterResourceScope, NamespaceResourceScope,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use serde::{Deserialize, Deserializer, Serialize};

macro_rules! kind {
    ($kind:ident, $group:literal, $version:literal, $api_version:literal, $path:literal, $scope:ty) => {
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
    };
}

kind!(Service, "", "v1", "v1", "services", NamespaceResourceScope);
kind!(EndpointSlice, "discovery.k8s.io", "v1", "discovery.k8s.io/v1", "endpointslices", NamespaceResourceScope);
kind!(Endpoints, "", "v1", "v1", "endpoints", NamespaceResourceScope);
kind!(Node, "", "v1", "v1", "nodes", ClusterResourceScope);
kind!(Pod, "", "v1", "v1", "pods", NamespaceResourceScope);
kind!(Namespace, "", "v1", "v1", "namespaces", ClusterResourceScope);
kind!(AddressPool, "beeline.io", "v1alpha1", "beeline.io/v1alpha1", "addresspools", ClusterResourceScope);
kind!(ServiceCIDR, "networking.k8s.io", "v1", "networking.k8s.io/v1", "servicecidrs", ClusterResourceScope);

/// v1 Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Name, labels, annotations, creationTimestamp.
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// The desired state.
    pub spec: Option<ServiceSpec>,
    /// The state that the load balancer's controller reports.
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
    /// One address for each family.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Option<Vec<String>>,
    /// Addresses that the Service's author claims.
    #[serde(rename = "externalIPs")]
    pub external_ips: Option<Vec<String>>,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: Option<String>,
    /// `Cluster` or `Local`.
    pub external_traffic_policy: Option<String>,
    /// `None` or `ClientIP`.
    pub session_affinity: Option<String>,
    /// Parameters of the session affinity.
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// CIDRs of the clients that may use the load balancer's addresses.
    pub load_balancer_source_ranges: Option<Vec<String>>,
    /// The load balancer's controller; none is the cluster's default.
    pub load_balancer_class: Option<String>,
    /// An address that the Service's author asks for.
    #[serde(rename = "loadBalancerIP")]
    pub load_balancer_ip: Option<String>,
    /// `IPv4` and `IPv6`, the primary family first.
    pub ip_families: Option<Vec<String>>,
    /// `SingleStack`, `PreferDualStack` or `RequireDualStack`.
    pub ip_family_policy: Option<String>,
    /// Port at which a load balancer checks the health of a node; in 64 bits, as in [`Port`].
    pub health_check_node_port: Option<i64>,
    /// The ports.
    pub ports: Option<Vec<Port>>,
}

/// `spec.sessionAffinityConfig` of a Service.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SessionAffinityConfig {
    /// Parameters of `ClientIP`.
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// `sessionAffinityConfig.clientIP` of a Service.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// Timeout in seconds, in 64 bits, so that a wrong number becomes a warning.
    pub timeout_seconds: Option<i64>,
}

/// `status` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Addresses of the load balancer.
    pub load_balancer: Option<LoadBalancer>,
    /// Conditions, of which controllers have one each.
    pub conditions: Option<Vec<Condition>>,
}

/// A condition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Condition {
    /// Type of the condition, as in `beeline.io/LoadBalancerAddress`.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Category, in one word.
    pub reason: String,
    /// Text for users.
    pub message: String,
    /// Time at which the status became what it is (RFC 3339).
    #[serde(rename = "lastTransitionTime", skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
}

/// `status.loadBalancer` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoadBalancer {
    /// One entry for each address or hostname.
    pub ingress: Option<Vec<Ingress>>,
}

/// An address of a load balancer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Ingress {
    /// Absent if the entry has a hostname.
    pub ip: Option<String>,
    /// `VIP` or `Proxy`.
    pub ip_mode: Option<String>,
}

/// A port of a Service, an EndpointSlice or a subset.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Port {
    /// Name of the port.
    pub name: Option<String>,
    /// TCP by default.
    pub protocol: Option<String>,
    /// Port number, in 64 bits, so that a wrong number becomes a warning instead of costing the object.
    pub port: Option<i64>,
    /// NodePort of a Service's port; 0 counts as absent.
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
    /// Ports of every endpoint.
    pub ports: Option<Vec<Port>>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Endpoint {
    /// Only the first address is used.
    pub addresses: Option<Vec<String>>,
    /// Conditions: ready, serving, terminating.
    pub conditions: Option<Conditions>,
    /// Topology hints.
    pub hints: Option<Hints>,
    /// Node that it runs on.
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
    /// Zones whose clients it should serve.
    pub for_zones: Option<Vec<Hint>>,
    /// Nodes whose clients it should serve.
    pub for_nodes: Option<Vec<Hint>>,
}

/// A zone or a node in a hint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Hint {
    /// Name of the zone or node.
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
    /// Ready addresses.
    pub addresses: Option<Vec<Address>>,
    /// Addresses that are not ready.
    pub not_ready_addresses: Option<Vec<Address>>,
    /// Ports of every endpoint.
    pub ports: Option<Vec<Port>>,
}

/// An address of a subset.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Address {
    /// The address.
    pub ip: String,
    /// Node of the address.
    pub node_name: Option<String>,
}

/// v1 Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Name, labels, deletionTimestamp.
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// The desired state.
    pub spec: Option<NodeSpec>,
    /// The state that kubelet reports.
    pub status: Option<NodeStatus>,
}

/// `spec` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// Taints.
    pub taints: Option<Vec<Taint>>,
    /// True while the node is cordoned, as for a drain.
    pub unschedulable: Option<bool>,
}

/// A taint of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Key of the taint.
    pub key: String,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Addresses and names of the node.
    pub addresses: Option<Vec<NodeAddress>>,
    /// Conditions, as its kubelet, the network of the pods and the node controller have written them.
    pub conditions: Option<Vec<Condition>>,
}

/// An address of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname` and others.
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
    /// The desired state.
    pub spec: Option<PodSpec>,
    /// The state that kubelet reports.
    pub status: Option<PodStatus>,
    /// Path of its network namespace. Never decoded: with a path from the API, an author of pods could set the mode of
    /// another pod. Only the directory source fills it in.
    #[serde(skip)]
    pub netns: Option<String>,
}

/// `spec` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// Node that it runs on.
    pub node_name: Option<String>,
    /// True if the pod has the node's network namespace.
    pub host_network: Option<bool>,
    /// Containers of the pod.
    pub containers: Option<Vec<Container>>,
    /// Containers that are started before the others.
    pub init_containers: Option<Vec<Container>>,
}

/// A container of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    /// Ports at which it listens.
    pub ports: Option<Vec<ContainerPort>>,
    /// `Always` for an init container that keeps running.
    pub restart_policy: Option<String>,
}

/// A port of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    /// TCP by default.
    pub protocol: Option<String>,
    /// Port in the pod; in 64 bits, as in [`Port`].
    pub container_port: Option<i64>,
    /// Port at the node; absent and 0 are none.
    pub host_port: Option<i64>,
    /// Address of the node.
    #[serde(rename = "hostIP")]
    pub host_ip: Option<String>,
}

/// `status` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: Option<String>,
    /// Addresses, one for each family.
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

/// beeline.io/v1alpha1 AddressPool; `deploy/components/load-balancer/crd.yaml` has its schema.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AddressPool {
    /// Name, creationTimestamp.
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// The desired state.
    pub spec: Option<AddressPoolSpec>,
    /// The state that `beeline lb` reports.
    pub status: Option<AddressPoolStatus>,
}

/// `spec` of an AddressPool.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AddressPoolSpec {
    /// Prefixes, ranges and addresses.
    pub addresses: Option<Vec<String>>,
    /// `Automatic` or `OnRequest`.
    pub allotment: Option<String>,
    /// Order of the pools, in 64 bits, so that a wrong number becomes a problem.
    pub priority: Option<i64>,
    /// Selectors of namespaces, of which one must match; none or an empty list: all.
    pub namespace_selectors: Option<Vec<Selector>>,
    /// Selectors of Services, of which one must match; none or an empty list: all.
    pub service_selectors: Option<Vec<Selector>>,
}

/// A label selector.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Selector {
    /// Labels with their value.
    pub match_labels: Option<BTreeMap<String, String>>,
    /// Requirements.
    pub match_expressions: Option<Vec<SelectorRequirement>>,
}

/// A requirement of a label selector.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SelectorRequirement {
    /// The label.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    /// Values for `In` and `NotIn`.
    pub values: Option<Vec<String>>,
}

/// `status` of an AddressPool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct AddressPoolStatus {
    /// Counts of IPv4 addresses; none for a pool without any.
    pub ipv4: Option<AddressCounts>,
    /// Counts of IPv6 addresses; none for a pool without any.
    pub ipv6: Option<AddressCounts>,
    /// Problems, each with its cure.
    pub problems: Option<Vec<String>>,
    /// The condition `Valid`.
    pub conditions: Option<Vec<Condition>>,
}

/// Counts of addresses; the highest number where there are more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct AddressCounts {
    /// Addresses that Services have.
    pub used: i64,
    /// Addresses that may be allotted.
    pub free: i64,
}

/// networking.k8s.io/v1 ServiceCIDR: ranges from which the API server allots cluster IPs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceCIDR {
    /// Name.
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// The desired state.
    pub spec: Option<ServiceCidrSpec>,
}

/// `spec` of a ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceCidrSpec {
    /// A range of each family.
    pub cidrs: Option<Vec<String>>,
}

/// Decodes the metadata that Beeline reads, or that kube's watcher needs (resourceVersion).
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

//! Objects of an API server that bear on load balancer addresses: Services of type LoadBalancer, pools, and the facts
//! of the cluster. For the controller `beeline lb`; agents do not watch them.

use std::{collections::BTreeSet, fmt::Debug, net::IpAddr, time::Duration};

use futures::{Stream, StreamExt as _};
use ipnet::IpNet;
use k8s_openapi::{Metadata, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, task::JoinSet};

use super::{ErrorChain, WATCH_SECONDS, api_status, status};
use crate::{
    api::{AddressPool, AddressPoolStatus, Condition, Namespace, Node, Service, ServiceCIDR},
    convert::{
        BalancerClass, address_condition, address_pool, address_request, ingress_addresses, key, node_addresses,
        service_cidr,
    },
};
use lb_core::{
    allot::{AddressPool as Pool, AddressRequest},
    label_selector::Labels,
    objects::Key,
};

/// Time until a watch that the server refused is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// A change of an object that bears on load balancer addresses.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "an event is moved once, and most are of Services")]
pub enum AddressEvent {
    /// Change of a Service of type LoadBalancer.
    Service(Change<BalancerService>),
    /// Change of a pool.
    Pool(Change<BalancerPool>),
    /// Change of a node's addresses.
    Node(Change<BTreeSet<IpAddr>>),
    /// Change of a Namespace's labels.
    Namespace(Change<Labels>),
    /// Change of a ServiceCIDR's ranges.
    ServiceRanges(Change<BTreeSet<IpNet>>),
}

/// A change of an object of one kind.
#[derive(Clone, Debug)]
pub enum Change<T> {
    /// All objects of the kind.
    Listed(Vec<(Key, T)>),
    /// The object is new or has changed.
    Set(Key, T),
    /// The object has gone.
    Gone(Key),
}

/// A Service of type LoadBalancer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BalancerService {
    /// The controller that it names.
    pub class: BalancerClass,
    /// Request of the Service, with the addresses that it has.
    pub request: AddressRequest,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `metadata.uid`.
    pub uid: String,
    /// The condition that `beeline lb` wrote.
    pub condition: Option<Condition>,
}

/// A pool, with the status that it has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BalancerPool {
    /// The pool.
    pub pool: Pool,
    /// Status of the pool; none before the first report.
    pub status: Option<AddressPoolStatus>,
}

/// Converts a Service; None if it is not of type LoadBalancer.
#[must_use]
pub fn balancer_service(object: &Service) -> Option<(Key, BalancerService)> {
    let class = BalancerClass::of(object)?;
    let meta = &object.metadata;
    let mut request = address_request(object);
    request.holds = ingress_addresses(object);
    let service = BalancerService {
        class,
        request,
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        condition: address_condition(object).cloned(),
    };
    Some((key(meta), service))
}

/// Sends the list of each kind, then each change, until the receiver is dropped. Outages are retried without end.
pub async fn follow(client: Client, tx: mpsc::Sender<AddressEvent>) {
    let mut watches = JoinSet::new();
    let services = Some("spec.type=LoadBalancer");
    watches.spawn(watch(client.clone(), services, tx.clone(), balancer_service, AddressEvent::Service));
    let pool = |object: &AddressPool| {
        let pool = BalancerPool { pool: address_pool(object), status: object.status.clone() };
        Some((key(&object.metadata), pool))
    };
    watches.spawn(watch(client.clone(), None, tx.clone(), pool, AddressEvent::Pool));
    let node = |object: &Node| Some((key(&object.metadata), node_addresses(object)));
    watches.spawn(watch(client.clone(), None, tx.clone(), node, AddressEvent::Node));
    let namespace = |object: &Namespace| {
        let labels = object.metadata.labels.clone().unwrap_or_default();
        Some((key(&object.metadata), labels))
    };
    watches.spawn(watch(client.clone(), None, tx.clone(), namespace, AddressEvent::Namespace));
    let ranges = |object: &ServiceCIDR| Some((key(&object.metadata), service_cidr(object).into_iter().collect()));
    watches.spawn(watch(client, None, tx.clone(), ranges, AddressEvent::ServiceRanges));
    tokio::select! {
        () = tx.closed() => {}
        ended = watches.join_next() => tracing::debug!(?ended, "a watch ended"),
    }
}

/// Watches one kind.
async fn watch<K, T>(
    client: Client,
    fields: Option<&str>,
    tx: mpsc::Sender<AddressEvent>,
    convert: impl Fn(&K) -> Option<(Key, T)>,
    event: impl Fn(Change<T>) -> AddressEvent,
) where
    K: Metadata<Ty = ObjectMeta> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    let mut fields = fields.map(str::to_owned);
    let mut logged = None;
    loop {
        let mut stream = Box::pin(stream::<K>(&client, fields.clone()));
        let mut listed = Vec::new();
        while let Some(received) = stream.next().await {
            let change = match received {
                Err(error) => {
                    let code = status(&error);
                    if code == Some(400) && fields.take().is_some() {
                        // Field selectors for Services came with 1.31.
                        break;
                    }
                    if logged != code {
                        log::<K>(&error, code);
                        logged = code;
                    }
                    match code {
                        // Servers before 1.33 have no ServiceCIDR objects, and their ranges are not known.
                        Some(404) if K::KIND == "ServiceCIDR" => {
                            if tx.send(event(Change::Listed(Vec::new()))).await.is_err() {
                                return;
                            }
                            tokio::time::sleep(30 * RETRY).await;
                            break;
                        }
                        // A refused watch gives no sign when it is allowed.
                        Some(401 | 403 | 404) => {
                            tokio::time::sleep(RETRY).await;
                            break;
                        }
                        _ => continue,
                    }
                }
                Ok(watcher::Event::Init) => {
                    listed = Vec::new();
                    continue;
                }
                Ok(watcher::Event::InitApply(object)) => {
                    listed.extend(convert(&object));
                    continue;
                }
                Ok(watcher::Event::InitDone) => {
                    if logged.take().is_some() {
                        tracing::info!(kind = K::KIND, "may be read now");
                    }
                    Change::Listed(std::mem::take(&mut listed))
                }
                Ok(watcher::Event::Apply(object)) => match convert(&object) {
                    Some((key, value)) => Change::Set(key, value),
                    None => Change::Gone(key(object.metadata())),
                },
                Ok(watcher::Event::Delete(object)) => Change::Gone(key(object.metadata())),
            };
            if tx.send(event(change)).await.is_err() {
                return;
            }
        }
    }
}

fn stream<K>(
    client: &Client,
    field_selector: Option<String>,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send
where
    K: Metadata<Ty = ObjectMeta> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    let config = watcher::Config {
        field_selector,
        timeout: Some(WATCH_SECONDS),
        list_semantic: watcher::ListSemantic::Any,
        ..watcher::Config::default()
    };
    watcher::watcher(Api::<K>::all(client.clone()), config).default_backoff()
}

fn log<K: k8s_openapi::Resource>(error: &watcher::Error, code: Option<u16>) {
    let message = api_status(error).map(|status| status.message.as_str());
    let (kind, path) = (K::KIND, K::URL_PATH_SEGMENT);
    match code {
        Some(401 | 403) => tracing::error!(
            kind,
            message,
            "the API server does not let this controller list and watch {path}: bind its account to a role that grants \
             it, as deploy/components/load-balancer does; the controller retries by itself"
        ),
        Some(404) if kind == "AddressPool" => tracing::error!(
            kind,
            "the API server does not know pools: apply deploy/components/load-balancer/crd.yaml; the controller \
             retries by itself"
        ),
        Some(404 | 410) => tracing::debug!(kind, message, "the watch is not served"),
        Some(_) => tracing::warn!(kind, error = %ErrorChain(error), "the watch is rejected, retrying"),
        None => tracing::warn!(kind, error = %ErrorChain(error), "the API server does not answer, retrying"),
    }
}

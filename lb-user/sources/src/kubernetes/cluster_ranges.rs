//! The ranges of cluster IPs, from the ServiceCIDR objects of the API (networking.k8s.io/v1, Kubernetes 1.33). Servers
//! without the kind, and accounts without the right to read it, leave the ranges unknown.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, stream::BoxStream};
use ipnet::IpNet;
use k8s_openapi::{Metadata, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use lb_core::{event::Event, objects::Key};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::{WatchEnd, server::Server, status};
use crate::{
    api::{Service, ServiceCIDR},
    convert::{ApiObject, key, service_cidr},
};

/// Time until the next try on a server without the kind: it may have been replaced by a newer one.
const RETRY: Duration = Duration::from_secs(300);
/// Time until the next try of an account without the right.
const RETRY_REFUSED: Duration = Duration::from_secs(10);

/// Line of the log for an account without the right.
const REFUSED: &str = "the API server does not let this agent list and watch servicecidrs.networking.k8s.io, so calls \
                       to cluster IPs that no Service has time out: bind its account to a role that grants it, as \
                       deploy/base/rbac.yaml does, or name the ranges with --service-cidrs; the agent retries by \
                       itself";

type Events<K> = BoxStream<'static, watcher::Result<watcher::Event<K>>>;

/// Sends the ranges whenever they change. None while another proxy serves Services of the cluster
/// (`service.kubernetes.io/service-proxy-name`): this agent does not know their cluster IPs.
pub(super) async fn follow(
    server: Arc<Server>,
    config: watcher::Config,
    proxy_name: Option<String>,
    tx: mpsc::Sender<Event>,
) -> WatchEnd {
    if proxy_name.is_some() {
        tx.closed().await;
        return WatchEnd::ReceiverGone;
    }
    let labelled = watcher::Config {
        label_selector: Some("service.kubernetes.io/service-proxy-name".to_owned()),
        ..config.clone()
    };
    let mut ranges: Events<ServiceCIDR> = watch(&server.client, config.clone());
    let mut services: Events<Service> = watch(&server.client, labelled);
    let (mut known_ranges, mut foreign) = (Listed::<Vec<IpNet>>::default(), Listed::<()>::default());
    let mut sent = BTreeSet::new();
    let mut is_refused = false;
    loop {
        tokio::select! {
            () = tx.closed() => return WatchEnd::ReceiverGone,
            Some(event) = ranges.next() => match event {
                Ok(event) => {
                    if is_refused && matches!(event, watcher::Event::InitDone) {
                        is_refused = false;
                        tracing::info!(kind = "ServiceCIDR", "may be read now");
                    }
                    known_ranges.apply(event, |object| (key(&object.metadata), service_cidr(object)));
                }
                Err(error) => if matches!(status(&error), Some(401 | 403 | 404)) {
                    let refused = status(&error) != Some(404);
                    if refused && !is_refused {
                        tracing::warn!("{REFUSED}");
                    }
                    is_refused = refused;
                    known_ranges.set_empty();
                    let (client, config) = (server.client.clone(), config.clone());
                    let later = tokio::time::sleep(if refused { RETRY_REFUSED } else { RETRY }).into_stream();
                    ranges = later.flat_map(move |()| watch(&client, config.clone())).boxed();
                }
            },
            Some(Ok(event)) = services.next() => foreign.apply(event, |object| (ApiObject::key(object), ())),
        }
        let (Some(known), Some(foreign)) = (&known_ranges.objects, &foreign.objects) else { continue };
        let now: BTreeSet<IpNet> =
            if foreign.is_empty() { known.values().flatten().copied().collect() } else { BTreeSet::new() };
        if now != sent {
            sent.clone_from(&now);
            if tx.send(Event::ClusterRanges(now)).await.is_err() {
                return WatchEnd::ReceiverGone;
            }
        }
    }
}

fn watch<K>(client: &Client, config: watcher::Config) -> Events<K>
where
    K: Metadata<Ty = ObjectMeta> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    watcher::watcher(Api::<K>::all(client.clone()), config).default_backoff().boxed()
}

/// The objects of one kind, once they were listed.
struct Listed<T> {
    objects: Option<BTreeMap<Key, T>>,
    /// The list in progress.
    listing: BTreeMap<Key, T>,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { objects: None, listing: BTreeMap::new() }
    }
}

impl<T> Listed<T> {
    fn apply<K>(&mut self, event: watcher::Event<K>, entry: impl Fn(&K) -> (Key, T)) {
        match event {
            watcher::Event::Init => self.listing.clear(),
            watcher::Event::InitApply(object) => {
                let (key, value) = entry(&object);
                self.listing.insert(key, value);
            }
            watcher::Event::InitDone => self.objects = Some(std::mem::take(&mut self.listing)),
            watcher::Event::Apply(object) => {
                let (key, value) = entry(&object);
                self.objects.get_or_insert_default().insert(key, value);
            }
            watcher::Event::Delete(object) => {
                self.objects.get_or_insert_default().remove(&entry(&object).0);
            }
        }
    }

    fn set_empty(&mut self) {
        self.objects = Some(BTreeMap::new());
    }
}

//! Objects from a Kubernetes API server: lists and watches all kinds, until the receiver is dropped. `server` chooses
//! the server and the credentials; `crate::convert` converts the objects.

mod access;
pub mod announcers;
mod cluster_ranges;
pub mod load_balancers;
mod remembered_servers;
mod server;
mod server_report;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use futures::{StreamExt as _, stream::BoxStream};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
pub use remembered_servers::RememberedServers;
use server::{Recovery, Server, Servers};
pub use server_report::{ServerInfo, ServerReport};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    api::{EndpointSlice, Endpoints, Namespace, Node, Pod, Service},
    convert::{ApiObject, HEADLESS_LABEL, POD_MODE_LABEL},
};
use lb_core::{
    event::{Event, Object, ObjectKind},
    objects::Key,
};

/// API servers to use, and selection of objects.
#[derive(Clone, Debug, Default)]
pub struct KubernetesOptions {
    /// `--api-server`: URLs to use instead of the configured one; the first server that answers is used. They must work
    /// without Services.
    pub api_server: Vec<String>,
    /// `--kubeconfig`; without it, the pod's service account, else the default kubeconfig.
    pub kubeconfig: Option<PathBuf>,
    /// This node's name.
    pub node_name: String,
    /// `--service-proxy-name`.
    pub proxy_name: Option<String>,
    /// `--host-ports`: watch all pods of this node, and not only pods that may have a mode.
    pub host_ports: bool,
    /// Servers known from an earlier run; asked after all others.
    pub remembered: RememberedServers,
}

/// Asks each of the API servers once for its version and its clock.
///
/// # Errors
/// When the configuration cannot be read.
pub async fn ask_each(options: &KubernetesOptions) -> anyhow::Result<Vec<ServerReport>> {
    server::ask_each(options).await
}

/// Returns a client of the first API server that answers. Retries until one does.
///
/// # Errors
/// When the configuration cannot be read.
pub async fn client(options: &KubernetesOptions) -> anyhow::Result<Client> {
    Ok(Arc::new(Servers::new(options).await?).choose().await.client)
}

/// Seconds after which the server ends a watch; a watch that is silent for longer has a dead connection (kube sets no
/// keepalive).
const WATCH_SECONDS: u32 = 90;

/// Sends a `Replace` of each kind, then each change as it comes. Outages are logged and retried. Returns when the
/// receiver is dropped.
///
/// # Errors
/// When the configuration cannot be read.
pub async fn run(options: KubernetesOptions, tx: mpsc::Sender<Event>) -> anyhow::Result<()> {
    let servers = Arc::new(Servers::new(&options).await?);
    loop {
        let ended = tokio::select! {
            ended = follow_all(&servers, &options, &tx) => ended,
            () = tx.closed() => WatchEnd::ReceiverGone,
        };
        match ended {
            WatchEnd::ReceiverGone => return Ok(()),
            WatchEnd::ServerLost => tracing::info!("choosing an API server again"),
        }
    }
}

/// Reason for the end of a watch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum WatchEnd {
    /// The receiver of events was dropped.
    ReceiverGone,
    /// The server does not answer, and another one does.
    ServerLost,
}

async fn follow_all(servers: &Arc<Servers>, options: &KubernetesOptions, tx: &mpsc::Sender<Event>) -> WatchEnd {
    let server = Arc::new(servers.choose().await);
    let config = |labels: Option<&str>, fields: Option<&str>| watcher::Config {
        label_selector: labels.map(str::to_owned),
        field_selector: fields.map(str::to_owned),
        timeout: Some(WATCH_SECONDS),
        // From the server's cache, in pages: 0.4 s and 28 MB for 10,000 Services and their slices (kube-apiserver 1.37,
        // both on two cores). One unpaged list is no faster and takes four times the memory; streaming
        // (sendInitialEvents) takes 0.7 s and 21 MB, and fails with old etcd.
        list_semantic: watcher::ListSemantic::Any,
        ..watcher::Config::default()
    };
    let services = match &options.proxy_name {
        None => "!service.kubernetes.io/service-proxy-name".to_owned(),
        Some(name) => format!("service.kubernetes.io/service-proxy-name={name}"),
    };
    // The selectors of kube-proxy 1.37 (cmd/kube-proxy/app/server.go); of Endpoints, only hand-written ones.
    let services = config(Some(&services), Some("spec.clusterIP!=None"));
    let slices = config(Some(&format!("!{HEADLESS_LABEL}")), None);
    let endpoints = config(Some("endpoints.kubernetes.io/managed-by!=endpoint-controller"), None);
    let node = config(None, Some(&format!("metadata.name={}", options.node_name)));
    let namespaces = config(Some(POD_MODE_LABEL), None);
    // All pods that can open a socket here. Pods without the label are not needed, unless their Namespace has it, or
    // hostPorts are served.
    let fields = format!("spec.nodeName={},status.phase!=Succeeded,status.phase!=Failed", options.node_name);
    let [chosen, all] = [Some(POD_MODE_LABEL), None].map(|labels| config(labels, Some(&fields)));

    let labelled = Arc::new(watch::Sender::new(None));
    let reflector = || Reflector {
        server: Arc::clone(&server),
        proxy_name: options.proxy_name.clone(),
        labelled: Arc::clone(&labelled),
        tx: tx.clone(),
    };
    // One task for each kind, so that they decode in parallel; dropping the set ends them.
    let mut reflectors = JoinSet::new();
    reflectors.spawn(reflector().follow::<Service>(services));
    reflectors.spawn(reflector().follow::<EndpointSlice>(slices));
    reflectors.spawn(reflector().follow::<Endpoints>(endpoints));
    reflectors.spawn(reflector().follow::<Node>(node));
    reflectors.spawn(reflector().follow::<Namespace>(namespaces));
    if options.host_ports {
        reflectors.spawn(reflector().follow::<Pod>(all));
    } else {
        reflectors.spawn(reflector().follow_pods(chosen, all));
    }
    let proxy_name = options.proxy_name.clone();
    reflectors.spawn(cluster_ranges::follow(Arc::clone(&server), config(None, None), proxy_name, tx.clone()));
    match reflectors.join_next().await {
        Some(Ok(ended)) => ended,
        failed => {
            tracing::error!(?failed, "a watch failed");
            WatchEnd::ServerLost
        }
    }
}

/// Turns the watch of one kind into events.
#[derive(Clone)]
struct Reflector {
    server: Arc<Server>,
    proxy_name: Option<String>,
    /// Namespaces with the label for modes; None until they were listed.
    labelled: Arc<watch::Sender<Option<BTreeSet<Key>>>>,
    tx: mpsc::Sender<Event>,
}

impl Reflector {
    /// Follows the pods with the label for modes; while any Namespace has the label, all pods. Waits for the list of
    /// Namespaces first: a list of the labelled pods alone would look like the list of all pods with a mode.
    async fn follow_pods(self, chosen: watcher::Config, all: watcher::Config) -> WatchEnd {
        let mut labelled = self.labelled.subscribe();
        loop {
            let known = labelled.wait_for(Option::is_some).await;
            // `self` holds the sender, so waiting cannot fail.
            let any = known.is_ok_and(|labelled| has_any(&labelled));
            let config = if any { &all } else { &chosen };
            tokio::select! {
                ended = self.clone().follow::<Pod>(config.clone()) => return ended,
                _ = labelled.wait_for(|labelled| has_any(labelled) != any) => {}
            }
        }
    }

    /// Records which Namespaces have the label: the watch selects by it.
    fn record_namespaces(&self, event: &Event) {
        let change = |keys: &mut dyn FnMut(&mut BTreeSet<Key>)| {
            self.labelled.send_modify(|labelled| keys(labelled.get_or_insert_default()));
        };
        match event {
            Event::Apply(object) => {
                if let Some(key) = object.namespace_key() {
                    change(&mut |keys| _ = keys.insert(key.clone()));
                }
            }
            Event::Delete(ObjectKind::Namespace, key) => change(&mut |keys| _ = keys.remove(key)),
            Event::Replace(ObjectKind::Namespace, objects) => {
                let listed: BTreeSet<Key> = objects.iter().filter_map(Object::namespace_key).collect();
                change(&mut |keys| keys.clone_from(&listed));
            }
            _ => {}
        }
    }

    async fn follow<K: ApiObject>(self, mut config: watcher::Config) -> WatchEnd {
        let mut stream = self.watch::<K>(&config);
        // Collected between Init and InitDone, converted at once: API objects are many times larger.
        let mut listed = Vec::new();
        let mut phase = Phase::Listing;
        let mut rejected = false;
        let mut listed_at = None;
        while let Some(event) = stream.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    if let Some(simpler) = simpler(&config, phase, &error) {
                        let error = ErrorChain(&error);
                        tracing::debug!(kind = ?K::EVENT_KIND, %error, "listing without field selector");
                        config = simpler;
                        stream = self.watch::<K>(&config);
                        continue;
                    }
                    match status(&error) {
                        // The resource version is too old: the watcher lists again.
                        Some(410) => tracing::debug!(kind = ?K::EVENT_KIND, "listing again"),
                        refused if access::is_refusal(refused) => {
                            if let Err(end) = access::wait_for_access::<K>(&self, &config, &error, listed_at).await {
                                return end;
                            }
                            // Begin with a new list, so that no change is missed.
                            stream = self.watch::<K>(&config);
                        }
                        Some(_) if rejected => {}
                        Some(_) => {
                            let error = ErrorChain(&error);
                            tracing::warn!(kind = ?K::EVENT_KIND, %error, "watch rejected, retrying");
                            rejected = true;
                        }
                        None if self.server.outlast(&ErrorChain(&error)).await == Recovery::OtherServer => {
                            return WatchEnd::ServerLost;
                        }
                        None => {}
                    }
                    continue;
                }
            };
            let event = match event {
                watcher::Event::Init => {
                    listed = Vec::new();
                    phase = Phase::Listing;
                    continue;
                }
                watcher::Event::InitApply(object) => {
                    listed.extend(object.convert(self.proxy_name.as_deref()));
                    continue;
                }
                watcher::Event::InitDone => {
                    phase = Phase::Watching;
                    listed_at = Some(Instant::now());
                    Event::Replace(K::EVENT_KIND, std::mem::take(&mut listed))
                }
                watcher::Event::Apply(object) => match object.convert(self.proxy_name.as_deref()) {
                    Some(converted) => Event::Apply(converted),
                    // The object may have had an effect before.
                    None => Event::Delete(K::EVENT_KIND, object.key()),
                },
                watcher::Event::Delete(object) => Event::Delete(K::EVENT_KIND, object.key()),
            };
            if rejected {
                tracing::info!(kind = ?K::EVENT_KIND, "watch works");
                rejected = false;
            }
            self.record_namespaces(&event);
            if self.tx.send(event).await.is_err() {
                return WatchEnd::ReceiverGone;
            }
        }
        WatchEnd::ServerLost
    }

    fn watch<K: ApiObject>(&self, config: &watcher::Config) -> BoxStream<'static, watcher::Result<watcher::Event<K>>> {
        watcher::watcher(Api::<K>::all(self.server.client.clone()), config.clone()).default_backoff().boxed()
    }
}

fn has_any(labelled: &Option<BTreeSet<Key>>) -> bool {
    labelled.as_ref().is_some_and(|labelled| !labelled.is_empty())
}

/// Phase of a watch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Listing,
    Watching,
}

/// Returns selectors that the server understands, if it rejected these while listing.
fn simpler(config: &watcher::Config, phase: Phase, error: &watcher::Error) -> Option<watcher::Config> {
    let rejected = phase == Phase::Listing && status(error) == Some(400);
    let selects_services = config.field_selector.as_deref().is_some_and(|fields| fields.starts_with("spec."));
    // Field selectors for Services came with 1.31; without one the server sends headless Services too.
    (rejected && selects_services).then(|| watcher::Config { field_selector: None, ..config.clone() })
}

/// Returns the HTTP status of an error that the server itself returned.
fn status(error: &watcher::Error) -> Option<u16> {
    api_status(error).map(|status| status.code)
}

/// Returns the server's status, if it returned the error itself.
fn api_status(error: &watcher::Error) -> Option<&kube::core::Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    }
}

/// An error and its causes in one line.
struct ErrorChain<'a>(&'a (dyn std::error::Error + Send + Sync));

impl std::fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut shown = self.0.to_string();
        let mut next = self.0.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            // Many errors repeat their cause.
            if !shown.contains(&text) {
                write!(f, ": {text}")?;
                shown = text;
            }
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(code: u16) -> watcher::Error {
        let status = kube::core::Status { code, ..Default::default() };
        watcher::Error::WatchStartFailed(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn a_rejected_field_selector_is_left_out() {
        let check = |fields: Option<&str>, code: u16, expected: Option<Option<&str>>| {
            let config = watcher::Config { field_selector: fields.map(str::to_owned), ..Default::default() };
            let simpler = simpler(&config, Phase::Listing, &rejected(code)).map(|config| config.field_selector);
            assert_eq!(simpler, expected.map(|fields| fields.map(str::to_owned)), "{fields:?} {code}");
            assert!(super::simpler(&config, Phase::Watching, &rejected(code)).is_none());
        };
        let services = Some("spec.clusterIP!=None");
        check(services, 400, Some(None));
        for code in [401, 403, 410, 422, 500, 503] {
            check(services, code, None);
        }
        check(None, 400, None);
        check(Some("metadata.name=n"), 400, None);
    }
}

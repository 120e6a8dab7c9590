//! Objects from a Kubernetes API server: lists and watches all kinds, for as long as anybody receives. Which server,
//! and with which credentials, is in `server`; what the objects mean is in `convert`.

mod access;
mod answer;
mod remembered;
mod server;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

pub use answer::{Answer, Said};
use futures::{StreamExt as _, stream::BoxStream};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
pub use remembered::Remembered;
use server::{Outcome, Server, Servers};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    api::{EndpointSlice, Endpoints, Namespace, Node, Pod, Service, Wire},
    convert::PATH,
};
use lb_core::{
    event::{Event, Kind, Object},
    objects::Key,
};

/// Where to find the API server, and what to ask for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--api-server`: URLs to use instead of the configured one; the first that answers counts. The way to a server
    /// that does not need Services to work.
    pub api_server: Vec<String>,
    /// `--kubeconfig`; without it the pod's service account, else the default kubeconfig.
    pub kubeconfig: Option<PathBuf>,
    /// This node's name.
    pub node_name: String,
    /// `--service-proxy-name`.
    pub proxy_name: Option<String>,
    /// Servers known from an earlier run; asked after all others.
    pub remembered: Remembered,
}

/// Asks each of the API servers once, for its version and the time.
///
/// # Errors
/// When the configuration cannot be read.
pub async fn ask_each(options: &Options) -> anyhow::Result<Vec<Answer>> {
    server::ask_each(options).await
}

/// A client of the first API server that answers. Goes on asking until one does.
///
/// # Errors
/// When the configuration cannot be read.
pub async fn client(options: &Options) -> anyhow::Result<Client> {
    Ok(Arc::new(Servers::new(options).await?).choose().await.client)
}

/// The server ends a watch after these seconds; one that is silent for longer has died unseen (kube sets no keepalive).
const WATCH_SECONDS: u32 = 90;

/// Sends a `Replace` of each kind, then each change as it comes. Outages are logged and outlasted. Fails only if the
/// configuration cannot be read; returns once nobody receives any more.
pub async fn run(options: Options, tx: mpsc::Sender<Event>) -> anyhow::Result<()> {
    let servers = Arc::new(Servers::new(&options).await?);
    loop {
        let ended = tokio::select! {
            ended = follow_all(&servers, &options, &tx) => ended,
            () = tx.closed() => Ended::NobodyListens,
        };
        match ended {
            Ended::NobodyListens => return Ok(()),
            Ended::ServerLost => tracing::info!("choosing an API server anew"),
        }
    }
}

/// Why a watch came to an end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    NobodyListens,
    /// And another one answers.
    ServerLost,
}

async fn follow_all(servers: &Arc<Servers>, options: &Options, tx: &mpsc::Sender<Event>) -> Ended {
    let server = Arc::new(servers.choose().await);
    let config = |labels: Option<&str>, fields: Option<&str>| watcher::Config {
        label_selector: labels.map(str::to_owned),
        field_selector: fields.map(str::to_owned),
        timeout: Some(WATCH_SECONDS),
        // From the server's cache, in pages. For 10,000 Services and their slices (kube-apiserver 1.37, both on two
        // cores) that takes 0.4 s and 28 MB; in one piece it takes no less time and four times the memory, and streamed
        // (sendInitialEvents) 0.7 s and 21 MB, and fails with old etcd.
        list_semantic: watcher::ListSemantic::Any,
        ..watcher::Config::default()
    };
    let services = match &options.proxy_name {
        None => "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name".to_owned(),
        Some(name) => format!("!service.kubernetes.io/headless,service.kubernetes.io/service-proxy-name={name}"),
    };
    // The selectors of kube-proxy 1.37 (cmd/kube-proxy/app/server.go), and for Endpoints those that a person wrote.
    let services = config(Some(&services), Some("spec.clusterIP!=None"));
    let slices = config(Some("!service.kubernetes.io/headless"), None);
    let endpoints = config(Some("endpoints.kubernetes.io/managed-by!=endpoint-controller"), None);
    let node = config(None, Some(&format!("metadata.name={}", options.node_name)));
    let namespaces = config(Some(PATH), None);
    // All that can open a socket here. What has no label need not travel, unless its Namespace has it.
    let fields = format!("spec.nodeName={},status.phase!=Succeeded,status.phase!=Failed", options.node_name);
    let [chosen, all] = [Some(PATH), None].map(|labels| config(labels, Some(&fields)));

    let labelled = Arc::new(watch::Sender::new(None));
    let feed = || Feed {
        server: Arc::clone(&server),
        proxy_name: options.proxy_name.clone(),
        labelled: Arc::clone(&labelled),
        tx: tx.clone(),
    };
    // Tasks of their own, so that they decode in parallel; dropping the set ends them.
    let mut feeds = JoinSet::new();
    feeds.spawn(feed().follow::<Service>(services));
    feeds.spawn(feed().follow::<EndpointSlice>(slices));
    feeds.spawn(feed().follow::<Endpoints>(endpoints));
    feeds.spawn(feed().follow::<Node>(node));
    feeds.spawn(feed().follow::<Namespace>(namespaces));
    feeds.spawn(feed().follow_pods(chosen, all));
    match feeds.join_next().await {
        Some(Ok(ended)) => ended,
        failed => {
            tracing::error!(?failed, "a watch failed");
            Ended::ServerLost
        }
    }
}

/// From the watch of one kind to events.
#[derive(Clone)]
struct Feed {
    server: Arc<Server>,
    proxy_name: Option<String>,
    /// The Namespaces that have the label for paths, once they were listed.
    labelled: Arc<watch::Sender<Option<BTreeSet<Key>>>>,
    tx: mpsc::Sender<Event>,
}

impl Feed {
    /// Follows the pods that have a label for paths themselves; as long as any Namespace has it, all. Not before it is known
    /// whether one has: a list of those alone that have it themselves would be taken for all that have chosen.
    async fn follow_pods(self, chosen: watcher::Config, all: watcher::Config) -> Ended {
        let mut labelled = self.labelled.subscribe();
        loop {
            let known = labelled.wait_for(Option::is_some).await;
            // The sender is ours, and so it lives.
            let any = known.is_ok_and(|labelled| has_any(&labelled));
            let config = if any { &all } else { &chosen };
            tokio::select! {
                ended = self.clone().follow::<Pod>(config.clone()) => return ended,
                _ = labelled.wait_for(|labelled| has_any(labelled) != any) => {}
            }
        }
    }

    /// Keeps which Namespaces have the label: only those travel.
    fn note(&self, event: &Event) {
        let change = |keys: &mut dyn FnMut(&mut BTreeSet<Key>)| {
            self.labelled.send_modify(|labelled| keys(labelled.get_or_insert_default()));
        };
        match event {
            Event::Apply(object) => {
                if let Some(key) = object.namespace_key() {
                    change(&mut |keys| _ = keys.insert(key.clone()));
                }
            }
            Event::Delete(Kind::Namespace, key) => change(&mut |keys| _ = keys.remove(key)),
            Event::Replace(Kind::Namespace, objects) => {
                let listed: BTreeSet<Key> = objects.iter().filter_map(Object::namespace_key).collect();
                change(&mut |keys| keys.clone_from(&listed));
            }
            _ => {}
        }
    }

    async fn follow<K: Wire>(self, mut config: watcher::Config) -> Ended {
        let mut stream = self.watch::<K>(&config);
        // Collected between Init and InitDone: already converted, as the objects that travel are many times larger.
        let mut listed = Vec::new();
        let mut phase = Phase::Listing;
        let mut rejected = false;
        let mut listed_at = None;
        while let Some(event) = stream.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    if let Some(simpler) = simpler(&config, phase, &error) {
                        tracing::debug!(kind = ?K::WHICH, error = %Chain(&error), "asking in a simpler way");
                        config = simpler;
                        stream = self.watch::<K>(&config);
                        continue;
                    }
                    match status(&error) {
                        // The server forgot the place from which to go on: the watcher lists anew.
                        Some(410) => tracing::debug!(kind = ?K::WHICH, "listing anew"),
                        refused if access::is_refusal(refused) => {
                            if let Err(ended) = access::regain::<K>(&self, &config, &error, listed_at).await {
                                return ended;
                            }
                            // From a new list, so that nothing is missed.
                            stream = self.watch::<K>(&config);
                        }
                        Some(_) if rejected => {}
                        Some(_) => {
                            tracing::warn!(kind = ?K::WHICH, error = %Chain(&error), "watch rejected, retrying");
                            rejected = true;
                        }
                        None if self.server.outlast(&Chain(&error)).await == Outcome::Lost => return Ended::ServerLost,
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
                watcher::Event::InitApply(wire) => {
                    listed.extend(wire.convert(self.proxy_name.as_deref()));
                    continue;
                }
                watcher::Event::InitDone => {
                    phase = Phase::Watching;
                    listed_at = Some(Instant::now());
                    Event::Replace(K::WHICH, std::mem::take(&mut listed))
                }
                watcher::Event::Apply(wire) => match wire.convert(self.proxy_name.as_deref()) {
                    Some(object) => Event::Apply(object),
                    // It may have decided something before.
                    None => Event::Delete(K::WHICH, wire.key()),
                },
                watcher::Event::Delete(wire) => Event::Delete(K::WHICH, wire.key()),
            };
            if rejected {
                tracing::info!(kind = ?K::WHICH, "watch works");
                rejected = false;
            }
            self.note(&event);
            if self.tx.send(event).await.is_err() {
                return Ended::NobodyListens;
            }
        }
        Ended::ServerLost
    }

    fn watch<K: Wire>(&self, config: &watcher::Config) -> BoxStream<'static, watcher::Result<watcher::Event<K>>> {
        watcher::watcher(Api::<K>::all(self.server.client.clone()), config.clone()).default_backoff().boxed()
    }
}

fn has_any(labelled: &Option<BTreeSet<Key>>) -> bool {
    labelled.as_ref().is_some_and(|labelled| !labelled.is_empty())
}

/// Whether a list is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Listing,
    Watching,
}

/// A way to ask that the server understands, if it rejected this one while listing.
fn simpler(config: &watcher::Config, phase: Phase, error: &watcher::Error) -> Option<watcher::Config> {
    let rejected = phase == Phase::Listing && status(error) == Some(400);
    let selects_services = config.field_selector.as_deref().is_some_and(|fields| fields.starts_with("spec."));
    // Field selectors for Services came with 1.31; without one the headless Services travel too.
    (rejected && selects_services).then(|| watcher::Config { field_selector: None, ..config.clone() })
}

/// The HTTP status of an error that the server itself returned.
fn status(error: &watcher::Error) -> Option<u16> {
    answer(error).map(|status| status.code)
}

/// What the server said, if the error is its own.
fn answer(error: &watcher::Error) -> Option<&kube::core::Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    }
}

/// An error and its causes in one line.
struct Chain<'a>(&'a (dyn std::error::Error + Send + Sync));

impl std::fmt::Display for Chain<'_> {
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
    fn rejected_question_is_asked_in_a_simpler_way() {
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

//! Choice of the API server, and its credentials.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use hyper::Uri;
use k8s_openapi::{apimachinery::pkg::version::Info, jiff};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{sync::Mutex, time::Instant};

use super::{ErrorChain, KubernetesOptions, RememberedServers, ServerInfo, ServerReport, remembered_servers};

/// Timeout of a request for the version.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Longest delay between two requests to a lost server.
const MAX_DELAY: Duration = Duration::from_secs(3);
/// Length of an outage after which other servers are asked too.
const FAILOVER_AFTER: Duration = Duration::from_secs(5);

/// The servers to choose from, in order of preference.
pub(super) struct Servers {
    /// One configuration for each `--api-server`, or the configured one; they differ in their URL only.
    named: Vec<Config>,
    /// The configuration that was found, with its own URL.
    credentials: Config,
    remembered: RememberedServers,
}

/// The server in use.
pub(super) struct Server {
    pub(super) client: Client,
    url: Uri,
    servers: Arc<Servers>,
    /// Time of its last answer to [`Server::outlast`] or [`Servers::choose`].
    answered: Mutex<Instant>,
}

/// End of an outage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Recovery {
    /// The server answers again.
    SameServer,
    /// The server does not answer, and another one does.
    OtherServer,
}

impl Server {
    /// Waits until the server answers again, or another one does. All watches of an outage wait here together: one of
    /// them sends requests, and there is one warning.
    pub(super) async fn outlast(&self, error: &ErrorChain<'_>) -> Recovery {
        let failed = Instant::now();
        let mut answered = self.answered.lock().await;
        if *answered > failed {
            return Recovery::SameServer;
        }
        let mut delay = Duration::from_millis(100);
        while let Err(failure) = version(&self.client).await {
            if delay == Duration::from_millis(100) {
                tracing::warn!(url = %self.url, %error, "API server lost, asking until it answers: {failure:#}");
            }
            // Another server means new lists, which are not needed if this one only restarts.
            if failed.elapsed() > FAILOVER_AFTER && self.servers.first(Some(&self.url)).await.0.is_some() {
                return Recovery::OtherServer;
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(MAX_DELAY);
        }
        if delay > Duration::from_millis(100) {
            tracing::info!(url = %self.url, after = ?failed.elapsed(), "API server answers again");
        }
        *answered = Instant::now();
        Recovery::SameServer
    }
}

/// A server that has answered.
struct Reachable {
    client: Client,
    url: Uri,
    version: String,
}

impl Servers {
    /// Reads the configuration.
    pub(super) async fn new(options: &KubernetesOptions) -> anyhow::Result<Self> {
        let credentials = config(options.kubeconfig.as_deref(), !options.api_server.is_empty()).await?;
        let remembered = options.remembered.clone();
        if options.api_server.is_empty() {
            return Ok(Self { named: vec![credentials.clone()], credentials, remembered });
        }
        let overridden = |url: &String| {
            let url = if url.contains("://") { url.clone() } else { format!("https://{url}") };
            let cluster_url =
                url.parse().with_context(|| format!("--api-server {url}: not a URL; write https://HOST:PORT"))?;
            let mut config = credentials.clone();
            config.cluster_url = cluster_url;
            Ok(config)
        };
        let named = options.api_server.iter().map(overridden).collect::<anyhow::Result<_>>()?;
        Ok(Self { named, credentials, remembered })
    }

    /// Returns the first server that answers. Retries until one does.
    pub(super) async fn choose(self: &Arc<Self>) -> Server {
        let mut delay = Duration::from_millis(100);
        let mut logged = None;
        loop {
            let (found, silent) = self.first(None).await;
            let silent = silent.join("; ");
            if let Some(Reachable { client, url, version }) = found {
                if !silent.is_empty() {
                    tracing::warn!("API servers that do not answer: {silent}; {CURE}");
                }
                tracing::info!(%url, version, "API server answers");
                return Server { client, url, servers: Arc::clone(self), answered: Mutex::new(Instant::now()) };
            }
            if logged.as_ref() == Some(&silent) {
                tracing::debug!("no API server answers: {silent}");
            } else {
                tracing::warn!("no API server answers, and they are asked until one does: {silent}; {CURE}");
                logged = Some(silent);
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(MAX_DELAY);
        }
    }

    /// Returns the first server that answers, except `except`: configured servers first, then remembered ones. Also
    /// returns the failures of the servers before it.
    async fn first(&self, except: Option<&Uri>) -> (Option<Reachable>, Vec<String>) {
        let mut silent = Vec::new();
        for config in self.named.iter().filter(|config| Some(&config.cluster_url) != except) {
            match ask(config).await {
                Ok(found) => return (Some(found), silent),
                Err(failure) => silent.push(format!("{}: {failure:#}", config.cluster_url)),
            }
        }
        // Read each time, since the endpoints change; and only now, since most starts do not need them.
        for address in self.remembered.addresses() {
            let configs = remembered_servers::configs_for(&self.credentials, address);
            let mut failure = configs.as_ref().err().map(|error| format!("{error:#}"));
            for config in configs.iter().flatten().filter(|config| Some(&config.cluster_url) != except) {
                match ask(config).await {
                    Ok(found) => return (Some(found), silent),
                    Err(error) => {
                        let timed_out = error.downcast_ref::<AnswerTimeout>().is_some();
                        failure = Some(format!("{error:#}"));
                        // Another name cannot make it answer.
                        if timed_out {
                            break;
                        }
                    }
                }
            }
            silent.extend(failure.map(|failure| format!("https://{address}, which the maps remember: {failure}")));
        }
        (None, silent)
    }
}

/// Cure for servers that do not answer.
const CURE: &str = "check --api-server, and that each certificate is for the name in its URL";

/// No answer within the timeout.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {TIMEOUT:?}")]
struct AnswerTimeout;

/// Reads the configuration: the kubeconfig of `--kubeconfig`, or the pod's service account, or the default kubeconfig.
async fn config(kubeconfig: Option<&Path>, has_api_server: bool) -> anyhow::Result<Config> {
    if let Some(path) = kubeconfig {
        let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("--kubeconfig {}", path.display()))?;
        return Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .with_context(|| format!("--kubeconfig {}", path.display()));
    }
    let in_cluster = match Config::incluster() {
        // The environment holds only the URL.
        Err(_) if has_api_server => Config::incluster_dns(),
        other => other,
    };
    let no_account = match in_cluster {
        Ok(config) => return Ok(config),
        Err(error) => error,
    };
    Config::from_kubeconfig(&KubeConfigOptions::default()).await.with_context(|| {
        format!("neither a service account ({no_account}) nor a kubeconfig; run in a pod or pass --kubeconfig FILE")
    })
}

async fn ask(config: &Config) -> anyhow::Result<Reachable> {
    let client = Client::try_from(config.clone())?;
    let version = version(&client).await?.git_version;
    Ok(Reachable { client, url: config.cluster_url.clone(), version })
}

/// Asks for the server's version, which every client may read.
async fn version(client: &Client) -> anyhow::Result<Info> {
    tokio::time::timeout(TIMEOUT, client.apiserver_version())
        .await
        .map_err(|_| AnswerTimeout)?
        .map_err(|error| anyhow::anyhow!("{}", ErrorChain(&error)))
}

/// Asks each server once for its version and its clock.
///
/// # Errors
/// When the configuration cannot be read.
pub(super) async fn ask_each(options: &KubernetesOptions) -> anyhow::Result<Vec<ServerReport>> {
    let mut reports = Vec::new();
    for config in Servers::new(options).await?.named {
        let url = config.cluster_url.to_string();
        let info = tokio::time::timeout(TIMEOUT, server_info(config)).await;
        let info = info.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {TIMEOUT:?}")));
        reports.push(ServerReport { url, result: info.map_err(|error| format!("{error:#}")) });
    }
    Ok(reports)
}

async fn server_info(config: Config) -> anyhow::Result<ServerInfo> {
    let client = Client::try_from(config)?;
    let start = Instant::now();
    let version = version(&client).await?.git_version;
    let latency = start.elapsed();
    let request = hyper::Request::get("/version").body(kube::client::Body::empty())?;
    let answer = client.send(request).await.map_err(|error| anyhow::anyhow!("{}", ErrorChain(&error)))?;
    let date = answer.headers().get(hyper::header::DATE).and_then(|date| date.to_str().ok());
    let theirs = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
    let clock_ahead = theirs.map(|theirs| jiff::Timestamp::now().as_second() - theirs.timestamp().as_second());
    Ok(ServerInfo { version, latency, clock_ahead })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unusable_configuration_is_an_error_with_its_cure() {
        let options = KubernetesOptions { kubeconfig: Some("/nonexistent".into()), ..KubernetesOptions::default() };
        let error = Servers::new(&options).await.err().unwrap();
        assert!(format!("{error:#}").starts_with("--kubeconfig /nonexistent: "), "{error:#}");
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("config");
        let text = "{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: 'https://192.0.2.1'}}], \
                    users: [{name: u, user: {token: t}}], contexts: [{name: x, context: {cluster: c, user: u}}], \
                    current-context: x}";
        std::fs::write(&kubeconfig, text).unwrap();
        let mut options = KubernetesOptions { kubeconfig: Some(kubeconfig), ..KubernetesOptions::default() };
        let url = |servers: &Servers| servers.named.iter().map(|c| c.cluster_url.to_string()).collect::<Vec<_>>();
        assert_eq!(url(&Servers::new(&options).await.unwrap()), ["https://192.0.2.1/"]);
        options.api_server = vec!["192.0.2.2:6443".to_owned(), "http://[fd00::1]:80".to_owned()];
        assert_eq!(url(&Servers::new(&options).await.unwrap()), ["https://192.0.2.2:6443/", "http://[fd00::1]:80/"]);
        options.api_server = vec!["https://a b".to_owned()];
        let error = Servers::new(&options).await.err().unwrap();
        assert!(format!("{error:#}").contains("write https://HOST:PORT"), "{error:#}");
    }
}

//! Which API server to ask, and with which credentials.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use hyper::Uri;
use k8s_openapi::{apimachinery::pkg::version::Info, jiff};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{sync::Mutex, time::Instant};

use super::{Answer, Chain, Options, Remembered, Said, remembered};

/// How long one server has for an answer.
const ANSWER: Duration = Duration::from_secs(3);
/// How often at least a lost server is asked.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// In an outage of this length the others are asked too.
const PATIENCE: Duration = Duration::from_secs(5);

/// The servers to choose from, in order of preference.
pub(super) struct Servers {
    /// One configuration for each that was named; they differ in their URL alone.
    named: Vec<Config>,
    /// As they were given, with their own URL.
    credentials: Config,
    remembered: Remembered,
}

/// The server in use.
pub(super) struct Server {
    pub(super) client: Client,
    url: Uri,
    servers: Arc<Servers>,
    /// When it answered last, as far as somebody asked.
    answered: Mutex<Instant>,
}

/// What became of a server that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// It answers again.
    Answers,
    /// It does not, and another one does.
    Lost,
}

impl Server {
    /// Waits until the server answers again, or another one does. All watches of an outage wait here together: one of them
    /// asks, and there is one warning.
    pub(super) async fn outlast(&self, error: &Chain<'_>) -> Outcome {
        let failed = Instant::now();
        let mut answered = self.answered.lock().await;
        if *answered > failed {
            return Outcome::Answers;
        }
        let mut delay = Duration::from_millis(100);
        while let Err(silence) = version(&self.client).await {
            if delay == Duration::from_millis(100) {
                tracing::warn!(url = %self.url, %error, "API server lost, asking until it answers: {silence:#}");
            }
            // A change of servers costs new lists, which one that is only starting again is spared.
            if failed.elapsed() > PATIENCE && self.servers.first(Some(&self.url)).await.0.is_some() {
                return Outcome::Lost;
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(ASK_AGAIN);
        }
        if delay > Duration::from_millis(100) {
            tracing::info!(url = %self.url, after = ?failed.elapsed(), "API server answers again");
        }
        *answered = Instant::now();
        Outcome::Answers
    }
}

/// A server that answers.
struct Found {
    client: Client,
    url: Uri,
    version: String,
}

impl Servers {
    /// Reads the configuration.
    pub(super) async fn new(options: &Options) -> anyhow::Result<Self> {
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

    /// The first that answers. Goes on asking until one does.
    pub(super) async fn choose(self: &Arc<Self>) -> Server {
        let mut delay = Duration::from_millis(100);
        let mut told = None;
        loop {
            let (found, silent) = self.first(None).await;
            let silent = silent.join("; ");
            if let Some(Found { client, url, version }) = found {
                if !silent.is_empty() {
                    tracing::warn!("API servers that do not answer: {silent}; {CURE}");
                }
                tracing::info!(%url, version, "API server answers");
                return Server { client, url, servers: Arc::clone(self), answered: Mutex::new(Instant::now()) };
            }
            if told.as_ref() == Some(&silent) {
                tracing::debug!("no API server answers: {silent}");
            } else {
                tracing::warn!("no API server answers, and they are asked until one does: {silent}; {CURE}");
                told = Some(silent);
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(ASK_AGAIN);
        }
    }

    /// The first that answers, `but` for one: those that were named, then those that the maps remember. And what came of
    /// those before it.
    async fn first(&self, but: Option<&Uri>) -> (Option<Found>, Vec<String>) {
        let mut silent = Vec::new();
        for config in self.named.iter().filter(|config| Some(&config.cluster_url) != but) {
            match ask(config).await {
                Ok(found) => return (Some(found), silent),
                Err(silence) => silent.push(format!("{}: {silence:#}", config.cluster_url)),
            }
        }
        // Read anew each time, since they change as the cluster does; and only now, since most starts need none.
        for address in self.remembered.servers() {
            let ways = remembered::ways(&self.credentials, address);
            let mut silence = ways.as_ref().err().map(|error| format!("{error:#}"));
            for config in ways.iter().flatten().filter(|config| Some(&config.cluster_url) != but) {
                match ask(config).await {
                    Ok(found) => return (Some(found), silent),
                    Err(error) => {
                        let is_silent = error.downcast_ref::<NoAnswer>().is_some();
                        silence = Some(format!("{error:#}"));
                        // By another name it would be no less so.
                        if is_silent {
                            break;
                        }
                    }
                }
            }
            silent.extend(silence.map(|silence| format!("https://{address}, which the maps remember: {silence}")));
        }
        (None, silent)
    }
}

/// What helps against servers that do not answer.
const CURE: &str = "check --api-server, and that each certificate is for the name in its URL";

/// It took too long.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {ANSWER:?}")]
struct NoAnswer;

/// The configuration that is at hand: the given kubeconfig, or the pod's service account, or the default kubeconfig.
async fn config(kubeconfig: Option<&Path>, url_is_given: bool) -> anyhow::Result<Config> {
    if let Some(path) = kubeconfig {
        let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("--kubeconfig {}", path.display()))?;
        return Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .with_context(|| format!("--kubeconfig {}", path.display()));
    }
    let in_cluster = match Config::incluster() {
        // Only the URL comes from the environment.
        Err(_) if url_is_given => Config::incluster_dns(),
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

async fn ask(config: &Config) -> anyhow::Result<Found> {
    let client = Client::try_from(config.clone())?;
    let version = version(&client).await?.git_version;
    Ok(Found { client, url: config.cluster_url.clone(), version })
}

/// What the server is; every client may ask for it.
async fn version(client: &Client) -> anyhow::Result<Info> {
    tokio::time::timeout(ANSWER, client.apiserver_version())
        .await
        .map_err(|_| NoAnswer)?
        .map_err(|error| anyhow::anyhow!("{}", Chain(&error)))
}

/// Asks each server once for its version and the time.
///
/// # Errors
/// When the configuration cannot be read.
pub(super) async fn ask_each(options: &Options) -> anyhow::Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for config in Servers::new(options).await?.named {
        let url = config.cluster_url.to_string();
        let said = tokio::time::timeout(ANSWER, said(config)).await;
        let said = said.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {ANSWER:?}")));
        answers.push(Answer { url, said: said.map_err(|error| format!("{error:#}")) });
    }
    Ok(answers)
}

async fn said(config: Config) -> anyhow::Result<Said> {
    let client = Client::try_from(config)?;
    let start = Instant::now();
    let version = version(&client).await?.git_version;
    let took = start.elapsed();
    let question = hyper::Request::get("/version").body(kube::client::Body::empty())?;
    let answer = client.send(question).await.map_err(|error| anyhow::anyhow!("{}", Chain(&error)))?;
    let date = answer.headers().get(hyper::header::DATE).and_then(|date| date.to_str().ok());
    let theirs = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
    let ahead = theirs.map(|theirs| jiff::Timestamp::now().as_second() - theirs.timestamp().as_second());
    Ok(Said { version, took, ahead })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn unusable_configuration_is_an_error_with_its_cure() {
        let options = Options { kubeconfig: Some("/nonexistent".into()), ..Options::default() };
        let error = Servers::new(&options).await.err().unwrap();
        assert!(format!("{error:#}").starts_with("--kubeconfig /nonexistent: "), "{error:#}");
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("config");
        let text = "{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: 'https://192.0.2.1'}}], \
                    users: [{name: u, user: {token: t}}], contexts: [{name: x, context: {cluster: c, user: u}}], \
                    current-context: x}";
        std::fs::write(&kubeconfig, text).unwrap();
        let mut options = Options { kubeconfig: Some(kubeconfig), ..Options::default() };
        let url = |servers: &Servers| servers.named.iter().map(|c| c.cluster_url.to_string()).collect::<Vec<_>>();
        assert_eq!(url(&Servers::new(&options).await.unwrap()), ["https://192.0.2.1/"]);
        options.api_server = vec!["192.0.2.2:6443".to_owned(), "http://[fd00::1]:80".to_owned()];
        assert_eq!(url(&Servers::new(&options).await.unwrap()), ["https://192.0.2.2:6443/", "http://[fd00::1]:80/"]);
        options.api_server = vec!["https://a b".to_owned()];
        let error = Servers::new(&options).await.err().unwrap();
        assert!(format!("{error:#}").contains("write https://HOST:PORT"), "{error:#}");
    }
}

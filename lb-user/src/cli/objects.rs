//! Where a command that needs the objects gets them: from what its flags name, or from where the running agent does. They
//! are read once.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{ArgMatches, Args, CommandFactory as _, Parser as _, ValueEnum, parser::ValueSource};
use tokio::{sync::mpsc, time::timeout};

use super::{Cli, Command, config, run, service_flags, service_flags::Meaning};
use lb_agent::Source;
use lb_core::{
    event::{Event, Kind},
    model::Settings,
};
use lb_dataplane::pins::Pins;
use lb_sources::{
    directory::{self, DirectoryState},
    kubernetes::{self, RememberedServers},
};

/// Form of what is said about them.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Lines for people.
    Text,
    /// A JSON object.
    Json,
}

/// How long an API server has for the lists.
const PATIENCE: Duration = Duration::from_secs(30);

/// The flags that name the objects, and what they mean.
#[derive(Args)]
pub(super) struct Named {
    /// Directory of YAML, or one file, to read the objects from.
    #[arg(short = 'f', long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "api_server"])]
    filename: Option<PathBuf>,

    /// Credentials of the cluster to ask.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// URL of an API server, in the place of that of the credentials; may be given more than once.
    #[arg(long, value_name = "URL")]
    api_server: Vec<String>,

    #[command(flatten)]
    meaning: Meaning,
}

/// Who says where the objects are and what they mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flags {
    /// The command line.
    Given,
    /// The agent.
    Agents,
}

impl Flags {
    /// Who it is, by what the command line has.
    pub(super) fn of(matches: &ArgMatches) -> Self {
        let others = ["service", "output", "pins"];
        let given = matches.ids().map(clap::Id::as_str).filter(|id| !others.contains(id));
        let mut given = given.filter(|id| matches.value_source(id) == Some(ValueSource::CommandLine));
        if given.next().is_some() { Self::Given } else { Self::Agents }
    }
}

/// Where the objects are, and as whom to see them.
pub(super) struct Origin {
    /// Said in words.
    pub(super) text: String,
    pub(super) source: Source,
    pub(super) settings: Settings,
    pub(super) node_name: String,
}

impl Named {
    /// What the command line names.
    pub(super) fn origin(self) -> Result<Origin> {
        let (settings, node_name) = (self.meaning.settings(), self.meaning.node_name());
        let proxy_name = self.meaning.service_proxy_name;
        let (text, source) = match self.filename {
            Some(path) => {
                let text = format!("the directory {}", path.display());
                (text, Source::Directory(directory::Options { path, proxy_name }))
            }
            None if self.kubeconfig.is_none() && self.api_server.is_empty() => bail!(
                "flags that say what a Service means need the objects beside them: name a directory with -f, or a cluster \
                 with --kubeconfig or --api-server; or give none of them, and those of the running agent count"
            ),
            None => {
                let (api_server, kubeconfig) = (self.api_server, self.kubeconfig);
                let node_name = node_name.clone();
                let options = kubernetes::Options {
                    api_server,
                    kubeconfig,
                    node_name,
                    proxy_name,
                    remembered: RememberedServers::default(),
                };
                ("the API server".to_owned(), Source::Kubernetes(options))
            }
        };
        Ok(Origin { text, source, settings, node_name })
    }
}

/// The agent that holds the pins.
pub(super) struct Agent {
    /// Its process.
    pub(super) pid: u32,
    /// What it was told to do.
    pub(super) arguments: run::Arguments,
    /// What it reads.
    pub(super) origin: Origin,
}

/// The agent that holds the pins, what it reads, and what its flags say; none when there is no agent.
pub(super) fn agent(pins: &Pins) -> Result<Option<Agent>> {
    let Some(pid) = pins.agent() else { return Ok(None) };
    let process = PathBuf::from(format!("/proc/{pid}"));
    let read = |name| fs::read(process.join(name)).with_context(|| format!("reading {name} of the agent (pid {pid})"));
    let environment = strings(&read("environ")?);
    let variable = |name: &str| environment.iter().find_map(|pair| value(pair, name));
    let at = |path: &Path| seen_from_here(&process, path);
    let arguments = agent_arguments(strings(&read("cmdline")?), variable("NODE_NAME"), at)
        .with_context(|| format!("the pins are held by pid {pid}, whose arguments are not those of an agent"))?;
    let mut source = arguments.source();
    let text = match &mut source {
        Source::Directory(options) => {
            let text = format!("the directory {}, which the agent (pid {pid}) reads", options.path.display());
            options.path = seen_from_here(&process, &options.path);
            text
        }
        Source::Kubernetes(options) => {
            // In a pod the pod's account goes before this variable, and is found from here as well.
            let in_pod = variable("KUBERNETES_SERVICE_HOST").is_some();
            let default = variable("KUBECONFIG").filter(|_| !in_pod).map(PathBuf::from);
            let named = options.kubeconfig.take().or(default);
            options.kubeconfig = named.map(|path| seen_from_here(&process, &path));
            let directory = pins.current();
            options.remembered = RememberedServers::new(move || lb_dataplane::api_servers::endpoints(&directory));
            format!("the API server that the agent (pid {pid}) watches")
        }
    };
    let (settings, node_name) = (arguments.meaning.settings(), arguments.meaning.node_name());
    Ok(Some(Agent { pid, origin: Origin { text, source, settings, node_name }, arguments }))
}

/// Parses the command line of an agent, in whose environment `NODE_NAME` has the given value; `at` tells where its paths are
/// found.
fn agent_arguments(
    line: Vec<OsString>,
    node_name: Option<OsString>,
    at: impl Fn(&Path) -> PathBuf,
) -> Result<run::Arguments> {
    let matches = Cli::command().try_get_matches_from(&line)?;
    let (mut line, matches) = config::complete(line, matches, at)?;
    let run = matches.subcommand_matches("run").context("it is not `beeline run`")?;
    if run.value_source("node_name") != Some(ValueSource::CommandLine) {
        // Not by the environment of this process.
        line.push("--node-name".into());
        line.push(node_name.unwrap_or_else(|| service_flags::host_name().into()));
    }
    match Cli::try_parse_from(line)?.command {
        Command::Run(arguments) => Ok(*arguments),
        _ => bail!("it is not `beeline run`"),
    }
}

/// The strings of a file of /proc, each ended by a zero.
fn strings(content: &[u8]) -> Vec<OsString> {
    let content = content.strip_suffix(&[0]).unwrap_or(content);
    content.split(|&octet| octet == 0).map(|text| OsString::from_vec(text.to_vec())).collect()
}

/// The value of an environment variable, if `pair` is it.
fn value(pair: &OsStr, name: &str) -> Option<OsString> {
    let octets = pair.as_encoded_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
    Some(OsString::from_vec(octets.to_vec()))
}

/// A path as another process means it: by its working directory, and in its mounts.
fn seen_from_here(process: &Path, path: &Path) -> PathBuf {
    let mounts = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
    if path.is_relative() {
        process.join("cwd").join(path)
    } else if mounts(process) == mounts(Path::new("/proc/self")) {
        path.to_owned()
    } else {
        process.join("root").join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// Reads the kinds that Services need, once.
pub(super) fn load(source: Source) -> Result<Vec<Event>> {
    match source {
        Source::Directory(options) => directory::load(&options.path, &mut DirectoryState::new(options.proxy_name)),
        Source::Kubernetes(options) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.context("starting the runtime")?.block_on(list(options))
        }
    }
}

/// What the agent's own source sends until each kind was listed.
async fn list(options: kubernetes::Options) -> Result<Vec<Event>> {
    let (tx, mut rx) = mpsc::channel(16);
    let mut missing = BTreeSet::from(Kind::OF_SERVICES);
    let mut events = Vec::new();
    let collect = async {
        while !missing.is_empty() {
            let event = rx.recv().await.context("the source ended")?;
            match &event {
                Event::Replace(kind, _) => _ = missing.remove(kind),
                Event::Forbidden(kind) if missing.contains(kind) => {
                    bail!("the account may not read the {kind:?} objects")
                }
                Event::Forbidden(_) | Event::Apply(_) | Event::Delete(..) | Event::NodeAddresses(_) => {}
            }
            events.push(event);
        }
        Ok(())
    };
    let collected = tokio::select! {
        ended = kubernetes::run(options, tx) => ended.and_then(|()| bail!("the source ended")),
        collected = timeout(PATIENCE, collect) => collected.unwrap_or_else(|_| bail!("no answer within {PATIENCE:?}")),
    };
    collected.context("listing from the API server")?;
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &[&str], node_name: Option<&str>) -> Result<run::Arguments> {
        agent_arguments(line.iter().map(Into::into).collect(), node_name.map(Into::into), Path::to_owned)
    }

    #[test]
    fn the_agents_own_arguments_and_environment_count() {
        let directory = ["beeline", "--pins", "/x", "run", "--directory", "y", "--external-ips", "none"];
        let arguments = parsed(&directory, Some("n1")).expect("an agent");
        assert_eq!(arguments.meaning.node_name(), "n1");
        assert_eq!(arguments.meaning.settings().external_ips, lb_core::model::ExternalIps::None);
        assert!(matches!(arguments.source(), Source::Directory(options) if options.path == Path::new("y")));
        let named = ["beeline", "run", "--node-name=n2", "--api-server", "https://192.0.2.1"];
        let arguments = parsed(&named, Some("n1")).expect("an agent");
        assert_eq!(arguments.meaning.node_name(), "n2");
        assert!(matches!(arguments.source(), Source::Kubernetes(options) if options.node_name == "n2"));
        assert_eq!(
            parsed(&["beeline", "run"], None).expect("an agent").meaning.node_name(),
            service_flags::host_name()
        );
        for other in [&["beeline", "cleanup"][..], &["sleep", "1"], &[]] {
            assert!(parsed(other, None).is_err(), "{other:?}");
        }
    }

    #[test]
    fn the_agents_file_counts_as_its_arguments_do() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "external-ips: none\nnode-name: n2\ndirectory: y\n").expect("a file");
        let line = ["beeline", "run", "--config", "/etc/x"].iter().map(Into::into).collect();
        let arguments = agent_arguments(line, Some("n1".into()), |_| file.path().to_owned()).expect("an agent");
        assert_eq!(arguments.meaning.node_name(), "n2", "it goes before the environment");
        assert_eq!(arguments.meaning.settings().external_ips, lb_core::model::ExternalIps::None);
        assert!(matches!(arguments.source(), Source::Directory(options) if options.path == Path::new("y")));
    }

    #[test]
    fn what_proc_says_is_taken_apart() {
        assert_eq!(strings(b"a\0\0b=c\0"), ["a", "", "b=c"]);
        assert_eq!(value(OsStr::new("NODE_NAME=a=b"), "NODE_NAME"), Some("a=b".into()));
        assert_eq!(value(OsStr::new("NODE_NAMES=a"), "NODE_NAME"), None);
    }

    #[test]
    fn a_path_is_read_as_the_other_process_means_it() {
        let own = Path::new("/proc/self");
        assert_eq!(seen_from_here(own, Path::new("a/b")), Path::new("/proc/self/cwd/a/b"));
        assert_eq!(seen_from_here(own, Path::new("/a/b")), Path::new("/a/b"));
        assert_eq!(seen_from_here(Path::new("/proc/0"), Path::new("/a/b")), Path::new("/proc/0/root/a/b"));
    }
}

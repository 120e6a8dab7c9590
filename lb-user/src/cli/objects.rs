//! Objects for commands that need them: read once, from the source in the command's flags, or from the running agent's
//! source.

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

use super::{Cli, Command, config, run, service_flags, service_flags::ServiceArgs};
use lb_agent::Source;
use lb_core::{
    event::{Event, ObjectKind},
    model::Settings,
};
use lb_dataplane::pins::Pins;
use lb_sources::{
    directory::{self, DirectoryState, RememberedAddresses},
    kubernetes::{self, RememberedServers},
};

/// Format of a report.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ReportFormat {
    /// Lines of text.
    Text,
    /// A JSON object.
    Json,
}

/// Time limit for the lists of an API server.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// Flags that name the source of the objects, and interpret them.
#[derive(Args)]
pub(super) struct SourceArgs {
    /// Directory of YAML files, or one file, to read the objects from.
    #[arg(short = 'f', long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "api_server"])]
    filename: Option<PathBuf>,

    /// Credentials of the cluster to read the objects from.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// URL of an API server, instead of the one in the credentials; may be repeated.
    #[arg(long, value_name = "URL")]
    api_server: Vec<String>,

    #[command(flatten)]
    service_args: ServiceArgs,
}

/// Process of the flags that count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FlagSource {
    /// This command line.
    CommandLine,
    /// The running agent's command line.
    Agent,
}

impl FlagSource {
    /// Returns `CommandLine` if the command line has any flag about the objects.
    pub(super) fn of(matches: &ArgMatches) -> Self {
        let unrelated = ["service", "output", "pins"];
        let is_typed = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let mut ids = matches.ids().map(clap::Id::as_str);
        if ids.any(|id| !unrelated.contains(&id) && is_typed(id)) { Self::CommandLine } else { Self::Agent }
    }
}

/// Source of the objects, and the settings that interpret them.
pub(super) struct ObjectSource {
    /// Description of the source.
    pub(super) text: String,
    pub(super) source: Source,
    pub(super) settings: Settings,
    pub(super) node_name: String,
}

impl SourceArgs {
    /// Returns the source that the command line names.
    pub(super) fn object_source(self) -> Result<ObjectSource> {
        let (settings, node_name) = (self.service_args.settings(), self.service_args.node_name());
        let host_ports = self.service_args.host_ports;
        let proxy_name = self.service_args.service_proxy_name;
        let (text, source) = match self.filename {
            Some(path) => {
                let text = format!("the directory {}", path.display());
                let remembered = RememberedAddresses::default();
                (text, Source::Directory(directory::DirectoryOptions { path, proxy_name, remembered }))
            }
            None if self.kubeconfig.is_none() && self.api_server.is_empty() => bail!(
                "settings of Services need a source of objects: name a directory with -f, or a cluster with \
                 --kubeconfig or --api-server; without all of these flags, the source and settings of the running \
                 agent count"
            ),
            None => {
                let (api_server, kubeconfig) = (self.api_server, self.kubeconfig);
                let node_name = node_name.clone();
                let options = kubernetes::KubernetesOptions {
                    api_server,
                    kubeconfig,
                    node_name,
                    proxy_name,
                    host_ports,
                    remembered: RememberedServers::default(),
                };
                ("the API server".to_owned(), Source::Kubernetes(options))
            }
        };
        Ok(ObjectSource { text, source, settings, node_name })
    }
}

/// Agent that holds the pins.
pub(super) struct RunningAgent {
    pub(super) pid: u32,
    /// Command line of the agent.
    pub(super) arguments: run::RunArgs,
    /// Source that it reads.
    pub(super) objects: ObjectSource,
}

/// Finds the agent that holds the pins, and reads its command line from /proc. `None` without an agent.
pub(super) fn agent(pins: &Pins) -> Result<Option<RunningAgent>> {
    let Some(pid) = pins.agent() else { return Ok(None) };
    let process = PathBuf::from(format!("/proc/{pid}"));
    let read = |name| fs::read(process.join(name)).with_context(|| format!("reading {name} of the agent (pid {pid})"));
    let environment = strings(&read("environ")?);
    let variable = |name: &str| environment.iter().find_map(|pair| value(pair, name));
    let resolve = |path: &Path| resolve(&process, path);
    let arguments = agent_arguments(strings(&read("cmdline")?), variable("NODE_NAME"), resolve)
        .with_context(|| format!("pid {pid} holds the pins, but its command line is not that of an agent"))?;
    let mut source = arguments.source();
    let text = match &mut source {
        Source::Directory(options) => {
            let text = format!("the directory {}, which the agent (pid {pid}) reads", options.path.display());
            options.path = resolve(&options.path);
            let directory = pins.current();
            options.remembered = RememberedAddresses::new(move || lb_dataplane::balancer_addresses::read(&directory));
            text
        }
        Source::Kubernetes(options) => {
            // In a pod the pod's service account takes precedence over this variable; it is the same from here.
            let in_pod = variable("KUBERNETES_SERVICE_HOST").is_some();
            let default = variable("KUBECONFIG").filter(|_| !in_pod).map(PathBuf::from);
            let named = options.kubeconfig.take().or(default);
            options.kubeconfig = named.map(|path| resolve(&path));
            let directory = pins.current();
            options.remembered = RememberedServers::new(move || lb_dataplane::api_servers::endpoints(&directory));
            format!("the API server that the agent (pid {pid}) watches")
        }
    };
    let (settings, node_name) = (arguments.service_args.settings(), arguments.service_args.node_name());
    Ok(Some(RunningAgent { pid, objects: ObjectSource { text, source, settings, node_name }, arguments }))
}

/// Parses the command line of an agent with `node_name` in its environment variable `NODE_NAME`. `resolve` maps its
/// paths to paths of this process.
fn agent_arguments(
    line: Vec<OsString>,
    node_name: Option<OsString>,
    resolve: impl Fn(&Path) -> PathBuf,
) -> Result<run::RunArgs> {
    let matches = Cli::command().try_get_matches_from(&line)?;
    let (mut line, matches) = config::complete(line, matches, resolve)?;
    let run = matches.subcommand_matches("run").context("it is not `beeline run`")?;
    if run.value_source("node_name") != Some(ValueSource::CommandLine) {
        // Override the environment of this process.
        line.push("--node-name".into());
        line.push(node_name.unwrap_or_else(|| service_flags::host_name().into()));
    }
    match Cli::try_parse_from(line)?.command {
        Command::Run(arguments) => Ok(*arguments),
        _ => bail!("it is not `beeline run`"),
    }
}

/// Splits a file of /proc into its strings, each ended by a zero byte.
fn strings(content: &[u8]) -> Vec<OsString> {
    let content = content.strip_suffix(&[0]).unwrap_or(content);
    content.split(|&byte| byte == 0).map(|text| OsString::from_vec(text.to_vec())).collect()
}

/// Returns the value in `NAME=VALUE` if the name is `name`.
fn value(pair: &OsStr, name: &str) -> Option<OsString> {
    let bytes = pair.as_encoded_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
    Some(OsString::from_vec(bytes.to_vec()))
}

/// Resolves a path of another process: relative to its working directory, and in its mount namespace.
fn resolve(process: &Path, path: &Path) -> PathBuf {
    let mounts = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
    if path.is_relative() {
        process.join("cwd").join(path)
    } else if mounts(process) == mounts(Path::new("/proc/self")) {
        path.to_owned()
    } else {
        process.join("root").join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// Reads the objects that Services need, once.
pub(super) fn load(source: Source) -> Result<Vec<Event>> {
    match source {
        Source::Directory(options) => {
            let mut state = DirectoryState::new(options.proxy_name).remembering(options.remembered);
            directory::load(&options.path, &mut state)
        }
        Source::Kubernetes(options) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.context("starting the runtime")?.block_on(list(options))
        }
    }
}

/// Runs the agent's own source until it has listed each kind.
async fn list(options: kubernetes::KubernetesOptions) -> Result<Vec<Event>> {
    let (tx, mut rx) = mpsc::channel(16);
    let mut missing = BTreeSet::from(ObjectKind::OF_SERVICES);
    missing.extend(options.host_ports.then_some(ObjectKind::Pod));
    let mut events = Vec::new();
    let collect = async {
        while !missing.is_empty() {
            let event = rx.recv().await.context("the source ended")?;
            match &event {
                Event::Replace(kind, _) => _ = missing.remove(kind),
                Event::Forbidden(kind) if missing.contains(kind) => {
                    bail!("the account may not read the {kind:?} objects")
                }
                Event::Forbidden(_)
                | Event::Apply(_)
                | Event::Delete(..)
                | Event::NodeAddresses(_)
                | Event::ClusterRanges(_)
                | Event::ClosedListeners(_)
                | Event::Probed { .. } => {}
            }
            events.push(event);
        }
        Ok(())
    };
    let timed_out = |_| bail!("no answer within {LIST_TIMEOUT:?}");
    let collected = tokio::select! {
        ended = kubernetes::run(options, tx) => ended.and_then(|()| bail!("the source ended")),
        collected = timeout(LIST_TIMEOUT, collect) => collected.unwrap_or_else(timed_out),
    };
    collected.context("listing from the API server")?;
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &[&str], node_name: Option<&str>) -> Result<run::RunArgs> {
        agent_arguments(line.iter().map(Into::into).collect(), node_name.map(Into::into), Path::to_owned)
    }

    #[test]
    fn the_agents_own_command_line_and_environment_count() {
        let directory = ["beeline", "--pins", "/x", "run", "--directory", "y", "--external-ips", "none"];
        let arguments = parsed(&directory, Some("n1")).expect("an agent");
        assert_eq!(arguments.service_args.node_name(), "n1");
        assert_eq!(arguments.service_args.settings().external_ips, lb_core::model::ExternalIps::None);
        assert!(matches!(arguments.source(), Source::Directory(options) if options.path == Path::new("y")));
        let named = ["beeline", "run", "--node-name=n2", "--api-server", "https://192.0.2.1"];
        let arguments = parsed(&named, Some("n1")).expect("an agent");
        assert_eq!(arguments.service_args.node_name(), "n2");
        assert!(matches!(arguments.source(), Source::Kubernetes(options) if options.node_name == "n2"));
        assert_eq!(
            parsed(&["beeline", "run"], None).expect("an agent").service_args.node_name(),
            service_flags::host_name()
        );
        for other in [&["beeline", "cleanup"][..], &["sleep", "1"], &[]] {
            assert!(parsed(other, None).is_err(), "{other:?}");
        }
    }

    #[test]
    fn the_agents_config_file_counts() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "external-ips: none\nnode-name: n2\ndirectory: y\n").expect("a file");
        let line = ["beeline", "run", "--config", "/etc/x"].iter().map(Into::into).collect();
        let arguments = agent_arguments(line, Some("n1".into()), |_| file.path().to_owned()).expect("an agent");
        assert_eq!(arguments.service_args.node_name(), "n2", "it takes precedence over the environment");
        assert_eq!(arguments.service_args.settings().external_ips, lb_core::model::ExternalIps::None);
        assert!(matches!(arguments.source(), Source::Directory(options) if options.path == Path::new("y")));
    }

    #[test]
    fn strings_of_proc_are_split() {
        assert_eq!(strings(b"a\0\0b=c\0"), ["a", "", "b=c"]);
        assert_eq!(value(OsStr::new("NODE_NAME=a=b"), "NODE_NAME"), Some("a=b".into()));
        assert_eq!(value(OsStr::new("NODE_NAMES=a"), "NODE_NAME"), None);
    }

    #[test]
    fn a_path_of_another_process_is_resolved() {
        let own = Path::new("/proc/self");
        assert_eq!(resolve(own, Path::new("a/b")), Path::new("/proc/self/cwd/a/b"));
        assert_eq!(resolve(own, Path::new("/a/b")), Path::new("/a/b"));
        assert_eq!(resolve(Path::new("/proc/0"), Path::new("/a/b")), Path::new("/proc/0/root/a/b"));
    }
}

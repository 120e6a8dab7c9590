//! `beeline run`: the flags of the agent.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use super::{log, service_flags::Meaning};
use lb_agent::{BindAddress, Config, Source};
use lb_core::op::Table;
use lb_dataplane::{
    devices::options::{DeviceOptions, LinkPatterns, UplinkChoice},
    pins::Pins,
    upgrade::programs::MapSizes,
};
use lb_sources::{
    directory,
    kubernetes::{self, RememberedServers},
};

/// Flags of the agent.
#[derive(Args)]
#[command(after_help = "Examples:
  beeline run                          in a pod, with the pod's own account
  beeline run --kubeconfig admin.conf  on a host
  beeline run --directory ./services   without any cluster
  beeline run --config beeline.yaml    with the flags of a file

SIGTERM and SIGINT end the agent and leave the datapath in place: the kernel goes on translating from the maps as they \
are, and the next start takes them over. `beeline cleanup` removes it.")]
pub(super) struct Arguments {
    /// Read flags from a YAML file, whose keys are their names, as in `scheduler: wrr`. Those of the command line go before
    /// it, and it goes before the environment.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Read Services from the YAML files of this directory, and follow their changes, instead of from a cluster.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "api_server"])]
    directory: Option<PathBuf>,

    /// Credentials of the cluster [default: those of the pod, then $KUBECONFIG, then ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// URL of an API server, in the place of that of the credentials; may be given more than once, and the first that
    /// answers is used, and after them those that the pins remember.
    #[arg(long, value_name = "URL")]
    api_server: Vec<String>,

    /// Tell owners of Services what is wrong with them by Events of the cluster, which the account must be allowed to create.
    #[arg(long, conflicts_with = "directory")]
    events: bool,

    #[command(flatten)]
    pub(super) meaning: Meaning,

    /// The cgroup (v2) whose processes are served [default: the root of the hierarchy, which is every process]
    #[arg(long, value_name = "DIR")]
    pub(super) cgroup: Option<PathBuf>,

    /// Network devices by which packets from outside come, as in `eth0,wg*`: Services answer them there. `none` switches
    /// that off [default: those of default routes, of routes with a gateway, and of the node's own addresses]
    #[arg(long, value_name = "NAMES")]
    pub(super) devices: Option<UplinkChoice>,

    /// Host sides of the links to pods whose packets are translated too, as in `lxc*`: for pods whose sockets are not the
    /// node's kernel's.
    #[arg(long, value_name = "NAMES", default_value = "")]
    pod_devices: LinkPatterns,

    /// Hand packets of clients outside straight to pods of this node, and answers straight back, past the node's own routing.
    /// For nodes where nothing else must see them: netfilter (the network policies of some CNIs), conntrack, and shapers on
    /// the links of pods do not. Pods behind a bridge are served as without it.
    #[arg(long)]
    host_routing: bool,

    /// Fix the entries of a map: frontends, services, slots, backends, node_addrs, source_ranges or maglev, as in
    /// slots=2000000. Without it a map grows by itself when it is full.
    #[arg(long, value_name = "MAP=ENTRIES", value_parser = parse_size)]
    pub(super) map_size: Vec<(Table, u32)>,

    /// Remove the datapath when the agent is told to end; otherwise it stays and goes on translating.
    #[arg(long)]
    cleanup_on_exit: bool,

    /// Where /healthz and /livez answer; empty for nowhere.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:10256", value_parser = parse_address)]
    healthz_bind_address: Address,

    /// Where /metrics and /proxyMode answer; empty for nowhere.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10249", value_parser = parse_address)]
    metrics_bind_address: Address,

    /// Tell metrics of single backends too, of at most so many: of those with the most connections.
    #[arg(long, value_name = "MOST", num_args = 0..=1, require_equals = true, default_missing_value = "1000")]
    metrics_backends: Option<usize>,

    /// Form of the log, which goes to stderr.
    #[arg(long, value_name = "FORM", default_value = "text")]
    log_format: log::Format,

    /// Least severe level to log: error, warn, info, debug or trace; or a filter such as `info,kube=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "RUST_LOG")]
    log_level: String,
}

impl Arguments {
    /// Where the objects come from.
    pub(super) fn source(&self) -> Source {
        let proxy_name = self.meaning.service_proxy_name.clone();
        match &self.directory {
            Some(path) => Source::Directory(directory::Options { path: path.clone(), proxy_name }),
            None => Source::Kubernetes(kubernetes::Options {
                api_server: self.api_server.clone(),
                kubeconfig: self.kubeconfig.clone(),
                node_name: self.meaning.node_name(),
                proxy_name,
                remembered: RememberedServers::default(),
            }),
        }
    }
}

fn parse_size(text: &str) -> Result<(Table, u32), String> {
    let known = || {
        "want MAP=ENTRIES with one of the maps frontends, services, slots, backends, node_addrs, \
                     source_ranges, maglev"
            .to_owned()
    };
    let (name, entries) = text.split_once('=').ok_or_else(known)?;
    let table = Table::ALL.into_iter().filter(|table| *table != Table::Names && table.flag_name().is_some());
    let table = table.into_iter().find(|table| table.map_name().eq_ignore_ascii_case(name)).ok_or_else(known)?;
    let entries: u32 = entries.parse().map_err(|error| format!("{entries:?} is no number of entries: {error}"))?;
    if entries == 0 { Err("a map has at least one entry".to_owned()) } else { Ok((table, entries)) }
}

/// Where to listen, if anywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Address(Option<SocketAddr>);

impl Address {
    fn port(self, flag: &'static str) -> Option<BindAddress> {
        Some(BindAddress { address: self.0?, flag })
    }
}

/// kube-proxy takes an empty one for "do not listen" too.
fn parse_address(text: &str) -> Result<Address, String> {
    if text.is_empty() {
        return Ok(Address(None));
    }
    let cure = |_| "want an IP address and a port, as in 127.0.0.1:10249 or [::1]:10249, or nothing".to_owned();
    text.parse().map(|address| Address(Some(address))).map_err(cure)
}

/// Runs the agent until it is told to end.
pub(super) fn run(arguments: Arguments, pins: impl FnOnce() -> Result<Pins>) -> Result<ExitCode> {
    log::start(arguments.log_format, &arguments.log_level)?;
    if let Some(file) = &arguments.config {
        tracing::info!(file = %file.display(), "flags were read from a file");
    }
    let node_name = arguments.meaning.node_name();
    let settings = arguments.meaning.settings();
    let source = arguments.source();
    let mut sizes: MapSizes = arguments.map_size.into_iter().collect::<BTreeMap<_, _>>();
    // Every service port has one name.
    if let Some(&services) = sizes.get(&Table::Services) {
        sizes.insert(Table::Names, services);
    }
    let config = Config {
        source,
        events: arguments.events,
        node_name,
        settings,
        cgroup: arguments.cgroup,
        devices: DeviceOptions {
            uplinks: arguments.devices.unwrap_or_default(),
            pods: arguments.pod_devices,
            host_routing: arguments.host_routing,
        },
        sizes,
        cleanup_on_exit: arguments.cleanup_on_exit,
        healthz: arguments.healthz_bind_address.port("--healthz-bind-address"),
        metrics: arguments.metrics_bind_address.port("--metrics-bind-address"),
        metrics_backends: arguments.metrics_backends,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("starting the runtime")?.block_on(lb_agent::run(config, pins))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port_or_is_empty() {
        assert_eq!(parse_address(""), Ok(Address(None)));
        for good in ["0.0.0.0:10256", "[::]:1"] {
            assert_eq!(parse_address(good), Ok(Address(Some(good.parse().unwrap()))));
        }
        for bad in ["0.0.0.0", ":10256", "localhost:1", "::1", "127.0.0.1:65536", " "] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_name_a_map_and_a_number() {
        assert_eq!(parse_size("slots=16"), Ok((Table::Slots, 16)));
        assert_eq!(parse_size("source_ranges=16"), Ok((Table::SourceRanges, 16)));
        assert_eq!(parse_size("FRONTENDS=1"), Ok((Table::Frontends, 1)));
        for bad in ["slots", "slots=", "slots=x", "slots=0", "names=3", "=3", "slots=-1"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}

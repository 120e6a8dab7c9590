//! `beeline run`: flags of the agent, and its start.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Args;

use super::{
    log::{self, LogFormat},
    service_flags::ServiceArgs,
};
use lb_agent::{AnnounceOptions, BindAddress, Config, Source};
use lb_core::op::Table;
use lb_dataplane::{
    devices::options::{DeviceOptions, LinkPatterns, Masquerade, UplinkChoice},
    pins::Pins,
    upgrade::programs::{MapSizes, ProgramOptions, VipPings},
};
use lb_sources::{
    directory::{self, RememberedAddresses},
    kubernetes::{self, RememberedServers},
};

/// Flags of the agent.
#[derive(Args)]
#[command(after_help = "Examples:
  beeline run                          in a pod, with the pod's service account
  beeline run --kubeconfig admin.conf  on a host
  beeline run --directory ./services   without any cluster
  beeline run --config beeline.yaml    with the flags of a file

SIGTERM and SIGINT end the agent and leave the datapath in place: the kernel translates from the maps as they are, and \
the next start takes them over. `beeline cleanup` removes the datapath.")]
pub(super) struct RunArgs {
    /// YAML file with flags by name, such as `scheduler: wrr`. Flags of the command line take precedence over the file,
    /// and the file over the environment.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Directory of YAML files to read Services from, instead of from a cluster; changes are followed.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "api_server"])]
    directory: Option<PathBuf>,

    /// Credentials of the cluster [default: those of the pod, then $KUBECONFIG, then ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// URL of an API server, instead of the one in the credentials; may be repeated. The first server that answers is
    /// used, and after these the servers stored in the pins.
    #[arg(long, value_name = "URL")]
    api_server: Vec<String>,

    /// Report errors in Services as Kubernetes Events, which the account must be allowed to create.
    #[arg(long, conflicts_with = "directory")]
    events: bool,

    #[command(flatten)]
    pub(super) service_args: ServiceArgs,

    /// Cgroup (v2) whose processes are served [default: the root of the hierarchy, which is every process]
    #[arg(long, value_name = "DIR")]
    pub(super) cgroup: Option<PathBuf>,

    /// Network devices that receive packets of clients outside, such as `eth0,wg*`. `none`: clients outside are not
    /// served [default: devices that are up, but for links of pods, and ports of a bridge or bond]
    #[arg(long, value_name = "NAMES")]
    pub(super) devices: Option<UplinkChoice>,

    /// The node's ends of pod links whose packets are translated too, such as `lxc*`: for pods that do not use the
    /// sockets of the node's kernel.
    #[arg(long, value_name = "NAMES", default_value = "")]
    pod_devices: LinkPatterns,

    /// Redirect packets of clients outside to pods of this node, and replies back, bypassing the node's routing.
    /// netfilter (the network policies of some CNIs), conntrack, and traffic shapers of pod links do not see these
    /// packets. No effect for pods behind a bridge.
    #[arg(long)]
    host_routing: bool,

    /// Clients outside whose address a backend does not see, with `externalTrafficPolicy: Cluster`: those whose replies
    /// would not come back through this node, or all, as with kube-proxy. The kernel's forwarding and netfilter carry
    /// the additional ones.
    #[arg(long, value_name = "needed|always", default_value = "needed")]
    masquerade: Masquerade,

    /// Pings to VIPs, the addresses of Services that no interface has: answer them, as the node does for its own
    /// addresses, or ignore them.
    #[arg(long, value_name = "answer|ignore", default_value = "answer")]
    vip_pings: VipPings,

    /// Number of a kernel routing table of Beeline's own, such as 190: a route in it for each load balancer address
    /// whose traffic this node shall attract, for a routing daemon that announces them.
    #[arg(long, value_name = "TABLE", value_parser = parse_table)]
    lb_routes: Option<u32>,

    /// Announce load balancer addresses on the link by ARP and NDP: each by one of the nodes with these labels, such as
    /// `beeline.io/announcer` or `pool=edge`; without a selector by one of all nodes.
    #[arg(
        long,
        value_name = "SELECTOR",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        // An overlay adds a selector after the flag of the component.
        overrides_with = "announce",
        conflicts_with = "directory"
    )]
    announce: Option<String>,

    /// File with the key by which announcers know each other: a line of 16 or more random characters, the same on all
    /// nodes. The first line signs, further ones are taken as well.
    #[arg(long, value_name = "FILE", default_value = "/etc/beeline-announce/key")]
    announce_key_file: PathBuf,

    /// UDP port of announcers, which all nodes must reach at each other's addresses.
    #[arg(long, value_name = "PORT", default_value_t = 10269, value_parser = clap::value_parser!(u16).range(1..))]
    announce_port: u16,

    /// Fixed number of entries of a map, such as slots=2000000: frontends, services, slots, backends, node_addrs,
    /// source_ranges, maglev or flows. Without the flag a full map grows by itself, but for flows.
    #[arg(long, value_name = "MAP=ENTRIES", value_parser = parse_size)]
    pub(super) map_size: Vec<(SizedMap, u32)>,

    /// Remove the datapath when the agent ends; without the flag it stays and translates.
    #[arg(long)]
    cleanup_on_exit: bool,

    /// Address and port of /healthz and /livez; empty: none.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:10256", value_parser = parse_address)]
    healthz_bind_address: ListenAddress,

    /// Address and port of /metrics and /proxyMode; empty: none.
    #[arg(long, value_name = "ADDR:PORT", default_value = "localhost:10249", value_parser = parse_address)]
    metrics_bind_address: ListenAddress,

    /// Export metrics of single backends too: at most this number, those with the most connections.
    #[arg(long, value_name = "MAX", num_args = 0..=1, require_equals = true, default_missing_value = "1000")]
    metrics_backends: Option<usize>,

    /// Format of the log on stderr.
    #[arg(long, value_name = "FORM", default_value = "text")]
    log_format: LogFormat,

    /// Lowest level to log: error, warn, info, debug or trace; or a filter such as `info,kube=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "RUST_LOG")]
    log_level: String,
}

impl RunArgs {
    /// Returns the source of the objects.
    pub(super) fn source(&self) -> Source {
        let proxy_name = self.service_args.service_proxy_name.clone();
        match &self.directory {
            Some(path) => Source::Directory(directory::DirectoryOptions {
                path: path.clone(),
                proxy_name,
                remembered: RememberedAddresses::default(),
            }),
            None => Source::Kubernetes(kubernetes::KubernetesOptions {
                api_server: self.api_server.clone(),
                kubeconfig: self.kubeconfig.clone(),
                node_name: self.service_args.node_name(),
                proxy_name,
                host_ports: self.service_args.host_ports,
                remembered: RememberedServers::default(),
            }),
        }
    }
}

/// Parses the number of a routing table that no packet uses by default.
fn parse_table(text: &str) -> Result<u32, String> {
    let table = text.parse::<u32>().map_err(|error| format!("{text:?} is no number of a table: {error}"))?;
    // RT_TABLE_UNSPEC, and RT_TABLE_DEFAULT, RT_TABLE_MAIN, RT_TABLE_LOCAL (include/uapi/linux/rtnetlink.h).
    if matches!(table, 0 | 253..=255) {
        return Err(format!("the node's own packets use table {table}: name a table of its own, such as 190"));
    }
    Ok(table)
}

/// A map of the flag `--map-size`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SizedMap {
    /// A map that the agent writes.
    Table(Table),
    /// `FLOWS`
    Flows,
}

impl SizedMap {
    /// The map that the agent writes.
    pub(super) const fn table(self) -> Option<Table> {
        match self {
            Self::Table(table) => Some(table),
            Self::Flows => None,
        }
    }
}

fn parse_size(text: &str) -> Result<(SizedMap, u32), String> {
    let known = || {
        "want MAP=ENTRIES with one of the maps frontends, services, slots, backends, node_addrs, \
                     source_ranges, maglev, flows"
            .to_owned()
    };
    let (name, entries) = text.split_once('=').ok_or_else(known)?;
    let tables = Table::ALL.into_iter().filter(|table| *table != Table::Names && table.flag_name().is_some());
    let mut maps = tables.map(|table| (table.map_name(), SizedMap::Table(table))).chain([("FLOWS", SizedMap::Flows)]);
    let (_, map) = maps.find(|(map, _)| map.eq_ignore_ascii_case(name)).ok_or_else(known)?;
    let entries: u32 = entries.parse().map_err(|error| format!("{entries:?} is no number of entries: {error}"))?;
    if entries == 0 { Err("a map has at least one entry".to_owned()) } else { Ok((map, entries)) }
}

/// Addresses to listen at; without one, do not listen.
#[derive(Clone, PartialEq, Eq, Debug)]
struct ListenAddress(Vec<SocketAddr>);

impl ListenAddress {
    fn bind(self, flag: &'static str) -> Vec<BindAddress> {
        self.0.into_iter().map(|address| BindAddress { address, flag }).collect()
    }
}

/// Parses an address and a port. Empty means "do not listen", as in kube-proxy; `localhost` is the loopback address of
/// both families.
fn parse_address(text: &str) -> Result<ListenAddress, String> {
    let cure =
        || "want an IP address or localhost, and a port, such as localhost:10249 or [::1]:10249, or nothing".to_owned();
    let addresses = match text.strip_prefix("localhost:") {
        _ if text.is_empty() => Vec::new(),
        Some(port) => {
            let port: u16 = port.parse().map_err(|_| cure())?;
            vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
        }
        None => vec![text.parse().map_err(|_| cure())?],
    };
    Ok(ListenAddress(addresses))
}

/// Runs the agent until a signal ends it.
pub(super) fn run(arguments: RunArgs, pins: impl FnOnce() -> Result<Pins>) -> Result<ExitCode> {
    log::start(arguments.log_format, &arguments.log_level)?;
    if let Some(file) = &arguments.config {
        tracing::info!(file = %file.display(), "flags were read from a file");
    }
    let node_name = arguments.service_args.node_name();
    let settings = arguments.service_args.settings();
    let source = arguments.source();
    let flows = arguments.map_size.iter().rev().find(|(map, _)| *map == SizedMap::Flows).map(|(_, entries)| *entries);
    let tables = arguments.map_size.into_iter().filter_map(|(map, entries)| Some((map.table()?, entries)));
    let mut sizes: MapSizes = tables.collect::<BTreeMap<_, _>>();
    // NAMES has one entry per service port.
    if let Some(&services) = sizes.get(&Table::Services) {
        sizes.insert(Table::Names, services);
    }
    let config = Config {
        source,
        lb_routes: arguments.lb_routes,
        announce: arguments.announce.map(|nodes| AnnounceOptions {
            nodes,
            key_file: arguments.announce_key_file,
            port: arguments.announce_port,
        }),
        events: arguments.events,
        node_name,
        settings,
        cgroup: arguments.cgroup,
        devices: DeviceOptions {
            uplinks: arguments.devices.unwrap_or_default(),
            pods: arguments.pod_devices,
            host_routing: arguments.host_routing,
            masquerade: arguments.masquerade,
        },
        programs: ProgramOptions { sizes, flows, vip_pings: arguments.vip_pings },
        cleanup_on_exit: arguments.cleanup_on_exit,
        healthz: arguments.healthz_bind_address.bind("--healthz-bind-address"),
        metrics: arguments.metrics_bind_address.bind("--metrics-bind-address"),
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
    fn a_listen_address_has_a_port_or_is_empty() {
        let check = |text: &str, expected: &[&str]| {
            let expected = expected.iter().map(|address| address.parse().expect("an address")).collect();
            assert_eq!(parse_address(text), Ok(ListenAddress(expected)), "{text}");
        };
        check("", &[]);
        check("0.0.0.0:10256", &["0.0.0.0:10256"]);
        check("[::]:1", &["[::]:1"]);
        check("localhost:1", &["127.0.0.1:1", "[::1]:1"]);
        for bad in ["0.0.0.0", ":10256", "localhost", "localhost:", "::1", "127.0.0.1:65536", " "] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn of_several_selectors_of_announcers_the_last_counts() {
        #[derive(clap::Parser)]
        struct Agent {
            #[command(flatten)]
            run: RunArgs,
        }
        let parse = |flags: &[&str]| {
            let flags = ["beeline"].iter().chain(flags);
            <Agent as clap::Parser>::try_parse_from(flags).map(|agent| agent.run.announce).expect("flags")
        };
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&["--announce"]), Some(String::new()));
        assert_eq!(parse(&["--announce", "--announce=beeline.io/announcer"]), Some("beeline.io/announcer".to_owned()));
    }

    #[test]
    fn a_table_of_the_kernel_is_refused_for_routes() {
        assert_eq!((parse_table("190"), parse_table("1000")), (Ok(190), Ok(1000)));
        for bad in ["0", "253", "254", "255", "-1", "main", ""] {
            assert!(parse_table(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_name_a_map_and_a_number() {
        assert_eq!(parse_size("slots=16"), Ok((SizedMap::Table(Table::Slots), 16)));
        assert_eq!(parse_size("source_ranges=16"), Ok((SizedMap::Table(Table::SourceRanges), 16)));
        assert_eq!(parse_size("FRONTENDS=1"), Ok((SizedMap::Table(Table::Frontends), 1)));
        assert_eq!(parse_size("flows=64"), Ok((SizedMap::Flows, 64)));
        for bad in ["slots", "slots=", "slots=x", "slots=0", "names=3", "=3", "slots=-1"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}

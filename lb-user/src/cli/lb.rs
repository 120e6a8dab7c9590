//! `beeline lb`: flags of the controller that allots load balancer addresses, and its start.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use super::{
    log::{self, LogFormat},
    service_flags,
};
use lb_agent::{BalancerConfig, BindAddress, Served, run_balancer};
use lb_sources::kubernetes::KubernetesOptions;

/// Flags of the controller.
#[derive(Args)]
#[command(after_help = "Examples:
  beeline lb                               in a pod, for Services of loadBalancerClass beeline.io/lb
  beeline lb --default-class               also for Services without a loadBalancerClass
  beeline lb --kubeconfig admin.conf       on a host

Several may run: the one with the Lease beeline-lb, in the namespace of its account, allots addresses. Without any, \
every Service keeps the addresses that it has.")]
pub(super) struct LbArgs {
    /// Also allot addresses to Services of type LoadBalancer without a loadBalancerClass. No other controller may do
    /// so.
    #[arg(long)]
    default_class: bool,

    /// Credentials of the cluster [default: those of the pod, then $KUBECONFIG, then ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// URL of an API server, instead of the one in the credentials; may be repeated. The first server that answers is
    /// used.
    #[arg(long, value_name = "URL")]
    api_server: Vec<String>,

    /// Address and port of /livez and /metrics.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:10268")]
    bind_address: SocketAddr,

    /// Format of the log on stderr.
    #[arg(long, value_name = "FORM", default_value = "text")]
    log_format: LogFormat,

    /// Lowest level to log: error, warn, info, debug or trace; or a filter such as `info,kube=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "RUST_LOG")]
    log_level: String,
}

/// Runs the controller until a signal ends it.
pub(super) fn run(arguments: LbArgs) -> Result<ExitCode> {
    log::start(arguments.log_format, &arguments.log_level)?;
    // In a pod the host name is the pod's.
    let identity = format!("{}_{}", service_flags::host_name(), std::process::id());
    let config = BalancerConfig {
        kubernetes: KubernetesOptions {
            api_server: arguments.api_server,
            kubeconfig: arguments.kubeconfig,
            ..KubernetesOptions::default()
        },
        served: if arguments.default_class { Served::OwnClassAndNone } else { Served::OwnClass },
        identity,
        bind: vec![BindAddress { address: arguments.bind_address, flag: "--bind-address" }],
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("starting the runtime")?.block_on(run_balancer(config))?;
    Ok(ExitCode::SUCCESS)
}

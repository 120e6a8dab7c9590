//! Metrics in the text form of Prometheus: passes under kube-proxy's names where the meaning is the same
//! (pkg/proxy/metrics/metrics.go), and Beeline's own. A scrape reads the maps; nothing is kept for it.

mod families;
pub mod kernel;

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use hyper::StatusCode;
use prometheus_client::{collector::Collector, encoding::prometheus_text, registry::Registry};
use tokio::sync::{Mutex, watch};

use crate::{
    announcing::AnnouncingState,
    health::{Probe, ProbeCounts},
    http::{self, BindAddress, Reply},
    reconcile::Status,
};
pub(crate) use families::{Families, NO_LABELS};
use kernel::KernelMetrics;
use lb_dataplane::flows::FlowGcStatus;
use lb_sources::probes;

/// Values of one scrape.
#[derive(Debug)]
struct Scrape {
    status: Status,
    /// None without `--announce`.
    announcing: Option<AnnouncingState>,
    /// Answers of the health port by probe and status code.
    probes: Vec<(Probe, u16, u64)>,
    endpoint_probes: Arc<probes::ProbeCounts>,
    flows: FlowGcStatus,
    /// None if the maps could not be read.
    kernel: Option<KernelMetrics>,
}

/// Encodes values as the text that Prometheus reads.
///
/// # Errors
/// If the encoder fails, which it does not for the types of this crate.
pub(crate) fn text(values: impl Collector) -> Result<String> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(values));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry).context("writing the metrics")?;
    Ok(text)
}

/// Returns the answer to a scrape with this text.
pub(crate) fn reply(text: Result<String>) -> Reply {
    match text {
        Ok(body) => Reply { status: StatusCode::OK, content_type: prometheus_text::CONTENT_TYPE, header: None, body },
        Err(error) => Reply::text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}\n")),
    }
}

/// Sources of a scrape.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) status: watch::Receiver<Status>,
    /// None without `--announce`.
    pub(crate) announcing: Option<watch::Receiver<AnnouncingState>>,
    pub(crate) probes: Arc<ProbeCounts>,
    /// Counts of the probes of hand-written endpoints.
    pub(crate) endpoint_probes: Arc<probes::ProbeCounts>,
    pub(crate) flows: watch::Receiver<FlowGcStatus>,
    /// Directory of the pins.
    pub(crate) pins: PathBuf,
    /// Maximum number of backends with series of their own; none: no backend has any.
    pub(crate) backends: Option<usize>,
}

impl Sources {
    /// Reads all values. Blocks while it reads the maps.
    fn scrape(&self) -> Scrape {
        let flows = *self.flows.borrow();
        let kernel = kernel::read(&self.pins, self.backends, (flows.rounds > 0).then_some(flows.entries));
        if let Err(error) = &kernel {
            tracing::debug!("metrics without the maps: {error:#}");
        }
        let status = self.status.borrow().clone();
        let endpoint_probes = Arc::clone(&self.endpoint_probes);
        let announcing = self.announcing.as_ref().map(|announcing| announcing.borrow().clone());
        let probes = self.probes.counts().collect();
        Scrape { status, announcing, probes, endpoint_probes, flows, kernel: kernel.ok() }
    }
}

/// Answers on the metrics port until the future is dropped.
pub(crate) async fn run(addresses: Vec<BindAddress>, sources: Sources) -> Result<()> {
    // One scrape at a time, for any number of clients.
    let turn = Arc::new(Mutex::new(()));
    let reply = move |path: String| {
        let (sources, turn) = (sources.clone(), Arc::clone(&turn));
        async move {
            match path.as_str() {
                "/metrics" => scrape(sources, turn).await,
                // kube-proxy answers iptables, ipvs or nftables here.
                "/proxyMode" => Reply::text(StatusCode::OK, "beeline"),
                _ => Reply::not_found(),
            }
        }
    };
    http::serve(addresses, http::LIMITS, reply).await
}

async fn scrape(sources: Sources, turn: Arc<Mutex<()>>) -> Reply {
    let turn = turn.lock_owned().await;
    // A blocking thread keeps the tasks free for a pass. The turn lasts as long as the work, even if the client has
    // gone.
    let work = tokio::task::spawn_blocking(move || {
        let text = text(sources.scrape());
        drop(turn);
        text
    });
    reply(work.await.context("a task").flatten())
}

#[cfg(test)]
mod tests;

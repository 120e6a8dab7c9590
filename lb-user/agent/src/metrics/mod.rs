//! What a scrape finds, in the text form of Prometheus: how passes fare under kube-proxy's names where these mean the same
//! (pkg/proxy/metrics/metrics.go), and what only Beeline can tell. Maps are read when they are asked about.

mod families;
mod histogram;
pub mod kernel;

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use hyper::StatusCode;
use prometheus_client::{encoding::prometheus_text, registry::Registry};
use tokio::sync::{Mutex, watch};

pub use histogram::Histogram;
pub use kernel::Kernel;

use crate::{
    health::{Question, Told},
    http::{self, Port, Reply},
    reconcile::Status,
};
use lb_dataplane::flows::FlowGcStatus;

/// All that one scrape tells.
#[derive(Debug)]
pub struct Scrape {
    /// How passes fare.
    pub status: Status,
    /// How often the health port gave which answer.
    pub told: Vec<(Question, u16, u64)>,
    /// How it goes with flows that are over.
    pub flows: FlowGcStatus,
    /// What the kernel says; none while its maps cannot be read.
    pub kernel: Option<Kernel>,
}

impl Scrape {
    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn into_text(self) -> Result<String> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry).context("writing the metrics")?;
        Ok(text)
    }
}

/// From where a scrape takes what it tells.
#[derive(Clone)]
pub struct Sources {
    /// How passes fare.
    pub status: watch::Receiver<Status>,
    /// What the health port answered.
    pub told: Arc<Told>,
    /// How it goes with flows that are over.
    pub flows: watch::Receiver<FlowGcStatus>,
    /// The pins.
    pub pins: PathBuf,
    /// Of how many single backends there are series, if of any.
    pub backends: Option<usize>,
}

impl Sources {
    /// Scrapes now. Takes as long as it takes to read the maps.
    fn scrape(&self) -> Scrape {
        let flows = *self.flows.borrow();
        let kernel = kernel::read(&self.pins, self.backends, (flows.rounds > 0).then_some(flows.entries));
        if let Err(error) = &kernel {
            tracing::debug!("metrics without the maps: {error:#}");
        }
        let status = self.status.borrow().clone();
        Scrape { status, told: self.told.counts().collect(), flows, kernel: kernel.ok() }
    }
}

/// Answers on the metrics port until it is dropped.
///
/// # Errors
/// Never.
pub async fn run(port: Port, sources: Sources) -> Result<()> {
    // One at a time, however many ask.
    let turn = Arc::new(Mutex::new(()));
    let reply = move |path: String| {
        let (sources, turn) = (sources.clone(), Arc::clone(&turn));
        async move {
            match path.as_str() {
                "/metrics" => scrape(sources, turn).await,
                // kube-proxy tells here whether it is of iptables, ipvs or nftables.
                "/proxyMode" => Reply::text(StatusCode::OK, "beeline"),
                _ => Reply::not_found(),
            }
        }
    };
    http::serve(port, http::LIMITS, reply).await
}

async fn scrape(sources: Sources, turn: Arc<Mutex<()>>) -> Reply {
    let turn = turn.lock_owned().await;
    // Not among the tasks, where a pass may be waiting; and the turn lasts as long as the work, also when who asked has gone.
    let work = tokio::task::spawn_blocking(move || {
        let text = sources.scrape().into_text();
        drop(turn);
        text
    });
    match work.await.context("a task").flatten() {
        Ok(body) => Reply { status: StatusCode::OK, content_type: prometheus_text::CONTENT_TYPE, header: None, body },
        Err(error) => Reply::text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}\n")),
    }
}

#[cfg(test)]
mod tests;

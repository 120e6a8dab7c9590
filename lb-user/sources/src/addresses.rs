//! The addresses of the agent's network namespace, by interfaces and by local routes alone. Each notification of the
//! kernel leads to a new reading of all, so that a lost notification loses nothing. `lb_core::model` chooses those for
//! NodePorts.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::{sync::mpsc, time::sleep};

use lb_core::event::{Event, NodeAddresses};
use lb_kernel::netlink::{
    Monitor, NetlinkSocket,
    address::{self, Address},
    group, local_routes,
};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const MAX_RETRY: Duration = Duration::from_secs(30);
/// A pause after each reading, in times of what it took: daemons may change routes without end.
const REST: u32 = 4;

/// A source of `Event::NodeAddresses`.
pub struct AddressSource {
    tx: mpsc::Sender<Event>,
    /// Subscription to changes; None after a failure, until the next try.
    monitor: Option<Monitor>,
    /// Addresses sent last.
    sent: Option<NodeAddresses>,
    /// Time that the last reading took.
    reading: Duration,
}

impl AddressSource {
    /// Sends the present addresses. If they cannot be read, [`AddressSource::follow`] tries again.
    pub async fn start(tx: mpsc::Sender<Event>) -> Self {
        let mut source = Self { tx, monitor: None, sent: None, reading: Duration::ZERO };
        if let Err(error) = source.refresh().await {
            tracing::warn!("the addresses of the node cannot be read, next try in {FIRST_RETRY:?}: {error:#}");
        }
        source
    }

    /// Sends the addresses again whenever they change. Failures are logged and retried. Returns when the receiver is
    /// dropped.
    ///
    /// # Errors
    /// None.
    pub async fn follow(mut self) -> anyhow::Result<()> {
        let tx = self.tx.clone();
        let mut backoff = FIRST_RETRY;
        loop {
            let rest = self.reading * REST;
            let is_due = async {
                sleep(rest).await;
                match &mut self.monitor {
                    Some(monitor) => monitor.changed().await,
                    None => {
                        sleep(backoff).await;
                        Ok(())
                    }
                }
            };
            let changed = tokio::select! {
                changed = is_due => changed,
                () = tx.closed() => return Ok(()),
            };
            if self.monitor.is_none() {
                backoff = (backoff * 2).min(MAX_RETRY);
            }
            let refreshed = match changed {
                Ok(()) => self.refresh().await,
                Err(error) => {
                    self.monitor = None;
                    Err(error.into())
                }
            };
            match refreshed {
                Ok(()) => backoff = FIRST_RETRY,
                Err(error) => {
                    tracing::warn!("the addresses of the node cannot be read, next try in {backoff:?}: {error:#}");
                }
            }
        }
    }

    /// Reads the addresses, and sends them if they have changed.
    async fn refresh(&mut self) -> anyhow::Result<()> {
        let monitor = match self.monitor.take() {
            Some(monitor) => monitor,
            None => Monitor::subscribe(group::ADDRESS | group::ROUTE).context("opening a netlink socket")?,
        };
        let start = Instant::now();
        // The kernel holds a lock while links change, so this may block for a while.
        let addresses = tokio::task::spawn_blocking(current).await?.context("listing addresses")?;
        self.reading = start.elapsed();
        self.monitor = Some(monitor);
        if self.sent.as_ref() != Some(&addresses) {
            let (now, before) = (addresses.all(), self.sent.replace(addresses.clone()).unwrap_or_default().all());
            let (added, removed) = (now.difference(&before).count(), before.difference(&now).count());
            tracing::info!(added, removed, total = now.len(), "addresses of the node");
            // `follow` notices a dropped receiver.
            let _ = self.tx.send(Event::NodeAddresses(addresses)).await;
        }
        Ok(())
    }
}

/// Returns all usable addresses of this thread's network namespace. Where kube-proxy serves NodePorts at all addresses,
/// it takes what the routes call local (`fib daddr type local`, pkg/proxy/nftables/proxier.go).
///
/// # Errors
/// The kernel's errno.
pub fn current() -> std::io::Result<NodeAddresses> {
    let mut netlink = NetlinkSocket::open()?;
    let addresses = netlink.dump(address::GET, &address::ALL, Address::parse)?;
    let interfaces = addresses.iter().filter(|address| address.is_usable()).map(|address| address.ip).collect();
    Ok(NodeAddresses { interfaces, local_routes: local_routes::list(&mut netlink)?.into_iter().collect() })
}

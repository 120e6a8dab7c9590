//! The addresses of all interfaces of the agent's own network namespace, by the kernel's events. An event says only that
//! something has changed: what there is now is then read as a whole, so that a lost event loses nothing. At which of the
//! addresses NodePorts answer is for `model` to say.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::Context as _;
use tokio::{sync::mpsc, time::sleep};

use lb_core::event::Event;
use lb_kernel::netlink::{
    Monitor, NetlinkSocket,
    address::{self, Address},
    group,
};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What the interfaces have, and who is to know.
pub struct Addresses {
    tx: mpsc::Sender<Event>,
    /// None: the kernel refused, and is asked again.
    news: Option<Monitor>,
    /// What was sent last.
    sent: Option<BTreeSet<IpAddr>>,
}

impl Addresses {
    /// Sends the addresses that there are now. Where the kernel refuses, that is left to [`Addresses::follow`].
    pub async fn tell(tx: mpsc::Sender<Event>) -> Self {
        let mut addresses = Self { tx, news: None, sent: None };
        if let Err(error) = addresses.refresh().await {
            tracing::warn!("the addresses of the node cannot be read, next try in {FIRST_RETRY:?}: {error:#}");
        }
        addresses
    }

    /// Sends them again whenever they change. Failures are logged and outlasted.
    ///
    /// # Errors
    /// None: it returns once nobody receives any more.
    pub async fn follow(mut self) -> anyhow::Result<()> {
        let tx = self.tx.clone();
        let mut backoff = FIRST_RETRY;
        loop {
            let is_due = async {
                match &mut self.news {
                    Some(news) => news.changed().await,
                    None => {
                        sleep(backoff).await;
                        Ok(())
                    }
                }
            };
            let heard = tokio::select! {
                heard = is_due => heard,
                () = tx.closed() => return Ok(()),
            };
            if self.news.is_none() {
                backoff = (backoff * 2).min(LAST_RETRY);
            }
            let refreshed = match heard {
                Ok(()) => self.refresh().await,
                Err(error) => {
                    self.news = None;
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

    /// Reads the addresses, and sends them if they are others than before.
    async fn refresh(&mut self) -> anyhow::Result<()> {
        let news = match self.news.take() {
            Some(news) => news,
            None => Monitor::subscribe(group::ADDRESS).context("opening a netlink socket")?,
        };
        // The kernel may be busy with its links for a while.
        let addresses = tokio::task::spawn_blocking(now).await?.context("listing them")?;
        self.news = Some(news);
        if self.sent.as_ref() != Some(&addresses) {
            let (now, before) = (&addresses, self.sent.get_or_insert_default());
            let (added, removed) = (now.difference(before).count(), before.difference(now).count());
            tracing::info!(added, removed, total = now.len(), "addresses of the node");
            before.clone_from(now);
            // Whether anybody receives is for `follow` to see.
            let _ = self.tx.send(Event::NodeAddresses(addresses)).await;
        }
        Ok(())
    }
}

/// All addresses that can be used, as they are now.
///
/// # Errors
/// When the kernel refuses.
pub fn now() -> std::io::Result<BTreeSet<IpAddr>> {
    let addresses = NetlinkSocket::open()?.dump(address::GET, &address::ALL, Address::parse)?;
    Ok(addresses.iter().filter(|address| address.is_usable()).map(|address| address.ip).collect())
}

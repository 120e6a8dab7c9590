//! The addresses of all interfaces of the agent's own network namespace, by the kernel's events. An event says only that
//! something has changed: what there is now is then read as a whole, so that a lost event loses nothing. At which of the
//! addresses NodePorts answer is for `model` to say.

use std::{collections::BTreeSet, io, net::IpAddr, time::Duration};

use anyhow::{Context as _, bail};
use futures::{FutureExt as _, StreamExt as _, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    Handle, MulticastGroup, new_multicast_connection,
    packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    },
    sys::SocketAddr,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::event::Event;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// The kernel answers from memory; one that takes longer has lost the question.
const PATIENCE: Duration = Duration::from_secs(5);
/// Readings between which the addresses have changed, before the next one waits.
const TRIES: usize = 10;

/// What the interfaces have, and who is to know.
pub struct Addresses {
    tx: mpsc::Sender<Event>,
    /// None: the kernel refused, and is asked again.
    kernel: Option<Kernel>,
    /// What was sent last.
    sent: Option<BTreeSet<IpAddr>>,
}

impl Addresses {
    /// Sends the addresses that there are now. Where the kernel refuses, that is left to [`Addresses::follow`].
    pub async fn tell(tx: mpsc::Sender<Event>) -> Self {
        let mut addresses = Self { tx, kernel: None, sent: None };
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
                match &mut self.kernel {
                    Some(kernel) => kernel.changed().await,
                    None => sleep(backoff).await,
                }
            };
            tokio::select! {
                () = is_due => {}
                () = tx.closed() => return Ok(()),
            }
            if self.kernel.is_none() {
                backoff = (backoff * 2).min(LAST_RETRY);
            }
            match self.refresh().await {
                Ok(()) => backoff = FIRST_RETRY,
                Err(error) => {
                    tracing::warn!("the addresses of the node cannot be read, next try in {backoff:?}: {error:#}");
                }
            }
        }
    }

    /// Reads the addresses, and sends them if they are others than before.
    async fn refresh(&mut self) -> anyhow::Result<()> {
        let mut kernel = match self.kernel.take() {
            Some(kernel) => kernel,
            None => Kernel::open().context("opening a netlink socket")?,
        };
        let addresses = kernel.read().await?;
        self.kernel = Some(kernel);
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

/// The addresses that there are now.
///
/// # Errors
/// When the kernel refuses.
pub async fn now() -> anyhow::Result<BTreeSet<IpAddr>> {
    Kernel::open().context("opening a netlink socket")?.read().await
}

/// A netlink socket that hears of changes, and by which questions go.
struct Kernel {
    handle: Handle,
    events: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    /// Moves messages as long as it is there.
    _connection: JoinSet<()>,
}

impl Kernel {
    fn open() -> io::Result<Self> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (mut connection, handle, events) = new_multicast_connection(&groups)?;
        // The end of an answer says whether the whole is sound.
        connection.set_forward_done(true);
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Ok(Self { handle, events, _connection: tasks })
    }

    /// Returns when the addresses may have changed: at an event, at the news that events were lost (ENOBUFS comes as an
    /// overrun), and when the socket has died, which the next question then finds out.
    async fn changed(&mut self) {
        self.events.next().await;
        // All that is queued is one change.
        while let Some(Some(_)) = self.events.next().now_or_never() {}
    }

    /// All addresses that can be used.
    async fn read(&mut self) -> anyhow::Result<BTreeSet<IpAddr>> {
        for _ in 0..TRIES {
            let answer = timeout(PATIENCE, self.ask()).await.context("the kernel does not answer")??;
            if let Some(addresses) = answer {
                return Ok(addresses);
            }
        }
        bail!("they changed during each of {TRIES} readings")
    }

    /// None: they changed meanwhile, so that some may be missing.
    async fn ask(&mut self) -> anyhow::Result<Option<BTreeSet<IpAddr>>> {
        let mut question = NetlinkMessage::from(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
        question.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = self.handle.request(question)?;
        let mut addresses = BTreeSet::new();
        let mut flags = 0;
        while let Some(answer) = answers.next().await {
            flags |= answer.header.flags;
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(message)) => {
                    addresses.extend(usable(&message));
                }
                NetlinkPayload::Done(end) if end.code != 0 => bail!(io::Error::from_raw_os_error(-end.code)),
                NetlinkPayload::Done(_) => return Ok((flags & NLM_F_DUMP_INTR == 0).then_some(addresses)),
                NetlinkPayload::Error(error) => bail!(error.to_io()),
                _ => {}
            }
        }
        bail!("the answer has no end")
    }
}

/// The address of a message, if a socket may be bound to it and clients elsewhere can name it.
fn usable(message: &AddressMessage) -> Option<IpAddr> {
    let flags = message.header.flags;
    // Not known yet to be unique on its link. An optimistic one is used meanwhile (RFC 4429).
    let tentative = flags.contains(AddressHeaderFlags::Tentative) && !flags.contains(AddressHeaderFlags::Optimistic);
    if tentative || flags.contains(AddressHeaderFlags::Dadfailed) {
        return None;
    }
    let (mut address, mut local) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Local(ip) => local = Some(*ip),
            _ => {}
        }
    }
    // On a link to one peer the first is the peer's (include/uapi/linux/if_addr.h).
    local.or(address).filter(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_counts_once_it_can_be_used() {
        let check = |flags: AddressHeaderFlags, address: Option<&str>, local: Option<&str>, expected: Option<&str>| {
            let mut message = AddressMessage::default();
            message.header.flags = flags;
            let parse = |text: &str| text.parse::<IpAddr>().unwrap();
            message.attributes.extend(address.map(parse).map(AddressAttribute::Address));
            message.attributes.push(AddressAttribute::Label("lo".to_owned()));
            message.attributes.extend(local.map(parse).map(AddressAttribute::Local));
            assert_eq!(usable(&message), expected.map(parse), "{message:?}");
        };
        let flags = AddressHeaderFlags::empty();
        check(flags, Some("10.0.0.1"), Some("10.0.0.1"), Some("10.0.0.1"));
        check(flags, Some("10.0.0.2"), Some("10.0.0.1"), Some("10.0.0.1"));
        check(flags, Some("fd00::1"), None, Some("fd00::1"));
        check(flags, Some("fd00::2"), Some("fd00::1"), Some("fd00::1"));
        check(flags, Some("127.0.0.1"), Some("127.0.0.1"), Some("127.0.0.1"));
        check(flags, Some("169.254.20.10"), Some("169.254.20.10"), Some("169.254.20.10"));
        check(flags, Some("fe80::1"), None, None);
        check(flags, Some("febf::1"), None, None);
        check(flags, Some("fec0::1"), None, Some("fec0::1"));
        check(flags, None, None, None);
        let v6 = |flags, expected| check(flags, Some("fd00::1"), None, expected);
        v6(AddressHeaderFlags::Permanent, Some("fd00::1"));
        v6(AddressHeaderFlags::Deprecated, Some("fd00::1"));
        v6(AddressHeaderFlags::Secondary, Some("fd00::1"));
        v6(AddressHeaderFlags::Tentative | AddressHeaderFlags::Permanent, None);
        v6(AddressHeaderFlags::Tentative | AddressHeaderFlags::Optimistic, Some("fd00::1"));
        v6(AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed, None);
        v6(AddressHeaderFlags::Dadfailed, None);
    }
}

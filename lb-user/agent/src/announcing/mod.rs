//! Announcing of load balancer addresses on the link: performs the protocol of `lb_core::announce` over UDP, with the
//! Lease and the maps. It has a thread of its own, so that no pass of the reconciler delays a renewal.

pub(crate) mod conflicts;
mod key;
pub(crate) mod lease;
mod state;

use std::{
    collections::BTreeMap,
    future::pending,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use kube::Client;
use lb_core::announce::{
    Announcer, Body, Candidates, Held, LeaseVote, Membership, Node, Output, Time,
    wire::{self, MAX_BYTES},
};
use lb_dataplane::{
    announced_addresses::{AnnouncedAddresses, boot_time_ns},
    devices::answering::AnsweringLinks,
};
use lb_sources::kubernetes::{
    self, KubernetesOptions,
    announcers::{self, Announcers},
};
use tokio::{net::UdpSocket, sync::watch, time::sleep};
use tracing::{error, info, warn};

use key::Keys;
use lease::{Answer, Request, Version};
pub(crate) use state::AnnouncingState;

/// Time until announcing is tried again after an error, and between two looks at the key.
const RETRY: Duration = Duration::from_secs(10);
/// Time until the Lease is asked again after a failure.
const LEASE_RETRY: Time = Time::from_millis(200);
/// Priority of the thread among those of its cgroup (setpriority(2)).
const HIGHEST_PRIORITY: i32 = -20;
/// Most datagrams that are read before a step.
const MAX_DATAGRAMS: usize = 256;
/// Most addresses in a line of the log: a reader that is late must not hold up renewals.
const MAX_LOGGED: usize = 8;
/// Time for which the agent stays at its end, for others to take over its addresses.
const HANDOVER: Duration = Duration::from_millis(900);

/// Options of announcing.
#[derive(Clone, Debug)]
pub struct AnnounceOptions {
    /// Label selector of the nodes that announce; empty: all nodes.
    pub nodes: String,
    /// File with the key of announcers.
    pub key_file: PathBuf,
    /// UDP port of announcers.
    pub port: u16,
}

/// The addresses to announce, and facts of the node, as of the last pass.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Wish {
    /// Load balancer addresses, with the nodes that may hold each; none before the first pass.
    pub(crate) addresses: Option<Arc<BTreeMap<IpAddr, Candidates>>>,
    /// True if load balancers may lead clients to this node.
    pub(crate) attracts: bool,
}

/// Inputs and outputs of announcing.
pub(crate) struct Announcing {
    pub(crate) options: AnnounceOptions,
    pub(crate) kubernetes: KubernetesOptions,
    pub(crate) node: Node,
    pub(crate) wish: watch::Receiver<Wish>,
    pub(crate) links: watch::Receiver<AnsweringLinks>,
    pub(crate) addresses: AnnouncedAddresses,
    pub(crate) state: watch::Sender<AnnouncingState>,
    /// True once the agent ends, and others shall take over.
    pub(crate) leaving: watch::Receiver<bool>,
}

/// Starts the thread, which lives as long as the process.
///
/// # Errors
/// If the system has no more threads.
pub(crate) fn start(mut announcing: Announcing) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")?;
    let work = move || {
        // Renewals are little work, and must not wait for passes or for other programs of the node.
        if let Err(error) = rustix::process::setpriority_process(None, HIGHEST_PRIORITY) {
            warn!(
                "renewals of announced addresses have no priority, and are late when the node is busy: {error}; give \
                 the agent the capability SYS_NICE"
            );
        }
        runtime.block_on(async {
            loop {
                let Err(error) = announcing.run().await;
                error!("announcing does not work, next try in {RETRY:?}: {error:#}");
                announcing.state.send_modify(|state| state.error = Some(format!("{error:#}")));
                sleep(RETRY).await;
            }
        });
    };
    std::thread::Builder::new().name("announcing".to_owned()).spawn(work).context("starting a thread")?;
    Ok(())
}

/// Waits until others hold the addresses of this node, or no longer if none can.
pub(crate) async fn hand_over(leaving: &watch::Sender<bool>, mut state: watch::Receiver<AnnouncingState>) {
    leaving.send_replace(true);
    let is_empty = state.wait_for(|state| state.held.addresses.is_empty());
    let _elapsed = tokio::time::timeout(HANDOVER, is_empty).await;
}

fn now() -> Time {
    Time::from_nanos(boot_time_ns())
}

/// Returns a number that differs between any two runs.
fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    let random = ring::rand::SystemRandom::new();
    ring::rand::SecureRandom::fill(&random, &mut bytes).map_err(|_| anyhow::anyhow!("no random numbers"))?;
    Ok(u64::from_ne_bytes(bytes))
}

type Asking = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// A run of the protocol.
struct Run {
    announcer: Announcer,
    vote: LeaseVote<Version>,
    keys: Keys,
    socket: UdpSocket,
    nodes: Announcers,
    client: Option<Client>,
    asking: Option<Asking>,
    ask_after: Time,
    lease_error: Option<String>,
}

impl Announcing {
    async fn run(&mut self) -> Result<std::convert::Infallible> {
        let keys = Keys::read(&self.options.key_file)?;
        let socket = bind(self.options.port).await?;
        let deadline = self.addresses.deadline();
        let until = if deadline == u64::MAX { Time::MAX } else { Time::from_nanos(deadline) };
        let kept = Held { addresses: self.addresses.held().clone(), until };
        let start = now();
        if !kept.addresses.is_empty() {
            info!(addresses = kept.addresses.len(), "addresses of the agent before stay announced");
        }
        let mut run = Run {
            announcer: Announcer::new(self.node.clone(), random()?, kept, start),
            vote: LeaseVote::new(self.node.clone()),
            keys,
            socket,
            nodes: Announcers::new(),
            client: None,
            asking: None,
            ask_after: start,
            lease_error: None,
        };
        let AnnounceOptions { nodes, port, .. } = &self.options;
        info!(node = %self.node, port, nodes, "announcing addresses on the link");
        let (sender, mut nodes) = watch::channel(None);
        let mut watching = Box::pin(watch_nodes(self.kubernetes.clone(), self.options.nodes.clone(), sender));
        let mut buffer = vec![0; MAX_BYTES + 64];
        let mut next_key = start + RETRY;
        self.take_wish(&mut run);
        loop {
            self.step(&mut run)?;
            let ask_again = Some(run.ask_after).filter(|after| *after > now()).unwrap_or(Time::MAX);
            let wait = run.announcer.next_poll(now()).min(ask_again);
            tokio::select! {
                biased;
                received = run.socket.recv_from(&mut buffer) => match received {
                    Ok((length, _)) => self.receive(&mut run, buffer.get(..length).unwrap_or_default()),
                    // A peer without an agent: ICMP says so.
                    Err(error) => tracing::debug!("a datagram was not received: {error}"),
                },
                answer = asked(&mut run.asking) => self.take_answer(&mut run, answer),
                () = sleep(wait.saturating_sub(now())) => {}
                Ok(()) = nodes.changed() => {
                    if let Some(known) = nodes.borrow_and_update().clone() {
                        run.announcer.set_nodes(known.keys().cloned().collect());
                        run.nodes = known;
                    }
                }
                Ok(()) = self.wish.changed() => self.take_wish(&mut run),
                Ok(()) = self.links.changed() => self.take_wish(&mut run),
                Ok(()) = self.leaving.changed() => self.take_wish(&mut run),
                () = &mut watching => {}
            }
            // After a standstill they say who is alive, and one step serves all of them.
            self.receive_waiting(&mut run, &mut buffer);
            if now() >= next_key {
                next_key = now() + RETRY;
                match Keys::read(&self.options.key_file) {
                    Ok(keys) => run.keys = keys,
                    Err(error) => warn!("the known key stays in use: {error:#}"),
                }
            }
        }
    }

    fn take_wish(&mut self, run: &mut Run) {
        let wish = self.wish.borrow_and_update().clone();
        let links = self.links.borrow_and_update().clone();
        let is_cut_off = links.cannot_answer();
        run.announcer.set_networks(links.networks());
        let is_leaving = *self.leaving.borrow_and_update();
        run.announcer.set_last(is_leaving || (wish.addresses.is_some() && !wish.attracts));
        run.announcer.set_cut_off(is_cut_off);
        if let Some(addresses) = wish.addresses {
            run.announcer.set_wished((*addresses).clone());
        }
    }

    /// Lets time pass, and performs what follows.
    fn step(&mut self, run: &mut Run) -> Result<()> {
        if run.announcer.next_poll(now()) <= now() {
            run.announcer.poll(now());
        }
        self.perform(run)?;
        if run.asking.is_none() && now() >= run.ask_after {
            if run.vote.is_spare(now()) {
                run.vote.give_up();
                run.announcer.set_lease(Time::ZERO, now());
                self.perform(run)?;
            }
            let is_needed = run.announcer.needs_lease(now());
            let proposal = run.proposal();
            if let Some(request) = run.vote.request(is_needed, proposal, now()) {
                let first = match run.announcer.membership() {
                    Some(membership) => Some(membership.clone()),
                    None => run.announcer.may_begin(now()).then(|| Membership::first(self.node.clone())),
                };
                let (kubernetes, client) = (self.kubernetes.clone(), run.client.take());
                let request = Request { kubernetes, client, request, first, start: now() };
                run.asking = Some(Box::pin(lease::perform(request)));
            }
        }
        self.report(run);
        Ok(())
    }

    /// Performs the output of the announcer: maps first, and then datagrams.
    fn perform(&mut self, run: &mut Run) -> Result<()> {
        let Output { held: Held { addresses, until }, datagrams } = run.announcer.take_output(now());
        let deadline = if until == Time::MAX { u64::MAX } else { u64::try_from(until.as_nanos()).unwrap_or(u64::MAX) };
        // One deadline serves all: it may move to an earlier time only before others come, and to a later one only
        // after others have gone.
        if *self.addresses.held() == addresses {
            self.renew(deadline)?;
        } else {
            let before = self.addresses.held().clone();
            self.addresses.set(&before.intersection(&addresses).copied().collect())?;
            self.renew(deadline)?;
            self.addresses.set(&addresses)?;
            log_addresses(addresses.difference(&before), "announced by this node");
            log_addresses(before.difference(&addresses), "no longer announced by this node");
        }
        self.state.send_if_modified(|state| {
            let held = Held { addresses, until };
            let is_new = state.held.addresses != held.addresses;
            state.held = held;
            is_new
        });
        let mut refused = 0;
        for datagram in datagrams {
            if let Body::Answer { refused: some, .. } = &datagram.body {
                refused += some.len() as u64;
            }
            let addresses = run.nodes.get(&datagram.to).map_or(&[][..], |addresses| addresses);
            let Some(addr) = addresses.iter().find(|addr| run.can_reach(addr)) else { continue };
            let mut bytes = wire::encode(&datagram);
            run.keys.sign(&mut bytes);
            // A datagram that is lost is asked again.
            let _lost = run.socket.try_send_to(&bytes, run.peer(*addr, self.options.port));
        }
        self.state.send_if_modified(|state| {
            state.refused += refused;
            false
        });
        Ok(())
    }

    fn renew(&mut self, deadline: u64) -> Result<()> {
        if deadline == self.addresses.deadline() { Ok(()) } else { self.addresses.renew(deadline) }
    }

    /// Reads the datagrams that have arrived.
    fn receive_waiting(&self, run: &mut Run, buffer: &mut [u8]) {
        for _ in 0..MAX_DATAGRAMS {
            match run.socket.try_recv_from(buffer) {
                Ok((length, _)) => self.receive(run, buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => {}
            }
        }
    }

    fn receive(&self, run: &mut Run, bytes: &[u8]) {
        let datagram = run.keys.verify(bytes).map(wire::decode);
        self.state.send_if_modified(|state| {
            match &datagram {
                Some(Some(_)) => state.received += 1,
                Some(None) => state.unreadable += 1,
                None => state.unsigned += 1,
            }
            false
        });
        if let Some(Some(datagram)) = datagram {
            run.announcer.receive(datagram, now());
        }
    }

    fn take_answer(&self, run: &mut Run, answer: Answer) {
        let Answer { client, state, is_write, start } = answer;
        (run.client, run.asking) = (client, None);
        match state {
            Ok(Some(state)) => {
                run.lease_error = None;
                if is_write {
                    self.state.send_if_modified(|known| {
                        known.lease_writes += 1;
                        false
                    });
                }
                if let Some(membership) = &state.membership {
                    let known = run.announcer.membership().map(|membership| membership.version);
                    run.announcer.set_membership(membership.clone(), now());
                    if known != run.announcer.membership().map(|membership| membership.version) {
                        info!(members = ?membership.members, next = ?membership.next, "announcers");
                    }
                }
                if is_write {
                    run.vote.written(state, start, now());
                } else {
                    run.vote.read(state, now());
                }
            }
            Ok(None) => {
                run.vote.forget();
                run.ask_after = now() + LEASE_RETRY;
            }
            Err(error) => {
                run.vote.forget();
                // The API server gives no sign when it allows the request.
                run.ask_after = now() + if lease::is_refusal(&error) { RETRY } else { LEASE_RETRY };
                let text = format!("{error:#}");
                if run.lease_error.as_ref() != Some(&text) {
                    warn!("the Lease {} is out of reach, retrying: {text}", lease::NAME);
                    run.lease_error = Some(text);
                }
            }
        }
        run.announcer.set_lease(run.vote.until(), now());
    }

    fn report(&self, run: &Run) {
        let now = now();
        let silent = run.announcer.silent_members(now);
        self.state.send_if_modified(|state| {
            if state.silent != silent {
                if !silent.is_empty() {
                    warn!(members = ?silent, "announcers from which nothing is heard");
                }
                state.silent = silent;
            }
            let lapses = run.announcer.lapses();
            if lapses > state.lapses {
                let hold_down = run.announcer.hold_down(now);
                warn!(?hold_down, "too late to renew announced addresses, or cut off: other announcers may take them");
            }
            state.lapses = lapses;
            state.error.clone_from(&run.lease_error);
            state.members = run.announcer.membership().map_or(0, |membership| membership.newest().len());
            false
        });
    }
}

impl Run {
    /// Returns a membership to write, once the Lease is known.
    fn proposal(&mut self) -> Option<Membership> {
        let written = self.vote.written_version()?;
        self.announcer.proposal(Some(written), now())
    }

    fn is_v6(&self) -> bool {
        self.socket.local_addr().is_ok_and(|addr| addr.is_ipv6())
    }

    fn can_reach(&self, addr: &IpAddr) -> bool {
        addr.is_ipv4() || self.is_v6()
    }

    fn peer(&self, addr: IpAddr, port: u16) -> SocketAddr {
        let addr = match addr {
            IpAddr::V4(addr) if self.is_v6() => addr.to_ipv6_mapped().into(),
            addr => addr,
        };
        (addr, port).into()
    }
}

fn log_addresses<'a>(addresses: impl Iterator<Item = &'a IpAddr> + Clone, what: &'static str) {
    let count = addresses.clone().count();
    if count > 0 {
        let some: Vec<String> = addresses.take(MAX_LOGGED).map(ToString::to_string).collect();
        info!(count, addresses = some.join(" "), "{what}");
    }
}

/// Waits for the answer of the API server.
async fn asked(asking: &mut Option<Asking>) -> Answer {
    match asking {
        Some(asking) => asking.await,
        None => pending().await,
    }
}

/// Binds the port for both families, or for IPv4 on a node without IPv6.
async fn bind(port: u16) -> Result<UdpSocket> {
    let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).await;
    match v6 {
        Ok(socket) => Ok(socket),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(error),
        Err(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
    .with_context(|| format!("binding UDP port {port} of announcers; --announce-port names another one"))
}

/// Follows the Nodes of announcers. Does not end.
async fn watch_nodes(kubernetes: KubernetesOptions, selector: String, sender: watch::Sender<Option<Announcers>>) {
    loop {
        match kubernetes::client(&kubernetes).await {
            Ok(client) => announcers::follow(client, selector.clone(), sender.clone()).await,
            Err(error) => warn!("announcers are not known: {error:#}"),
        }
        sleep(RETRY).await;
    }
}

//! The devices of the packet path: follows links, addresses and routes of the agent's network namespace and the modes
//! of pods, and keeps programs and the map `DEVICES` in step. A notification only starts a pass. A pass reads
//! everything (`desired` has the facts and what they ask for), plans steps (`plan`), and performs them (`perform`).

pub mod answering;
pub mod desired;
pub mod options;
mod packet_links;
mod perform;
mod plan;

#[cfg(test)]
mod fixture;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    io,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{info, warn};

use crate::{
    attach::{socket_lookup::SocketLookup, tc::Tc},
    flows::netfilter::is_translating,
    pod_modes,
};
use answering::AnsweringLinks;
use desired::{DesiredDevice, DeviceFacts, desired, slow_path};
use lb_core::model::pod_modes::PodModes;
use lb_kernel::{
    netfilter::masquerade,
    netlink::{Monitor, NetlinkSocket, group, network_state::NetworkState, xfrm},
};
use options::DeviceOptions;
use perform::Performer;
use plan::{has_new_link, plan};

/// Interval of passes without a notification: another tool may have detached a program.
const CHECK: Duration = Duration::from_secs(30);

/// Pause after reading the facts, in multiples of the time that reading took: a storm of notifications costs at most a
/// fifth of a core, changes of devices not counted. The first notification after a pause starts a pass at once.
const REST: u32 = 4;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// State of the node that the agent knows from objects.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeState {
    /// Addresses of the Node object.
    pub addresses: Vec<IpAddr>,
    /// Modes of the node's pods; none until they are known.
    pub pod_modes: Option<Arc<PodModes>>,
}

impl NodeState {
    fn has_pods(&self) -> bool {
        self.pod_modes.as_ref().is_some_and(|modes| !modes.pods.is_empty())
    }
}

/// Runs passes until dropped, and tells the devices that answer for announced addresses. A failed pass is logged and
/// retried.
///
/// # Errors
/// If a pass panics.
pub async fn run(
    options: DeviceOptions,
    tc: Arc<Tc>,
    socket_lookup: SocketLookup,
    pins: PathBuf,
    mut node: watch::Receiver<NodeState>,
    answering: watch::Sender<AnsweringLinks>,
) -> Result<()> {
    let mut generation = tc.generation();
    // Wait for the first programs and maps.
    if generation.wait_for(|generation| *generation > 0).await.is_err() {
        return pending().await;
    }
    let are_off = options.are_off();
    let performer = Performer::new(Arc::clone(&tc), pins);
    let mut manager = DeviceManager {
        options,
        tc,
        socket_lookup,
        performer,
        answering,
        known: None,
        reading: FIRST_RETRY,
        served: None,
    };
    let mut logged: Option<String> = None;
    let (mut news, mut backoff) = (None, FIRST_RETRY);
    loop {
        let known = node.borrow_and_update().clone();
        if generation.has_changed().unwrap_or(false) {
            generation.mark_unchanged();
            manager.performer.reread();
        }
        let is_idle = are_off && !known.has_pods();
        // Subscribe before the pass reads, so that no change is missed.
        if news.is_none() && !is_idle {
            news = Notifications::subscribe()
                .inspect_err(|error| warn!("no notifications of network devices: {error}"))
                .ok();
        }
        let state = known.clone();
        let (back, passed) = tokio::task::spawn_blocking(move || {
            let passed = manager.pass(&state);
            (manager, passed)
        })
        .await?;
        manager = back;
        let check = match passed {
            Ok(()) => {
                logged = None;
                backoff = FIRST_RETRY;
                (!is_idle).then(|| manager.performer.pod_modes.retry().unwrap_or(CHECK))
            }
            Err(error) => {
                let text = format!("{error:#}");
                if logged.as_ref() != Some(&text) {
                    warn!("the devices of the packet path are not as they should be, and this is tried again: {text}");
                    logged = Some(text);
                }
                backoff = (backoff * 2).min(LAST_RETRY);
                Some(backoff)
            }
        };
        sleep(manager.reading * REST).await;
        let is_lost = tokio::select! {
            heard = async {
                match &mut news {
                    Some(news) => news.changed().await,
                    None => pending().await,
                }
            } => heard.is_err(),
            () = changed(&mut node, &known) => false,
            () = manager.performer.packet_link_found(), if !are_off => false,
            _ = generation.changed() => {
                generation.mark_changed();
                false
            }
            () = async {
                match check {
                    Some(check) => sleep(check).await,
                    None => pending().await,
                }
            } => false,
        };
        if is_lost {
            news = None;
            sleep(FIRST_RETRY).await;
        }
    }
}

/// Notifications of everything that a pass reads from the kernel.
struct Notifications {
    network: Monitor,
    /// IPsec policies; none without IPsec in the kernel.
    policies: Option<Monitor>,
}

impl Notifications {
    fn subscribe() -> io::Result<Self> {
        let network = Monitor::subscribe(group::LINK | group::ADDRESS | group::ROUTE | group::RULE | group::TC)?;
        Ok(Self { network, policies: Monitor::subscribe_to_policies().ok() })
    }

    async fn changed(&mut self) -> io::Result<()> {
        let policies = async {
            match &mut self.policies {
                Some(policies) => policies.changed().await,
                None => pending().await,
            }
        };
        tokio::select! {
            changed = self.network.changed() => changed,
            changed = policies => changed,
        }
    }
}

/// Returns when the state differs from the known one.
async fn changed(node: &mut watch::Receiver<NodeState>, known: &NodeState) {
    loop {
        if node.changed().await.is_err() {
            return pending().await;
        }
        if *node.borrow_and_update() != *known {
            return;
        }
    }
}

/// Reads facts, and has the planned steps performed.
struct DeviceManager {
    options: DeviceOptions,
    tc: Arc<Tc>,
    socket_lookup: SocketLookup,
    performer: Performer,
    answering: watch::Sender<AnsweringLinks>,
    /// Links of the last pass; none before the first.
    known: Option<BTreeSet<u32>>,
    /// Time that reading the facts took in the last pass.
    reading: Duration,
    /// Devices that had programs after a pass and still want them; none before the first pass.
    served: Option<BTreeSet<u32>>,
}

impl DeviceManager {
    fn pass(&mut self, known: &NodeState) -> Result<()> {
        let began = Instant::now();
        let mut channel = NetlinkSocket::open().context("opening a netlink socket")?;
        let network = NetworkState::read(&mut channel).context("reading links, addresses and routes")?;
        let modes = known.pod_modes.as_deref();
        let pods = modes.map(|modes| self.performer.pod_modes.locate(modes, &network, &mut channel)).transpose()?;
        let attached = self.tc.attached()?;
        let ipsec = xfrm::has_policies().context("reading IPsec policies")?;
        let (slow_path, needs_masquerade) = slow_path(&self.options, &network, ipsec);
        let masquerade = if needs_masquerade && !self.options.are_off() { ensure_masquerade() } else { Ok(()) };
        let made =
            |known: &BTreeSet<u32>| network.links.keys().copied().filter(|index| !known.contains(index)).collect();
        let is_complete = |index: &u32| attached.get(index).is_some_and(|attachment| self.tc.is_complete(attachment));
        let packet_links = self.performer.read_packet_links(|index| network.links.contains_key(&index))?;
        let mut facts = DeviceFacts {
            network: &network,
            packet_links: &packet_links,
            node: &known.addresses,
            complete: attached.keys().copied().filter(is_complete).collect(),
            attached,
            written: self.performer.entries()?.clone(),
            pod_modes: pods.as_deref().map(pod_modes::modes_by_link),
            made: self.known.as_ref().map_or_else(BTreeSet::new, made),
            netfilter_translates: false,
            // Without masquerade, the redirect remains.
            slow_path: if masquerade.is_ok() { slow_path } else { 0 },
        };
        let desired = desired(&self.options, &facts);
        let found = packet_links.iter().filter(|index| {
            !facts.attached.contains_key(index) && desired.get(index).is_some_and(|device| device.role.is_some())
        });
        let found = named(found, &desired);
        if !found.is_empty() {
            info!(
                devices = perform::list(found.values()),
                "pods sent packets to Services without a socket of this node: their links get the programs"
            );
        }
        // Until the modes are known, the decision is open.
        if facts.pod_modes.is_some() {
            let gets_none = |index| desired.get(&index).is_none_or(|device| device.role.is_none());
            self.performer.answer_packet_links(gets_none)?;
        }
        self.reading = began.elapsed();
        // Listing netfilter's connections is slow: only for new links.
        facts.netfilter_translates = has_new_link(&facts, &desired) && is_translating();
        let plan = plan(&facts, &desired);
        self.known = Some(network.links.keys().copied().collect());
        let served = self.served.take().unwrap_or_else(|| facts.attached.keys().copied().collect());
        let wants_programs = |index: &u32| desired.get(index).is_some_and(|device| device.role.is_some());
        let served: BTreeSet<u32> = served.into_iter().filter(wants_programs).collect();
        let lost = named(served.difference(&facts.complete), &desired);
        if !lost.is_empty() {
            warn!(devices = perform::list(lost.values()), "another program detached or replaced programs at devices");
        }
        let mut answering = AnsweringLinks::find(&network, &desired);
        self.performer.write_answering(&answering)?;
        let performed =
            self.performer.perform(plan, modes.zip(pods.as_deref()), |index| network.links.contains_key(&index));
        self.socket_lookup.set_wanted(!self.options.are_off() && self.performer.has_links_without());
        let attached = self.tc.attached()?;
        let complete = attached.iter().filter(|(_, attachment)| self.tc.is_complete(attachment));
        let complete: BTreeSet<u32> = complete.map(|(index, _)| *index).filter(wants_programs).collect();
        self.tc.note_lost(named(served.difference(&complete), &desired));
        // A device without programs answers nothing, and shall announce nothing.
        answering.by_index.retain(|index, _| complete.contains(index));
        self.answering.send_if_modified(|known| {
            let is_new = *known != answering;
            *known = answering;
            is_new
        });
        self.served = Some(served.union(&complete).copied().collect());
        performed?;
        masquerade
    }
}

/// Pairs devices with their names.
fn named<'a>(indexes: impl Iterator<Item = &'a u32>, desired: &BTreeMap<u32, DesiredDevice>) -> BTreeMap<u32, String> {
    indexes.filter_map(|index| Some((*index, desired.get(index)?.name.clone()))).collect()
}

/// Adds the table by which netfilter masquerades flows on the slow path, if it does not exist.
fn ensure_masquerade() -> Result<()> {
    if masquerade::ensure().with_context(|| {
        format!(
            "flows by tunnels, IPsec and marked routes lack masquerade: adding the table {} to nf_tables, which needs \
             the kernel's modules nft_chain_nat, nft_ct and nft_masq",
            masquerade::MASQUERADE_TABLE
        )
    })? {
        info!(table = masquerade::MASQUERADE_TABLE, "netfilter masquerades flows on the slow path");
    }
    Ok(())
}

//! Follows the links, addresses and routes of the agent's network namespace and what pods have chosen, and keeps the programs
//! of the packet path and the map `DEVICES` as they say. An event says only that something has changed: all is read again then, and what has
//! changed is what is done. `decide` says what is wanted.

pub mod choice;
pub mod decide;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_common::{Device, DeviceFlags};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{info, warn};

use crate::{
    attach::tc::Tc,
    flows::netfilter::{leave_to_netfilter, translates},
    pod_modes,
};
use choice::{Choice, Patterns};
use decide::{Setting, Wish, decide, entrances, pod_links, uplinks};
use lb_core::model::pod_modes::PodModes;
use lb_kernel::{
    bpf::typed::TypedMap,
    netlink::{Monitor, NetlinkSocket, group, network_state::NetworkState},
};

/// How often all is looked at though nobody told of a change: somebody else may have taken a program away.
const CHECK: Duration = Duration::from_secs(30);

/// After each reading it rests for so many times as long as that took, so that a storm of changes costs a fifth of a core at
/// most, what it does at devices left out. The first change after a rest is looked at without delay.
const REST: u32 = 4;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// The devices of a line of the log; of more only the number is said.
const NAMED: usize = 8;

/// What the flags say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Which links are uplinks.
    pub uplinks: Choice,
    /// Which links lead to pods that have the packet path.
    pub pods: Patterns,
    /// Whether flows to pods of this node go past the kernel's own routing.
    pub host_routing: bool,
}

impl Options {
    /// Whether no link can have the programs, unless a pod chooses it.
    #[must_use]
    pub fn are_off(&self) -> bool {
        self.pods.is_empty() && self.uplinks.is_none()
    }
}

/// What the agent knows of the node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeState {
    /// The addresses by which the cluster knows it.
    pub addresses: Vec<IpAddr>,
    /// The modes of its pods; None until they are known.
    pub paths: Option<Arc<PodModes>>,
}

impl NodeState {
    fn has_pods(&self) -> bool {
        self.paths.as_ref().is_some_and(|paths| !paths.pods.is_empty())
    }
}

/// Runs until it is dropped. Failures are logged and outlasted.
///
/// # Errors
/// When a thread cannot be had.
pub async fn run(options: Options, tc: Arc<Tc>, pins: PathBuf, mut node: watch::Receiver<NodeState>) -> Result<()> {
    let mut generation = tc.generation();
    // Before there are programs and maps there is nothing to attach.
    if generation.wait_for(|generation| *generation > 0).await.is_err() {
        return pending().await;
    }
    let are_off = options.are_off();
    let paths = pod_modes::Keeper::default();
    let mut keeper = Keeper { options, tc, pins, paths, written: None, reading: FIRST_RETRY, told: Vec::new() };
    let (mut news, mut backoff) = (None, FIRST_RETRY);
    loop {
        let known = node.borrow_and_update().clone();
        if generation.has_changed().unwrap_or(false) {
            generation.mark_unchanged();
            // The maps may be others.
            keeper.written = None;
            keeper.paths.forget();
        }
        let is_idle = are_off && !known.has_pods();
        // First, so that no change is missed.
        if news.is_none() && !is_idle {
            news = Monitor::subscribe(group::LINK | group::ADDRESS | group::ROUTE)
                .inspect_err(|error| warn!("no news of network devices: {error}"))
                .ok();
        }
        let given = known.clone();
        let (back, passed) = tokio::task::spawn_blocking(move || {
            let passed = keeper.pass(&given);
            (keeper, passed)
        })
        .await?;
        keeper = back;
        let check = match passed {
            Ok(()) => {
                backoff = FIRST_RETRY;
                (!is_idle).then(|| keeper.paths.retry().unwrap_or(CHECK))
            }
            Err(error) => {
                let text = format!("{error:#}");
                if keeper.told != [text.clone()] {
                    warn!("the devices of the packet path are not as they should be, and this is tried again: {text}");
                    keeper.told = vec![text];
                }
                backoff = (backoff * 2).min(LAST_RETRY);
                Some(backoff)
            }
        };
        sleep(keeper.reading * REST).await;
        let is_dead = tokio::select! {
            heard = async {
                match &mut news {
                    Some(news) => news.changed().await,
                    None => pending().await,
                }
            } => heard.is_err(),
            () = changes(&mut node, &known) => false,
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
        if is_dead {
            news = None;
            sleep(FIRST_RETRY).await;
        }
    }
}

/// Returns when something else is known.
async fn changes(node: &mut watch::Receiver<NodeState>, known: &NodeState) {
    loop {
        if node.changed().await.is_err() {
            return pending().await;
        }
        if *node.borrow_and_update() != *known {
            return;
        }
    }
}

/// The map, and what stands in it.
struct Written {
    map: TypedMap<u32, Device>,
    entries: BTreeMap<u32, Device>,
}

/// Does what is wanted.
struct Keeper {
    options: Options,
    tc: Arc<Tc>,
    /// The directory of the pinned maps.
    pins: PathBuf,
    paths: pod_modes::Keeper,
    /// What stands in the map; none: it is to be read.
    written: Option<Written>,
    /// How long the last reading took.
    reading: Duration,
    /// What was said of failures last, so that it is said once.
    told: Vec<String>,
}

impl Keeper {
    /// Reads everything, and does what is to be done.
    fn pass(&mut self, known: &NodeState) -> Result<()> {
        let began = Instant::now();
        let mut channel = NetlinkSocket::open().context("opening a netlink socket")?;
        let facts = NetworkState::read(&mut channel).context("reading links, addresses and routes")?;
        let paths = known.paths.as_deref();
        let placed = paths.map(|paths| self.paths.look(paths, &facts, &mut channel)).transpose()?;
        let attached = self.tc.attached()?;
        let has_now: BTreeSet<u32> = attached.keys().copied().collect();
        let choices = placed.as_deref().map(pod_modes::choices);
        let before = self.written()?.entries.clone();
        let node = &known.addresses;
        let Options { pods, host_routing, .. } = &self.options;
        let uplinks = uplinks(&facts, &self.options.uplinks, node, &has_now);
        let entrances = if *host_routing { entrances(&facts, &uplinks) } else { BTreeSet::new() };
        let pod_links = pod_links(&facts, pods, &entrances, choices.as_ref(), &before);
        let wishes = if self.options.are_off() && pod_links.is_empty() {
            BTreeMap::new()
        } else {
            let (uplinks, pod_links) = (&uplinks, &pod_links);
            decide(&facts, Setting { uplinks, pod_links, host_routing: *host_routing, node })
        };
        self.reading = began.elapsed();
        let is_new = |index: &u32| !attached.contains_key(index);
        // Datagrams of clients would be left to nobody where netfilter has nothing to go on with.
        let settles = wishes.iter().any(|(index, wish)| wish.role.is_some() && is_new(index)) && translates();
        let is_whole = |index: &u32| attached.get(index).is_some_and(|attached| self.tc.is_whole(attached));
        let with_programs = wishes.iter().filter(|(_, wish)| wish.role.is_some());
        let mut serving: BTreeSet<u32> = with_programs.clone().map(|(index, _)| *index).filter(is_whole).collect();
        let settling = |(index, wish): (&u32, &Wish)| {
            let is_settling = settles && wish.role.is_some() && is_new(index);
            let flags = wish.device.flags | if is_settling { DeviceFlags::SETTLING } else { 0 };
            (*index, entered_if(serving.contains(index), Device { flags, ..wish.device }))
        };
        // A program that runs finds its device.
        self.put(&wishes.iter().map(settling).collect())?;
        let mut failures = Vec::new();
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for (index, wish) in with_programs {
            if serving.contains(index) {
                continue;
            }
            match self.tc.attach(*index) {
                Ok(how) => {
                    serving.insert(*index);
                    added.push(format!("{} ({})", wish.name, how.name()));
                }
                // It has gone meanwhile, and the news of that is on its way.
                Err(error) if is_gone(&error) => {}
                Err(error) => failures.push(format!("{}: {error:#}", wish.name)),
            }
        }
        if wishes.iter().any(|(index, wish)| wish.role.is_some() && is_new(index)) {
            // What began before the programs came is netfilter's to its end.
            match leave_to_netfilter(&self.pins) {
                Ok(0) => {}
                Ok(flows) => info!(flows, "open connections that netfilter translates are left to it"),
                Err(error) => warn!("connections that netfilter translates may break: {error:#}"),
            }
        }
        let wanted =
            wishes.iter().map(|(index, wish)| (*index, entered_if(serving.contains(index), wish.device))).collect();
        self.put(&wanted)?;
        // The sockets of a pod are left alone when its packets are not.
        if let (Some(paths), Some(placed)) = (paths, &placed) {
            self.paths.tell(&self.pins, paths, placed, &serving)?;
        }
        let is_wanted = |index: &u32| wishes.get(index).is_some_and(|wish: &Wish| wish.role.is_some());
        for (index, had) in attached.iter().filter(|(index, _)| !is_wanted(index)) {
            let Some(link) = facts.links.get(index) else {
                removed.push(format!("#{index}"));
                continue;
            };
            match self.tc.detach(*index, had.how) {
                Ok(()) => removed.push(link.name.clone()),
                Err(error) if is_gone(&error) => {}
                Err(error) => failures.push(format!("{}: {error:#}", link.name)),
            }
        }
        self.tc.forget(|index| facts.links.contains_key(&index))?;
        self.remove_others(&wanted)?;
        if !added.is_empty() || !removed.is_empty() {
            info!(attached = list(&added), removed = list(&removed), "devices of the packet path");
        }
        if failures.is_empty() {
            self.told.clear();
            return Ok(());
        }
        Err(anyhow::anyhow!("{}", list(&failures)))
    }

    fn written(&mut self) -> Result<&mut Written> {
        let written = match self.written.take() {
            Some(written) => written,
            None => {
                let map = TypedMap::open(&self.pins, "DEVICES")?;
                let entries = map.read()?.into_iter().collect();
                Written { map, entries }
            }
        };
        Ok(self.written.insert(written))
    }

    /// Writes what is new or another.
    fn put(&mut self, wanted: &BTreeMap<u32, Device>) -> Result<()> {
        let Written { map, entries } = self.written()?;
        let new = wanted.iter().filter(|(index, device)| entries.get(index) != Some(*device));
        let (keys, values): (Vec<u32>, Vec<Device>) = new.map(|(index, device)| (*index, *device)).unzip();
        let written = map.put(&keys, &values).context("writing DEVICES");
        if written.is_err() {
            self.written = None;
            return written;
        }
        entries.extend(keys.into_iter().zip(values));
        Ok(())
    }

    /// Removes what is not wanted.
    fn remove_others(&mut self, wanted: &BTreeMap<u32, Device>) -> Result<()> {
        let Written { map, entries } = self.written()?;
        let keys: Vec<u32> = entries.keys().copied().filter(|index| !wanted.contains_key(index)).collect();
        map.delete(&keys).context("writing DEVICES")?;
        entries.retain(|index, _| wanted.contains_key(index));
        Ok(())
    }
}

/// The device, into which packets go past the kernel's routing only while the programs are there for the answers.
fn entered_if(is_served: bool, device: Device) -> Device {
    let flags = if is_served { device.flags } else { device.flags & !DeviceFlags::HOST_ROUTING };
    Device { flags, ..device }
}

fn is_gone(error: &anyhow::Error) -> bool {
    let errors = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    errors.filter_map(std::io::Error::raw_os_error).any(|number| number == libc::ENODEV)
}

fn list(names: &[String]) -> String {
    if names.len() > NAMED { format!("{} devices", names.len()) } else { names.join(", ") }
}

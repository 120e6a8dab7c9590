//! Performs the steps of a pass, and collects the failures of single devices.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow};
use lb_common::{Device, DeviceFlags};
use tracing::{info, warn};

use super::answering::{AnsweringLinks, LinkAddrs};
use super::packet_links::PacketLinks;
use super::plan::{DevicePlan, Step, enterable_if};
use crate::{
    attach::tc::Tc,
    flows::netfilter::{OverEntries, leave_to_netfilter},
    pod_modes::{LocatedPod, PodModeManager},
};
use lb_core::model::pod_modes::PodModes;
use lb_kernel::bpf::typed::TypedMap;

/// Most devices that a line of the log names; of more it has the number.
const MAX_NAMED: usize = 8;

/// `DEVICES` and its entries.
struct DevicesMap {
    map: TypedMap<u32, Device>,
    entries: BTreeMap<u32, Device>,
}

/// Writes `DEVICES` and the modes of pods, and attaches and detaches programs.
pub(super) struct Performer {
    tc: Arc<Tc>,
    /// The directory of the pinned maps.
    pins: PathBuf,
    pub(super) pod_modes: PodModeManager,
    packet_links: PacketLinks,
    link_addrs: LinkAddrs,
    /// None until it is read.
    devices: Option<DevicesMap>,
}

/// Changes of a pass, for the log.
#[derive(Default)]
struct Outcome {
    attached: Vec<String>,
    removed: Vec<String>,
    failures: Vec<String>,
}

impl Performer {
    pub(super) fn new(tc: Arc<Tc>, pins: PathBuf) -> Self {
        Self {
            tc,
            pins,
            pod_modes: PodModeManager::default(),
            packet_links: PacketLinks::default(),
            link_addrs: LinkAddrs::default(),
            devices: None,
        }
    }

    /// Reads the maps again at the next pass, since they may be others.
    pub(super) fn reread(&mut self) {
        self.devices = None;
        self.pod_modes.reread();
        self.packet_links.reread();
        self.link_addrs.reread();
    }

    /// Reads the links without programs by which pods sent packets to frontends, and forgets links that do not exist.
    pub(super) fn read_packet_links(&mut self, exists: impl Fn(u32) -> bool) -> Result<BTreeSet<u32>> {
        self.packet_links.read(&self.pins, exists)
    }

    /// Answers for links of the last [`Self::read_packet_links`] that get no programs.
    pub(super) fn answer_packet_links(&mut self, gets_none: impl Fn(u32) -> bool) -> Result<()> {
        self.packet_links.answer(gets_none)
    }

    /// Writes the link addresses of the devices that answer for announced addresses.
    pub(super) fn write_answering(&mut self, links: &AnsweringLinks) -> Result<()> {
        self.link_addrs.write(&self.pins, links)
    }

    /// Returns when there are others than at the last [`Self::read_packet_links`]; never while each link of a pod has
    /// programs, or there is none.
    pub(super) async fn packet_link_found(&self) {
        if self.has_links_without() {
            self.packet_links.found().await;
        } else {
            pending::<()>().await;
        }
    }

    /// True if a link of a pod has no programs.
    pub(super) fn has_links_without(&self) -> bool {
        const WITHOUT: u32 = DeviceFlags::POD | DeviceFlags::NO_PROGRAMS;
        let is_without = |device: &Device| device.flags & WITHOUT == WITHOUT;
        self.devices.as_ref().is_some_and(|map| map.entries.values().any(is_without))
    }

    /// Returns the entries of `DEVICES`.
    pub(super) fn entries(&mut self) -> Result<&BTreeMap<u32, Device>> {
        Ok(&self.devices()?.entries)
    }

    /// Performs the steps in order. `pods` is present if the plan has [`Step::TellPodModes`]. A map that cannot be
    /// written ends the pass; failures of single devices are returned at the end.
    pub(super) fn perform(
        &mut self,
        plan: DevicePlan,
        pods: Option<(&PodModes, &[LocatedPod<'_>])>,
        exists: impl Fn(u32) -> bool,
    ) -> Result<()> {
        let DevicePlan { mut serving, steps } = plan;
        let mut outcome = Outcome::default();
        for step in steps {
            match step {
                Step::PutDevices(entries) => self.put(entries, &serving)?,
                Step::Attach { index, name } => match self.tc.attach(index) {
                    Ok(method) => {
                        serving.insert(index);
                        outcome.attached.push(format!("{name} ({})", method.name()));
                    }
                    // The link was deleted since the pass began: the next pass follows.
                    Err(error) if is_deleted(&error) => {}
                    Err(error) => outcome.failures.push(format!("{name}: {error:#}")),
                },
                // A failure occurs again in the next step, which reports it.
                Step::ReserveForNetfilter => drop(leave_to_netfilter(&self.pins, OverEntries::Keep)),
                Step::LeaveToNetfilter => match leave_to_netfilter(&self.pins, OverEntries::Delete) {
                    Ok(0) => {}
                    Ok(flows) => info!(flows, "open connections that netfilter translates are left to it"),
                    Err(error) => warn!("connections that netfilter translates may break: {error:#}"),
                },
                Step::TellPodModes => {
                    if let Some((modes, pods)) = pods {
                        self.pod_modes.write(&self.pins, modes, pods, &serving)?;
                    }
                }
                Step::Detach { index, name, method } => match self.tc.detach(index, method) {
                    Ok(()) => outcome.removed.push(name),
                    Err(error) if is_deleted(&error) => {}
                    Err(error) => outcome.failures.push(format!("{name}: {error:#}")),
                },
                Step::ReportDeleted(index) => outcome.removed.push(format!("#{index}")),
                Step::ForgetDeleted => self.tc.forget_deleted(&exists)?,
                Step::RemoveDevices(indexes) => self.remove(&indexes)?,
            }
        }
        outcome.report()
    }

    fn devices(&mut self) -> Result<&mut DevicesMap> {
        let devices = match self.devices.take() {
            Some(devices) => devices,
            None => {
                let map = TypedMap::open(&self.pins, "DEVICES")?;
                let entries = map.read()?.into_iter().collect();
                DevicesMap { map, entries }
            }
        };
        Ok(self.devices.insert(devices))
    }

    /// Writes the entries that differ from the map.
    fn put(&mut self, wanted: BTreeMap<u32, Device>, serving: &BTreeSet<u32>) -> Result<()> {
        let DevicesMap { map, entries } = self.devices()?;
        let wanted = wanted.into_iter().map(|(index, device)| (index, enterable_if(serving.contains(&index), device)));
        let changed = wanted.filter(|(index, device)| entries.get(index) != Some(device));
        let (keys, values): (Vec<u32>, Vec<Device>) = changed.unzip();
        let written = map.put(&keys, &values).context("writing DEVICES");
        if written.is_err() {
            self.devices = None;
            return written;
        }
        entries.extend(keys.into_iter().zip(values));
        Ok(())
    }

    fn remove(&mut self, indexes: &[u32]) -> Result<()> {
        let DevicesMap { map, entries } = self.devices()?;
        map.delete(indexes).context("writing DEVICES")?;
        entries.retain(|index, _| !indexes.contains(index));
        Ok(())
    }
}

impl Outcome {
    /// Logs the changes, and returns the failures as one error.
    fn report(self) -> Result<()> {
        if !self.attached.is_empty() || !self.removed.is_empty() {
            info!(attached = list(&self.attached), removed = list(&self.removed), "devices of the packet path");
        }
        if self.failures.is_empty() { Ok(()) } else { Err(anyhow!("{}", list(&self.failures))) }
    }
}

/// True if the kernel reports that the link does not exist.
fn is_deleted(error: &anyhow::Error) -> bool {
    let errors = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    errors.filter_map(std::io::Error::raw_os_error).any(|number| number == libc::ENODEV)
}

/// Lists names of devices, or counts them.
pub(super) fn list<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
    if names.len() > MAX_NAMED { format!("{} devices", names.len()) } else { names.join(", ") }
}

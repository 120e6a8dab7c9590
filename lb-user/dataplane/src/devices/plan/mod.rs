//! From facts and wanted devices to the steps of a pass, in order. Pure.
//!
//! The order: a device's entry comes before its programs, programs come before the modes of pods that depend on them,
//! and removal comes last. So a running program always finds its device, and the sockets of a pod are left untranslated
//! only when its packets are translated.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{Device, DeviceFlags};

use super::desired::{DesiredDevice, DeviceFacts};
use crate::attach::tc::AttachMethod;

/// A step of a pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Writes entries of `DEVICES`. Host routing is left out of devices whose programs are not complete by then.
    PutDevices(BTreeMap<u32, Device>),
    /// Attaches the programs to a link, or the missing one.
    Attach { index: u32, name: String },
    /// Reserves the tuples of connections that netfilter translates, before the programs begin flows.
    ReserveForNetfilter,
    /// Leaves connections that netfilter translates to netfilter.
    LeaveToNetfilter,
    /// Writes the modes of pods, by the links that are complete by then.
    TellPodModes,
    /// Detaches the programs from a link.
    Detach { index: u32, name: String, method: AttachMethod },
    /// Reports a deleted link, which took its programs along.
    ReportDeleted(u32),
    /// Removes pins and marks of deleted links.
    ForgetDeleted,
    /// Removes entries of `DEVICES`.
    RemoveDevices(Vec<u32>),
}

/// The steps of a pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct DevicePlan {
    /// Links that have programs already, and keep them.
    pub(super) serving: BTreeSet<u32>,
    /// Steps in order.
    pub(super) steps: Vec<Step>,
}

/// True if a link without any program gets programs, which netfilter may have served before. A link that has just been
/// made, such as that of a new pod, has no connections yet.
pub(super) fn has_new_link(facts: &DeviceFacts<'_>, desired: &BTreeMap<u32, DesiredDevice>) -> bool {
    desired.iter().any(|(index, device)| device.role.is_some() && may_have_connections(facts, index))
}

fn may_have_connections(facts: &DeviceFacts<'_>, index: &u32) -> bool {
    !facts.attached.contains_key(index) && !facts.made.contains(index)
}

/// Plans the steps from the facts to the wanted devices.
pub(super) fn plan(facts: &DeviceFacts<'_>, desired: &BTreeMap<u32, DesiredDevice>) -> DevicePlan {
    let with_programs = || desired.iter().filter(|(_, device)| device.role.is_some());
    let serving: BTreeSet<u32> =
        with_programs().map(|(index, _)| *index).filter(|index| facts.complete.contains(index)).collect();
    let mut steps = Vec::new();

    // At a settling device the programs pass packets that begin no connection, until netfilter's connections are in
    // `FLOWS`. If netfilter translates nothing, no device settles: neither side would serve datagrams of clients
    // meanwhile.
    let is_settling = |index: &u32, desired: &DesiredDevice| {
        facts.netfilter_translates && desired.role.is_some() && may_have_connections(facts, index)
    };
    let first = |index: &u32, desired: &DesiredDevice| {
        let flags = desired.device.flags | if is_settling(index, desired) { DeviceFlags::SETTLING } else { 0 };
        enterable_if(serving.contains(index), Device { flags, ..desired.device })
    };
    let before: BTreeMap<u32, Device> =
        desired.iter().map(|(index, desired)| (*index, first(index, desired))).collect();
    let changed = before.iter().filter(|(index, device)| facts.written.get(index) != Some(*device));
    put(&mut steps, changed.map(|(index, device)| (*index, *device)).collect());

    // Connections that begin from here on are few: their ports are not yet reserved when the first flows begin.
    if facts.netfilter_translates && has_new_link(facts, desired) {
        steps.push(Step::ReserveForNetfilter);
    }
    let incomplete = || with_programs().filter(|(index, _)| !serving.contains(index));
    steps.extend(incomplete().map(|(index, desired)| Step::Attach { index: *index, name: desired.name.clone() }));
    if has_new_link(facts, desired) {
        steps.push(Step::LeaveToNetfilter);
    }
    let settled = incomplete().filter(|(index, desired)| before.get(index) != Some(&desired.device));
    put(&mut steps, settled.map(|(index, desired)| (*index, desired.device)).collect());
    if facts.pod_modes.is_some() {
        steps.push(Step::TellPodModes);
    }

    let is_wanted = |index: &u32| desired.get(index).is_some_and(|device| device.role.is_some());
    for (index, attachment) in facts.attached.iter().filter(|(index, _)| !is_wanted(index)) {
        steps.push(match facts.network.links.get(index) {
            Some(link) => Step::Detach { index: *index, name: link.name.clone(), method: attachment.method },
            None => Step::ReportDeleted(*index),
        });
    }
    steps.push(Step::ForgetDeleted);
    let obsolete: Vec<u32> = facts.written.keys().copied().filter(|index| !desired.contains_key(index)).collect();
    if !obsolete.is_empty() {
        steps.push(Step::RemoveDevices(obsolete));
    }
    DevicePlan { serving, steps }
}

fn put(steps: &mut Vec<Step>, entries: BTreeMap<u32, Device>) {
    if !entries.is_empty() {
        steps.push(Step::PutDevices(entries));
    }
}

/// Returns the device as it may be entered now: packets bypass the kernel's routing only while the programs are
/// complete, since replies need them.
pub(super) const fn enterable_if(is_complete: bool, device: Device) -> Device {
    let flags = if is_complete { device.flags } else { device.flags & !DeviceFlags::HOST_ROUTING };
    Device { flags, ..device }
}

#[cfg(test)]
mod tests;

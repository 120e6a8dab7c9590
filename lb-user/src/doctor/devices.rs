//! The programs at network devices: whether the uplinks have them, whether somebody else's come first, and whether the pods that
//! have chosen the packet path have it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context as _, Result};
use lb_common::{Device, DeviceFlags, PodMode, PodModeEntry};

use super::{Finding, foreign::Programs};
use crate::inspect::pod_modes::{PathRow, paths};
use lb_core::text::number;
use lb_dataplane::{
    attach::tc::{self, Attachment},
    devices::{desired, options::UplinkChoice},
};
use lb_kernel::{
    bpf,
    bpf::typed::TypedMap,
    netlink::{NetlinkSocket, network_state},
};

const CHECK: &str = "devices";

/// What is there, by index of the device.
#[derive(Default)]
pub(super) struct Facts {
    /// Whether the agent was told to serve none.
    is_off: bool,
    /// Those that shall have the programs, as far as routes tell; with no agent, nobody says which.
    uplinks: BTreeMap<u32, String>,
    attached: BTreeMap<u32, Attachment>,
    names: BTreeMap<u32, String>,
    /// Programs of others that run before ours: a device, a program of ours, and theirs.
    before: Vec<(u32, &'static str, u32)>,
    programs: Programs,
    /// Pods that have chosen a path.
    pods: Vec<PathRow>,
    /// Into how many pods packets go past the node's routing, where they shall.
    entered: Option<usize>,
}

/// Reads them, in the network namespace of this thread.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn read(directory: &Path, root: &Path, devices: Option<&UplinkChoice>) -> Result<Facts> {
    let attached = tc::attached(directory, root)?;
    let mut channel = NetlinkSocket::open().context("opening a netlink socket")?;
    let facts = network_state::NetworkState::read(&mut channel).context("reading links, addresses and routes")?;
    let names: BTreeMap<u32, String> = facts.links.iter().map(|(index, link)| (*index, link.name.clone())).collect();
    let uplinks = devices.map_or_else(BTreeMap::new, |uplinks| {
        let has_now: BTreeSet<u32> = attached.keys().copied().collect();
        let uplinks = desired::uplinks(&facts, uplinks, &[], &has_now);
        names.iter().filter(|(index, _)| uplinks.contains(index)).map(|(index, name)| (*index, name.clone())).collect()
    });
    let mut before = Vec::new();
    for (index, own) in &attached {
        for ((hook, name), program) in tc::PROGRAMS.into_iter().zip(own.programs) {
            // Where the kernel has no TCX, `tc filter show` tells the order.
            let running = bpf::programs_at_device(*index, hook).unwrap_or_default();
            let others = running.into_iter().take_while(|running| Some(*running) != program);
            before.extend(others.filter(|_| program.is_some()).map(|other| (*index, name, other)));
        }
    }
    let programs = Programs::read(&before.iter().map(|(.., program)| *program).collect::<Vec<_>>());
    let entries = TypedMap::<u64, PodModeEntry>::open(directory, "POD_MODES")?.read()?;
    let pods = paths(&entries, |index| names.get(&index).cloned());
    let known = TypedMap::<u32, Device>::open(directory, "DEVICES")?.read()?;
    let has_host_routing = known.iter().any(|(_, device)| device.flags & DeviceFlags::HOST_ROUTING != 0);
    let entered = || known.iter().filter(|(_, device)| DeviceFlags::lead_into_a_pod(device.flags)).count();
    let entered = has_host_routing.then(entered);
    let is_off = devices.is_some_and(UplinkChoice::is_none);
    Ok(Facts { is_off, uplinks, attached, names, before, programs, pods, entered })
}

/// What it means.
pub(super) fn evaluate(facts: &Result<Facts>) -> Vec<Finding> {
    let facts = match facts {
        Ok(facts) => facts,
        Err(error) => {
            let what = format!("the programs at network devices cannot be looked at: {error:#}");
            return vec![Finding::error(CHECK, what, "see what the check pins says")];
        }
    };
    let name = |index: &u32| facts.names.get(index).cloned().unwrap_or_else(|| format!("#{index}"));
    let mut findings = Vec::new();
    for (index, name) in facts.uplinks.iter().filter(|(index, _)| !facts.attached.contains_key(index)) {
        findings.push(Finding::error(
            CHECK,
            format!("{name} (#{index}) has no program: clients outside that come by it are served by nobody"),
            "the agent's log names what the kernel said; where the device shall have none, name the others by --devices",
        ));
    }
    for (index, attached) in &facts.attached {
        for ((_, program), _) in tc::PROGRAMS.iter().zip(attached.programs).filter(|(_, program)| program.is_none()) {
            let what = format!("{} lacks {program}: of what goes by it, one direction is not translated", name(index));
            findings.push(Finding::error(
                CHECK,
                what,
                "the agent mends it within 30 s; if it does not, its log says why",
            ));
        }
    }
    for (index, ours, program) in &facts.before {
        let (device, who) = (name(index), facts.programs.who(*program));
        findings.push(Finding::warning(
            CHECK,
            format!("{who} runs at {device} before {ours}: what it redirects or drops never comes to ours"),
            format!("`bpftool net show dev {device}`; if it balances load too, turn that off where it belongs"),
        ));
    }
    let is_served = |pod: &&PathRow| pod.device_index.is_some_and(|index| facts.attached.contains_key(&index));
    let packet = PodMode::Packet.name();
    for pod in facts.pods.iter().filter(|pod| pod.path == packet && !is_served(pod)) {
        let PathRow { namespace, pod, by, .. } = pod;
        findings.push(Finding::error(
            CHECK,
            format!(
                "pod {namespace}/{pod} has the path packet (by the label of the {by}), and its link has no program"
            ),
            "the agent's log names what the kernel said; without the label its sockets are served",
        ));
    }
    if facts.entered == Some(0) {
        let what = "--host-routing has no effect: no link of a pod is one to which a route leads";
        let cure = "none before the first pod comes; where the CNI has pods behind a bridge, leave the flag out";
        findings.push(Finding::note(CHECK, what, cure));
    }
    if facts.is_off {
        let what = "--devices none: clients outside of the node are not served by Beeline";
        findings.push(Finding::note(
            CHECK,
            what,
            "none if another one serves them; else run the agent without that flag",
        ));
    } else if facts.attached.is_empty() && facts.uplinks.is_empty() {
        let what = "no device has the programs: clients outside of the node are not served";
        let cure = "none where nobody comes from outside; else start the agent, or name the device by --devices";
        findings.push(Finding::note(CHECK, what, cure));
    }
    if findings.is_empty() {
        let devices: Vec<_> =
            facts.attached.iter().map(|(index, has)| format!("{} ({})", name(index), has.method.name())).collect();
        let what = match devices.as_slice() {
            few if few.len() <= 4 => format!("both programs are at {}", few.join(", ")),
            many => format!("both programs are at {}", number(many.len(), "device")),
        };
        findings.push(Finding::ok(CHECK, what));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_told;
    use lb_dataplane::attach::tc::AttachMethod;

    fn facts() -> Facts {
        let attached = Attachment { method: AttachMethod::Tcx, programs: [Some(1), Some(2)] };
        Facts {
            uplinks: [(2, "eth0".to_owned())].into(),
            attached: [(2, attached)].into(),
            names: [(2, "eth0".to_owned())].into(),
            ..Facts::default()
        }
    }

    fn check(facts: Facts, expected: &[&str]) {
        assert_told(&evaluate(&Ok(facts)), expected);
    }

    #[test]
    fn uplinks_have_both_programs_or_somebody_is_not_served() {
        check(facts(), &["ok: both programs are at eth0 (tcx)"]);
        check(Facts { attached: BTreeMap::new(), ..facts() }, &["error: eth0 (#2) has no program"]);
        let half = Attachment { method: AttachMethod::Clsact, programs: [Some(1), None] };
        check(Facts { attached: [(2, half)].into(), ..facts() }, &["error: eth0 lacks tc_egress"]);
        check(Facts::default(), &["note: no device has the programs"]);
        check(Facts { is_off: true, ..Facts::default() }, &["note: --devices none"]);
        let many = (2..8)
            .map(|index| (index, Attachment { method: AttachMethod::Tcx, programs: [Some(1), Some(2)] }))
            .collect();
        check(Facts { attached: many, ..facts() }, &["ok: both programs are at 6 devices"]);
        assert_told(
            &evaluate(&Err(anyhow::anyhow!("EPERM"))),
            &["error: the programs at network devices cannot be looked at"],
        );
    }

    #[test]
    fn host_routing_without_a_pod_that_has_it_is_told() {
        check(Facts { entered: Some(0), ..facts() }, &["note: --host-routing has no effect"]);
        check(Facts { entered: Some(1), ..facts() }, &["ok"]);
    }

    #[test]
    fn who_comes_first_is_named() {
        check(
            Facts { before: vec![(2, "tc_ingress", 9)], ..facts() },
            &["warning: without a name (program 9, held by no process) runs at eth0 before tc_ingress"],
        );
    }

    #[test]
    fn a_pod_whose_choice_comes_to_nothing_is_named() {
        let pod = |path, index| PathRow {
            namespace: "shop".to_owned(),
            pod: "cart".to_owned(),
            path,
            by: "pod",
            device: None,
            device_index: index,
            netns: 7,
            addresses: Vec::new(),
        };
        let with = |pod| Facts { pods: vec![pod], ..facts() };
        check(with(pod("packet", Some(2))), &["ok"]);
        check(with(pod("off", None)), &["ok"]);
        for index in [None, Some(3)] {
            check(with(pod("packet", index)), &["error: pod shop/cart has the path packet"]);
        }
    }
}

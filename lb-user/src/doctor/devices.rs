//! Programs at network devices: at the uplinks, at the links of pods in mode `packet`, and programs of others before
//! them; and that at the look-up of sockets, while links of pods have none.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::{
    maps::MapInfo,
    programs::{ProgramInfo, loaded_programs},
};
use lb_common::{Device, DeviceFlags, PodMode, PodModeEntry};

use super::{Finding, foreign::Programs};
use crate::inspect::pod_modes::{PodModeRow, pod_modes};
use lb_core::text::number;
use lb_dataplane::{
    attach::{
        clsact::Clsact,
        socket_lookup::PROGRAM,
        tc::{self, Attachment},
    },
    devices::{desired, options::UplinkChoice},
};
use lb_kernel::{
    bpf,
    bpf::typed::TypedMap,
    netlink::{NetlinkSocket, network_state},
};

const CHECK: &str = "devices";

/// State of the network devices, by interface index.
#[derive(Default)]
pub(super) struct DeviceFacts {
    /// True if the agent runs with `--devices none`.
    is_off: bool,
    /// Devices that should have the programs, by name; empty without an agent, whose flags select them.
    uplinks: BTreeMap<u32, String>,
    attached: BTreeMap<u32, Attachment>,
    names: BTreeMap<u32, String>,
    /// Programs of others that run before Beeline's: interface index, Beeline's program, description of theirs.
    foreign_first: Vec<(u32, &'static str, String)>,
    /// Pods with a mode other than `socket`.
    pods: Vec<PodModeRow>,
    /// Number of pod links with host routing. `None` without `--host-routing`.
    host_routed_links: Option<usize>,
    /// True if Beeline's program is at the look-up of sockets. `None` if no agent has it there: each link of a pod has
    /// programs.
    finds_sockets: Option<bool>,
}

/// Reads the devices of this thread's network namespace, and the pinned maps.
pub(super) fn read(directory: &Path, root: &Path, devices: Option<&UplinkChoice>) -> Result<DeviceFacts> {
    let attached = tc::attached(directory, root)?;
    let mut channel = NetlinkSocket::open().context("opening a netlink socket")?;
    let facts = network_state::NetworkState::read(&mut channel).context("reading links, addresses and routes")?;
    let names: BTreeMap<u32, String> = facts.links.iter().map(|(index, link)| (*index, link.name.clone())).collect();
    let uplinks = devices.map_or_else(BTreeMap::new, |uplinks| {
        let has_now: BTreeSet<u32> = attached.keys().copied().collect();
        let uplinks = desired::uplinks(&facts, uplinks, &[], &has_now);
        names.iter().filter(|(index, _)| uplinks.contains(index)).map(|(index, name)| (*index, name.clone())).collect()
    });
    let mut ids_first = Vec::new();
    for (index, own) in &attached {
        for ((hook, name), program) in tc::PROGRAMS.into_iter().zip(own.programs) {
            // Without TCX the kernel lists no programs here.
            let running = bpf::programs_at_device(*index, hook).unwrap_or_default();
            let others = running.into_iter().take_while(|running| Some(*running) != program);
            ids_first.extend(others.filter(|_| program.is_some()).map(|other| (*index, name, other)));
        }
    }
    let programs = Programs::read(&ids_first.iter().map(|(.., program)| *program).collect::<Vec<_>>());
    let by_tcx = ids_first.into_iter().map(|(index, ours, program)| (index, ours, programs.describe(program)));
    let filters = Clsact::open(root)?.foreign_before_ours()?.into_iter();
    let name_at = |hook| tc::PROGRAMS.iter().find(|(of, _)| *of == hook).map_or("", |(_, name)| *name);
    let by_clsact = filters.map(|(index, hook, filter)| (index, name_at(hook), filter));
    let foreign_first = by_tcx.chain(by_clsact).collect();
    let entries = TypedMap::<u64, PodModeEntry>::open(directory, "POD_MODES")?.read()?;
    let pods = pod_modes(&entries, |index| names.get(&index).cloned());
    let known = TypedMap::<u32, Device>::open(directory, "DEVICES")?.read()?;
    let has_host_routing = known.iter().any(|(_, device)| device.flags & DeviceFlags::HOST_ROUTING != 0);
    let host_routed_links = || known.iter().filter(|(_, device)| DeviceFlags::lead_into_a_pod(device.flags)).count();
    let host_routed_links = has_host_routing.then(host_routed_links);
    let is_off = devices.is_some_and(UplinkChoice::is_none);
    const WITHOUT: u32 = DeviceFlags::POD | DeviceFlags::NO_PROGRAMS;
    let has_bare_link = known.iter().any(|(_, device)| device.flags & WITHOUT == WITHOUT);
    let finds_sockets = (devices.is_some() && !is_off && has_bare_link).then(|| is_at_socket_lookup(directory));
    Ok(DeviceFacts { is_off, uplinks, attached, names, foreign_first, pods, host_routed_links, finds_sockets })
}

/// True if a program over the pinned maps is at the look-up of sockets in this thread's network namespace.
fn is_at_socket_lookup(directory: &Path) -> bool {
    let netns = File::open("/proc/thread-self/ns/net");
    let running = netns.and_then(bpf::programs_at_socket_lookup).unwrap_or_default();
    let Ok(devices) = MapInfo::from_pin(directory.join("DEVICES")) else { return false };
    let uses = |program: ProgramInfo| program.map_ids().ok().flatten().unwrap_or_default().contains(&devices.id());
    loaded_programs().filter_map(Result::ok).filter(|program| running.contains(&program.id())).any(uses)
}

pub(super) fn evaluate(facts: &Result<DeviceFacts>) -> Vec<Finding> {
    let facts = match facts {
        Ok(facts) => facts,
        Err(error) => {
            let what = format!("the programs at network devices cannot be read: {error:#}");
            return vec![Finding::error(CHECK, what, "see the findings of the check pins")];
        }
    };
    let name = |index: &u32| facts.names.get(index).cloned().unwrap_or_else(|| format!("#{index}"));
    let mut findings = Vec::new();
    for (index, name) in facts.uplinks.iter().filter(|(index, _)| !facts.attached.contains_key(index)) {
        findings.push(Finding::error(
            CHECK,
            format!("{name} (#{index}) has no program: clients outside that use this device are not served"),
            "see the kernel's error in the agent's log; to leave this device out, list the others with --devices",
        ));
    }
    for (index, attached) in &facts.attached {
        for ((_, program), _) in tc::PROGRAMS.iter().zip(attached.programs).filter(|(_, program)| program.is_none()) {
            let what = format!("{} lacks {program}: its packets are translated in one direction only", name(index));
            findings.push(Finding::error(
                CHECK,
                what,
                "the agent attaches it within 30 s; if not, its log has the reason",
            ));
        }
    }
    for (index, ours, program) in &facts.foreign_first {
        let device = name(index);
        findings.push(Finding::warning(
            CHECK,
            format!(
                "{program} runs at {device} before {ours}: packets that it ends, redirects or drops never reach {ours}"
            ),
            format!(
                "`bpftool net show dev {device}` and `tc filter show dev {device} ingress`; if the program balances \
                 load too, disable that in its own configuration; otherwise give its filter a priority above 7"
            ),
        ));
    }
    let is_served = |pod: &&PodModeRow| pod.device_index.is_some_and(|index| facts.attached.contains_key(&index));
    let packet = PodMode::Packet.name();
    for pod in facts.pods.iter().filter(|pod| pod.mode == packet && !is_served(pod)) {
        let PodModeRow { namespace, pod, by, .. } = pod;
        findings.push(Finding::error(
            CHECK,
            format!(
                "pod {namespace}/{pod} has the mode packet (by the label of the {by}), but its link has no program"
            ),
            "see the kernel's error in the agent's log; without the label its sockets are served",
        ));
    }
    if facts.host_routed_links == Some(0) {
        let what = "--host-routing has no effect: no route leads to the link of a pod";
        let cure = "none before the first pod starts; if the CNI connects pods to a bridge, remove the flag";
        findings.push(Finding::note(CHECK, what, cure));
    }
    if facts.finds_sockets == Some(false) {
        let what = format!(
            "{PROGRAM} is not at the look-up of sockets: NodePorts of this node serve a pod without sockets after its \
             first packet to a cluster IP"
        );
        let cure = "none before Linux 5.17; later the agent attaches it within 30 s, or its log has the reason";
        findings.push(Finding::note(CHECK, what, cure));
    }
    if facts.is_off {
        let what = "--devices none: clients outside of the node are not served by Beeline";
        findings.push(Finding::note(
            CHECK,
            what,
            "none if another component serves them; otherwise run the agent without this flag",
        ));
    } else if facts.attached.is_empty() && facts.uplinks.is_empty() {
        let what = "no device has the programs: clients outside of the node are not served";
        let cure = "none if there are no clients outside; otherwise start the agent, or name the device with --devices";
        findings.push(Finding::note(CHECK, what, cure));
    }
    if findings.is_empty() {
        let devices: Vec<_> =
            facts.attached.iter().map(|(index, has)| format!("{} ({})", name(index), has.method.name())).collect();
        let devices = match devices.as_slice() {
            few if few.len() <= 4 => few.join(", "),
            many => number(many.len(), "device"),
        };
        let lookup = facts.finds_sockets.map(|_| format!(", and {PROGRAM} at the look-up of sockets"));
        let lookup = lookup.unwrap_or_default();
        findings.push(Finding::ok(CHECK, format!("both programs are at {devices}{lookup}")));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_findings;
    use lb_dataplane::attach::tc::AttachMethod;

    fn facts() -> DeviceFacts {
        let attached = Attachment { method: AttachMethod::Tcx, programs: [Some(1), Some(2)] };
        DeviceFacts {
            uplinks: [(2, "eth0".to_owned())].into(),
            attached: [(2, attached)].into(),
            names: [(2, "eth0".to_owned())].into(),
            ..DeviceFacts::default()
        }
    }

    fn check(facts: DeviceFacts, expected: &[&str]) {
        assert_findings(&evaluate(&Ok(facts)), expected);
    }

    #[test]
    fn uplinks_have_both_programs_or_clients_are_not_served() {
        check(facts(), &["ok: both programs are at eth0 (tcx)"]);
        check(DeviceFacts { attached: BTreeMap::new(), ..facts() }, &["error: eth0 (#2) has no program"]);
        let half = Attachment { method: AttachMethod::Clsact, programs: [Some(1), None] };
        check(DeviceFacts { attached: [(2, half)].into(), ..facts() }, &["error: eth0 lacks tc_egress"]);
        check(DeviceFacts::default(), &["note: no device has the programs"]);
        check(DeviceFacts { is_off: true, ..DeviceFacts::default() }, &["note: --devices none"]);
        let many = (2..8)
            .map(|index| (index, Attachment { method: AttachMethod::Tcx, programs: [Some(1), Some(2)] }))
            .collect();
        check(DeviceFacts { attached: many, ..facts() }, &["ok: both programs are at 6 devices"]);
        assert_findings(
            &evaluate(&Err(anyhow::anyhow!("EPERM"))),
            &["error: the programs at network devices cannot be read"],
        );
    }

    #[test]
    fn the_program_at_look_ups_of_sockets_is_there_while_links_of_pods_have_none() {
        let at_lookup = "ok: both programs are at eth0 (tcx), and socket_lookup at the look-up of sockets";
        check(DeviceFacts { finds_sockets: Some(true), ..facts() }, &[at_lookup]);
        check(DeviceFacts { finds_sockets: Some(false), ..facts() }, &["note: socket_lookup is not at the look-up"]);
    }

    #[test]
    fn host_routing_without_a_routed_pod_link_is_a_note() {
        check(DeviceFacts { host_routed_links: Some(0), ..facts() }, &["note: --host-routing has no effect"]);
        check(DeviceFacts { host_routed_links: Some(1), ..facts() }, &["ok"]);
    }

    #[test]
    fn a_foreign_program_that_runs_first_is_named() {
        check(
            DeviceFacts { foreign_first: vec![(2, "tc_ingress", Programs::default().describe(9))], ..facts() },
            &["warning: an unnamed program (id 9, held by no process) runs at eth0 before tc_ingress"],
        );
    }

    #[test]
    fn a_packet_mode_pod_without_programs_is_named() {
        let pod = |mode, index| PodModeRow {
            namespace: "shop".to_owned(),
            pod: "cart".to_owned(),
            mode,
            by: "pod",
            device: None,
            device_index: index,
            netns: 7,
            addresses: Vec::new(),
        };
        let with = |pod| DeviceFacts { pods: vec![pod], ..facts() };
        check(with(pod("packet", Some(2))), &["ok"]);
        check(with(pod("off", None)), &["ok"]);
        for index in [None, Some(3)] {
            check(with(pod("packet", index)), &["error: pod shop/cart has the mode packet"]);
        }
    }
}

//! Tables of steps: a simulated node performs each plan, and a plan after a performed plan changes nothing.

use super::*;
use crate::attach::tc::Attachment;
use crate::devices::{
    desired::desired,
    fixture::network,
    options::{DeviceOptions, UplinkChoice},
};
use lb_common::PodMode;
use lb_kernel::netlink::network_state::NetworkState;

/// Steps for a new link `eth0` while netfilter translates.
const SETTLING: [&str; 7] = [
    "put 2 settling",
    "reserve for netfilter",
    "attach eth0",
    "leave to netfilter",
    "put 2",
    "tell pod modes",
    "forget deleted",
];

const ETH0: &str = "2 eth0 up\naddr 2 192.0.2.5/24\nroute 2 default\n";
const WG0: &str = "3 wg0 up layer 65534\nroute 3 10.9.0.0/16\n";
const POD: &str = "4 cali4 up kind veth peer 0\n";
const IDLE: [&str; 2] = ["tell pod modes", "forget deleted"];

/// A node of which every step succeeds.
struct Node {
    options: DeviceOptions,
    network: NetworkState,
    attached: BTreeMap<u32, Attachment>,
    complete: BTreeSet<u32>,
    written: BTreeMap<u32, Device>,
    modes: Option<BTreeMap<u32, PodMode>>,
    packet_links: BTreeSet<u32>,
    made: BTreeSet<u32>,
    netfilter_translates: bool,
}

impl Node {
    fn new(links: &str) -> Self {
        Self {
            options: DeviceOptions::default(),
            network: network(links),
            attached: BTreeMap::new(),
            complete: BTreeSet::new(),
            written: BTreeMap::new(),
            modes: Some(BTreeMap::new()),
            packet_links: BTreeSet::new(),
            made: BTreeSet::new(),
            netfilter_translates: false,
        }
    }

    /// Compares the planned steps, performs them, and expects that the next pass has nothing to change.
    #[track_caller]
    fn passes(&mut self, expected: &[&str]) {
        assert_eq!(self.pass(), expected);
        let idle = if self.modes.is_some() { &IDLE[..] } else { &IDLE[1..] };
        assert_eq!(self.pass(), idle, "after {expected:?}");
    }

    fn pass(&mut self) -> Vec<String> {
        let facts = DeviceFacts {
            network: &self.network,
            node: &[],
            attached: self.attached.clone(),
            complete: self.complete.clone(),
            written: self.written.clone(),
            pod_modes: self.modes.clone(),
            packet_links: &self.packet_links,
            netfilter_translates: self.netfilter_translates,
            made: self.made.clone(),
            slow_path: 0,
        };
        let desired = desired(&self.options, &facts);
        let DevicePlan { serving, steps } = plan(&facts, &desired);
        assert!(serving.is_subset(&self.complete));
        let lines = steps.iter().map(line).collect();
        steps.into_iter().for_each(|step| self.perform(step));
        let wanted: BTreeMap<u32, Device> = desired.iter().map(|(index, desired)| (*index, desired.device)).collect();
        assert_eq!(self.written, wanted);
        lines
    }

    fn perform(&mut self, step: Step) {
        match step {
            Step::PutDevices(entries) => {
                let complete = &self.complete;
                let entry = |(index, device)| (index, enterable_if(complete.contains(&index), device));
                self.written.extend(entries.into_iter().map(entry));
            }
            Step::Attach { index, .. } => {
                assert!(self.written.contains_key(&index), "a running program finds its device");
                self.attached.insert(index, Attachment { method: AttachMethod::Tcx, programs: [Some(1), Some(2)] });
                self.complete.insert(index);
            }
            Step::Detach { index, .. } | Step::ReportDeleted(index) => {
                self.attached.remove(&index);
                self.complete.remove(&index);
            }
            Step::RemoveDevices(indexes) => self.written.retain(|index, _| !indexes.contains(index)),
            Step::ReserveForNetfilter | Step::LeaveToNetfilter | Step::TellPodModes | Step::ForgetDeleted => {}
        }
    }
}

fn line(step: &Step) -> String {
    const FLAGS: [(u32, &str); 6] = [
        (DeviceFlags::SETTLING, " settling"),
        (DeviceFlags::POD, " pod"),
        (DeviceFlags::CHOSEN, " chosen"),
        (DeviceFlags::OFF, " off"),
        (DeviceFlags::HOST_ROUTING, " host-routing"),
        (DeviceFlags::NO_ETHERNET, " no-ethernet"),
    ];
    let entry = |(index, device): (&u32, &Device)| {
        let flags = FLAGS.iter().filter(|(flag, _)| device.flags & flag != 0).map(|(_, name)| *name);
        format!("{index}{}", flags.collect::<String>())
    };
    match step {
        Step::PutDevices(entries) => format!("put {}", entries.iter().map(entry).collect::<Vec<_>>().join(", ")),
        Step::Attach { name, .. } => format!("attach {name}"),
        Step::ReserveForNetfilter => "reserve for netfilter".to_owned(),
        Step::LeaveToNetfilter => "leave to netfilter".to_owned(),
        Step::TellPodModes => "tell pod modes".to_owned(),
        Step::Detach { name, method, .. } => format!("detach {name} ({})", method.name()),
        Step::ReportDeleted(index) => format!("deleted #{index}"),
        Step::ForgetDeleted => "forget deleted".to_owned(),
        Step::RemoveDevices(indexes) => format!("remove {indexes:?}"),
    }
}

#[test]
fn a_first_start_writes_the_device_before_it_attaches() {
    let mut node = Node::new(ETH0);
    node.modes = None;
    node.passes(&["put 2", "attach eth0", "leave to netfilter", "forget deleted"]);
    // The pods are known now.
    node.modes = Some(BTreeMap::new());
    node.passes(&IDLE);
}

#[test]
fn a_new_link_settles_while_netfilter_translates() {
    let mut node = Node::new(ETH0);
    node.netfilter_translates = true;
    node.passes(&SETTLING);
    node.network = network(&format!("{ETH0}{WG0}"));
    node.passes(&[
        "put 3 settling no-ethernet",
        "reserve for netfilter",
        "attach wg0",
        "leave to netfilter",
        "put 3 no-ethernet",
        "tell pod modes",
        "forget deleted",
    ]);
}

/// Listing the connections of netfilter takes long, and the link of a new pod has none.
#[test]
fn a_link_that_was_just_made_is_not_settled() {
    let mut node = Node::new(ETH0);
    node.pass();
    node.netfilter_translates = true;
    node.network = network(&format!("{ETH0}{WG0}"));
    node.made.insert(3);
    node.passes(&["put 3 no-ethernet", "attach wg0", "tell pod modes", "forget deleted"]);
}

#[test]
fn a_deleted_link_is_reported_and_forgotten() {
    let mut node = Node::new(&format!("{ETH0}{WG0}"));
    node.pass();
    node.network = network(ETH0);
    node.passes(&["tell pod modes", "deleted #3", "forget deleted", "remove [3]"]);
}

#[test]
fn a_link_that_is_no_uplink_any_more_is_detached_before_its_entry_goes() {
    let mut node = Node::new(&format!("{ETH0}{WG0}"));
    node.pass();
    node.network = network(&format!("{ETH0}3 wg0 up layer 65534 port-of 5\n5 br0 kind bridge"));
    node.passes(&["tell pod modes", "detach wg0 (tcx)", "forget deleted", "remove [3]"]);
    node.options.uplinks = UplinkChoice::Named("".parse().expect("no patterns"));
    node.passes(&["tell pod modes", "detach eth0 (tcx)", "forget deleted", "remove [2]"]);
}

#[test]
fn a_lost_program_is_attached_again_and_the_device_does_not_settle() {
    let mut node = Node::new(ETH0);
    node.pass();
    node.netfilter_translates = true;
    node.complete.clear();
    node.passes(&["attach eth0", "tell pod modes", "forget deleted"]);
    // Without any program the link is new.
    (node.complete, node.attached) = (BTreeSet::new(), BTreeMap::new());
    node.passes(&SETTLING);
}

#[test]
fn a_pod_that_sends_packets_to_frontends_gets_programs_and_keeps_them() {
    let mut node = Node::new(&format!("{ETH0}{POD}"));
    node.pass();
    node.packet_links.insert(4);
    node.passes(&["put 4 pod chosen", "attach cali4", "leave to netfilter", "tell pod modes", "forget deleted"]);
    node.packet_links.clear();
    node.passes(&IDLE);
}

#[test]
fn host_routing_waits_for_the_programs() {
    let mut node = Node::new(&format!("{ETH0}{POD}"));
    node.options.host_routing = true;
    node.passes(&[
        "put 2, 4 pod chosen",
        "attach eth0",
        "attach cali4",
        "leave to netfilter",
        "put 2 host-routing, 4 pod chosen host-routing",
        "tell pod modes",
        "forget deleted",
    ]);
    node.complete.remove(&4);
    node.passes(&[
        "put 4 pod chosen",
        "attach cali4",
        "put 4 pod chosen host-routing",
        "tell pod modes",
        "forget deleted",
    ]);
}

#[test]
fn host_routing_stays_off_where_a_program_cannot_be_attached() {
    let device = Device { flags: DeviceFlags::HOST_ROUTING | DeviceFlags::POD, ..Device::default() };
    assert_eq!(enterable_if(false, device).flags, DeviceFlags::POD);
    assert_eq!(enterable_if(true, device), device);
}

#[test]
fn a_pods_link_has_programs_before_the_mode_says_so_and_keeps_them() {
    let mut node = Node::new(&format!("{ETH0}{POD}"));
    node.pass();
    let mut choose = |mode, steps: &[&str]| {
        node.modes = Some(BTreeMap::from([(4, mode)]));
        node.passes(steps);
    };
    choose(
        PodMode::Packet,
        &["put 4 pod chosen", "attach cali4", "leave to netfilter", "tell pod modes", "forget deleted"],
    );
    choose(PodMode::Off, &["put 4 pod chosen off", "tell pod modes", "forget deleted"]);
    choose(PodMode::Socket, &["put 4 pod chosen", "tell pod modes", "forget deleted"]);
    choose(PodMode::Socket, &IDLE);
}

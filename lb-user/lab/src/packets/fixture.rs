//! A fixture: the tc programs on a node of one thread, run on single packets.

use std::net::SocketAddr;

use aya::programs::{TcAttachType, TestRunOptions, tc};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lb_common::{
    Announced, ClusterRange, ClusterRanges, ConflictEntry, ConflictKey, Counter, Device, DeviceFlags, Flow, FlowKey,
    Hook, Hop, LinkAddr, NodeAddr, NodeAddrFlags,
};

use super::{
    flows, node,
    object::{FixtureSizes, Loaded, TcPrograms},
    packet::RawFrame,
    services::{FixtureService, ProgrammedService, addr},
};

/// TC_ACT_UNSPEC: the next program decides, or the kernel.
const PASS: u32 = u32::MAX;
const DROP: u32 = 2;
const REDIRECT: u32 = 7;

/// Link address of all devices of the node.
const NODE: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Words of `struct __sk_buff`.
const IFINDEX: usize = 10;
/// Words of the context (`__sk_buff`).
const WORDS: usize = 48;
type Context = [u32; WORDS];
/// Word of the context with the index of the device by which the packet came in (`ingress_ifindex`).
const INGRESS_IFINDEX: usize = 9;
const MARK: usize = 2;
const GSO_SEGS: usize = 41;
const GSO_SIZE: usize = 44;

/// The programs over maps of their own, on the node of this thread.
pub struct Fixture {
    loaded: Loaded,
    devices: Vec<(&'static str, u32, Device)>,
    services: u32,
}

impl Fixture {
    /// Moves this thread to a new node. `elf` is the eBPF object, aligned to 8 octets. Threads share the programs: a
    /// second fixture, of this thread too, waits until this value is dropped.
    pub fn enter(elf: &[u8]) -> Self {
        Self::enter_with(elf, FixtureSizes::default())
    }

    /// As [`Fixture::enter`], with smaller maps or fewer ports.
    pub fn enter_with(elf: &[u8], sizes: FixtureSizes) -> Self {
        node::enter();
        let mut loaded = Loaded::take(elf, sizes);
        let devices = node::devices();
        for (_, index, device) in &devices {
            loaded.map::<u32, Device>("DEVICES").insert(index, device, 0).expect("room");
        }
        for own in node::OWN {
            loaded.map("NODE_ADDRS").insert(addr(own), NodeAddr::default(), 0).expect("room");
        }
        Self { loaded, devices, services: 0 }
    }

    /// Returns the programs with their maps.
    pub fn maps(&mut self) -> &mut TcPrograms {
        &mut self.loaded
    }

    /// Makes NodePorts answer at this loopback address for processes of the host, as the agent does.
    pub fn own_loopback(&mut self, own: &str) {
        let value = NodeAddr { flags: NodeAddrFlags::HOST_ONLY };
        self.loaded.map("NODE_ADDRS").insert(addr(own), value, 0).expect("room");
    }

    /// Makes hostPorts answer at this address, and NodePorts not.
    pub fn own_without_node_ports(&mut self, own: &str) {
        let value = NodeAddr { flags: NodeAddrFlags::NO_NODE_PORTS };
        self.loaded.map("NODE_ADDRS").insert(addr(own), value, 0).expect("room");
    }

    /// Sets the ranges of cluster IPs: the first address, and the length of the prefix.
    pub fn set_cluster_ranges(&mut self, ranges: &[(&str, u32)]) {
        let mut value = ClusterRanges::default();
        for (to, (first, bits)) in value.ranges.iter_mut().zip(ranges) {
            let first = addr(first);
            let bits = bits + if first.is_v4() { 96 } else { 0 };
            *to = ClusterRange {
                addr: first,
                mask: lb_common::Addr { octets: (u128::MAX << (128 - bits)).to_be_bytes() },
            };
            value.len += 1;
        }
        self.loaded.set_cluster_ranges(value);
    }

    /// Writes a service port into the maps, under a new id.
    pub fn serve(&mut self, port: FixtureService) -> ProgrammedService {
        self.services += 1;
        ProgrammedService::new(&mut self.loaded, port, self.services)
    }

    /// Sets the flags of a device in `DEVICES`.
    pub fn set_flags(&mut self, device: &str, flags: u32) {
        let known = self.devices.iter().find(|(name, ..)| *name == device).expect("one of the node's");
        let (_, index, device) = *known;
        self.loaded.map::<u32, Device>("DEVICES").insert(index, Device { flags, ..device }, 0).expect("room");
    }

    /// Announces addresses until a time (CLOCK_BOOTTIME, ns).
    pub fn announce(&mut self, addresses: &[&str], until: u64) {
        for address in addresses {
            self.loaded.map("ANNOUNCED").insert(addr(address), Announced { since: 1 }, 0).expect("room");
        }
        self.loaded.set_announced_until(until);
    }

    /// Has a device answer for announced addresses with this link address.
    pub fn answer_at(&mut self, device: &str, link: [u8; 6]) {
        let index = self.index(device);
        if !self.devices.iter().any(|(name, ..)| *name == device) {
            // Made by the test.
            self.loaded.map("DEVICES").insert(index, Device::default(), 0).expect("room");
        }
        self.loaded.map("LINK_ADDRS").insert(index, LinkAddr::new(link), 0).expect("room");
    }

    /// Returns the claims of announced addresses by others: address, the last octet of the other link address, the
    /// device's index, and their number.
    pub fn conflicts(&mut self) -> Vec<(String, u8, u32, u64)> {
        let entries = self.loaded.entries::<ConflictKey, ConflictEntry>("CONFLICTS").into_iter();
        let conflict = |(key, entry): (ConflictKey, ConflictEntry)| {
            (key.addr.to_ip().to_string(), key.link.octets[5], entry.ifindex, entry.count)
        };
        let mut conflicts: Vec<_> = entries.map(conflict).collect();
        conflicts.sort();
        conflicts
    }

    /// Attaches the programs to another device, for packets that arrive there.
    pub fn attach_to(&mut self, device: &str) {
        // Before Linux 6.6 programs need the queueing discipline clsact; TCX needs none.
        let _there = tc::qdisc_add_clsact(device);
        self.loaded.attach("tc_ingress", device, TcAttachType::Ingress);
        self.loaded.attach("tc_egress", device, TcAttachType::Egress);
    }

    /// Attaches the programs to all devices, for packets that arrive there.
    pub fn attach(&mut self) {
        let has_programs = |(_, _, device): &&(_, _, Device)| device.flags & DeviceFlags::NO_PROGRAMS == 0;
        for (device, ..) in self.devices.clone().iter().filter(has_programs) {
            self.attach_to(device);
        }
    }

    /// Runs the ingress program of a device on a packet.
    pub fn ingress(&self, device: &str, packet: &impl RawFrame) -> PacketOutcome {
        self.run("tc_ingress", device, packet, 0)
    }

    /// Runs the egress program of a device on a packet.
    pub fn egress(&self, device: &str, packet: &impl RawFrame) -> PacketOutcome {
        self.run("tc_egress", device, packet, 0)
    }

    /// Runs the egress program of a device on a packet that entered the node by the device `by`.
    pub fn forwarded(&self, by: &str, device: &str, packet: &impl RawFrame) -> PacketOutcome {
        let mut context = self.context(device);
        set(&mut context, INGRESS_IFINDEX, self.index(by));
        self.run_with(context, "tc_egress", packet, 1).0
    }

    /// As [`Fixture::ingress`], for a GSO packet with segments of `segment` octets.
    pub fn ingress_large(&self, device: &str, packet: &impl RawFrame, segment: u32) -> PacketOutcome {
        self.run("tc_ingress", device, packet, segment)
    }

    fn run(&self, program: &str, device: &str, packet: &impl RawFrame, segment: u32) -> PacketOutcome {
        self.run_often(program, device, packet, segment, 1).0
    }

    /// Runs a program on a packet `times` times, each run on the result of the run before. Returns the last outcome,
    /// and the mean time of a run in ns.
    pub(crate) fn run_often(
        &self,
        program: &str,
        device: &str,
        packet: &impl RawFrame,
        segment: u32,
        times: u32,
    ) -> (PacketOutcome, u32) {
        let mut context = self.context(device);
        set(&mut context, GSO_SIZE, segment);
        set(&mut context, GSO_SEGS, u32::from(segment != 0) * 2);
        self.run_with(context, program, packet, times)
    }

    /// Returns the index of a device.
    pub fn index(&self, device: &str) -> u32 {
        let known = self.devices.iter().find(|(name, ..)| *name == device);
        known.map_or_else(|| node::index(device), |(_, index, _)| *index)
    }

    /// The context of a packet at a device.
    fn context(&self, device: &str) -> Context {
        let mut context = [0; WORDS];
        set(&mut context, IFINDEX, self.index(device));
        context
    }

    fn run_with(&self, context: Context, program: &str, packet: &impl RawFrame, times: u32) -> (PacketOutcome, u32) {
        let context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let before = packet.octets();
        let mut after = vec![0; before.len() + 256];
        let mut context_after = vec![0; context.len()];
        let result = self.loaded.run(
            program,
            TestRunOptions {
                data_in: Some(&before),
                data_out: Some(&mut after),
                ctx_in: Some(&context),
                ctx_out: Some(&mut context_after),
                repeat: times,
                ..TestRunOptions::default()
            },
        );
        let result = result.expect("BPF_PROG_TEST_RUN");
        after.truncate(result.data_size_out as usize);
        let time = u32::try_from(result.duration.as_nanos()).expect("short");
        let mark = context_after.chunks(4).nth(MARK).and_then(|word| word.try_into().ok());
        let mark = u32::from_ne_bytes(mark.expect("a word"));
        (PacketOutcome { verdict: result.return_value, before, after, mark }, time)
    }

    /// Returns the links in `PACKET_LINKS`.
    pub fn packet_links(&mut self) -> Vec<u32> {
        self.loaded.entries::<u32, u64>("PACKET_LINKS").into_iter().map(|(index, _)| index).collect()
    }

    /// Writes the value of the links in `PACKET_LINKS`.
    pub fn set_packet_links(&mut self, value: u64) {
        for index in self.packet_links() {
            self.loaded.map("PACKET_LINKS").insert(index, value, 0).expect("room");
        }
    }

    /// Removes all links from `PACKET_LINKS`.
    pub fn forget_packet_links(&mut self) {
        for index in self.packet_links() {
            self.loaded.map::<u32, u64>("PACKET_LINKS").remove(&index).expect("an entry");
        }
    }

    /// Returns the entries of `FLOWS`, one line each.
    pub fn flows(&mut self) -> Vec<String> {
        flows::text(&self.loaded.entries::<FlowKey, Flow>("FLOWS"))
    }

    /// Returns the entry for packets from one end to another.
    pub fn flow(&mut self, hook: Hook, from: &str, to: &str) -> Option<Flow> {
        let end = |text: &str| text.parse::<SocketAddr>().expect("an address and port");
        let (from, to) = (end(from), end(to));
        let entries = self.loaded.entries::<FlowKey, Flow>("FLOWS");
        let is_it = |key: &FlowKey| {
            key.hook == hook as u8
                && (key.tuple.src.to_ip(), key.tuple.src_port) == (from.ip(), from.port())
                && (key.tuple.dst.to_ip(), key.tuple.dst_port) == (to.ip(), to.port())
        };
        entries.into_iter().find(|(key, _)| is_it(key)).map(|(_, flow)| flow)
    }

    /// Makes the cached next hops of all flows valid for ever.
    pub fn keep_hops(&mut self) {
        self.set_hops(|hop| Hop { until: u64::MAX, ..hop });
    }

    /// Makes the cached next hops of all flows expire, so that routes are looked up again.
    pub fn forget_hops(&mut self) {
        self.set_hops(|_| Hop::UNKNOWN);
    }

    fn set_hops(&mut self, of: fn(Hop) -> Hop) {
        let entries = self.loaded.entries::<FlowKey, Flow>("FLOWS");
        let mut flows = self.loaded.map::<FlowKey, Flow>("FLOWS");
        for (key, flow) in entries.into_iter().filter(|(_, flow)| flow.hop.is_known()) {
            flows.insert(key, Flow { hop: of(flow.hop), ..flow }, 0).expect("room");
        }
    }

    /// Returns the value of a counter.
    pub fn count(&mut self, counter: Counter) -> u64 {
        self.loaded.count(counter)
    }
}

/// The outcome of a run: the verdict, and the packet before and after.
#[derive(Debug)]
pub struct PacketOutcome {
    verdict: u32,
    before: Vec<u8>,
    after: Vec<u8>,
    /// The mark after the run.
    pub mark: u32,
}

impl PacketOutcome {
    /// Asserts that the packet is dropped.
    #[track_caller]
    pub fn is_dropped(&self) {
        assert_eq!(self.verdict, DROP, "{self:?}");
    }

    /// True if the packet passes on to the kernel.
    pub fn passes(&self) -> bool {
        self.verdict == PASS
    }

    /// True if the program redirects the packet, to the next hop or back to the sender.
    pub fn is_redirected(&self) -> bool {
        self.verdict == REDIRECT
    }

    /// Asserts that the packet passes on to the kernel without a change.
    #[track_caller]
    pub fn passes_unchanged(&self) {
        assert_eq!((self.verdict, describe(&self.after)), (PASS, describe(&self.before)));
        assert_eq!(self.after, self.before);
    }

    /// Asserts that the packet passes on to the kernel as `packet`, octet by octet.
    #[track_caller]
    pub fn passes_as(&self, packet: &impl RawFrame) {
        self.is(PASS, packet);
    }

    /// Asserts that the program redirects the packet as `packet`. The kernel may have written the link addresses
    /// already.
    #[track_caller]
    pub fn is_redirected_as(&self, packet: &impl RawFrame) {
        let want = packet.octets();
        let (link, node) = (..12, 6..12);
        let is_left = want.get(link) == self.before.get(link);
        if is_left && self.after.get(node) == Some(&NODE) && self.after.len() == want.len() {
            let after = [&self.before[link], &self.after[12..]].concat();
            Self { before: self.before.clone(), after, ..*self }.is(REDIRECT, packet);
        } else {
            self.is(REDIRECT, packet);
        }
    }

    /// Asserts that the program redirects the packet to a neighbour whose link address the kernel looks up.
    #[track_caller]
    pub fn is_redirected_to_neighbour_as(&self, packet: &impl RawFrame) {
        self.is(REDIRECT, packet);
    }

    #[track_caller]
    fn is(&self, verdict: u32, packet: &impl RawFrame) {
        let want = packet.octets();
        assert_eq!(
            (self.verdict, describe(&self.after)),
            (verdict, describe(&want)),
            "from {}",
            describe(&self.before)
        );
        assert_eq!(self.after, want);
    }

    /// Returns source and destination after the run, as `ADDRESS:PORT`.
    pub fn ends(&self) -> (String, String) {
        let packet = SlicedPacket::from_ethernet(&self.after).expect("a good packet");
        let (from, to) = match &packet.net {
            Some(NetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            Some(NetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            other => panic!("{other:?}"),
        };
        let port = |at: usize| {
            let l4 = packet.ip_payload().expect("of IP").payload;
            u16::from_be_bytes([l4[at], l4[at + 1]])
        };
        let (from_port, to_port) = match &packet.transport {
            Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
            Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
            _ => (port(0), port(2)),
        };
        (SocketAddr::new(from, from_port).to_string(), SocketAddr::new(to, to_port).to_string())
    }
}

/// Describes a frame for a message.
pub fn describe(octets: &[u8]) -> String {
    match SlicedPacket::from_ethernet(octets) {
        Ok(packet) => format!("{:?} {:?}", packet.net, packet.transport),
        Err(error) => format!("{error}: {octets:?}"),
    }
}

fn set(context: &mut Context, word: usize, value: u32) {
    *context.get_mut(word).expect("one of the context's") = value;
}

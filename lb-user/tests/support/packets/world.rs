//! The world of a test: the programs, a node, and what they do with a packet.

use std::net::SocketAddr;

use aya::programs::{TcAttachType, TestRunOptions, tc};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lb_common::{Counter, Device, Flow, FlowKey, Hook, Hop, NodeAddr, NodeAddrFlags};

use super::{
    flows,
    object::{Held, Object, Sizes},
    packet::Wire,
    services::{Served, Wanted, addr},
    site,
};

/// `TC_ACT_UNSPEC`: the next program decides, or the kernel.
const PASS: u32 = u32::MAX;
const DROP: u32 = 2;
const REDIRECT: u32 = 7;

/// The link address of all devices of the node.
const NODE: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Words of a `struct __sk_buff` that the caller may set.
const IFINDEX: usize = 10;
const GSO_SEGS: usize = 41;
const GSO_SIZE: usize = 44;

/// The programs over maps of their own, on a node of this thread.
pub struct World {
    held: Held,
    devices: Vec<(&'static str, u32, Device)>,
    services: u32,
}

impl World {
    /// Moves this thread to a new node. Others wait for the programs until this is dropped, and so would this thread for a
    /// second world.
    pub fn enter() -> Self {
        Self::enter_with(Sizes::default())
    }

    /// The same with smaller maps, or fewer ports.
    pub fn enter_with(sizes: Sizes) -> Self {
        site::enter();
        let mut held = Held::take(sizes);
        let devices = site::devices();
        for (_, index, device) in &devices {
            held.map::<u32, Device>("DEVICES").insert(index, device, 0).expect("room");
        }
        for own in site::OWN {
            held.map("NODE_ADDRS").insert(addr(own), NodeAddr::default(), 0).expect("room");
        }
        Self { held, devices, services: 0 }
    }

    /// The maps.
    pub fn maps(&mut self) -> &mut Object {
        &mut self.held
    }

    /// NodePorts answer at this loopback address for processes of the host, as the agent writes it.
    pub fn own_loopback(&mut self, own: &str) {
        let value = NodeAddr { flags: NodeAddrFlags::HOST_ONLY };
        self.held.map("NODE_ADDRS").insert(addr(own), value, 0).expect("room");
    }

    /// Serves a service port.
    pub fn serve(&mut self, wanted: Wanted) -> Served {
        self.services += 1;
        Served::begin(&mut self.held, wanted, self.services)
    }

    /// Sets what `DEVICES` says of a device.
    pub fn set_flags(&mut self, device: &str, flags: u32) {
        let known = self.devices.iter().find(|(name, ..)| *name == device).expect("one of the site's");
        let (_, index, device) = *known;
        self.held.map::<u32, Device>("DEVICES").insert(index, Device { flags, ..device }, 0).expect("room");
    }

    /// Attaches the programs to all devices, so that packets come by them on their own.
    pub fn attach(&mut self) {
        for (device, ..) in self.devices.clone() {
            // Before 6.6 programs stand in a queueing discipline; where there are links none is needed.
            let _there = tc::qdisc_add_clsact(device);
            self.held.attach("tc_ingress", device, TcAttachType::Ingress);
            self.held.attach("tc_egress", device, TcAttachType::Egress);
        }
    }

    /// A packet comes in at a device.
    pub fn comes_in(&self, device: &str, packet: &impl Wire) -> Ran {
        self.run("tc_ingress", device, packet, 0)
    }

    /// A packet goes out at a device.
    pub fn goes_out(&self, device: &str, packet: &impl Wire) -> Ran {
        self.run("tc_egress", device, packet, 0)
    }

    /// As [`World::comes_in`], for one that devices will cut into segments of so many octets.
    pub fn comes_in_large(&self, device: &str, packet: &impl Wire, segment: u32) -> Ran {
        self.run("tc_ingress", device, packet, segment)
    }

    fn run(&self, program: &str, device: &str, packet: &impl Wire, segment: u32) -> Ran {
        self.run_often(program, device, packet, segment, 1).0
    }

    /// Runs a program on a packet so often, each time on what the one before left of it; and the mean of the times, in ns.
    pub fn run_often(&self, program: &str, device: &str, packet: &impl Wire, segment: u32, times: u32) -> (Ran, u32) {
        let mut context = [0_u32; 48];
        context[IFINDEX] = self
            .devices
            .iter()
            .find(|(name, ..)| *name == device)
            .map_or_else(|| site::index(device), |(_, index, _)| *index);
        (context[GSO_SIZE], context[GSO_SEGS]) = (segment, u32::from(segment != 0) * 2);
        let context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let before = packet.octets();
        let mut after = vec![0; before.len() + 256];
        let result = self.held.run(
            program,
            TestRunOptions {
                data_in: Some(&before),
                data_out: Some(&mut after),
                ctx_in: Some(&context),
                repeat: times,
                ..TestRunOptions::default()
            },
        );
        let result = result.expect("BPF_PROG_TEST_RUN");
        after.truncate(result.data_size_out as usize);
        let time = u32::try_from(result.duration.as_nanos()).expect("short");
        (Ran { verdict: result.return_value, before, after }, time)
    }

    /// What stands in `FLOWS`, one line for each entry.
    pub fn flows(&mut self) -> Vec<String> {
        flows::text(&self.held.entries::<FlowKey, Flow>("FLOWS"))
    }

    /// The entry of a packet from one end to another.
    pub fn flow(&mut self, hook: Hook, from: &str, to: &str) -> Option<Flow> {
        let end = |text: &str| text.parse::<SocketAddr>().expect("an address and port");
        let (from, to) = (end(from), end(to));
        let entries = self.held.entries::<FlowKey, Flow>("FLOWS");
        let is_it = |key: &FlowKey| {
            key.hook == hook as u8
                && (key.tuple.src.to_ip(), key.tuple.src_port) == (from.ip(), from.port())
                && (key.tuple.dst.to_ip(), key.tuple.dst_port) == (to.ip(), to.port())
        };
        entries.into_iter().find(|(key, _)| is_it(key)).map(|(_, flow)| flow)
    }

    /// What is known of the ways of all flows holds for ever.
    pub fn hold_ways(&mut self) {
        self.set_ways(|hop| Hop { until: u64::MAX, ..hop });
    }

    /// The routes are asked again for each flow.
    pub fn forget_ways(&mut self) {
        self.set_ways(|_| Hop::UNKNOWN);
    }

    fn set_ways(&mut self, of: fn(Hop) -> Hop) {
        let entries = self.held.entries::<FlowKey, Flow>("FLOWS");
        let mut flows = self.held.map::<FlowKey, Flow>("FLOWS");
        for (key, flow) in entries.into_iter().filter(|(_, flow)| flow.hop.is_known()) {
            flows.insert(key, Flow { hop: of(flow.hop), ..flow }, 0).expect("there is room");
        }
    }

    /// How often something happened.
    pub fn count(&mut self, counter: Counter) -> u64 {
        self.held.count(counter)
    }
}

/// What became of a packet.
#[derive(Debug)]
pub struct Ran {
    verdict: u32,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Ran {
    /// It is dropped.
    #[track_caller]
    pub fn is_dropped(&self) {
        assert_eq!(self.verdict, DROP, "{self:?}");
    }

    /// Whether it goes on through the kernel.
    pub fn goes_on(&self) -> bool {
        self.verdict == PASS
    }

    /// Whether it is sent on, or back, at once.
    pub fn is_sent(&self) -> bool {
        self.verdict == REDIRECT
    }

    /// It goes on, and no octet of it is another.
    #[track_caller]
    pub fn is_untouched(&self) {
        assert_eq!((self.verdict, shown(&self.after)), (PASS, shown(&self.before)));
        assert_eq!(self.after, self.before);
    }

    /// It goes on through the kernel as another packet, of which every octet is as etherparse makes it.
    #[track_caller]
    pub fn goes_on_as(&self, packet: &impl Wire) {
        self.is(PASS, packet);
    }

    /// It is sent on, or back, at once. Link addresses that the kernel writes may be written already.
    #[track_caller]
    pub fn is_sent_as(&self, packet: &impl Wire) {
        let want = packet.octets();
        let (link, node) = (..12, 6..12);
        let is_left = want.get(link) == self.before.get(link);
        if is_left && self.after.get(node) == Some(&NODE) && self.after.len() == want.len() {
            let after = [&self.before[link], &self.after[12..]].concat();
            Self { verdict: self.verdict, before: self.before.clone(), after }.is(REDIRECT, packet);
        } else {
            self.is(REDIRECT, packet);
        }
    }

    /// It is sent on at once, to a neighbour whose link address the kernel writes.
    #[track_caller]
    pub fn is_asked_about_as(&self, packet: &impl Wire) {
        self.is(REDIRECT, packet);
    }

    #[track_caller]
    fn is(&self, verdict: u32, packet: &impl Wire) {
        let want = packet.octets();
        assert_eq!((self.verdict, shown(&self.after)), (verdict, shown(&want)), "from {}", shown(&self.before));
        assert_eq!(self.after, want);
    }

    /// Where it comes from and goes to now.
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

/// What a packet looks like, for people.
pub fn shown(octets: &[u8]) -> String {
    match SlicedPacket::from_ethernet(octets) {
        Ok(packet) => format!("{:?} {:?}", packet.net, packet.transport),
        Err(error) => format!("{error}: {octets:?}"),
    }
}

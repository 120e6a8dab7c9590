//! The cost of a packet, by program and verdict: the median of means over many runs on one packet, each run on the
//! result of the run before.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    thread,
    time::Duration,
};

use lb_common::{
    Addr, Backend, BackendFlags, DeviceFlags, Flow, FlowFlags, FlowKey, Hook, Hop, LinkAddr, Proto, Tuple,
    packet::{arp_probe, neighbour_probe},
};

use super::{
    fixture::{Fixture, PacketOutcome},
    packet::{IcmpErrorSpec, IcmpReason, PacketSpec, RawFrame},
    services::FixtureService,
};

/// A row of the table.
#[derive(Clone, Debug)]
pub struct ProgramCost {
    /// The program.
    pub program: &'static str,
    /// The case.
    pub what: &'static str,
    /// The verdict.
    pub verdict: &'static str,
    /// Time of a run, in ns.
    pub ns: u32,
}

/// A constructor of packets from one end to another.
type Make = fn(&str, &str) -> PacketSpec;
/// A check of an outcome.
type Is = fn(&PacketOutcome) -> bool;

const IN: &str = "tc_ingress";
const OUT: &str = "tc_egress";

const CLIENT: &str = "198.51.100.9:40000";
const NODE_PORT: &str = "192.0.2.1:30080";
const NODE: &str = "192.0.2.1:1024";
const HERE: &str = "10.0.1.1:8080";
const BESIDE: &str = "10.0.1.2:8080";
const THERE: &str = "10.0.2.1:8080";
const CLIENT6: &str = "[2001:db8:9::9]:40000";
const NODE_PORT6: &str = "[2001:db8::1]:30080";
const NODE6: &str = "[2001:db8::1]:1024";
const HERE6: &str = "[fd00:0:0:1::1]:8080";
const BESIDE6: &str = "[fd00:0:0:1::2]:8080";
const THERE6: &str = "[fd00:0:0:2::1]:8080";

/// Measures all rows, each in `runs` runs of a program. Where each run needs a packet of its own, a few hundred single
/// runs, less the time of the clock itself. Moves this thread to a node of its own. `elf` is the eBPF object, aligned
/// to 8 octets.
pub fn table(elf: &[u8], runs: u32) -> Vec<ProgramCost> {
    let mut rows = Vec::new();
    rows.extend(passing(elf, runs));
    rows.extend(dropped(elf, runs));
    rows.extend(flows(elf, runs));
    rows.extend(begun(elf));
    rows.extend(refused(elf));
    rows.extend(announced(elf));
    rows.push(error(elf));
    rows
}

fn median(mut of: Vec<u32>) -> u32 {
    of.sort_unstable();
    of[of.len() / 2]
}

/// Measures repeated runs on one packet, which the program leaves unchanged or translates back and forth.
fn repeated(
    fixture: &Fixture,
    case: (&'static str, &str),
    packet: &impl RawFrame,
    batch: u32,
    runs: u32,
) -> (PacketOutcome, u32) {
    let batches = runs.div_ceil(batch).max(5);
    let (program, device) = case;
    let mut results: Vec<_> = (0..batches).map(|_| fixture.run_often(program, device, packet, 0, batch)).collect();
    let times = results.iter().map(|(_, time)| *time).collect();
    (results.pop().expect("a few").0, median(times))
}

/// Runs of [`single`] on packets of their own.
const SINGLE: u16 = 501;
/// Runs of [`single`] that the limit of resets and ICMP errors allows at once.
const LIMITED: u16 = 41;

/// Measures single runs, each on a packet of its own.
fn single(
    fixture: &Fixture,
    case: (&'static str, &str),
    runs: u16,
    packet: impl Fn(u16) -> Vec<u8>,
) -> (PacketOutcome, u32) {
    let (program, device) = case;
    let median_of = |device: &str| {
        let mut results: Vec<_> = (0..runs).map(|n| fixture.run_often(program, device, &packet(n), 0, 1)).collect();
        let times = results.iter().map(|(_, time)| *time).collect();
        (results.pop().expect("many").0, median(times))
    };
    // On a device that is not served a run costs little more than reading the clock.
    let (_, clock) = median_of("uplink-end");
    let (ran, time) = median_of(device);
    (ran, time.saturating_sub(clock))
}

fn row(program: &'static str, what: &'static str, verdict: &'static str, ns: u32) -> ProgramCost {
    ProgramCost { program, what, verdict, ns }
}

/// Packets of no Service.
fn passing(elf: &[u8], runs: u32) -> Vec<ProgramCost> {
    let mut fixture = Fixture::enter(elf);
    fixture.serve(FixtureService::tcp().node_port("0.0.0.0:30080").cluster_ip("10.96.0.1:80").backends(&[HERE]));
    let arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 9, 8, 6], &[0; 46]].concat();
    let (tcp, syn) = (PacketSpec::tcp(CLIENT, BESIDE).octets(), PacketSpec::syn(CLIENT, BESIDE).octets());
    let tcp6 = PacketSpec::tcp(CLIENT6, BESIDE6).octets();
    let alike = PacketSpec::tcp(CLIENT, "10.0.1.2:80").octets();
    let cases = [
        (IN, "uplink-end", "at a device that is not served", &tcp),
        (IN, "uplink", "no IP", &arp),
        (IN, "uplink", "of no Service, TCP", &tcp),
        (IN, "uplink", "of no Service, TCP over IPv6", &tcp6),
        (IN, "uplink", "of no Service, TCP, to the port of one", &alike),
        (IN, "uplink", "of no Service, SYN", &syn),
        (OUT, "uplink", "of no Service, TCP", &tcp),
        (OUT, "uplink", "of no Service, TCP over IPv6", &tcp6),
        (OUT, "uplink", "of no Service, SYN", &syn),
    ];
    let measure = |(program, device, what, packet): (_, _, _, &Vec<u8>)| {
        let (ran, ns) = repeated(&fixture, (program, device), packet, runs.div_ceil(11), runs);
        ran.passes_unchanged();
        row(program, what, "on", ns)
    };
    cases.map(measure).into()
}

/// Packets that a policy drops.
fn dropped(elf: &[u8], runs: u32) -> Vec<ProgramCost> {
    let mut fixture = Fixture::enter(elf);
    fixture.serve(FixtureService::tcp().node_port("0.0.0.0:30080").external_local().backends(&[THERE]));
    fixture
        .serve(FixtureService::tcp().load_balancer("203.0.113.7:443").source_ranges(&["10.0.0.0/8"]).backends(&[HERE]));
    let cases = [
        ("no endpoint on this node", PacketSpec::syn(CLIENT, NODE_PORT)),
        ("in none of the source ranges", PacketSpec::syn(CLIENT, "203.0.113.7:443")),
    ];
    let measure = |(what, packet): (_, PacketSpec)| {
        let (ran, ns) = repeated(&fixture, (IN, "uplink"), &packet, runs.div_ceil(11), runs);
        ran.is_dropped();
        row(IN, what, "dropped", ns)
    };
    cases.map(measure).into()
}

/// Packets of known flows. Two flows lead to each other, so that each run has a packet to rewrite.
fn flows(elf: &[u8], runs: u32) -> Vec<ProgramCost> {
    let mut fixture = Fixture::enter(elf);
    let mut rows = Vec::new();
    let kept: [(_, _, Make, _, _, _); 6] = [
        (IN, "known flow, to a pod, TCP", PacketSpec::tcp, CLIENT, NODE_PORT, HERE),
        (IN, "known flow, to a pod, UDP", PacketSpec::udp, CLIENT, NODE_PORT, HERE),
        (IN, "known flow, to a pod, SCTP", PacketSpec::sctp_init, CLIENT, NODE_PORT, HERE),
        (IN, "known flow, to a pod, TCP over IPv6", PacketSpec::tcp, CLIENT6, NODE_PORT6, HERE6),
        (OUT, "known flow, from a pod, TCP", PacketSpec::tcp, HERE, CLIENT, NODE_PORT),
        (OUT, "known flow, from a pod, TCP over IPv6", PacketSpec::tcp, HERE6, CLIENT6, NODE_PORT6),
    ];
    for (program, what, make, from, to, other) in kept {
        let packet = make(from, to).chunk(0);
        let becomes = if program == IN { packet.becomes(from, other) } else { packet.becomes(other, to) };
        circle(&mut fixture, program, &packet, &becomes, 0);
        fixture.run_often(program, "uplink", &packet, 0, 1).0.passes_as(&becomes);
        let (_, ns) = repeated(&fixture, (program, "uplink"), &packet, runs.div_ceil(11), runs);
        rows.push(row(program, what, "on, rewritten", ns));
    }
    let sent: [(_, Make, _, _, _, _); 3] = [
        ("known flow, by the node, TCP", PacketSpec::tcp, NODE, THERE, NODE_PORT, CLIENT),
        ("known flow, by the node, UDP", PacketSpec::udp, NODE, THERE, NODE_PORT, CLIENT),
        ("known flow, by the node, TCP over IPv6", PacketSpec::tcp, NODE6, THERE6, NODE_PORT6, CLIENT6),
    ];
    for (what, make, from, to, new_from, new_to) in sent {
        let packet = make(from, to).ttl(255);
        let becomes = packet.becomes(new_from, new_to);
        circle(&mut fixture, IN, &packet, &becomes, FlowFlags::REDIRECT);
        fixture.run_often(IN, "uplink", &packet, 0, 1).0.is_redirected_as(&becomes.routed());
        // Each run takes one from the TTL.
        let (_, ns) = repeated(&fixture, (IN, "uplink"), &packet, 250, runs);
        rows.push(row(IN, what, "sent at once", ns));
    }
    // With --host-routing.
    for (device, flags) in [("uplink", 0), ("pod1", DeviceFlags::POD), ("pod2", DeviceFlags::POD)] {
        fixture.set_flags(device, flags | DeviceFlags::HOST_ROUTING);
    }
    let entered: [(_, Make, _, _, _); 2] = [
        ("known flow, straight to a pod, TCP", PacketSpec::tcp, CLIENT, HERE, BESIDE),
        ("known flow, straight to a pod, TCP over IPv6", PacketSpec::tcp, CLIENT6, HERE6, BESIDE6),
    ];
    for (what, make, from, to, other) in entered {
        let packet = make(from, to).ttl(255);
        let becomes = packet.becomes(from, other);
        circle(&mut fixture, IN, &packet, &becomes, FlowFlags::REDIRECT);
        fixture.run_often(IN, "uplink", &packet, 0, 1).0.is_redirected_as(&becomes.routed().out_to(0x12));
        let (_, ns) = repeated(&fixture, (IN, "uplink"), &packet, 250, runs);
        rows.push(row(IN, what, "sent at once", ns));
    }
    rows
}

/// Adds flows that translate one packet to the other, and back.
fn circle(fixture: &mut Fixture, program: &str, one: &PacketSpec, other: &PacketSpec, flags: u16) {
    let hook = if program == IN { Hook::Ingress } else { Hook::Egress };
    let tuple = |packet: &PacketSpec| Tuple {
        src: packet.from.ip().into(),
        dst: packet.to.ip().into(),
        src_port: packet.from.port(),
        dst_port: packet.to.port(),
    };
    // Only datagrams need their backend.
    let reverse = if one.proto == Proto::Udp { 0 } else { FlowFlags::REVERSE };
    for (from, to, backend) in [(one, other, 1), (other, one, 2)] {
        let to = tuple(to);
        let there = Backend { addr: to.dst, port: to.dst_port, flags: BackendFlags::CLUSTER, service: 1 };
        fixture.maps().map("BACKENDS").insert(backend, there, 0).expect("room");
        let flow = Flow {
            to,
            service: 1,
            backend,
            flags: flags | reverse,
            forward: 1,
            reverse: 1,
            used: 0,
            hop: Hop::UNKNOWN,
        };
        let key = FlowKey::new(tuple(from), one.proto as u8, hook);
        fixture.maps().put_flow(key, flow);
    }
}

fn client(n: u16) -> String {
    format!("198.51.100.9:{}", 2000 + n)
}

/// First packets of a flow.
fn begun(elf: &[u8]) -> Vec<ProgramCost> {
    let cases: [(_, _, Is, _); 2] = [
        ("first packet of a flow to a pod", HERE, PacketOutcome::passes, "on, rewritten"),
        ("first packet of a flow by the node", THERE, PacketOutcome::is_redirected, "sent at once"),
    ];
    let measure = |(what, backend, is, verdict): (_, _, Is, _)| {
        let mut fixture = Fixture::enter(elf);
        fixture.serve(FixtureService::tcp().node_port("0.0.0.0:30080").backends(&[backend]));
        let (ran, ns) = single(&fixture, (IN, "uplink"), SINGLE, |n| PacketSpec::syn(&client(n), NODE_PORT).octets());
        assert!(is(&ran), "{ran:?}");
        row(IN, what, verdict, ns)
    };
    cases.map(measure).into()
}

/// Packets that are refused.
fn refused(elf: &[u8]) -> Vec<ProgramCost> {
    let mut fixture = Fixture::enter(elf);
    fixture.serve(FixtureService::tcp().node_port("0.0.0.0:30080"));
    fixture.serve(FixtureService::udp().node_port("0.0.0.0:30080"));
    let syn = PacketSpec::syn(CLIENT, NODE_PORT);
    let pause = || thread::sleep(Duration::from_millis(100));
    pause();
    let (reset, tcp) = single(&fixture, (IN, "uplink"), LIMITED, |_| syn.octets());
    reset.is_redirected_as(&syn.reset());
    let datagram = PacketSpec::udp(CLIENT, NODE_PORT);
    pause();
    let (error, udp) = single(&fixture, (IN, "uplink"), LIMITED, |_| datagram.octets());
    error.is_redirected_as(&IcmpErrorSpec::answer(IcmpReason::PortUnreachable, &datagram));
    vec![row(IN, "no endpoints, TCP", "reset", tcp), row(IN, "no endpoints, UDP", "ICMP error", udp)]
}

/// Questions on the link of a node that announces addresses.
fn announced(elf: &[u8]) -> Vec<ProgramCost> {
    let mut fixture = Fixture::enter(elf);
    let (v4, v6) = (Ipv4Addr::new(192, 0, 2, 77), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77));
    fixture.announce(&[&v4.to_string(), &v6.to_string()], u64::MAX);
    fixture.answer_at("uplink", [2, 0, 0, 0, 0, 1]);
    let asker = LinkAddr::new([2, 0, 0, 0, 0, 9]);
    let arp = |last: u8| arp_probe(u32::from_ne_bytes([192, 0, 2, last]), asker).to_vec();
    let ndp = neighbour_probe(&Addr::from(v6), asker).to_vec();
    let (passes, other) = single(&fixture, (IN, "uplink"), SINGLE, |_| arp(78));
    passes.passes_unchanged();
    let answer = |what, packet: &Vec<u8>| {
        let (ran, ns) = single(&fixture, (IN, "uplink"), SINGLE, |_| packet.clone());
        assert!(ran.is_redirected(), "{ran:?}");
        row(IN, what, "answered", ns)
    };
    vec![
        row(IN, "ARP, for another address than announced", "on", other),
        answer("ARP, for an announced address", &arp(77)),
        answer("solicitation, for an announced address", &ndp),
    ]
}

/// An ICMP error about a flow.
fn error(elf: &[u8]) -> ProgramCost {
    let mut fixture = Fixture::enter(elf);
    fixture.serve(FixtureService::tcp().node_port("0.0.0.0:30080").backends(&[HERE]));
    let packet = PacketSpec::syn(CLIENT, NODE_PORT);
    let seen = packet.becomes(CLIENT, HERE);
    fixture.ingress("uplink", &packet).passes_as(&seen);
    let error = IcmpErrorSpec::new("10.0.1.1", IcmpReason::PortUnreachable, &seen, 1000);
    let (ran, ns) = single(&fixture, (OUT, "uplink"), SINGLE, |_| error.octets());
    ran.passes_as(&error.becomes("192.0.2.1", "198.51.100.9", &packet));
    row(OUT, "ICMP error about a known flow", "on, rewritten", ns)
}

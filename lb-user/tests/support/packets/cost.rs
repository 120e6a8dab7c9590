//! What a packet costs, by program and by what becomes of it: the mean of many runs on one packet, which each run finds as the
//! one before left it, and the median of such means, since the machine is not alone.

use lb_common::{Backend, BackendFlags, DeviceFlags, Flow, FlowFlags, FlowKey, Hook, Hop, Proto, Tuple};

use super::{
    packet::{Error, Packet, Trouble, Wire},
    services::Wanted,
    world::{Ran, World},
};

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Cost {
    /// The program.
    pub program: &'static str,
    /// What it meets.
    pub what: &'static str,
    /// What becomes of it.
    pub verdict: &'static str,
    /// Mean of a run, in ns.
    pub ns: u32,
}

/// A packet from one end to another.
type Make = fn(&str, &str) -> Packet;
/// Whether a packet became what it should.
type Is = fn(&Ran) -> bool;

const IN: &str = "tc_ingress";
const OUT: &str = "tc_egress";

const CLIENT: &str = "198.51.100.9:4000";
const NODE_PORT: &str = "192.0.2.1:30080";
const NODE: &str = "192.0.2.1:1024";
const HERE: &str = "10.0.1.1:8080";
const BESIDE: &str = "10.0.1.2:8080";
const THERE: &str = "10.0.2.1:8080";
const CLIENT6: &str = "[2001:db8:9::9]:4000";
const NODE_PORT6: &str = "[2001:db8::1]:30080";
const NODE6: &str = "[2001:db8::1]:1024";
const HERE6: &str = "[fd00:0:0:1::1]:8080";
const BESIDE6: &str = "[fd00:0:0:1::2]:8080";
const THERE6: &str = "[fd00:0:0:2::1]:8080";

/// Measures all rows, each in `runs` runs of a program, or a few hundred where each needs a packet of its own: those are single
/// runs, less what the clock itself takes. Moves this thread to a node of its own.
pub fn table(runs: u32) -> Vec<Cost> {
    let mut rows = Vec::new();
    rows.extend(passing(runs));
    rows.extend(dropped(runs));
    rows.extend(flows(runs));
    rows.extend(begun());
    rows.extend(refused());
    rows.push(error());
    rows
}

fn median(mut of: Vec<u32>) -> u32 {
    of.sort_unstable();
    of[of.len() / 2]
}

/// Runs on one packet that stays as it is, or comes back to what it was.
fn repeated(world: &World, case: (&'static str, &str), packet: &impl Wire, batch: u32, runs: u32) -> (Ran, u32) {
    let batches = runs.div_ceil(batch).max(5);
    let (program, device) = case;
    let mut results: Vec<_> = (0..batches).map(|_| world.run_often(program, device, packet, 0, batch)).collect();
    let times = results.iter().map(|(_, time)| *time).collect();
    (results.pop().expect("a few").0, median(times))
}

/// Single runs, each on a packet of its own.
fn single(world: &World, case: (&'static str, &str), packet: impl Fn(u16) -> Vec<u8>) -> (Ran, u32) {
    const RUNS: u16 = 501;
    let (program, device) = case;
    let median_of = |device: &str| {
        let mut results: Vec<_> = (0..RUNS).map(|n| world.run_often(program, device, &packet(n), 0, 1)).collect();
        let times = results.iter().map(|(_, time)| *time).collect();
        (results.pop().expect("many").0, median(times))
    };
    // A device that is not served: next to nothing but the clock.
    let (_, clock) = median_of("uplink-end");
    let (ran, time) = median_of(device);
    (ran, time.saturating_sub(clock))
}

fn row(program: &'static str, what: &'static str, verdict: &'static str, ns: u32) -> Cost {
    Cost { program, what, verdict, ns }
}

/// What is of no Service, among a few Services.
fn passing(runs: u32) -> Vec<Cost> {
    let mut world = World::enter();
    world.serve(Wanted::tcp().node_port("0.0.0.0:30080").cluster_ip("10.96.0.1:80").backends(&[HERE]));
    let arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 9, 8, 6], &[0; 46]].concat();
    let (tcp, syn) = (Packet::tcp(CLIENT, BESIDE).octets(), Packet::syn(CLIENT, BESIDE).octets());
    let tcp6 = Packet::tcp(CLIENT6, BESIDE6).octets();
    let alike = Packet::tcp(CLIENT, "10.0.1.2:80").octets();
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
        let (ran, ns) = repeated(&world, (program, device), packet, runs.div_ceil(11), runs);
        ran.is_untouched();
        row(program, what, "on", ns)
    };
    cases.map(measure).into()
}

/// What a policy keeps out.
fn dropped(runs: u32) -> Vec<Cost> {
    let mut world = World::enter();
    world.serve(Wanted::tcp().node_port("0.0.0.0:30080").external_local().backends(&[THERE]));
    world.serve(Wanted::tcp().load_balancer("203.0.113.7:443").source_ranges(&["10.0.0.0/8"]).backends(&[HERE]));
    let cases = [
        ("no endpoint on this node", Packet::syn(CLIENT, NODE_PORT)),
        ("in none of the source ranges", Packet::syn(CLIENT, "203.0.113.7:443")),
    ];
    let measure = |(what, packet): (_, Packet)| {
        let (ran, ns) = repeated(&world, (IN, "uplink"), &packet, runs.div_ceil(11), runs);
        ran.is_dropped();
        row(IN, what, "dropped", ns)
    };
    cases.map(measure).into()
}

/// Packets of known flows. Two flows lead to each other, so that each run has a packet to rewrite.
fn flows(runs: u32) -> Vec<Cost> {
    let mut world = World::enter();
    let mut rows = Vec::new();
    let kept: [(_, _, Make, _, _, _); 6] = [
        (IN, "known flow, to a pod, TCP", Packet::tcp, CLIENT, NODE_PORT, HERE),
        (IN, "known flow, to a pod, UDP", Packet::udp, CLIENT, NODE_PORT, HERE),
        (IN, "known flow, to a pod, SCTP", Packet::sctp_init, CLIENT, NODE_PORT, HERE),
        (IN, "known flow, to a pod, TCP over IPv6", Packet::tcp, CLIENT6, NODE_PORT6, HERE6),
        (OUT, "known flow, from a pod, TCP", Packet::tcp, HERE, CLIENT, NODE_PORT),
        (OUT, "known flow, from a pod, TCP over IPv6", Packet::tcp, HERE6, CLIENT6, NODE_PORT6),
    ];
    for (program, what, make, from, to, other) in kept {
        let packet = make(from, to).chunk(0);
        let becomes = if program == IN { packet.becomes(from, other) } else { packet.becomes(other, to) };
        circle(&mut world, program, &packet, &becomes, 0);
        world.run_often(program, "uplink", &packet, 0, 1).0.goes_on_as(&becomes);
        let (_, ns) = repeated(&world, (program, "uplink"), &packet, runs.div_ceil(11), runs);
        rows.push(row(program, what, "on, rewritten", ns));
    }
    let sent: [(_, Make, _, _, _, _); 3] = [
        ("known flow, by the node, TCP", Packet::tcp, NODE, THERE, NODE_PORT, CLIENT),
        ("known flow, by the node, UDP", Packet::udp, NODE, THERE, NODE_PORT, CLIENT),
        ("known flow, by the node, TCP over IPv6", Packet::tcp, NODE6, THERE6, NODE_PORT6, CLIENT6),
    ];
    for (what, make, from, to, new_from, new_to) in sent {
        let packet = make(from, to).ttl(255);
        let becomes = packet.becomes(new_from, new_to);
        circle(&mut world, IN, &packet, &becomes, FlowFlags::REDIRECT);
        world.run_often(IN, "uplink", &packet, 0, 1).0.is_sent_as(&becomes.one_hop_on());
        // Each run is a hop.
        let (_, ns) = repeated(&world, (IN, "uplink"), &packet, 250, runs);
        rows.push(row(IN, what, "sent at once", ns));
    }
    // With --host-routing.
    for (device, flags) in [("uplink", 0), ("pod1", DeviceFlags::POD), ("pod2", DeviceFlags::POD)] {
        world.set_flags(device, flags | DeviceFlags::HOST_ROUTING);
    }
    let entered: [(_, Make, _, _, _); 2] = [
        ("known flow, straight to a pod, TCP", Packet::tcp, CLIENT, HERE, BESIDE),
        ("known flow, straight to a pod, TCP over IPv6", Packet::tcp, CLIENT6, HERE6, BESIDE6),
    ];
    for (what, make, from, to, other) in entered {
        let packet = make(from, to).ttl(255);
        let becomes = packet.becomes(from, other);
        circle(&mut world, IN, &packet, &becomes, FlowFlags::REDIRECT);
        world.run_often(IN, "uplink", &packet, 0, 1).0.is_sent_as(&becomes.one_hop_on().out_to(0x12));
        let (_, ns) = repeated(&world, (IN, "uplink"), &packet, 250, runs);
        rows.push(row(IN, what, "sent at once", ns));
    }
    rows
}

/// Flows by which one packet becomes the other, and that the first again.
fn circle(world: &mut World, program: &str, one: &Packet, other: &Packet, flags: u16) {
    let hook = if program == IN { Hook::Ingress } else { Hook::Egress };
    let tuple = |packet: &Packet| Tuple {
        src: packet.from.ip().into(),
        dst: packet.to.ip().into(),
        src_port: packet.from.port(),
        dst_port: packet.to.port(),
    };
    // Only for datagrams it is looked at whether the backend is still there.
    let reverse = if one.proto == Proto::Udp { 0 } else { FlowFlags::REVERSE };
    for (from, to, backend) in [(one, other, 1), (other, one, 2)] {
        let to = tuple(to);
        let there = Backend { addr: to.dst, port: to.dst_port, flags: BackendFlags::CLUSTER, service: 1 };
        world.maps().map("BACKENDS").insert(backend, there, 0).expect("room");
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
        world.maps().map("FLOWS").insert(key, flow, 0).expect("room");
    }
}

fn client(n: u16) -> String {
    format!("198.51.100.9:{}", 2000 + n)
}

/// First packets of a flow.
fn begun() -> Vec<Cost> {
    let cases: [(_, _, Is, _); 2] = [
        ("first packet of a flow to a pod", HERE, Ran::goes_on, "on, rewritten"),
        ("first packet of a flow by the node", THERE, Ran::is_sent, "sent at once"),
    ];
    let measure = |(what, backend, is, verdict): (_, _, Is, _)| {
        let mut world = World::enter();
        world.serve(Wanted::tcp().node_port("0.0.0.0:30080").backends(&[backend]));
        let (ran, ns) = single(&world, (IN, "uplink"), |n| Packet::syn(&client(n), NODE_PORT).octets());
        assert!(is(&ran), "{ran:?}");
        row(IN, what, verdict, ns)
    };
    cases.map(measure).into()
}

/// Packets that are answered.
fn refused() -> Vec<Cost> {
    let mut world = World::enter();
    world.serve(Wanted::tcp().node_port("0.0.0.0:30080"));
    world.serve(Wanted::udp().node_port("0.0.0.0:30080"));
    let syn = Packet::syn(CLIENT, NODE_PORT);
    let (reset, tcp) = single(&world, (IN, "uplink"), |_| syn.octets());
    reset.is_sent_as(&syn.reset());
    let datagram = Packet::udp(CLIENT, NODE_PORT);
    let (error, udp) = single(&world, (IN, "uplink"), |_| datagram.octets());
    error.is_sent_as(&Error::answer(Trouble::PortUnreachable, &datagram));
    vec![row(IN, "no endpoints, TCP", "reset", tcp), row(IN, "no endpoints, UDP", "ICMP error", udp)]
}

/// An error on its way back.
fn error() -> Cost {
    let mut world = World::enter();
    world.serve(Wanted::tcp().node_port("0.0.0.0:30080").backends(&[HERE]));
    let packet = Packet::syn(CLIENT, NODE_PORT);
    let seen = packet.becomes(CLIENT, HERE);
    world.comes_in("uplink", &packet).goes_on_as(&seen);
    let error = Error::new("10.0.1.1", Trouble::PortUnreachable, &seen, 1000);
    let (ran, ns) = single(&world, (OUT, "uplink"), |_| error.octets());
    ran.goes_on_as(&error.becomes("192.0.2.1", "198.51.100.9", &packet));
    row(OUT, "ICMP error about a known flow", "on, rewritten", ns)
}

//! Announcing on the link, with real agents, a real bridge and a real API server: a client asks by ARP all the time who
//! has each address, and counts the answers to each question.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use lb_kernel::packet_socket::PacketSocket;
use lb_lab::{LabNamespace, api_server::ApiServer, link::LinkSpec};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    agent::{KubeTestAgent, until},
    bootstrap::is_skipped,
    node::KubeTestNode,
};

/// Number of load balancer addresses: 10.99.0.201 and so on.
const ADDRESSES: u8 = 4;
/// Interval of questions for each address.
const ROUND: Duration = Duration::from_millis(20);
/// Link address of the client.
const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
/// The time within which a node that has lost its power is replaced.
const REPLACED: Duration = Duration::from_secs(3);

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, 200 + last)
}

fn name(number: usize) -> String {
    format!("n{number}")
}

/// The answers to one question.
#[derive(Clone, Debug)]
struct Round {
    asked: Instant,
    address: Ipv4Addr,
    /// Link addresses of the answers.
    answers: BTreeSet<[u8; 6]>,
}

/// A client that asks all the time.
struct Client {
    rounds: Arc<Mutex<Vec<Round>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    fn start(net: &LabNamespace) -> Self {
        let rounds = Arc::<Mutex<Vec<Round>>>::default();
        let ended = Arc::<AtomicBool>::default();
        let link = net.run(&["ip", "-oneline", "link", "show", "eth0"]);
        let index = link.split(':').next().and_then(|index| index.parse().ok()).expect("an index");
        let socket = net.enter(|| PacketSocket::open(index)).expect("a packet socket");
        let thread = std::thread::spawn({
            let (rounds, ended) = (Arc::clone(&rounds), Arc::clone(&ended));
            move || {
                while !ended.load(Ordering::Relaxed) {
                    let round = ask(&socket);
                    rounds.lock().expect("no panic").extend(round);
                }
            }
        });
        Self { rounds, ended, thread: Some(thread) }
    }

    /// Returns the link address of the last answer for each address, if it is not older than some rounds.
    fn answerers(&self) -> BTreeMap<Ipv4Addr, [u8; 6]> {
        let rounds = self.rounds.lock().expect("no panic");
        let recent = rounds.iter().rev().take_while(|round| round.asked.elapsed() < 5 * ROUND);
        let mut answerers = BTreeMap::new();
        for round in recent {
            if let Some(answer) = round.answers.first() {
                answerers.entry(round.address).or_insert(*answer);
            }
        }
        answerers
    }

    /// Waits until every address has an answerer for which `is_so`.
    fn until(&self, what: &str, is_so: impl Fn(Ipv4Addr, [u8; 6]) -> bool) {
        until(what, || {
            let answerers = self.answerers();
            answerers.len() == usize::from(ADDRESSES) && answerers.iter().all(|(addr, mac)| is_so(*addr, *mac))
        });
    }

    /// Returns the longest time since `since` in which an address had no answer.
    fn longest_gap(&self, since: Instant) -> Duration {
        let rounds = self.rounds.lock().expect("no panic");
        let mut longest = Duration::ZERO;
        for last in 1..=ADDRESSES {
            let of_address = |round: &&Round| round.address == address(last) && !round.answers.is_empty();
            let mut before = since;
            for round in rounds.iter().filter(of_address).filter(|round| round.asked >= since) {
                longest = longest.max(round.asked - before);
                before = round.asked;
            }
            longest = longest.max(before.elapsed());
        }
        longest
    }

    /// Ends the client; no question had two answers. Returns the number of questions.
    fn end(mut self) -> usize {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.take().expect("once").join().expect("no panic");
        let rounds = self.rounds.lock().expect("no panic");
        let doubled: Vec<&Round> = rounds.iter().filter(|round| round.answers.len() > 1).collect();
        assert!(doubled.is_empty(), "questions with two answers: {doubled:?}");
        rounds.len()
    }
}

/// Asks once for each address, and takes the answers of one round.
fn ask(socket: &PacketSocket) -> Vec<Round> {
    let mut rounds: BTreeMap<Ipv4Addr, Round> = BTreeMap::new();
    for last in 1..=ADDRESSES {
        let asked = Instant::now();
        let mut frame = [0xff; 6].to_vec();
        frame.extend(CLIENT);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(CLIENT);
        frame.extend([10, 99, 0, 99]);
        frame.extend([0; 6]);
        frame.extend(address(last).octets());
        let _link_is_down = socket.send(&frame);
        let round = Round { asked, address: address(last), answers: BTreeSet::new() };
        rounds.insert(address(last), round);
    }
    let end = Instant::now() + ROUND;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        let mut frame = [0; 128];
        let Ok(length) = socket.receive(&mut frame, left.max(Duration::from_millis(1))) else { continue };
        // An answer to this client: to its link address, ARP, opcode 2.
        let frame = &frame[..length.min(42)];
        if length < 42 || frame[..6] != CLIENT || frame[12..14] != [8, 6] || frame[20..22] != [0, 2] {
            continue;
        }
        let sender = Ipv4Addr::new(frame[28], frame[29], frame[30], frame[31]);
        if let Some(round) = rounds.get_mut(&sender) {
            round.answers.insert(frame[22..28].try_into().expect("6 bytes"));
        }
    }
    rounds.into_values().collect()
}

/// Nodes at a bridge, and the client.
struct Wire {
    bridge: LabNamespace,
    client: LabNamespace,
    nodes: Vec<KubeTestNode>,
}

impl Wire {
    fn make(server: &ApiServer, count: usize) -> Self {
        let (bridge, client) = (LabNamespace::new(), LabNamespace::new());
        bridge.setup().link("wire", &LinkSpec::bridge()).apply();
        bridge.setup().link("client", &LinkSpec::veth_to(&client, "eth0").port_of("wire")).apply();
        client
            .setup()
            .ip("link set eth0 address 02:00:00:00:00:99")
            .up("eth0")
            .address("eth0", "10.99.0.99/24")
            .apply();
        let node = |number: usize| {
            let node = KubeTestNode::named(&format!("announcer-{number}"));
            let net = node.net();
            bridge.setup().link(&name(number), &LinkSpec::veth_to(net, "eth0").port_of("wire")).apply();
            net.setup().up("eth0").address("eth0", &format!("10.99.0.{}/24", 10 + number)).apply();
            lb_lab::relay::relay(net, server.port());
            node
        };
        let nodes = (1..=count).map(node).collect();
        Self { bridge, client, nodes }
    }

    /// Link address of a node.
    fn mac(&self, number: usize) -> [u8; 6] {
        let link = self.nodes[number - 1].net().run(&["ip", "-oneline", "link", "show", "eth0"]);
        let (_, after) = link.split_once("link/ether ").expect("an Ethernet link");
        let text = after.split(' ').next().expect("an address");
        let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect();
        bytes.try_into().expect("6 bytes")
    }

    /// Connects a node to the bridge, or takes it off.
    fn set_link(&self, number: usize, state: &str) {
        self.bridge.setup().ip(&format!("link set {} {state}", name(number))).apply();
    }
}

/// Objects: the nodes with the label, and Services with addresses.
fn make_objects(server: &ApiServer, count: usize) {
    for number in 1..=count {
        server.apply(&format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {}, labels: {{beeline.io/announcer: ''}}}}\n",
            name(number)
        ));
        let status = format!(
            r#"--patch={{"status":{{"addresses":[{{"type":"InternalIP","address":"10.99.0.{}"}}]}}}}"#,
            10 + number
        );
        server.kubectl(&["patch", &format!("node/{}", name(number)), "--subresource=status", "--type=merge", &status]);
    }
    for last in 1..=ADDRESSES {
        server.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: announced-{last}}}\n\
             spec: {{type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{{port: 80}}]}}\n"
        ));
        let status = format!(r#"--patch={{"status":{{"loadBalancer":{{"ingress":[{{"ip":"{}"}}]}}}}}}"#, address(last));
        let service = format!("service/announced-{last}");
        server.kubectl(&["patch", &service, "--subresource=status", "--type=merge", &status]);
    }
}

fn delete_objects(server: &ApiServer, count: usize) {
    for last in 1..=ADDRESSES {
        server.kubectl(&["delete", &format!("service/announced-{last}")]);
    }
    for number in 1..=count {
        server.kubectl(&["delete", &format!("node/{}", name(number))]);
    }
    server.kubectl(&["delete", "lease/beeline-announce"]);
}

fn start_agent(server: &ApiServer, wire: &Wire, number: usize, key: &std::path::Path) -> KubeTestAgent {
    let flags = format!("announce: beeline.io/announcer\nannounce-key-file: {}\n", key.display());
    KubeTestAgent::start_at(&wire.nodes[number - 1], &name(number), &server.kubeconfig(), &flags)
}

fn signal(agent: &KubeTestAgent, signal: Signal) {
    let pid = Pid::from_raw(agent.pid().try_into().expect("a pid")).expect("a pid");
    kill_process(pid, signal).expect("our own child");
}

/// Returns the version and the members in the Lease.
fn lease(server: &ApiServer) -> (String, String) {
    let path = r"--output=jsonpath={.metadata.resourceVersion} {.metadata.annotations.beeline\.io/announcers}";
    let text = server.try_kubectl(&["get", "lease/beeline-announce", path], "").unwrap_or_default();
    text.split_once(' ').map(|(version, members)| (version.to_owned(), members.to_owned())).unwrap_or_default()
}

/// Waits until the group has these members, and no change is under way.
fn until_group(server: &ApiServer, numbers: &[usize]) {
    let members: Vec<String> = numbers.iter().map(|number| format!("\"{}\"", name(*number))).collect();
    let expected = format!("\"members\":[{}]}}", members.join(","));
    until(&expected, || lease(server).1.ends_with(&expected));
}

/// Two and three nodes: the loss of a holder, its return, a restart and a drain. No question ever has two answers.
pub(crate) fn one_node_answers_whatever_fails(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    for count in [2, 3] {
        let directory = tempfile::tempdir().expect("a directory");
        let key = directory.path().join("key");
        std::fs::write(&key, "0123456789abcdef0123456789abcdef\n").expect("a file");
        make_objects(server, count);
        let wire = Wire::make(server, count);
        let client = Client::start(&wire.client);
        let macs: Vec<[u8; 6]> = (1..=count).map(|number| wire.mac(number)).collect();
        let mut agents: Vec<KubeTestAgent> =
            (1..=count).map(|number| start_agent(server, &wire, number, &key)).collect();
        until_group(server, &(1..=count).collect::<Vec<_>>());
        client.until("every address has an answerer", |_, _| true);
        // Addresses go to where the hash says, and then nothing is written any more.
        std::thread::sleep(Duration::from_secs(6));
        let (before, holders) = (lease(server), client.answerers());
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(lease(server), before, "no write in the usual state");
        assert_eq!(client.answerers(), holders);
        let number_of = |mac: [u8; 6]| 1 + macs.iter().position(|known| *known == mac).expect("a node");
        let lost = number_of(holders[&address(1)]);

        // Power loss: the node's link goes, and its processes stand still.
        let start = Instant::now();
        signal(&agents[lost - 1], Signal::STOP);
        wire.set_link(lost, "down");
        client.until("others answer", |_, mac| mac != macs[lost - 1]);
        let gap = client.longest_gap(start);
        println!("{count} nodes: power loss of a holder: {gap:?} without an answer");
        assert!(gap < REPLACED, "{gap:?}");

        // The node comes back, first the link and then the processes, and then its addresses.
        wire.set_link(lost, "up");
        std::thread::sleep(Duration::from_secs(1));
        let start = Instant::now();
        signal(&agents[lost - 1], Signal::CONT);
        client.until("the addresses are back", |addr, mac| mac == holders[&addr]);
        println!("{count} nodes: return of the node: {:?} without an answer", client.longest_gap(start));

        // The API server gives its vote back.
        until("the Lease has no holder", || {
            server.kubectl(&["get", "lease/beeline-announce", "--output=jsonpath={.spec.holderIdentity}"]).is_empty()
        });

        // An agent in a pod ends and another one starts.
        let start = Instant::now();
        signal(&agents[lost - 1], Signal::TERM);
        client.until("others answer", |_, mac| mac != macs[lost - 1]);
        let gap = client.longest_gap(start);
        println!("{count} nodes: end of an agent: {gap:?} without an answer");
        assert!(gap < Duration::from_secs(1), "{gap:?}");
        let start = Instant::now();
        agents[lost - 1] = start_agent(server, &wire, lost, &key);
        client.until("the addresses are back", |addr, mac| mac == holders[&addr]);
        println!("{count} nodes: the next agent: {:?} without an answer", client.longest_gap(start));

        // A drain.
        let start = Instant::now();
        server.kubectl(&["patch", &format!("node/{}", name(lost)), r#"--patch={"spec":{"unschedulable":true}}"#]);
        client.until("others answer", |_, mac| mac != macs[lost - 1]);
        let gap = client.longest_gap(start);
        println!("{count} nodes: drain: {gap:?} without an answer");
        assert!(gap < Duration::from_secs(1), "{gap:?}");
        let shown = beeline(&wire, lost, &["get", "addresses"]);
        assert_eq!(shown.matches("not here").count(), usize::from(ADDRESSES), "{shown}");

        // A node leaves the group.
        server.kubectl(&["label", &format!("node/{}", name(lost)), "beeline.io/announcer-"]);
        let left: Vec<usize> = (1..=count).filter(|number| *number != lost).collect();
        until_group(server, &left);
        client.until("others answer", |_, mac| mac != macs[lost - 1]);

        let questions = client.end();
        println!("{count} nodes: {questions} questions, none with two answers");
        drop(agents);
        delete_objects(server, count);
    }
}

fn beeline(wire: &Wire, number: usize, arguments: &[&str]) -> String {
    let node = &wire.nodes[number - 1];
    let mut command: Command = node.command(env!("CARGO_BIN_EXE_beeline"));
    let output = command.arg("--pins").arg(node.pins()).args(arguments).output().expect("a command");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

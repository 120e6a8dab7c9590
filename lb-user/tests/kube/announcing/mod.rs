//! Announcing on the link, with real agents, a real bridge and a real API server: a client asks by ARP and NDP all the
//! time who has each address, and counts the answers to each question.

mod burst;
mod conflict;
mod cut_off;
mod one_way;
mod priority;
mod upgrade;
mod wire;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_core::announce::{Node, choose};
use lb_lab::{
    api_server::ApiServer,
    neighbour_client::{LinkAddress, NeighbourClient},
};
use rustix::process::Signal;

pub(crate) use burst::a_thousand_addresses_are_announced;
pub(crate) use conflict::a_host_that_claims_an_announced_address_is_told_by_an_event;
pub(crate) use cut_off::a_node_that_is_cut_off_stops_before_another_begins;
pub(crate) use one_way::a_node_that_hears_or_is_heard_only_loses_its_addresses_once;
pub(crate) use priority::renewals_have_a_priority;
pub(crate) use upgrade::addresses_are_answered_over_changes_of_the_layout;

use crate::{
    agent::{KubeTestAgent, until},
    bootstrap::is_skipped,
};
use wire::{Wire, address, addresses, delete_objects, lease, make_objects, name, signal, until_answered, until_group};

/// The time within which a node that has lost its power is replaced.
const REPLACED: Duration = Duration::from_secs(3);

/// Time for which a cut lasts: longer than permits and retries.
const CUT: Duration = Duration::from_secs(6);

/// A group whose addresses are where the hash says, with a client that asks all the time.
struct Group {
    wire: Wire,
    client: NeighbourClient,
    agents: Vec<KubeTestAgent>,
    /// Link addresses of the nodes.
    macs: Vec<LinkAddress>,
    /// Link address of the holder of each address.
    holders: BTreeMap<IpAddr, LinkAddress>,
    /// Number of the node that holds the first address.
    holder: usize,
}

/// The begin of a measurement.
#[derive(Clone, Copy)]
struct Moment {
    at: Instant,
    /// Failures of the API server to answer announcers in time, but for the first address's holder.
    failures: usize,
}

impl Group {
    fn start(server: &ApiServer, count: usize) -> Self {
        make_objects(server, count);
        let wire = Wire::make(server, count);
        let client = wire.client();
        let macs: Vec<LinkAddress> = (1..=count).map(|number| wire.mac(number)).collect();
        let agents: Vec<KubeTestAgent> = (1..=count).map(|number| wire.start_agent(number)).collect();
        until_group(server, &(1..=count).collect::<Vec<_>>());
        let names: Vec<Node> = (1..=count).map(|number| name(number).into()).collect();
        let chosen = |address: IpAddr| {
            let node = choose(address, names.iter().map(|node| (node, false))).expect("a node");
            let index = names.iter().position(|name| name == node).expect("one of them");
            (address, macs[index])
        };
        let holders: BTreeMap<IpAddr, LinkAddress> = addresses().map(chosen).collect();
        until_answered(&client, "the addresses are where the hash says", |addr, mac| mac == holders[&addr]);
        let holder = 1 + macs.iter().position(|mac| *mac == holders[&address(1).into()]).expect("a node");
        Self { wire, client, agents, macs, holders, holder }
    }

    fn until_others_answer(&self) {
        until_answered(&self.client, "others answer", |_, mac| mac != self.macs[self.holder - 1]);
    }

    fn until_holders_are_back(&self) {
        until_answered(&self.client, "the addresses are back", |addr, mac| mac == self.holders[&addr]);
    }

    fn now(&self) -> Moment {
        let others = self.agents.iter().enumerate().filter(|(index, _)| index + 1 != self.holder);
        let failures =
            others.map(|(_, agent)| agent.log().matches("the Lease beeline-announce is out of reach").count());
        Moment { failures: failures.sum(), at: Instant::now() }
    }

    /// Prints the longest time since `start` in which an address had no answer, and asserts that it is short, apart
    /// from time that the machine lost. A pair needs the API server, which may answer too late on a busy machine.
    fn assert_gap(&self, what: &str, start: Moment, most: Duration) {
        let what = format!("{} nodes: {what}", self.agents.len());
        if self.now().failures == start.failures {
            self.wire.assert_gap(&self.client, &what, start.at, most);
        } else {
            let gap = self.client.longest_gap(start.at);
            println!("{what}: {gap:.3?} without an answer; the API server was too late for an announcer");
        }
    }

    /// Prints how often an address has moved since `start`, and asserts that it is once at most, on a machine that lets
    /// agents run in time.
    fn assert_moves(&self, what: &str, start: Moment) {
        let (count, moves) = (self.agents.len(), self.client.moves(start.at));
        println!("{count} nodes: {what}: {moves} moves of the address that moved most often");
        assert!(moves <= 1 || !self.wire.kept_pace(start.at), "{what}: {moves} moves");
    }

    /// Ends the client, which has seen no question with two answers, and the agents.
    fn end(self, server: &ApiServer) {
        let count = self.agents.len();
        let questions = self.client.end();
        println!("{count} nodes: {questions} questions, none with two answers");
        drop((self.agents, self.wire));
        delete_objects(server, count);
    }
}

/// An agent that may not read the Lease says so, asks seldom, and takes part when it may.
pub(crate) fn an_announcer_needs_the_right_to_its_lease(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    make_objects(server, 1);
    let wire = Wire::make(server, 1);
    let client = wire.client();
    server.kubectl(&["delete", "rolebinding/beeline", "--namespace=kube-system"]);
    let agent = wire.start_agent(1);
    until("the log has the cure", || agent.log().contains("bind its account to a role that grants it"));
    let asked = || agent.log().matches("API server answers").count() as u64;
    let (before, start) = (asked(), Instant::now());
    std::thread::sleep(Duration::from_secs(5));
    let after = asked();
    // The agent asks each 10 s. Other parts of it may ask, too.
    assert!(after <= before + 2 + start.elapsed().as_secs() / 10, "{}", agent.log());
    let _same_credentials = crate::deploy::announcer_account(server);
    until_group(server, &[1]);
    until_answered(&client, "every address has an answerer", |_, _| true);
    assert_eq!(agent.log().matches("bind its account").count(), 1, "it is logged once");
    client.end();
    drop((agent, wire));
    delete_objects(server, 1);
}

/// Two and three nodes: the loss of a holder, its return, a restart and a drain. No question ever has two answers.
pub(crate) fn one_node_answers_whatever_fails(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    for count in [2, 3] {
        let mut group = Group::start(server, count);
        let lost = group.holder;
        until("nothing is written in the usual state", || {
            let before = lease(server);
            std::thread::sleep(Duration::from_secs(3));
            lease(server) == before && before.holder.is_empty()
        });
        group.until_holders_are_back();

        // Power loss: the node's link goes, and its processes stand still.
        let start = group.now();
        signal(&group.agents[lost - 1], Signal::STOP);
        group.wire.set_link(lost, "down");
        group.until_others_answer();
        group.assert_gap("power loss of a holder", start, REPLACED);

        // The node comes back, first the link and then the processes, and then its addresses.
        group.wire.set_link(lost, "up");
        std::thread::sleep(Duration::from_secs(1));
        let start = group.now();
        signal(&group.agents[lost - 1], Signal::CONT);
        group.until_holders_are_back();
        group.assert_gap("return of the node", start, REPLACED);

        // The API server gives its vote back.
        until("the Lease has no holder", || lease(server).holder.is_empty());

        // An agent in a pod ends and another one starts.
        let start = group.now();
        signal(&group.agents[lost - 1], Signal::TERM);
        group.until_others_answer();
        group.assert_gap("end of an agent", start, Duration::from_secs(1));
        let start = group.now();
        group.agents[lost - 1] = group.wire.start_agent(lost);
        group.until_holders_are_back();
        group.assert_gap("the next agent", start, REPLACED);

        // A drain.
        let start = group.now();
        server.kubectl(&["patch", &format!("node/{}", name(lost)), r#"--patch={"spec":{"unschedulable":true}}"#]);
        group.until_others_answer();
        group.assert_gap("drain", start, Duration::from_secs(1));
        let shown = group.wire.beeline(lost, &["get", "addresses"]);
        assert_eq!(shown.matches("not here").count(), addresses().count(), "{shown}");

        // A node leaves the group.
        server.kubectl(&["label", &format!("node/{}", name(lost)), "beeline.io/announcer-"]);
        let left: Vec<usize> = (1..=count).filter(|number| *number != lost).collect();
        until_group(server, &left);
        group.until_others_answer();
        group.end(server);
    }
}

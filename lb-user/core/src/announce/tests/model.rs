//! A model of announcers with clocks of different rates, a network that delays, repeats, reorders and loses, agents
//! that stall, die and start again in the middle of a step, nodes that boot again, changes of the group and of the
//! candidates, and an API server that comes and goes. At no step two nodes answer for one address.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr},
};

use super::super::{
    Announcer, Candidates, Datagram, Held, LeaseRequest, LeaseState, LeaseVote, Membership, Node, Output, Time,
    choice::mix,
};

/// Microseconds of real time.
pub(super) type Micros = u64;
pub(super) const MS: Micros = 1000;
pub(super) const STEP: Micros = 10 * MS;

pub(super) struct Random(u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in `count` calls.
    pub(super) fn once_in(&mut self, count: u64) -> bool {
        count > 0 && self.below(count) == 0
    }
}

pub(super) fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, last).into()
}

pub(super) fn name(index: usize) -> Node {
    format!("n{index}").into()
}

pub(super) enum Happening {
    Arrives(Datagram),
    /// A request arrives at the API server.
    Asked(usize, u64, Time, LeaseRequest<u64>),
    /// An answer of the API server arrives; none: the request was refused, or lost.
    Answered(usize, u64, Time, Option<LeaseState<u64>>, bool),
}

/// A step of an agent.
pub(super) enum Action {
    Keep(BTreeSet<IpAddr>),
    Renew(Time),
    Set(BTreeSet<IpAddr>),
    Send(Datagram),
    Request(LeaseRequest<u64>),
}

pub(super) struct Agent {
    pub(super) announcer: Announcer,
    pub(super) lease: LeaseVote<u64>,
    pub(super) written: Option<u64>,
    /// The state of the objects that it has seen.
    pub(super) seen: Option<u64>,
    pub(super) is_waiting: bool,
    pub(super) actions: VecDeque<Action>,
    pub(super) inbox: VecDeque<Datagram>,
}

pub(super) struct Machine {
    pub(super) booted: Micros,
    /// Parts per million by which the clock is fast.
    pub(super) rate: i64,
    pub(super) map: BTreeSet<IpAddr>,
    pub(super) deadline: Time,
    pub(super) agent: Option<Agent>,
    pub(super) run: u64,
    pub(super) stalled_until: Micros,
    pub(super) starts_at: Option<Micros>,
    pub(super) is_on_net: bool,
    pub(super) sees_api: bool,
}

impl Machine {
    pub(super) fn clock(&self, now: Micros) -> Time {
        let since = now.saturating_sub(self.booted);
        let drift = i128::from(since) * i128::from(self.rate) / 1_000_000;
        Time::from_micros(u64::try_from(i128::from(since) + drift).unwrap_or_default() + 1_000_000)
    }

    /// The addresses for which it answers.
    fn answered(&self, now: Micros) -> Option<&BTreeSet<IpAddr>> {
        (self.clock(now) < self.deadline).then_some(&self.map)
    }
}

/// Rates of faults: once in so many chances; 0 is never.
#[derive(Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) loss: u64,
    pub(super) delay: u64,
    pub(super) stall: u64,
    pub(super) death: u64,
    pub(super) boot: u64,
    pub(super) partition: u64,
    pub(super) group: u64,
    pub(super) candidates: u64,
}

pub(super) struct Model {
    pub(super) seed: u64,
    pub(super) random: Random,
    pub(super) now: Micros,
    pub(super) machines: Vec<Machine>,
    pub(super) queue: BTreeMap<(Micros, u64), Happening>,
    pub(super) queued: u64,
    pub(super) lease: Option<LeaseState<u64>>,
    pub(super) version: u64,
    pub(super) writes: u64,
    pub(super) is_api_up: bool,
    pub(super) faults: Faults,
    pub(super) nodes: BTreeSet<Node>,
    pub(super) wished: BTreeMap<IpAddr, Candidates>,
    /// Number of changes of the two.
    pub(super) changes: u64,
    /// Machines on the other side of a partition.
    pub(super) apart: BTreeSet<usize>,
    /// Ways between two machines that are cut, in one direction.
    pub(super) cut: BTreeSet<(usize, usize)>,
    pub(super) trace: VecDeque<String>,
}

impl Model {
    pub(super) fn new(seed: u64, count: usize, addresses: u8, faults: Faults) -> Self {
        let mut random = Random(seed);
        let machines = (0..count)
            .map(|_| Machine {
                booted: 0,
                rate: i64::try_from(random.below(20_001)).unwrap_or_default() - 10_000,
                map: BTreeSet::new(),
                deadline: Time::ZERO,
                agent: None,
                run: 0,
                stalled_until: 0,
                starts_at: Some(random.below(3000) * MS),
                is_on_net: true,
                sees_api: true,
            })
            .collect();
        Self {
            seed,
            random,
            now: 0,
            machines,
            queue: BTreeMap::new(),
            queued: 0,
            lease: None,
            version: 0,
            writes: 0,
            is_api_up: true,
            faults,
            nodes: (0..count).map(name).collect(),
            wished: (1..=addresses).map(|last| (address(last), Candidates::All)).collect(),
            changes: 0,
            apart: BTreeSet::new(),
            cut: BTreeSet::new(),
            trace: VecDeque::new(),
        }
    }

    fn note(&mut self, text: &str) {
        self.trace.push_back(format!("{:>9} {text}", self.now / MS));
        if self.trace.len() > 120 {
            self.trace.pop_front();
        }
    }

    fn later(&mut self, delay: Micros, happening: Happening) {
        self.queued += 1;
        self.queue.insert((self.now + delay, self.queued), happening);
    }

    fn delay(&mut self) -> Micros {
        let rare = self.random.once_in(self.faults.delay);
        if rare { self.random.below(4000) * MS } else { 100 + self.random.below(5 * MS) }
    }

    pub(super) fn holders(&self, addr: &IpAddr) -> Vec<usize> {
        let answers = |machine: &Machine| machine.answered(self.now).is_some_and(|map| map.contains(addr));
        (0..self.machines.len()).filter(|i| answers(&self.machines[*i])).collect()
    }

    fn check(&self) {
        let answered: Vec<_> = self.machines.iter().filter_map(|machine| machine.answered(self.now)).collect();
        for (at, one) in answered.iter().enumerate() {
            let Some(addr) = answered[..at].iter().find_map(|other| other.intersection(one).next()) else { continue };
            for line in &self.trace {
                eprintln!("{line}");
            }
            let holders = self.holders(addr);
            panic!("seed {}: at {} ms nodes {holders:?} answer for {addr}", self.seed, self.now / MS);
        }
    }

    pub(super) fn run_for(&mut self, time: Micros) {
        let end = self.now + time;
        while self.now < end {
            let next = self.now + STEP;
            while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= next) {
                let ((at, _), happening) = entry.remove_entry();
                self.now = self.now.max(at);
                self.happen(happening);
                self.check();
            }
            self.now = next;
            self.make_faults();
            for i in 0..self.machines.len() {
                self.run_machine(i);
                self.check();
            }
        }
    }

    fn make_faults(&mut self) {
        let faults = self.faults;
        let count = self.machines.len();
        let i = usize::try_from(self.random.below(count as u64)).unwrap_or_default();
        if self.random.once_in(faults.death) {
            self.kill(i);
            let delay = self.random.below(5000) * MS;
            self.machines[i].starts_at = Some(self.now + delay);
        }
        if self.random.once_in(faults.boot) {
            self.power_off(i);
            let delay = self.random.below(5000) * MS;
            self.machines[i].starts_at = Some(self.now + delay);
        }
        if self.random.once_in(faults.partition) {
            let other = usize::try_from(self.random.below(count as u64)).unwrap_or_default();
            match self.random.below(8) {
                0 => self.apart = (0..count).filter(|_| self.random.once_in(2)).collect(),
                1 => self.apart.clear(),
                2 => self.is_api_up = !self.is_api_up,
                3 => self.cut.extend([(i, other), (other, i)]),
                4 => _ = self.cut.insert((i, other)),
                5 => self.cut.clear(),
                _ => self.machines[i].sees_api = !self.machines[i].sees_api,
            }
            let apart = format!("apart {:?}, cut {:?}, API {}", self.apart, self.cut, self.is_api_up);
            self.note(&apart);
        }
        if self.random.once_in(faults.group) {
            self.changes += 1;
            let node = name(i);
            if !self.nodes.remove(&node) {
                self.nodes.insert(node);
            }
            if self.random.once_in(4) {
                self.nodes = (0..count).filter(|_| self.random.once_in(2)).map(name).collect();
            }
            let nodes = format!("nodes {:?}", self.nodes);
            self.note(&nodes);
        }
        if self.random.once_in(faults.candidates) {
            self.changes += 1;
            let last = 1 + u8::try_from(self.random.below(3)).unwrap_or_default();
            let some = (0..count).filter(|_| self.random.once_in(2)).map(name).collect();
            let candidates = if self.random.once_in(2) { Candidates::All } else { Candidates::Of(some) };
            self.wished.insert(address(last), candidates);
        }
    }

    pub(super) fn kill(&mut self, i: usize) {
        self.machines[i].agent = None;
        self.note(&format!("agent {i} dies"));
    }

    pub(super) fn power_off(&mut self, i: usize) {
        self.kill(i);
        let now = self.now;
        let machine = &mut self.machines[i];
        (machine.map, machine.deadline, machine.booted) = (BTreeSet::new(), Time::ZERO, now);
    }

    pub(super) fn start(&mut self, i: usize) {
        let random = self.random.next();
        let machine = &mut self.machines[i];
        let clock = machine.clock(self.now);
        let kept = Held { addresses: machine.map.clone(), until: machine.deadline };
        machine.run += 1;
        machine.agent = Some(Agent {
            announcer: Announcer::new(name(i), random, kept, clock),
            lease: LeaseVote::new(name(i)),
            written: None,
            seen: None,
            is_waiting: false,
            actions: VecDeque::new(),
            inbox: VecDeque::new(),
        });
        self.note(&format!("agent {i} starts"));
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrives(datagram) => {
                let index = |node: &Node| node[1..].parse::<usize>().expect("a number");
                let (from, to) = (index(&datagram.from), index(&datagram.to));
                let is_cut = self.apart.contains(&from) != self.apart.contains(&to) || self.cut.contains(&(from, to));
                let machine = &mut self.machines[to];
                if is_cut || !machine.is_on_net {
                    return;
                }
                if let Some(agent) = &mut machine.agent {
                    agent.inbox.push_back(datagram);
                    self.run_machine(to);
                }
            }
            Happening::Asked(i, run, start, request) => {
                let is_lost = !self.is_api_up || !self.machines[i].sees_api;
                let (answer, is_write) = match request {
                    _ if is_lost => (None, true),
                    LeaseRequest::Read => {
                        let may_begin = |agent: &Agent, clock| agent.announcer.may_begin(clock);
                        if self.lease.is_none()
                            && self.machines[i]
                                .agent
                                .as_ref()
                                .is_some_and(|agent| agent.announcer.membership().is_some() || may_begin(agent, start))
                        {
                            let known = self.machines[i].agent.as_ref().and_then(|agent| agent.announcer.membership());
                            let membership = known.cloned().unwrap_or_else(|| Membership::first(name(i)));
                            self.version += 1;
                            let state =
                                LeaseState { version: self.version, holder: None, membership: Some(membership) };
                            self.lease = Some(state);
                        }
                        (self.lease.clone(), false)
                    }
                    LeaseRequest::Write(state) => {
                        let is_right = self.lease.as_ref().is_some_and(|lease| lease.version == state.version);
                        if is_right {
                            self.version += 1;
                            self.writes += 1;
                            self.note(&format!("node {i} writes {:?} {:?}", state.holder, state.membership));
                            self.lease = Some(LeaseState { version: self.version, ..state });
                        }
                        (self.lease.clone().filter(|_| is_right), true)
                    }
                };
                let delay = self.delay();
                self.later(delay, Happening::Answered(i, run, start, answer, is_write));
            }
            Happening::Answered(i, run, start, answer, is_write) => {
                let clock = self.machines[i].clock(self.now);
                let is_lost = !self.is_api_up || !self.machines[i].sees_api;
                if self.machines[i].run != run {
                    return;
                }
                let Some(agent) = &mut self.machines[i].agent else { return };
                agent.is_waiting = false;
                let Some(state) = answer.filter(|_| !is_lost) else { return agent.lease.forget() };
                agent.written = state.membership.as_ref().map(|membership| membership.version);
                if let Some(membership) = state.membership.clone() {
                    agent.announcer.set_membership(membership, clock);
                }
                if is_write {
                    agent.lease.written(state, start, clock);
                } else {
                    agent.lease.read(state, clock);
                }
                let until = agent.lease.until();
                agent.announcer.set_lease(until, clock);
                self.run_machine(i);
            }
        }
    }

    /// Performs what the agent of a machine has to do now.
    fn run_machine(&mut self, i: usize) {
        if self.machines[i].starts_at.is_some_and(|at| at <= self.now) {
            self.machines[i].starts_at = None;
            self.start(i);
        }
        loop {
            let machine = &self.machines[i];
            if machine.agent.is_none() || self.now < machine.stalled_until {
                return;
            }
            if !self.perform(i) {
                return;
            }
            let clock = self.machines[i].clock(self.now);
            let sees_api = self.is_api_up && self.machines[i].sees_api;
            // An agent may read several datagrams before it answers the first. Agents read before they judge; the rules
            // are safe without that.
            let is_poll_first = self.faults.stall > 0 && self.random.once_in(2);
            let most = 1 + self.random.below(3);
            let Some(agent) = &mut self.machines[i].agent else { return };
            if sees_api && agent.seen != Some(self.changes) {
                agent.seen = Some(self.changes);
                agent.announcer.set_nodes(self.nodes.clone());
                agent.announcer.set_wished(self.wished.clone());
            }
            let is_due = agent.announcer.next_poll(clock) <= clock;
            if !(agent.inbox.is_empty() || is_due && is_poll_first) {
                for _ in 0..most {
                    let Some(datagram) = agent.inbox.pop_front() else { break };
                    agent.announcer.receive(datagram, clock);
                }
            } else if is_due {
                agent.announcer.poll(clock);
            } else if !agent.is_waiting {
                if agent.lease.is_spare(clock) {
                    agent.lease.give_up();
                    agent.announcer.set_lease(Time::ZERO, clock);
                }
                let is_needed = agent.announcer.needs_lease(clock);
                let written = agent.written;
                let proposal = agent.announcer.proposal(written, clock).filter(|_| written.is_some());
                let request = agent.lease.request(is_needed, proposal, clock);
                let Output { held, datagrams } = agent.announcer.take_output(clock);
                agent.plan(held, datagrams);
                let Some(request) = request else {
                    self.perform(i);
                    return;
                };
                agent.is_waiting = true;
                agent.actions.push_back(Action::Request(request));
                continue;
            } else {
                return;
            }
            let Output { held, datagrams } = agent.announcer.take_output(clock);
            agent.plan(held, datagrams);
        }
    }

    /// Performs the actions of an agent. False if it stalls or dies in between.
    fn perform(&mut self, i: usize) -> bool {
        loop {
            if self.random.once_in(self.faults.stall) {
                self.machines[i].stalled_until = self.now + self.random.below(4000) * MS;
                self.note(&format!("agent {i} stalls"));
                return false;
            }
            if self.random.once_in(self.faults.death.saturating_mul(20)) {
                self.kill(i);
                let delay = self.random.below(3000) * MS;
                self.machines[i].starts_at = Some(self.now + delay);
                return false;
            }
            let machine = &mut self.machines[i];
            let clock = machine.clock(self.now);
            let Some(action) = machine.agent.as_mut().and_then(|agent| agent.actions.pop_front()) else { return true };
            match action {
                Action::Keep(addresses) => machine.map.retain(|addr| addresses.contains(addr)),
                Action::Renew(until) => machine.deadline = until,
                Action::Set(addresses) => {
                    if machine.map != addresses {
                        machine.map = addresses;
                        let text = format!("node {i} answers for {:?}", self.machines[i].map);
                        self.note(&text);
                    }
                }
                Action::Send(datagram) => {
                    if !machine.is_on_net || self.random.once_in(self.faults.loss) {
                        continue;
                    }
                    if self.random.once_in(self.faults.loss) {
                        let delay = self.delay() * 3;
                        self.later(delay, Happening::Arrives(datagram.clone()));
                    }
                    let delay = self.delay();
                    self.later(delay, Happening::Arrives(datagram));
                }
                Action::Request(request) => {
                    let run = machine.run;
                    let delay = self.delay();
                    self.later(delay, Happening::Asked(i, run, clock, request));
                }
            }
            self.check();
        }
    }

    /// Runs until every address has a holder; returns the time that it took.
    pub(super) fn settle(&mut self, limit: Micros) -> Micros {
        let start = self.now;
        let addresses: Vec<IpAddr> = self.wished.keys().copied().collect();
        while addresses.iter().any(|addr| self.holders(addr).is_empty()) {
            self.run_for(STEP);
            if self.now - start > limit {
                for line in &self.trace {
                    eprintln!("{line}");
                }
                panic!("seed {}: an address has no holder after {} ms", self.seed, limit / MS);
            }
        }
        self.now - start
    }
}

impl Agent {
    fn plan(&mut self, held: Held, datagrams: Vec<Datagram>) {
        let Held { addresses, until } = held;
        self.actions.push_back(Action::Keep(addresses.clone()));
        self.actions.push_back(Action::Renew(until));
        self.actions.push_back(Action::Set(addresses));
        self.actions.extend(datagrams.into_iter().map(Action::Send));
    }
}

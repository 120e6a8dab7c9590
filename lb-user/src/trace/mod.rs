//! Text of `beeline trace`: the events that `select` reports for a client and a destination, over a snapshot of the
//! maps. Pure; nothing here decides.

mod client;
mod snapshot;
mod way;

use std::{cell::RefCell, collections::BTreeSet, net::SocketAddr};

use lb_common::{
    AffinityOutcome, Caller as _, Cause, Choice, FrontendKey, Hold, Kind, List, ListReason, Match, NodeAddr,
    NodeAddrFlags, Origin, PodMode, Proto, Reason, Scheduler, SelectEvent, ServiceEntry, ServiceFlags, Slot, SlotKey,
    State as _, Tables as _, Verdict, Vip, errno, refusal, select_observed, vip,
};
use lb_core::{
    host_ports,
    port_ranges::{PortSpan, frontend_text},
    text::number,
};

use crate::inspect::{self, pod_modes};

pub(crate) use client::TraceClient;
pub(crate) use snapshot::Snapshot;
pub(crate) use way::Way;

#[cfg(test)]
mod tests;

/// Backends that are listed one by one.
const MAX_LISTED: usize = 20;

/// Result of a trace.
pub(crate) struct Traced {
    /// Lines of text.
    pub(crate) text: String,
    /// The verdict. If several backends may be chosen, it has one of them.
    pub(crate) verdict: Verdict,
    /// Ids of the backends that may be chosen: one if affinity, the scheduler or the list decides, else the first ones
    /// of the list.
    pub(crate) backends: Vec<u32>,
}

/// Traces a call or a packet of `client` to `destination`.
pub(crate) fn trace(snapshot: &Snapshot, client: &TraceClient, destination: SocketAddr, proto: Proto) -> Traced {
    let dest = FrontendKey::new(destination.ip().into(), destination.port(), proto);
    let choose = |client: TraceClient| Choosing { snapshot, client, destination, dest }.trace();
    let Some(pod) = snapshot.pod_of(client) else { return choose(*client) };
    let (mode, label) = (PodMode::from_number(pod.path), pod_modes::labelled(pod).name());
    let head = format!(
        "  mode       {}, by the label of the {label}: pod {}/{}\n",
        pod_modes::mode_name(pod),
        pod.namespace,
        pod.name
    );
    let traced = match mode {
        // The socket path leaves the socket alone; the packets meet tc at the pod's link.
        Some(PodMode::Packet) => choose(client.at_pod_link(pod, &dest.addr)),
        _ if client.sends_packets() => {
            Traced { text: LEFT_ALONE.to_owned(), verdict: Verdict::NotService, backends: Vec::new() }
        }
        _ => choose(client.bypassed()),
    };
    Traced { text: head + &traced.text, ..traced }
}

const LEFT_ALONE: &str = "  verdict    left alone: sockets and packets of this pod go on unchanged\n";

const OWN_ADDRESS: &str = "  note       an interface of this node has the address: a process of the node that listens \
                           there goes first\n";

const UDP_CONNECT: &str = "  note       connect() succeeds, by beeline.io/udp-connect: the datagrams go on as packets, \
                           which are refused until an endpoint is ready\n";

const UNKNOWN_SOURCE: &str = "  note       the Service has source ranges; the source address of this socket is not \
                              known yet\n  verdict    the call goes on unchanged, and its packets are checked where \
                              they arrive\n";

const HIDDEN: &str = "  hint       a clear bit of FRONTEND_BITS hides its frontend: beeline doctor names the cure\n";

/// A client and its destination.
struct Choosing<'a> {
    snapshot: &'a Snapshot,
    client: TraceClient,
    /// As typed.
    destination: SocketAddr,
    dest: FrontendKey,
}

impl Choosing<'_> {
    fn trace(&self) -> Traced {
        let events = RefCell::new(Vec::new());
        let verdict = select_observed(self.snapshot, &self.client, &self.dest, 0, &|event| {
            let mut events = events.borrow_mut();
            if event == SelectEvent::SecondLook {
                // A second look starts again from the frontend.
                events.clear();
            }
            events.push(event);
        });
        let verdict = match (verdict, self.refusal()) {
            (verdict, Some(cause)) if verdict.is_not_service() => Verdict::Refused(0, cause),
            (verdict, _) => verdict,
        };
        let (text, backends) = self.describe(&events.into_inner());
        Traced { text, verdict, backends }
    }

    /// The cause to refuse a socket that finds no Service.
    fn refusal(&self) -> Option<Cause> {
        if self.client.sends_packets() { None } else { refusal(self.snapshot, &self.client, &self.dest) }
    }

    /// Formats events, one or more lines each. Returns the backends that may be chosen too.
    fn describe(&self, events: &[SelectEvent]) -> (String, Vec<u32>) {
        let (mut text, mut backends) = (String::new(), Vec::new());
        let (mut service_port, mut list_in_use) = (0, List::Cluster);
        for event in events {
            match *event {
                SelectEvent::Frontend { frontend, matched } => {
                    service_port = frontend.service;
                    let kind = Kind::from_number(frontend.kind).map_or("unknown kind", Kind::name);
                    let name = inspect::name_of(&self.snapshot.dump, frontend.service);
                    let by = if matched == Match::PortRange { self.range() } else { String::new() };
                    text += &format!("  frontend   {kind} of {name}{by}\n");
                    let address = self.snapshot.dump.frontends.get(&self.dest.address());
                    if self.client.origin() == Origin::Node
                        && address.is_some_and(|address| address.kind == Kind::OwnAddress as u8)
                    {
                        text += OWN_ADDRESS;
                    }
                }
                SelectEvent::List { len: 0, .. } => {}
                SelectEvent::List { list, reason, .. } => {
                    list_in_use = list;
                    text += &self.list(service_port, list, reason);
                }
                SelectEvent::Affinity { entry, outcome, .. } => {
                    text += &self.affinity(service_port, entry, outcome);
                }
                SelectEvent::Scheduled { .. }
                | SelectEvent::Compared(_)
                | SelectEvent::Avoided(_)
                | SelectEvent::Ejected { .. }
                | SelectEvent::AllEjected { .. }
                | SelectEvent::Trial { .. } => {}
                SelectEvent::NoService(_) | SelectEvent::SlotMissing => {
                    text += "  note       an entry is missing: the agent is changing the list\n";
                }
                SelectEvent::SourceRange { .. } | SelectEvent::SecondLook => {}
                SelectEvent::UnknownSource => text += UNKNOWN_SOURCE,
                SelectEvent::Bypassed => text += LEFT_ALONE,
                SelectEvent::NoFrontend => text += &self.no_service(),
                SelectEvent::NotServedAt { frontend, node_addr } => {
                    text += &self.no_service();
                    let name = inspect::name_of(&self.snapshot.dump, frontend.service);
                    let kind = Kind::from_number(frontend.kind).unwrap_or(Kind::NodePort);
                    let left_out = match kind {
                        Kind::HostPort => "no interface of this node has the address",
                        _ => "not at this address (--nodeport-addresses)",
                    };
                    let is_host_only = |own: NodeAddr| own.flags & NodeAddrFlags::HOST_ONLY != 0;
                    let is_served =
                        |own: NodeAddr| kind == Kind::HostPort || own.flags & NodeAddrFlags::NO_NODE_PORTS == 0;
                    let why = match node_addr {
                        Some(own) if is_host_only(own) && is_served(own) => "a pod's loopback address is its own",
                        _ => left_out,
                    };
                    let port = if kind == Kind::HostPort { "hostPort" } else { "NodePort" };
                    text += &format!("  hint       the port is a {port} of {name}, but {why}\n");
                }
                SelectEvent::Refused(service, cause) => {
                    text += &self.refused(cause);
                    if self.connects_all_the_same(service, cause) {
                        text += UDP_CONNECT;
                    }
                }
                SelectEvent::Chosen(choice) => {
                    let (lines, possible) = self.chosen(&choice, list_in_use);
                    text += &lines;
                    backends = possible;
                }
            }
        }
        (text, backends)
    }

    /// Names the port range of the destination.
    fn range(&self) -> String {
        let has = |(addr, proto, span, _): &(_, u8, PortSpan, _)| {
            (*addr, *proto) == (self.dest.addr, self.dest.proto) && span.contains(self.dest.port)
        };
        let range = inspect::ranges(&self.snapshot.dump).into_iter().find(has);
        range.map_or_else(String::new, |(.., span, _)| format!(", by its port range {span}"))
    }

    fn service(&self, id: u32) -> ServiceEntry {
        self.snapshot.service(id).unwrap_or_default()
    }

    /// True for a port of a pod with hostPorts.
    fn is_pod(&self, id: u32) -> bool {
        self.snapshot.dump.names.get(&id).is_some_and(|port| host_ports::is_pod(&port.service))
    }

    /// Returns the slots of a list, by index.
    fn slots(&self, service: u32, list: List) -> Vec<Slot> {
        let range = SlotKey::new(service, list, 0)..=SlotKey::new(service, list, u32::MAX);
        self.snapshot.dump.slots.range(range).map(|(_, slot)| *slot).collect()
    }

    fn list(&self, service: u32, list: List, reason: ListReason) -> String {
        let name = if list == List::Local { "local" } else { "cluster" };
        let why = match reason {
            ListReason::InternalLocal if self.service(service).flags & ServiceFlags::REDIRECTED != 0 => {
                ", of the Service that takes the clients by beeline.io/redirect-from"
            }
            ListReason::InternalLocal => ", by internalTrafficPolicy Local",
            ListReason::ExternalLocal if self.is_pod(service) => "",
            ListReason::ExternalLocal => ", by externalTrafficPolicy Local",
            ListReason::OnNode => ", as always for callers on this node",
            ListReason::InternalCluster | ListReason::ExternalCluster => "",
        };
        let is_narrowed = list == List::Cluster && self.service(service).flags & ServiceFlags::PREFERS_LOCAL != 0;
        let narrowed = if is_narrowed { ", of this node only by beeline.io/prefer-local" } else { "" };
        let backends: BTreeSet<u32> = self.slots(service, list).iter().map(|slot| slot.backend).collect();
        let scheduler = Scheduler::from_number(self.service(service).scheduler).unwrap_or_default();
        format!(
            "  list       {name}{why}{narrowed}: {}\n  scheduler  {}: {}\n",
            number(backends.len(), "backend"),
            scheduler.name(),
            scheduler.rule()
        )
    }

    fn affinity(&self, service: u32, entry: Option<lb_common::Affinity>, outcome: AffinityOutcome) -> String {
        let seconds = self.service(service).affinity_seconds;
        let outcome = match outcome {
            AffinityOutcome::Kept => "keeps it",
            AffinityOutcome::New => "has no backend yet",
            AffinityOutcome::Expired => "time-out is over",
            AffinityOutcome::NotInList => "it has left the list",
        };
        let state = entry.map_or_else(
            || format!("this client {outcome}"),
            |entry| {
                let idle = self.client.now().saturating_sub(entry.used) / 1_000_000_000;
                format!("this client got backend {} {idle} s ago: {outcome}", entry.backend)
            },
        );
        format!("  affinity   ClientIP, {seconds} s after the last connect; {state}\n")
    }

    /// Describes a choice. Returns the backends that may be chosen too.
    fn chosen(&self, choice: &Choice, list: List) -> (String, Vec<u32>) {
        let mut seen = BTreeSet::new();
        let mut slots = self.slots(choice.service, list);
        slots.retain(|slot| seen.insert(slot.backend));
        let mut text = self.backends(choice.service, list, &slots);
        let scheduler = Scheduler::from_number(self.service(choice.service).scheduler).unwrap_or_default();
        let is_by_chance = scheduler.is_by_chance();
        let words = match choice.reason {
            // Another backend may be chosen at the next connect.
            Reason::Ejected if is_by_chance => "",
            reason => reason.words(),
        };
        if !words.is_empty() {
            text += &format!("  choice     {}, {words}\n", SocketAddr::new(choice.addr.to_ip(), choice.port));
        }
        text += &match self.client.origin() {
            Origin::Node => {
                format!("  verdict    goes there; the application sees {} as its peer\n", self.destination)
            }
            // The address that the backend sees depends on the way to it.
            Origin::Outside => "  verdict    goes there\n".to_owned(),
        };
        let by_chance = slots.iter().map(|slot| slot.backend).take(MAX_LISTED);
        (text, if words.is_empty() { by_chance.collect() } else { vec![choice.backend] })
    }

    fn backends(&self, service: u32, list: List, slots: &[Slot]) -> String {
        let len = self.service(service).len(list);
        let is_weighted = slots.iter().any(|slot| slot.weight > 1);
        let mut text = String::new();
        for slot in slots.iter().take(MAX_LISTED) {
            let port = self.snapshot.backend(slot.backend).map_or(slot.port, |of| of.port_for(self.dest.port));
            let addr = SocketAddr::new(slot.addr.to_ip(), port);
            let share = f64::from(slot.weight) * 100.0 / f64::from(len.max(1));
            let weight = if is_weighted { format!("  weight {}", slot.weight) } else { String::new() };
            let open = usize::try_from(self.snapshot.open_sockets(slot.backend)).unwrap_or(usize::MAX);
            let ejected = self.ejected(service, list, slot.backend);
            text += &format!("  backend    {addr}  {share:.1} %{weight}  {}{ejected}\n", number(open, "open socket"));
        }
        if slots.len() > MAX_LISTED {
            text += &format!("             and {} more\n", slots.len() - MAX_LISTED);
        }
        text
    }

    /// Describes what the client's own failed connects mean for a backend; empty for nothing.
    fn ejected(&self, service: u32, list: List, backend: u32) -> String {
        let eject = self.service(service).eject;
        let Some(client) = self.client.ejection_key(service).filter(|_| eject.is_on()) else { return String::new() };
        let now = self.client.now();
        match self.snapshot.hold(&client, backend, eject.most(list), now) {
            Hold::Free => String::new(),
            Hold::Trial => "  ejected until now: one connect of this client tries it".to_owned(),
            Hold::Held => {
                let place = self.snapshot.ejections.get(&client).and_then(|seen| seen.place(backend));
                let left = place.map_or(0, |place| place.until.saturating_sub(now).div_ceil(1_000_000_000));
                format!("  ejected for {left} s more: connects of this client failed")
            }
        }
    }

    /// True if a connect() succeeds in spite of the refusal.
    fn connects_all_the_same(&self, service: u32, cause: Cause) -> bool {
        cause == Cause::NoEndpoints
            && self.service(service).flags & ServiceFlags::UDP_CONNECT != 0
            && !self.client.sends_packets()
            && !self.client.is_host()
    }

    fn refused(&self, cause: Cause) -> String {
        let reason = match cause {
            Cause::NoEndpoints => "the service port has no endpoint that is ready, on any node",
            Cause::NoLocalEndpoints => "the traffic policy is Local, and no endpoint is on this node",
            Cause::SourceRange => "the client is in none of spec.loadBalancerSourceRanges",
            Cause::UnknownPort => "no Service has this port of the cluster IP",
            Cause::UnknownClusterIp => "the address is in a range of cluster IPs, and no Service has it",
        };
        let verdict = match (self.client.sends_packets(), cause) {
            (false, _) => {
                let (name, text) = errno::name_and_text(cause.errno()).unwrap_or_default();
                format!("refused: the application sees {name} (\"{text}\"; EPERM on kernels before 5.18)")
            }
            (true, Cause::NoEndpoints | Cause::UnknownPort) => {
                "rejected: the client gets a TCP reset, or ICMP port unreachable".to_owned()
            }
            (true, _) => "dropped: the client gets no answer".to_owned(),
        };
        format!("  reason     {reason}\n  verdict    {verdict}\n")
    }

    /// True if the maps have a frontend for the destination that a clear bit of `FRONTEND_BITS` hides.
    fn is_hidden(&self) -> bool {
        let (dump, dest) = (&self.snapshot.dump, &self.dest);
        let has_frontend = || [*dest, dest.node_port()].iter().any(|key| dump.frontends.contains_key(key));
        let may_have = dump.may_have(dest) || dump.may_have(&dest.address());
        !may_have && (has_frontend() || dump.port_range(dest).is_some())
    }

    fn no_service(&self) -> String {
        let verdict = match (self.client.sends_packets(), vip(self.snapshot, &self.dest)) {
            (false, _) => "the call goes on unchanged",
            (true, None) => "packets go on unchanged",
            (true, Some(Vip::Cluster)) => {
                "packets are rejected, since the address is a cluster IP (TCP reset, or ICMP port unreachable)"
            }
            (true, Some(Vip::Unallotted)) => {
                "packets are rejected, since no Service has this cluster IP (ICMP host unreachable)"
            }
            (true, Some(Vip::External)) => {
                "packets go where the routes lead them, and are rejected if that is back (TCP reset, or ICMP port \
                 unreachable)"
            }
        };
        let mut text = match self.refusal() {
            Some(cause) => self.refused(cause),
            None => format!("  verdict    no Service answers here: {verdict}\n"),
        };
        if self.is_hidden() {
            return text + HIDDEN;
        }
        let frontends = self.snapshot.dump.frontends.keys();
        let single = frontends.filter(|other| other.addr == self.dest.addr && !other.is_address());
        let ranges = inspect::ranges(&self.snapshot.dump).into_iter().filter(|(addr, ..)| *addr == self.dest.addr);
        let ranges = ranges.map(|(addr, proto, span, _)| frontend_text(addr, proto, span));
        let other_ports: Vec<_> = single.map(ToString::to_string).chain(ranges).take(5).collect();
        if !other_ports.is_empty() {
            text += &format!("  hint       the address is a VIP, with other ports: {}\n", other_ports.join(", "));
        }
        text
    }
}

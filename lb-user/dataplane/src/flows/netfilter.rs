//! Exchange of flows with netfilter: connections that netfilter translates stay with it when programs are attached to a
//! device, and flows that the programs translate are handed to it at cleanup.

use std::{
    io,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::{
    Device, DeviceFlags, Flow, FlowFlags, FlowKey, Hook, Hop, Proto, Tuple,
    flow::{FlowState, Seen, Serial, expires_at, partner_key, state},
};

use super::{Flows, ends::FlowEnds};
use lb_kernel::{
    bpf::typed::TypedMap,
    clock,
    netfilter::{
        conntrack::{Connection, Conntrack},
        temporary_tables::{self, NOTRACK_TABLE},
    },
};

/// Interval of checks for open flows.
const LOOK: Duration = Duration::from_millis(200);
/// Upper bound of a packet's time in the kernel.
const IN_FLIGHT: Duration = Duration::from_millis(20);

/// The end of conntrack entries whose connections are over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OverEntries {
    /// Deletes them: netfilter would change the port of a flow of ours with the same tuple at the backend. Right only
    /// while the programs take first packets: otherwise a client that connects anew from the same port gets an entry
    /// with the same number (see [`Connection::id`]), and loses it.
    Delete,
    /// Leaves them to their timeout.
    Keep,
}

/// Adds the connections that netfilter translates to `FLOWS`, so that the programs leave them alone, and begin no flow
/// with the same tuple at the backend. Returns the number of connections left to netfilter.
pub(crate) fn leave_to_netfilter(directory: &Path, over: OverEntries) -> Result<usize> {
    let Some(mut conntrack) = Conntrack::open().context("asking netfilter")? else { return Ok(0) };
    let connections = conntrack.list_dnat().context("listing the connections that netfilter translates")?;
    let (flows, ends) = (Flows::open(directory)?, FlowEnds::open(directory)?);
    let now = clock::monotonic_ns();
    let mut left = 0;
    // Open connections first: a flow that begins before its entry may take the port of one.
    for connection in connections.iter().filter(|connection| is_wanted(connection)) {
        // `add` keeps existing flows, which are ours.
        let entries = entries(connection, now);
        ends.mark(entries.iter().map(|(key, _)| key))?;
        for (key, flow) in entries {
            flows.map.add(&key, &flow).context("leaving a connection to netfilter")?;
        }
        left += 1;
    }
    for connection in connections.iter().filter(|connection| connection.is_closed && over == OverEntries::Delete) {
        conntrack.delete_listed(connection).context("having netfilter forget what is over")?;
    }
    Ok(left)
}

/// True if netfilter translates a connection now, or cannot be asked.
pub(crate) fn is_translating() -> bool {
    Conntrack::open().map_or(true, |conntrack| {
        conntrack.is_some_and(|mut conntrack| conntrack.list_dnat().map_or(true, |all| all.iter().any(is_wanted)))
    })
}

fn is_wanted(connection: &Connection) -> bool {
    !connection.is_closed && Proto::from_number(connection.proto.into()).is_some()
}

/// Returns the entries of both directions.
fn entries(connection: &Connection, now: u64) -> [(FlowKey, Flow); 2] {
    let Connection { proto, original: dialled, reply, seen_reply, .. } = *connection;
    let reverse = if seen_reply { Seen::ANY } else { 0 };
    // The hook that sees the replies.
    let (hook, partner) =
        if reply.dst == dialled.src { (Hook::Egress, FlowFlags::PARTNER_EGRESS) } else { (Hook::Ingress, 0) };
    let flow = Flow {
        to: connection.translated(),
        service: 0,
        backend: 0,
        flags: FlowFlags::NETFILTER | partner,
        forward: Seen::ANY,
        reverse,
        used: Serial::note(proto, 0, now, 0),
        hop: Hop::UNKNOWN,
    };
    let back = Flow { to: dialled.reversed(), flags: FlowFlags::NETFILTER | FlowFlags::REVERSE, ..flow };
    [(FlowKey::new(dialled, proto, Hook::Ingress), flow), (FlowKey::new(reply, proto, hook), back)]
}

/// Outcome of [`hand_over`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct HandOverReport {
    /// Flows that netfilter translates from now on.
    pub(crate) handed_over: usize,
    /// Flows that netfilter did not accept, and which end.
    pub(crate) ended: usize,
    /// Error of the last flow that ended.
    pub(crate) why: Option<String>,
}

/// Conntrack entries that were added for flows of the programs: tuples and IP protocol numbers.
pub(crate) type Registered = foldhash::HashSet<(Tuple, u8)>;

/// Stops the programs from beginning flows: new connections go to netfilter. Before that, registers flows with
/// conntrack whose packets the programs redirect, since conntrack has never seen them. Otherwise netfilter may give a
/// connection the same tuple at the backend: the programs take its replies for theirs, or give it another port for as
/// long as they stay. [`unregister`] deletes the entries.
pub(crate) fn stop_new_flows(directory: &Path, flows: &Flows) -> Result<Registered> {
    // An error here occurs again in `hand_over`, which reports it.
    let mut conntrack = Conntrack::open().ok().flatten();
    let mut registered = Registered::default();
    if let Some(conntrack) = &mut conntrack {
        // Flows that begin meanwhile are registered in the next round; each round has fewer.
        let mut last = usize::MAX;
        loop {
            let new = register(conntrack, flows, &mut registered)?;
            if new > last / 2 || new == 0 {
                break;
            }
            last = new;
        }
    }
    let devices = TypedMap::<u32, Device>::open(directory, "DEVICES")?;
    let (keys, values): (Vec<u32>, Vec<Device>) = devices
        .read()?
        .into_iter()
        .map(|(index, device)| (index, Device { flags: device.flags | DeviceFlags::LEAVING, ..device }))
        .unzip();
    devices.put(&keys, &values).context("writing DEVICES")?;
    if let Some(conntrack) = &mut conntrack {
        register(conntrack, flows, &mut registered)?;
    }
    Ok(registered)
}

/// Adds flows that conntrack has never seen to it, except for those registered already. Returns how many were added.
fn register(conntrack: &mut Conntrack, flows: &Flows, registered: &mut Registered) -> Result<usize> {
    let of_client = |flags: u16| flags & (FlowFlags::REDIRECT | FlowFlags::REVERSE) == FlowFlags::REDIRECT;
    let is_over = |flow: &Flow| FlowState::of(flow.forward, flow.reverse) == FlowState::Closed;
    let is_unseen = |(_, flow): &(FlowKey, Flow)| of_client(flow.flags) && !is_over(flow);
    let mut new = 0;
    for (key, flow) in flows.read()?.into_iter().filter(is_unseen) {
        let (dialled, proto) = (flow.to, key.proto);
        let untranslated = Connection {
            proto,
            original: dialled,
            reply: dialled.reversed(),
            seen_reply: true,
            is_closed: false,
            id: 0,
        };
        // Conntrack rejects entries that it has.
        if !registered.contains(&(dialled, proto)) && conntrack.insert(&untranslated).is_ok() {
            registered.insert((dialled, proto));
            new += 1;
        }
    }
    Ok(new)
}

/// Deletes the entries of [`stop_new_flows`] from conntrack.
pub(crate) fn unregister(registered: &Registered) -> Result<()> {
    let Some(mut conntrack) = Conntrack::open().context("asking netfilter")? else { return Ok(()) };
    let mut deleted = registered.iter().map(|(tuple, proto)| conntrack.delete(tuple, *proto));
    deleted.try_for_each(|deleted| deleted).context("having netfilter forget flows")
}

/// Waits up to `timeout` until no flow is open. Returns how many still are.
pub(crate) fn drain(flows: &Flows, timeout: Duration) -> Result<usize> {
    let deadline = Instant::now() + timeout;
    loop {
        let open = open_flows(flows)?.len();
        let left = deadline.saturating_duration_since(Instant::now());
        if open == 0 || left.is_zero() {
            return Ok(open);
        }
        sleep(LOOK.min(left));
    }
}

/// Lists the open flows by their entries of the client's direction, and removes flows that are over: otherwise the
/// programs would take a connection of netfilter with the same tuple at the backend for that flow. Entries of
/// connections that netfilter translates stay: they keep the programs from giving their tuples away.
fn open_flows(flows: &Flows) -> Result<Vec<(FlowKey, Flow)>> {
    let (entries, now) = (flows.read()?, clock::monotonic_ns());
    let by_key: foldhash::HashMap<FlowKey, Flow> = entries.iter().copied().collect();
    let is_netfilters = |flow: &Flow| flow.flags & FlowFlags::NETFILTER != 0;
    let (mut kept, over): (Vec<_>, Vec<_>) = entries
        .into_iter()
        .partition(|(key, flow)| is_netfilters(flow) || is_open(key, flow, by_key.get(&partner_key(key, flow)), now));
    let over: Vec<FlowKey> = over.into_iter().map(|(key, _)| key).collect();
    flows.map.delete(&over).context("removing flows that are over")?;
    kept.retain(|(_, flow)| !is_netfilters(flow) && flow.flags & FlowFlags::REVERSE == 0 && flow.backend != 0);
    Ok(kept)
}

/// True if the flow is the programs' and not over.
fn is_open(key: &FlowKey, flow: &Flow, partner: Option<&Flow>, now: u64) -> bool {
    flow.flags & FlowFlags::NETFILTER == 0
        && expires_at(flow, partner, key.proto) > now
        && !matches!(state(flow, partner), FlowState::Closed | FlowState::TimeWait)
}

/// Hands the open flows to netfilter. No packet is lost, and none arrives untranslated.
///
/// Conntrack has seen packets that the kernel routes only after translation. Those entries must be deleted before it
/// accepts entries of the tuples before translation, and each packet would create them again. So the order is:
///
/// 1. Keep conntrack away from packets to and from backends (a table with `notrack`). The programs still translate
///    them.
/// 2. Add all flows to conntrack.
/// 3. Mark the flows in `FLOWS` as netfilter's: from now on the programs pass packets of clients. Packets that the
///    programs redirect have passed conntrack by: there the replies' direction is marked too, before the client's.
/// 4. Remove the table: netfilter translates packets of backends too, which the programs do not know any more.
pub(crate) fn hand_over(flows: &Flows) -> Result<HandOverReport> {
    let mut report = HandOverReport::default();
    let open = open_flows(flows)?;
    let Some(mut conntrack) = Conntrack::open().context("asking netfilter")? else {
        return Ok(HandOverReport { ended: open.len(), why: Some("the kernel has no netfilter".to_owned()), ..report });
    };
    let is_seen = |flow: &Flow| flow.flags & FlowFlags::REDIRECT == 0;
    let seen: Vec<_> = open.iter().filter(|(_, flow)| is_seen(flow)).map(|(key, flow)| (flow.to, key.proto)).collect();
    if let Err(error) = temporary_tables::add_notrack(&seen) {
        let why = format!("keeping conntrack away: {error}");
        return Ok(HandOverReport { ended: open.len(), why: Some(why), ..report });
    }
    sleep(IN_FLIGHT);
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut mark = |key, flow: Flow| {
        keys.push(key);
        values.push(Flow { flags: flow.flags | FlowFlags::NETFILTER, ..flow });
    };
    for (key, flow) in open {
        match put(&mut conntrack, &key, &flow) {
            Ok(()) => {
                let back = partner_key(&key, &flow);
                if !is_seen(&flow)
                    && let Some(partner) = flows.map.get(&back)?
                {
                    mark(back, partner);
                }
                mark(key, flow);
                report.handed_over += 1;
            }
            Err(error) => {
                report.ended += 1;
                report.why = Some(error.to_string());
            }
        }
    }
    flows.map.put(&keys, &values).context("writing FLOWS")?;
    sleep(IN_FLIGHT);
    temporary_tables::remove(NOTRACK_TABLE)
        .with_context(|| format!("removing the table {NOTRACK_TABLE} from netfilter"))?;
    sleep(IN_FLIGHT);
    Ok(report)
}

fn put(conntrack: &mut Conntrack, key: &FlowKey, flow: &Flow) -> io::Result<()> {
    let (proto, dialled, reply) = (key.proto, key.tuple, flow.to.reversed());
    // Entries with the same tuple at either end: of the flow after translation, or of an earlier connection of
    // kube-proxy.
    for tuple in [dialled, reply] {
        conntrack.delete(&tuple, proto)?;
    }
    conntrack.insert(&Connection { proto, original: dialled, reply, seen_reply: true, is_closed: false, id: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::Addr;

    fn tuple(src: &str, src_port: u16, dst: &str, dst_port: u16) -> Tuple {
        let [src, dst] = [src, dst].map(|ip| Addr::from(ip.parse::<std::net::IpAddr>().expect("an address")));
        Tuple { src, dst, src_port, dst_port }
    }

    #[test]
    fn both_entries_of_a_netfilter_connection_are_partners() {
        let dialled = tuple("192.0.2.9", 4000, "192.0.2.1", 30080);
        for (answers_to, hook) in [("192.0.2.1", Hook::Ingress), ("192.0.2.9", Hook::Egress)] {
            let reply = tuple("10.0.0.1", 8080, answers_to, 4000);
            let connection =
                Connection { proto: 6, original: dialled, reply, seen_reply: true, is_closed: false, id: 0 };
            let [(key, flow), (back_key, back)] = entries(&connection, 7);
            assert_eq!((partner_key(&key, &flow), partner_key(&back_key, &back)), (back_key, key));
            assert_eq!((flow.to, back_key.hook), (tuple(answers_to, 4000, "10.0.0.1", 8080), hook as u8));
            assert!(!is_open(&key, &flow, Some(&back), 8), "the flow is netfilter's");
        }
    }

    #[test]
    fn a_flow_is_open_until_reset_or_timed_out() {
        let key = FlowKey::new(tuple("192.0.2.9", 4000, "192.0.2.1", 30080), 6, Hook::Ingress);
        let to = tuple("192.0.2.1", 2000, "10.0.0.1", 8080);
        let flow = |forward| Flow {
            to,
            service: 1,
            backend: 1,
            flags: FlowFlags::REDIRECT,
            forward,
            reverse: Seen::ANY,
            used: 5,
            hop: Hop::UNKNOWN,
        };
        let is_open = |forward, now| is_open(&key, &flow(forward), None, now);
        assert!(is_open(Seen::ANY, 6) && !is_open(Seen::ANY | Seen::RST, 6) && !is_open(Seen::ANY, u64::MAX));
    }
}

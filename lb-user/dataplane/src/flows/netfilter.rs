//! Between `FLOWS` and netfilter: the connections that netfilter translates when the programs come to a device are left to it,
//! and those that the programs translate are handed to it when they go.

use std::{
    io,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::{
    Device, DeviceFlags, Flow, FlowFlags, FlowKey, Hook, Hop, Proto, Tuple,
    flow::{FlowState, Seen, expires_at, partner_key, state},
};

use super::Flows;
use lb_kernel::{
    bpf::typed::TypedMap,
    clock,
    netfilter::{
        conntrack::{Connection, Conntrack},
        temporary_tables::{self, NOTRACK_TABLE},
    },
};

/// How often it is looked whether flows are still open.
const LOOK: Duration = Duration::from_millis(200);
/// More than a packet takes that is on its way through the kernel.
const ON_ITS_WAY: Duration = Duration::from_millis(20);

/// Tells the programs which connections netfilter translates, and has it forget those that are over: a flow of ours that looked
/// the same to the backend would be given another port by it. How many are left to it.
///
/// # Errors
/// When netfilter does not answer, or the map is full.
pub fn leave_to_netfilter(directory: &Path) -> Result<usize> {
    let Some(mut conntrack) = Conntrack::open().context("asking netfilter")? else { return Ok(0) };
    let connections = conntrack.list_dnat().context("listing the connections that netfilter translates")?;
    let flows = Flows::open(directory)?;
    let now = clock::monotonic_ns();
    let mut left = 0;
    for connection in connections {
        if connection.is_closed {
            conntrack.delete(&connection.original, connection.proto).context("having netfilter forget what is over")?;
            continue;
        }
        if !is_wanted(&connection) {
            continue;
        }
        // What has a flow is ours already. The answers too, so that no flow of ours gets a port that looks the same.
        for (key, flow) in entries(&connection, now) {
            flows.map.add(&key, &flow).context("leaving a connection to netfilter")?;
        }
        left += 1;
    }
    Ok(left)
}

/// Whether netfilter translates any connection now, so that programs that come to a device must leave some alone.
#[must_use]
pub fn translates() -> bool {
    // What cannot be asked may be so.
    Conntrack::open().map_or(true, |conntrack| {
        conntrack.is_some_and(|mut conntrack| conntrack.list_dnat().map_or(true, |all| all.iter().any(is_wanted)))
    })
}

fn is_wanted(connection: &Connection) -> bool {
    !connection.is_closed && Proto::from_number(connection.proto.into()).is_some()
}

/// Both of its entries.
fn entries(connection: &Connection, now: u64) -> [(FlowKey, Flow); 2] {
    let Connection { proto, original: dialled, reply, seen_reply, .. } = *connection;
    let reverse = if seen_reply { Seen::ANY } else { 0 };
    // As an answer to a flow of ours would come.
    let (hook, partner) =
        if reply.dst == dialled.src { (Hook::Egress, FlowFlags::PARTNER_EGRESS) } else { (Hook::Ingress, 0) };
    let flow = Flow {
        to: connection.translated(),
        service: 0,
        backend: 0,
        flags: FlowFlags::NETFILTER | partner,
        forward: Seen::ANY,
        reverse,
        used: now,
        hop: Hop::UNKNOWN,
    };
    let back = Flow { to: dialled.reversed(), flags: FlowFlags::NETFILTER | FlowFlags::REVERSE, ..flow };
    [(FlowKey::new(dialled, proto, Hook::Ingress), flow), (FlowKey::new(reply, proto, hook), back)]
}

/// What became of the flows when the programs left.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Left {
    /// Those that netfilter goes on with.
    pub handed_over: usize,
    /// Those that it did not take, and which end.
    pub ended: usize,
    /// Why, of the last of them.
    pub why: Option<String>,
}

/// What netfilter was told of flows that are not its own: addresses and ports, and IP protocol numbers.
pub type Told = foldhash::HashSet<(Tuple, u8)>;

/// Leaves what begins from now on to netfilter. Packets that are sent on under the client's own address conntrack has never
/// seen: it is told of those flows before, as far as it listens, until [`forget`]. Else it lets a connection look to the
/// backend like one of them, and the programs take the answers for theirs.
///
/// # Errors
/// When `FLOWS` cannot be read, or `DEVICES` cannot be written.
pub fn leave(directory: &Path, flows: &Flows) -> Result<Told> {
    // Who does not listen says why when the flows are handed over.
    let mut conntrack = Conntrack::open().ok().flatten();
    let mut told = Told::default();
    if let Some(conntrack) = &mut conntrack {
        // While it hears of them others begin, fewer each time.
        let mut last = usize::MAX;
        loop {
            let new = tell(conntrack, flows, &mut told)?;
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
        tell(conntrack, flows, &mut told)?;
    }
    Ok(told)
}

/// Tells conntrack of the flows that it has never seen and was not told of. How many that were.
fn tell(conntrack: &mut Conntrack, flows: &Flows, told: &mut Told) -> Result<usize> {
    let of_client = |flags: u16| flags & (FlowFlags::REDIRECT | FlowFlags::REVERSE) == FlowFlags::REDIRECT;
    let is_unseen = |(key, flow): &(FlowKey, Flow)| of_client(flow.flags) && flow.to.src == key.tuple.src;
    let mut new = 0;
    for (key, flow) in flows.read()?.into_iter().filter(is_unseen) {
        let (dialled, proto) = (flow.to, key.proto);
        let untranslated =
            Connection { proto, original: dialled, reply: dialled.reversed(), seen_reply: true, is_closed: false };
        // One that it does not take, it knows.
        if !told.contains(&(dialled, proto)) && conntrack.insert(&untranslated).is_ok() {
            told.insert((dialled, proto));
            new += 1;
        }
    }
    Ok(new)
}

/// Has netfilter forget what it was told.
///
/// # Errors
/// When it does not answer.
pub fn forget(told: &Told) -> Result<()> {
    let Some(mut conntrack) = Conntrack::open().context("asking netfilter")? else { return Ok(()) };
    told.iter().try_for_each(|(tuple, proto)| conntrack.delete(tuple, *proto)).context("having netfilter forget flows")
}

/// Waits until no flow is open any more, or until that time is over. How many are.
///
/// # Errors
/// When `FLOWS` cannot be read or written.
pub fn drain(flows: &Flows, patience: Duration) -> Result<usize> {
    let deadline = Instant::now() + patience;
    loop {
        let open = open_alone(flows)?.len();
        let left = deadline.saturating_duration_since(Instant::now());
        if open == 0 || left.is_zero() {
            return Ok(open);
        }
        sleep(LOOK.min(left));
    }
}

/// The flows that are open, by the client's entries; those that are over are removed. A connection of netfilter's that looks like
/// one of them to its backend would be taken for it, or would get a port that ends with the programs.
fn open_alone(flows: &Flows) -> Result<Vec<(FlowKey, Flow)>> {
    let (entries, now) = (flows.read()?, clock::monotonic_ns());
    let by_key: foldhash::HashMap<FlowKey, Flow> = entries.iter().copied().collect();
    let (mut kept, over): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|(key, flow)| goes_on(key, flow, by_key.get(&partner_key(key, flow)), now));
    let over: Vec<FlowKey> = over.into_iter().map(|(key, _)| key).collect();
    flows.map.delete(&over).context("removing flows that are over")?;
    kept.retain(|(_, flow)| flow.flags & FlowFlags::REVERSE == 0 && flow.backend != 0);
    Ok(kept)
}

/// Whether the programs have something left to do for it.
fn goes_on(key: &FlowKey, flow: &Flow, partner: Option<&Flow>, now: u64) -> bool {
    flow.flags & FlowFlags::NETFILTER == 0
        && expires_at(flow, partner, key.proto) > now
        && !matches!(state(flow, partner), FlowState::Closed | FlowState::TimeWait)
}

/// Hands the flows that are open to netfilter.
///
/// Where the kernel routes their packets, netfilter has seen them as they are after translation, and that must be forgotten
/// before it can know them as they were; but each packet would remind it. So conntrack is kept away from what backends get and
/// send, which the programs still translate. When it knows all flows, the programs leave to it what clients send; then it may
/// see what backends send too, and the programs meet nothing any more that they know. What they have sent on themselves it
/// has never seen: there they leave it the answers, and then the rest. Either way no packet is lost, or comes to anybody
/// untranslated.
///
/// # Errors
/// When the maps cannot be read or written, or netfilter does not answer.
pub fn hand_over(flows: &Flows) -> Result<Left> {
    let mut left = Left::default();
    let open = open_alone(flows)?;
    let Some(mut conntrack) = Conntrack::open().context("asking netfilter")? else {
        return Ok(Left { ended: open.len(), why: Some("the kernel has no netfilter".to_owned()), ..left });
    };
    let is_seen = |flow: &Flow| flow.flags & FlowFlags::REDIRECT == 0;
    let seen: Vec<_> = open.iter().filter(|(_, flow)| is_seen(flow)).map(|(key, flow)| (flow.to, key.proto)).collect();
    if let Err(error) = temporary_tables::add_notrack(&seen) {
        return Ok(Left { ended: open.len(), why: Some(format!("keeping conntrack away: {error}")), ..left });
    }
    sleep(ON_ITS_WAY);
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut leave = |key, flow: Flow| {
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
                    leave(back, partner);
                }
                leave(key, flow);
                left.handed_over += 1;
            }
            Err(error) => {
                left.ended += 1;
                left.why = Some(error.to_string());
            }
        }
    }
    flows.map.put(&keys, &values).context("writing FLOWS")?;
    sleep(ON_ITS_WAY);
    temporary_tables::remove(NOTRACK_TABLE)
        .with_context(|| format!("removing the table {NOTRACK_TABLE} from netfilter"))?;
    sleep(ON_ITS_WAY);
    Ok(left)
}

fn put(conntrack: &mut Conntrack, key: &FlowKey, flow: &Flow) -> io::Result<()> {
    let (proto, dialled, reply) = (key.proto, key.tuple, flow.to.reversed());
    // What looks the same to either end: the flow without its translation, or one of kube-proxy's from before that is over.
    for tuple in [dialled, reply] {
        conntrack.delete(&tuple, proto)?;
    }
    conntrack.insert(&Connection { proto, original: dialled, reply, seen_reply: true, is_closed: false })
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
    fn both_entries_of_netfilters_lead_to_each_other() {
        let dialled = tuple("192.0.2.9", 4000, "192.0.2.1", 30080);
        for (answers_to, hook) in [("192.0.2.1", Hook::Ingress), ("192.0.2.9", Hook::Egress)] {
            let reply = tuple("10.0.0.1", 8080, answers_to, 4000);
            let connection = Connection { proto: 6, original: dialled, reply, seen_reply: true, is_closed: false };
            let [(key, flow), (back_key, back)] = entries(&connection, 7);
            assert_eq!((partner_key(&key, &flow), partner_key(&back_key, &back)), (back_key, key));
            assert_eq!((flow.to, back_key.hook), (tuple(answers_to, 4000, "10.0.0.1", 8080), hook as u8));
            assert!(!goes_on(&key, &flow, Some(&back), 8), "it is not ours");
        }
    }

    #[test]
    fn a_flow_is_open_until_it_is_over() {
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
        let goes_on = |forward, now| goes_on(&key, &flow(forward), None, now);
        assert!(goes_on(Seen::ANY, 6) && !goes_on(Seen::ANY | Seen::RST, 6) && !goes_on(Seen::ANY, u64::MAX));
    }
}

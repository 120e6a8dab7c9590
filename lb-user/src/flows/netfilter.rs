//! Between `FLOWS` and netfilter: the connections that netfilter translates when the programs come to a device are left to it,
//! and those that the programs translate are handed to it when they go.

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::{
    Device, DeviceFlags, Flow, FlowFlags, FlowKey, Hook, Proto,
    flow::{FlowState, Seen, expires_at, partner_key, state},
};

use super::Flows;
use crate::{
    datapath::{sys, typed::TypedMap},
    netfilter::conntrack::{Connection, Conntrack},
};

/// How often it is looked whether flows are still open.
const LOOK: Duration = Duration::from_millis(200);
/// A packet may bring back what netfilter was told to forget; so often is it told again.
const TRIES: u32 = 200;

/// Tells the programs which connections netfilter translates. How many they are.
///
/// # Errors
/// When netfilter does not answer, or the map is full.
pub fn leave_to_netfilter(directory: &Path) -> Result<usize> {
    let Some(mut conntrack) = Conntrack::open().context("asking netfilter")? else { return Ok(0) };
    let connections = conntrack.translated().context("listing the connections that netfilter translates")?;
    let flows = Flows::open(directory)?;
    let now = sys::now();
    let mut left = 0;
    for connection in connections.iter().filter(|connection| is_wanted(connection)) {
        // What has a flow is ours already. The answers too, so that no flow of ours gets a port that looks the same.
        for (key, flow) in entries(connection, now) {
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
        conntrack.is_some_and(|mut conntrack| conntrack.translated().map_or(true, |all| all.iter().any(is_wanted)))
    })
}

fn is_wanted(connection: &Connection) -> bool {
    !connection.is_over && Proto::from_number(connection.proto.into()).is_some()
}

/// Both of its entries.
fn entries(connection: &Connection, now: u64) -> [(FlowKey, Flow); 2] {
    let Connection { proto, dialled, reply, is_answered, .. } = *connection;
    let reverse = if is_answered { Seen::ANY } else { 0 };
    let flow = Flow {
        to: connection.translated(),
        service: 0,
        backend: 0,
        flags: FlowFlags::NETFILTER,
        forward: Seen::ANY,
        reverse,
        used: now,
    };
    let back = Flow { to: dialled.reversed(), flags: FlowFlags::NETFILTER | FlowFlags::REVERSE, ..flow };
    [(FlowKey::new(dialled, proto, Hook::Ingress), flow), (FlowKey::new(reply, proto, Hook::Ingress), back)]
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

/// Leaves what begins from now on to netfilter.
///
/// # Errors
/// When `DEVICES` cannot be written.
pub fn leave(directory: &Path) -> Result<()> {
    let devices = TypedMap::<u32, Device>::open(directory, "DEVICES")?;
    let (keys, values): (Vec<u32>, Vec<Device>) = devices
        .read()?
        .into_iter()
        .map(|(index, device)| (index, Device { flags: device.flags | DeviceFlags::LEAVING, ..device }))
        .unzip();
    devices.put(&keys, &values).context("writing DEVICES")
}

/// Waits until no flow is open any more, or until that time is over. How many are.
///
/// # Errors
/// When `FLOWS` cannot be read.
pub fn drain(flows: &Flows, patience: Duration) -> Result<usize> {
    let deadline = Instant::now() + patience;
    loop {
        let open = open(&flows.read()?, sys::now()).len();
        let left = deadline.saturating_duration_since(Instant::now());
        if open == 0 || left.is_zero() {
            return Ok(open);
        }
        std::thread::sleep(LOOK.min(left));
    }
}

/// The flows that are open, by the client's entries.
fn open(entries: &[(FlowKey, Flow)], now: u64) -> Vec<(FlowKey, Flow)> {
    let by_key: foldhash::HashMap<FlowKey, Flow> = entries.iter().copied().collect();
    let is_open = |(key, flow): &&(FlowKey, Flow)| {
        let partner = by_key.get(&partner_key(key, flow));
        flow.flags & (FlowFlags::REVERSE | FlowFlags::NETFILTER) == 0
            && flow.backend != 0
            && expires_at(flow, partner, key.proto) > now
            && !matches!(state(flow, partner), FlowState::Closed | FlowState::TimeWait)
    };
    entries.iter().filter(is_open).copied().collect()
}

/// Hands the flows that are open to netfilter, one by one, while both are at work: its translation of them begins when that
/// of the programs ends.
///
/// # Errors
/// When the maps cannot be read or written, or netfilter does not answer.
pub fn hand_over(flows: &Flows) -> Result<Left> {
    let mut left = Left::default();
    let open = open(&flows.read()?, sys::now());
    let Some(mut conntrack) = Conntrack::open().context("asking netfilter")? else {
        return Ok(Left { ended: open.len(), why: Some("the kernel has no netfilter".to_owned()), ..left });
    };
    for (key, flow) in open {
        // Where the kernel routes the packets, netfilter has seen them as they are after translation. No packet may come
        // between its forgetting of that and the new entry.
        let is_seen = flow.flags & FlowFlags::REDIRECT == 0;
        if is_seen {
            mark(flows, &key, &flow, FlowFlags::HELD)?;
        }
        match put(&mut conntrack, &key, &flow, is_seen) {
            Ok(()) => {
                mark(flows, &key, &flow, FlowFlags::NETFILTER)?;
                left.handed_over += 1;
            }
            Err(error) => {
                mark(flows, &key, &flow, 0)?;
                left.ended += 1;
                left.why = Some(error.to_string());
            }
        }
    }
    Ok(left)
}

fn put(conntrack: &mut Conntrack, key: &FlowKey, flow: &Flow, is_seen: bool) -> io::Result<()> {
    let connection = Connection {
        proto: key.proto,
        dialled: key.tuple,
        reply: flow.to.reversed(),
        is_answered: true,
        is_over: false,
    };
    let mut tries = 0;
    loop {
        if is_seen {
            conntrack.forget(&flow.to, key.proto)?;
        }
        match conntrack.put(&connection) {
            Err(error) if is_seen && error.raw_os_error() == Some(libc::EEXIST) && tries < TRIES => tries += 1,
            other => return other,
        }
    }
}

/// Writes the flags of both entries of a flow, besides those that it has.
fn mark(flows: &Flows, key: &FlowKey, flow: &Flow, flags: u16) -> Result<()> {
    let other = partner_key(key, flow);
    let mut keys = vec![*key];
    let mut values = vec![Flow { flags: flow.flags | flags, ..*flow }];
    if let Some(partner) = flows.map.get(&other)? {
        keys.push(other);
        let own = partner.flags & !(FlowFlags::HELD | FlowFlags::NETFILTER);
        values.push(Flow { flags: own | flags, ..partner });
    }
    flows.map.put(&keys, &values).context("writing FLOWS")
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::{Addr, Tuple};

    fn tuple(src: &str, src_port: u16, dst: &str, dst_port: u16) -> Tuple {
        let [src, dst] = [src, dst].map(|ip| Addr::from(ip.parse::<std::net::IpAddr>().expect("an address")));
        Tuple { src, dst, src_port, dst_port }
    }

    #[test]
    fn both_entries_of_netfilters_lead_to_each_other() {
        let connection = Connection {
            proto: 6,
            dialled: tuple("192.0.2.9", 4000, "192.0.2.1", 30080),
            reply: tuple("10.0.0.1", 8080, "192.0.2.1", 4000),
            is_answered: true,
            is_over: false,
        };
        let [(key, flow), (back_key, back)] = entries(&connection, 7);
        assert_eq!((partner_key(&key, &flow), partner_key(&back_key, &back)), (back_key, key));
        assert_eq!(flow.to, tuple("192.0.2.1", 4000, "10.0.0.1", 8080));
        assert!(open(&[(key, flow), (back_key, back)], 8).is_empty(), "it is not ours");
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
        };
        let open = |forward, now| super::open(&[(key, flow(forward))], now).len();
        assert_eq!(open(Seen::ANY, 6), 1);
        assert_eq!(open(Seen::ANY | Seen::RST, 6), 0);
        assert_eq!(open(Seen::ANY, u64::MAX), 0);
    }
}

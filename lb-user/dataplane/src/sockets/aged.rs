//! TCP sockets that are older than their Service allows: which exist, and the end of the idle ones.
//!
//! The application learns of the end at its next call (ECONNABORTED), and the server by a reset. So a socket is asked a
//! moment before whether data is on its way.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use foldhash::HashMap;
use lb_common::{AddrPort, Family, Proto, TcpSock, Translation};
use lb_kernel::{
    bpf::typed::TypedMap,
    netns,
    sock_diag::{Activity, DestroyOutcome, PeerFilter, SockDiag, SocketQuery, state},
};

use super::{EndReport, cannot_end, visit};

/// Silence after which a socket is idle if the server sent last: no answer is on its way.
const SILENCE: Duration = Duration::from_secs(5);

/// Silence after which a socket is idle if the client sent last: it may wait for an answer until then.
const UNANSWERED: Duration = Duration::from_secs(60);

/// A socket whose time is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Aged {
    /// Backend of the socket.
    pub peer: AddrPort,
    /// Id of the service port.
    pub service: u32,
    /// True if it ends although it is busy.
    pub must_end: bool,
}

/// Lists the TCP sockets with a translation by their cookies, from the maps pinned in `pins`.
///
/// # Errors
/// If the maps cannot be read.
pub fn translated(pins: &Path) -> Result<Vec<(u64, Translation)>> {
    let places = TypedMap::<u32, TcpSock>::open(pins, "TCP_SOCKS")?.read()?;
    let held = places.iter().filter(|(_, place)| place.cookie != 0).map(|(_, place)| (place.cookie, place.given));
    let mut sockets: Vec<_> = held.collect();
    sockets.extend(TypedMap::<u64, Translation>::open(pins, "TCP_MORE")?.read()?);
    Ok(sockets)
}

/// Ends those of the sockets `aged`, by cookie, that are connected to their backend and idle, or must end.
///
/// # Errors
/// If /proc cannot be read.
pub fn end_aged(aged: &HashMap<u64, Aged>) -> Result<EndReport> {
    let peers: BTreeSet<AddrPort> = aged.values().map(|aged| aged.peer).collect();
    visit(|channel, report| {
        for family in [Family::V4, Family::V6].into_iter().filter(|family| netns::has_sockets(Proto::Tcp, *family)) {
            end_in(channel, family, &peers, aged, report)?;
        }
        Ok(())
    })
}

/// Ends sockets of one namespace and family.
fn end_in(
    channel: &mut SockDiag,
    family: Family,
    peers: &BTreeSet<AddrPort>,
    aged: &HashMap<u64, Aged>,
    report: &mut EndReport,
) -> Result<()> {
    let filter = PeerFilter::new(family, peers);
    let filter = match &filter {
        PeerFilter::Nothing => return Ok(()),
        PeerFilter::Everything => None,
        PeerFilter::Peers(program) => Some(program.as_slice()),
    };
    let query = SocketQuery { family, proto: Proto::Tcp, states: state::ESTABLISHED, filter };
    let found = channel.list(query, |socket| {
        let aged = aged.get(&socket.cookie).filter(|aged| aged.peer == socket.remote);
        Ok(aged.map(|aged| (socket.id, *aged)))
    })?;
    for (id, Aged { service, must_end, .. }) in found {
        if !must_end && !channel.activity(id)?.is_some_and(|activity| is_idle(&activity)) {
            continue;
        }
        match channel.destroy(Proto::Tcp, id)?.with_context(|| cannot_end(Proto::Tcp))? {
            DestroyOutcome::Destroyed => *report.ended.entry(service).or_default() += 1,
            DestroyOutcome::NotFound => {}
        }
    }
    Ok(())
}

/// True if no data is on its way, and an answer of the server is neither.
fn is_idle(activity: &Activity) -> bool {
    let Activity { unread, unacknowledged, since_sent, since_received } = *activity;
    let silence = since_sent.min(since_received);
    let needed = if since_received < since_sent { SILENCE } else { UNANSWERED };
    unread == 0 && unacknowledged == 0 && silence >= needed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_idle_after_a_silence_that_is_longer_while_an_answer_may_come() {
        let at = |unread, unacknowledged, sent, received| Activity {
            unread,
            unacknowledged,
            since_sent: Duration::from_millis(sent),
            since_received: Duration::from_millis(received),
        };
        for (activity, expected) in [
            (at(0, 0, 5_010, 5_000), true),
            (at(0, 0, 5_010, 4_999), false),
            (at(1, 0, 5_010, 5_000), false),
            (at(0, 1, 5_010, 5_000), false),
            // The client sent last, or in the same tick.
            (at(0, 0, 5_000, 5_010), false),
            (at(0, 0, 59_999, 59_999), false),
            (at(0, 0, 60_000, 90_000), true),
            // The server speaks alone, as in a watch.
            (at(0, 0, 9_000_000, 1_000), false),
        ] {
            assert_eq!(is_idle(&activity), expected, "{activity:?}");
        }
    }
}

//! Bytecode that sock_diag runs in the kernel (inet_diag_bc_run in net/ipv4/inet_diag.c), to select sockets by peer.
//! Pure.

use std::collections::BTreeSet;

use crate::sock_diag::message::family_number;
use lb_common::{AddrPort, Family};

/// Most peers that the kernel selects by; with more, the reader does. In the kernel each peer costs a comparison for
/// every socket of the node (17 ns), and this many cost about as much as reading the socket.
const MAX_PEERS: usize = 24;

/// Length of an instruction: its code, and the two offsets to go on at, for a true and for a false condition.
const STEP: u16 = 4;
const JUMP: u8 = 1;
const PEER_IS: u8 = 8;

/// Selection of a family's sockets by peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerFilter {
    /// No socket of the family can have such a peer: no dump is needed.
    Nothing,
    /// Bytecode that selects sockets with one of the peers.
    Peers(Vec<u8>),
    /// All sockets.
    Everything,
}

impl PeerFilter {
    /// Selects the sockets of `family` whose peer is one of `peers`, or all sockets if there are many peers. Mapped
    /// IPv4 peers of IPv6 sockets are selected as well.
    #[must_use]
    pub fn new(family: Family, peers: &BTreeSet<AddrPort>) -> Self {
        if peers.len() > MAX_PEERS {
            return Self::Everything;
        }
        let conditions: Vec<_> = peers
            .iter()
            .filter(|peer| family == Family::V6 || Family::of(&peer.addr) == Family::V4)
            .map(condition)
            .collect();
        if conditions.is_empty() { Self::Nothing } else { Self::Peers(any_of(&conditions)) }
    }
}

/// Encodes a `struct inet_diag_hostcond`. A condition of family IPv4 also holds for an IPv6 socket with the mapped
/// address.
fn condition(peer: &AddrPort) -> Vec<u8> {
    let family = Family::of(&peer.addr);
    let octets = match family {
        Family::V4 => peer.addr.octets.get(12..),
        Family::V6 => peer.addr.octets.get(..),
    }
    .unwrap_or_default();
    let bits = u8::try_from(octets.len() * 8).expect("at most 128");
    let mut bytes = vec![family_number(family), bits, 0, 0];
    bytes.extend(i32::from(peer.port).to_ne_bytes());
    bytes.extend(octets);
    bytes
}

/// Encodes a program that selects a socket if any condition holds: it accepts by running off its end exactly, and
/// rejects by a jump beyond the end.
fn any_of(conditions: &[Vec<u8>]) -> Vec<u8> {
    let mut program = Vec::new();
    for (index, condition) in conditions.iter().enumerate() {
        let own = STEP + len(condition);
        // If the condition fails: over the jump behind it to the next condition; behind the last one, beyond the end.
        step(&mut program, PEER_IS, own, own + STEP);
        program.extend(condition);
        // If it holds: from here to the end. The last condition has no jump behind it, which evens out with this jump.
        let to_end: u16 = conditions.iter().skip(index + 1).map(|next| STEP + len(next) + STEP).sum();
        if to_end > 0 {
            step(&mut program, JUMP, STEP, to_end);
        }
    }
    program
}

fn len(bytes: &[u8]) -> u16 {
    u16::try_from(bytes.len()).expect("a condition is short")
}

fn step(program: &mut Vec<u8>, code: u8, holds: u16, fails: u16) {
    program.extend([code, u8::try_from(holds).expect("the next instruction")]);
    program.extend(fails.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn targets(texts: &[&str]) -> BTreeSet<AddrPort> {
        texts.iter().map(|text| text.parse::<SocketAddr>().expect("an address and port").into()).collect()
    }

    /// Runs a filter as the kernel does, for a peer in the form of the conditions.
    fn selects(program: &[u8], peer: &AddrPort) -> bool {
        let mut at = 0;
        while at < program.len() {
            let [code, holds, a, b] = *program.get(at..).and_then(<[u8]>::first_chunk).expect("an instruction");
            let fails = usize::from(u16::from_ne_bytes([a, b]));
            let wanted = condition(peer);
            let is_so = code == PEER_IS && program.get(at + 4..at + 4 + wanted.len()) == Some(wanted.as_slice());
            at += if is_so { usize::from(holds) } else { fails };
        }
        at == program.len()
    }

    /// Checks as the kernel does (inet_diag_bc_audit) that every jump leads to an instruction, or just beyond the end.
    fn audit(program: &[u8]) {
        let (mut at, mut starts, mut jumps) = (0, Vec::new(), Vec::new());
        while at < program.len() {
            let [_, holds, a, b] = *program.get(at..).and_then(<[u8]>::first_chunk).expect("an instruction");
            starts.push(at);
            jumps.push(at + usize::from(u16::from_ne_bytes([a, b])));
            at += usize::from(holds);
        }
        starts.extend([program.len(), program.len() + 4]);
        assert!(jumps.iter().all(|to| starts.contains(to)), "{starts:?} {jumps:?}");
    }

    #[test]
    fn exactly_the_peers_are_selected() {
        let peers = targets(&["10.0.0.1:53", "[fd00::1]:53", "10.0.0.2:8080", "[fd00::2]:8080"]);
        let others = targets(&["10.0.0.1:54", "10.0.0.3:53", "[fd00::3]:53", "[fd00::1]:8080"]);
        for count in 1..=peers.len() {
            let some: BTreeSet<_> = peers.iter().take(count).copied().collect();
            let mut rest = peers.iter().skip(count);
            let PeerFilter::Peers(program) = PeerFilter::new(Family::V6, &some) else { panic!() };
            audit(&program);
            assert!(some.iter().all(|peer| selects(&program, peer)));
            assert!(!rest.by_ref().chain(&others).any(|peer| selects(&program, peer)));
        }
    }

    #[test]
    fn ipv4_sockets_are_selected_by_ipv4_peers_only() {
        let both = targets(&["10.0.0.1:53", "[fd00::1]:53"]);
        assert_eq!(PeerFilter::new(Family::V4, &both), PeerFilter::new(Family::V4, &targets(&["10.0.0.1:53"])));
        assert_eq!(PeerFilter::new(Family::V4, &targets(&["[fd00::1]:53"])), PeerFilter::Nothing);
        assert_eq!(PeerFilter::new(Family::V6, &BTreeSet::new()), PeerFilter::Nothing);
    }

    #[test]
    fn with_many_peers_all_sockets_are_selected() {
        let mut many: BTreeSet<_> =
            (0..=MAX_PEERS).flat_map(|n| targets(&[&format!("10.0.0.1:{}", 1000 + n)])).collect();
        assert_eq!(PeerFilter::new(Family::V4, &many), PeerFilter::Everything);
        many.pop_last();
        assert!(matches!(PeerFilter::new(Family::V4, &many), PeerFilter::Peers(_)));
    }
}

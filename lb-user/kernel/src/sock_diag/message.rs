//! Messages of sock_diag (include/uapi/linux/inet_diag.h) as bytes: encoding of requests, decoding of answers. Pure.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_common::{Addr, Proto};

use crate::netlink::codec::{find, frames, put_attribute, request as message, u32_at};
use lb_common::{AddrPort, Family};

/// States of a socket as bits (include/net/tcp_states.h). A connected UDP socket is `ESTABLISHED`, any other `CLOSE`.
pub mod state {
    /// Connected.
    pub const ESTABLISHED: u32 = 1 << 1;
    /// All TCP states in which an application can hold a socket with a peer.
    pub const WITH_PEER: u32 = ESTABLISHED | SYN_SENT | FIN_WAIT1 | FIN_WAIT2 | CLOSE_WAIT | LAST_ACK | CLOSING;
    /// A UDP socket without a peer.
    pub const CLOSE: u32 = 1 << 7;
    /// A TCP listener.
    pub const LISTEN: u32 = 1 << 10;
    const SYN_SENT: u32 = 1 << 2;
    const FIN_WAIT1: u32 = 1 << 4;
    const FIN_WAIT2: u32 = 1 << 5;
    const CLOSE_WAIT: u32 = 1 << 8;
    const LAST_ACK: u32 = 1 << 9;
    const CLOSING: u32 = 1 << 11;
}

const AF_INET: u8 = libc::AF_INET as u8;
const AF_INET6: u8 = libc::AF_INET6 as u8;

// include/uapi/linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

const INET_DIAG_REQ_BYTECODE: u16 = 1;
/// The attribute with a `struct tcp_info`.
const INET_DIAG_INFO: u16 = 2;
/// `idiag_ext` of a request without attributes, and of one for [`INET_DIAG_INFO`].
const NO_ATTRIBUTE: u8 = 0;
const INFO: u8 = 1 << (INET_DIAG_INFO - 1);

/// Selection of sockets for a dump.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketQuery<'a> {
    /// Family of the sockets; an IPv6 socket may have an IPv4 peer, whose address is then mapped.
    pub family: Family,
    /// TCP or UDP.
    pub proto: Proto,
    /// [`state`] bits.
    pub states: u32,
    /// Bytecode of a [`super::PeerFilter`]; None selects all.
    pub filter: Option<&'a [u8]>,
}

impl SocketQuery<'_> {
    /// Encodes the request for a dump.
    pub(super) fn to_bytes(self, sequence: u32) -> Vec<u8> {
        let mut body = request(family_number(self.family), self.proto, NO_ATTRIBUTE, self.states, &[0; 48]);
        if let Some(filter) = self.filter {
            put_attribute(&mut body, INET_DIAG_REQ_BYTECODE, filter);
        }
        message(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, sequence, &body)
    }
}

/// Identity of one socket: family, addresses, interface and cookie. It is valid for as long as the socket keeps its
/// peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketId {
    family: u8,
    /// `struct inet_diag_sockid`
    id: [u8; 48],
}

impl SocketId {
    /// Encodes the request to destroy the socket.
    pub(super) fn destroy_request(self, proto: Proto, sequence: u32) -> Vec<u8> {
        let body = request(self.family, proto, NO_ATTRIBUTE, u32::MAX, &self.id);
        message(SOCK_DESTROY, libc::NLM_F_ACK, sequence, &body)
    }

    /// Encodes the request for the [`Activity`] of the TCP socket.
    pub(super) fn activity_request(self, sequence: u32) -> Vec<u8> {
        let body = request(self.family, Proto::Tcp, INFO, u32::MAX, &self.id);
        message(SOCK_DIAG_BY_FAMILY, libc::NLM_F_ACK, sequence, &body)
    }
}

/// A socket in the kernel's list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Socket {
    /// Identity, for [`super::SockDiag::destroy`].
    pub id: SocketId,
    /// Local address and port.
    pub local: AddrPort,
    /// Address and port of the peer; port 0 without a peer.
    pub remote: AddrPort,
    /// Interface that the socket is bound to; 0 for none.
    pub interface: u32,
    /// Cookie, by which BPF programs identify the socket.
    pub cookie: u64,
    /// Inode number, by which /proc lists the socket.
    pub inode: u32,
    /// Data of a TCP socket on its way; only in the answer of [`super::SockDiag::activity`].
    pub activity: Option<Activity>,
}

/// Data of a TCP socket on its way, and the time since the last of it. The handshake counts as data both ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Activity {
    /// Octets that the application has not read.
    pub unread: u32,
    /// Octets that the peer has not acknowledged, unsent ones included.
    pub unacknowledged: u32,
    /// Time since the last data was sent, in the resolution of the kernel's ticks.
    pub since_sent: Duration,
    /// Time since the last data was received, in the resolution of the kernel's ticks.
    pub since_received: Duration,
}

/// One netlink message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Message {
    /// Sequence number of the request that it answers.
    pub sequence: u32,
    /// True if the kernel's list changed meanwhile, so that the dump may have missed sockets (NLM_F_DUMP_INTR).
    pub is_interrupted: bool,
    /// Content.
    pub reply: Reply,
}

/// Content of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    /// A socket of the list.
    Socket(Socket),
    /// End of the answer: 0, or an errno.
    End(i32),
    /// A message of another type.
    Other,
}

/// Lists the messages of one datagram.
pub(super) fn messages(bytes: &[u8]) -> impl Iterator<Item = Message> {
    frames(bytes).map(|frame| {
        let reply = match frame.end_code() {
            Some(code) => Reply::End(code),
            None if frame.kind == SOCK_DIAG_BY_FAMILY => socket(frame.body).map_or(Reply::Other, Reply::Socket),
            None => Reply::Other,
        };
        let is_interrupted = i32::from(frame.flags) & libc::NLM_F_DUMP_INTR != 0;
        Message { sequence: frame.sequence, is_interrupted, reply }
    })
}

/// Length of a `struct inet_diag_msg`, behind which attributes follow.
const INET_DIAG_MSG: usize = 72;

/// Parses a `struct inet_diag_msg` and the attribute [`INET_DIAG_INFO`] behind it.
fn socket(body: &[u8]) -> Option<Socket> {
    let family = *body.first()?;
    let id: [u8; 48] = *body.get(4..)?.first_chunk()?;
    let port = |at: usize| Some(u16::from_be_bytes(*id.get(at..)?.first_chunk()?));
    let addr = |at: usize| {
        let octets: [u8; 16] = *id.get(at..)?.first_chunk()?;
        let [a, b, c, d, ..] = octets;
        Some(if family == AF_INET { Ipv4Addr::new(a, b, c, d).into() } else { Addr::from(Ipv6Addr::from(octets)) })
    };
    Some(Socket {
        id: SocketId { family, id },
        local: AddrPort { addr: addr(4)?, port: port(0)? },
        remote: AddrPort { addr: addr(20)?, port: port(2)? },
        interface: u32_at(&id, 36)?,
        cookie: (u64::from(u32_at(&id, 44)?) << 32) | u64::from(u32_at(&id, 40)?),
        inode: u32_at(body, 68)?,
        activity: activity(body),
    })
}

/// Parses a `struct tcp_info` (include/uapi/linux/tcp.h), and the queues of a `struct inet_diag_msg`.
fn activity(body: &[u8]) -> Option<Activity> {
    let info = find(body.get(INET_DIAG_MSG..)?, INET_DIAG_INFO)?;
    let millis = |at| Some(Duration::from_millis(u32_at(info, at)?.into()));
    Some(Activity {
        unread: u32_at(body, 56)?,
        unacknowledged: u32_at(body, 60)?,
        since_sent: millis(44)?,
        since_received: millis(52)?,
    })
}

/// Encodes a `struct inet_diag_req_v2`.
fn request(family: u8, proto: Proto, ext: u8, states: u32, id: &[u8; 48]) -> Vec<u8> {
    let mut body = vec![family, proto as u8, ext, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

/// Returns the kernel's number of a family.
pub(super) const fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::codec::{HEADER, u16_at};
    use std::net::SocketAddr;

    fn target(text: &str) -> AddrPort {
        text.parse::<SocketAddr>().expect("an address and port").into()
    }

    /// Encodes a reply as the kernel does, with an attribute that was not requested.
    fn reply(family: u8, source: &[u8], destination: &[u8]) -> Vec<u8> {
        let mut body = vec![family, 1, 0, 0];
        body.extend(4000u16.to_be_bytes());
        body.extend(53u16.to_be_bytes());
        for address in [source, destination] {
            let mut address = address.to_vec();
            address.resize(16, 0);
            body.extend(address);
        }
        for word in [3u32, 0xdead_beef, 1, 0, 0, 0, 1000, 4711] {
            body.extend(word.to_ne_bytes());
        }
        put_attribute(&mut body, 8, &[0]);
        message(SOCK_DIAG_BY_FAMILY, libc::NLM_F_MULTI, 7, &body)
    }

    #[test]
    fn sockets_of_both_families_are_parsed() {
        let mapped = "10.0.0.1".parse::<Ipv4Addr>().expect("an address").to_ipv6_mapped().octets();
        let mut bytes = reply(AF_INET, &[10, 0, 0, 9], &[10, 0, 0, 1]);
        bytes.extend(reply(AF_INET6, &mapped, &mapped));
        bytes.extend(message(3, 0, 7, &0u32.to_ne_bytes()));
        let read: Vec<_> = messages(&bytes).collect();
        let [Reply::Socket(v4), Reply::Socket(v6), Reply::End(0)] =
            read.iter().map(|m| m.reply).collect::<Vec<_>>()[..]
        else {
            panic!("{read:?}")
        };
        assert_eq!((v4.local, v4.remote), (target("10.0.0.9:4000"), target("10.0.0.1:53")));
        assert_eq!(v6.remote, target("10.0.0.1:53"), "mapped");
        assert_eq!((v4.interface, v4.cookie, v4.inode), (3, 0x1_dead_beef, 4711));
    }

    #[test]
    fn a_socket_is_destroyed_by_the_very_id_that_it_was_listed_with() {
        let bytes = reply(AF_INET, &[10, 0, 0, 9], &[10, 0, 0, 1]);
        let Some(Message { reply: Reply::Socket(socket), .. }) = messages(&bytes).next() else { panic!() };
        let request = socket.id.destroy_request(Proto::Udp, 8);
        assert_eq!(request.len(), HEADER + 56);
        assert_eq!(u16_at(&request, 4), Some(SOCK_DESTROY));
        assert_eq!(request.get(HEADER..HEADER + 2), Some([AF_INET, 17].as_slice()));
        assert_eq!(request.get(HEADER + 8..), bytes.get(HEADER + 4..HEADER + 52));
    }

    #[test]
    fn the_activity_of_a_tcp_socket_is_parsed() {
        let mut body = reply(AF_INET, &[10, 0, 0, 9], &[10, 0, 0, 1]).split_off(HEADER);
        body.truncate(INET_DIAG_MSG);
        for (at, queue) in [(56, 5_u32), (60, 7)] {
            body.get_mut(at..at + 4).expect("a queue").copy_from_slice(&queue.to_ne_bytes());
        }
        let mut info = vec![0xff; 104];
        for (at, millis) in [(44, 1500_u32), (52, 20)] {
            info.get_mut(at..at + 4).expect("a time").copy_from_slice(&millis.to_ne_bytes());
        }
        put_attribute(&mut body, 8, &[0]);
        put_attribute(&mut body, INET_DIAG_INFO, &info);
        let bytes = message(SOCK_DIAG_BY_FAMILY, 0, 7, &body);
        let Some(Message { reply: Reply::Socket(socket), .. }) = messages(&bytes).next() else { panic!() };
        let expected = Activity {
            unread: 5,
            unacknowledged: 7,
            since_sent: Duration::from_millis(1500),
            since_received: Duration::from_millis(20),
        };
        assert_eq!(socket.activity, Some(expected));
        let request = socket.id.activity_request(8);
        assert_eq!((u16_at(&request, 4), u16_at(&request, 6)), (Some(SOCK_DIAG_BY_FAMILY), Some(5)));
        assert_eq!(request.get(HEADER..HEADER + 4), Some([AF_INET, 6, 2, 0].as_slice()));
    }

    #[test]
    fn an_error_is_an_errno_and_an_interrupted_dump_is_flagged() {
        let bytes = message(2, 0, 1, &(-libc::EOPNOTSUPP).to_ne_bytes());
        let wanted = Message { sequence: 1, is_interrupted: false, reply: Reply::End(libc::EOPNOTSUPP) };
        assert_eq!(messages(&bytes).collect::<Vec<_>>(), [wanted]);
        let bytes = message(3, libc::NLM_F_DUMP_INTR, 1, &[]);
        let wanted = Message { sequence: 1, is_interrupted: true, reply: Reply::End(0) };
        assert_eq!(messages(&bytes).collect::<Vec<_>>(), [wanted]);
    }

    #[test]
    fn no_prefix_of_an_answer_panics() {
        let bytes = reply(AF_INET6, &[1; 16], &[2; 16]);
        for end in 0..bytes.len() {
            let cut = bytes.get(..end).expect("a prefix");
            assert_eq!(messages(cut).count(), 0);
            // A length that exceeds the body does no harm either.
            let mut lying = cut.to_vec();
            if let (Some(length), Ok(end)) = (lying.first_chunk_mut(), u32::try_from(end)) {
                *length = end.to_ne_bytes();
            }
            assert!(messages(&lying).count() <= 1);
        }
        assert_eq!(messages(&[0; 64]).count(), 0, "a length of zero ends the list");
    }

    #[test]
    fn the_request_for_a_dump_has_its_filter() {
        let query = SocketQuery {
            family: Family::V6,
            proto: Proto::Udp,
            states: state::ESTABLISHED,
            filter: Some(&[1, 2, 3, 4]),
        };
        let bytes = query.to_bytes(9);
        assert_eq!(u32_at(&bytes, 0).map(|length| length as usize), Some(bytes.len()));
        assert_eq!((u16_at(&bytes, 4), u16_at(&bytes, 6)), (Some(SOCK_DIAG_BY_FAMILY), Some(0x301)));
        assert_eq!(bytes.get(HEADER..HEADER + 8), Some([AF_INET6, 17, 0, 0, 2, 0, 0, 0].as_slice()));
        assert_eq!(bytes.get(HEADER + 56..), Some([8, 0, 1, 0, 1, 2, 3, 4].as_slice()));
    }
}

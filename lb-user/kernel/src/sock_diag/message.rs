//! The messages of sock_diag (include/uapi/linux/inet_diag.h), as bytes: what is asked, and what is answered. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use lb_common::{Addr, Proto};

use crate::netlink::wire::{attribute, frames, request as message, u32_at};
use lb_common::{AddrPort, Family};

/// States of a socket as bits (include/net/tcp_states.h). A connected UDP socket is `ESTABLISHED`, any other one `CLOSE`.
pub mod state {
    /// Connected.
    pub const ESTABLISHED: u32 = 1 << 1;
    /// Of TCP, all in which an application can hold a socket that has a peer.
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

/// Which sockets of the namespace are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Query<'a> {
    /// The family of the sockets; one of IPv6 may well have an IPv4 peer, which is then mapped.
    pub family: Family,
    /// TCP or UDP.
    pub proto: Proto,
    /// [`state`] bits.
    pub states: u32,
    /// The kernel's own filter, see `filter`; none lets all through.
    pub filter: Option<&'a [u8]>,
}

impl Query<'_> {
    /// The request for a dump.
    pub fn to_bytes(self, sequence: u32) -> Vec<u8> {
        let mut body = request(family_number(self.family), self.proto, self.states, &[0; 48]);
        if let Some(filter) = self.filter {
            attribute(&mut body, INET_DIAG_REQ_BYTECODE, filter);
        }
        message(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, sequence, &body)
    }
}

/// The name of one socket: family, addresses, interface and cookie. It is its name for as long as it keeps its peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name {
    family: u8,
    /// `struct inet_diag_sockid`
    id: [u8; 48],
}

impl Name {
    /// The request that ends it.
    pub fn to_end(self, proto: Proto, sequence: u32) -> Vec<u8> {
        let body = request(self.family, proto, u32::MAX, &self.id);
        message(SOCK_DESTROY, libc::NLM_F_ACK, sequence, &body)
    }
}

/// A socket as the kernel tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Socket {
    /// By which it can be ended.
    pub name: Name,
    /// Its own address.
    pub local: AddrPort,
    /// Its peer; port 0 when it has none.
    pub remote: AddrPort,
    /// The interface that it is bound to; 0 for none.
    pub interface: u32,
    /// By which BPF programs know it.
    pub cookie: u64,
    /// By which /proc knows it.
    pub inode: u32,
}

/// One netlink message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Of the request that it answers.
    pub sequence: u32,
    /// Whether the kernel's list changed so much meanwhile that the dump may have missed something.
    pub is_interrupted: bool,
    /// What it says.
    pub reply: Reply,
}

/// What a message says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// One more socket.
    Socket(Socket),
    /// The end of an answer: 0, or the number of an error.
    End(i32),
    /// What nobody asked for.
    Other,
}

/// The messages of one datagram.
pub fn messages(bytes: &[u8]) -> impl Iterator<Item = Message> {
    frames(bytes).map(|frame| {
        let reply = match frame.end() {
            Some(code) => Reply::End(code),
            None if frame.kind == SOCK_DIAG_BY_FAMILY => socket(frame.body).map_or(Reply::Other, Reply::Socket),
            None => Reply::Other,
        };
        let is_interrupted = i32::from(frame.flags) & libc::NLM_F_DUMP_INTR != 0;
        Message { sequence: frame.sequence, is_interrupted, reply }
    })
}

/// Parses a `struct inet_diag_msg`. No attribute behind it matters here.
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
        name: Name { family, id },
        local: AddrPort { addr: addr(4)?, port: port(0)? },
        remote: AddrPort { addr: addr(20)?, port: port(2)? },
        interface: u32_at(&id, 36)?,
        cookie: (u64::from(u32_at(&id, 44)?) << 32) | u64::from(u32_at(&id, 40)?),
        inode: u32_at(body, 68)?,
    })
}

/// A `struct inet_diag_req_v2`.
fn request(family: u8, proto: Proto, states: u32, id: &[u8; 48]) -> Vec<u8> {
    let mut body = vec![family, proto as u8, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

/// The number by which the kernel knows a family.
pub const fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::wire::{HEADER, u16_at};
    use std::net::SocketAddr;

    fn target(text: &str) -> AddrPort {
        text.parse::<SocketAddr>().expect("an address and port").into()
    }

    /// A reply as the kernel makes it, with an attribute that nobody asked for.
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
        attribute(&mut body, 8, &[0]);
        message(SOCK_DIAG_BY_FAMILY, libc::NLM_F_MULTI, 7, &body)
    }

    #[test]
    fn sockets_of_both_families_are_read() {
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
    fn a_socket_is_ended_by_the_very_name_that_it_was_found_by() {
        let bytes = reply(AF_INET, &[10, 0, 0, 9], &[10, 0, 0, 1]);
        let Some(Message { reply: Reply::Socket(socket), .. }) = messages(&bytes).next() else { panic!() };
        let end = socket.name.to_end(Proto::Udp, 8);
        assert_eq!(end.len(), HEADER + 56);
        assert_eq!(u16_at(&end, 4), Some(SOCK_DESTROY));
        assert_eq!(end.get(HEADER..HEADER + 2), Some([AF_INET, 17].as_slice()));
        assert_eq!(end.get(HEADER + 8..), bytes.get(HEADER + 4..HEADER + 52));
    }

    #[test]
    fn errors_are_numbers_and_a_change_meanwhile_is_told() {
        let bytes = message(2, 0, 1, &(-libc::EOPNOTSUPP).to_ne_bytes());
        let wanted = Message { sequence: 1, is_interrupted: false, reply: Reply::End(libc::EOPNOTSUPP) };
        assert_eq!(messages(&bytes).collect::<Vec<_>>(), [wanted]);
        let bytes = message(3, libc::NLM_F_DUMP_INTR, 1, &[]);
        let wanted = Message { sequence: 1, is_interrupted: true, reply: Reply::End(0) };
        assert_eq!(messages(&bytes).collect::<Vec<_>>(), [wanted]);
    }

    #[test]
    fn any_prefix_of_an_answer_is_read_without_harm() {
        let bytes = reply(AF_INET6, &[1; 16], &[2; 16]);
        for end in 0..bytes.len() {
            let cut = bytes.get(..end).expect("a prefix");
            assert_eq!(messages(cut).count(), 0);
            // Nor does a length that lies about its body.
            let mut lying = cut.to_vec();
            if let (Some(length), Ok(end)) = (lying.first_chunk_mut(), u32::try_from(end)) {
                *length = end.to_ne_bytes();
            }
            assert!(messages(&lying).count() <= 1);
        }
        assert_eq!(messages(&[0; 64]).count(), 0, "a length of zero ends it");
    }

    #[test]
    fn a_dump_is_asked_for_with_its_filter() {
        let query =
            Query { family: Family::V6, proto: Proto::Udp, states: state::ESTABLISHED, filter: Some(&[1, 2, 3, 4]) };
        let bytes = query.to_bytes(9);
        assert_eq!(u32_at(&bytes, 0).map(|length| length as usize), Some(bytes.len()));
        assert_eq!((u16_at(&bytes, 4), u16_at(&bytes, 6)), (Some(SOCK_DIAG_BY_FAMILY), Some(0x301)));
        assert_eq!(bytes.get(HEADER..HEADER + 8), Some([AF_INET6, 17, 0, 0, 2, 0, 0, 0].as_slice()));
        assert_eq!(bytes.get(HEADER + 56..), Some([8, 0, 1, 0, 1, 2, 3, 4].as_slice()));
    }
}

//! Conntrack entries of the thread's network namespace (include/uapi/linux/netfilter/nfnetlink_conntrack.h): lists the
//! connections with destination NAT, and adds and deletes entries.

use std::io;

use lb_common::{Addr, Proto, Tuple};

use super::rule::address;
use crate::netlink::{
    NetlinkSocket,
    codec::{be16, be32, find, put_attribute, put_nested},
};

/// NFNL_SUBSYS_CTNETLINK, as the high octet of a type; IPCTNL_MSG_CT_
const NEW: u16 = 1 << 8;
const GET: u16 = NEW | 1;
const DELETE: u16 = NEW | 2;

/// Length of the header before the attributes (`struct nfgenmsg`).
const NFGENMSG: usize = 4;

// IPS_
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const CONFIRMED: u32 = 1 << 3;
const DST_NAT: u32 = 1 << 5;

/// TCP_CONNTRACK_ESTABLISHED; from TCP_CONNTRACK_TIME_WAIT on, a connection is closed.
const ESTABLISHED: u8 = 3;
const TIME_WAIT: u8 = 7;

/// Timeouts of an added connection without packets, in seconds: long enough for the next packet of its peers.
const TCP_TIMEOUT: u32 = 24 * 3600;
const UDP_TIMEOUT: u32 = 120;

/// A conntrack entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection {
    /// IP protocol number.
    pub proto: u8,
    /// Tuple of packets from the client, before translation.
    pub original: Tuple,
    /// Tuple of replies, before translation back.
    pub reply: Tuple,
    /// True if a reply was seen.
    pub seen_reply: bool,
    /// True if both ends have closed the connection, or one has reset it.
    pub is_closed: bool,
    /// Number of the entry; 0 if unknown. A later entry of the same original tuple may have it too: the kernel makes
    /// the number of that tuple and of the entry's address in memory (`nf_ct_get_id`), and a client that connects anew
    /// from the port of a closed connection often gets the memory just freed.
    pub id: u32,
}

impl Connection {
    /// Returns the tuple of packets to the backend, after translation.
    #[must_use]
    pub const fn translated(&self) -> Tuple {
        self.reply.reversed()
    }
}

/// A netlink socket of conntrack.
pub struct Conntrack(NetlinkSocket);

impl Conntrack {
    /// Opens the socket; None if the kernel has no nfnetlink.
    ///
    /// # Errors
    /// The kernel's errno of socket(2).
    pub fn open() -> io::Result<Option<Self>> {
        Ok(NetlinkSocket::netfilter()?.map(Self))
    }

    /// Lists the connections with destination NAT, of both families; none if the kernel has no ctnetlink.
    ///
    /// # Errors
    /// The kernel's errno, or an error if the list changes during every reading.
    pub fn list_dnat(&mut self) -> io::Result<Vec<Connection>> {
        // AF_UNSPEC: both families.
        match self.0.dump(GET, &[0; NFGENMSG], |body| parse(body.get(NFGENMSG..)?)) {
            // nfnetlink's answer if the kernel has no ctnetlink.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Vec::new()),
            other => other,
        }
    }

    /// Adds an established connection. [`Connection::is_closed`], [`Connection::seen_reply`] and [`Connection::id`] are
    /// ignored.
    ///
    /// # Errors
    /// EEXIST if another connection has the same tuple in either direction.
    pub fn insert(&mut self, connection: &Connection) -> io::Result<()> {
        let Connection { proto, original, .. } = connection;
        let mut body = nfgenmsg(&original.dst);
        put_tuple(&mut body, 1, original, *proto);
        // The reply tuple without translation; the kernel applies CTA_NAT_ to it.
        put_tuple(&mut body, 2, &original.reversed(), *proto);
        // CTA_STATUS, CTA_TIMEOUT
        put_attribute(&mut body, 3, &(SEEN_REPLY | ASSURED | CONFIRMED).to_be_bytes());
        let is_tcp = *proto == Proto::Tcp as u8;
        put_attribute(&mut body, 7, &(if is_tcp { TCP_TIMEOUT } else { UDP_TIMEOUT }).to_be_bytes());
        if is_tcp {
            let (mut tcp, mut info) = (Vec::new(), Vec::new());
            put_attribute(&mut tcp, 1, &[ESTABLISHED]);
            // Windows and their scaling are unknown: IP_CT_TCP_FLAG_BE_LIBERAL, of both ends.
            put_attribute(&mut tcp, 4, &[8, 8]);
            put_attribute(&mut tcp, 5, &[8, 8]);
            put_nested(&mut info, 1, &tcp);
            put_nested(&mut body, 4, &info);
        }
        let to = connection.translated();
        // CTA_NAT_SRC, CTA_NAT_DST
        if (to.src, to.src_port) != (original.src, original.src_port) {
            put_range(&mut body, 6, &to.src, to.src_port);
        }
        put_range(&mut body, 13, &to.dst, to.dst_port);
        self.0.execute(NEW, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &body)
    }

    /// Deletes the connection that has `tuple` in either direction, if there is one.
    ///
    /// # Errors
    /// The kernel's errno, except `ENOENT`.
    pub fn delete(&mut self, tuple: &Tuple, proto: u8) -> io::Result<()> {
        self.delete_entry(tuple, proto, None)
    }

    /// Deletes a listed connection; a later one of the same original tuple only if it has the same number.
    ///
    /// # Errors
    /// The kernel's errno, except `ENOENT`.
    pub fn delete_listed(&mut self, connection: &Connection) -> io::Result<()> {
        self.delete_entry(&connection.original, connection.proto, Some(connection.id))
    }

    fn delete_entry(&mut self, tuple: &Tuple, proto: u8, id: Option<u32>) -> io::Result<()> {
        let mut body = nfgenmsg(&tuple.dst);
        put_tuple(&mut body, 1, tuple, proto);
        if let Some(id) = id {
            // CTA_ID
            put_attribute(&mut body, 12, &id.to_be_bytes());
        }
        match self.0.execute(DELETE, 0, &body) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }
}

fn parse(body: &[u8]) -> Option<Connection> {
    let status = be32(find(body, 3)?, 0)?;
    // CTA_ZONE: connections of other zones never meet packets of the node itself.
    if status & DST_NAT == 0 || find(body, 18).is_some() {
        return None;
    }
    let ((original, proto), (reply, _)) = (tuple(find(body, 1)?)?, tuple(find(body, 2)?)?);
    let tcp = find(body, 4).and_then(|info| find(info, 1));
    let state = tcp.and_then(|tcp| find(tcp, 1)).and_then(|state| state.first().copied());
    let is_closed = proto == Proto::Tcp as u8 && state.is_some_and(|state| state >= TIME_WAIT);
    let id = find(body, 12).and_then(|id| be32(id, 0)).unwrap_or(0);
    Some(Connection { proto, original, reply, seen_reply: status & SEEN_REPLY != 0, is_closed, id })
}

/// Parses CTA_TUPLE_IP (CTA_IP_V4_SRC, _DST, _V6_SRC, _DST), CTA_TUPLE_PROTO (CTA_PROTO_NUM, _SRC_PORT, _DST_PORT)
fn tuple(nest: &[u8]) -> Option<(Tuple, u8)> {
    let (ip, proto) = (find(nest, 1)?, find(nest, 2)?);
    let [src, dst] = [(1, 3), (2, 4)].map(|(v4, v6)| find(ip, v4).or_else(|| find(ip, v6)).and_then(address));
    let [src_port, dst_port] = [2, 3].map(|kind| find(proto, kind).and_then(|port| be16(port, 0)).unwrap_or(0));
    Some((Tuple { src: src?, dst: dst?, src_port, dst_port }, *find(proto, 1)?.first()?))
}

fn put_tuple(body: &mut Vec<u8>, kind: u16, tuple: &Tuple, proto: u8) {
    let (mut ip, mut ports, mut both) = (Vec::new(), Vec::new(), Vec::new());
    let first = if tuple.dst.is_v4() { 1 } else { 3 };
    put_attribute(&mut ip, first, octets(&tuple.src));
    put_attribute(&mut ip, first + 1, octets(&tuple.dst));
    put_attribute(&mut ports, 1, &[proto]);
    put_attribute(&mut ports, 2, &tuple.src_port.to_be_bytes());
    put_attribute(&mut ports, 3, &tuple.dst_port.to_be_bytes());
    put_nested(&mut both, 1, &ip);
    put_nested(&mut both, 2, &ports);
    put_nested(body, kind, &both);
}

/// Appends CTA_NAT_V4_MINIP, _MAXIP, CTA_NAT_PROTO (CTA_PROTONAT_PORT_MIN, _MAX), CTA_NAT_V6_MINIP, _MAXIP
fn put_range(body: &mut Vec<u8>, kind: u16, addr: &Addr, port: u16) {
    let (mut range, mut ports) = (Vec::new(), Vec::new());
    let [least, most] = if addr.is_v4() { [1, 2] } else { [4, 5] };
    put_attribute(&mut range, least, octets(addr));
    put_attribute(&mut range, most, octets(addr));
    put_attribute(&mut ports, 1, &port.to_be_bytes());
    put_attribute(&mut ports, 2, &port.to_be_bytes());
    put_nested(&mut range, 3, &ports);
    put_nested(body, kind, &range);
}

/// Returns the 4 or 16 octets of an address, by its family.
pub(super) fn octets(addr: &Addr) -> &[u8] {
    if addr.is_v4() { addr.octets.get(12..).unwrap_or_default() } else { &addr.octets }
}

fn nfgenmsg(of: &Addr) -> Vec<u8> {
    vec![if of.is_v4() { 2 } else { 10 }, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple_of(src: &str, src_port: u16, dst: &str, dst_port: u16) -> Tuple {
        let [src, dst] = [src, dst].map(|ip| Addr::from(ip.parse::<std::net::IpAddr>().expect("an address")));
        Tuple { src, dst, src_port, dst_port }
    }

    #[test]
    fn a_connection_is_parsed_unless_untranslated_or_of_another_zone() {
        for (original, reply) in [
            (tuple_of("192.0.2.9", 4000, "192.0.2.1", 30080), tuple_of("10.0.0.1", 8080, "192.0.2.1", 4000)),
            (tuple_of("fd30::9", 4000, "fd96::1", 80), tuple_of("fd00::1", 8080, "fd30::9", 4000)),
        ] {
            let parsed = |status: u32, state: u8, zone: bool| {
                let (mut body, mut tcp, mut info) = (Vec::new(), Vec::new(), Vec::new());
                put_tuple(&mut body, 1, &original, 6);
                put_tuple(&mut body, 2, &reply, 6);
                put_attribute(&mut body, 3, &status.to_be_bytes());
                put_attribute(&mut tcp, 1, &[state]);
                put_nested(&mut info, 1, &tcp);
                put_nested(&mut body, 4, &info);
                put_attribute(&mut body, 12, &7_u32.to_be_bytes());
                if zone {
                    put_attribute(&mut body, 18, &[0, 1]);
                }
                for length in 0..body.len() {
                    let _no_panic = parse(body.get(..length).expect("shorter"));
                }
                parse(&body)
            };
            let open = Connection { proto: 6, original, reply, seen_reply: true, is_closed: false, id: 7 };
            assert_eq!(parsed(DST_NAT | SEEN_REPLY, ESTABLISHED, false), Some(open));
            assert_eq!(parsed(DST_NAT | SEEN_REPLY, TIME_WAIT, false).map(|parsed| parsed.is_closed), Some(true));
            assert_eq!(parsed(DST_NAT, 1, false).map(|parsed| parsed.seen_reply), Some(false));
            assert_eq!(parsed(SEEN_REPLY, ESTABLISHED, false), None, "no destination NAT");
            assert_eq!(parsed(DST_NAT | SEEN_REPLY, ESTABLISHED, true), None, "another zone");
        }
    }
}

//! Connections knows them (include/uapi/linux/netfilter/nfnetlink_conntrack.h): those whose destination it
//! translates are listed, and those that Beeline has translated are handed to it. Of the thread's network namespace.

use std::io;

use lb_common::{Addr, Proto, Tuple};

use super::rule::{address, find};
use crate::netlink::{
    Channel,
    wire::{attribute, be16, be32, nest},
};

/// NFNL_SUBSYS_CTNETLINK, as the high octet of a type; IPCTNL_MSG_CT_
const NEW: u16 = 1 << 8;
const GET: u16 = NEW | 1;
const DELETE: u16 = NEW | 2;

/// Length of what stands before the attributes (`struct nfgenmsg`).
const GENERIC: usize = 4;

// IPS_
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const CONFIRMED: u32 = 1 << 3;
const DST_NAT: u32 = 1 << 5;

/// TCP_CONNTRACK_ESTABLISHED; from TCP_CONNTRACK_TIME_WAIT on, a connection is over.
const ESTABLISHED: u8 = 3;
const TIME_WAIT: u8 = 7;

/// For how long a connection that is handed over is kept without a packet, in seconds: until then its peers have spoken.
const TCP_LASTS: u32 = 24 * 3600;
const UDP_LASTS: u32 = 120;

/// A connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection {
    /// IP protocol number.
    pub proto: u8,
    /// What the client sends.
    pub dialled: Tuple,
    /// What answers to it look like before they are translated.
    pub reply: Tuple,
    /// Whether there was one.
    pub is_answered: bool,
    /// Whether both ends have closed, or one has reset it.
    pub is_over: bool,
}

impl Connection {
    /// What the backend gets.
    #[must_use]
    pub const fn translated(&self) -> Tuple {
        self.reply.reversed()
    }
}

/// A conversation.
pub struct Conntrack(Channel);

impl Conntrack {
    /// None where the kernel has no such part.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> io::Result<Option<Self>> {
        Ok(Channel::netfilter()?.map(Self))
    }

    /// Those whose destination is translated.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn translated(&mut self) -> io::Result<Vec<Connection>> {
        // AF_UNSPEC: of both families.
        match self.0.list(GET, &[0; GENERIC], |body| parse(body.get(GENERIC..)?)) {
            // nfnetlink says so where the kernel has no ctnetlink.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Vec::new()),
            other => other,
        }
    }

    /// Makes a connection that was open before conntrack saw it. Without [`Connection::is_over`] and
    /// [`Connection::is_answered`], which are not looked at.
    ///
    /// # Errors
    /// What the kernel says: EEXIST where there is one that looks the same to either end.
    pub fn put(&mut self, connection: &Connection) -> io::Result<()> {
        let Connection { proto, dialled, .. } = connection;
        let mut body = generic(&dialled.dst);
        put_tuple(&mut body, 1, dialled, *proto);
        // As it would be without translation; the kernel makes the rest of what it is told below.
        put_tuple(&mut body, 2, &dialled.reversed(), *proto);
        // CTA_STATUS, CTA_TIMEOUT
        attribute(&mut body, 3, &(SEEN_REPLY | ASSURED | CONFIRMED).to_be_bytes());
        let is_tcp = *proto == Proto::Tcp as u8;
        attribute(&mut body, 7, &(if is_tcp { TCP_LASTS } else { UDP_LASTS }).to_be_bytes());
        if is_tcp {
            let (mut tcp, mut info) = (Vec::new(), Vec::new());
            attribute(&mut tcp, 1, &[ESTABLISHED]);
            // Nobody knows the windows, nor how they are scaled: IP_CT_TCP_FLAG_BE_LIBERAL, of both ends.
            attribute(&mut tcp, 4, &[8, 8]);
            attribute(&mut tcp, 5, &[8, 8]);
            nest(&mut info, 1, &tcp);
            nest(&mut body, 4, &info);
        }
        let to = connection.translated();
        // CTA_NAT_SRC, CTA_NAT_DST
        if (to.src, to.src_port) != (dialled.src, dialled.src_port) {
            put_range(&mut body, 6, &to.src, to.src_port);
        }
        put_range(&mut body, 13, &to.dst, to.dst_port);
        self.0.order(NEW, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &body)
    }

    /// Forgets the connection of which packets of `tuple` are; that there is none is as good.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn forget(&mut self, tuple: &Tuple, proto: u8) -> io::Result<()> {
        let mut body = generic(&tuple.dst);
        put_tuple(&mut body, 1, tuple, proto);
        match self.0.order(DELETE, 0, &body) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }
}

fn parse(body: &[u8]) -> Option<Connection> {
    let status = be32(find(body, 3)?, 0)?;
    // CTA_ZONE: those of other zones never meet packets of the node itself.
    if status & DST_NAT == 0 || find(body, 18).is_some() {
        return None;
    }
    let ((dialled, proto), (reply, _)) = (tuple(find(body, 1)?)?, tuple(find(body, 2)?)?);
    let tcp = find(body, 4).and_then(|info| find(info, 1));
    let state = tcp.and_then(|tcp| find(tcp, 1)).and_then(|state| state.first().copied());
    let is_over = proto == Proto::Tcp as u8 && state.is_some_and(|state| state >= TIME_WAIT);
    Some(Connection { proto, dialled, reply, is_answered: status & SEEN_REPLY != 0, is_over })
}

/// CTA_TUPLE_IP (CTA_IP_V4_SRC, _DST, _V6_SRC, _DST), CTA_TUPLE_PROTO (CTA_PROTO_NUM, _SRC_PORT, _DST_PORT)
fn tuple(nest: &[u8]) -> Option<(Tuple, u8)> {
    let (ip, proto) = (find(nest, 1)?, find(nest, 2)?);
    let [src, dst] = [(1, 3), (2, 4)].map(|(v4, v6)| find(ip, v4).or_else(|| find(ip, v6)).and_then(address));
    let [src_port, dst_port] = [2, 3].map(|kind| find(proto, kind).and_then(|port| be16(port, 0)).unwrap_or(0));
    Some((Tuple { src: src?, dst: dst?, src_port, dst_port }, *find(proto, 1)?.first()?))
}

fn put_tuple(body: &mut Vec<u8>, kind: u16, tuple: &Tuple, proto: u8) {
    let (mut ip, mut ports, mut both) = (Vec::new(), Vec::new(), Vec::new());
    let first = if tuple.dst.is_v4() { 1 } else { 3 };
    attribute(&mut ip, first, octets(&tuple.src));
    attribute(&mut ip, first + 1, octets(&tuple.dst));
    attribute(&mut ports, 1, &[proto]);
    attribute(&mut ports, 2, &tuple.src_port.to_be_bytes());
    attribute(&mut ports, 3, &tuple.dst_port.to_be_bytes());
    nest(&mut both, 1, &ip);
    nest(&mut both, 2, &ports);
    nest(body, kind, &both);
}

/// CTA_NAT_V4_MINIP, _MAXIP, CTA_NAT_PROTO (CTA_PROTONAT_PORT_MIN, _MAX), CTA_NAT_V6_MINIP, _MAXIP
fn put_range(body: &mut Vec<u8>, kind: u16, addr: &Addr, port: u16) {
    let (mut range, mut ports) = (Vec::new(), Vec::new());
    let [least, most] = if addr.is_v4() { [1, 2] } else { [4, 5] };
    attribute(&mut range, least, octets(addr));
    attribute(&mut range, most, octets(addr));
    attribute(&mut ports, 1, &port.to_be_bytes());
    attribute(&mut ports, 2, &port.to_be_bytes());
    nest(&mut range, 3, &ports);
    nest(body, kind, &range);
}

/// An address has it, by its family.
pub fn octets(addr: &Addr) -> &[u8] {
    if addr.is_v4() { addr.octets.get(12..).unwrap_or_default() } else { &addr.octets }
}

fn generic(of: &Addr) -> Vec<u8> {
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
    fn what_is_told_of_a_connection_is_read() {
        for (dialled, reply) in [
            (tuple_of("192.0.2.9", 4000, "192.0.2.1", 30080), tuple_of("10.0.0.1", 8080, "192.0.2.1", 4000)),
            (tuple_of("fd30::9", 4000, "fd96::1", 80), tuple_of("fd00::1", 8080, "fd30::9", 4000)),
        ] {
            let told = |status: u32, state: u8, zone: bool| {
                let (mut body, mut tcp, mut info) = (Vec::new(), Vec::new(), Vec::new());
                put_tuple(&mut body, 1, &dialled, 6);
                put_tuple(&mut body, 2, &reply, 6);
                attribute(&mut body, 3, &status.to_be_bytes());
                attribute(&mut tcp, 1, &[state]);
                nest(&mut info, 1, &tcp);
                nest(&mut body, 4, &info);
                if zone {
                    attribute(&mut body, 18, &[0, 1]);
                }
                for length in 0..body.len() {
                    let _no_panic = parse(body.get(..length).expect("shorter"));
                }
                parse(&body)
            };
            let open = Connection { proto: 6, dialled, reply, is_answered: true, is_over: false };
            assert_eq!(told(DST_NAT | SEEN_REPLY, ESTABLISHED, false), Some(open));
            assert_eq!(told(DST_NAT | SEEN_REPLY, TIME_WAIT, false).map(|told| told.is_over), Some(true));
            assert_eq!(told(DST_NAT, 1, false).map(|told| told.is_answered), Some(false));
            assert_eq!(told(SEEN_REPLY, ESTABLISHED, false), None, "its destination is as it was");
            assert_eq!(told(DST_NAT | SEEN_REPLY, ESTABLISHED, true), None, "of another zone");
        }
    }
}

//! Netlink in the network namespace of the calling thread, rtnetlink(7) and netfilter's: dumps, commands, batches, and
//! notifications of changes. Parsers take only the attributes that they need, so unknown attributes do no harm.

pub mod address;
pub mod announced;
pub mod codec;
pub mod local_routes;
pub mod network_state;
pub mod route;
pub mod xfrm;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netdevice,
        netlink::{self, SocketAddrNetlink},
        recv, send, socket_with, sockopt,
    },
};
use tokio::io::unix::AsyncFd;

use crate::socket_options;

/// Room for a datagram: the kernel fills datagrams of a dump as far as the reader's buffer allows, to 32 KiB.
pub(crate) const BUFFER: usize = 1 << 15;

/// Timeout of an answer. The kernel answers from memory; a later answer means that the request was lost.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Number of readings after which a list that changes during each of them is given up.
const READINGS: usize = 10;

/// Multicast groups of notifications (`RTMGRP_` in include/uapi/linux/rtnetlink.h).
pub mod group {
    /// Links.
    pub const LINK: u32 = 1;
    /// Addresses of both families.
    pub const ADDRESS: u32 = 0x10 | 0x100;
    /// Routes of both families.
    pub const ROUTE: u32 = 0x40 | 0x400;
    /// Rules of both families; that of IPv6 has no name in the header.
    pub const RULE: u32 = 0x80 | 1 << (19 - 1);
    /// Qdiscs and filters.
    pub const TC: u32 = 8;
}

/// Returns the name of a device of this thread's network namespace, if it exists.
#[must_use]
pub fn name_of(index: u32) -> Option<String> {
    let fd = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
    netdevice::index_to_name(fd, index).ok()
}

/// Reads the next datagram of an answer and returns its length. None if this datagram or one before it is lost; the end
/// of the answer is yet to come.
pub(crate) fn receive(fd: &impl AsFd, buffer: &mut Vec<u8>) -> Result<Option<usize>, Errno> {
    let length = loop {
        match recv(fd, buffer.as_mut_slice(), RecvFlags::TRUNC) {
            Ok((_, length)) => break length,
            Err(Errno::NOBUFS) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    };
    if length <= buffer.len() {
        return Ok(Some(length));
    }
    // Larger than datagrams of any kernel so far.
    buffer.resize(length.next_power_of_two(), 0);
    Ok(None)
}

/// Opens a socket of a protocol, or of rtnetlink (NETLINK_ROUTE is 0).
fn socket(flags: SocketFlags, protocol: Option<Protocol>) -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::NETLINK, SocketType::RAW, flags | SocketFlags::CLOEXEC, protocol)
}

/// A subscription to rtnetlink's notifications. It reports only that something has changed: the reader then reads the
/// whole state, so that a lost notification loses nothing.
pub struct Monitor(AsyncFd<OwnedFd>);

impl Monitor {
    /// Subscribes to these [`group`]s, in the network namespace of this thread.
    ///
    /// # Errors
    /// When the socket cannot be opened or bound.
    pub fn subscribe(groups: u32) -> io::Result<Self> {
        Self::subscribe_to(None, groups)
    }

    /// Subscribes to changes of IPsec policies, in the network namespace of this thread.
    ///
    /// # Errors
    /// When the socket cannot be opened or bound; EPROTONOSUPPORT if the kernel has no IPsec.
    pub fn subscribe_to_policies() -> io::Result<Self> {
        Self::subscribe_to(Some(netlink::XFRM), xfrm::POLICIES)
    }

    fn subscribe_to(protocol: Option<Protocol>, groups: u32) -> io::Result<Self> {
        let fd = socket(SocketFlags::NONBLOCK, protocol)?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self(crate::async_fd::register(fd)?))
    }

    /// Returns when something may have changed. All queued notifications count as one change, and so does a loss of
    /// some.
    ///
    /// # Errors
    /// When the socket has failed.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut guard = self.0.readable().await?;
        let mut buffer = [0_u8; 4096];
        loop {
            match recv(guard.get_inner(), buffer.as_mut_slice(), RecvFlags::empty()) {
                Err(Errno::AGAIN) => break,
                // Truncated or not: the content is not read.
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        guard.clear_ready();
        Ok(())
    }
}

/// A blocking netlink socket, for one request at a time.
pub struct NetlinkSocket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl NetlinkSocket {
    /// Opens a socket of rtnetlink, in the network namespace of this thread.
    ///
    /// # Errors
    /// The kernel's errno of socket(2).
    pub fn open() -> io::Result<Self> {
        Self::new(socket(SocketFlags::empty(), None)?)
    }

    /// Opens a socket of netfilter, in the network namespace of this thread; None if the kernel has no nfnetlink.
    pub(crate) fn netfilter() -> io::Result<Option<Self>> {
        match socket(SocketFlags::empty(), Some(netlink::NETFILTER)) {
            Ok(fd) => Self::new(fd).map(Some),
            Err(Errno::PROTONOSUPPORT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a socket of IPsec, in the network namespace of this thread; None if the kernel has no IPsec.
    pub(crate) fn xfrm() -> io::Result<Option<Self>> {
        match socket(SocketFlags::empty(), Some(netlink::XFRM)) {
            Ok(fd) => Self::new(fd).map(Some),
            Err(Errno::PROTONOSUPPORT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn new(fd: OwnedFd) -> io::Result<Self> {
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(TIMEOUT))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Makes the kernel send only those objects of a list that match the fields of its request, where it can.
    ///
    /// # Errors
    /// The kernel's errno.
    fn filter_dumps(&self) -> io::Result<()> {
        socket_options::filter_dumps(&self.fd)
    }

    /// Requests a list (NLM_F_DUMP), and collects the results of `parse` over the bodies of its messages.
    ///
    /// # Errors
    /// The kernel's errno, or an error if the list changes during every reading.
    pub fn dump<T>(&mut self, kind: u16, body: &[u8], mut parse: impl FnMut(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        for _ in 0..READINGS {
            let mut parsed = Vec::new();
            if self.request(kind, libc::NLM_F_DUMP, body, |body| parsed.extend(parse(body)))? {
                return Ok(parsed);
            }
        }
        Err(io::Error::other(format!("the list changed during each of {READINGS} readings")))
    }

    /// Requests one object, and returns the result of `parse` over the body of the answer.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn get<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        mut parse: impl FnMut(&[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let mut found = None;
        self.request(kind, libc::NLM_F_ACK, body, |body| found = parse(body))?;
        Ok(found)
    }

    /// Sends a command, with further `NLM_F_` flags, and waits for its acknowledgement.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn execute(&mut self, kind: u16, flags: i32, body: &[u8]) -> io::Result<()> {
        self.request(kind, libc::NLM_F_ACK | flags, body, |_| {}).map(drop)
    }

    /// Sends these commands (message type, `NLM_F_` flags, body) in one datagram, as netfilter takes them: all are
    /// done, or none. The last but one asks for the acknowledgement, since the last one ends the batch and has none.
    /// Fails with the errno of the first refused command.
    pub(crate) fn batch(&mut self, messages: &[(u16, i32, Vec<u8>)]) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut last = self.sequence;
        for (nth, (kind, flags, body)) in messages.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let is_last = nth + 2 == messages.len();
            if is_last {
                last = self.sequence;
            }
            let flags = if is_last { *flags | libc::NLM_F_ACK } else { *flags };
            bytes.extend(codec::request(*kind, flags, self.sequence, body));
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        // The batch of a large cluster has megabytes.
        let room = bytes.len().saturating_mul(2).max(1 << 18);
        sockopt::set_socket_send_buffer_size_force(&self.fd, room)?;
        send(&self.fd, &bytes, SendFlags::empty())?;
        loop {
            let length = match receive(&self.fd, &mut self.buffer) {
                Ok(Some(length)) => length,
                Ok(None) => continue,
                Err(Errno::AGAIN) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer")),
                Err(error) => return Err(error.into()),
            };
            for frame in codec::frames(self.buffer.get(..length).unwrap_or_default()) {
                match frame.end_code() {
                    Some(0) if frame.sequence == last => return Ok(()),
                    Some(code) if code != 0 => return Err(io::Error::from_raw_os_error(code)),
                    _ => {}
                }
            }
        }
    }

    /// Sends a request and reads its answer to the end. False if the answer is incomplete: the list changed meanwhile,
    /// or a datagram is lost.
    fn request(&mut self, kind: u16, flags: i32, body: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        send(&self.fd, &codec::request(kind, flags, self.sequence, body), SendFlags::empty())?;
        let mut is_complete = true;
        loop {
            let length = match receive(&self.fd, &mut self.buffer) {
                Ok(Some(length)) => length,
                Ok(None) => {
                    is_complete = false;
                    continue;
                }
                Err(Errno::AGAIN) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer")),
                Err(error) => return Err(error.into()),
            };
            for frame in codec::frames(self.buffer.get(..length).unwrap_or_default()) {
                if frame.sequence != self.sequence {
                    continue;
                }
                is_complete &= i32::from(frame.flags) & libc::NLM_F_DUMP_INTR == 0;
                match frame.end_code() {
                    None => each(frame.body),
                    Some(0) => return Ok(is_complete),
                    Some(code) => return Err(io::Error::from_raw_os_error(code)),
                }
            }
        }
    }
}

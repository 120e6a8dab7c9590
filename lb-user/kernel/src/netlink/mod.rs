//! Netlink in the network namespace of the calling thread, rtnetlink(7) and netfilter's: lists, orders, batches, and the news
//! that something has changed. Only what is asked for is taken out of a message, so that an attribute nobody here knows hides nothing.

pub mod address;
pub mod facts;
pub mod wire;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::{self, SocketAddrNetlink},
        recv, send, socket_with, sockopt,
    },
};
use tokio::io::unix::AsyncFd;

/// Room for a datagram: the kernel fills those of a dump as far as the reader's buffer allows, to 32 KiB.
pub const BUFFER: usize = 1 << 15;

/// The kernel answers from memory; one that takes longer has lost the question.
const PATIENCE: Duration = Duration::from_secs(5);

/// A list that changes under every reading is given up after so many.
const READINGS: usize = 10;

/// Kinds of news (`RTMGRP_` in include/uapi/linux/rtnetlink.h).
pub mod group {
    /// Links.
    pub const LINK: u32 = 1;
    /// Addresses of both families.
    pub const ADDRESS: u32 = 0x10 | 0x100;
    /// Routes of both families.
    pub const ROUTE: u32 = 0x40 | 0x400;
}

/// Reads the next datagram of an answer: how many octets of `buffer` it is. None when it, or one before it, is lost; the end
/// of the answer is yet to come.
///
/// # Errors
/// What the kernel says.
pub fn receive(fd: &impl AsFd, buffer: &mut Vec<u8>) -> Result<Option<usize>, Errno> {
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
    // Larger than any kernel of today makes them.
    buffer.resize(length.next_power_of_two(), 0);
    Ok(None)
}

/// Of rtnetlink where no other protocol is named: NETLINK_ROUTE is 0.
fn socket(flags: SocketFlags, protocol: Option<Protocol>) -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::NETLINK, SocketType::RAW, flags | SocketFlags::CLOEXEC, protocol)
}

/// Hears that something has changed; what there is now is then read as a whole, so that a lost event loses nothing.
pub struct News(AsyncFd<OwnedFd>);

impl News {
    /// Of these [`group`]s.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn of(groups: u32) -> io::Result<Self> {
        let fd = socket(SocketFlags::NONBLOCK, None)?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self(crate::async_fd::register(fd)?))
    }

    /// Returns when something may have changed. All that is queued is one change, and so is the loss of some.
    ///
    /// # Errors
    /// When the socket has died.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut guard = self.0.readable().await?;
        let mut buffer = [0_u8; 4096];
        loop {
            match recv(guard.get_inner(), buffer.as_mut_slice(), RecvFlags::empty()) {
                Err(Errno::AGAIN) => break,
                // Of what is cut short, nothing is read.
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        guard.clear_ready();
        Ok(())
    }
}

/// A conversation.
pub struct Channel {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Channel {
    /// With rtnetlink, in the network namespace of this thread.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> io::Result<Self> {
        Self::of(socket(SocketFlags::empty(), None)?)
    }

    /// With netfilter, in the network namespace of this thread; none where the kernel has no netfilter of this kind.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn netfilter() -> io::Result<Option<Self>> {
        match socket(SocketFlags::empty(), Some(netlink::NETFILTER)) {
            Ok(fd) => Self::of(fd).map(Some),
            Err(Errno::PROTONOSUPPORT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn of(fd: OwnedFd) -> io::Result<Self> {
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Asks for a list, and keeps of each of its messages what `parse` makes of the body.
    ///
    /// # Errors
    /// What the kernel says, or that the list changed under every reading.
    pub fn list<T>(&mut self, kind: u16, body: &[u8], mut parse: impl FnMut(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        for _ in 0..READINGS {
            let mut kept = Vec::new();
            if self.ask(kind, libc::NLM_F_DUMP, body, |body| kept.extend(parse(body)))? {
                return Ok(kept);
            }
        }
        Err(io::Error::other(format!("it changed during each of {READINGS} readings")))
    }

    /// Asks for one thing; what `parse` makes of the body of the answer.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn get<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        mut parse: impl FnMut(&[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let mut found = None;
        self.ask(kind, libc::NLM_F_ACK, body, |body| found = parse(body))?;
        Ok(found)
    }

    /// Orders something, with further `NLM_F_` flags.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn order(&mut self, kind: u16, flags: i32, body: &[u8]) -> io::Result<()> {
        self.ask(kind, libc::NLM_F_ACK | flags, body, |_| {}).map(drop)
    }

    /// Orders all of these messages (a kind, `NLM_F_` flags, a body) in one datagram, as netfilter takes them: all are done, or
    /// none. The last but one is asked for an acknowledgement, since the last one ends the batch and has none.
    ///
    /// # Errors
    /// What the kernel says, of the first that it refuses.
    pub fn batch(&mut self, messages: &[(u16, i32, Vec<u8>)]) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut last = self.sequence;
        for (nth, (kind, flags, body)) in messages.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let is_last = nth + 2 == messages.len();
            if is_last {
                last = self.sequence;
            }
            let flags = if is_last { *flags | libc::NLM_F_ACK } else { *flags };
            bytes.extend(wire::request(*kind, flags, self.sequence, body));
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        // Of a large cluster it has megabytes.
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
            for frame in wire::frames(self.buffer.get(..length).unwrap_or_default()) {
                match frame.end() {
                    Some(0) if frame.sequence == last => return Ok(()),
                    Some(code) if code != 0 => return Err(io::Error::from_raw_os_error(code)),
                    _ => {}
                }
            }
        }
    }

    /// Sends a request and reads its answer to the end. False when something is missing from it.
    fn ask(&mut self, kind: u16, flags: i32, body: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        send(&self.fd, &wire::request(kind, flags, self.sequence, body), SendFlags::empty())?;
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
            for frame in wire::frames(self.buffer.get(..length).unwrap_or_default()) {
                if frame.sequence != self.sequence {
                    continue;
                }
                is_complete &= i32::from(frame.flags) & libc::NLM_F_DUMP_INTR == 0;
                match frame.end() {
                    None => each(frame.body),
                    Some(0) => return Ok(is_complete),
                    Some(code) => return Err(io::Error::from_raw_os_error(code)),
                }
            }
        }
    }
}

//! A conversation with sock_diag in one network namespace: lists of its sockets, and the end of one.

use std::{io, os::fd::OwnedFd};

use anyhow::{Context as _, Result, bail};
use lb_common::Proto;
use rustix::{
    io::Errno,
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, netlink, send, socket_with, sockopt},
};

use crate::netlink::{BUFFER, receive};

use super::message::{Message, Name, Query, Reply, Socket, messages};

/// What the kernel may hold ready for us.
const RECEIVE_BUFFER: usize = 1 << 20;

/// A list that changes under every reading is given up after so many.
const READINGS: usize = 5;

/// What became of a socket that was to be ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It has ended.
    Yes,
    /// No socket has this name: it was closed, it turned elsewhere, or another one with the same addresses hides it.
    Gone,
}

/// A netlink socket. It belongs to the network namespace that its thread was in when it was opened.
pub struct Channel {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Channel {
    /// Opens one in the namespace of this thread.
    pub fn open() -> Result<Self> {
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))
            .context("opening a sock_diag socket (the kernel needs CONFIG_INET_DIAG)")?;
        // Beyond what others may have; a smaller one costs time only.
        let _best_effort = sockopt::set_socket_recv_buffer_size_force(&fd, RECEIVE_BUFFER);
        Ok(Self { fd, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Asks for sockets, and keeps of each what `keep` makes of it.
    pub fn list<T>(&mut self, query: Query<'_>, mut keep: impl FnMut(&Socket) -> Result<Option<T>>) -> Result<Vec<T>> {
        for _ in 0..READINGS {
            let mut kept = Vec::new();
            let ask = query.to_bytes(self.next());
            let mut failed = None;
            let answer = self.ask(&ask, |socket| match keep(socket) {
                Ok(one) => kept.extend(one),
                Err(error) => failed = Some(error),
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            match answer {
                Answer { is_complete: true, error: None } => return Ok(kept),
                Answer { is_complete: false, .. } => {}
                Answer { error: Some(Errno::NOENT), .. } => bail!(missing(query.proto)),
                Answer { error: Some(error), .. } => {
                    return Err(error).with_context(|| format!("listing {} sockets", query.proto.name()));
                }
            }
        }
        bail!("the list of {} sockets changed under each of {READINGS} readings", query.proto.name())
    }

    /// Ends a socket: its application sees ECONNABORTED. None when this kernel cannot.
    pub fn end(&mut self, proto: Proto, name: Name) -> Result<Option<Ended>> {
        let ask = name.to_end(proto, self.next());
        match self.ask(&ask, |_| {})?.error {
            None => Ok(Some(Ended::Yes)),
            Some(Errno::NOENT) => Ok(Some(Ended::Gone)),
            Some(Errno::OPNOTSUPP) => Ok(None),
            Some(error) => Err(error).with_context(|| format!("ending a {} socket", proto.name())),
        }
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends a request and reads its answer to the end.
    fn ask(&mut self, request: &[u8], mut each: impl FnMut(&Socket)) -> io::Result<Answer> {
        send(&self.fd, request, SendFlags::empty())?;
        let mut is_complete = true;
        loop {
            let Some(length) = receive(&self.fd, &mut self.buffer)? else {
                is_complete = false;
                continue;
            };
            for Message { sequence, is_interrupted, reply } in messages(self.buffer.get(..length).unwrap_or_default()) {
                if sequence != self.sequence {
                    continue;
                }
                is_complete &= !is_interrupted;
                match reply {
                    Reply::Socket(socket) => each(&socket),
                    Reply::End(0) => return Ok(Answer { is_complete, error: None }),
                    Reply::End(code) => {
                        return Ok(Answer { is_complete, error: Some(Errno::from_raw_os_error(code)) });
                    }
                    Reply::Other => {}
                }
            }
        }
    }
}

struct Answer {
    /// False when it must be asked again.
    is_complete: bool,
    error: Option<Errno>,
}

fn missing(proto: Proto) -> String {
    let (proto, module) = match proto {
        Proto::Udp => ("UDP", "udp_diag"),
        _ => ("TCP", "tcp_diag"),
    };
    format!(
        "this kernel does not list {proto} sockets, so those of backends that have gone stay open: load the module {module} \
         on the node (`modprobe {module}`), or use a kernel with CONFIG_INET_{}",
        module.to_uppercase()
    )
}

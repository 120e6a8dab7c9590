//! A netlink socket of sock_diag in one network namespace: lists the sockets of the namespace, and destroys single
//! ones.

use std::{io, os::fd::OwnedFd};

use anyhow::{Context as _, Result, bail};
use lb_common::Proto;
use rustix::{
    io::Errno,
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, netlink, send, socket_with, sockopt},
};

use crate::netlink::{BUFFER, receive};

use super::message::{Activity, Message, Reply, Socket, SocketId, SocketQuery, messages};

/// Size of the socket's receive buffer, in octets.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Number of readings after which a list that changes during each of them is given up.
const READINGS: usize = 5;

/// Result of a request to destroy a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DestroyOutcome {
    /// The socket is destroyed.
    Destroyed,
    /// No socket has this id: it was closed or connected elsewhere, or another socket with the same addresses hides it.
    NotFound,
}

/// A netlink socket of sock_diag, in the network namespace of the thread that opened it.
pub struct SockDiag {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl SockDiag {
    /// Opens a socket in the network namespace of this thread.
    ///
    /// # Errors
    /// When the kernel has no sock_diag.
    pub fn open() -> Result<Self> {
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))
            .context("opening a sock_diag socket (the kernel needs CONFIG_INET_DIAG)")?;
        // Beyond net.core.rmem_max, which needs CAP_NET_ADMIN; a smaller buffer costs time only.
        let _best_effort = sockopt::set_socket_recv_buffer_size_force(&fd, RECEIVE_BUFFER);
        Ok(Self { fd, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Lists sockets, and collects the results of `keep` over them.
    ///
    /// # Errors
    /// When the kernel does not list sockets of the protocol, when the list changes during every reading, or an error
    /// of `keep`.
    pub fn list<T>(
        &mut self,
        query: SocketQuery<'_>,
        mut keep: impl FnMut(&Socket) -> Result<Option<T>>,
    ) -> Result<Vec<T>> {
        for _ in 0..READINGS {
            let mut kept = Vec::new();
            let request = query.to_bytes(self.next());
            let mut failed = None;
            let answer = self.request(&request, |socket| match keep(socket) {
                Ok(one) => kept.extend(one),
                Err(error) => failed = Some(error),
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            match answer {
                Answer { is_complete: true, error: None } => return Ok(kept),
                Answer { is_complete: false, .. } => {}
                Answer { error: Some(Errno::NOENT), .. } => bail!(no_diag_module(query.proto)),
                Answer { error: Some(error), .. } => {
                    return Err(error).with_context(|| format!("listing {} sockets", query.proto.name()));
                }
            }
        }
        bail!("the list of {} sockets changed during each of {READINGS} readings", query.proto.name())
    }

    /// Destroys a socket: its application sees ECONNABORTED. None if this kernel cannot.
    ///
    /// # Errors
    /// The kernel's errno, such as `EPERM` without CAP_NET_ADMIN.
    pub fn destroy(&mut self, proto: Proto, id: SocketId) -> Result<Option<DestroyOutcome>> {
        let request = id.destroy_request(proto, self.next());
        match self.request(&request, |_| {})?.error {
            None => Ok(Some(DestroyOutcome::Destroyed)),
            Some(Errno::NOENT) => Ok(Some(DestroyOutcome::NotFound)),
            Some(Errno::OPNOTSUPP) => Ok(None),
            Some(error) => Err(error).with_context(|| format!("destroying a {} socket", proto.name())),
        }
    }

    /// Reads the activity of a TCP socket; none if no socket has the id.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn activity(&mut self, id: SocketId) -> Result<Option<Activity>> {
        let request = id.activity_request(self.next());
        let mut activity = None;
        match self.request(&request, |socket| activity = socket.activity)?.error {
            None | Some(Errno::NOENT) => Ok(activity),
            Some(error) => Err(error).context("reading a TCP socket"),
        }
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends a request and reads its answer to the end.
    fn request(&mut self, request: &[u8], mut each: impl FnMut(&Socket)) -> io::Result<Answer> {
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
    /// False if the list changed meanwhile, so that it must be read again.
    is_complete: bool,
    error: Option<Errno>,
}

fn no_diag_module(proto: Proto) -> String {
    let (proto, module) = match proto {
        Proto::Udp => ("UDP", "udp_diag"),
        _ => ("TCP", "tcp_diag"),
    };
    format!(
        "this kernel does not list {proto} sockets, so sockets of removed backends stay open: load the module {module} \
         on the node (`modprobe {module}`), or use a kernel with CONFIG_INET_{}",
        module.to_uppercase()
    )
}

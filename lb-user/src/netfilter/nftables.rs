//! A conversation with nf_tables in one network namespace: lists of its tables and of its chains.

use std::os::fd::OwnedFd;

use anyhow::{Result, bail};
use rustix::{
    io::Errno,
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, netlink, send, socket_with},
};

use super::{
    Chain, Table,
    message::{Reply, What, replies, request},
};
use crate::{
    netlink::{BUFFER, receive},
    spec::Family,
};

/// A list that changes under every reading is given up after so many.
const READINGS: usize = 5;

/// A netlink socket. It belongs to the network namespace that its thread was in when it was opened.
pub(super) struct Channel {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Channel {
    /// Opens one; none where the kernel has no netfilter of this kind.
    pub(super) fn open() -> Result<Option<Self>> {
        match socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER)) {
            Ok(fd) => Ok(Some(Self { fd, sequence: 0, buffer: vec![0; BUFFER] })),
            Err(Errno::PROTONOSUPPORT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn tables(&mut self, family: Family) -> Result<Vec<Table>> {
        let named = self.list(What::Tables, family)?;
        Ok(named.into_iter().map(|(name, _)| Table { family, name }).collect())
    }

    pub(super) fn chains(&mut self, family: Family) -> Result<Vec<Chain>> {
        let named = self.list(What::Chains, family)?;
        let chain = |(table, name)| Chain { table: Table { family, name: table }, name };
        Ok(named.into_iter().map(chain).collect())
    }

    /// Names of tables and, in them, of chains.
    fn list(&mut self, what: What, family: Family) -> Result<Vec<(String, String)>> {
        for _ in 0..READINGS {
            if let Some(named) = self.ask(what, family)? {
                return Ok(named);
            }
        }
        bail!("they changed under each of {READINGS} readings")
    }

    /// None: they changed meanwhile, and something may be missing.
    fn ask(&mut self, what: What, family: Family) -> Result<Option<Vec<(String, String)>>> {
        self.sequence = self.sequence.wrapping_add(1);
        send(&self.fd, &request(what, family, self.sequence), SendFlags::empty())?;
        let (mut is_complete, mut found) = (true, Vec::new());
        loop {
            let Some(length) = receive(&self.fd, &mut self.buffer)? else {
                is_complete = false;
                continue;
            };
            let datagram = self.buffer.get(..length).unwrap_or_default();
            for (is_interrupted, reply) in replies(datagram, what, self.sequence) {
                is_complete &= !is_interrupted;
                match reply {
                    Reply::Named { table, chain } => found.push((table, chain)),
                    Reply::Other => {}
                    Reply::End(0) => return Ok(is_complete.then_some(found)),
                    // nfnetlink says so where the kernel has no nf_tables.
                    Reply::End(libc::EINVAL) => return Ok(Some(Vec::new())),
                    Reply::End(code) => return Err(Errno::from_raw_os_error(code).into()),
                }
            }
        }
    }
}

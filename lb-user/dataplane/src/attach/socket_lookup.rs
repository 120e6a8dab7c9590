//! The link at the look-up of sockets in the node's network namespace, and the sinks to which its program leads
//! packets. Nothing of it is pinned: only a running agent attaches the programs for which such packets wait.

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use lb_common::Proto;
use lb_kernel::{bpf, sink};
use tracing::warn;

use crate::{
    damage::{Damage, Part},
    pins::Pins,
};

/// Name of the program.
pub(crate) const PROGRAM: &str = "socket_lookup";

/// The map of the sinks.
const SINKS: &str = "SINKS";

/// The program at the look-up, for as long as this value lives.
pub(crate) struct SocketLookup {
    program: OwnedFd,
    /// Program id of the kernel.
    id: u32,
    link: OwnedFd,
    /// Sockets in [`SINKS`], which a closed socket leaves.
    _sinks: Vec<OwnedFd>,
}

impl SocketLookup {
    /// Attaches a program, given with its id, in the network namespace of the calling thread. A failure is logged, and
    /// costs pods without sockets their first calls.
    pub(crate) fn attach_if_loaded(program: Option<(OwnedFd, u32)>, pins: &Pins) -> Option<Self> {
        let (program, id) = program?;
        Self::attach(program, id, pins)
            .inspect_err(|error| {
                warn!(
                    program = PROGRAM,
                    "not attached, so NodePorts of this node serve a pod without sockets after its first packet to a \
                     cluster IP: {error:#}"
                );
            })
            .ok()
    }

    fn attach(program: OwnedFd, id: u32, pins: &Pins) -> Result<Self> {
        let map = bpf::open_pin(&pins.current().join(SINKS)).context("opening the pinned map SINKS")?;
        let mut sinks = Vec::new();
        for proto in [Proto::Tcp, Proto::Udp] {
            let socket = sink::open(proto).with_context(|| format!("opening a socket of {}", proto.name()))?;
            bpf::put_socket(map.as_fd(), proto as u32, &socket).context("writing SINKS")?;
            sinks.push(socket);
        }
        let link = new_link(&program)?;
        Ok(Self { program, id, link, _sinks: sinks })
    }

    /// Attaches the program again if another program has detached or replaced it. Returns what was found.
    pub(crate) fn mend(&mut self) -> Option<Damage> {
        if bpf::socket_lookup_link(&self.link).is_ok_and(|found| found.netns != 0 && found.program == self.id) {
            return None;
        }
        let mended = new_link(&self.program).map(|link| self.link = link);
        Some(Damage::new(Part::SocketLookup, mended))
    }
}

fn new_link(program: &OwnedFd) -> Result<OwnedFd> {
    let netns = File::open("/proc/thread-self/ns/net").context("opening the network namespace")?;
    bpf::attach_socket_lookup(program, &netns).context("attaching to the network namespace")
}

//! The link at the look-up of sockets in the node's network namespace, and the sinks to which its program leads
//! packets. Nothing of it is pinned: only a running agent attaches the programs for which such packets wait.

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result};
use lb_common::Proto;
use lb_kernel::{bpf, sink};
use tracing::warn;

use crate::damage::{Damage, Part};

/// Name of the program.
pub const PROGRAM: &str = "socket_lookup";

/// The map of the sinks.
const SINKS: &str = "SINKS";

/// The program at the look-up of sockets. It is attached only while a pod's link has no programs, since each datagram
/// to an unconnected socket of the node pays for it, those of a tunnel included.
#[derive(Clone, Default)]
pub struct SocketLookup(Arc<Mutex<State>>);

struct State {
    /// The program, with its id in the kernel; none before the first programs are in service, and where the kernel
    /// refuses it.
    program: Option<(OwnedFd, u32)>,
    /// Directory of the pinned maps in service.
    maps: PathBuf,
    is_wanted: bool,
    attached: Option<Attached>,
}

impl Default for State {
    /// Wanted until the links are known: a pod may send while the agent starts.
    fn default() -> Self {
        Self { program: None, maps: PathBuf::new(), is_wanted: true, attached: None }
    }
}

struct Attached {
    link: OwnedFd,
    /// Sockets in [`SINKS`], which a closed socket leaves.
    _sinks: Vec<OwnedFd>,
}

impl SocketLookup {
    /// Uses the program of the programs in service, over the maps pinned in `maps`.
    pub(crate) fn replace(&self, program: Option<(OwnedFd, u32)>, maps: PathBuf) {
        let mut state = self.state();
        (state.program, state.maps) = (program, maps);
        state.attach_if_wanted();
    }

    /// Attaches the program, or detaches it, in the network namespace of the calling thread. A failure is logged, and
    /// costs pods without sockets their first calls.
    pub(crate) fn set_wanted(&self, is_wanted: bool) {
        let mut state = self.state();
        if state.is_wanted != is_wanted {
            state.is_wanted = is_wanted;
            state.attach_if_wanted();
        }
    }

    /// Attaches the program again if another program has detached or replaced it. Returns what was found.
    pub(crate) fn mend(&self) -> Option<Damage> {
        let mut state = self.state();
        let State { program: Some((program, id)), attached: Some(attached), .. } = &mut *state else { return None };
        if bpf::socket_lookup_link(&attached.link).is_ok_and(|found| found.netns != 0 && found.program == *id) {
            return None;
        }
        let mended = new_link(program).map(|link| attached.link = link);
        Some(Damage::new(Part::SocketLookup, mended))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Ends what is attached once its successor is.
    fn attach_if_wanted(&mut self) {
        let program = self.program.as_ref().filter(|_| self.is_wanted);
        let attached = program.map(|(program, _)| Attached::new(program, &self.maps)).transpose();
        self.attached = attached.unwrap_or_else(|error| {
            warn!(
                program = PROGRAM,
                "not attached, so NodePorts of this node serve a pod without sockets after its first packet to a \
                 cluster IP: {error:#}"
            );
            None
        });
    }
}

impl Attached {
    fn new(program: &OwnedFd, maps: &Path) -> Result<Self> {
        let map = bpf::open_pin(&maps.join(SINKS)).context("opening the pinned map SINKS")?;
        let mut sinks = Vec::new();
        for proto in [Proto::Tcp, Proto::Udp] {
            let socket = sink::open(proto).with_context(|| format!("opening a socket of {}", proto.name()))?;
            bpf::put_socket(map.as_fd(), proto as u32, &socket).context("writing SINKS")?;
            sinks.push(socket);
        }
        Ok(Self { link: new_link(program)?, _sinks: sinks })
    }
}

fn new_link(program: &OwnedFd) -> Result<OwnedFd> {
    let netns = File::open("/proc/thread-self/ns/net").context("opening the network namespace")?;
    bpf::attach_socket_lookup(program, &netns).context("attaching to the network namespace")
}

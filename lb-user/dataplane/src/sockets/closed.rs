//! TCP sockets of the kernel itself (NFS, SMB, Ceph, NVMe, MPTCP before Linux 6.0): no hook runs when they close, so
//! that their entries would stay, and count as open, for as long as their backend exists. An entry whose socket is in
//! no network namespace is freed. So is that of a socket that failed to connect and is still open, which the kernel
//! lists nowhere: its next connect may choose the same backend again.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use lb_common::{Family, Proto, TcpSock, Translation};
use lb_kernel::{
    bpf::{self, typed::TypedMap},
    netns,
    sock_diag::{SockDiag, SocketQuery, state},
};

/// Octets of a packet with a cookie, behind an Ethernet header.
const PACKET: usize = 64;
const COOKIE: std::ops::Range<usize> = 14..22;

/// Name of the program that frees an entry.
pub(crate) const PROGRAM: &str = "free_socket";

/// The program that frees the entry of a closed socket; none before the first programs are in service, and where
/// the kernel refuses it.
#[derive(Clone, Default)]
pub struct SocketFreer(Arc<Mutex<Option<OwnedFd>>>);

impl SocketFreer {
    /// Uses the program of the programs in service.
    pub(crate) fn replace(&self, program: Option<OwnedFd>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = program;
    }

    /// Frees the entry of a TCP socket, by its cookie, and counts the close. Does nothing without an entry.
    ///
    /// # Errors
    /// The kernel's errno of `BPF_PROG_TEST_RUN`, or if no programs are in service.
    pub fn free(&self, cookie: u64) -> Result<()> {
        let program = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let program = program.as_ref().context("the program is not loaded")?;
        let mut packet = [0_u8; PACKET];
        packet.get_mut(COOKIE).context("a packet has room")?.copy_from_slice(&cookie.to_ne_bytes());
        bpf::run_classifier(program.as_fd(), &mut packet, 0).with_context(|| format!("running {PROGRAM}"))?;
        Ok(())
    }
}

/// Finds the cookies of entries in `TCP_SOCKS` and `TCP_MORE`, pinned in `pins`, whose socket is in no network
/// namespace. None is found if this process has no right to look into all of them. A socket that connects at this
/// moment, or failed to, is found too: look again a moment later.
///
/// # Errors
/// If the maps or the sockets of a namespace cannot be read.
pub fn closed(pins: &Path) -> Result<BTreeSet<u64>> {
    let places = TypedMap::<u32, TcpSock>::open(pins, "TCP_SOCKS")?.read()?;
    let more = TypedMap::<u64, Translation>::open(pins, "TCP_MORE")?.read()?;
    let held = places.iter().map(|(_, place)| place.cookie).filter(|cookie| *cookie != 0);
    let mut cookies: BTreeSet<u64> = held.chain(more.iter().map(|(cookie, _)| *cookie)).collect();
    if cookies.is_empty() {
        return Ok(cookies);
    }
    // On a thread of its own, since the thread leaves the agent's network namespace.
    let visit = || -> Result<BTreeSet<u64>> {
        let Some(namespaces) = netns::all_without_exception()? else { return Ok(BTreeSet::new()) };
        for namespace in namespaces {
            namespace.enter().context("entering a network namespace")?;
            let mut channel = SockDiag::open()?;
            for family in [Family::V4, Family::V6].into_iter().filter(|family| netns::has_sockets(Proto::Tcp, *family))
            {
                let query = SocketQuery { family, proto: Proto::Tcp, states: state::WITH_PEER, filter: None };
                channel.list(query, |socket| {
                    cookies.remove(&socket.cookie);
                    Ok(None::<()>)
                })?;
            }
        }
        Ok(cookies)
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("sockets".to_owned()).spawn_scoped(scope, visit)?;
        thread.join().map_err(|_| anyhow!("the thread that lists sockets panicked"))?
    })
}

//! Finds and ends sockets of this node whose backend is gone: their applications would wait until they open new ones.
//! The agent decides when.
//!
//! The kernel lists and ends sockets by sock_diag(7), one network namespace at a time. The programs' maps have the
//! translation of each socket.

mod real_peer;
mod translations;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::{Proto, Translation};

pub use real_peer::real_peer;

use lb_common::{AddrPort, Family};
use lb_kernel::{
    netns,
    sock_diag::{DestroyOutcome, PeerFilter, SockDiag, SocketQuery, state},
};
use translations::{IsLost, SocketTranslations};

/// Tries of a sweep: a socket may hide another of the same name, which is found once the first has ended.
const TRIES: usize = 3;

/// A backend that is gone, or whose sockets must move to another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DeadBackend {
    /// Id of the backend.
    pub backend: u32,
    /// Address and port of the backend.
    pub target: AddrPort,
    /// TCP or UDP; sockets of SCTP are not translated.
    pub proto: Proto,
}

/// Result of [`end`] and [`end_all`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndReport {
    /// Number of sockets ended, by id of the backend.
    pub ended: BTreeMap<u32, u64>,
    /// Number of network namespaces searched.
    pub namespaces: usize,
    /// Errors with their cures.
    pub failures: BTreeSet<String>,
    /// Duration.
    pub took: Duration,
}

/// Ends sockets that were translated from a VIP to one of these backends and are connected to it. Sockets that dialled
/// the backend's own address, unconnected sockets, and sockets with another peer by now stay. The maps are pinned in
/// `pins`.
///
/// # Errors
/// If the maps cannot be opened, or /proc cannot be read.
pub fn end(pins: &Path, dead: &[DeadBackend]) -> Result<EndReport> {
    let dead = &dead.iter().copied().collect::<BTreeSet<_>>();
    let mut sweeps = Vec::new();
    for proto in [Proto::Udp, Proto::Tcp] {
        let peers: BTreeSet<_> = dead.iter().filter(|dead| dead.proto == proto).map(|dead| dead.target).collect();
        if !peers.is_empty() {
            let is_lost = move |found: &Translation| {
                let target = AddrPort { addr: found.backend_addr, port: found.backend_port };
                dead.contains(&DeadBackend { backend: found.backend, target, proto })
            };
            sweeps.extend(Sweep::new(pins, proto, Some(peers), Box::new(is_lost))?);
        }
    }
    run(&sweeps)
}

/// Ends sockets of all backends that are not alive, as [`end`] does: for a start, when backends went away while no
/// agent ran.
///
/// # Errors
/// As for [`end`].
pub fn end_all(pins: &Path, proto: Proto, is_alive: &(dyn Fn(u32) -> bool + Sync)) -> Result<EndReport> {
    let is_lost = |found: &Translation| !is_alive(found.backend);
    let sweep = Sweep::new(pins, proto, None, Box::new(is_lost))?;
    run(sweep.as_slice())
}

/// Search for lost sockets of one protocol, run in every namespace.
struct Sweep<'a> {
    proto: Proto,
    translations: SocketTranslations,
    /// Peers of the sockets to look at; none for all sockets.
    peers: Option<BTreeSet<AddrPort>>,
    is_lost: Box<IsLost<'a>>,
}

impl<'a> Sweep<'a> {
    fn new(
        pins: &Path,
        proto: Proto,
        peers: Option<BTreeSet<AddrPort>>,
        is_lost: Box<IsLost<'a>>,
    ) -> Result<Option<Self>> {
        Ok(SocketTranslations::open(pins, proto)?.map(|translations| Self { proto, translations, peers, is_lost }))
    }

    /// Ends the sockets of one namespace.
    fn run(&self, channel: &mut SockDiag, ended: &mut BTreeMap<u32, u64>) -> Result<()> {
        let families = [Family::V4, Family::V6].into_iter();
        for family in families.filter(|family| netns::has_sockets(self.proto, *family)) {
            let filter = self.peers.as_ref().map_or(PeerFilter::Everything, |peers| PeerFilter::new(family, peers));
            let filter = match &filter {
                PeerFilter::Nothing => continue,
                PeerFilter::Everything => None,
                PeerFilter::Peers(program) => Some(program.as_slice()),
            };
            let states = if self.proto == Proto::Udp { state::ESTABLISHED } else { state::WITH_PEER };
            let query = SocketQuery { family, proto: self.proto, states, filter };
            for _ in 0..TRIES {
                let victims = channel.list(query, |socket| {
                    if self.peers.as_ref().is_some_and(|peers| !peers.contains(&socket.remote)) {
                        return Ok(None);
                    }
                    let backend = self.translations.lost(socket, &*self.is_lost)?;
                    Ok(backend.map(|backend| (socket.id, backend)))
                })?;
                let mut missed = false;
                for (id, backend) in victims {
                    match channel.destroy(self.proto, id)?.with_context(|| cannot_end(self.proto))? {
                        DestroyOutcome::Destroyed => *ended.entry(backend).or_default() += 1,
                        DestroyOutcome::NotFound => missed = true,
                    }
                }
                if !missed {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Runs sweeps in all namespaces, on a thread of its own, since the thread leaves the agent's network namespace.
fn run(sweeps: &[Sweep<'_>]) -> Result<EndReport> {
    let start = Instant::now();
    if sweeps.is_empty() {
        return Ok(EndReport::default());
    }
    let namespaces = netns::all()?;
    let mut report = EndReport { namespaces: namespaces.len(), ..EndReport::default() };
    let visit = |report: &mut EndReport| {
        for namespace in &namespaces {
            let opened = namespace.enter().context("entering a network namespace (needs CAP_SYS_ADMIN)");
            let mut channel = match opened.and_then(|()| SockDiag::open()) {
                Ok(channel) => channel,
                Err(error) => {
                    report.failures.insert(format!("{error:#}"));
                    continue;
                }
            };
            for sweep in sweeps {
                if let Err(error) = sweep.run(&mut channel, &mut report.ended) {
                    report.failures.insert(format!("{error:#}"));
                }
            }
        }
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("sockets".to_owned()).spawn_scoped(scope, || visit(&mut report))?;
        thread.join().map_err(|_| anyhow::anyhow!("the thread that ends sockets panicked"))
    })?;
    report.took = start.elapsed();
    Ok(report)
}

fn cannot_end(proto: Proto) -> String {
    format!(
        "this kernel cannot end sockets: {} sockets stay with a backend that has gone until their application opens \
         new ones; use a kernel with CONFIG_INET_DIAG_DESTROY",
        proto.name()
    )
}

//! Finds and ends sockets of this node whose backend no longer serves them, since their applications would wait until
//! they open new ones, and sockets that are too old. The agent decides when.
//!
//! The kernel lists and ends sockets by sock_diag(7), one network namespace at a time. The programs' maps have the
//! translation of each socket.

mod aged;
mod bound_ports;
mod closed;
mod real_peer;
mod serving;
mod translations;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::Proto;

pub use aged::{Aged, end_aged, translated};
pub use bound_ports::{mark_bound_port, mark_bound_ports};
pub(crate) use closed::PROGRAM as FREE_SOCKET;
pub use closed::{SocketFreer, closed};
pub use real_peer::real_peer;
pub use serving::{Peer, Serving};
pub use translations::IsLost;

use lb_common::{AddrPort, Family};
use lb_kernel::{
    netns,
    sock_diag::{DestroyOutcome, PeerFilter, SockDiag, SocketQuery, state},
};
use translations::SocketTranslations;

/// Tries of a sweep: a socket may hide another of the same name, which is found once the first has ended.
const TRIES: usize = 3;

/// A search for lost sockets of one protocol.
pub struct Search<'a> {
    /// TCP or UDP; sockets of SCTP are not translated.
    pub proto: Proto,
    /// Peers of the sockets to look at; none for all sockets.
    pub peers: Option<BTreeSet<AddrPort>>,
    /// Decides about a translation that leads to the peer of its socket.
    pub is_lost: Box<IsLost<'a>>,
}

/// Result of [`end`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndReport {
    /// Number of sockets ended, by id of the service port that led them to their backend.
    pub ended: BTreeMap<u32, u64>,
    /// Number of network namespaces searched.
    pub namespaces: usize,
    /// Errors with their cures.
    pub failures: BTreeSet<String>,
    /// Duration.
    pub took: Duration,
}

/// Ends sockets that were translated from a VIP to the backend to which they are connected, if the translation is lost.
/// Sockets that dialled the backend's own address, unconnected sockets, and sockets with another peer by now stay. The
/// maps are pinned in `pins`.
///
/// # Errors
/// If the maps cannot be opened, or /proc cannot be read.
pub fn end(pins: &Path, searches: Vec<Search<'_>>) -> Result<EndReport> {
    let mut sweeps = Vec::new();
    for search in searches {
        if let Some(translations) = SocketTranslations::open(pins, search.proto)? {
            sweeps.push(Sweep { search, translations });
        }
    }
    run(&sweeps)
}

/// A search with the maps it needs, run in every namespace.
struct Sweep<'a> {
    search: Search<'a>,
    translations: SocketTranslations,
}

impl Sweep<'_> {
    /// Ends the sockets of one namespace.
    fn run(&self, channel: &mut SockDiag, ended: &mut BTreeMap<u32, u64>) -> Result<()> {
        let Search { proto, peers, is_lost } = &self.search;
        let proto = *proto;
        let families = [Family::V4, Family::V6].into_iter();
        for family in families.filter(|family| netns::has_sockets(proto, *family)) {
            let filter = peers.as_ref().map_or(PeerFilter::Everything, |peers| PeerFilter::new(family, peers));
            let filter = match &filter {
                PeerFilter::Nothing => continue,
                PeerFilter::Everything => None,
                PeerFilter::Peers(program) => Some(program.as_slice()),
            };
            let states = if proto == Proto::Udp { state::ESTABLISHED } else { state::WITH_PEER };
            let query = SocketQuery { family, proto, states, filter };
            for _ in 0..TRIES {
                let victims = channel.list(query, |socket| {
                    if peers.as_ref().is_some_and(|peers| !peers.contains(&socket.remote)) {
                        return Ok(None);
                    }
                    let lost = self.translations.lost(socket, is_lost)?;
                    Ok(lost.map(|translation| (socket.id, translation.service)))
                })?;
                let mut missed = false;
                for (id, service) in victims {
                    match channel.destroy(proto, id)?.with_context(|| cannot_end(proto))? {
                        DestroyOutcome::Destroyed => *ended.entry(service).or_default() += 1,
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

/// Runs sweeps in all namespaces.
fn run(sweeps: &[Sweep<'_>]) -> Result<EndReport> {
    if sweeps.is_empty() {
        return Ok(EndReport::default());
    }
    visit(|channel, report| {
        for sweep in sweeps {
            if let Err(error) = sweep.run(channel, &mut report.ended) {
                report.failures.insert(format!("{error:#}"));
            }
        }
        Ok(())
    })
}

/// Calls `end` in each namespace, on a thread of its own, since the thread leaves the agent's network namespace.
fn visit(mut end: impl FnMut(&mut SockDiag, &mut EndReport) -> Result<()> + Send) -> Result<EndReport> {
    let start = Instant::now();
    let namespaces = netns::all()?;
    let mut report = EndReport { namespaces: namespaces.len(), ..EndReport::default() };
    let mut visit_all = |report: &mut EndReport| {
        for namespace in &namespaces {
            let entered = namespace.enter().context("entering a network namespace (needs CAP_SYS_ADMIN)");
            let channel = entered.and_then(|()| SockDiag::open());
            if let Err(error) = channel.and_then(|mut channel| end(&mut channel, report)) {
                report.failures.insert(format!("{error:#}"));
            }
        }
    };
    thread::scope(|scope| {
        let thread =
            thread::Builder::new().name("sockets".to_owned()).spawn_scoped(scope, || visit_all(&mut report))?;
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

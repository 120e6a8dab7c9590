//! Finds and ends the sockets of this node whose backend has gone; they would speak to nobody until their application
//! opens new ones. When to do so is not decided here.
//!
//! The kernel lists sockets and ends them by sock_diag(7), one network namespace at a time; what each was given stands in
//! the maps of the programs.

mod given;
mod own;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::{Proto, Translation};

pub use own::led_to;

use given::{Given, IsLost};
use lb_common::{AddrPort, Family};
use lb_kernel::{
    netns,
    sock_diag::{DestroyOutcome, PeerFilter, SockDiag, SocketQuery, state},
};

/// A name that another socket hides is found once that one has ended: so many tries.
const TRIES: usize = 3;

/// A backend that is gone, or that its sockets shall leave.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Dead {
    /// Its id.
    pub backend: u32,
    /// Where it listened.
    pub target: AddrPort,
    /// TCP or UDP; of SCTP there are no sockets that were given a backend.
    pub proto: Proto,
}

/// What was done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// How many sockets of which backend were ended, by its id.
    pub ended: BTreeMap<u32, u64>,
    /// How many network namespaces were looked through.
    pub namespaces: usize,
    /// What could not be done, each once, with its cure.
    pub failures: BTreeSet<String>,
    /// How long it took.
    pub took: Duration,
}

/// Ends the sockets that were given one of these backends for a VIP and are connected to it. A socket that dialled the
/// backend's address itself, an unconnected one, and one that has turned elsewhere are not touched.
///
/// # Errors
/// When the pinned maps in `pins` cannot be opened or /proc not be read.
pub fn end(pins: &Path, dead: &[Dead]) -> Result<Report> {
    let dead = &dead.iter().copied().collect::<BTreeSet<_>>();
    let mut sweeps = Vec::new();
    for proto in [Proto::Udp, Proto::Tcp] {
        let peers: BTreeSet<_> = dead.iter().filter(|dead| dead.proto == proto).map(|dead| dead.target).collect();
        if !peers.is_empty() {
            let is_lost = move |given: &Translation| {
                let target = AddrPort { addr: given.backend_addr, port: given.backend_port };
                dead.contains(&Dead { backend: given.backend, target, proto })
            };
            sweeps.extend(Sweep::new(pins, proto, Some(peers), Box::new(is_lost))?);
        }
    }
    run(&sweeps)
}

/// The same for all backends that `is_alive` denies, by their ids: when an agent starts, for those that went away while
/// none ran.
///
/// # Errors
/// As [`end`].
pub fn end_all(pins: &Path, proto: Proto, is_alive: &(dyn Fn(u32) -> bool + Sync)) -> Result<Report> {
    let is_lost = |given: &Translation| !is_alive(given.backend);
    let sweep = Sweep::new(pins, proto, None, Box::new(is_lost))?;
    run(sweep.as_slice())
}

/// What is looked for in every namespace.
struct Sweep<'a> {
    proto: Proto,
    given: Given,
    /// Whose sockets may be lost; none for anybody's.
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
        Ok(Given::open(pins, proto)?.map(|given| Self { proto, given, peers, is_lost }))
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
                    let backend = self.given.lost(socket, &*self.is_lost)?;
                    Ok(backend.map(|backend| (socket.id, backend)))
                })?;
                let mut missed = false;
                for (name, backend) in victims {
                    match channel.destroy(self.proto, name)?.with_context(|| cannot_end(self.proto))? {
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

/// Runs sweeps in all namespaces, on a thread that ends with it: a thread that has changed its namespace is of no use to
/// anybody else.
fn run(sweeps: &[Sweep<'_>]) -> Result<Report> {
    let start = Instant::now();
    if sweeps.is_empty() {
        return Ok(Report::default());
    }
    let namespaces = netns::all()?;
    let mut report = Report { namespaces: namespaces.len(), ..Report::default() };
    let visit = |report: &mut Report| {
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
        "this kernel cannot end sockets: {} sockets stay with a backend that has gone until their application opens new \
         ones; use a kernel with CONFIG_INET_DIAG_DESTROY",
        proto.name()
    )
}

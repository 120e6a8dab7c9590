//! The map `NETNS_ADDRS`: source addresses of the sockets of each network namespace, for source ranges. A socket has no
//! address when it dials, but the routes of its namespace decide which one it gets.
//!
//! Kept only while a Service has source ranges. A namespace that is not in the map reaches such Services by packets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use lb_common::{Addr, Family, NetnsAddrs};
use lb_kernel::{
    bpf::typed::TypedMap,
    netlink::{
        Monitor, NetlinkSocket,
        address::{self, Address},
        group,
    },
    netns::{self, NetNamespace},
};
use tokio::sync::watch;

/// Name of the map.
const MAP: &str = "NETNS_ADDRS";
/// Time between two searches. A new pod changes links before its processes run, so that a search follows at once.
const SEARCH: Duration = Duration::from_secs(5);
/// Time between two searches after a change of links.
const BUSY_SEARCH: Duration = Duration::from_millis(100);
/// Time after a change of links in which a new pod's first process starts.
const BUSY: Duration = Duration::from_secs(5);
/// Time after which the addresses of a known namespace are read again.
const AGE: Duration = Duration::from_secs(10);
/// Any port: no datagram is sent.
const DISCARD: u16 = 9;

/// The addresses that source ranges restrict, and the Node's own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Restricted {
    /// Load balancer addresses with source ranges.
    pub vips: Arc<BTreeSet<IpAddr>>,
    /// `InternalIP` addresses of the Node: sources of calls to a VIP that an interface of the node owns.
    pub node: Vec<IpAddr>,
}

/// Reads the map pinned in `directory`.
///
/// # Errors
/// If the map cannot be read.
pub fn read(directory: &Path) -> Result<BTreeMap<u64, NetnsAddrs>> {
    Ok(TypedMap::<u64, NetnsAddrs>::open(directory, MAP)?.read()?.into_iter().collect())
}

/// Keeps the map, pinned in `directory`, until the sender is dropped. Begins with the first value, which the sender has
/// once the maps are in service. Failures are logged and retried.
///
/// # Errors
/// None.
pub async fn run(directory: std::path::PathBuf, mut restricted: watch::Receiver<Option<Restricted>>) -> Result<()> {
    let mut tracker = Tracker { directory, ..Tracker::default() };
    let (mut monitor, mut busy_until, mut failed) = (None, Instant::now(), false);
    loop {
        let Some(wanted) = restricted.borrow_and_update().clone() else {
            if restricted.changed().await.is_err() {
                return std::future::pending().await;
            }
            continue;
        };
        if monitor.is_none() && !wanted.vips.is_empty() {
            monitor = Monitor::subscribe(group::LINK | group::ADDRESS | group::ROUTE).ok();
        }
        let is_idle = wanted.vips.is_empty();
        let (back, result) = tokio::task::spawn_blocking(move || {
            let result = tracker.update(&wanted);
            (tracker, result)
        })
        .await
        .context("the search for network namespaces")?;
        tracker = back;
        if let Err(error) = &result
            && !failed
        {
            tracing::warn!("source addresses of pods are unknown, so source ranges bind their packets only: {error:#}");
        }
        failed = result.is_err();
        let pause = if Instant::now() < busy_until { BUSY_SEARCH } else { SEARCH };
        let changed = async {
            match &mut monitor {
                Some(monitor) if !is_idle => monitor.changed().await.is_ok(),
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = restricted.changed() => if ended.is_err() { return std::future::pending().await },
            is_alive = changed => {
                busy_until = Instant::now() + BUSY;
                if !is_alive {
                    monitor = None;
                }
                // Several notifications come at once.
                tokio::time::sleep(BUSY_SEARCH).await;
            }
            () = tokio::time::sleep(pause), if !is_idle => {}
        }
    }
}

/// Tracks network namespaces and their addresses, and writes changes into the map.
#[derive(Default)]
struct Tracker {
    directory: std::path::PathBuf,
    /// By inode.
    known: BTreeMap<u64, Known>,
    /// The addresses for which `known` was made.
    searched: Restricted,
    written: Option<BTreeMap<u64, NetnsAddrs>>,
}

#[derive(Clone, Copy)]
struct Known {
    cookie: u64,
    addrs: NetnsAddrs,
    at: Instant,
}

impl Tracker {
    fn update(&mut self, wanted: &Restricted) -> Result<()> {
        if self.searched != *wanted {
            self.known.clear();
            self.searched = wanted.clone();
        }
        if wanted.vips.is_empty() {
            self.known.clear();
        } else {
            self.search(wanted)?;
        }
        self.write()
    }

    fn search(&mut self, wanted: &Restricted) -> Result<()> {
        let namespaces = netns::all()?;
        let now = Instant::now();
        let mut found = BTreeMap::new();
        for namespace in &namespaces {
            let Some(inode) = namespace.inode() else { continue };
            let known = self.known.get(&inode).filter(|known| now.duration_since(known.at) < AGE);
            let known = match known {
                // A namespace gets its addresses shortly after it is made.
                Some(known) if known.addrs != NetnsAddrs::default() => *known,
                _ => {
                    let (cookie, addrs) = visit(namespace, wanted)?;
                    Known { cookie, addrs, at: now }
                }
            };
            found.insert(inode, known);
        }
        self.known = found;
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let known = self.known.values().filter(|known| known.addrs != NetnsAddrs::default());
        let wanted: BTreeMap<u64, NetnsAddrs> = known.map(|known| (known.cookie, known.addrs)).collect();
        if self.written.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let map = TypedMap::<u64, NetnsAddrs>::open(&self.directory, MAP)?;
        let before: BTreeMap<u64, NetnsAddrs> = map.read()?.into_iter().collect();
        let new = wanted.iter().filter(|(cookie, addrs)| before.get(cookie) != Some(addrs));
        let (keys, values): (Vec<u64>, Vec<NetnsAddrs>) = new.unzip();
        let gone: Vec<u64> = before.keys().copied().filter(|cookie| !wanted.contains_key(cookie)).collect();
        map.put(&keys, &values).context("writing NETNS_ADDRS")?;
        map.delete(&gone).context("writing NETNS_ADDRS")?;
        self.written = Some(wanted);
        Ok(())
    }
}

/// Asks a namespace for its cookie and its source addresses, on a thread of its own.
fn visit(namespace: &NetNamespace, wanted: &Restricted) -> Result<(u64, NetnsAddrs)> {
    let ask = || {
        namespace.enter().context("entering a network namespace, which needs CAP_SYS_ADMIN")?;
        let cookie = netns::cookie().context("asking for the cookie of a network namespace (Linux 5.14)")?;
        let addresses = NetlinkSocket::open()?.dump(address::GET, &address::ALL, Address::parse)?;
        let own: Vec<IpAddr> = addresses
            .iter()
            .filter(|address| address.is_usable() && !address.ip.is_loopback())
            .map(|address| address.ip)
            .collect();
        let source = |family| source(&own, wanted, family).map_or(Addr::default(), Addr::from);
        Ok((cookie, NetnsAddrs { v4: source(Family::V4), v6: source(Family::V6) }))
    };
    thread::scope(|scope| scope.spawn(ask).join()).map_err(|_| anyhow!("the visit of a network namespace failed"))?
}

/// Returns the source address of calls to the restricted addresses of a family; None if the routes of this thread's
/// namespace name several, or none.
fn source(own: &[IpAddr], wanted: &Restricted, family: Family) -> Option<IpAddr> {
    let of = |ip: &IpAddr| ip.is_ipv4() == (family == Family::V4);
    let mut own = own.iter().copied().filter(of);
    let first = own.next()?;
    if own.next().is_none() {
        return Some(first);
    }
    let node = wanted.node.iter().copied().find(of);
    let sources: BTreeSet<IpAddr> = wanted
        .vips
        .iter()
        .filter(|vip| of(vip))
        .filter_map(|vip| match routed_source(*vip) {
            // The interface that owns the VIP is the node's: as if the Node's address were the source (kube-proxy,
            // pkg/proxy/nftables/proxier.go, which lets in the VIP wherever it lets in the node).
            Some(source) if source == *vip => node,
            source => source,
        })
        .collect();
    if sources.len() == 1 { sources.first().copied() } else { None }
}

/// Returns the source address that the routes give a call to `to`. Connecting a UDP socket sends nothing.
fn routed_source(to: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(SocketAddr::new(to, DISCARD)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

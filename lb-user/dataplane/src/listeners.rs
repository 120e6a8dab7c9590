//! Endpoints on this node that take the clients of another Service (`beeline.io/redirect-from`): the end of their
//! sockets, of which the kernel tells at once. The API server hears of it seconds later.
//!
//! Only an endpoint that was seen to listen can end: others may answer without a socket in a network namespace of this
//! node, as in a virtual machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    future::{Future as _, poll_fn},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use lb_common::{AddrPort, Proto};
use lb_core::event::Event;
use lb_kernel::{
    netlink::{
        NetlinkSocket,
        address::{self, Address},
    },
    netns::{self, NetNamespace},
    sock_diag::{ClosedSockets, SockDiag, listens},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet, spawn_blocking},
    time::sleep,
};
use tracing::{info, warn};

/// Time between two searches for the network namespace of an endpoint.
const SEARCH: Duration = Duration::from_secs(5);
/// Interval of checks of an endpoint that has closed a socket.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// True while an endpoint that has listened does not.
type IsClosed = bool;

/// Follows the endpoints `wanted` until the receiver of `events` is dropped. Sends the set of endpoints that have
/// closed a socket at which they listened. Failures are logged and retried.
///
/// # Errors
/// None.
pub async fn run(mut wanted: watch::Receiver<Arc<BTreeSet<AddrPort>>>, events: mpsc::Sender<Event>) -> Result<()> {
    let mut tasks = JoinSet::new();
    let mut followed = BTreeMap::<AddrPort, AbortHandle>::new();
    let (sender, mut changes) = mpsc::channel::<(AddrPort, IsClosed)>(16);
    let (mut closed, mut sent) = (BTreeSet::new(), BTreeSet::new());
    loop {
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return std::future::pending().await;
                }
                let wanted = Arc::clone(&wanted.borrow_and_update());
                followed.retain(|target, task| {
                    let stays = wanted.contains(target);
                    if !stays {
                        task.abort();
                    }
                    stays
                });
                for target in wanted.iter().copied() {
                    let new = || tasks.spawn(follow(target, sender.clone()));
                    followed.entry(target).or_insert_with(new);
                }
                closed.retain(|target| wanted.contains(target));
            }
            Some((target, is_closed)) = changes.recv() => {
                // A task that has just been ended may have sent before.
                if is_closed && followed.contains_key(&target) {
                    closed.insert(target);
                } else {
                    closed.remove(&target);
                }
            }
            () = events.closed() => return Ok(()),
        }
        // Results of ended tasks.
        while tasks.try_join_next().is_some() {}
        if closed != sent {
            log(&closed, &sent);
            sent.clone_from(&closed);
            // The loop notices a dropped receiver.
            let _closed = events.send(Event::ClosedListeners(closed.clone())).await;
        }
    }
}

fn log(closed: &BTreeSet<AddrPort>, before: &BTreeSet<AddrPort>) {
    for target in closed.difference(before) {
        info!(endpoint = %place(target), "has closed its socket: its clients are led to their own Service");
    }
    for target in before.difference(closed) {
        info!(endpoint = %place(target), "listens again, or is not ready either");
    }
}

fn place(target: &AddrPort) -> SocketAddr {
    SocketAddr::new(target.addr.to_ip(), target.port)
}

/// Follows one endpoint for ever.
async fn follow(target: AddrPort, changes: mpsc::Sender<(AddrPort, IsClosed)>) {
    let mut has_failed = false;
    loop {
        match follow_in_its_namespace(target, &changes).await {
            Ok(None) => {}
            Ok(Some(never)) => match never {},
            Err(error) if !has_failed => {
                has_failed = true;
                warn!(
                    "the sockets of an endpoint that takes clients are unknown; its readiness alone counts: {error:#}"
                );
            }
            Err(_) => {}
        }
        sleep(SEARCH).await;
    }
}

/// Follows an endpoint. None if no network namespace of this node has its address.
async fn follow_in_its_namespace(
    target: AddrPort,
    changes: &mpsc::Sender<(AddrPort, IsClosed)>,
) -> Result<Option<Infallible>> {
    let ip = target.addr.to_ip();
    let (mut notifications, mut sockets) = spawn_blocking(move || open(ip)).await.context("a search")??;
    if sockets.is_empty() {
        return Ok(None);
    }
    let (mut has_listened, mut is_told, mut searched) = (BTreeSet::new(), false, Instant::now());
    loop {
        let look = move || {
            let listening = protocols(&mut sockets, &target);
            (sockets, listening)
        };
        let (back, listening) = spawn_blocking(look).await.context("a look at sockets")?;
        sockets = back;
        let listening = listening?;
        if has_listened.is_empty() && !listening.is_empty() {
            info!(endpoint = %place(&target), "takes the clients of another Service while its sockets are open");
        }
        is_told &= listening.is_empty();
        has_listened.extend(listening.iter().copied());
        let is_closed = listening != has_listened || is_told;
        // The receiver outlives this task.
        let _sent = changes.send((target, is_closed)).await;
        if is_closed {
            sleep(CHECK_INTERVAL).await;
            if searched.elapsed() >= SEARCH {
                // A pod may get another namespace, with the address that it had.
                (notifications, sockets) = spawn_blocking(move || open(ip)).await.context("a search")??;
                searched = Instant::now();
            }
        } else {
            any_closed(&mut notifications, target.port).await.context("notifications of closed sockets")?;
            // A socket that no look has seen has listened too.
            is_told = true;
        }
    }
}

/// Returns the protocols by which an endpoint listens in any of the namespaces.
fn protocols(sockets: &mut [SockDiag], target: &AddrPort) -> Result<BTreeSet<u8>> {
    let mut found = BTreeSet::new();
    for sock_diag in sockets {
        for proto in [Proto::Tcp, Proto::Udp] {
            if listens(sock_diag, proto, target)? {
                found.insert(proto as u8);
            }
        }
    }
    Ok(found)
}

/// Returns when a socket of the port is closed in any of the namespaces, or may have been.
async fn any_closed(notifications: &mut [ClosedSockets], port: u16) -> io::Result<()> {
    let mut each: Vec<_> = notifications.iter_mut().map(|of| Box::pin(of.closed(port))).collect();
    poll_fn(|context| {
        let ready = each.iter_mut().map(|one| one.as_mut().poll(context)).find(Poll::is_ready);
        ready.unwrap_or(Poll::Pending)
    })
    .await
}

/// Subscribes in each network namespace that has an address. Mostly that is one; a pod that gives itself the address of
/// an endpoint can hide the end of its sockets, but not end it.
fn open(ip: IpAddr) -> Result<(Vec<ClosedSockets>, Vec<SockDiag>)> {
    let runtime = Handle::current();
    let open_in = |namespace: &NetNamespace| -> Result<Option<(ClosedSockets, SockDiag)>> {
        namespace.enter().context("entering a network namespace, which needs CAP_SYS_ADMIN")?;
        let addresses = NetlinkSocket::open()?.dump(address::GET, &address::ALL, Address::parse)?;
        if !addresses.iter().any(|address| address.ip == ip) {
            return Ok(None);
        }
        let _context = runtime.enter();
        let notifications = ClosedSockets::subscribe().context("subscribing to closed sockets")?;
        Ok(Some((notifications, SockDiag::open()?)))
    };
    let (mut notifications, mut sockets) = (Vec::new(), Vec::new());
    for namespace in netns::all()? {
        let visit = || thread::scope(|scope| scope.spawn(|| open_in(&namespace)).join());
        if let Some((of_closed, sock_diag)) =
            visit().map_err(|_| anyhow!("the visit of a network namespace failed"))??
        {
            notifications.push(of_closed);
            sockets.push(sock_diag);
        }
    }
    Ok((notifications, sockets))
}

//! Reports endpoints that clients of this node have ejected, in the log and as Events of their Services. Nothing runs
//! while no Service has `beeline.io/eject`.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::{Backend, BackendFlags};
use lb_core::{
    objects::Key,
    warning::{EjectingClients, Warning},
};
use lb_dataplane::{
    stats::{EjectedBackend, LiveIds, StatMaps},
    store::BpfStore,
};
use lb_kernel::clock;
use tokio::sync::watch;
use tracing::warn;

use crate::events::{EventQueue, ProblemOrigin, Problems, Reporter};

/// Shortest and longest time between two looks.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(60);

/// Share of the time that looks may take: one part of these. A full `EJECTIONS` has 16 MiB.
const SHARE: u32 = 100;

/// Endpoints of a Service that are reported at a time: a client that ejects all of them on purpose must not use up the
/// Events of the Service.
const MAX_ENDPOINTS: usize = 3;

/// Reports ejections, by the maps pinned in `pins`, until the sender is dropped. Failures are logged and retried.
///
/// # Errors
/// If a look panics.
pub(crate) async fn run(pins: PathBuf, mut ejects: watch::Receiver<bool>, events: EventQueue) -> Result<()> {
    let mut reporter = Reporter::new(ProblemOrigin::Ejection, events);
    let mut failure = None;
    loop {
        if !*ejects.borrow_and_update() {
            reporter.report(Problems::new());
            if ejects.changed().await.is_err() {
                return std::future::pending().await;
            }
            continue;
        }
        let (start, pins) = (Instant::now(), pins.clone());
        let look = tokio::task::spawn_blocking(move || problems(&pins)).await.context("the look at ejections")?;
        let new = look.map(|problems| reporter.report(problems)).err().map(|error| format!("{error:#}"));
        if let Some(error) = new.iter().find(|_| new != failure) {
            warn!("reading ejections: {error}");
        }
        failure = new;
        tokio::time::sleep((start.elapsed() * (SHARE - 1)).clamp(SHORTEST, LONGEST)).await;
    }
}

/// Reads the endpoints that clients of this node miss now.
fn problems(pins: &std::path::Path) -> Result<Problems> {
    let ejected = StatMaps::open(pins)?.ejected_backends(&LiveIds::open(pins)?, clock::monotonic_ns())?;
    let store = BpfStore::open(pins)?;
    let named = |id| {
        let backend = store.backend(id)?;
        Some((store.name(backend.service)?.service, backend))
    };
    Ok(by_service(&ejected, named))
}

/// Describes the endpoints that clients miss; `named` returns a backend and its Service.
fn by_service(ejected: &BTreeMap<u32, EjectedBackend>, named: impl Fn(u32) -> Option<(Key, Backend)>) -> Problems {
    let mut problems = Problems::new();
    for (id, EjectedBackend { clients, .. }) in ejected {
        let Some((service, backend)) = named(*id) else { continue };
        let of_service = problems.entry(service).or_default();
        if of_service.len() < MAX_ENDPOINTS {
            of_service.insert(Warning::Ejected {
                addr: backend.addr,
                port: (backend.flags & BackendFlags::OFFSET == 0).then_some(backend.port),
                clients: if *clients == 1 { EjectingClients::One } else { EjectingClients::Several },
            });
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::Addr;

    /// Backend N of the Service N % 10 of the namespace `default`, at 10.0.0.N.
    fn named(id: u32) -> Option<(Key, Backend)> {
        let addr = Addr::from(std::net::IpAddr::from([10, 0, 0, u8::try_from(id).ok()?]));
        let flags = if id == 9 { BackendFlags::OFFSET } else { 0 };
        let service = id % 10;
        Some((Key::new("default", &service.to_string()), Backend { addr, port: 80, flags, service }))
    }

    fn ejected(of: &[(u32, usize)]) -> Problems {
        let ejected = of.iter().map(|(id, clients)| (*id, EjectedBackend { clients: *clients, seconds: 30 }));
        by_service(&ejected.collect(), named)
    }

    fn notes(queue: &EventQueue) -> Vec<String> {
        let problems = queue.open_problems().into_iter();
        problems.map(|event| format!("{} {}", event.service, event.note("n"))).collect()
    }

    #[test]
    fn an_ejection_is_an_event_of_the_node_with_its_cure_until_it_ends() {
        let queue = EventQueue::with_reader();
        let mut reporter = Reporter::new(ProblemOrigin::Ejection, queue.clone());
        reporter.report(ejected(&[(1, 1), (9, 2), (999, 1)]));
        assert_eq!(
            notes(&queue),
            [
                "default/1 on node n: its endpoint 10.0.0.1:80 is ejected by one client of the node, whose connects \
                 to it fail; `beeline watch --failed` on that node names the client of TCP, `beeline watch --service` \
                 those of UDP: check its routes and policies, then the server",
                "default/9 on node n: its endpoint 10.0.0.9 is ejected by several clients of the node, whose connects \
                 to it fail; check that server, and the routes and policies of that node; a connect that succeeds \
                 brings it back",
            ]
        );
        // The number of clients changes no Event but for the step from one to several.
        reporter.report(ejected(&[(1, 2), (9, 3)]));
        let of_several = notes(&queue);
        assert!(of_several.iter().all(|note| note.contains("several clients")), "{of_several:?}");
        reporter.report(ejected(&[(1, 7), (9, 2)]));
        assert_eq!(notes(&queue), of_several);
        reporter.report(ejected(&[(9, 2)]));
        assert_eq!(notes(&queue), of_several[1..]);
        reporter.report(Problems::new());
        assert_eq!(notes(&queue), [""; 0]);
    }

    #[test]
    fn a_client_that_ejects_everything_leaves_room_for_other_events() {
        let queue = EventQueue::with_reader();
        let mut reporter = Reporter::new(ProblemOrigin::Ejection, queue.clone());
        reporter.report(ejected(&(0..20).map(|number| (number * 10 + 1, 1)).collect::<Vec<_>>()));
        assert_eq!(notes(&queue).len(), MAX_ENDPOINTS);
    }
}

//! The `healthCheckNodePort` of each Service that has one: load balancers outside ask there whether to send clients of this
//! Service to this node, in the words of kube-proxy (pkg/proxy/healthcheck/service_health.go). What there is to say comes
//! with the status of the passes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::Result;
use hyper::{
    StatusCode,
    header::{HeaderName, HeaderValue},
};
use lb_common::Addr;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};
use tracing::{debug, info, warn};

use crate::{
    events::{EventQueue, Origin},
    health::{Now, is_live},
    http::{self, Reply},
    reconcile::Status,
};
use lb_common::Family;
use lb_core::{
    model::NodePortAddresses,
    objects::Key,
    spec::Health,
    warning::{BindError, Warning},
};

/// By which a load balancer may weigh the nodes.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");
/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// Where a Service's health is asked for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    service: Key,
    address: SocketAddr,
}

impl Place {
    fn family(&self) -> Family {
        if self.address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    fn origin(&self) -> Origin {
        Origin::HealthPort(self.address)
    }
}

/// Answers wherever there is something to say, until it is dropped. `addresses` says where NodePorts answer; owners of Services
/// are told on `board`.
///
/// # Errors
/// Never.
pub async fn run(mut status: watch::Receiver<Status>, addresses: NodePortAddresses, board: EventQueue) -> Result<()> {
    let mut servers = Servers { running: BTreeMap::new(), board };
    loop {
        let wanted = {
            let status = status.borrow_and_update();
            wanted(&status.health, &addresses, &status.node_ports)
        };
        servers.become_those(wanted, &status).await;
        if status.changed().await.is_err() {
            // The agent is ending.
            std::future::pending::<()>().await;
        }
    }
}

/// All places. One address for each family stands for all of the node's.
fn wanted(
    health: &BTreeMap<Key, Health>,
    addresses: &NodePortAddresses,
    node_ports: &BTreeSet<Addr>,
) -> BTreeSet<Place> {
    let mut places = BTreeSet::new();
    for (service, health) in health {
        let mut add = |ip| {
            places.insert(Place { service: service.clone(), address: SocketAddr::new(ip, health.port.get()) });
        };
        for family in [Family::V4, Family::V6].into_iter().filter(|family| health.ready[*family].is_some()) {
            if addresses.is_all() {
                add(match family {
                    Family::V4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
                    Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
                });
            } else {
                node_ports.iter().filter(|addr| Family::of(addr) == family).for_each(|addr| add(addr.to_ip()));
            }
        }
    }
    places
}

/// Those who answer now. They end with it.
struct Servers {
    running: BTreeMap<Place, JoinHandle<()>>,
    board: EventQueue,
}

impl Servers {
    async fn become_those(&mut self, wanted: BTreeSet<Place>, status: &watch::Receiver<Status>) {
        let gone: Vec<Place> = self.running.keys().filter(|place| !wanted.contains(place)).cloned().collect();
        let gone: Vec<_> = gone.into_iter().filter_map(|place| self.running.remove(&place)).collect();
        gone.iter().for_each(JoinHandle::abort);
        for server in gone {
            // Its port may be another's now.
            let _cancelled = server.await;
        }
        for place in wanted {
            let serve = || tokio::spawn(serve(place.clone(), status.clone(), self.board.clone()));
            self.running.entry(place.clone()).or_insert_with(serve);
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.running.values().for_each(JoinHandle::abort);
    }
}

async fn serve(place: Place, status: watch::Receiver<Status>, board: EventQueue) {
    let listener = listen(&place, &board).await;
    let answer = move |_path: String| {
        let reply = answer(&place, &status.borrow(), Now::read());
        async { reply }
    };
    // It serves until it is dropped.
    let _never = http::serve_on(listener, http::LIMITS, answer).await;
}

/// The answer to whoever asks there, whatever the path.
fn answer(place: &Place, status: &Status, now: Now) -> Reply {
    let health = status.health.get(&place.service);
    let ready = health.and_then(|health| health.ready[place.family()]).unwrap_or(0);
    let is_healthy = is_live(status, now);
    let quoted = |text: &str| serde_json::to_string(text).expect("a string");
    let (namespace, name) = (quoted(place.service.namespace()), quoted(place.service.name()));
    Reply {
        status: if ready > 0 && is_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE },
        content_type: "application/json",
        header: Some((WEIGHT, HeaderValue::from(ready))),
        body: format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace},\n\t\t\"name\": {name}\n\t}},\n\t\
             \"localEndpoints\": {ready},\n\t\"serviceProxyHealthy\": {is_healthy}\n}}"
        ),
    }
}

/// What is told of a place that does not answer, for as long as that is so.
struct Told<'a> {
    place: &'a Place,
    board: &'a EventQueue,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.board.tell(self.place.origin(), &self.place.service, Vec::new());
    }
}

/// Waits for the port if need be; says so once.
async fn listen(place: &Place, board: &EventQueue) -> TcpListener {
    let Place { service, address } = place;
    let mut waits = false;
    // Also when the place is wanted no more.
    let _told = Told { place, board };
    loop {
        match bind(*address) {
            Ok(listener) => {
                if waits {
                    info!(%service, %address, "its health check port is free now, and answers");
                }
                return listener;
            }
            Err(error) if !waits => {
                waits = true;
                let warning = warning(place, &error).await;
                warn!(%service, "{warning}");
                board.tell(place.origin(), service, vec![warning]);
            }
            Err(error) => debug!(%service, %address, %error, "its health check port is still not to be had"),
        }
        sleep(http::RETRY).await;
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        // The IPv4 ports have a listener of their own.
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    // Connections of a listener that has gone may linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn warning(&Place { address, .. }: &Place, error: &io::Error) -> Warning {
    let obstacle = if error.kind() == ErrorKind::AddrInUse {
        BindError::HeldBy(http::holder(address.port()).await)
    } else {
        BindError::Other(error.to_string())
    };
    Warning::HealthPort { address, obstacle }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::{Duration, Instant};

    use super::*;

    fn key() -> Key {
        Key::new("default", "a")
    }

    fn health([v4, v6]: [Option<usize>; 2]) -> Health {
        Health { port: 30_100.try_into().expect("not 0"), ready: lb_core::per_family::PerFamily { v4, v6 } }
    }

    fn now() -> Now {
        Now { monotonic: Instant::now() + Duration::from_secs(3600), wall: std::time::SystemTime::now() }
    }

    #[test]
    fn rule_6_it_listens_where_node_ports_answer_in_the_families_of_the_service() {
        let own = ["10.0.0.1", "192.0.2.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().expect("an address").into());
        let check = |ready, addresses: &str, expected: &[&str]| {
            let health = BTreeMap::from([(key(), health(ready))]);
            let places = wanted(&health, &addresses.parse().expect("addresses"), &BTreeSet::from(own));
            let places: Vec<_> = places.iter().map(|place| place.address.to_string()).collect();
            assert_eq!(places, expected, "{ready:?} {addresses}");
        };
        check([Some(0), None], "all", &["0.0.0.0:30100"]);
        check([Some(1), Some(1)], "all", &["0.0.0.0:30100", "[::]:30100"]);
        check([Some(1), Some(1)], "primary", &["10.0.0.1:30100", "192.0.2.1:30100", "[fd00::1]:30100"]);
        check([None, Some(1)], "primary", &["[fd00::1]:30100"]);
    }

    #[test]
    fn rule_6_it_answers_as_kube_proxy_does() {
        let check = |address: &str, ready, is_live: bool, code: u16, count: &str| {
            let now = now();
            let pending_since = (!is_live).then(|| now.monotonic - Duration::from_secs(61));
            let health = Arc::new(BTreeMap::from([(key(), health(ready))]));
            let status = Status { ready: true, pending_since, health, ..Status::default() };
            let place = Place { service: key(), address: address.parse().expect("an address") };
            let reply = answer(&place, &status, now);
            let header = reply.header.expect("a header");
            assert_eq!((reply.status.as_u16(), header.0.as_str()), (code, "x-load-balancing-endpoint-weight"));
            assert_eq!((header.1.to_str().expect("a number"), reply.content_type), (count, "application/json"));
            assert_eq!(
                reply.body,
                format!(
                    "{{\n\t\"service\": {{\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"a\"\n\t}},\n\t\
                     \"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {is_live}\n}}"
                )
            );
        };
        check("0.0.0.0:30100", [Some(2), Some(0)], true, 200, "2");
        check("[::]:30100", [Some(2), Some(0)], true, 503, "0");
        check("0.0.0.0:30100", [Some(0), None], true, 503, "0");
        check("0.0.0.0:30100", [Some(2), None], false, 503, "2");
    }
}

//! The `healthCheckNodePort` of each Service that has one: load balancers outside ask there before they send clients of
//! the Service to this node. Answers equal kube-proxy's (pkg/proxy/healthcheck/service_health.go); their content comes
//! from the last pass.

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
    events::{EventQueue, ProblemOrigin},
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

/// Number of local endpoints, by which a load balancer may weigh the nodes.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");
/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// Address of a Service's `healthCheckNodePort`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct HealthPort {
    service: Key,
    address: SocketAddr,
}

impl HealthPort {
    fn family(&self) -> Family {
        if self.address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    fn origin(&self) -> ProblemOrigin {
        ProblemOrigin::HealthPort(self.address)
    }
}

/// Serves the health ports of all Services at the NodePort `addresses`, until the future is dropped. Ports that cannot
/// be bound are reported to `events`.
pub(crate) async fn run(
    mut status: watch::Receiver<Status>,
    addresses: NodePortAddresses,
    events: EventQueue,
) -> Result<()> {
    let mut servers = Servers { running: BTreeMap::new(), events };
    loop {
        let desired = {
            let status = status.borrow_and_update();
            desired_ports(&status.health, &addresses, &status.node_ports)
        };
        servers.update(desired, &status).await;
        if status.changed().await.is_err() {
            // The agent is ending.
            std::future::pending::<()>().await;
        }
    }
}

/// Lists the health ports to serve: those of the Service's families, and of the node's, since a load balancer may ask a
/// node at its address of either family. If NodePorts answer at all addresses, one wildcard address for each family
/// suffices.
fn desired_ports(
    health: &BTreeMap<Key, Health>,
    addresses: &NodePortAddresses,
    node_ports: &BTreeSet<Addr>,
) -> BTreeSet<HealthPort> {
    let of_node: BTreeSet<Family> = node_ports.iter().map(Family::of).collect();
    let mut ports = BTreeSet::new();
    for (service, health) in health {
        let mut add = |ip| {
            ports.insert(HealthPort { service: service.clone(), address: SocketAddr::new(ip, health.port.get()) });
        };
        let is_asked = |family: &Family| health.ready[*family].is_some() || of_node.contains(family);
        for family in [Family::V4, Family::V6].into_iter().filter(is_asked) {
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
    ports
}

/// Tasks that serve health ports. Dropping this ends them.
struct Servers {
    running: BTreeMap<HealthPort, JoinHandle<()>>,
    events: EventQueue,
}

impl Servers {
    /// Ends servers that are not desired, then starts missing ones.
    async fn update(&mut self, desired: BTreeSet<HealthPort>, status: &watch::Receiver<Status>) {
        let ended: Vec<_> = self.running.extract_if(.., |port, _| !desired.contains(port)).collect();
        ended.iter().for_each(|(_, server)| server.abort());
        for (_, server) in ended {
            // Wait until the port is closed: another Service may have it now.
            let _cancelled = server.await;
        }
        for port in desired {
            let start = || tokio::spawn(serve(port.clone(), status.clone(), self.events.clone()));
            self.running.entry(port.clone()).or_insert_with(start);
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.running.values().for_each(JoinHandle::abort);
    }
}

async fn serve(port: HealthPort, status: watch::Receiver<Status>, events: EventQueue) {
    let listener = listen(&port, &events).await;
    let answer = move |_path: String| {
        let reply = answer(&port, &status.borrow(), Now::read());
        async { reply }
    };
    // Returns only when it is dropped.
    let _never = http::serve_on(listener, http::LIMITS, answer).await;
}

/// Returns the answer at a health port, which is the same for every path.
fn answer(port: &HealthPort, status: &Status, now: Now) -> Reply {
    let health = status.health.get(&port.service);
    // A Service of one family has one answer at both.
    let of_family =
        |health: &Health| health.ready[port.family()].or_else(|| health.ready.values().copied().flatten().next());
    let ready = health.and_then(of_family).unwrap_or(0);
    let is_healthy = is_live(status, now);
    let quoted = |text: &str| serde_json::to_string(text).expect("a string");
    let (namespace, name) = (quoted(port.service.namespace()), quoted(port.service.name()));
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

/// Ends the reported problem of a port when it is dropped: once the port is bound, and when it is no longer desired.
struct ProblemGuard<'a> {
    port: &'a HealthPort,
    events: &'a EventQueue,
}

impl Drop for ProblemGuard<'_> {
    fn drop(&mut self) {
        self.events.report(self.port.origin(), &self.port.service, Vec::new());
    }
}

/// Binds the port, and tries again until that works. The first failure is reported.
async fn listen(port: &HealthPort, events: &EventQueue) -> TcpListener {
    let HealthPort { service, address } = port;
    let mut has_failed = false;
    let _guard = ProblemGuard { port, events };
    loop {
        match bind(*address) {
            Ok(listener) => {
                if has_failed {
                    info!(%service, %address, "its health check port is free now, and answers");
                }
                return listener;
            }
            Err(error) if !has_failed => {
                has_failed = true;
                let warning = bind_warning(*address, &error).await;
                warn!(%service, "{warning}");
                events.report(port.origin(), service, vec![warning]);
            }
            Err(error) => debug!(%service, %address, %error, "its health check port is still unavailable"),
        }
        sleep(http::RETRY).await;
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        // IPv4 has a listener of its own.
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    // Connections of an earlier listener may be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn bind_warning(address: SocketAddr, error: &io::Error) -> Warning {
    let obstacle = if error.kind() == ErrorKind::AddrInUse {
        BindError::HeldBy(http::port_holder(address.port()).await)
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
    fn rule_6_health_ports_listen_at_node_port_addresses_of_the_service_and_of_the_node() {
        let own = ["10.0.0.1", "192.0.2.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().expect("an address").into());
        let check_at = |own: &[Addr], ready, addresses: &str, expected: &[&str]| {
            let health = BTreeMap::from([(key(), health(ready))]);
            let own = own.iter().copied().collect();
            let ports = desired_ports(&health, &addresses.parse().expect("addresses"), &own);
            let ports: Vec<_> = ports.iter().map(|port| port.address.to_string()).collect();
            assert_eq!(ports, expected, "{ready:?} {addresses}");
        };
        let all_own = ["10.0.0.1:30100", "192.0.2.1:30100", "[fd00::1]:30100"];
        check_at(&own, [Some(1), Some(1)], "all", &["0.0.0.0:30100", "[::]:30100"]);
        check_at(&own, [Some(1), Some(1)], "primary", &all_own);
        // A load balancer that knows the node by its address of the other family asks there.
        check_at(&own, [Some(0), None], "all", &["0.0.0.0:30100", "[::]:30100"]);
        check_at(&own, [None, Some(1)], "primary", &all_own);
        // A node without the other family has nothing to bind there.
        check_at(&own[..2], [Some(0), None], "all", &["0.0.0.0:30100"]);
        check_at(&own[..2], [Some(1), None], "primary", &all_own[..2]);
    }

    #[test]
    fn rule_6_health_ports_answer_as_kube_proxy_does() {
        let check = |address: &str, ready, is_live: bool, code: u16, count: &str| {
            let now = now();
            let pending_since = (!is_live).then(|| now.monotonic - Duration::from_secs(61));
            let health = Arc::new(BTreeMap::from([(key(), health(ready))]));
            let status = Status { ready: true, pending_since, health, ..Status::default() };
            let port = HealthPort { service: key(), address: address.parse().expect("an address") };
            let reply = answer(&port, &status, now);
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
        check("[::]:30100", [Some(2), None], true, 200, "2");
        check("0.0.0.0:30100", [None, Some(0)], true, 503, "0");
    }
}

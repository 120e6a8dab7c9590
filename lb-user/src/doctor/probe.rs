//! A real socket of this process that dials a Service of the maps: what peer does the kernel give it? No packet leaves the node:
//! connecting a UDP socket sends none, and a socket of IPv4 is bound to `lo`. A TCP socket is the last choice; one whose backend is
//! an address of this node then does connect, and closes.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Result;
use lb_common::{Kind, Proto, ServiceFlags};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with},
};

use super::{Finding, hooks};
use lb_common::Family;
use lb_core::store::Dump;
use lb_dataplane::sockets;
use lb_kernel::socket_options;

const CHECK: &str = "probe";

/// What became of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Facts {
    /// No Service has an endpoint.
    NoService,
    /// This process is not in the cgroup that is served.
    Outside { own: PathBuf, served: PathBuf },
    /// It dialled a VIP.
    Dialled { vip: SocketAddr, proto: Proto, outcome: Outcome },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// It has this peer.
    Peer(SocketAddr),
    /// It was refused.
    Refused(Errno),
    /// What peer it has could not be found out.
    Unknown(String),
}

/// Dials a VIP of the maps that are pinned in a directory.
pub(super) fn read(directory: &Path, dump: &Dump, hooks: &hooks::Facts) -> Facts {
    if let (Some((_, Some(served))), Some(mount)) = (&hooks.served, &hooks.mount)
        && let Some(own) = own_cgroup(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
    {
        let own = mount.join(own.trim_start_matches('/'));
        if !own.starts_with(served) {
            return Facts::Outside { own, served: served.clone() };
        }
    }
    let Some((vip, proto)) = choose(dump) else { return Facts::NoService };
    let outcome = dial(directory, vip, proto).unwrap_or_else(|error| Outcome::Unknown(format!("{error:#}")));
    Facts::Dialled { vip, proto, outcome }
}

/// The cgroup of version 2 in a file /proc/PID/cgroup.
fn own_cgroup(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// A VIP with a backend, the one best to dial.
fn choose(dump: &Dump) -> Option<(SocketAddr, Proto)> {
    let candidate = |(key, frontend): (&lb_common::FrontendKey, &lb_common::Frontend)| {
        let proto = Proto::from_number(key.proto.into()).filter(|proto| *proto != Proto::Sctp)?;
        // A NodePort has no address of its own.
        Kind::from_number(frontend.kind).filter(|kind| *kind != Kind::NodePort)?;
        let service = dump.services.get(&frontend.service)?;
        let is_local = service.flags & ServiceFlags::INTERNAL_LOCAL != 0;
        let has_backend = service.cluster_len > 0 && (!is_local || service.local_len > 0);
        // The first that is not dearer than others: no packet, no route needed, nobody who sticks to a backend by it.
        let price = (proto != Proto::Udp, !key.addr.is_v4(), service.affinity_seconds > 0);
        has_backend.then(|| (price, SocketAddr::new(key.addr.to_ip(), key.port), proto))
    };
    dump.frontends.iter().filter_map(candidate).min_by_key(|(price, ..)| *price).map(|(_, vip, proto)| (vip, proto))
}

fn dial(directory: &Path, vip: SocketAddr, proto: Proto) -> Result<Outcome> {
    let (domain, family) =
        if vip.is_ipv4() { (AddressFamily::INET, Family::V4) } else { (AddressFamily::INET6, Family::V6) };
    let kind = if proto == Proto::Udp { SocketType::DGRAM } else { SocketType::STREAM };
    let socket = socket_with(domain, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if family == Family::V4 {
        // Then any address has a route, the VIP as well.
        socket_options::bind_to_device(&socket, "lo")?;
    }
    let connected = connect(&socket, &vip);
    let peer = sockets::real_peer(directory, &socket, vip, proto);
    Ok(match (connected, peer) {
        // A backend on this node may have refused it already.
        (_, Ok(peer)) if peer != vip => Outcome::Peer(peer),
        (Ok(()) | Err(Errno::INPROGRESS), peer) => Outcome::Peer(peer?),
        (Err(error), _) => Outcome::Refused(error),
    })
}

/// What it means.
pub(super) fn evaluate(facts: &Facts) -> Finding {
    let (vip, proto, outcome) = match facts {
        Facts::NoService => {
            let what = "no Service in the maps has an endpoint: nothing could be tried with a real socket";
            return Finding::note(CHECK, what, "run it again when there is one");
        }
        Facts::Outside { own, served } => {
            let what = format!(
                "nothing could be tried with a real socket: this process is in {}, and {} is served",
                own.display(),
                served.display()
            );
            return Finding::note(CHECK, what, "run it in a process of that cgroup");
        }
        Facts::Dialled { vip, proto, outcome } => (vip, proto.name(), outcome),
    };
    let look =
        "see what the checks cgroup and foreign say; otherwise start the agent again, and report it if that is no cure";
    match outcome {
        Outcome::Peer(peer) if peer != vip => {
            Finding::ok(CHECK, format!("a real {proto} socket that dialled {vip} was given the backend {peer}"))
        }
        Outcome::Peer(_) => {
            let what = format!("a real {proto} socket that dialled {vip} was given no backend, and the maps have some");
            Finding::error(CHECK, what, look)
        }
        Outcome::Refused(error @ (Errno::PERM | Errno::CONNREFUSED | Errno::HOSTUNREACH)) => {
            let what =
                format!("a real {proto} socket that dialled {vip} was refused ({error}), and the maps have backends");
            Finding::error(CHECK, what, look)
        }
        Outcome::Refused(error) => {
            let what = format!("a real {proto} socket could not dial {vip}: {error}");
            Finding::warning(CHECK, what, "see that this network namespace has a route to the backends (`ip route`)")
        }
        Outcome::Unknown(why) => {
            let what = format!("what backend a real {proto} socket that dialled {vip} was given is not known: {why}");
            Finding::note(CHECK, what, "see what the check kernel says of lists of sockets")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::brief;
    use lb_common::{Addr, Frontend, FrontendKey, Service};

    fn check(outcome: Outcome, expected: &str) {
        let vip = "10.96.0.1:53".parse().expect("an address");
        let told = brief(&[evaluate(&Facts::Dialled { vip, proto: Proto::Udp, outcome })]);
        assert!(told.iter().all(|told| told.starts_with(expected)), "{told:?}");
    }

    #[test]
    fn the_peer_tells_whether_it_was_translated() {
        check(
            Outcome::Peer("10.0.0.1:53".parse().expect("an address")),
            "ok: a real UDP socket that dialled 10.96.0.1:53",
        );
        check(Outcome::Peer("10.96.0.1:53".parse().expect("an address")), "error: a real UDP socket");
        check(Outcome::Refused(Errno::PERM), "error: a real UDP socket that dialled 10.96.0.1:53 was refused");
        check(Outcome::Refused(Errno::NETUNREACH), "warning: a real UDP socket could not dial");
        check(Outcome::Unknown("x".to_owned()), "note: what backend");
        assert!(brief(&[evaluate(&Facts::NoService)]).iter().all(|told| told.starts_with("note")));
    }

    /// Frontends (address, port, protocol, kind, length of the cluster list, affinity) and what is dialled.
    fn chosen(frontends: &[(&str, u16, Proto, Kind, u32, u32)], expected: Option<(&str, Proto)>) {
        let mut dump = Dump::default();
        for (id, (addr, port, proto, kind, len, affinity)) in (1..).zip(frontends) {
            let addr: std::net::IpAddr = addr.parse().expect("an address");
            dump.frontends.insert(FrontendKey::new(Addr::from(addr), *port, *proto), Frontend::new(id, *kind));
            let service = Service { cluster_len: *len, affinity_seconds: *affinity, ..Service::default() };
            dump.services.insert(id, service);
        }
        let expected = expected.map(|(vip, proto)| (vip.parse().expect("an address"), proto));
        assert_eq!(choose(&dump), expected, "{frontends:?}");
    }

    #[test]
    fn a_vip_that_costs_nothing_to_dial_is_chosen() {
        let cluster = Kind::ClusterIp;
        chosen(&[], None);
        chosen(&[("10.96.0.1", 53, Proto::Udp, cluster, 0, 0)], None);
        chosen(&[("0.0.0.0", 30000, Proto::Udp, Kind::NodePort, 1, 0)], None);
        chosen(&[("10.96.0.1", 53, Proto::Sctp, cluster, 1, 0)], None);
        let tcp = ("10.96.0.1", 80, Proto::Tcp, cluster, 1, 0);
        chosen(&[tcp], Some(("10.96.0.1:80", Proto::Tcp)));
        chosen(&[tcp, ("fd96::1", 53, Proto::Udp, cluster, 1, 9)], Some(("[fd96::1]:53", Proto::Udp)));
        let (sticky, free) =
            (("10.96.0.2", 53, Proto::Udp, cluster, 1, 9), ("10.96.0.3", 53, Proto::Udp, cluster, 1, 0));
        chosen(&[tcp, sticky, free], Some(("10.96.0.3:53", Proto::Udp)));
    }

    #[test]
    fn the_own_cgroup_is_read() {
        assert_eq!(own_cgroup("4:memory:/a\n0::/b/c\n"), Some("/b/c"));
        assert_eq!(own_cgroup("4:memory:/a\n"), None);
    }
}

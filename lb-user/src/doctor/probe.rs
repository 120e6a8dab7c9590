//! A socket of this process that connects to a VIP of the maps, and the peer that the kernel gives it. No packet leaves
//! the node: connecting a UDP socket sends none, and an IPv4 socket is bound to `lo`. TCP is the last choice: if the
//! backend is an address of this node, the socket does connect, and closes.

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

/// Result of the probe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ProbeResult {
    /// No Service has an endpoint.
    NoService,
    /// This process is not in the served cgroup.
    Outside { own: PathBuf, served: PathBuf },
    /// The socket connected to a VIP.
    Dialled { vip: SocketAddr, proto: Proto, outcome: ProbeOutcome },
}

/// Result of a connect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ProbeOutcome {
    /// The peer of the socket.
    Peer(SocketAddr),
    /// The connect failed.
    Refused(Errno),
    /// The peer cannot be read.
    Unknown(String),
}

/// Connects a socket to a VIP of `dump`, the maps pinned in `directory`.
pub(super) fn read(directory: &Path, dump: &Dump, hooks: &hooks::HookFacts) -> ProbeResult {
    if let (Some((_, Some(served))), Some(mount)) = (&hooks.served, &hooks.mount)
        && let Some(own) = own_cgroup(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
    {
        let own = mount.join(own.trim_start_matches('/'));
        if !own.starts_with(served) {
            return ProbeResult::Outside { own, served: served.clone() };
        }
    }
    let Some((vip, proto)) = choose(dump) else { return ProbeResult::NoService };
    let outcome = dial(directory, vip, proto).unwrap_or_else(|error| ProbeOutcome::Unknown(format!("{error:#}")));
    ProbeResult::Dialled { vip, proto, outcome }
}

/// Returns the path of the cgroup v2 in the text of /proc/PID/cgroup.
fn own_cgroup(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Chooses a VIP with a backend.
fn choose(dump: &Dump) -> Option<(SocketAddr, Proto)> {
    let candidate = |(key, frontend): (&lb_common::FrontendKey, &lb_common::Frontend)| {
        let proto = Proto::from_number(key.proto.into()).filter(|proto| *proto != Proto::Sctp)?;
        // The key of a NodePort has no address, and a hostPort is a single pod's.
        Kind::from_number(frontend.kind).filter(|kind| !kind.is_of_node())?;
        let service = dump.services.get(&frontend.service)?;
        let is_local = service.flags & ServiceFlags::INTERNAL_LOCAL != 0;
        let has_backend = service.cluster_len > 0 && (!is_local || service.local_len > 0);
        // The VIP with the fewest side effects: UDP sends no packet, IPv4 needs no route, and without affinity no entry
        // is stored.
        let cost = (proto != Proto::Udp, !key.addr.is_v4(), service.affinity_seconds > 0);
        has_backend.then(|| (cost, SocketAddr::new(key.addr.to_ip(), key.port), proto))
    };
    dump.frontends.iter().filter_map(candidate).min_by_key(|(cost, ..)| *cost).map(|(_, vip, proto)| (vip, proto))
}

fn dial(directory: &Path, vip: SocketAddr, proto: Proto) -> Result<ProbeOutcome> {
    let (domain, family) =
        if vip.is_ipv4() { (AddressFamily::INET, Family::V4) } else { (AddressFamily::INET6, Family::V6) };
    let kind = if proto == Proto::Udp { SocketType::DGRAM } else { SocketType::STREAM };
    let socket = socket_with(domain, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if family == Family::V4 {
        // Every address has a route by `lo`, the VIP included.
        socket_options::bind_to_device(&socket, "lo")?;
    }
    let connected = connect(&socket, &vip);
    let led_to = sockets::real_peer(directory, &socket, vip, proto);
    Ok(match (connected, led_to) {
        // The connect may have failed because the backend, on this node, refused it: it was translated.
        (_, Ok(peer)) if peer != vip => ProbeOutcome::Peer(peer),
        (Ok(()) | Err(Errno::INPROGRESS), led_to) => ProbeOutcome::Peer(led_to?),
        (Err(error), _) => ProbeOutcome::Refused(error),
    })
}

pub(super) fn evaluate(facts: &ProbeResult) -> Finding {
    let (vip, proto, outcome) = match facts {
        ProbeResult::NoService => {
            let what = "no Service in the maps has an endpoint: no socket was tried";
            return Finding::note(CHECK, what, "run `beeline doctor` again when there is one");
        }
        ProbeResult::Outside { own, served } => {
            let what = format!(
                "no socket was tried: this process is in {}, and only {} is served",
                own.display(),
                served.display()
            );
            return Finding::note(CHECK, what, "run `beeline doctor` in a process of that cgroup");
        }
        ProbeResult::Dialled { vip, proto, outcome } => (vip, proto.name(), outcome),
    };
    let look = "see the findings of the checks cgroup and foreign; if there are none, start the agent again, and \
                report a bug if that does not help";
    match outcome {
        ProbeOutcome::Peer(peer) if peer != vip => {
            Finding::ok(CHECK, format!("a {proto} socket connected to {vip} has the backend {peer}"))
        }
        ProbeOutcome::Peer(_) => {
            let what = format!("a {proto} socket connected to {vip} has no backend, although the maps have some");
            Finding::error(CHECK, what, look)
        }
        ProbeOutcome::Refused(error @ (Errno::PERM | Errno::CONNREFUSED | Errno::HOSTUNREACH)) => {
            let what = format!("a {proto} socket was refused at {vip} ({error}), although the maps have backends");
            Finding::error(CHECK, what, look)
        }
        ProbeOutcome::Refused(error) => {
            let what = format!("a {proto} socket could not connect to {vip}: {error}");
            Finding::warning(CHECK, what, "check the route of this network namespace to the backends (`ip route`)")
        }
        ProbeOutcome::Unknown(why) => {
            let what = format!("the backend of a {proto} socket connected to {vip} cannot be read: {why}");
            Finding::note(CHECK, what, "see the finding of the check kernel about listing sockets")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::brief;
    use lb_common::{Addr, Frontend, FrontendKey, ServiceEntry};

    fn check(outcome: ProbeOutcome, expected: &str) {
        let vip = "10.96.0.1:53".parse().expect("an address");
        let found = brief(&[evaluate(&ProbeResult::Dialled { vip, proto: Proto::Udp, outcome })]);
        assert!(found.iter().all(|found| found.starts_with(expected)), "{found:?}");
    }

    #[test]
    fn the_peer_shows_the_translation() {
        check(
            ProbeOutcome::Peer("10.0.0.1:53".parse().expect("an address")),
            "ok: a UDP socket connected to 10.96.0.1:53 has the backend 10.0.0.1:53",
        );
        check(
            ProbeOutcome::Peer("10.96.0.1:53".parse().expect("an address")),
            "error: a UDP socket connected to 10.96.0.1:53 has no backend",
        );
        check(ProbeOutcome::Refused(Errno::PERM), "error: a UDP socket was refused at 10.96.0.1:53");
        check(ProbeOutcome::Refused(Errno::NETUNREACH), "warning: a UDP socket could not connect");
        check(ProbeOutcome::Unknown("x".to_owned()), "note: the backend of a UDP socket");
        assert!(brief(&[evaluate(&ProbeResult::NoService)]).iter().all(|found| found.starts_with("note")));
    }

    /// Checks the VIP check_choice among frontends (address, port, protocol, kind, length of the cluster list, affinity
    /// in s).
    fn check_choice(frontends: &[(&str, u16, Proto, Kind, u32, u32)], expected: Option<(&str, Proto)>) {
        let mut dump = Dump::default();
        for (id, (addr, port, proto, kind, len, affinity)) in (1..).zip(frontends) {
            let addr: std::net::IpAddr = addr.parse().expect("an address");
            dump.frontends.insert(FrontendKey::new(Addr::from(addr), *port, *proto), Frontend::new(id, *kind));
            let service = ServiceEntry { cluster_len: *len, affinity_seconds: *affinity, ..ServiceEntry::default() };
            dump.services.insert(id, service);
        }
        let expected = expected.map(|(vip, proto)| (vip.parse().expect("an address"), proto));
        assert_eq!(choose(&dump), expected, "{frontends:?}");
    }

    #[test]
    fn the_vip_with_the_fewest_side_effects_is_chosen() {
        let cluster = Kind::ClusterIp;
        check_choice(&[], None);
        check_choice(&[("10.96.0.1", 53, Proto::Udp, cluster, 0, 0)], None);
        check_choice(&[("0.0.0.0", 30000, Proto::Udp, Kind::NodePort, 1, 0)], None);
        check_choice(&[("10.96.0.1", 53, Proto::Sctp, cluster, 1, 0)], None);
        let tcp = ("10.96.0.1", 80, Proto::Tcp, cluster, 1, 0);
        check_choice(&[tcp], Some(("10.96.0.1:80", Proto::Tcp)));
        check_choice(&[tcp, ("fd96::1", 53, Proto::Udp, cluster, 1, 9)], Some(("[fd96::1]:53", Proto::Udp)));
        let (sticky, free) =
            (("10.96.0.2", 53, Proto::Udp, cluster, 1, 9), ("10.96.0.3", 53, Proto::Udp, cluster, 1, 0));
        check_choice(&[tcp, sticky, free], Some(("10.96.0.3:53", Proto::Udp)));
    }

    #[test]
    fn the_own_cgroup_is_read() {
        assert_eq!(own_cgroup("4:memory:/a\n0::/b/c\n"), Some("/b/c"));
        assert_eq!(own_cgroup("4:memory:/a\n"), None);
    }
}

//! `beeline trace`: reads the pinned maps and the client, and prints the choice of `select`.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use lb_common::{
    Backend, BackendFlags, Device, FrontendKey, PodModeEntry, Proto, Tables as _, Verdict, is_local_outside,
};

use crate::trace::{Snapshot, TraceClient, Traced, Way, trace};
use lb_dataplane::{environment, stats::StatMaps};
use lb_kernel::{
    bpf::typed::TypedMap,
    clock,
    netlink::{NetlinkSocket, network_state, route},
    netns::{self, NetNamespace},
};

/// Arguments of `beeline trace`: a destination, and a client.
#[derive(Args)]
#[command(after_help = "Examples:\n  beeline trace tcp 10.96.0.1:443\n  beeline trace udp '[fd96::a]:53'\n  \
    beeline trace tcp 10.96.0.1:443 --pid 4711   for a socket of that process: affinity, sh, localhost\n  \
    beeline trace tcp 192.0.2.1:30080 --from 198.51.100.7   for packets from that address: policies, source ranges\n\n\
    Exit codes: 0 the call goes on, to a backend or unchanged; 1 it would be refused.")]
pub(super) struct TraceArgs {
    /// Protocol of the socket.
    protocol: Protocol,
    /// Destination of the call: ADDR:PORT, with brackets around IPv6.
    #[arg(value_name = "ADDR:PORT")]
    destination: SocketAddr,
    /// Client: a process, by its network namespace [default: a process of the node itself]
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Client: the sender of packets with this address, outside of this node or in a pod with a mode. Shows the choice
    /// at the network device.
    #[arg(long, value_name = "ADDR", conflicts_with = "pid")]
    from: Option<IpAddr>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

pub(super) fn run(directory: &Path, arguments: &TraceArgs) -> Result<ExitCode> {
    let proto = match arguments.protocol {
        Protocol::Tcp => Proto::Tcp,
        Protocol::Udp => Proto::Udp,
        Protocol::Sctp => Proto::Sctp,
    };
    let snapshot = read(directory)?;
    let client = match arguments.from {
        Some(from) => TraceClient::outside(from.into(), clock::monotonic_ns()),
        None => socket_of(arguments.pid, directory)?,
    };
    let Traced { text, verdict, backends } = trace(&snapshot, &client, arguments.destination, proto);
    print!("{} {}\n{text}", proto.name().to_lowercase(), arguments.destination);
    let dialled = FrontendKey::new(arguments.destination.ip().into(), arguments.destination.port(), proto);
    if let Some(from) = arguments.from.filter(|_| snapshot.pod_of(&client).is_none()) {
        print!("{}", ways(directory, &snapshot, from, &dialled, &backends)?);
    }
    Ok(if matches!(verdict, Verdict::Refused(..)) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn read(directory: &Path) -> Result<Snapshot> {
    let maps = StatMaps::open(directory)?;
    let pod_modes = TypedMap::<u64, PodModeEntry>::open(directory, "POD_MODES")?.read()?.into_iter().collect();
    Ok(Snapshot {
        dump: super::dump(directory)?,
        stats: maps.read()?,
        affinity: maps.affinity()?,
        ejections: maps.ejections()?,
        cluster_ranges: lb_dataplane::cluster_ranges::read(directory)?,
        pod_modes,
    })
}

/// Describes the ways of a client's packet to the backends that may be chosen, by the kernel's routes.
fn ways(
    directory: &Path,
    snapshot: &Snapshot,
    client: IpAddr,
    dialled: &FrontendKey,
    backends: &[u32],
) -> Result<String> {
    let devices = TypedMap::<u32, Device>::open(directory, "DEVICES")?.read()?.into_iter().collect();
    let mut netlink = NetlinkSocket::open().context("opening a netlink socket")?;
    let links = network_state::links(&mut netlink).context("reading links")?;
    let names = links.into_iter().map(|(index, link)| (index, link.name)).collect();
    // Packets of the client enter by the device of the route back.
    let back = route::find(&mut netlink, client, None);
    let entered_by = back.ok().flatten().map_or(0, |route| route.device);
    let is_local = is_local_outside(snapshot, dialled);
    let mut text = String::new();
    for Backend { addr, flags, .. } in backends.iter().filter_map(|id| snapshot.backend(*id)) {
        let (backend, on_node) = (addr.to_ip(), flags & BackendFlags::ON_NODE != 0);
        let route = match route::find(&mut netlink, backend, Some((client, entered_by))) {
            Ok(Some(route)) => Ok(route),
            Ok(None) => Err("no route".to_owned()),
            Err(error) => Err(format!("no route from {client} to {backend}: {error}")),
        };
        let own = route::find(&mut netlink, backend, None).ok().flatten();
        let way = Way { client, backend, on_node, is_local, entered_by, route, own, devices: &devices, names: &names };
        text += &way.text();
    }
    Ok(text)
}

/// Returns a socket of the process `pid`, or of this network namespace, which counts as the node's own.
///
/// # Errors
/// If there is no such process, or the kernel has no cookies of network namespaces (before 5.14).
fn socket_of(pid: Option<u32>, directory: &Path) -> Result<TraceClient> {
    let host = netns::cookie();
    let netns = match pid {
        // Without cookies, sockets of the node have no affinity yet.
        None => host.as_ref().map_or(0, |cookie| *cookie),
        Some(pid) => cookie_of(pid)?,
    };
    let sources = lb_dataplane::netns_addrs::read(directory)?.get(&netns).copied().unwrap_or_default();
    let socket = TraceClient::socket(netns, netns == host.unwrap_or(0), clock::monotonic_ns());
    Ok(socket.with_sources(sources).in_cgroup(pid.and_then(cgroup_of).unwrap_or(0)))
}

/// Returns the id of a process's cgroup of version 2, if it can be seen from here.
fn cgroup_of(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let directory = environment::find_cgroup2().ok()??.join(path);
    Some(fs::metadata(directory).ok()?.ino())
}

fn cookie_of(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/ns/net");
    let namespace =
        NetNamespace::open(path.as_ref()).with_context(|| format!("opening {path}: is there a process {pid}?"))?;
    namespace.cookie()
}

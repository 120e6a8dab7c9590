//! Ports of sockets that were bound to a single address before the programs saw every bind: see `BOUND_PORTS`.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    thread,
};

use anyhow::{Context as _, Result};
use lb_common::{Family, Proto, capacity};
use lb_kernel::{
    bpf, netns,
    sock_diag::{SockDiag, SocketQuery, state},
};

/// Marks the ports of the TCP listeners and unconnected UDP sockets of all network namespaces in the map pinned in
/// `pins`.
///
/// # Errors
/// If the map cannot be written, or /proc cannot be read. Namespaces that end meanwhile are left out.
pub fn mark_bound_ports(pins: &Path) -> Result<()> {
    let map = open(pins)?;
    let namespaces = netns::all()?;
    let list = || {
        let mut ports = BTreeSet::new();
        for namespace in &namespaces {
            if namespace.enter().is_ok()
                && let Ok(mut channel) = SockDiag::open()
            {
                collect(&mut channel, &mut ports);
            }
        }
        ports
    };
    // On a thread of its own, which leaves the agent's network namespace.
    let ports = thread::scope(|scope| scope.spawn(list).join());
    for port in ports.map_err(|_| anyhow::anyhow!("the thread that lists bound sockets panicked"))? {
        mark(&map, port)?;
    }
    Ok(())
}

/// Marks one port: a process of the node listens at a loopback address and a hostPort that is new.
///
/// # Errors
/// If the map cannot be written.
pub fn mark_bound_port(pins: &Path, port: u16) -> Result<()> {
    mark(&open(pins)?, port)
}

fn open(pins: &Path) -> Result<OwnedFd> {
    let path = pins.join("BOUND_PORTS");
    bpf::open_pin(&path).with_context(|| format!("opening the pinned map {}", path.display()))
}

fn mark(map: &OwnedFd, port: u16) -> Result<()> {
    bpf::update(map.as_fd(), &capacity::bound_port(port), &1_u32).context("writing the map BOUND_PORTS")
}

/// Adds the ports of the sockets of one namespace that are bound to a single address.
fn collect(channel: &mut SockDiag, ports: &mut BTreeSet<u16>) {
    for (proto, states) in [(Proto::Tcp, state::LISTEN), (Proto::Udp, state::CLOSE)] {
        for family in [Family::V4, Family::V6].into_iter().filter(|family| netns::has_sockets(proto, *family)) {
            let query = SocketQuery { family, proto, states, filter: None };
            let listed = channel.list(query, |socket| {
                let local = &socket.local;
                let is_single = !local.addr.is_unspecified() && !local.addr.is_loopback();
                Ok((local.port != 0 && is_single).then_some(local.port))
            });
            ports.extend(listed.unwrap_or_default());
        }
    }
}

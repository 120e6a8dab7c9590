//! The rule for sockets and flows when Services change: they stay while their endpoint (address and port) serves at the
//! frontend or port range that they dialled, whatever the ids of service port and backend are by now.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Result;
use foldhash::HashSet;
use lb_common::{Addr, AddrPort, Backend, BackendFlags, Frontend, FrontendKey, PortBlockKey, Proto, Translation};
use lb_kernel::bpf::typed::{PrefixTrie, TypedMap};
use tracing::warn;

/// The frontends and the serving endpoints in the pinned maps.
pub struct Serving {
    frontends: TypedMap<FrontendKey, Frontend>,
    port_ranges: PrefixTrie<PortBlockKey, Frontend>,
    backends: TypedMap<u32, Backend>,
    /// Every backend: read once, for the first translation that its ids do not decide.
    endpoints: OnceLock<Option<HashSet<Endpoint>>>,
    has_moved: AtomicBool,
}

impl Serving {
    /// Opens the maps pinned in `pins`.
    ///
    /// # Errors
    /// If a pin is missing or cannot be opened.
    pub fn open(pins: &Path) -> Result<Self> {
        Ok(Self {
            frontends: TypedMap::open(pins, "FRONTENDS")?,
            port_ranges: PrefixTrie::open(pins, "PORT_RANGES")?,
            backends: TypedMap::open(pins, "BACKENDS")?,
            endpoints: OnceLock::new(),
            has_moved: AtomicBool::new(false),
        })
    }

    /// Returns the service port to which the frontend of a translation belongs now.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn owner(&self, proto: Proto, translation: &Translation) -> Result<Option<u32>> {
        let dialled = FrontendKey::new(translation.vip, translation.vip_port, proto);
        let found = match self.frontends.get(&dialled)? {
            None => match self.port_ranges.get(&PortBlockKey::lookup(&dialled))? {
                None => self.frontends.get(&dialled.node_port())?,
                range => range,
            },
            exact => exact,
        };
        Ok(found.map(|frontend| frontend.service))
    }

    /// True if the endpoint of a translation serves at the frontend of the translation. Also true if a map cannot be
    /// read: then nothing is ended.
    #[must_use]
    pub fn serves(&self, proto: Proto, translation: &Translation) -> bool {
        let owner = self.owner(proto, translation);
        let backend = self.backends.get(&translation.backend);
        let (Ok(owner), Ok(backend)) = (owner, backend) else { return true };
        decide(owner, backend.as_ref(), translation, |endpoint| {
            let serves = self.endpoints().is_none_or(|endpoints| endpoints.contains(&endpoint));
            self.has_moved.fetch_or(serves, Ordering::Relaxed);
            serves
        })
    }

    /// Returns ids and peers of the backends of these service ports.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn backends_of(&self, services: &BTreeSet<u32>) -> Result<Vec<(u32, Peer)>> {
        if services.is_empty() {
            return Ok(Vec::new());
        }
        let all = self.backends.read()?.into_iter();
        Ok(all.filter(|(_, of)| services.contains(&of.service)).map(|(id, of)| (id, Peer::of(&of))).collect())
    }

    /// True if [`Serving::serves`] has found a translation whose endpoint serves on under another id.
    #[must_use]
    pub fn has_moved(&self) -> bool {
        self.has_moved.load(Ordering::Relaxed)
    }

    /// Returns every backend; none if the map cannot be read.
    fn endpoints(&self) -> Option<&HashSet<Endpoint>> {
        let read = || {
            let read = self.backends.read().inspect_err(|error| warn!("{error:#}"));
            Some(read.ok()?.iter().map(|(_, backend)| Endpoint::of(backend)).collect())
        };
        self.endpoints.get_or_init(read).as_ref()
    }
}

/// The peer of sockets that have a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Address of the endpoint.
    pub addr: Addr,
    /// Port of the endpoint; none for port ranges, which lead to many.
    pub port: Option<u16>,
}

impl Peer {
    /// Returns the peer of the sockets that have `backend`.
    #[must_use]
    pub fn of(backend: &Backend) -> Self {
        let is_fixed = backend.flags & BackendFlags::OFFSET == 0;
        Self { addr: backend.addr, port: is_fixed.then_some(backend.port) }
    }

    /// Returns address and port, where there is one port.
    #[must_use]
    pub fn single(&self) -> Option<AddrPort> {
        Some(AddrPort { addr: self.addr, port: self.port? })
    }

    /// True if a translation leads here.
    #[must_use]
    pub fn is_of(&self, translation: &Translation) -> bool {
        translation.backend != 0
            && self.addr == translation.backend_addr
            && self.port.is_none_or(|port| port == translation.backend_port)
    }
}

/// An endpoint of a service port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Endpoint {
    service: u32,
    addr: Addr,
    /// The port, or the offset to the port dialled.
    port: u16,
    is_offset: bool,
}

impl Endpoint {
    fn of(backend: &Backend) -> Self {
        let is_offset = backend.flags & BackendFlags::OFFSET != 0;
        Self { service: backend.service, addr: backend.addr, port: backend.port, is_offset }
    }
}

/// Decides about a translation. `owner` has its frontend now, `backend` has its backend id now, and `has_endpoint`
/// tells if an endpoint serves. A service port has offsets only, or none.
fn decide(
    owner: Option<u32>,
    backend: Option<&Backend>,
    translation: &Translation,
    has_endpoint: impl Fn(Endpoint) -> bool,
) -> bool {
    let Some(service) = owner else { return false };
    let Translation { vip_port, backend_addr: addr, backend_port: port, .. } = *translation;
    let leads = |backend: &Backend| backend.addr == addr && backend.port_for(vip_port) == port;
    backend.is_some_and(|backend| backend.service == service && leads(backend))
        || has_endpoint(Endpoint { service, addr, port, is_offset: false })
        || has_endpoint(Endpoint { service, addr, port: port.wrapping_sub(vip_port), is_offset: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::{BackendFlags, Choice, Reason};
    use std::net::Ipv4Addr;

    fn endpoint(last: u8) -> AddrPort {
        AddrPort { addr: Ipv4Addr::new(10, 0, 0, last).into(), port: 53 }
    }

    #[test]
    fn rule_8_a_translation_stays_while_its_endpoint_serves_at_its_frontend() {
        // Backend 7 at endpoint 1 of service port 1, dialled at a frontend that service port 1 had then.
        let choice =
            Choice { service: 1, backend: 7, addr: endpoint(1).addr, port: 53, followed: None, reason: Reason::Random };
        let translation = Translation::new(Ipv4Addr::new(10, 96, 0, 53).into(), 53, &choice, 1);
        // (owner of the frontend, service port and endpoint of backend 7, endpoints of service ports, stays)
        type Case<'a> = (&'a str, Option<u32>, Option<(u32, u8)>, &'a [(u32, u8)], bool);
        let cases: [Case<'_>; 10] = [
            ("nothing has changed", Some(1), Some((1, 1)), &[(1, 1)], true),
            ("the endpoint left, others serve", Some(1), None, &[(1, 2)], false),
            ("the last endpoint left", Some(1), None, &[], false),
            ("the endpoint left and came back", Some(1), None, &[(1, 1)], true),
            ("the Service was recreated with the endpoint", Some(2), None, &[(2, 1)], true),
            ("the Service was recreated with another endpoint", Some(2), None, &[(2, 2)], false),
            ("the frontend moved to a Service with the endpoint", Some(2), Some((1, 1)), &[(1, 1), (2, 1)], true),
            ("the frontend moved to a Service with others", Some(2), Some((1, 1)), &[(1, 1), (2, 2)], false),
            ("the frontend was removed, the endpoint serves elsewhere", None, Some((1, 1)), &[(1, 1)], false),
            ("the id was given to another endpoint", Some(1), Some((1, 2)), &[(1, 2)], false),
        ];
        for (what, owner, backend, endpoints, stays) in cases {
            let backend = backend.map(|(service, last)| {
                let AddrPort { addr, port } = endpoint(last);
                Backend { addr, port, flags: BackendFlags::CLUSTER, service }
            });
            let has = |wanted: Endpoint| {
                endpoints.iter().any(|&(service, last)| {
                    let AddrPort { addr, port } = endpoint(last);
                    Endpoint { service, addr, port, is_offset: false } == wanted
                })
            };
            assert_eq!(decide(owner, backend.as_ref(), &translation, has), stays, "{what}");
        }
    }

    #[test]
    fn rule_8_a_translation_of_a_port_range_stays_while_its_endpoint_has_the_offset() {
        let vip = Ipv4Addr::new(10, 96, 0, 53).into();
        let translation = |dialled: u16, port: u16| {
            let choice =
                Choice { service: 1, backend: 7, addr: endpoint(1).addr, port, followed: None, reason: Reason::Random };
            Translation::new(vip, dialled, &choice, 1)
        };
        let backend = |offset: u16, last: u8| {
            let flags = BackendFlags::CLUSTER | BackendFlags::OFFSET;
            Backend { addr: endpoint(last).addr, port: offset, flags, service: 1 }
        };
        let cases = [
            ("nothing has changed", Some(backend(1000, 1)), None, translation(5060, 6060), true),
            ("the offset has changed", Some(backend(0, 1)), None, translation(5060, 6060), false),
            ("it has another id", None, Some(backend(1000, 1)), translation(5061, 6061), true),
            ("the endpoint left", None, Some(backend(1000, 2)), translation(5061, 6061), false),
            ("another port has its number", None, Some(backend(1000, 1)), translation(5061, 1000), false),
        ];
        for (what, backend, other, translation, stays) in cases {
            let has = |wanted: Endpoint| other.as_ref().is_some_and(|other| Endpoint::of(other) == wanted);
            assert_eq!(decide(Some(1), backend.as_ref(), &translation, has), stays, "{what}");
        }
        assert!(Peer::of(&backend(1000, 1)).is_of(&translation(5060, 6060)));
        assert_eq!(Peer::of(&backend(1000, 1)).single(), None);
    }
}

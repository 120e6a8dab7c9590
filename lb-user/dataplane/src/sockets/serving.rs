//! The rule for sockets and flows when Services change: they stay while their endpoint (address and port) serves at the
//! frontend that they dialled, whatever the ids of service port and backend are by now.

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
use lb_common::{AddrPort, Backend, Frontend, FrontendKey, Proto, Translation};
use lb_kernel::bpf::typed::TypedMap;
use tracing::warn;

/// The frontends and the serving endpoints in the pinned maps.
pub struct Serving {
    frontends: TypedMap<FrontendKey, Frontend>,
    backends: TypedMap<u32, Backend>,
    /// Service port and address of every backend: read once, for the first translation that its ids do not decide.
    endpoints: OnceLock<Option<HashSet<(u32, AddrPort)>>>,
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
        let exact = self.frontends.get(&dialled)?;
        let found = if exact.is_some() { exact } else { self.frontends.get(&dialled.node_port())? };
        Ok(found.map(|frontend| frontend.service))
    }

    /// True if the endpoint of a translation serves at the frontend of the translation. Also true if a map cannot be
    /// read: then nothing is ended.
    #[must_use]
    pub fn serves(&self, proto: Proto, translation: &Translation) -> bool {
        let owner = self.owner(proto, translation);
        let backend = self.backends.get(&translation.backend);
        let (Ok(owner), Ok(backend)) = (owner, backend) else { return true };
        decide(owner, backend.as_ref(), translation, |service, endpoint| {
            let serves = self.endpoints().is_none_or(|endpoints| endpoints.contains(&(service, endpoint)));
            self.has_moved.fetch_or(serves, Ordering::Relaxed);
            serves
        })
    }

    /// Returns ids and addresses of the backends of these service ports.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn backends_of(&self, services: &BTreeSet<u32>) -> Result<Vec<(u32, AddrPort)>> {
        if services.is_empty() {
            return Ok(Vec::new());
        }
        let all = self.backends.read()?.into_iter();
        Ok(all.filter(|(_, of)| services.contains(&of.service)).map(|(id, of)| (id, address(&of))).collect())
    }

    /// True if [`Serving::serves`] has found a translation whose endpoint serves on under another id.
    #[must_use]
    pub fn has_moved(&self) -> bool {
        self.has_moved.load(Ordering::Relaxed)
    }

    /// Returns service port and address of every backend; none if the map cannot be read.
    fn endpoints(&self) -> Option<&HashSet<(u32, AddrPort)>> {
        let read = || {
            let read = self.backends.read().inspect_err(|error| warn!("{error:#}"));
            Some(read.ok()?.iter().map(|(_, backend)| (backend.service, address(backend))).collect())
        };
        self.endpoints.get_or_init(read).as_ref()
    }
}

/// Decides about a translation. `owner` has its frontend now, `backend` has its backend id now, and `has_endpoint`
/// tells if a service port has an endpoint.
fn decide(
    owner: Option<u32>,
    backend: Option<&Backend>,
    translation: &Translation,
    has_endpoint: impl FnOnce(u32, AddrPort) -> bool,
) -> bool {
    let Some(owner) = owner else { return false };
    let endpoint = AddrPort { addr: translation.backend_addr, port: translation.backend_port };
    backend.is_some_and(|backend| backend.service == owner && address(backend) == endpoint)
        || has_endpoint(owner, endpoint)
}

fn address(backend: &Backend) -> AddrPort {
    AddrPort { addr: backend.addr, port: backend.port }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::{BackendFlags, Choice};
    use std::net::Ipv4Addr;

    fn endpoint(last: u8) -> AddrPort {
        AddrPort { addr: Ipv4Addr::new(10, 0, 0, last).into(), port: 53 }
    }

    #[test]
    fn rule_8_a_translation_stays_while_its_endpoint_serves_at_its_frontend() {
        // Backend 7 at endpoint 1 of service port 1, dialled at a frontend that service port 1 had then.
        let choice = Choice { service: 1, backend: 7, addr: endpoint(1).addr, port: 53 };
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
            let has = |service, address| endpoints.iter().any(|&(of, last)| (of, endpoint(last)) == (service, address));
            assert_eq!(decide(owner, backend.as_ref(), &translation, has), stays, "{what}");
        }
    }
}

//! What a socket was given, and whether its connection leads to a backend that is lost.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use lb_common::{Addr, MAX_TRANSLATIONS, Proto, TcpSock, Translation, Translations, capacity};

use lb_common::AddrPort;
use lb_kernel::bpf;
use lb_kernel::sock_diag::{Socket, UdpStorageReader};

/// Decides of a translation that leads to where the socket is connected whether its backend is lost.
pub type IsLost<'a> = dyn Fn(&Translation) -> bool + Sync + 'a;

/// Where it stands, for one protocol.
pub enum Given {
    /// In UDP sockets themselves.
    Udp(UdpStorageReader),
    /// Beside TCP sockets, by cookie.
    Tcp {
        /// `TCP_SOCKS`
        socks: OwnedFd,
        /// `TCP_MORE`
        more: OwnedFd,
    },
}

impl Given {
    /// Opens the pinned maps; none for a protocol without socket hooks.
    ///
    /// # Errors
    /// When a pin is missing, or the kernel refuses the probe.
    pub fn open(pins: &Path, proto: Proto) -> Result<Option<Self>> {
        let open = |name: &str| {
            let path = pins.join(name);
            bpf::open_pin(&path).with_context(|| format!("opening the pinned map {}", path.display()))
        };
        Ok(match proto {
            Proto::Udp => Some(Self::Udp(UdpStorageReader::load(open("SOCKS")?.as_fd(), size_of::<Translations>())?)),
            Proto::Tcp => Some(Self::Tcp { socks: open("TCP_SOCKS")?, more: open("TCP_MORE")? }),
            Proto::Sctp => None,
        })
    }

    /// The backend that the TCP socket of a cookie was given, if it was; none of other protocols.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn to_tcp(&self, cookie: u64) -> Result<Option<AddrPort>> {
        let Self::Tcp { socks, more } = self else { return Ok(None) };
        let given = tcp(socks, more, cookie)?;
        Ok(given.map(|given| AddrPort { addr: given.backend_addr, port: given.backend_port }))
    }

    /// The lost backend that a socket of this thread's network namespace was given and is connected to, if it is.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn lost(&self, socket: &Socket, is_lost: &IsLost<'_>) -> Result<Option<u32>> {
        match self {
            Self::Udp(probe) => {
                Ok(probe.read(socket)?.and_then(|bytes| lost(&translations(&bytes)?, &socket.remote, is_lost)))
            }
            Self::Tcp { socks, more } => {
                let given = tcp(socks, more, socket.cookie)?;
                let leads = |given: &Translation| given.leads_to(&socket.remote.addr, socket.remote.port);
                Ok(given.filter(|given| leads(given) && is_lost(given)).map(|given| given.backend))
            }
        }
    }
}

/// What the TCP socket of a cookie was given, if it was.
fn tcp(socks: &OwnedFd, more: &OwnedFd, cookie: u64) -> Result<Option<Translation>> {
    let index = u32::try_from(cookie % capacity::TCP_SOCKS as u64)?;
    let place: TcpSock = bpf::lookup(socks.as_fd(), &index)?.context("TCP_SOCKS has another size")?;
    Ok(if place.cookie == cookie {
        Some(place.given)
    } else if place.more != 0 {
        bpf::lookup(more.as_fd(), &cookie)?
    } else {
        None
    })
}

/// The lost backend that a UDP socket with this list is connected to.
///
/// A list may lead to one address by several backends, those of several service ports. Then the one used last decides.
/// When that was for another peer, which one the connection is of is not known, and it is lost when all of them are.
fn lost(list: &Translations, to: &AddrPort, is_lost: &IsLost<'_>) -> Option<u32> {
    let leads = |entry: &&Translation| entry.leads_to(&to.addr, to.port);
    let all = list.entries.iter().filter(leads);
    let decisive: Vec<_> = match list.entries.get(list.last as usize).filter(leads) {
        Some(last) => vec![last],
        None => all.collect(),
    };
    decisive.iter().all(|entry| is_lost(entry)).then(|| decisive.first().map(|entry| entry.backend))?
}

/// Reads a value of `SOCKS`.
fn translations(bytes: &[u8]) -> Option<Translations> {
    const SIZE: usize = size_of::<Translation>();
    let mut list = Translations::EMPTY;
    let (entries, rest) = bytes.split_at_checked(MAX_TRANSLATIONS * SIZE)?;
    for (entry, bytes) in list.entries.iter_mut().zip(entries.chunks_exact(SIZE)) {
        *entry = translation(bytes)?;
    }
    (list.next, list.last) = (u32_at(rest, 0)?, u32_at(rest, 4)?);
    Some(list)
}

fn translation(bytes: &[u8]) -> Option<Translation> {
    let addr = |at: usize| Some(Addr { octets: *bytes.get(at..)?.first_chunk()? });
    let port = |at: usize| Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    Some(Translation {
        vip: addr(0)?,
        backend_addr: addr(16)?,
        vip_port: port(32)?,
        backend_port: port(34)?,
        service: u32_at(bytes, 36)?,
        backend: u32_at(bytes, 40)?,
        generation: u32_at(bytes, 44)?,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::Choice;
    use std::net::Ipv4Addr;

    fn server(last: u8) -> AddrPort {
        AddrPort { addr: Ipv4Addr::new(10, 0, 0, last).into(), port: 53 }
    }

    fn list(entries: &[(u8, u32, u8)]) -> Translations {
        let mut list = Translations::EMPTY;
        for (vip, backend, address) in entries {
            let choice = Choice { service: 1, backend: *backend, addr: server(*address).addr, port: 53 };
            list.put(&Translation::new(Ipv4Addr::new(10, 96, 0, *vip).into(), 53, &choice, 1));
        }
        list
    }

    /// Which backend a socket loses whose list has these (VIP, backend, its address), connected to an address, when the
    /// backends below 10 are lost.
    fn check(entries: &[(u8, u32, u8)], to: u8, wanted: Option<u32>) {
        assert_eq!(lost(&list(entries), &server(to), &|given| given.backend < 10), wanted, "{entries:?}");
    }

    #[test]
    fn a_socket_goes_that_is_connected_to_the_lost_backend_of_a_vip() {
        check(&[(1, 1, 1)], 1, Some(1));
        check(&[(1, 1, 1), (2, 12, 2)], 1, Some(1));
    }

    #[test]
    fn what_is_connected_elsewhere_or_was_given_nothing_stays() {
        check(&[], 1, None);
        check(&[(1, 1, 1)], 2, None);
        check(&[(1, 11, 1)], 1, None);
        check(&[(1, 1, 1), (2, 12, 2)], 2, None);
    }

    #[test]
    fn of_two_backends_at_one_address_the_last_used_decides_and_else_both() {
        check(&[(1, 1, 1), (2, 11, 1)], 1, None);
        check(&[(2, 11, 1), (1, 1, 1)], 1, Some(1));
        check(&[(2, 11, 1), (1, 1, 1), (3, 13, 3)], 1, None);
        check(&[(2, 2, 1), (1, 1, 1), (3, 13, 3)], 1, Some(2));
    }

    #[test]
    fn a_free_place_is_no_translation() {
        let mut list = list(&[(1, 1, 1)]);
        list.forget(1, &server(1).addr, 53, |_| {});
        assert_eq!(lost(&list, &server(1), &|_| true), None);
    }

    #[test]
    fn the_bytes_of_the_map_are_read_as_they_lie() {
        let mut wanted = list(&[(1, 7, 1), (2, 8, 2)]);
        wanted.next = 5;
        let mut bytes = Vec::new();
        for Translation { vip, backend_addr, vip_port, backend_port, service, backend, generation } in wanted.entries {
            bytes.extend(vip.octets.into_iter().chain(backend_addr.octets));
            bytes.extend([vip_port, backend_port].into_iter().flat_map(u16::to_ne_bytes));
            bytes.extend([service, backend, generation].into_iter().flat_map(u32::to_ne_bytes));
        }
        bytes.extend([wanted.next, wanted.last].into_iter().flat_map(u32::to_ne_bytes));
        assert_eq!(bytes.len(), size_of::<Translations>());
        assert_eq!(translations(&bytes), Some(wanted));
        assert_eq!(translations(bytes.get(1..).expect("shorter")), None);
    }
}

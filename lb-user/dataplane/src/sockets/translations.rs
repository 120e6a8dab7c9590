//! Translations of sockets in the programs' maps: the backend that a socket got, and the check for a lost backend.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use lb_common::{Addr, MAX_TRANSLATIONS, Proto, TcpSock, Translation, Translations, capacity};

use lb_common::AddrPort;
use lb_kernel::bpf;
use lb_kernel::sock_diag::{Socket, UdpEntries, UdpEntryReader};

/// True if the backend of a translation is lost. Called for translations that lead to the socket's peer.
pub type IsLost<'a> = dyn Fn(&Translation) -> bool + Sync + 'a;

/// The maps with the translations of one protocol's sockets.
pub(super) enum SocketTranslations {
    /// `UDP_SOCKS`, and the socket storage `SOCKS`.
    Udp(UdpEntryReader),
    /// Maps by socket cookie.
    Tcp {
        /// `TCP_SOCKS`
        socks: OwnedFd,
        /// `TCP_MORE`
        more: OwnedFd,
    },
}

impl SocketTranslations {
    /// Opens the pinned maps; none for SCTP, which has no socket hooks.
    pub(super) fn open(pins: &Path, proto: Proto) -> Result<Option<Self>> {
        let open = |name: &str| {
            let path = pins.join(name);
            bpf::open_pin(&path).with_context(|| format!("opening the pinned map {}", path.display()))
        };
        Ok(match proto {
            Proto::Udp => Some(Self::Udp(UdpEntryReader::load(open("UDP_SOCKS")?.as_fd(), open("SOCKS")?.as_fd())?)),
            Proto::Tcp => Some(Self::Tcp { socks: open("TCP_SOCKS")?, more: open("TCP_MORE")? }),
            Proto::Sctp => None,
        })
    }

    /// Returns the backend of the TCP socket with this cookie; none without a translation, and for other protocols.
    pub(super) fn tcp_backend(&self, cookie: u64) -> Result<Option<AddrPort>> {
        let Self::Tcp { socks, more } = self else { return Ok(None) };
        let translation = tcp(socks, more, cookie)?;
        Ok(translation.map(|found| AddrPort { addr: found.backend_addr, port: found.backend_port }))
    }

    /// Returns the lost translation to the peer of a socket of this thread's network namespace.
    pub(super) fn lost(&self, socket: &Socket, is_lost: &IsLost<'_>) -> Result<Option<Translation>> {
        match self {
            Self::Udp(reader) => {
                let list = reader.read(socket)?.and_then(|entries| match entries {
                    UdpEntries::Single(bytes) => single(&bytes),
                    UdpEntries::List(bytes) => translations(&bytes),
                });
                Ok(list.and_then(|list| lost(&list, &socket.remote, is_lost)))
            }
            Self::Tcp { socks, more } => {
                let translation = tcp(socks, more, socket.cookie)?;
                let leads = |found: &Translation| found.leads_to(&socket.remote.addr, socket.remote.port);
                Ok(translation.filter(|found| leads(found) && is_lost(found)))
            }
        }
    }
}

/// Returns the translation of the TCP socket with this cookie.
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

/// Returns the lost translation of a UDP socket with this list that is connected to `to`.
///
/// A list may have several backends with one address, of several service ports. Then the translation used last decides.
/// If that has another peer, the connection's backend is unknown, and is lost only if all of them are.
fn lost(list: &Translations, to: &AddrPort, is_lost: &IsLost<'_>) -> Option<Translation> {
    let leads = |entry: &&Translation| entry.leads_to(&to.addr, to.port);
    let all = list.entries.iter().filter(leads);
    let decisive: Vec<_> = match list.entries.get(list.last as usize).filter(leads) {
        Some(last) => vec![last],
        None => all.collect(),
    };
    decisive.iter().all(|entry| is_lost(entry)).then(|| decisive.first().copied().copied())?
}

/// Parses the entry of a place in `UDP_SOCKS`, as a list with this entry only.
fn single(bytes: &[u8]) -> Option<Translations> {
    let mut list = Translations::EMPTY;
    list.put(&translation(bytes)?);
    Some(list)
}

/// Parses a value of `SOCKS`.
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
    use lb_common::{Choice, Reason};
    use std::net::Ipv4Addr;

    fn server(last: u8) -> AddrPort {
        AddrPort { addr: Ipv4Addr::new(10, 0, 0, last).into(), port: 53 }
    }

    fn list(entries: &[(u8, u32, u8)]) -> Translations {
        let mut list = Translations::EMPTY;
        for (vip, backend, address) in entries {
            let choice = Choice {
                service: 1,
                backend: *backend,
                addr: server(*address).addr,
                port: 53,
                followed: None,
                reason: Reason::Random,
            };
            list.put(&Translation::new(Ipv4Addr::new(10, 96, 0, *vip).into(), 53, &choice, 1));
        }
        list
    }

    /// Checks which backend a socket loses. Its list has these (VIP, backend, address), it is connected to address
    /// `to`, and backends below 10 are lost.
    fn check(entries: &[(u8, u32, u8)], to: u8, wanted: Option<u32>) {
        let found = lost(&list(entries), &server(to), &|found| found.backend < 10);
        assert_eq!(found.map(|translation| translation.backend), wanted, "{entries:?}");
    }

    #[test]
    fn a_socket_connected_to_the_lost_backend_of_a_vip_is_ended() {
        check(&[(1, 1, 1)], 1, Some(1));
        check(&[(1, 1, 1), (2, 12, 2)], 1, Some(1));
    }

    #[test]
    fn a_socket_connected_elsewhere_or_without_a_translation_stays() {
        check(&[], 1, None);
        check(&[(1, 1, 1)], 2, None);
        check(&[(1, 11, 1)], 1, None);
        check(&[(1, 1, 1), (2, 12, 2)], 2, None);
    }

    #[test]
    fn of_two_backends_at_one_address_the_last_used_decides_or_else_both() {
        check(&[(1, 1, 1), (2, 11, 1)], 1, None);
        check(&[(2, 11, 1), (1, 1, 1)], 1, Some(1));
        check(&[(2, 11, 1), (1, 1, 1), (3, 13, 3)], 1, None);
        check(&[(2, 2, 1), (1, 1, 1), (3, 13, 3)], 1, Some(2));
    }

    #[test]
    fn a_free_entry_is_no_translation() {
        let mut list = list(&[(1, 1, 1)]);
        list.forget(1, &server(1).addr, 53, |_| {});
        assert_eq!(lost(&list, &server(1), &|_| true), None);
    }

    #[test]
    fn the_values_of_the_maps_are_parsed_field_by_field() {
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
        assert_eq!(single(&bytes), Some(list(&[(1, 7, 1)])));
        assert_eq!(single(bytes.get(..40).expect("shorter")), None);
    }
}

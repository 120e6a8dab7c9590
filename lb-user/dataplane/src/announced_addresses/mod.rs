//! Addresses for which the programs answer ARP requests and neighbour solicitations at the uplinks: the maps, the
//! deadline until which the node may answer, and announcements to the links. `lb_core::announce` decides on the
//! addresses and the time.

mod groups;
mod schedule;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{Future, pending},
    io,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_common::{
    Addr, Announced, ConflictEntry, ConflictKey, LinkAddr,
    packet::{Gratuitous, gratuitous_arp, unsolicited_advertisement},
};
use lb_kernel::{bpf::typed::TypedMap, packet_socket::FrameSender};
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

pub use lb_kernel::clock::boot_time_ns;

use crate::{devices::answering::AnsweringLinks, pins::Pins};
use groups::Groups;
use schedule::{Announcement, Schedule};

/// Announcements that are sent at once, before others may change the addresses.
const BATCH: usize = 64;

/// Pause after a device that takes no more frames.
const PAUSE: Duration = Duration::from_millis(10);

/// The addresses that this node announces.
pub struct AnnouncedAddresses {
    addresses: TypedMap<Addr, Announced>,
    until: TypedMap<u32, u64>,
    conflicts: TypedMap<ConflictKey, ConflictEntry>,
    held: BTreeSet<IpAddr>,
    deadline: u64,
    announcer: Arc<Announcer>,
}

impl AnnouncedAddresses {
    /// Opens the maps, and reads the addresses that an earlier agent announced. They stay announced if their deadline
    /// is not over; otherwise another node may hold them, and they are removed.
    ///
    /// # Errors
    /// If a map cannot be read or written.
    pub fn open(pins: &Pins) -> Result<Self> {
        let addresses: TypedMap<Addr, Announced> = open(pins, "ANNOUNCED")?;
        let until: TypedMap<u32, u64> = open(pins, "ANNOUNCED_UNTIL")?;
        let conflicts = open(pins, "CONFLICTS")?;
        let (deadline, now) = (until.get(&0)?.unwrap_or(0), boot_time_ns());
        let entries: Vec<Addr> = addresses.read()?.into_iter().map(|(address, _)| address).collect();
        if deadline <= now {
            addresses.delete(&entries).context("writing ANNOUNCED")?;
        }
        let held: BTreeSet<IpAddr> = entries.into_iter().map(Addr::to_ip).filter(|_| deadline > now).collect();
        let announcer = Arc::<Announcer>::default();
        {
            let mut schedule = announcer.lock();
            schedule.set_addresses(&held, now);
            schedule.set_deadline(deadline, now);
        }
        Ok(Self { addresses, until, conflicts, held, deadline, announcer })
    }

    /// Returns the addresses in the map.
    #[must_use]
    pub const fn held(&self) -> &BTreeSet<IpAddr> {
        &self.held
    }

    /// Returns the time until which the node answers (CLOCK_BOOTTIME, ns); 0 before the first [`Self::renew`], of
    /// earlier agents too.
    #[must_use]
    pub const fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Removes and adds addresses. After the return no answer and no announcement of a removed one follows; added ones
    /// are announced to the links.
    ///
    /// # Errors
    /// If the map cannot be written; `held` has the addresses that are in it then.
    pub fn set(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<()> {
        let gone: Vec<Addr> = self.held.difference(addresses).map(|ip| Addr::from(*ip)).collect();
        let new: Vec<Addr> = addresses.difference(&self.held).map(|ip| Addr::from(*ip)).collect();
        if gone.is_empty() && new.is_empty() {
            return Ok(());
        }
        let written = self.write(&gone, &new);
        self.held = match &written {
            Ok(()) => addresses.clone(),
            Err(_) => self.addresses.read()?.into_iter().map(|(address, _)| address.to_ip()).collect(),
        };
        self.announcer.lock().set_addresses(&self.held, boot_time_ns());
        self.announcer.changed.notify_one();
        written
    }

    fn write(&self, gone: &[Addr], new: &[Addr]) -> Result<()> {
        self.addresses.delete(gone).context("writing ANNOUNCED")?;
        if !new.is_empty() {
            // Claims of an earlier time are none of this one.
            let claims = self.conflicts.read()?.into_iter().map(|(key, _)| key).filter(|key| new.contains(&key.addr));
            self.conflicts.delete(&claims.collect::<Vec<_>>()).context("writing CONFLICTS")?;
        }
        let since = Announced { since: boot_time_ns() };
        let put = self.addresses.put(new, &vec![since; new.len()]);
        put.with_context(|| {
            format!("writing ANNOUNCED, which has room for {} addresses", lb_common::capacity::ANNOUNCED)
        })
    }

    /// Writes the time until which the node answers for all of its addresses (CLOCK_BOOTTIME, ns).
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn renew(&mut self, deadline_ns: u64) -> Result<()> {
        self.until.put(&[0], &[deadline_ns]).context("writing ANNOUNCED_UNTIL")?;
        self.deadline = deadline_ns;
        if self.announcer.lock().set_deadline(deadline_ns, boot_time_ns()) {
            self.announcer.changed.notify_one();
        }
        Ok(())
    }

    /// Announces addresses at the devices that answer, until the future is dropped. Without CAP_NET_RAW it only joins
    /// the groups of IPv6 addresses.
    ///
    /// # Errors
    /// None so far.
    pub fn run(&self, links: watch::Receiver<AnsweringLinks>) -> impl Future<Output = Result<()>> + Send + use<> {
        run(Arc::clone(&self.announcer), links)
    }
}

/// The maps at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AnnouncedState {
    /// Time until which the node answers (CLOCK_BOOTTIME, ns); 0 if it never did.
    pub deadline: u64,
    /// Announced addresses, and the time since which each is in the map (CLOCK_BOOTTIME, ns).
    pub addresses: BTreeMap<IpAddr, u64>,
    /// Link addresses in answers, by index of the device.
    pub links: BTreeMap<u32, LinkAddr>,
    /// Claims by other link addresses.
    pub claims: Vec<(ConflictKey, ConflictEntry)>,
}

impl AnnouncedState {
    /// Returns the time since which the node answers for an address; none if it does not at the time `now`
    /// (CLOCK_BOOTTIME, ns).
    #[must_use]
    pub fn since(&self, address: &IpAddr, now: u64) -> Option<u64> {
        self.addresses.get(address).copied().filter(|_| self.deadline > now)
    }
}

/// Reads the maps pinned in `directory`, and changes nothing.
///
/// # Errors
/// If a map cannot be read.
pub fn read(directory: &Path) -> Result<AnnouncedState> {
    let addresses = TypedMap::<Addr, Announced>::open(directory, "ANNOUNCED")?.read()?;
    Ok(AnnouncedState {
        deadline: TypedMap::<u32, u64>::open(directory, "ANNOUNCED_UNTIL")?.get(&0)?.unwrap_or(0),
        addresses: addresses.into_iter().map(|(address, value)| (address.to_ip(), value.since)).collect(),
        links: TypedMap::<u32, LinkAddr>::open(directory, "LINK_ADDRS")?.read()?.into_iter().collect(),
        claims: TypedMap::open(directory, "CONFLICTS")?.read()?,
    })
}

/// Opens a map, in service or about to be.
fn open<K: aya::Pod, V: aya::Pod>(pins: &Pins, name: &'static str) -> Result<TypedMap<K, V>> {
    let staged = pins.staging();
    TypedMap::open(&if staged.join(name).exists() { staged } else { pins.current() }, name)
}

/// The announcements to send, of which the agent tells the task that sends them.
#[derive(Default)]
struct Announcer {
    schedule: Mutex<Schedule>,
    changed: Notify,
}

impl Announcer {
    fn lock(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends announcements that are due, and returns the time until the next one; none if there is none. Holds the lock
    /// meanwhile: an address that is given up is not announced any more.
    fn send_due(&self, sender: &FrameSender) -> Option<Duration> {
        let mut schedule = self.lock();
        let now = boot_time_ns();
        for announcement in schedule.due(now, BATCH) {
            match announce(sender, &announcement) {
                Err(error) if is_busy(&error) => return Some(PAUSE),
                Err(error) => tracing::debug!(?announcement, "an announcement is lost: {error}"),
                Ok(()) => {}
            }
            schedule.note_sent(&announcement, now);
        }
        schedule.next(now).map(|next| Duration::from_nanos(next.saturating_sub(now)))
    }
}

/// True if the device takes no more frames now.
fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

fn announce(sender: &FrameSender, announcement: &Announcement) -> io::Result<()> {
    let Announcement { index, link, address } = *announcement;
    match address {
        IpAddr::V4(ip) => {
            let address = u32::from_ne_bytes(ip.octets());
            sender.send(index, &gratuitous_arp(Gratuitous::Request, address, link))?;
            sender.send(index, &gratuitous_arp(Gratuitous::Reply, address, link))
        }
        IpAddr::V6(ip) => sender.send(index, &unsolicited_advertisement(&ip.into(), link)),
    }
}

async fn run(announcer: Arc<Announcer>, mut links: watch::Receiver<AnsweringLinks>) -> Result<()> {
    let sender = FrameSender::open().inspect_err(|error| {
        tracing::warn!(
            "announced addresses are answered, but not told to the links: clients follow a move only when their caches \
             expire. Opening a packet socket: {error}; give the agent CAP_NET_RAW"
        );
    });
    let mut groups = Groups::default();
    loop {
        {
            let with_carrier = links.borrow_and_update().with_carrier();
            let mut schedule = announcer.lock();
            schedule.set_links(&with_carrier, boot_time_ns());
            let (addresses, devices) = schedule.subjects();
            groups.update(addresses, devices.keys().copied());
        }
        let next = sender.as_ref().ok().and_then(|sender| announcer.send_due(sender));
        let time = async {
            match next {
                Some(next) => sleep(next).await,
                None => pending().await,
            }
        };
        let devices = async {
            if links.changed().await.is_err() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            () = time => {}
            () = devices => {}
            () = announcer.changed.notified() => {}
        }
    }
}

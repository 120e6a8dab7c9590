//! Times of announcements: each address at each device, some times after the address or the device came. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::LinkAddr;

const MILLISECOND: u64 = 1_000_000;
const MINUTE: u64 = 60_000 * MILLISECOND;

/// Times of the announcements after the first one, in ns. The later ones are for switches that forgot the address.
const TIMES: [u64; 8] =
    [0, 100 * MILLISECOND, 500 * MILLISECOND, MINUTE, 2 * MINUTE, 3 * MINUTE, 4 * MINUTE, 5 * MINUTE];

/// Announcements that are still to be sent. Times are CLOCK_BOOTTIME, ns.
#[derive(Default)]
pub(super) struct Schedule {
    addresses: BTreeSet<IpAddr>,
    links: BTreeMap<u32, LinkAddr>,
    /// The node may announce until then.
    deadline: u64,
    rounds: BTreeMap<(u32, IpAddr), Round>,
}

/// Announcements of an address at a device.
struct Round {
    /// Time of the first one, once it is sent; before, the time since which it is due.
    began: u64,
    /// Number of announcements that are sent or left out.
    sent: usize,
}

impl Round {
    fn due(&self) -> u64 {
        self.began + TIMES.get(self.sent).copied().unwrap_or(u64::MAX / 2)
    }
}

/// An announcement that is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Announcement {
    /// Index of the device.
    pub(super) index: u32,
    /// Link address of the device.
    pub(super) link: LinkAddr,
    /// The announced address.
    pub(super) address: IpAddr,
}

impl Schedule {
    /// Sets the addresses. New ones begin their announcements; none of an address that is gone follows.
    pub(super) fn set_addresses(&mut self, addresses: &BTreeSet<IpAddr>, now: u64) {
        self.rounds.retain(|(_, address), _| addresses.contains(address));
        for address in addresses.difference(&self.addresses) {
            self.rounds.extend(self.links.keys().map(|index| ((*index, *address), Round { began: now, sent: 0 })));
        }
        self.addresses.clone_from(addresses);
    }

    /// Sets the devices. All addresses begin their announcements at a device that is new or has another link address.
    pub(super) fn set_links(&mut self, links: &BTreeMap<u32, LinkAddr>, now: u64) {
        self.rounds.retain(|(index, _), _| links.contains_key(index));
        for (index, _) in links.iter().filter(|(index, link)| self.links.get(index) != Some(*link)) {
            self.rounds
                .extend(self.addresses.iter().map(|address| ((*index, *address), Round { began: now, sent: 0 })));
        }
        self.links.clone_from(links);
    }

    /// Sets the time until which the node may announce. If the time before was over, another node may have held the
    /// addresses meanwhile, so that all of them are announced anew. Returns true then.
    pub(super) fn set_deadline(&mut self, deadline: u64, now: u64) -> bool {
        let was_over = self.deadline <= now;
        self.deadline = deadline;
        if was_over && deadline > now {
            let links = std::mem::take(&mut self.links);
            self.set_links(&links, now);
        }
        was_over
    }

    /// Lists announcements that are due, at most `most`; none after the deadline.
    pub(super) fn due(&self, now: u64, most: usize) -> Vec<Announcement> {
        if now >= self.deadline {
            return Vec::new();
        }
        let due = self.rounds.iter().filter(|(_, round)| round.due() <= now);
        let announcement = |((index, address), _): (&(u32, IpAddr), &Round)| {
            Some(Announcement { index: *index, link: *self.links.get(index)?, address: *address })
        };
        due.filter_map(announcement).take(most).collect()
    }

    /// Notes an announcement as sent, and leaves out later ones whose time is over too, after a sleep of the machine.
    pub(super) fn note_sent(&mut self, sent: &Announcement, now: u64) {
        let key = (sent.index, sent.address);
        let Some(round) = self.rounds.get_mut(&key) else { return };
        if round.sent == 0 {
            round.began = now;
        }
        while round.due() <= now {
            round.sent += 1;
        }
        if round.sent >= TIMES.len() {
            self.rounds.remove(&key);
        }
    }

    /// Returns the time of the next announcement; none if there is none, or the deadline is over.
    pub(super) fn next(&self, now: u64) -> Option<u64> {
        if now >= self.deadline { None } else { self.rounds.values().map(Round::due).min() }
    }

    /// Lists the addresses and the devices.
    pub(super) fn subjects(&self) -> (&BTreeSet<IpAddr>, &BTreeMap<u32, LinkAddr>) {
        (&self.addresses, &self.links)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: LinkAddr = LinkAddr::new([2, 0, 0, 0, 0, 1]);
    const SECOND: u64 = 1_000 * MILLISECOND;

    fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    fn links(indexes: &[u32]) -> BTreeMap<u32, LinkAddr> {
        indexes.iter().map(|index| (*index, LINK)).collect()
    }

    /// Sends all that is due, and returns `ADDRESS@DEVICE` of each.
    fn send(schedule: &mut Schedule, now: u64) -> Vec<String> {
        let due = schedule.due(now, usize::MAX);
        due.iter().for_each(|announcement| schedule.note_sent(announcement, now));
        due.iter().map(|sent| format!("{}@{}", sent.address, sent.index)).collect()
    }

    fn schedule(texts: &[&str], indexes: &[u32]) -> Schedule {
        let mut schedule = Schedule::default();
        schedule.set_links(&links(indexes), SECOND);
        schedule.set_addresses(&addresses(texts), SECOND);
        schedule.set_deadline(3_600 * SECOND, SECOND);
        schedule
    }

    #[test]
    fn an_address_is_announced_thrice_and_then_each_minute_for_five_minutes() {
        let mut schedule = schedule(&["192.0.2.7"], &[2]);
        let mut sent = Vec::new();
        let mut now = SECOND;
        while let Some(next) = schedule.next(now) {
            now = now.max(next);
            assert_eq!(send(&mut schedule, now), ["192.0.2.7@2"]);
            sent.push((now - SECOND) / MILLISECOND);
        }
        assert_eq!(sent, [0, 100, 500, 60_000, 120_000, 180_000, 240_000, 300_000]);
    }

    #[test]
    fn nothing_is_announced_after_the_deadline_and_all_of_it_anew_when_it_is_renewed() {
        let mut schedule = schedule(&["192.0.2.7"], &[2]);
        assert_eq!(send(&mut schedule, SECOND), ["192.0.2.7@2"]);
        schedule.set_deadline(2 * SECOND, SECOND);
        assert_eq!(send(&mut schedule, 2 * SECOND), [""; 0]);
        assert_eq!(schedule.next(2 * SECOND), None);
        assert!(schedule.set_deadline(4 * SECOND, 3 * SECOND));
        for (now, expected) in [(3_000, 1), (3_050, 0), (3_100, 1), (3_500, 1)] {
            assert_eq!(send(&mut schedule, now * MILLISECOND).len(), expected, "{now} ms");
        }
        assert!(!schedule.set_deadline(5 * SECOND, 3_600 * MILLISECOND));
        assert_eq!(send(&mut schedule, 3_600 * MILLISECOND), [""; 0]);
    }

    #[test]
    fn an_address_without_a_deadline_yet_is_announced_from_the_first_one_on() {
        let mut schedule = Schedule::default();
        schedule.set_links(&links(&[2]), SECOND);
        schedule.set_addresses(&addresses(&["192.0.2.7"]), SECOND);
        assert_eq!(send(&mut schedule, 5 * SECOND), [""; 0]);
        assert!(schedule.set_deadline(9 * SECOND, 5 * SECOND));
        assert_eq!(send(&mut schedule, 5 * SECOND), ["192.0.2.7@2"]);
        assert_eq!(schedule.next(5 * SECOND), Some(5 * SECOND + 100 * MILLISECOND));
    }

    #[test]
    fn an_address_that_is_gone_is_not_announced_again() {
        let mut schedule = schedule(&["192.0.2.7", "192.0.2.8"], &[2]);
        assert_eq!(send(&mut schedule, SECOND).len(), 2);
        schedule.set_addresses(&addresses(&["192.0.2.8"]), SECOND);
        assert_eq!(send(&mut schedule, 2 * SECOND), ["192.0.2.8@2"]);
        schedule.set_addresses(&addresses(&["192.0.2.7", "192.0.2.8"]), 2 * SECOND);
        assert_eq!(send(&mut schedule, 2 * SECOND), ["192.0.2.7@2"], "it came back");
    }

    #[test]
    fn a_device_that_comes_later_or_changes_its_link_address_announces_all() {
        let mut schedule = schedule(&["192.0.2.7", "2001:db8::7"], &[2]);
        let mut now = 400 * SECOND;
        while !send(&mut schedule, now).is_empty() {
            now += 400 * SECOND;
        }
        schedule.set_links(&links(&[2, 3]), now);
        assert_eq!(send(&mut schedule, now), ["192.0.2.7@3", "2001:db8::7@3"]);
        let other = LinkAddr::new([2, 0, 0, 0, 0, 9]);
        schedule.set_links(&BTreeMap::from([(2, other)]), now);
        let due = schedule.due(now, 1);
        let address = "192.0.2.7".parse().expect("an address");
        assert_eq!(due, [Announcement { index: 2, link: other, address }]);
        schedule.set_links(&links(&[]), now);
        assert_eq!(send(&mut schedule, now), [""; 0], "no device");
        schedule.set_links(&BTreeMap::from([(2, other)]), now);
        assert_eq!(send(&mut schedule, now).len(), 2, "a device whose carrier came back");
    }

    #[test]
    fn announcements_that_a_sleep_missed_are_left_out() {
        let mut schedule = schedule(&["192.0.2.7"], &[2]);
        assert_eq!(send(&mut schedule, SECOND).len(), 1);
        assert_eq!(send(&mut schedule, 150 * SECOND).len(), 1);
        assert_eq!(send(&mut schedule, 150 * SECOND), [""; 0]);
        assert_eq!(schedule.next(150 * SECOND), Some(181 * SECOND));
    }
}

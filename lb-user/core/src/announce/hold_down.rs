//! Hold-down of an announcer that was too late, or cut off, to renew its addresses: for a time that grows from one such
//! lapse to the next it takes no address from another holder. A node that is late again and again would else move its
//! addresses to and fro each time. Addresses without a holder are not concerned, so that no failover is slower for it.

use super::{Announcer, PERMIT, SILENCE, TICK, Time};

/// Length of the first hold-down.
const SHORTEST: Time = PERMIT.saturating_mul(2);
/// Greatest length. An announcer without a lapse for as long after a hold-down begins anew.
const LONGEST: Time = Time::from_secs(300);

/// The hold-down of an announcer.
#[derive(Debug, Default)]
pub(super) struct HoldDown {
    /// Number of lapses.
    lapses: u64,
    /// Time of the last lapse.
    lapsed: Option<Time>,
    length: Time,
    until: Time,
}

impl HoldDown {
    /// Notes that addresses have lapsed. Those of one moment lapse one after the other.
    pub(super) fn note_lapse(&mut self, now: Time) {
        let is_same = self.lapsed.is_some_and(|lapsed| now < lapsed + PERMIT);
        if !is_same {
            let grows = self.lapsed.is_some() && now < self.until + LONGEST;
            self.length = if grows { (2 * self.length).min(LONGEST) } else { SHORTEST };
            self.lapses += 1;
        }
        self.lapsed = Some(now);
        self.until = now + self.length;
    }

    /// Notes that the announcer stood still for so long that it would have lost any address. A hold-down begins anew.
    pub(super) fn note_standstill(&mut self, now: Time) {
        if self.is_on(now) {
            self.until = now + self.length;
        }
    }

    /// True if the announcer leaves addresses to their holders.
    pub(super) fn is_on(&self, now: Time) -> bool {
        now < self.until
    }
}

impl Announcer {
    /// Returns the number of lapses: no majority permitted this announcer to hold them in time.
    #[must_use]
    pub fn lapses(&self) -> u64 {
        self.hold_down.lapses
    }

    /// Returns the time for which this announcer takes no address from another holder.
    #[must_use]
    pub fn hold_down(&self, now: Time) -> Time {
        self.hold_down.until.saturating_sub(now)
    }

    /// Notes that the announcer runs. After a standstill it knows that it heard nothing, and of no announcer that it is
    /// silent: its own datagrams may wait to be read.
    pub(super) fn wake(&mut self, now: Time) {
        let late = now.saturating_sub(self.awake + TICK);
        self.awake = self.awake.max(now);
        if late > Time::ZERO {
            self.peers.excuse(late);
            self.note_lapses(now);
        }
        if late >= SILENCE {
            self.hold_down.note_standstill(now);
        }
    }

    /// Begins a hold-down if addresses have lapsed: this announcer was to hold them, and no majority permitted it in
    /// time.
    pub(super) fn note_lapses(&mut self, now: Time) {
        if self.is_alone() {
            return;
        }
        let lapsed = self.claims.values_mut().filter(|claim| claim.until > Time::ZERO && claim.until <= now);
        if lapsed.map(|claim| claim.until = Time::ZERO).count() > 0 {
            self.hold_down.note_lapse(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the seconds for which hold-downs last, of lapses at these milliseconds.
    fn lengths(lapses: &[u64]) -> Vec<u64> {
        let mut hold_down = HoldDown::default();
        let length = |at: &u64| {
            let now = Time::from_millis(*at);
            hold_down.note_lapse(now);
            (hold_down.until - now).as_secs()
        };
        lapses.iter().map(length).collect()
    }

    #[test]
    fn hold_downs_grow_from_lapse_to_lapse_and_begin_anew_after_a_long_time_without_one() {
        assert_eq!(lengths(&[10_000, 10_100, 11_300, 14_000]), [3, 3, 3, 6]);
        assert_eq!(
            lengths(&(1..12).map(|i| i * 20_000).collect::<Vec<_>>()),
            [3, 6, 12, 24, 48, 96, 192, 300, 300, 300, 300]
        );
        assert_eq!(lengths(&[10_000, 312_000, 318_000, 636_000]), [3, 6, 12, 3]);
    }

    #[test]
    fn an_announcer_that_stands_still_in_a_hold_down_begins_it_anew() {
        let mut hold_down = HoldDown::default();
        let at = Time::from_secs;
        hold_down.note_standstill(at(9));
        assert!(!hold_down.is_on(at(9)), "nothing has lapsed");
        hold_down.note_lapse(at(10));
        hold_down.note_standstill(at(12));
        assert!(hold_down.is_on(at(14)) && !hold_down.is_on(at(15)));
        hold_down.note_standstill(at(16));
        assert!(!hold_down.is_on(at(16)));
    }
}

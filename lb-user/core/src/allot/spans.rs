//! Sets of addresses of one family, as sorted spans of numbers that do not touch each other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::Family;

/// Returns an address as a number; the family is not part of it.
pub(super) fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => addr.to_bits().into(),
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

/// Returns the address of a number of this family.
pub(super) fn addr(family: Family, number: u128) -> IpAddr {
    match family {
        // Spans of IPv4 are made from IPv4 addresses only.
        Family::V4 => Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        Family::V6 => Ipv6Addr::from_bits(number).into(),
    }
}

/// Returns the family of an address.
pub(super) const fn family_of(addr: IpAddr) -> Family {
    match addr {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// A set of addresses of one family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Spans(Vec<(u128, u128)>);

impl Spans {
    /// Adds the addresses from `first` to `last`.
    pub(super) fn add(&mut self, first: u128, last: u128) {
        if first > last {
            return;
        }
        let (mut first, mut last) = (first, last);
        // Merge with the spans that overlap or touch.
        self.0.retain(|&(low, high)| {
            let is_apart = high.checked_add(1).is_some_and(|next| next < first)
                || last.checked_add(1).is_some_and(|next| next < low);
            if !is_apart {
                first = first.min(low);
                last = last.max(high);
            }
            is_apart
        });
        let at = self.0.partition_point(|&(low, _)| low < first);
        self.0.insert(at, (first, last));
    }

    /// Removes the addresses from `first` to `last`.
    pub(super) fn remove(&mut self, first: u128, last: u128) {
        if first > last {
            return;
        }
        let mut kept = Vec::with_capacity(self.0.len() + 1);
        for &(low, high) in &self.0 {
            if high < first || low > last {
                kept.push((low, high));
                continue;
            }
            if let Some(end) = first.checked_sub(1).filter(|&end| end >= low) {
                kept.push((low, end));
            }
            if let Some(start) = last.checked_add(1).filter(|&start| start <= high) {
                kept.push((start, high));
            }
        }
        self.0 = kept;
    }

    /// Removes all addresses of the other set.
    pub(super) fn subtract(&mut self, other: &Self) {
        other.0.iter().for_each(|&(first, last)| self.remove(first, last));
    }

    /// Returns the first span that both sets have.
    pub(super) fn overlap(&self, other: &Self) -> Option<(u128, u128)> {
        self.0.iter().find_map(|&(low, high)| {
            let both = other.0.iter().map(|&(first, last)| (first.max(low), last.min(high)));
            both.into_iter().find(|(first, last)| first <= last)
        })
    }

    pub(super) fn contains(&self, number: u128) -> bool {
        let at = self.0.partition_point(|&(_, high)| high < number);
        self.0.get(at).is_some_and(|&(low, _)| low <= number)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the lowest number of the set that is at least `from`.
    pub(super) fn next(&self, from: u128) -> Option<u128> {
        let at = self.0.partition_point(|&(_, high)| high < from);
        self.0.get(at).map(|&(low, _)| low.max(from))
    }

    /// Returns the number of addresses; the highest number if there are more.
    pub(super) fn count(&self) -> u128 {
        let sizes = self.0.iter().map(|&(low, high)| (high - low).saturating_add(1));
        sizes.fold(0, u128::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_set_may_hold_every_address() {
        let mut all = Spans::default();
        all.add(0, u128::MAX);
        assert_eq!((all.count(), all.next(7), all.contains(u128::MAX)), (u128::MAX, Some(7), true));
        all.remove(0, 0);
        all.remove(u128::MAX, u128::MAX);
        assert_eq!((all.next(0), all.contains(u128::MAX), all.count()), (Some(1), false, u128::MAX - 1));
        all.add(0, 0);
        assert_eq!(all.0, [(0, u128::MAX - 1)], "spans that touch are one");
    }

    proptest! {
        #[test]
        fn spans_are_the_set_of_their_numbers(
            steps in prop::collection::vec((any::<bool>(), 0_u8..40, 0_u8..40), 0..12)
        ) {
            let (mut spans, mut set) = (Spans::default(), BTreeSet::new());
            for (adds, first, last) in steps {
                if adds {
                    spans.add(first.into(), last.into());
                    set.extend(u128::from(first)..=u128::from(last));
                } else {
                    spans.remove(first.into(), last.into());
                    set.retain(|number| !(u128::from(first)..=u128::from(last)).contains(number));
                }
            }
            prop_assert_eq!(spans.count(), set.len() as u128);
            for number in 0..42_u128 {
                prop_assert_eq!(spans.contains(number), set.contains(&number));
                prop_assert_eq!(spans.next(number), set.range(number..).next().copied());
            }
            prop_assert!(spans.0.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", spans);
        }
    }
}

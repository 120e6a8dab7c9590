//! Slots of each backend of a service port: its weight, in the smallest numbers that keep the proportions of the
//! objects' weights.

use lb_common::List;

use crate::spec::Member;

/// Slots of a list that weights may fill. A list of more backends has a slot for each.
const SLOTS: u32 = 16_384;
/// Slots that one backend may fill.
const HEAVIEST: u16 = 256;

/// Divides the weights by their greatest common divisor.
pub(super) fn reduce(members: &mut [Member]) {
    let common = members.iter().filter(|member| in_any(member)).fold(0, |common, member| gcd(common, member.weight));
    if common > 1 {
        members.iter_mut().filter(|member| in_any(member)).for_each(|member| member.weight /= common);
    }
}

/// Scales weights down and rounds them, to at least 1, where a list or a backend would have too many slots. A member of
/// no list weighs 1.
pub(super) fn limit(members: &mut [Member]) {
    members.iter_mut().filter(|member| !in_any(member)).for_each(|member| member.weight = 1);
    let heaviest = members.iter().filter(|member| in_any(member)).map(|member| member.weight).max().unwrap_or(1);
    if heaviest <= 1 {
        return;
    }
    // The heaviest gets as many slots as fit, and the others in proportion. One slot for each always fits.
    let (mut fits, mut too_many) = (1, heaviest.min(HEAVIEST) + 1);
    if all_fit(members, heaviest, too_many - 1) {
        fits = too_many - 1;
    }
    while too_many - fits > 1 {
        let middle = fits.midpoint(too_many);
        if all_fit(members, heaviest, middle) { fits = middle } else { too_many = middle }
    }
    members
        .iter_mut()
        .filter(|member| in_any(member))
        .for_each(|member| member.weight = scaled(member.weight, heaviest, fits));
}

fn in_any(member: &Member) -> bool {
    List::ALL.into_iter().any(|list| member.is_in(list))
}

/// True if the lists are short enough when the heaviest gets `slots`.
fn all_fit(members: &[Member], heaviest: u16, slots: u16) -> bool {
    List::ALL.into_iter().all(|list| {
        let (mut count, mut total) = (0_u32, 0_u64);
        for member in members.iter().filter(|member| member.is_in(list)) {
            count += 1;
            total += u64::from(scaled(member.weight, heaviest, slots));
        }
        total <= u64::from(count.max(SLOTS))
    })
}

/// Scales a weight so that the weight of the heaviest becomes `slots`.
fn scaled(weight: u16, heaviest: u16, slots: u16) -> u16 {
    let (weight, heaviest, slots) = (u32::from(weight), u32::from(heaviest), u32::from(slots));
    let rounded = (weight * slots + heaviest / 2) / heaviest;
    u16::try_from(rounded).unwrap_or(HEAVIEST).max(1)
}

const fn gcd(mut a: u16, mut b: u16) -> u16 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::{AddrPort, BackendFlags};
    use proptest::{collection::vec, prelude::*};
    use std::net::Ipv4Addr;

    fn member(index: usize, weight: u16, flags: u16) -> Member {
        let index = u32::try_from(index).expect("few");
        let addr = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + index).into();
        Member { target: AddrPort { addr, port: 80 }, flags, weight }
    }

    fn normalised(weights: &[(u16, u16)]) -> Vec<u16> {
        let members = weights.iter().enumerate().map(|(index, &(weight, flags))| member(index, weight, flags));
        let mut members: Vec<_> = members.collect();
        reduce(&mut members);
        limit(&mut members);
        members.iter().map(|member| member.weight).collect()
    }

    #[test]
    fn weights_become_the_smallest_numbers_in_their_proportions() {
        let check = |weights: &[u16], expected: &[u16]| {
            let weights: Vec<_> = weights.iter().map(|&weight| (weight, BackendFlags::CLUSTER)).collect();
            assert_eq!(normalised(&weights), expected, "{weights:?}");
        };
        check(&[], &[]);
        check(&[1], &[1]);
        check(&[100], &[1]);
        check(&[100, 100, 100], &[1, 1, 1]);
        check(&[10, 20, 30], &[1, 2, 3]);
        check(&[1, 256], &[1, 256]);
        check(&[1, 257], &[1, 256]);
        check(&[1, 65_535], &[1, 256]);
        check(&[3, 65_535], &[1, 256]);
        check(&[20_000, 40_001], &[128, 256]);
        let mut many = vec![200; 16_384];
        check(&many, &[1; 16_384]);
        many[0] = 100;
        // Two slots for each would be too many.
        check(&many, &[1; 16_384]);
        check(&[[100, 300].as_slice(), &[200; 8_000]].concat(), &[[1, 3].as_slice(), &[2; 8_000]].concat());
    }

    #[test]
    fn members_of_no_list_do_not_count() {
        let (cluster, local) = (BackendFlags::CLUSTER, BackendFlags::LOCAL);
        assert_eq!(normalised(&[(4, cluster), (7, 0), (6, local)]), [2, 1, 3]);
        assert_eq!(normalised(&[(7, 0)]), [1]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn proportions_stay_within_rounding(
            weights in vec((prop_oneof![3 => 1_u16..300, 1 => 1_u16..], 0_u16..4), 1..100),
            copies in prop_oneof![Just(1), 1_usize..200],
        ) {
            let weights = weights.repeat(copies);
            let after = normalised(&weights);
            let listed = || weights.iter().zip(&after).filter(|((_, flags), _)| *flags != 0);
            for list in [BackendFlags::CLUSTER, BackendFlags::LOCAL] {
                let in_list = listed().filter(|((_, flags), _)| flags & list != 0);
                let slots: Vec<_> = in_list.map(|(_, slots)| *slots).collect();
                let total: u64 = slots.iter().map(|&slots| u64::from(slots)).sum();
                prop_assert!(total <= (slots.len() as u64).max(16_384), "{total} slots for {}", slots.len());
            }
            let Some((&(heaviest, _), &most)) = listed().max_by_key(|((weight, _), _)| *weight) else { return Ok(()) };
            prop_assert!((1..=256).contains(&most));
            for (&(weight, _), &slots) in listed() {
                let exact = f64::from(weight) * f64::from(most) / f64::from(heaviest);
                let near = (f64::from(slots) - exact).abs() <= 0.5 || (slots == 1 && exact < 1.0);
                prop_assert!(near, "{slots} slots of {most} for {weight} of {heaviest}");
            }
            let again: Vec<_> = after.iter().zip(&weights).map(|(&slots, &(_, flags))| (slots, flags)).collect();
            prop_assert!(after.iter().all(|&slots| slots >= 1) && again.len() == after.len());
        }
    }
}

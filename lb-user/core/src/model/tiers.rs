//! Tiers of endpoints (`beeline.io/priority`): the best tier with enough ready endpoints is used.
//!
//! A tier that is in use stays until less than the Service's share of its endpoints is ready; a better one takes over
//! again when 20 points more than that share is ready, so that an endpoint that comes and goes moves no client. Once
//! the tier in use has too few, the share is enough for any other. The tier in use is stored with the service port, so
//! that the decision outlives the agent.

use std::collections::BTreeMap;

use lb_common::ServiceFlags;

use super::reason::{EvaluatedEndpoint, Placement, Reason};
use crate::{objects::WORST_TIER, shadow::Shadow, spec::PortKey};

/// Per cent of ready endpoints, besides the share, at which a better tier takes over again.
const MARGIN: usize = 20;

/// The number that stands for all tiers, of which none has enough ready endpoints; worse than any tier.
pub const ALL: u8 = WORST_TIER + 1;

/// Returns the tier that a service port uses in the maps; 0, the best, if it is not there.
pub(super) fn in_use(maps: Option<&Shadow>, key: &PortKey) -> u8 {
    let service = maps.and_then(|maps| maps.port_named(key)).and_then(|(_, port)| port.service);
    let flags = service.map_or(0, |service| service.flags);
    u8::try_from((flags & ServiceFlags::TIER) >> ServiceFlags::TIER_SHIFT).unwrap_or_default()
}

/// The tiers of the endpoints of one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tiers {
    /// Counts of each tier, the best first.
    pub counts: BTreeMap<u8, Count>,
    /// The tier in use, or [`ALL`].
    pub in_use: u8,
    /// The Service's share, in per cent.
    pub share: u8,
}

/// Endpoints of a tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    /// The ready ones that take new connections.
    pub ready: usize,
    /// Ready endpoints and the others, apart from terminating ones.
    pub total: usize,
}

impl Count {
    fn has(self, percent: usize) -> bool {
        self.ready > 0 && self.ready * 100 >= percent * self.total
    }
}

impl Tiers {
    /// Decides which tier serves; none if all endpoints are of tier 0.
    pub(super) fn choose(endpoints: &[EvaluatedEndpoint<'_>], share: u8, before: impl FnOnce() -> u8) -> Option<Self> {
        if endpoints.iter().all(|endpoint| endpoint.endpoint.tier == 0) {
            return None;
        }
        let before = before();
        let mut counts: BTreeMap<u8, Count> = BTreeMap::new();
        for EvaluatedEndpoint { endpoint, reason, .. } in endpoints {
            let is_ready = match reason {
                Reason::Serves { cluster: Placement::Ready, .. } => true,
                Reason::NotReady | Reason::FailsProbe(_) => false,
                // New endpoints do not end the use of their tier. No tier comes into use because dead endpoints have no
                // result yet, as after a restart.
                Reason::AwaitsProbe if endpoint.tier != before => false,
                _ => continue,
            };
            let count = counts.entry(endpoint.tier).or_default();
            count.ready += usize::from(is_ready);
            count.total += 1;
        }
        let enough = usize::from(share);
        let is_lost = before != ALL && !counts.get(&before).is_some_and(|count| count.has(enough));
        let needed = |tier: u8| if tier < before && !is_lost { back(share) } else { enough };
        let in_use = counts.iter().find(|(tier, count)| count.has(needed(**tier))).map_or(ALL, |(tier, _)| *tier);
        Some(Self { counts, in_use, share })
    }

    /// Leaves the endpoints of other tiers out of the cluster list.
    pub(super) fn narrow(&self, endpoints: &mut [EvaluatedEndpoint<'_>]) {
        for EvaluatedEndpoint { endpoint, reason, .. } in endpoints {
            if let Reason::Serves { cluster, .. } = reason
                && *cluster == Placement::Ready
                && self.in_use != ALL
                && endpoint.tier != self.in_use
            {
                *cluster = Placement::OtherTier(endpoint.tier);
            }
        }
    }

    /// The tier in use, as bits of [`ServiceFlags`].
    pub(super) fn flags(&self) -> u32 {
        let narrows = if self.in_use == ALL { 0 } else { ServiceFlags::TIERED };
        narrows | u32::from(self.in_use) << ServiceFlags::TIER_SHIFT
    }

    /// Describes the tier in use, and when it changes.
    pub(super) fn text(&self) -> String {
        let count = |tier: u8| self.counts.get(&tier).copied().unwrap_or_default();
        let again = |text: &mut String| {
            let better = self.counts.range(..self.in_use).next().filter(|(_, count)| count.total > 0);
            if let Some((tier, Count { ready, total })) = better {
                let needed = (back(self.share) * total).div_ceil(100);
                *text += &format!("; priority {tier} serves again when {needed} of {total} are ready, now {ready}");
            }
        };
        if self.in_use == ALL {
            let mut text = format!("all are used: no priority has {} % of its endpoints ready", self.share);
            again(&mut text);
            return text;
        }
        let Count { ready, total } = count(self.in_use);
        let mut text = format!("{} is used, with {ready} of {total} ready", self.in_use);
        let mut others = self.counts.iter().filter(|(tier, _)| **tier != self.in_use).peekable();
        if others.peek().is_some() {
            let enough = usize::from(self.share);
            let next = match others.find(|(_, count)| count.has(enough)) {
                Some((tier, _)) => format!("priority {tier} serves"),
                None => "all serve".to_owned(),
            };
            text += &format!("; {next} when fewer than {} are", (enough * total).div_ceil(100).max(1));
        }
        again(&mut text);
        text
    }
}

/// Returns the per cent of ready endpoints with which a better tier takes over again.
fn back(share: u8) -> usize {
    (usize::from(share) + MARGIN).min(100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Endpoint;
    use proptest::prelude::*;

    /// Endpoints by tier and readiness.
    fn endpoints(of: &[(u8, bool)]) -> Vec<Endpoint> {
        let endpoint = |(index, &(tier, ready)): (usize, &(u8, bool))| Endpoint {
            tier,
            ready,
            ..Endpoint::new([10, 0, 0, u8::try_from(index).expect("few")].into())
        };
        of.iter().enumerate().map(endpoint).collect()
    }

    fn choose(of: &[(u8, bool)], share: u8, before: u8) -> Option<Tiers> {
        let key = crate::objects::Key::new("default", "a");
        let endpoints = endpoints(of);
        let evaluated: Vec<_> = endpoints
            .iter()
            .map(|endpoint| EvaluatedEndpoint {
                target: lb_common::AddrPort { addr: endpoint.addr.into(), port: 80 },
                endpoint,
                origin: crate::model::endpoints::EndpointOrigin::Slice(&key),
                weight: 1,
                other_namespace: None,
                probe: crate::model::reason::ProbeState::NotProbed,
                reason: if endpoint.ready {
                    Reason::Serves { cluster: Placement::Ready, local: None }
                } else {
                    Reason::NotReady
                },
            })
            .collect();
        Tiers::choose(&evaluated, share, || before)
    }

    /// Endpoints of tier 0, of which so many are ready, and two ready ones of tier 1.
    fn two(ready: usize, total: usize) -> Vec<(u8, bool)> {
        (0..total).map(|index| (0, index < ready)).chain([(1, true), (1, true)]).collect()
    }

    #[test]
    fn the_best_tier_with_enough_ready_endpoints_is_used() {
        let check = |of: &[(u8, bool)], share, expected| {
            assert_eq!(choose(of, share, 0).map(|tiers| tiers.in_use), expected, "{of:?}, {share}");
        };
        check(&[(0, true), (0, false)], 50, None);
        check(&two(2, 4), 50, Some(0));
        check(&two(1, 4), 50, Some(1));
        check(&two(1, 4), 25, Some(0));
        check(&two(0, 4), 1, Some(1));
        check(&two(3, 4), 100, Some(1));
        check(&two(0, 0), 50, Some(1));
        check(&[(2, true), (1, false), (0, false)], 50, Some(2));
        check(&[(0, true), (0, false), (0, false), (1, false)], 50, Some(ALL));
        check(&[(1, false)], 50, Some(ALL));
    }

    #[test]
    fn a_tier_serves_until_it_has_too_few_and_again_when_it_has_more_than_enough() {
        let mut before = 0;
        let mut step = |ready| {
            before = choose(&two(ready, 10), 50, before).expect("tiers").in_use;
            before
        };
        let used: Vec<_> = [10, 5, 4, 5, 6, 5, 7, 6, 5, 4, 6].map(&mut step).into();
        assert_eq!(used, [0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn a_better_tier_needs_its_share_only_when_the_tier_in_use_has_lost_its_own() {
        let of = |ready_of_first: usize, ready_of_second: usize| -> Vec<(u8, bool)> {
            let of_tier = |tier, ready| (0..10).map(move |index| (tier, index < ready));
            of_tier(0, ready_of_first).chain(of_tier(1, ready_of_second)).chain(of_tier(2, 10)).collect()
        };
        let used = |first, second, before| choose(&of(first, second), 50, before).expect("tiers").in_use;
        assert_eq!(used(6, 5, 1), 1, "the way back needs more");
        assert_eq!(used(6, 4, 1), 0, "no worse tier");
        assert_eq!(used(4, 4, 1), 2);
        let all = choose(&[[(0, true); 3].as_slice(), &[(0, false), (0, false), (1, false)]].concat(), 50, ALL)
            .expect("tiers");
        assert_eq!(all.in_use, ALL, "the way back needs more there too");
        let text = |first, second| choose(&of(first, second), 50, 1).expect("tiers").text();
        assert_eq!(
            text(6, 5),
            "1 is used, with 5 of 10 ready; priority 0 serves when fewer than 5 are; priority 0 serves again when 7 of \
             10 are ready, now 6"
        );
        assert_eq!(
            text(4, 5),
            "1 is used, with 5 of 10 ready; priority 2 serves when fewer than 5 are; priority 0 serves again when 7 of \
             10 are ready, now 4"
        );
        let two = choose(&[(0, true), (1, false), (1, false)], 50, 0).expect("tiers");
        assert_eq!(two.text(), "0 is used, with 1 of 1 ready; all serve when fewer than 1 are");
    }

    proptest! {
        #[test]
        fn a_decision_stays_while_nothing_changes(
            of in proptest::collection::vec((0_u8..4, any::<bool>()), 0..20),
            share in 1_u8..=100,
            before in any::<u8>(),
        ) {
            if let Some(first) = choose(&of, share, before) {
                prop_assert_eq!(choose(&of, share, first.in_use), Some(first));
            }
        }
    }

    #[test]
    fn the_text_says_when_the_tier_changes() {
        let text = |ready, before| choose(&two(ready, 4), 50, before).expect("tiers").text();
        assert_eq!(text(3, 0), "0 is used, with 3 of 4 ready; priority 1 serves when fewer than 2 are");
        assert_eq!(
            text(1, 0),
            "1 is used, with 2 of 2 ready; all serve when fewer than 1 are; priority 0 serves again when 3 of 4 are \
             ready, now 1"
        );
        let none = choose(&[(0, true), (0, false), (0, false), (1, false)], 50, 0).expect("tiers").text();
        assert_eq!(
            none,
            "all are used: no priority has 50 % of its endpoints ready; priority 0 serves again when 3 of 3 are ready, \
             now 1"
        );
    }
}

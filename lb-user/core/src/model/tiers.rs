//! Tiers of endpoints (`beeline.io/priority`): the best tier with enough ready endpoints is used.
//!
//! A tier that is in use stays until less than the Service's share of its endpoints is ready; a better one takes over
//! again when 20 points more than that share is ready, so that an endpoint that comes and goes moves no client. The
//! tier in use is stored with the service port, so that the decision outlives the agent.

use std::collections::BTreeMap;

use lb_common::ServiceFlags;

use super::reason::{EvaluatedEndpoint, Placement, Reason};
use crate::{objects::WORST_TIER, spec::PortKey};

/// Per cent of ready endpoints, besides the share, at which a better tier takes over again.
const MARGIN: usize = 20;

/// The number that stands for all tiers, of which none has enough ready endpoints; worse than any tier.
pub const ALL: u8 = WORST_TIER + 1;

/// The tiers in use before this decision, for service ports that use another one than 0, the best.
pub type TiersInUse = BTreeMap<PortKey, u8>;

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
    /// Those and the others, apart from terminating ones.
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
        let mut counts: BTreeMap<u8, Count> = BTreeMap::new();
        for EvaluatedEndpoint { endpoint, reason, .. } in endpoints {
            let is_ready = match reason {
                Reason::Serves { cluster: Placement::Ready, .. } => true,
                Reason::NotReady => false,
                _ => continue,
            };
            let count = counts.entry(endpoint.tier).or_default();
            count.ready += usize::from(is_ready);
            count.total += 1;
        }
        let before = before();
        let needed = |tier: u8| {
            let share = usize::from(share);
            if tier < before { (share + MARGIN).min(100) } else { share }
        };
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
        let back = |text: &mut String| {
            let better = self.counts.range(..self.in_use).next().filter(|(_, count)| count.total > 0);
            if let Some((tier, Count { ready, total })) = better {
                let needed = (usize::from(self.share) + MARGIN).min(100) * total;
                *text += &format!(
                    "; priority {tier} serves again when {} of {total} are ready, now {ready}",
                    needed.div_ceil(100)
                );
            }
        };
        if self.in_use == ALL {
            let mut text = format!("all are used: no priority has {} % of its endpoints ready", self.share);
            back(&mut text);
            return text;
        }
        let Count { ready, total } = count(self.in_use);
        let mut text = format!("{} is used, with {ready} of {total} ready", self.in_use);
        if let Some((next, _)) = self.counts.range(self.in_use.saturating_add(1)..).next() {
            let needed = (usize::from(self.share) * total).div_ceil(100).max(1);
            text += &format!("; priority {next} serves when fewer than {needed} are");
        }
        back(&mut text);
        text
    }
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
        assert_eq!(text(1, 0), "1 is used, with 2 of 2 ready; priority 0 serves again when 3 of 4 are ready, now 1");
        let none = choose(&[(0, true), (0, false), (0, false), (1, false)], 50, 0).expect("tiers").text();
        assert_eq!(
            none,
            "all are used: no priority has 50 % of its endpoints ready; priority 0 serves again when 3 of 3 are ready, \
             now 1"
        );
    }
}

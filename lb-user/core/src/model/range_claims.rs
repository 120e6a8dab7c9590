//! Decides which Service owns each port of port ranges that several claim at an address (invariant I6). The owner is
//! the claimant with precedence, then the older Service, then the first by name, port by port.

use foldhash::HashMap;
use lb_common::{Addr, Kind, Proto};

use super::claimant::{Claimant, Precedence, Rank};
use crate::{
    objects::Key,
    port_ranges::{PortSpan, subtract, union},
};

/// Claimants at one address and protocol that get ports. More get none, so that a crowd of them costs little.
const MAX_CLAIMANTS: usize = 64;

/// A port range that a Service claims at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClaimedRange {
    /// The address.
    pub addr: Addr,
    /// The protocol.
    pub proto: Proto,
    /// The ports.
    pub span: PortSpan,
    /// The field of the Service with the address.
    pub kind: Kind,
}

type Place = (Addr, Proto);

/// The ranges of one Service at one place.
struct RangeClaim {
    claimant: Claimant,
    /// Sorted, without common ports.
    claimed: Vec<PortSpan>,
    /// The part that it owns.
    owned: Vec<PortSpan>,
}

/// The port ranges that Services claim.
#[derive(Default)]
pub(super) struct RangeClaims {
    /// Claims by place, the best first.
    places: HashMap<Place, Vec<RangeClaim>>,
    by_service: HashMap<Key, (i64, Vec<ClaimedRange>)>,
}

/// The effect of a change of claims.
#[derive(Default)]
pub(super) struct RangeChanges {
    /// Services that own other ports than before, or lose others.
    pub(super) services: Vec<Key>,
    /// Addresses at which ranges have changed.
    pub(super) addrs: Vec<Addr>,
}

impl RangeClaims {
    /// Sets the ranges that a Service claims.
    pub(super) fn set(&mut self, service: &Key, created: i64, ranges: &[ClaimedRange]) -> RangeChanges {
        let mut changes = RangeChanges::default();
        let is_same = |(since, old): &(i64, Vec<ClaimedRange>)| *since == created && old == ranges;
        if self.by_service.get(service).map_or(ranges.is_empty(), is_same) {
            return changes;
        }
        let old = self.by_service.remove(service).map_or_else(Vec::new, |(_, old)| old);
        let mut places: Vec<Place> = old.iter().chain(ranges).map(|range| (range.addr, range.proto)).collect();
        places.sort_unstable();
        places.dedup();
        for place in places {
            let claims = self.places.entry(place).or_default();
            claims.retain(|claim| claim.claimant.service != *service);
            let own = || ranges.iter().filter(|range| (range.addr, range.proto) == place);
            if let Some(first) = own().next() {
                let claimant =
                    Claimant { rank: Rank::new(Precedence::of(first.kind), created), service: service.clone() };
                let claimed = union(own().map(|range| range.span));
                let at = claims.partition_point(|other| other.claimant < claimant);
                claims.insert(at, RangeClaim { claimant, claimed, owned: Vec::new() });
            }
            share(claims, &mut changes.services);
            if claims.is_empty() {
                self.places.remove(&place);
            }
        }
        changes.addrs.extend(old.iter().chain(ranges).map(|range| range.addr));
        changes.addrs.sort_unstable();
        changes.addrs.dedup();
        if !ranges.is_empty() {
            self.by_service.insert(service.clone(), (created, ranges.to_vec()));
        }
        changes
    }

    /// Returns the ports of a place that a Service owns.
    pub(super) fn owned(&self, addr: Addr, proto: Proto, service: &Key) -> &[PortSpan] {
        let claims = self.places.get(&(addr, proto)).map_or(&[][..], |claims| claims);
        claims.iter().find(|claim| claim.claimant.service == *service).map_or(&[], |claim| &claim.owned)
    }

    /// Returns the owner of a port of a place.
    pub(super) fn owner(&self, addr: Addr, proto: Proto, port: u16) -> Option<&Claimant> {
        let has = |spans: &[PortSpan]| spans.iter().any(|span| span.contains(port));
        let claim = self.places.get(&(addr, proto))?.iter().find(|claim| has(&claim.owned))?;
        Some(&claim.claimant)
    }

    /// True if no Service claims ranges.
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Lists the Services that claim ranges at an address.
    pub(super) fn claimants(&self, addr: Addr) -> impl Iterator<Item = &Key> {
        let claims = Proto::ALL.into_iter().filter_map(move |proto| self.places.get(&(addr, proto))).flatten();
        claims.map(|claim| &claim.claimant.service)
    }
}

/// Gives each claimant the ports that no better one claims, and reports those for which that is a change.
fn share(claims: &mut [RangeClaim], changed: &mut Vec<Key>) {
    let mut taken: Vec<PortSpan> = Vec::new();
    for (nth, claim) in claims.iter_mut().enumerate() {
        let owned = if nth < MAX_CLAIMANTS { subtract(&claim.claimed, taken.iter().copied()) } else { Vec::new() };
        if owned != claim.owned {
            changed.push(claim.claimant.service.clone());
            claim.owned = owned;
        }
        if nth < MAX_CLAIMANTS {
            taken = union(taken.into_iter().chain(claim.claimed.iter().copied()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn addr(last: u8) -> Addr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn range(last: u8, first: u16, until: u16, kind: Kind) -> ClaimedRange {
        ClaimedRange { addr: addr(last), proto: Proto::Udp, span: PortSpan { first, last: until }, kind }
    }

    fn key(name: &str) -> Key {
        Key::new("default", name)
    }

    fn owned(claims: &RangeClaims, name: &str) -> String {
        let spans = claims.owned(addr(1), Proto::Udp, &key(name)).iter();
        spans.map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn i6_a_port_of_several_ranges_belongs_to_the_older_service_then_to_the_first_by_name() {
        let mut claims = RangeClaims::default();
        let mut set = |name: &str, created, ranges: &[ClaimedRange]| {
            let changes = claims.set(&key(name), created, ranges);
            let names: Vec<&str> = changes.services.iter().map(Key::name).collect();
            (names.join(" "), ["a", "b", "c"].map(|name| owned(&claims, name)).join(", "))
        };
        let expected = |changed: &str, owned: &str| (changed.to_owned(), owned.to_owned());
        let external = |first, last| range(1, first, last, Kind::ExternalIp);
        assert_eq!(set("b", 2, &[external(100, 200)]), expected("b", ", 100-200, "));
        assert_eq!(set("b", 2, &[external(100, 200)]), expected("", ", 100-200, "));
        assert_eq!(set("c", 3, &[external(150, 250)]), expected("c", ", 100-200, 201-250"));
        assert_eq!(set("a", 2, &[external(180, 180)]), expected("a b", "180, 100-179 181-200, 201-250"));
        assert_eq!(set("a", 1, &[external(210, 210)]), expected("a b c", "210, 100-200, 201-209 211-250"));
        // A claim that is lost keeps the ports from worse ones too.
        assert_eq!(set("a", 1, &[external(1, 220)]), expected("a b c", "1-220, , 221-250"));
        assert_eq!(set("b", 2, &[range(2, 1, 9, Kind::ExternalIp)]), expected("b", "1-220, , 221-250"));
        assert_eq!(set("a", 1, &[]), expected("c", ", , 150-250"));
        assert_eq!(set("b", 2, &[]), expected("", ", , 150-250"));
        assert_eq!(set("c", 3, &[]), expected("", ", , "));
        assert!(claims.places.is_empty() && claims.by_service.is_empty());
    }

    #[test]
    fn i6_a_range_at_an_allotted_address_goes_before_one_at_a_claimed_address() {
        let mut claims = RangeClaims::default();
        assert!(claims.is_empty());
        assert_eq!(claims.set(&key("old"), 1, &[range(1, 1, 9, Kind::ExternalIp)]).addrs, [addr(1)]);
        let changes = claims.set(&key("young"), 2, &[range(1, 5, 7, Kind::LoadBalancer)]);
        assert_eq!((changes.services.len(), changes.addrs), (2, vec![addr(1)]));
        assert_eq!((owned(&claims, "old"), owned(&claims, "young")), ("1-4 8-9".to_owned(), "5-7".to_owned()));
        let owner = |port| {
            let owner = claims.owner(addr(1), Proto::Udp, port);
            owner.map(|owner| (owner.service.name(), owner.rank.precedence()))
        };
        assert_eq!(owner(5), Some(("young", Precedence::Assigned)));
        assert_eq!((owner(8), owner(10)), (Some(("old", Precedence::Claimed)), None));
        assert_eq!(claims.claimants(addr(1)).count(), 2);
    }

    #[test]
    fn a_crowd_of_claimants_gets_nothing_beyond_the_first() {
        let mut claims = RangeClaims::default();
        let name = |nth: u16| format!("{nth:03}");
        for nth in 0..70 {
            claims.set(&key(&name(nth)), 1, &[range(1, 1000 + nth, 1000 + nth, Kind::ExternalIp)]);
        }
        assert_eq!([63, 64].map(|nth| owned(&claims, &name(nth))), ["1063".to_owned(), String::new()]);
        let changes = claims.set(&key(&name(0)), 1, &[]);
        assert_eq!(changes.services, [key(&name(64))]);
        assert_eq!([64, 65].map(|nth| owned(&claims, &name(nth))), ["1064".to_owned(), String::new()]);
    }
}

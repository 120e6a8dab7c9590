//! The port ranges that a Service gets at its addresses (`beeline.io/ports`).

use std::collections::BTreeMap;

use lb_common::{Addr, FrontendKey, Kind};

use super::{
    ClusterContext, NodeContext,
    claims::{Precedence, SinglePort},
    frontends::RequestedRange,
    range_claims::ClaimedRange,
};
use crate::{
    objects::{Key, Service, ServicePort},
    port_ranges::{PortSpan, subtract, union},
    warning::{Denial, DeniedFrontend, FrontendPlace, Warning},
};

/// Runs of single ports of another Service that a warning lists.
const LISTED: usize = 5;

/// Returns the requested ranges without the ports that other Services own (invariant I6), and without those at
/// addresses of this node, with warnings.
pub(super) fn keep_owned(
    requested: &[RequestedRange],
    service: &Service,
    node: NodeContext<'_>,
    ClusterContext { claims, .. }: ClusterContext<'_>,
    warnings: &mut Vec<Warning>,
) -> Vec<RequestedRange> {
    let mut kept = Vec::new();
    // Single ports of others at the address of the ranges before: those of one address follow each other.
    let mut singles: (Option<Addr>, Vec<SinglePort<'_>>) = (None, Vec::new());
    for range in requested {
        let ClaimedRange { addr, proto, span, kind } = range.claim;
        let mut deny = |span, denial| {
            let place = FrontendPlace::Ports(addr, proto, span);
            warnings.push(Warning::Frontend(DeniedFrontend { kind, place, denial }));
        };
        if node.own.contains(&addr) {
            deny(span, Denial::NodeAddress);
            continue;
        }
        // The cluster IP of another Service: its own clients are refused at ports that it does not have.
        let address = FrontendKey::new(addr, 0, proto).address();
        if let Some(owner) = claims.owner(&address).filter(|owner| **owner != service.key) {
            deny(span, Denial::Outranked(owner.clone()));
            continue;
        }
        let lost = subtract(&[span], claims.owned_ranges(addr, proto, &service.key).iter().copied());
        for span in &lost {
            // None has a port for which too many Services ask: the first one by precedence is named.
            let first = || claims.range_claimants(addr).next().map(|first| (first, Precedence::of(kind)));
            if let Some((owner, precedence)) = claims.range_owner(addr, proto, span.first).or_else(first) {
                deny(*span, denial(owner, precedence, kind));
            }
        }
        let owned = subtract(&[span], lost);
        // The programs find single ports first.
        let mut of_others: BTreeMap<(&Key, Precedence), Vec<PortSpan>> = BTreeMap::new();
        if singles.0 != Some(addr) {
            singles = (Some(addr), claims.singles_of_others(addr, &service.key).collect());
        }
        for &SinglePort { proto: of, port, owner, precedence } in &singles.1 {
            if of == proto && owned.iter().any(|span| span.contains(port)) {
                of_others.entry((owner, precedence)).or_default().push(PortSpan { first: port, last: port });
            }
        }
        for ((owner, precedence), ports) in of_others {
            union(ports).into_iter().take(LISTED).for_each(|span| deny(span, denial(owner, precedence, kind)));
        }
        kept.extend(
            owned.into_iter().map(|span| RequestedRange { claim: ClaimedRange { span, ..range.claim }, ..*range }),
        );
    }
    kept
}

/// Returns the denial of a port that another Service owns with this precedence.
pub(super) fn denial(owner: &Key, precedence: Precedence, kind: Kind) -> Denial {
    if precedence < Precedence::of(kind) { Denial::Outranked(owner.clone()) } else { Denial::Younger(owner.clone()) }
}

/// Returns the key of an endpoint as a destination; that of its address for port ranges, which lead to many ports.
pub(super) fn key_at(addr: Addr, number: u16, port: &ServicePort) -> FrontendKey {
    let key = FrontendKey::new(addr, number, port.proto);
    if port.ranges.is_some() { key.address() } else { key }
}

//! A Service that claims a frontend or a port, and its rank among the claimants (invariant I6).

use lb_common::Kind;

use crate::objects::Key;

/// Precedence of a claim; the smaller one wins, whatever the ages. Otherwise the author of an old Service could write
/// the cluster IP of a younger one into `spec.externalIPs`, and get its clients (CVE-2020-8554).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Precedence {
    /// The API server allotted the address: cluster IPs, NodePorts.
    Allotted,
    /// A controller wrote the address into the status: load balancers.
    Assigned,
    /// The author of the Service wrote the address: external IPs.
    Claimed,
    /// The author of a pod wrote the port: hostPorts. With kube-proxy and the CNI plugin portmap, kube-proxy's rules
    /// come first.
    HostPort,
}

impl Precedence {
    /// The precedence of a kind of frontend.
    #[must_use]
    pub const fn of(kind: Kind) -> Self {
        match kind {
            Kind::ClusterIp | Kind::Address | Kind::OwnAddress | Kind::NodePort => Self::Allotted,
            Kind::LoadBalancer => Self::Assigned,
            Kind::ExternalIp | Kind::ExternalAddress => Self::Claimed,
            Kind::HostPort => Self::HostPort,
        }
    }
}

/// Precedence and age in one number, since each frontend has one of these; the smaller one wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Rank(i64);

impl Rank {
    /// Bits of an age: seconds since 1970, which is in the middle.
    const AGE_BITS: u32 = 60;

    pub(super) fn new(precedence: Precedence, created: i64) -> Self {
        let middle = 1 << (Self::AGE_BITS - 1);
        Self((precedence as i64) << Self::AGE_BITS | (created.clamp(-middle, middle - 1) + middle))
    }

    pub(super) const fn precedence(self) -> Precedence {
        match self.0 >> Self::AGE_BITS {
            0 => Precedence::Allotted,
            1 => Precedence::Assigned,
            2 => Precedence::Claimed,
            _ => Precedence::HostPort,
        }
    }
}

/// A Service that claims a frontend; the smaller one wins.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Claimant {
    pub(super) rank: Rank,
    pub(super) service: Key,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_orders_by_precedence_then_by_age_whatever_the_age() {
        let ages = [i64::MIN, 0, 1_700_000_000, i64::MAX - 1, i64::MAX];
        for (precedence, next) in [
            (Precedence::Allotted, Precedence::Assigned),
            (Precedence::Assigned, Precedence::Claimed),
            (Precedence::Claimed, Precedence::HostPort),
        ] {
            for age in ages {
                assert_eq!(Rank::new(precedence, age).precedence(), precedence);
                assert!(ages.iter().all(|&other| Rank::new(precedence, age) < Rank::new(next, other)));
            }
        }
        for precedence in [Precedence::Allotted, Precedence::Claimed, Precedence::HostPort] {
            assert!(ages.map(|age| Rank::new(precedence, age)).is_sorted());
            assert!(
                Rank::new(precedence, -1) < Rank::new(precedence, 0)
                    && Rank::new(precedence, 1) < Rank::new(precedence, 2)
            );
        }
    }
}

//! Which of a service port's endpoints make its cluster list and its local list.
//!
//! After kube-proxy's `CategorizeEndpoints` (pkg/proxy/topology.go).

use lb_common::BackendFlags;

use super::Here;
use crate::{
    objects::{Endpoint, Policy},
    spec::{Member, Target},
};

/// An endpoint of one service port.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Address and port.
    pub target: Target,
    /// Everything else.
    pub endpoint: &'a Endpoint,
}

/// The two lists, sorted, each target once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lists {
    /// Endpoints of the whole cluster, as far as hints allow.
    pub cluster: Vec<Target>,
    /// Endpoints on this node; empty unless the internal policy is Local.
    pub local: Vec<Target>,
}

impl Lists {
    /// Both lists as members.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let mut targets: Vec<Target> = self.cluster.iter().chain(&self.local).copied().collect();
        targets.sort_unstable();
        targets.dedup();
        let member = |target| {
            let bit = |list: &[Target], bit| if list.binary_search(&target).is_ok() { bit } else { 0 };
            let flags = bit(&self.cluster, BackendFlags::CLUSTER) | bit(&self.local, BackendFlags::LOCAL);
            Member { target, flags, weight: 1 }
        };
        targets.into_iter().map(member).collect()
    }
}

/// Chooses. Reorders `candidates` and drops all but one copy of each target.
#[must_use]
pub fn categorize(candidates: &mut Vec<Candidate<'_>>, policy: Policy, here: Here<'_>) -> Lists {
    let local = |candidate: &Candidate<'_>| candidate.endpoint.node.as_deref() == Some(here.node);
    // Of two copies the local one wins, else the first; the sort is stable.
    candidates.sort_by(|a, b| a.target.cmp(&b.target).then(local(b).cmp(&local(a))));
    candidates.dedup_by_key(|candidate| candidate.target);

    let ready = |candidate: &Candidate<'_>| candidate.endpoint.ready;
    let draining = |candidate: &Candidate<'_>| candidate.endpoint.serving && candidate.endpoint.terminating;
    let hints = Hints::of(candidates, here);
    let mut lists = Lists {
        cluster: pick(candidates, |candidate| ready(candidate) && hints.allow(candidate.endpoint, here)),
        local: Vec::new(),
    };
    if lists.cluster.is_empty() {
        lists.cluster = pick(candidates, draining);
    }
    if policy == Policy::Local {
        // The two fall back independently of each other, and hints mean nothing here.
        lists.local = pick(candidates, |candidate| local(candidate) && ready(candidate));
        if lists.local.is_empty() {
            lists.local = pick(candidates, |candidate| local(candidate) && draining(candidate));
        }
    }
    lists
}

fn pick(candidates: &[Candidate<'_>], chosen: impl Fn(&Candidate<'_>) -> bool) -> Vec<Target> {
    let count = candidates.iter().filter(|candidate| chosen(candidate)).count();
    let mut targets = Vec::with_capacity(count);
    targets.extend(candidates.iter().filter(|candidate| chosen(candidate)).map(|candidate| candidate.target));
    targets
}

/// Which hints count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hints {
    Node,
    Zone,
    None,
}

impl Hints {
    /// Hints count when every ready endpoint has one and one of them names us; those of nodes before those of zones.
    fn of(candidates: &[Candidate<'_>], here: Here<'_>) -> Self {
        let (mut all_node, mut our_node, mut all_zone, mut our_zone) = (true, false, true, false);
        for endpoint in candidates.iter().map(|candidate| candidate.endpoint).filter(|endpoint| endpoint.ready) {
            let (zones, nodes) = endpoint.hints();
            all_node &= !nodes.is_empty();
            our_node |= endpoint.names_node(here);
            all_zone &= !zones.is_empty();
            our_zone |= endpoint.names_zone(here);
            if !all_node && !all_zone {
                return Self::None;
            }
        }
        if all_node && our_node {
            Self::Node
        } else if all_zone && our_zone {
            Self::Zone
        } else {
            Self::None
        }
    }

    fn allow(self, endpoint: &Endpoint, here: Here<'_>) -> bool {
        match self {
            Self::Node => endpoint.names_node(here),
            Self::Zone => endpoint.names_zone(here),
            Self::None => true,
        }
    }
}

impl Endpoint {
    fn names_node(&self, here: Here<'_>) -> bool {
        self.hints().1.iter().any(|node| **node == *here.node)
    }

    fn names_zone(&self, here: Here<'_>) -> bool {
        here.zone.is_some_and(|own| self.hints().0.iter().any(|zone| **zone == *own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};

    const HERE: Here<'static> = Here { node: "here", zone: Some("z") };

    /// `10.0.0.N:PORT` written as `N`, then words: `local`, `unready`, `draining`, `z=ZONE`, `n=NODE`.
    fn endpoint(text: &str) -> Endpoint {
        let mut words = text.split_whitespace();
        let last = words.next().and_then(|n| n.parse().ok()).expect("a number");
        let mut endpoint =
            Endpoint { node: Some("there".into()), ..Endpoint::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))) };
        for word in words {
            match word.split_once('=') {
                Some(("z", zone)) => endpoint.hints.get_or_insert_default().zones.push(zone.into()),
                Some(("n", node)) => endpoint.hints.get_or_insert_default().nodes.push(node.into()),
                _ if word == "local" => endpoint.node = Some("here".into()),
                _ if word == "nodeless" => endpoint.node = None,
                _ if word == "unready" => (endpoint.ready, endpoint.serving) = (false, false),
                _ if word == "draining" => (endpoint.ready, endpoint.terminating) = (false, true),
                _ => panic!("{word}?"),
            }
        }
        endpoint
    }

    fn check(policy: Policy, here: Here<'_>, endpoints: &[&str], cluster: &[u8], local: &[u8]) {
        let endpoints: Vec<_> = endpoints.iter().map(|text| endpoint(text)).collect();
        let mut candidates: Vec<_> = endpoints
            .iter()
            .map(|endpoint| Candidate { target: Target { addr: endpoint.addr.into(), port: 80 }, endpoint })
            .collect();
        let lists = categorize(&mut candidates, policy, here);
        let last = |targets: &[Target]| targets.iter().map(|target| target.addr.octets[15]).collect::<Vec<_>>();
        assert_eq!(last(&lists.cluster), cluster, "cluster list of {endpoints:?}");
        assert_eq!(last(&lists.local), local, "local list of {endpoints:?}");
    }

    #[test]
    fn i8_ready_endpoints_first_then_those_that_drain() {
        check(Policy::Cluster, HERE, &["2", "1", "3 unready", "4 draining"], &[1, 2], &[]);
        check(Policy::Cluster, HERE, &["3 unready", "4 draining"], &[4], &[]);
        check(Policy::Cluster, HERE, &["3 unready"], &[], &[]);
        check(Policy::Cluster, HERE, &[], &[], &[]);
    }

    #[test]
    fn i8_the_local_list_has_local_endpoints_only_and_falls_back_on_its_own() {
        check(Policy::Local, HERE, &["1 local", "2", "3 local unready", "4 nodeless"], &[1, 2, 4], &[1]);
        check(Policy::Local, HERE, &["1 local draining", "2"], &[2], &[1]);
        check(Policy::Local, HERE, &["1", "2 local unready"], &[1], &[]);
        check(Policy::Local, HERE, &["1 draining", "2 local draining"], &[1, 2], &[2]);
    }

    #[test]
    fn i8_hints_count_only_when_every_ready_endpoint_has_one() {
        check(Policy::Cluster, HERE, &["1 z=z", "2 z=y"], &[1], &[]);
        check(Policy::Cluster, HERE, &["1 z=z", "2"], &[1, 2], &[]);
        check(Policy::Cluster, HERE, &["1 z=z", "2 unready", "3 draining"], &[1], &[]);
        check(Policy::Cluster, HERE, &["1 z=x", "2 z=y"], &[1, 2], &[]);
        check(Policy::Cluster, Here { zone: None, ..HERE }, &["1 z=z", "2 z=y"], &[1, 2], &[]);
        check(Policy::Local, HERE, &["1 z=z", "2 z=y local"], &[1], &[2]);
    }

    #[test]
    fn i8_node_hints_go_before_zone_hints() {
        check(Policy::Cluster, HERE, &["1 n=here z=z", "2 n=there z=z", "3 n=there z=y"], &[1], &[]);
        check(Policy::Cluster, HERE, &["1 n=away z=z", "2 n=there z=z", "3 n=there z=y"], &[1, 2], &[]);
        check(Policy::Cluster, HERE, &["1 n=here", "2 n=there z=z"], &[1], &[]);
        check(Policy::Cluster, HERE, &["1 n=here z=z", "2 z=y"], &[1], &[]);
    }

    #[test]
    fn of_two_copies_the_local_one_wins() {
        check(Policy::Local, HERE, &["1", "1 local"], &[1], &[1]);
        check(Policy::Local, HERE, &["1 local", "1"], &[1], &[1]);
        check(Policy::Local, HERE, &["1 unready", "1 local", "2"], &[1, 2], &[1]);
    }
}

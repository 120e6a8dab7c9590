//! Backends that clients of this node have ejected, from what each client saw. Pure.

use std::collections::BTreeMap;

use lb_common::{EjectPolicy, EjectionKey, Ejections};

/// A backend that clients of this node do not get, since their connects failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EjectedBackend {
    /// Number of these clients: pods, and cgroups of processes in the network namespace of the node.
    pub clients: usize,
    /// Seconds until the last of them tries it again, rounded up.
    pub seconds: u64,
}

/// Returns the backends that clients have ejected at `now` (CLOCK_MONOTONIC, ns), by id. `policy` is that of a service
/// port.
pub(super) fn ejected_backends(
    seen: &[(EjectionKey, Ejections)],
    policy: impl Fn(u32) -> EjectPolicy,
    now: u64,
) -> BTreeMap<u32, EjectedBackend> {
    let mut all: BTreeMap<u32, EjectedBackend> = BTreeMap::new();
    for (client, seen) in seen {
        let policy = policy(client.service);
        let most = policy.cluster_most.max(policy.local_most).into();
        for place in seen.places.iter().filter(|place| place.is_out(now) && place.rank <= most) {
            let ejected = all.entry(place.backend).or_default();
            ejected.clients += 1;
            ejected.seconds = ejected.seconds.max((place.until - now).div_ceil(1_000_000_000));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_ejected_by_each_client_whose_connects_failed_within_half_of_the_list() {
        const SECOND: u64 = 1_000_000_000;
        let policy = EjectPolicy { failures: 1, window: 10, seconds: 30, cluster_most: 1, ..EjectPolicy::default() };
        let client = |netns, failed: &[(u32, u64)]| {
            let mut seen = Ejections::EMPTY;
            for (backend, second) in failed {
                seen.fail(*backend, &policy, second * SECOND);
            }
            (EjectionKey { netns, cgroup: 0, service: 1, _pad: 0 }, seen)
        };
        let seen = [client(1, &[(7, 100), (8, 101)]), client(2, &[(7, 110)]), client(3, &[(9, 50)])];
        let ejected = |second: u64| ejected_backends(&seen, |_| policy, second * SECOND);
        assert_eq!(ejected(120), BTreeMap::from([(7, EjectedBackend { clients: 2, seconds: 20 })]));
        assert_eq!(ejected(130), BTreeMap::from([(7, EjectedBackend { clients: 1, seconds: 10 })]));
        assert_eq!(ejected(140), BTreeMap::new());
    }
}

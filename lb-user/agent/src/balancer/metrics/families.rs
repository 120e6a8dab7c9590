//! The metric families of the controller: name, help and samples of each.

use std::fmt;

use lb_common::Family;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::Observed;
use crate::metrics::{Families, NO_LABELS};

impl Collector for Observed {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Families::new(encoder);
        to.gauge(
            "beeline_lb_leader",
            "1 if this controller holds the Lease and allots addresses; the others have old values of the rest",
            [(NO_LABELS, u64::from(self.is_leader))],
        )?;
        to.counter(
            "beeline_lb_passes_total",
            "Passes over the Services of type LoadBalancer",
            [(NO_LABELS, self.passes)],
        )?;
        to.counter(
            "beeline_lb_status_writes_total",
            "Writes of the status of Services and pools",
            [([("result", "done")], self.written), ([("result", "failed")], self.failed)],
        )?;
        to.gauge(
            "beeline_lb_services",
            "Services of type LoadBalancer that this controller serves",
            [([("state", "allotted")], self.allotted), ([("state", "pending")], self.pending)],
        )?;
        to.gauge(
            "beeline_lb_services_with_problems",
            "Services whose request cannot be met as a whole, or whose address needs a look",
            [(NO_LABELS, self.problems)],
        )?;
        let of_pools = || {
            self.pools.iter().flat_map(|(name, usage)| {
                Family::ALL.into_iter().map(|family| {
                    ([("pool", name.to_string()), ("family", family.name().to_owned())], usage.families[family])
                })
            })
        };
        let used = of_pools().map(|(labels, usage)| (labels, u64::try_from(usage.used).unwrap_or(u64::MAX)));
        to.gauge("beeline_lb_pool_used_addresses", "Addresses of the pool that Services have", used)?;
        // A prefix of IPv6 has more addresses than an integer counts.
        let free = of_pools().map(|(labels, usage)| (labels, usage.free as f64));
        to.gauge("beeline_lb_pool_free_addresses", "Addresses of the pool that may be allotted", free)?;
        let problems =
            self.pools.iter().map(|(name, usage)| ([("pool", name.to_string())], usage.problems.len() as u64));
        to.gauge("beeline_lb_pool_problems", "Problems of the pool, which its status names", problems)
    }
}

//! Values of the controller for scrapes, and the port that answers them.

mod families;

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Result;
use hyper::StatusCode;
use lb_core::allot::{Allotments, PoolUsage};
use tokio::sync::watch;

use crate::{
    http::{self, BindAddress, Reply},
    metrics,
};

/// Values of the controller.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Observed {
    /// True while it holds the Lease.
    pub(super) is_leader: bool,
    /// Passes.
    passes: u64,
    /// Writes of a status.
    written: u64,
    /// Writes that failed.
    failed: u64,
    /// Services with an address.
    allotted: u64,
    /// Services without one.
    pending: u64,
    /// Services with a problem.
    problems: u64,
    /// By pool.
    pools: BTreeMap<Arc<str>, PoolUsage>,
}

impl Observed {
    /// Records a pass.
    pub(super) fn record(&mut self, allotments: &Allotments, written: usize, failed: usize) {
        let all = || allotments.services.values();
        let count = |is_counted: &dyn Fn(&lb_core::allot::Allotment) -> bool| {
            all().filter(|allotment| is_counted(allotment)).count() as u64
        };
        self.passes += 1;
        self.written += written as u64;
        self.failed += failed as u64;
        self.allotted = count(&|allotment| !allotment.addresses.is_empty());
        self.pending = count(&|allotment| allotment.addresses.is_empty());
        self.problems = count(&|allotment| !allotment.problems.is_empty());
        self.pools.clone_from(&allotments.pools);
    }
}

/// Answers probes and scrapes until the future is dropped.
pub(super) async fn run(addresses: Vec<BindAddress>, observed: watch::Receiver<Observed>) -> Result<()> {
    let reply = move |path: String| {
        let observed = observed.clone();
        async move {
            match path.as_str() {
                // A controller without the Lease is as healthy as the leader.
                "/livez" => Reply::text(StatusCode::OK, "ok\n"),
                "/metrics" => {
                    let observed = observed.borrow().clone();
                    metrics::reply(metrics::text(observed))
                }
                _ => Reply::not_found(),
            }
        }
    };
    http::serve(addresses, http::LIMITS, reply).await
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use expect_test::expect;
    use lb_core::{
        allot::{AddressProblem, Allotment, FamilyUsage},
        objects::Key,
    };

    /// A scrape with a sample of each family.
    fn scrape() -> String {
        let mut usage = PoolUsage::default();
        usage.families.v4 = FamilyUsage { used: 3, free: 4 };
        let allotted = Allotment { addresses: vec![([192, 0, 2, 1].into(), None)], ..Allotment::default() };
        let pending = Allotment { problems: vec![AddressProblem::UnknownPool("x".into())], ..Allotment::default() };
        let allotments = Allotments {
            services: [(Key::new("d", "a"), allotted), (Key::new("d", "b"), pending)].into(),
            pools: [(Arc::from("p"), usage)].into(),
        };
        let mut observed = Observed { is_leader: true, ..Observed::default() };
        observed.record(&allotments, 2, 1);
        metrics::text(observed).expect("text")
    }

    #[test]
    fn the_dashboard_and_the_alerts_name_metrics_that_the_controller_has() {
        let scrape = scrape();
        let known: BTreeSet<&str> = scrape.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
        for text in [
            include_str!("../../../../../deploy/monitoring/dashboard.json"),
            include_str!("../../../../../deploy/monitoring/alerts.yaml"),
        ] {
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let used: BTreeSet<&str> = words.filter(|word| word.starts_with("beeline_lb_")).collect();
            let unknown: Vec<_> = used.difference(&known).collect();
            assert!(used.len() > 3 && unknown.is_empty(), "{unknown:?}");
        }
    }

    #[test]
    fn a_scrape_has_the_lease_the_services_and_the_pools() {
        let text = scrape();
        let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        expect![[r#"
            beeline_lb_leader 1
            beeline_lb_passes_total 1
            beeline_lb_status_writes_total{result="done"} 2
            beeline_lb_status_writes_total{result="failed"} 1
            beeline_lb_services{state="allotted"} 1
            beeline_lb_services{state="pending"} 1
            beeline_lb_services_with_problems 1
            beeline_lb_pool_used_addresses{pool="p",family="IPv4"} 3
            beeline_lb_pool_used_addresses{pool="p",family="IPv6"} 0
            beeline_lb_pool_free_addresses{pool="p",family="IPv4"} 4.0
            beeline_lb_pool_free_addresses{pool="p",family="IPv6"} 0.0
            beeline_lb_pool_problems{pool="p"} 0"#]]
        .assert_eq(&samples.join("\n"));
    }
}

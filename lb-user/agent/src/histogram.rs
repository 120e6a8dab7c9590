//! Histogram of durations in the form of Prometheus: counts by upper bound. Reading a clock is left to the callers.

use std::time::Duration;

/// Durations, counted by upper bound.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Histogram {
    /// Upper bounds in milliseconds, ascending.
    bounds: Vec<u32>,
    /// One count for each bound, of durations above the bound before it; the last count is for those above all bounds.
    counts: Vec<u64>,
    sum: Duration,
}

impl Histogram {
    /// Creates an empty histogram with these upper bounds in milliseconds, ascending.
    pub(crate) fn new(bounds: Vec<u32>) -> Self {
        Self { counts: vec![0; bounds.len() + 1], bounds, sum: Duration::ZERO }
    }

    /// Creates a histogram with the bounds of kube-proxy's `sync_proxy_rules_duration_seconds`.
    pub(crate) fn for_passes() -> Self {
        Self::new((0..15).map(|power| 1 << power).collect())
    }

    /// Creates a histogram with the bounds of kube-proxy's `network_programming_duration_seconds`. The bound 0 counts
    /// changes with a timestamp in this node's future.
    pub(crate) fn for_programming() -> Self {
        let steps = |from: u32, step: u32, count: u32| (0..count).map(move |n| from + n * step);
        let seconds = steps(1_000, 1_000, 59).chain(steps(60_000, 5_000, 12)).chain(steps(120_000, 30_000, 7));
        Self::new([0, 250, 500].into_iter().chain(seconds).collect())
    }

    pub(crate) fn observe(&mut self, duration: Duration) {
        let index = self.bounds.partition_point(|bound| Duration::from_millis((*bound).into()) < duration);
        if let Some(count) = self.counts.get_mut(index) {
            *count += 1;
        }
        self.sum += duration;
    }

    /// Returns the number of observed durations.
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the sum of all durations, in seconds.
    pub(crate) fn sum(&self) -> f64 {
        self.sum.as_secs_f64()
    }

    /// Lists upper bounds in seconds, each with the number of durations above the bound before it. Not cumulative.
    pub(crate) fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = self.bounds.iter().map(|bound| f64::from(*bound) / 1000.0).chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_the_first_bucket_whose_bound_is_not_below_it() {
        let mut histogram = Histogram::new(vec![0, 250, 1000]);
        for millis in [0, 1, 250, 251, 1000, 1001, 9999] {
            histogram.observe(Duration::from_millis(millis));
        }
        assert_eq!(histogram.buckets(), [(0.0, 1), (0.25, 2), (1.0, 2), (f64::INFINITY, 2)]);
        assert_eq!((histogram.count(), histogram.sum()), (7, 12.502));
    }

    #[test]
    fn bounds_equal_those_of_kube_proxy() {
        let bounds = |histogram: Histogram| histogram.bounds;
        let passes = bounds(Histogram::for_passes());
        assert_eq!((passes.len(), passes.first(), passes.last()), (15, Some(&1), Some(&16_384)));
        let programming = bounds(Histogram::for_programming());
        assert_eq!(programming.len(), 81);
        assert!(programming.is_sorted_by(|a, b| a < b));
        assert_eq!(programming.last_chunk(), Some(&[240_000, 270_000, 300_000]));
        assert_eq!(programming[60..64], [58_000, 59_000, 60_000, 65_000]);
    }
}

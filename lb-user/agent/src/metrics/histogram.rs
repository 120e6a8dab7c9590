//! A histogram of durations, as Prometheus has them: how many were at most so long, for a few lengths.

use std::time::Duration;

/// Durations, counted by upper bounds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Histogram {
    /// Milliseconds, ascending.
    bounds: Vec<u32>,
    /// Of each bound, those above the one before; then those above all.
    counts: Vec<u64>,
    sum: Duration,
}

impl Histogram {
    /// An empty one with these upper bounds in milliseconds, ascending.
    #[must_use]
    pub fn new(bounds: Vec<u32>) -> Self {
        Self { counts: vec![0; bounds.len() + 1], bounds, sum: Duration::ZERO }
    }

    /// For passes: those of kube-proxy's `sync_proxy_rules_duration_seconds`.
    #[must_use]
    pub fn of_passes() -> Self {
        Self::new((0..15).map(|power| 1 << power).collect())
    }

    /// From the change of a pod to the maps: those of kube-proxy's `network_programming_duration_seconds`. The bound 0
    /// holds what came from a clock that is ahead of ours.
    #[must_use]
    pub fn of_programming() -> Self {
        let steps = |from: u32, step: u32, count: u32| (0..count).map(move |n| from + n * step);
        let seconds = steps(1_000, 1_000, 59).chain(steps(60_000, 5_000, 12)).chain(steps(120_000, 30_000, 7));
        Self::new([0, 250, 500].into_iter().chain(seconds).collect())
    }

    /// Counts a duration.
    pub fn observe(&mut self, duration: Duration) {
        let at = self.bounds.partition_point(|bound| Duration::from_millis((*bound).into()) < duration);
        if let Some(count) = self.counts.get_mut(at) {
            *count += 1;
        }
        self.sum += duration;
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them together, in seconds.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum.as_secs_f64()
    }

    /// Upper bounds in seconds, and how many are at most that and above the bound before.
    #[must_use]
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = self.bounds.iter().map(|bound| f64::from(*bound) / 1000.0).chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_at_the_first_bound_that_is_not_below_it() {
        let mut histogram = Histogram::new(vec![0, 250, 1000]);
        for millis in [0, 1, 250, 251, 1000, 1001, 9999] {
            histogram.observe(Duration::from_millis(millis));
        }
        assert_eq!(histogram.buckets(), [(0.0, 1), (0.25, 2), (1.0, 2), (f64::INFINITY, 2)]);
        assert_eq!((histogram.count(), histogram.sum()), (7, 12.502));
    }

    #[test]
    fn bounds_are_those_of_kube_proxy() {
        let bounds = |histogram: Histogram| histogram.bounds;
        let passes = bounds(Histogram::of_passes());
        assert_eq!((passes.len(), passes.first(), passes.last()), (15, Some(&1), Some(&16_384)));
        let programming = bounds(Histogram::of_programming());
        assert_eq!(programming.len(), 81);
        assert!(programming.is_sorted_by(|a, b| a < b));
        assert_eq!(programming.last_chunk(), Some(&[240_000, 270_000, 300_000]));
        assert_eq!(programming[60..64], [58_000, 59_000, 60_000, 65_000]);
    }
}

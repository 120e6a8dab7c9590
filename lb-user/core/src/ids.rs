//! Ids of service ports and backends: never 0 and never in use twice; a freed id returns only after all others
//! (invariant I7).

/// An allocator of ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ids {
    next: u32,
}

impl Default for Ids {
    fn default() -> Self {
        Self { next: 1 }
    }
}

impl Ids {
    /// Continues after `id`, which is in use.
    pub fn seen(&mut self, id: u32) {
        self.next = id.wrapping_add(1).max(1);
    }

    /// Continues after `id` unless the allocator is past it.
    pub fn beyond(&mut self, id: u32) {
        if id >= self.next {
            self.seen(id);
        }
    }

    /// Allocates a free id. `in_use` must not hold for every id.
    pub fn take(&mut self, in_use: impl Fn(u32) -> bool) -> u32 {
        let mut id = self.next;
        while in_use(id) {
            id = id.wrapping_add(1).max(1);
        }
        self.seen(id);
        id
    }
}

/// The highest ids in use; 0 if there are none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HighestIds {
    /// Of a service port.
    pub service: u32,
    /// Of a backend.
    pub backend: u32,
}

impl HighestIds {
    /// Returns the higher id of each kind.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { service: self.service.max(other.service), backend: self.backend.max(other.backend) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i7_ids_ascend_wrap_around_and_skip_zero_and_ids_in_use() {
        let mut ids = Ids::default();
        assert_eq!([ids.take(|_| false), ids.take(|_| false), ids.take(|id| id == 3)], [1, 2, 4]);
        ids.beyond(2);
        assert_eq!(ids.take(|_| false), 5);
        ids.beyond(7);
        assert_eq!(ids.take(|_| false), 8);
        ids.seen(u32::MAX - 1);
        assert_eq!([ids.take(|_| false), ids.take(|id| id < 3), ids.take(|_| false)], [u32::MAX, 3, 4]);
    }
}

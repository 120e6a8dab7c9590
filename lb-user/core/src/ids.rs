//! Ids of service ports and backends: never 0 and never in use twice; a freed id returns only after all others
//! (invariant I7). Service ports that share affinity have ids from blocks, and so have their backends: see
//! [`scope_mask`](lb_common::scope_mask).

use lb_common::{FIRST_SCOPE, SCOPE_SIZE};

/// End of the blocks: a translation of a client is marked by the last id.
const END: u32 = u32::MAX - (SCOPE_SIZE - 1);

/// An allocator of ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ids {
    next: u32,
    /// First id of the next block.
    next_block: u32,
}

impl Default for Ids {
    fn default() -> Self {
        Self { next: 1, next_block: FIRST_SCOPE }
    }
}

impl Ids {
    /// Continues after `id`, which is in use.
    pub fn seen(&mut self, id: u32) {
        if id < FIRST_SCOPE {
            self.next = after(id);
        } else {
            self.next_block = after_block(block_of(id));
        }
    }

    /// Continues after `id` unless the allocator is past it.
    pub fn beyond(&mut self, id: u32) {
        if id >= if id < FIRST_SCOPE { self.next } else { self.next_block } {
            self.seen(id);
        }
    }

    /// Continues after the highest ids in use, unless the allocator is past them.
    pub(crate) fn beyond_all(&mut self, Highest { single, in_block }: Highest) {
        self.beyond(single);
        if in_block != 0 {
            self.beyond(in_block);
        }
    }

    /// Allocates a free id outside of blocks. `in_use` must not hold for every id.
    pub fn take(&mut self, in_use: impl Fn(u32) -> bool) -> u32 {
        let mut id = self.next;
        while in_use(id) {
            id = after(id);
        }
        self.seen(id);
        id
    }

    /// Allocates a block without an id in use, and returns its first id.
    pub(crate) fn take_block(&mut self, in_use: impl Fn(u32) -> bool) -> u32 {
        let mut block = self.next_block;
        while ids_of(block).any(&in_use) {
            block = after_block(block);
        }
        self.seen(block);
        block
    }
}

const fn after(id: u32) -> u32 {
    if id + 1 < FIRST_SCOPE { id + 1 } else { 1 }
}

const fn after_block(block: u32) -> u32 {
    if block < END - SCOPE_SIZE { block + SCOPE_SIZE } else { FIRST_SCOPE }
}

/// Returns the first id of the block of an id.
#[must_use]
pub(crate) const fn block_of(id: u32) -> u32 {
    id - id % SCOPE_SIZE
}

/// Returns the ids of a block.
pub(crate) fn ids_of(block: u32) -> impl Iterator<Item = u32> {
    block..block + SCOPE_SIZE
}

/// The highest ids in use of service ports, or of backends; 0 if there are none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Highest {
    single: u32,
    in_block: u32,
}

impl Highest {
    /// Takes over that an id is in use.
    pub fn see(&mut self, id: u32) {
        let highest = if id < FIRST_SCOPE { &mut self.single } else { &mut self.in_block };
        *highest = id.max(*highest);
    }

    fn max(self, other: Self) -> Self {
        Self { single: self.single.max(other.single), in_block: self.in_block.max(other.in_block) }
    }
}

impl FromIterator<u32> for Highest {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        let mut highest = Self::default();
        ids.into_iter().for_each(|id| highest.see(id));
        highest
    }
}

/// The highest ids in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HighestIds {
    /// Ids of service ports.
    pub service: Highest,
    /// Ids of backends.
    pub backend: Highest,
}

impl HighestIds {
    /// Returns the higher ids of each kind.
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
        ids.seen(FIRST_SCOPE - 2);
        assert_eq!([ids.take(|_| false), ids.take(|id| id < 3), ids.take(|_| false)], [FIRST_SCOPE - 1, 3, 4]);
    }

    #[test]
    fn i7_blocks_ascend_wrap_around_and_have_no_id_in_use() {
        let mut ids = Ids::default();
        let block = |nth: u32| FIRST_SCOPE + nth * SCOPE_SIZE;
        assert_eq!([ids.take_block(|_| false), ids.take_block(|_| false)], [block(0), block(1)]);
        assert_eq!(ids.take_block(|id| id == block(2) + 7), block(3));
        assert_eq!(ids.take(|_| false), 1, "single ids have a sequence of their own");
        ids.beyond(block(2));
        assert_eq!(ids.take_block(|_| false), block(4));
        ids.beyond_all([block(9) + 63, 7].into_iter().collect());
        assert_eq!([ids.take_block(|_| false), ids.take(|_| false)], [block(10), 8]);
        ids.seen(END - 2 * SCOPE_SIZE);
        let taken = [ids.take_block(|_| false), ids.take_block(|id| id == block(0)), ids.take_block(|_| false)];
        assert_eq!(taken, [END - SCOPE_SIZE, block(1), block(2)]);
    }
}

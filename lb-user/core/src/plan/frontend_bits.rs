//! The writes to `FRONTEND_BITS` that go with a plan's frontends: a bit is set before the first key that needs it is
//! written, and cleared after the last one is deleted, so that a clear bit always means that no key is there.

use std::collections::{BTreeMap, BTreeSet};

use super::{Op, Phase, Planner, Scope};

impl Planner<'_> {
    /// Plans the bits of frontends that are added or deleted; with [`Scope::World`] also corrects wrong bits.
    pub(super) fn frontend_bits(&mut self, scope: Scope) {
        let mut changes: BTreeMap<(u32, u64), Change> = BTreeMap::new();
        for op in Phase::PUT.into_iter().flat_map(|phase| &self.phases[phase as usize]) {
            if let Op::PutFrontend(key, _) = op
                && self.shadow.frontend(key).is_none()
            {
                changes.entry(key.bit()).or_default().put += 1;
            }
        }
        for op in Phase::DELETE.into_iter().flat_map(|phase| &self.phases[phase as usize]) {
            if let Op::DeleteFrontend(key) = op
                && self.shadow.frontend(key).is_some()
            {
                changes.entry(key.bit()).or_default().deleted += 1;
            }
        }
        if scope == Scope::World {
            let used = self.shadow.used_bits().map(|(bit, _)| bit);
            for bit in used.chain(self.shadow.set_bits()) {
                changes.entry(bit).or_default();
            }
        }
        let mut words: BTreeMap<u32, Word> = BTreeMap::new();
        for ((index, bit), Change { put, deleted }) in changes {
            let used = self.shadow.uses_of((index, bit));
            let word = words.entry(index).or_default();
            if used + put == deleted {
                word.clear |= bit;
            } else {
                word.set |= bit;
            }
        }
        let mut cleared = BTreeSet::new();
        for (index, Word { set, clear }) in words {
            let now = self.shadow.frontend_bits(index);
            if now | set != now {
                self.emit(Phase::SetFrontendBits, Op::PutFrontendBits(index, now | set));
            }
            if now & clear != 0 {
                cleared.insert((index, (now | set) & !clear));
            }
        }
        for (index, bits) in cleared {
            self.emit(Phase::ClearFrontendBits, Op::PutFrontendBits(index, bits));
        }
    }
}

/// The frontends of one bit that a plan adds and deletes.
#[derive(Clone, Copy, Default)]
struct Change {
    put: usize,
    deleted: usize,
}

/// Bits of a word that must be set, and bits that must be clear, after the plan.
#[derive(Clone, Copy, Default)]
struct Word {
    set: u64,
    clear: u64,
}

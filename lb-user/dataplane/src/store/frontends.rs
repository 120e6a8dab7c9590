//! `FRONTENDS`, and the bits that say which keys it can have.

use std::{collections::BTreeMap, io};

use anyhow::{Result, anyhow};
use aya::maps::MapData;
use lb_common::{Frontend, FrontendKey};

use lb_core::op::Table;
use lb_kernel::bpf::{BatchError, typed::TypedMap};

/// Name of the map of the bits.
pub(super) const BITS: &str = "FRONTEND_BITS";

/// Both maps. Each key's bit is set before the key is written; it is taken away by [`Frontends::index`] alone.
pub(super) struct Frontends {
    map: TypedMap<FrontendKey, Frontend>,
    bits: TypedMap<u32, u64>,
}

impl Frontends {
    pub(super) const fn new(map: MapData, bits: MapData) -> Self {
        Self { map: TypedMap::new(Table::Frontends.map_name(), map), bits: TypedMap::new(BITS, bits) }
    }

    pub(super) fn size(&self) -> Result<usize> {
        self.map.size()
    }

    pub(super) fn read(&self) -> Result<Vec<(FrontendKey, Frontend)>> {
        self.map.read()
    }

    pub(super) fn get(&self, key: &FrontendKey) -> Result<Option<Frontend>> {
        self.map.get(key)
    }

    pub(super) fn put(&self, keys: &[FrontendKey], values: &[Frontend]) -> Result<(), BatchError> {
        for (word, bits) in words(keys.iter()) {
            let have = self.bits.get(&word).map_err(|error| BatchError { done: 0, error: io::Error::other(error) })?;
            let have = have.unwrap_or(0);
            if have | bits != have {
                self.bits.put(&[word], &[have | bits]).map_err(|stopped| BatchError { done: 0, ..stopped })?;
            }
        }
        self.map.put(keys, values)
    }

    pub(super) fn delete(&self, keys: &[FrontendKey]) -> Result<(), BatchError> {
        self.map.delete(keys)
    }

    /// Sets the bits of these keys, which are all that there are, and no others. A reader that meets a word meanwhile finds
    /// the bits of keys that stay.
    ///
    /// # Errors
    /// When they cannot be read or written.
    pub(super) fn index<'a>(&self, keys: impl Iterator<Item = &'a FrontendKey>) -> Result<()> {
        let want = words(keys);
        let want = |word: &u32| want.get(word).copied().unwrap_or(0);
        let wrong = self.bits.read()?.into_iter().filter(|(word, have)| *have != want(word));
        let (words, values): (Vec<u32>, Vec<u64>) = wrong.map(|(word, _)| (word, want(&word))).unzip();
        self.bits.put(&words, &values).map_err(|stopped| anyhow!("writing the map {BITS}: {}", stopped.error))
    }
}

/// The words in which these keys have bits, and those bits.
fn words<'a>(keys: impl Iterator<Item = &'a FrontendKey>) -> BTreeMap<u32, u64> {
    let mut words = BTreeMap::new();
    for (word, bit) in keys.map(FrontendKey::bit) {
        *words.entry(word).or_default() |= bit;
    }
    words
}

//! Maps with the types of their keys and values: hash maps, and tries of prefixes.

use std::{io, marker::PhantomData, os::fd::AsFd as _, path::Path};

use anyhow::{Context as _, Result};
use aya::{Pod, maps::MapData};

use super::{
    batch::{BatchCursor, BatchError, delete_batch, read_all, read_some, update_batch},
    elements::{delete, each_key, insert, lookup, update},
    pod::{any, from_bytes},
};

/// A hash map of keys `K` and values `V`.
pub struct TypedMap<K, V> {
    name: &'static str,
    map: MapData,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> TypedMap<K, V> {
    /// Wraps the map `map`; errors call it `name`.
    #[must_use]
    pub const fn new(name: &'static str, map: MapData) -> Self {
        Self { name, map, types: PhantomData }
    }

    /// Opens the pin `name` of `directory`.
    ///
    /// # Errors
    /// When the pin is missing or cannot be opened; its path is in the message.
    pub fn open(directory: &Path, name: &'static str) -> Result<Self> {
        let path = directory.join(name);
        let map = MapData::from_pin(&path).with_context(|| format!("opening the pinned map {}", path.display()))?;
        Ok(Self::new(name, map))
    }

    /// Returns the most entries that the map can hold (`max_entries`).
    ///
    /// # Errors
    /// The kernel's errno of `BPF_OBJ_GET_INFO_BY_FD`.
    pub fn size(&self) -> Result<usize> {
        let info = self.map.info().with_context(|| format!("asking for the size of {}", self.name))?;
        Ok(usize::try_from(info.max_entries())?)
    }

    /// Reads all entries, in no order.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn read(&self) -> Result<Vec<(K, V)>> {
        read_all(self.map.fd().as_fd()).with_context(|| format!("reading the map {}", self.name))
    }

    /// Reads the next entries of a walk; None at its end.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn step(&self, walk: &mut Walk<K, V>) -> Result<Option<Vec<(K, V)>>> {
        while walk.cursor != BatchCursor::End {
            match read_some(self.map.fd().as_fd(), &mut walk.cursor, &mut walk.keys, &mut walk.values) {
                Ok(count) => {
                    let entries = walk.keys.iter().copied().zip(walk.values.iter().copied()).take(count);
                    return Ok(Some(entries.collect()));
                }
                // One bucket has more entries than the buffers.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => walk.widen(),
                Err(error) => return Err(error).with_context(|| format!("reading the map {}", self.name)),
            }
        }
        Ok(None)
    }

    /// Reads one entry; None if the map has no such key.
    ///
    /// # Errors
    /// The kernel's errno, except `ENOENT`.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        lookup(self.map.fd().as_fd(), key).with_context(|| format!("reading the map {}", self.name))
    }

    /// Writes entries in order.
    ///
    /// # Errors
    /// The first entry that failed ends the batch.
    pub fn put(&self, keys: &[K], values: &[V]) -> Result<(), BatchError> {
        update_batch(self.map.fd().as_fd(), keys, values)
    }

    /// Adds an entry; an existing entry keeps its value.
    ///
    /// # Errors
    /// The kernel's errno, except `EEXIST`.
    pub fn add(&self, key: &K, value: &V) -> Result<()> {
        match insert(self.map.fd().as_fd(), key, value) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                Err(error).with_context(|| format!("writing the map {}", self.name))
            }
            _ => Ok(()),
        }
    }

    /// Deletes entries in order; missing entries count as deleted.
    ///
    /// # Errors
    /// The first entry that failed ends the batch.
    pub fn delete(&self, keys: &[K]) -> Result<(), BatchError> {
        let mut left = keys;
        while let Err(BatchError { done, error }) = delete_batch(self.map.fd().as_fd(), left) {
            left = left.get(done..).unwrap_or_default();
            if error.raw_os_error() != Some(libc::ENOENT) {
                return Err(BatchError { done: keys.len() - left.len(), error });
            }
            left = left.get(1..).unwrap_or_default();
        }
        Ok(())
    }
}

/// A trie of prefixes `K` and values `V` (`BPF_MAP_TYPE_LPM_TRIE`). Entries are written one by one: kernels before 5.13
/// have no batches for tries.
pub struct PrefixTrie<K, V> {
    map: MapData,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> PrefixTrie<K, V> {
    /// Wraps the trie `map`.
    #[must_use]
    pub const fn new(map: MapData) -> Self {
        Self { map, types: PhantomData }
    }

    /// Opens the pin `name` of `directory`.
    ///
    /// # Errors
    /// When the pin is missing or cannot be opened; its path is in the message.
    pub fn open(directory: &Path, name: &str) -> Result<Self> {
        let path = directory.join(name);
        let map = MapData::from_pin(&path).with_context(|| format!("opening the pinned map {}", path.display()))?;
        Ok(Self::new(map))
    }

    /// Returns the most entries that the trie can hold (`max_entries`).
    ///
    /// # Errors
    /// The kernel's errno of `BPF_OBJ_GET_INFO_BY_FD`.
    pub fn size(&self) -> Result<usize> {
        let info = self.map.info().context("asking for the size of a trie")?;
        Ok(usize::try_from(info.max_entries())?)
    }

    /// Reads all entries, in no order. Entries that are deleted meanwhile may be missing.
    ///
    /// # Errors
    /// The kernel's errno, or an error if deletions restart the walk too often.
    pub fn read(&self) -> Result<Vec<(K, V)>> {
        let size = u32::try_from(size_of::<K>())?;
        let mut keys = Vec::new();
        let most = 4 * self.size()?;
        each_key(self.map.fd().as_fd(), size, most, |key| keys.extend(from_bytes::<K>(key)))
            .context("reading a trie")?;
        let entry = |key| Ok(self.get(&key)?.map(|value| (key, value)));
        keys.into_iter().filter_map(|key| entry(key).transpose()).collect()
    }

    /// Reads the entry of the longest prefix of a key; None if the trie has none.
    ///
    /// # Errors
    /// The kernel's errno, except `ENOENT`.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        lookup(self.map.fd().as_fd(), key).context("reading a trie")
    }

    /// Writes entries in order.
    ///
    /// # Errors
    /// The first entry that failed ends the batch.
    pub fn put(&self, keys: &[K], values: &[V]) -> Result<(), BatchError> {
        one_by_one(keys.iter().zip(values), |(key, value)| update(self.map.fd().as_fd(), key, value))
    }

    /// Deletes prefixes in order; missing prefixes count as deleted.
    ///
    /// # Errors
    /// The first prefix that failed ends the batch.
    pub fn delete(&self, keys: &[K]) -> Result<(), BatchError> {
        one_by_one(keys.iter(), |key| match delete(self.map.fd().as_fd(), key) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        })
    }
}

fn one_by_one<E>(entries: impl Iterator<Item = E>, write: impl Fn(E) -> io::Result<()>) -> Result<(), BatchError> {
    for (done, entry) in entries.enumerate() {
        write(entry).map_err(|error| BatchError { done, error })?;
    }
    Ok(())
}

/// A walk through all entries of a map, in steps. Entries added or deleted meanwhile may be missed; all others are met
/// once.
pub struct Walk<K, V> {
    cursor: BatchCursor,
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K: Pod, V: Pod> Walk<K, V> {
    /// Begins a walk that reads at most `step` entries at a time.
    #[must_use]
    pub fn new(step: usize) -> Self {
        let mut walk = Self { cursor: BatchCursor::Start, keys: Vec::new(), values: Vec::new() };
        walk.resize(step.max(1));
        walk
    }

    fn widen(&mut self) {
        self.resize(self.keys.len() * 2);
    }

    fn resize(&mut self, step: usize) {
        self.keys.resize(step, any());
        self.values.resize(step, any());
    }
}

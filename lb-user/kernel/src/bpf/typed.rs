//! The maps of the kernel with the types of their entries: hash maps, and tries of prefixes.

use std::{collections::BTreeSet, io, marker::PhantomData, os::fd::AsFd as _, path::Path};

use anyhow::{Context as _, Result};
use aya::{Pod, maps::MapData};
use lb_common::RangeKey;

use super::{Place, Stopped};
use crate::bpf;

/// The map.
pub struct TypedMap<K, V> {
    name: &'static str,
    map: MapData,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> TypedMap<K, V> {
    /// The map `map`, which is called `name`.
    #[must_use]
    pub const fn new(name: &'static str, map: MapData) -> Self {
        Self { name, map, types: PhantomData }
    }

    /// Opens the pin `name` of `directory`.
    ///
    /// # Errors
    /// When it is missing or cannot be opened; its path is in the message.
    pub fn open(directory: &Path, name: &'static str) -> Result<Self> {
        let path = directory.join(name);
        let map = MapData::from_pin(&path).with_context(|| format!("opening the pinned map {}", path.display()))?;
        Ok(Self::new(name, map))
    }

    /// How many entries it may have.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn size(&self) -> Result<usize> {
        let info = self.map.info().with_context(|| format!("asking for the size of {}", self.name))?;
        Ok(usize::try_from(info.max_entries())?)
    }

    /// All entries, in no order.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> Result<Vec<(K, V)>> {
        bpf::read_all(self.map.fd().as_fd()).with_context(|| format!("reading the map {}", self.name))
    }

    /// The next entries of a walk; none at its end.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn step(&self, walk: &mut Walk<K, V>) -> Result<Option<Vec<(K, V)>>> {
        while walk.place != Place::End {
            match bpf::read_some(self.map.fd().as_fd(), &mut walk.place, &mut walk.keys, &mut walk.values) {
                Ok(count) => {
                    let entries = walk.keys.iter().copied().zip(walk.values.iter().copied()).take(count);
                    return Ok(Some(entries.collect()));
                }
                // One bucket has more entries than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => walk.widen(),
                Err(error) => return Err(error).with_context(|| format!("reading the map {}", self.name)),
            }
        }
        Ok(None)
    }

    /// One entry; none when there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        bpf::lookup(self.map.fd().as_fd(), key).with_context(|| format!("reading the map {}", self.name))
    }

    /// Writes entries in order.
    ///
    /// # Errors
    /// The first entry that failed ends it.
    pub fn put(&self, keys: &[K], values: &[V]) -> Result<(), Stopped> {
        bpf::update_batch(self.map.fd().as_fd(), keys, values)
    }

    /// Adds an entry; one that is there stays as it is.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add(&self, key: &K, value: &V) -> Result<()> {
        match bpf::insert(self.map.fd().as_fd(), key, value) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                Err(error).with_context(|| format!("writing the map {}", self.name))
            }
            _ => Ok(()),
        }
    }

    /// Deletes entries in order; what is not there is deleted.
    ///
    /// # Errors
    /// The first entry that failed ends it.
    pub fn delete(&self, keys: &[K]) -> Result<(), Stopped> {
        let mut left = keys;
        while let Err(Stopped { done, error }) = bpf::delete_batch(self.map.fd().as_fd(), left) {
            left = left.get(done..).unwrap_or_default();
            if error.raw_os_error() != Some(libc::ENOENT) {
                return Err(Stopped { done: keys.len() - left.len(), error });
            }
            left = left.get(1..).unwrap_or_default();
        }
        Ok(())
    }
}

/// What a range is worth: it is there.
const THERE: u32 = 1;

/// The trie of source ranges. Its entries are written one by one: kernels before 5.13 know no batches of a trie.
pub struct Trie {
    map: MapData,
}

impl Trie {
    /// The trie in this map.
    #[must_use]
    pub const fn new(map: MapData) -> Self {
        Self { map }
    }

    /// How many entries it may have.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn size(&self) -> Result<usize> {
        let info = self.map.info().context("asking for the size of a trie")?;
        Ok(usize::try_from(info.max_entries())?)
    }

    /// All ranges.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> Result<BTreeSet<RangeKey>> {
        let size = u32::try_from(size_of::<RangeKey>())?;
        let mut found = BTreeSet::new();
        let most = 4 * self.size()?;
        bpf::each_key(self.map.fd().as_fd(), size, most, |key| found.extend(bpf::from_bytes::<RangeKey>(key)))
            .context("reading a trie")?;
        Ok(found)
    }

    /// Writes ranges in order.
    ///
    /// # Errors
    /// The first that failed ends it.
    pub fn put(&self, keys: &[RangeKey]) -> Result<(), Stopped> {
        one_by_one(keys, |key| bpf::update(self.map.fd().as_fd(), key, &THERE))
    }

    /// Deletes ranges in order; what is not there is deleted.
    ///
    /// # Errors
    /// The first that failed ends it.
    pub fn delete(&self, keys: &[RangeKey]) -> Result<(), Stopped> {
        one_by_one(keys, |key| match bpf::delete(self.map.fd().as_fd(), key) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        })
    }
}

fn one_by_one(keys: &[RangeKey], write: impl Fn(&RangeKey) -> io::Result<()>) -> Result<(), Stopped> {
    for (done, key) in keys.iter().enumerate() {
        write(key).map_err(|error| Stopped { done, error })?;
    }
    Ok(())
}

/// A way through all entries of a map, in steps. What comes or goes meanwhile may be met or not; all else is met once.
pub struct Walk<K, V> {
    place: Place,
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K: Pod, V: Pod> Walk<K, V> {
    /// One of at most so many entries in each step.
    #[must_use]
    pub fn new(step: usize) -> Self {
        let mut walk = Self { place: Place::Start, keys: Vec::new(), values: Vec::new() };
        walk.resize(step.max(1));
        walk
    }

    fn widen(&mut self) {
        self.resize(self.keys.len() * 2);
    }

    fn resize(&mut self, step: usize) {
        self.keys.resize(step, bpf::any());
        self.values.resize(step, bpf::any());
    }
}

//! Many entries of a map in one system call (Linux 5.6; tries since 5.13).
#![expect(unsafe_code, reason = "fields of the union bpf_attr")]

use std::{io, mem, os::fd::BorrowedFd};

use aya::Pod;
use aya_obj::generated::bpf_cmd;

use super::{
    pod::any,
    syscall::{bpf, fd_number, zeroed},
};

/// A batch that ended before its last entry.
#[derive(Debug, thiserror::Error)]
#[error("writing a map: {error} (after {done} entries)")]
pub struct BatchError {
    /// Number of entries written or deleted before the failed one.
    pub done: usize,
    /// The kernel's errno for the failed entry.
    pub error: io::Error,
}

/// Writes entries in order (`BPF_MAP_UPDATE_BATCH`).
///
/// # Errors
/// The first entry that failed ends the batch.
pub(crate) fn update_batch<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> Result<(), BatchError> {
    assert_eq!(keys.len(), values.len(), "a value for each key");
    batch(bpf_cmd::BPF_MAP_UPDATE_BATCH, map, keys, values.as_ptr() as u64)
}

/// Deletes entries in order (`BPF_MAP_DELETE_BATCH`).
///
/// # Errors
/// The first entry that failed, a missing one included, ends the batch.
pub(crate) fn delete_batch<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> Result<(), BatchError> {
    batch(bpf_cmd::BPF_MAP_DELETE_BATCH, map, keys, 0)
}

fn batch<K>(command: bpf_cmd, map: BorrowedFd<'_>, keys: &[K], values: u64) -> Result<(), BatchError> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut attr = zeroed();
    attr.batch.keys = keys.as_ptr() as u64;
    attr.batch.values = values;
    attr.batch.count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
    attr.batch.map_fd = fd_number(map);
    bpf(command, &mut attr).map(drop).map_err(|error| {
        // SAFETY: the kernel writes the count of a batch that it began; before that the field keeps its value.
        let done = unsafe { attr.batch.count } as usize;
        BatchError { done: if done == keys.len() { 0 } else { done }, error }
    })
}

/// Reads all entries of a hash map (`BPF_MAP_LOOKUP_BATCH`).
///
/// # Errors
/// The kernel's errno.
pub(crate) fn read_all<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut found = Vec::new();
    let chunk = chunk_len(mem::size_of::<K>() + mem::size_of::<V>());
    let (mut keys, mut values) = (vec![any::<K>(); chunk], vec![any::<V>(); chunk]);
    each_chunk(map, chunk, &mut keys, &mut values, |keys, values, count| {
        found.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
    })?;
    Ok(found)
}

/// Counts the entries of a hash map of any key and value size (`BPF_MAP_LOOKUP_BATCH`).
///
/// # Errors
/// The kernel's errno.
pub fn count(map: BorrowedFd<'_>, key_size: u32, value_size: u32) -> io::Result<u64> {
    let (key_size, value_size) = (key_size as usize, value_size as usize);
    let chunk = chunk_len(key_size + value_size);
    let (mut keys, mut values) = (vec![0_u8; key_size * chunk], vec![0_u8; value_size * chunk]);
    let mut total = 0;
    each_chunk(map, chunk, &mut keys, &mut values, |_, _, count| total += count as u64)?;
    Ok(total)
}

/// Returns how many entries of `entry_size` octets one call reads. A bucket must fit whole, or the kernel returns
/// ENOSPC; no bucket of a hash that is not full comes near the lower bound.
fn chunk_len(entry_size: usize) -> usize {
    const OCTETS: usize = 1 << 20;
    (OCTETS / entry_size.max(1)).clamp(64, 4096)
}

/// Reads all entries of a hash map through these buffers, which have room for `chunk` keys and values of the map.
/// `read` gets the buffers after each call, and the number of entries in them.
fn each_chunk<K, V>(
    map: BorrowedFd<'_>,
    chunk: usize,
    keys: &mut [K],
    values: &mut [V],
    mut read: impl FnMut(&[K], &[V], usize),
) -> io::Result<()> {
    let mut cursor = BatchCursor::default();
    while cursor != BatchCursor::End {
        let count = next_chunk(map, &mut cursor, chunk, keys, values)?;
        read(keys, values, count);
    }
    Ok(())
}

/// Position of a reader between two batches of a hash map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BatchCursor {
    /// Before the first entry.
    #[default]
    Start,
    /// The kernel's token for the next batch.
    At(u64),
    /// Behind the last entry.
    End,
}

/// Reads the next entries of a hash map, at most as many as both buffers hold, and returns their number.
///
/// # Errors
/// `ENOSPC` if the buffers are too small for the next bucket.
pub(crate) fn read_some<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    cursor: &mut BatchCursor,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<usize> {
    next_chunk(map, cursor, keys.len().min(values.len()), keys, values)
}

/// Reads the next batch. Both buffers must have room for `room` entries of the map.
fn next_chunk<K, V>(
    map: BorrowedFd<'_>,
    cursor: &mut BatchCursor,
    room: usize,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<usize> {
    let (before, mut next) = (if let BatchCursor::At(token) = *cursor { token } else { 0 }, 0_u64);
    let mut attr = zeroed();
    attr.batch.in_batch = if let BatchCursor::At(_) = *cursor { std::ptr::from_ref(&before) as u64 } else { 0 };
    attr.batch.out_batch = std::ptr::from_mut(&mut next) as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = u32::try_from(room).unwrap_or(u32::MAX);
    attr.batch.map_fd = fd_number(map);
    *cursor = match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => BatchCursor::At(next),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => BatchCursor::End,
        Err(error) => return Err(error),
    };
    // SAFETY: the kernel wrote the count.
    Ok(unsafe { attr.batch.count } as usize)
}

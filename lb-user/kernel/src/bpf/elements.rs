//! Single entries of a map: look up, write, delete, and walk by key.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use aya::Pod;
use aya_obj::generated::bpf_cmd;

use super::{
    pod::any,
    syscall::{bpf, fd_number, zeroed},
};

/// Reads one entry; None if the map has no such key.
///
/// # Errors
/// The kernel's errno, except `ENOENT`.
pub fn lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = any::<V>();
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = fd_number(map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_mut(&mut value) as u64;
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes one entry, new or not.
///
/// # Errors
/// The kernel's errno, such as `E2BIG` or `ENOSPC` if the map is full.
pub fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    write(map, key, value, aya_obj::generated::BPF_ANY)
}

/// Writes an element of a map of sockets (`BPF_MAP_TYPE_SOCKMAP`). It goes when the socket closes.
///
/// # Errors
/// The kernel's errno, such as `EOPNOTSUPP` for a socket of TCP that neither listens nor is connected.
pub fn put_socket(map: BorrowedFd<'_>, index: u32, socket: impl AsFd) -> io::Result<()> {
    update(map, &index, &fd_number(socket.as_fd()))
}

/// Writes one new entry.
///
/// # Errors
/// `EEXIST` if the map has the key, else as of [`update`].
pub fn insert<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    write(map, key, value, aya_obj::generated::BPF_NOEXIST)
}

fn write<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V, flags: u32) -> io::Result<()> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.flags = flags.into();
    attr.__bindgen_anon_2.map_fd = fd_number(map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_ref(value) as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Deletes one entry.
///
/// # Errors
/// `ENOENT` if the map has no such key.
pub fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = fd_number(map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr).map(drop)
}

/// Calls `read` with each key of a map, at most `most` times: if a key is deleted meanwhile, the kernel begins again
/// from the first.
///
/// # Errors
/// The kernel's errno, or an error after `most` keys.
pub fn each_key(map: BorrowedFd<'_>, key_size: u32, most: usize, mut read: impl FnMut(&[u8])) -> io::Result<()> {
    let mut keys = [vec![0_u8; key_size as usize], vec![0_u8; key_size as usize]];
    for step in 0..=most {
        let [key, next] = &mut keys;
        let mut attr = zeroed();
        attr.__bindgen_anon_2.map_fd = fd_number(map);
        attr.__bindgen_anon_2.key = if step == 0 { 0 } else { key.as_ptr() as u64 };
        attr.__bindgen_anon_2.__bindgen_anon_1.next_key = next.as_mut_ptr() as u64;
        match bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) {
            Ok(_) => read(next),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
        keys.swap(0, 1);
    }
    Err(io::Error::other("the keys of the map change faster than they can be read"))
}

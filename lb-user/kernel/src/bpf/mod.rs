//! The calls of bpf(2) that aya does not have: writing and reading many entries at once, links that outlive the object which
//! their program came from, and a program that runs when it is told to.
#![expect(unsafe_code, reason = "raw system calls")]

pub mod errors;
pub mod typed;

use std::{
    ffi::{CStr, CString},
    io, mem,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::Pod;
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_link_info, bpf_prog_type};
use rustix::process::{Resource, Rlimit, setrlimit};

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: attr is a whole bpf_attr, and each caller keeps what it points to alive over the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_ulong, std::ptr::from_mut(attr), mem::size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(i32::MAX)) }
}

fn zeroed() -> bpf_attr {
    // SAFETY: a union of integers, for which zero is a value.
    unsafe { mem::zeroed() }
}

fn fd_number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// What a batch did before it ended early.
#[derive(Debug, thiserror::Error)]
#[error("writing a map: {error} (after {done} entries)")]
pub struct Stopped {
    /// Entries that were done.
    pub done: usize,
    /// Why the next one was not.
    pub error: io::Error,
}

/// Writes entries in order (`BPF_MAP_UPDATE_BATCH`, Linux 5.6).
///
/// # Errors
/// The first entry that failed ends the batch.
pub fn update_batch<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> Result<(), Stopped> {
    assert_eq!(keys.len(), values.len(), "a value for each key");
    batch(bpf_cmd::BPF_MAP_UPDATE_BATCH, map, keys, values.as_ptr() as u64)
}

/// Deletes entries in order (`BPF_MAP_DELETE_BATCH`, Linux 5.6).
///
/// # Errors
/// The first entry that failed, a missing one included, ends the batch.
pub fn delete_batch<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> Result<(), Stopped> {
    batch(bpf_cmd::BPF_MAP_DELETE_BATCH, map, keys, 0)
}

fn batch<K>(command: bpf_cmd, map: BorrowedFd<'_>, keys: &[K], values: u64) -> Result<(), Stopped> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut attr = zeroed();
    attr.batch.keys = keys.as_ptr() as u64;
    attr.batch.values = values;
    attr.batch.count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
    attr.batch.map_fd = fd_number(map);
    bpf(command, &mut attr).map(drop).map_err(|error| {
        // SAFETY: the kernel writes the count of a batch that it began; before that it stays what it was.
        let done = unsafe { attr.batch.count } as usize;
        Stopped { done: if done == keys.len() { 0 } else { done }, error }
    })
}

/// Some value, to be written over.
pub fn any<T: Pod>() -> T {
    // SAFETY: Pod: any bytes are a value.
    unsafe { mem::zeroed() }
}

/// Reads all entries of a hash map (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6).
///
/// # Errors
/// What the kernel says.
pub fn read_all<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut found = Vec::new();
    let chunk = chunk(mem::size_of::<K>() + mem::size_of::<V>());
    let (mut keys, mut values) = (vec![any::<K>(); chunk], vec![any::<V>(); chunk]);
    each_chunk(map, chunk, &mut keys, &mut values, |keys, values, count| {
        found.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
    })?;
    Ok(found)
}

/// Counts the entries of a hash map, whatever they are (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6).
///
/// # Errors
/// What the kernel says.
pub fn count(map: BorrowedFd<'_>, key_size: u32, value_size: u32) -> io::Result<u64> {
    let (key_size, value_size) = (key_size as usize, value_size as usize);
    let chunk = chunk(key_size + value_size);
    let (mut keys, mut values) = (vec![0_u8; key_size * chunk], vec![0_u8; value_size * chunk]);
    let mut total = 0;
    each_chunk(map, chunk, &mut keys, &mut values, |_, _, count| total += count as u64)?;
    Ok(total)
}

/// How many entries of so many octets are read at once. A bucket must fit whole, or the kernel says ENOSPC; no bucket of a
/// hash that is not full comes near the least of them.
fn chunk(entry_size: usize) -> usize {
    const OCTETS: usize = 1 << 20;
    (OCTETS / entry_size.max(1)).clamp(64, 4096)
}

/// Reads all entries of a hash map to these buffers, which have room for `chunk` keys and values of the map; `read` gets
/// them back each time, and the number of entries in them.
fn each_chunk<K, V>(
    map: BorrowedFd<'_>,
    chunk: usize,
    keys: &mut [K],
    values: &mut [V],
    mut read: impl FnMut(&[K], &[V], usize),
) -> io::Result<()> {
    let mut place = Place::default();
    while place != Place::End {
        let count = next_chunk(map, &mut place, chunk, keys, values)?;
        read(keys, values, count);
    }
    Ok(())
}

/// How far a reading of a hash map has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Place {
    /// Nothing was read yet.
    #[default]
    Start,
    /// The kernel goes on here.
    At(u64),
    /// All of it was read.
    End,
}

/// Reads the next entries of a hash map, at most as many as both buffers hold; how many.
///
/// # Errors
/// What the kernel says; `ENOSPC` when the buffers are too small for the next bucket.
pub fn read_some<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    place: &mut Place,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<usize> {
    next_chunk(map, place, keys.len().min(values.len()), keys, values)
}

/// Both buffers have room for so many entries.
fn next_chunk<K, V>(
    map: BorrowedFd<'_>,
    place: &mut Place,
    room: usize,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<usize> {
    let (before, mut next) = (if let Place::At(cursor) = *place { cursor } else { 0 }, 0_u64);
    let mut attr = zeroed();
    attr.batch.in_batch = if let Place::At(_) = *place { std::ptr::from_ref(&before) as u64 } else { 0 };
    attr.batch.out_batch = std::ptr::from_mut(&mut next) as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = u32::try_from(room).unwrap_or(u32::MAX);
    attr.batch.map_fd = fd_number(map);
    *place = match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => Place::At(next),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Place::End,
        Err(error) => return Err(error),
    };
    // SAFETY: the kernel wrote the count.
    Ok(unsafe { attr.batch.count } as usize)
}

/// Reads one entry; none when there is none.
///
/// # Errors
/// What else the kernel says.
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

/// Writes one entry.
///
/// # Errors
/// What the kernel says.
pub fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    write(map, key, value, aya_obj::generated::BPF_ANY)
}

/// Writes one entry that is not there.
///
/// # Errors
/// What the kernel says; `EEXIST` when there is one.
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
/// What the kernel says; `ENOENT` when there is none.
pub fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = fd_number(map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr).map(drop)
}

/// The value that these bytes are; none of another number of them.
pub fn from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as many bytes as a value has, and Pod: any bytes are one.
    (bytes.len() == mem::size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Goes through the keys of a map one by one, at most so many: where a key is deleted meanwhile the kernel begins again
/// from the first.
///
/// # Errors
/// What the kernel says, or when there is no end of them.
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
    Err(io::Error::other("its keys change faster than they can be read"))
}

/// The clock that programs read with `bpf_ktime_get_ns` (CLOCK_MONOTONIC, ns).
#[must_use]
pub fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // It starts at zero with the node.
    let (seconds, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    seconds * 1_000_000_000 + nanos
}

/// Cookie of this process's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
/// What the kernel says.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    netns_cookie_of(&socket)
}

/// Cookie of the network namespace of a socket (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
/// What the kernel says.
pub fn netns_cookie_of(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(mem::size_of::<u64>()).unwrap_or_default();
    // SAFETY: the kernel writes at most `len` bytes to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Binds a socket to a device of its network namespace (`SO_BINDTODEVICE`).
///
/// # Errors
/// What the kernel says.
pub fn bind_to_device(socket: &impl AsFd, device: &str) -> io::Result<()> {
    let len = libc::socklen_t::try_from(device.len()).unwrap_or_default();
    // SAFETY: the kernel reads `len` octets of the name.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            device.as_ptr().cast(),
            len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// include/uapi/asm-generic/socket.h; libc has it not for every architecture.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Opens a pin.
///
/// # Errors
/// What the kernel says.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    let fd = bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?;
    // SAFETY: a descriptor that the kernel has just opened for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts another program in a link's place, without a moment between (`BPF_LINK_UPDATE`, Linux 5.7).
///
/// # Errors
/// What the kernel says.
pub fn update_link(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_update.link_fd = fd_number(link.as_fd());
    attr.link_update.__bindgen_anon_1.new_prog_fd = fd_number(program.as_fd());
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Takes a link's program out of service at once (`BPF_LINK_DETACH`, Linux 5.9); the end of its last pin does so too,
/// but some milliseconds later.
///
/// # Errors
/// What the kernel says.
pub fn detach_link(link: impl AsFd) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_detach.link_fd = fd_number(link.as_fd());
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// What a cgroup link holds together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CgroupLink {
    /// Id of its program.
    pub program: u32,
    /// Id of its cgroup, which is the inode number of the cgroup's directory; 0 when that has gone.
    pub cgroup: u64,
}

/// Asks what a cgroup link holds together.
///
/// # Errors
/// What the kernel says.
pub fn cgroup_link(link: impl AsFd) -> io::Result<CgroupLink> {
    let info = link_info(link)?;
    // SAFETY: our links are cgroup links.
    Ok(CgroupLink { program: info.prog_id, cgroup: unsafe { info.__bindgen_anon_1.cgroup }.cgroup_id })
}

/// The id of a link's program.
///
/// # Errors
/// What the kernel says.
pub fn link_program(link: impl AsFd) -> io::Result<u32> {
    Ok(link_info(link)?.prog_id)
}

fn link_info(link: impl AsFd) -> io::Result<bpf_link_info> {
    // SAFETY: a struct of integers and a union of such structs.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    let mut attr = zeroed();
    attr.info.bpf_fd = fd_number(link.as_fd());
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    attr.info.info_len = u32::try_from(mem::size_of::<bpf_link_info>()).unwrap_or(u32::MAX);
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// What a link to a network device holds together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcxLink {
    /// Id of its program.
    pub program: u32,
    /// Index of the device; 0 when it has gone.
    pub interface: u32,
}

/// Asks what a link to a network device holds together.
///
/// # Errors
/// What the kernel says.
pub fn tcx_link(link: impl AsFd) -> io::Result<TcxLink> {
    let info = link_info(link)?;
    // SAFETY: our links that are not of a cgroup are these.
    Ok(TcxLink { program: info.prog_id, interface: unsafe { info.__bindgen_anon_1.tcx }.ifindex })
}

/// Attaches a program to a network device of this thread's network namespace, before all others that are there (TCX, Linux
/// 6.6). It ends with the last descriptor and pin of the link.
///
/// # Errors
/// What the kernel says; `EINVAL` when it has no TCX.
pub fn attach_tcx(program: impl AsFd, interface: u32, hook: lb_common::Hook) -> io::Result<OwnedFd> {
    // include/uapi/linux/bpf.h: before the program of `relative_fd`, and before all with none.
    const BPF_F_BEFORE: u32 = 1 << 3;
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = fd_number(program.as_fd());
    attr.link_create.__bindgen_anon_2.target_ifindex = interface;
    attr.link_create.attach_type = tcx_hook(hook) as u32;
    attr.link_create.flags = BPF_F_BEFORE;
    let fd = bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: a descriptor that the kernel has just opened for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

const fn tcx_hook(hook: lb_common::Hook) -> bpf_attach_type {
    match hook {
        lb_common::Hook::Ingress => bpf_attach_type::BPF_TCX_INGRESS,
        lb_common::Hook::Egress => bpf_attach_type::BPF_TCX_EGRESS,
    }
}

/// Pins an object of bpf at a path on a bpffs.
///
/// # Errors
/// What the kernel says.
pub fn pin(object: impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = fd_number(object.as_fd());
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// The programs that run at a hook of a cgroup, by their ids: its own and those of the cgroups above it, in the order in which
/// they run (`BPF_PROG_QUERY` with `BPF_F_QUERY_EFFECTIVE`, Linux 4.15).
///
/// # Errors
/// What the kernel says; `EINVAL` where it does not know the hook.
pub fn programs_at(cgroup: impl AsFd, hook: bpf_attach_type) -> io::Result<Vec<u32>> {
    const EFFECTIVE: u32 = 1;
    query(fd_number(cgroup.as_fd()), hook, EFFECTIVE)
}

/// The programs that run at a device by TCX, by their ids, in the order in which they run (Linux 6.6).
///
/// # Errors
/// What the kernel says; `EINVAL` where it has no TCX.
pub fn programs_at_device(interface: u32, hook: lb_common::Hook) -> io::Result<Vec<u32>> {
    query(interface, tcx_hook(hook), 0)
}

/// `at` is a descriptor or the index of a device, which share their place.
fn query(at: u32, hook: bpf_attach_type, flags: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; 64];
    loop {
        let mut attr = zeroed();
        attr.query.__bindgen_anon_1.target_ifindex = at;
        attr.query.attach_type = hook as u32;
        attr.query.query_flags = flags;
        attr.query.prog_ids = ids.as_mut_ptr() as u64;
        attr.query.__bindgen_anon_2.prog_cnt = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        let result = bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr);
        // SAFETY: the kernel writes how many there are, and leaves alone what it does not know.
        let count = unsafe { attr.query.__bindgen_anon_2.prog_cnt } as usize;
        match result {
            Ok(_) => {
                ids.truncate(count);
                return Ok(ids);
            }
            // There are more of them than there was room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => ids.resize(count.max(ids.len() * 2), 0),
            Err(error) => return Err(error),
        }
    }
}

/// Whether the kernel has the newer hooks of devices (tcx, Linux 6.6).
#[must_use]
pub fn has_tcx() -> bool {
    let mut attr = zeroed();
    // Of `lo`, which every network namespace has.
    attr.query.__bindgen_anon_1.target_ifindex = 1;
    attr.query.attach_type = bpf_attach_type::BPF_TCX_INGRESS as u32;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr).is_ok()
}

/// Loads a program for the hook `connect4` of cgroups.
///
/// # Errors
/// What the kernel says.
pub fn load_connect4(name: &CStr, instructions: &[bpf_insn]) -> io::Result<OwnedFd> {
    load(
        bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        bpf_attach_type::BPF_CGROUP_INET4_CONNECT as u32,
        name,
        instructions,
    )
}

/// Loads a program of the type that tc runs.
///
/// # Errors
/// What the kernel says.
pub fn load_classifier(name: &CStr, instructions: &[bpf_insn]) -> io::Result<OwnedFd> {
    load(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, 0, name, instructions)
}

fn load(kind: bpf_prog_type, hook: u32, name: &CStr, instructions: &[bpf_insn]) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: the part of the union that BPF_PROG_LOAD reads; all of it was zero.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = kind as u32;
    load.expected_attach_type = hook;
    load.insns = instructions.as_ptr() as u64;
    load.insn_cnt = u32::try_from(instructions.len()).unwrap_or(u32::MAX);
    load.license = c"Dual MIT/GPL".as_ptr() as u64;
    for (to, from) in load.prog_name.iter_mut().zip(name.to_bytes()) {
        *to = *from as std::ffi::c_char;
    }
    let mut fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr);
    if fd.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EPERM)) {
        // Before 5.11 programs count as locked memory.
        setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None })?;
        fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr);
    }
    // SAFETY: a descriptor that the kernel has just opened for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd?) })
}

/// Runs such a program once on a packet, which it may change, as if that came in by an interface of this thread's network
/// namespace (0: by `lo`; others since Linux 5.9). Returns what the program returns.
///
/// # Errors
/// What the kernel says; `ENODEV` without that interface.
pub fn run_classifier(program: impl AsFd, packet: &mut [u8], interface: u32) -> io::Result<u32> {
    // The head of a `struct __sk_buff`, to `ifindex`.
    let context = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, interface];
    let mut attr = zeroed();
    let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    attr.test.prog_fd = fd_number(program.as_fd());
    attr.test.data_size_in = length;
    attr.test.data_size_out = length;
    // The kernel copies the packet before the run and back after it.
    attr.test.data_in = packet.as_ptr() as u64;
    attr.test.data_out = packet.as_mut_ptr() as u64;
    attr.test.ctx_in = std::ptr::from_ref(&context) as u64;
    attr.test.ctx_size_in = u32::try_from(mem::size_of_val(&context)).unwrap_or(u32::MAX);
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    // SAFETY: the kernel wrote it.
    Ok(unsafe { attr.test.retval })
}

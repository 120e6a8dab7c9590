//! Reads the value of another process's UDP socket in a socket storage map (`BPF_MAP_TYPE_SK_STORAGE`), by the socket's
//! addresses.
//!
//! bpf(2) reads such a map only by a descriptor of the socket, which another process has. sock_diag has an attribute
//! for storages (INET_DIAG_REQ_SK_BPF_STORAGES) but ignores it for UDP: inet_sk_diag_fill() is done with a UDP socket
//! before it comes to storages. So a BPF program looks the socket up and reads its storage. The program is not
//! attached: BPF_PROG_TEST_RUN runs it, in the network namespace of the calling thread, on a packet that holds the
//! request and takes the answer.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use aya_obj::generated::bpf_insn;

use super::message::Socket;
use crate::bpf;
use lb_common::Family;

/// Offset of the tuple in the packet, behind room for an Ethernet header, which the kernel requires.
const TUPLE: usize = 14;
/// Offset of the answer in the packet.
const ANSWER: usize = TUPLE + TUPLE_V6;

/// Lengths of a `struct bpf_sock_tuple`, by which the kernel tells the families apart.
const TUPLE_V4: usize = 12;
const TUPLE_V6: usize = 36;

/// Return value of the program if the packet holds an answer.
const FOUND: u32 = 1;

/// Loaded reader programs of both families, for one map.
pub struct UdpStorageReader {
    value_size: usize,
    v4: OwnedFd,
    v6: OwnedFd,
}

impl UdpStorageReader {
    /// Loads the programs over a socket storage map whose values have `value_size` octets.
    ///
    /// # Errors
    /// When the kernel refuses a program, which no supported kernel does.
    pub fn load(map: BorrowedFd<'_>, value_size: usize) -> Result<Self> {
        let load = |tuple| {
            bpf::load_classifier(c"beeline_probe", &program(map.as_raw_fd(), tuple, value_size))
                .context("loading the program that reads the storage of UDP sockets")
        };
        Ok(Self { value_size, v4: load(TUPLE_V4)?, v6: load(TUPLE_V6)? })
    }

    /// Reads the value of a connected socket of this thread's network namespace; None if the socket is gone or has no
    /// value.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn read(&self, socket: &Socket) -> Result<Option<Vec<u8>>> {
        let (program, mut packet) = match Family::of(&socket.remote.addr) {
            Family::V4 => (&self.v4, request(socket, 12)),
            Family::V6 => (&self.v6, request(socket, 0)),
        };
        packet.resize(ANSWER + self.value_size, 0);
        match bpf::run_classifier(program, &mut packet, socket.interface) {
            Ok(FOUND) => Ok(Some(packet.split_off(ANSWER))),
            Ok(_) => Ok(None),
            // The interface is gone, and a socket bound to it can send no more.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error).context("reading the storage of a UDP socket"),
        }
    }
}

/// Encodes the tuple of a packet from the peer, with the octets of the addresses from `start` on.
fn request(Socket { local, remote, .. }: &Socket, start: usize) -> Vec<u8> {
    let mut packet = vec![0; TUPLE];
    for end in [remote, local] {
        packet.extend(end.addr.octets.iter().skip(start));
    }
    for end in [remote, local] {
        packet.extend(end.port.to_be_bytes());
    }
    packet
}

/// Assembles the program: it looks a socket up by the tuple and copies the socket's value into the packet. All its
/// helpers exist since Linux 5.2.
fn program(map: i32, tuple: usize, value_size: usize) -> [bpf_insn; 35] {
    // include/uapi/linux/bpf.h
    const SKB_STORE_BYTES: i32 = 9;
    const SKB_LOAD_BYTES: i32 = 26;
    const SK_LOOKUP_UDP: i32 = 85;
    const SK_RELEASE: i32 = 86;
    const SK_STORAGE_GET: i32 = 107;
    const CURRENT_NETNS: i32 = -1;
    const STACK: i32 = -40;
    const FRAME: u8 = 10;
    // Registers that calls preserve.
    const CONTEXT: u8 = 6;
    const SOCKET: u8 = 7;
    const VERDICT: u8 = 8;
    let number = |number: usize| i32::try_from(number).expect("small");
    let [map, rest_of_map] = load_map(1, map);
    [
        copy(CONTEXT, 1),
        set(VERDICT, 0),
        // Copy the tuple to the stack; on failure go to the end.
        set(2, number(TUPLE)),
        copy(3, FRAME),
        add(3, STACK),
        set(4, number(tuple)),
        call(SKB_LOAD_BYTES),
        skip_if_not_zero(0, 25),
        // Look up the socket; if there is none, go to the end.
        copy(1, CONTEXT),
        copy(2, FRAME),
        add(2, STACK),
        set(3, number(tuple)),
        set(4, CURRENT_NETNS),
        set(5, 0),
        call(SK_LOOKUP_UDP),
        skip_if_zero(0, 17),
        copy(SOCKET, 0),
        // Get its value; if there is none, go to the release.
        map,
        rest_of_map,
        copy(2, SOCKET),
        set(3, 0),
        set(4, 0),
        call(SK_STORAGE_GET),
        skip_if_zero(0, 7),
        copy(3, 0),
        copy(1, CONTEXT),
        set(2, number(ANSWER)),
        set(4, number(value_size)),
        set(5, 0),
        call(SKB_STORE_BYTES),
        set(VERDICT, FOUND.cast_signed()),
        copy(1, SOCKET),
        call(SK_RELEASE),
        // Return the verdict.
        copy(0, VERDICT),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

fn copy(to: u8, from: u8) -> bpf_insn {
    instruction(0xbf, to, from, 0, 0)
}

fn set(register: u8, value: i32) -> bpf_insn {
    instruction(0xb7, register, 0, 0, value)
}

fn add(register: u8, value: i32) -> bpf_insn {
    instruction(0x07, register, 0, 0, value)
}

fn call(helper: i32) -> bpf_insn {
    instruction(0x85, 0, 0, 0, helper)
}

fn skip_if_zero(register: u8, count: i16) -> bpf_insn {
    instruction(0x15, register, 0, count, 0)
}

fn skip_if_not_zero(register: u8, count: i16) -> bpf_insn {
    instruction(0x55, register, 0, count, 0)
}

/// Loads the address of a map, which takes two instructions.
fn load_map(register: u8, descriptor: i32) -> [bpf_insn; 2] {
    const BPF_PSEUDO_MAP_FD: u8 = 1;
    [instruction(0x18, register, BPF_PSEUDO_MAP_FD, 0, descriptor), instruction(0, 0, 0, 0, 0)]
}

fn instruction(code: u8, destination: u8, source: u8, off: i16, imm: i32) -> bpf_insn {
    let registers = bpf_insn::new_bitfield_1(destination, source);
    bpf_insn { code, _bitfield_align_1: [], _bitfield_1: registers, off, imm }
}

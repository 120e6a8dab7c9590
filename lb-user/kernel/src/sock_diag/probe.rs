//! Reads what a UDP socket holds in `SOCKS`, by its addresses.
//!
//! The map is read by descriptor of the socket only, which is another process's. sock_diag knows an attribute for it
//! (INET_DIAG_REQ_SK_BPF_STORAGES) and ignores it for UDP: inet_sk_diag_fill() has finished such a socket before it comes
//! to storages. So a program finds the socket and reads it. It is not attached anywhere: BPF_PROG_TEST_RUN runs it, in the
//! network namespace of the calling thread, on a packet that has the question and takes the answer.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use aya_obj::generated::bpf_insn;
use lb_common::Translations;

use super::message::Socket;
use crate::bpf;
use lb_common::Family;

/// In the packet: behind room for an Ethernet header, which the kernel demands, the tuple; behind that the answer.
const TUPLE: usize = 14;
const ANSWER: usize = TUPLE + TUPLE_V6;
const PACKET: usize = ANSWER + size_of::<Translations>();

/// Lengths of a `struct bpf_sock_tuple`, by which the kernel tells the family.
const TUPLE_V4: usize = 12;
const TUPLE_V6: usize = 36;

/// What the program returns with an answer.
const FOUND: u32 = 1;

/// The program, for both families.
pub struct Probe {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl Probe {
    /// Loads it over the map `SOCKS`.
    ///
    /// # Errors
    /// When the kernel refuses it, which no supported one does.
    pub fn load(socks: BorrowedFd<'_>) -> Result<Self> {
        let load = |tuple| {
            bpf::load_classifier(c"beeline_probe", &program(socks.as_raw_fd(), tuple))
                .context("loading the program that reads what UDP sockets were given")
        };
        Ok(Self { v4: load(TUPLE_V4)?, v6: load(TUPLE_V6)? })
    }

    /// What is stored for a connected socket of this thread's network namespace.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn stored(&self, socket: &Socket) -> Result<Option<Vec<u8>>> {
        let (program, mut packet) = match Family::of(&socket.remote.addr) {
            Family::V4 => (&self.v4, question(socket, 12)),
            Family::V6 => (&self.v6, question(socket, 0)),
        };
        packet.resize(PACKET, 0);
        match bpf::run_classifier(program, &mut packet, socket.interface) {
            Ok(FOUND) => Ok(Some(packet.split_off(ANSWER))),
            Ok(_) => Ok(None),
            // The interface has gone, and what is bound to it reaches nobody.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error).context("reading what a UDP socket was given"),
        }
    }
}

/// The tuple of a packet from the peer, with the octets of the addresses from `start` on.
fn question(Socket { local, remote, .. }: &Socket, start: usize) -> Vec<u8> {
    let mut packet = vec![0; TUPLE];
    for end in [remote, local] {
        packet.extend(end.addr.octets.iter().skip(start));
    }
    for end in [remote, local] {
        packet.extend(end.port.to_be_bytes());
    }
    packet
}

/// Looks a socket up by the tuple and copies its value of the map into the packet. All helpers are there since 5.2.
fn program(socks: i32, tuple: usize) -> [bpf_insn; 35] {
    // include/uapi/linux/bpf.h
    const SKB_STORE_BYTES: i32 = 9;
    const SKB_LOAD_BYTES: i32 = 26;
    const SK_LOOKUP_UDP: i32 = 85;
    const SK_RELEASE: i32 = 86;
    const SK_STORAGE_GET: i32 = 107;
    const CURRENT_NETNS: i32 = -1;
    const STACK: i32 = -40;
    const FRAME: u8 = 10;
    // Registers that calls leave alone.
    const CONTEXT: u8 = 6;
    const SOCKET: u8 = 7;
    const VERDICT: u8 = 8;
    let number = |number: usize| i32::try_from(number).expect("small");
    let [map, rest_of_map] = load_map(1, socks);
    [
        copy(CONTEXT, 1),
        set(VERDICT, 0),
        // The tuple onto the stack; otherwise to the end.
        set(2, number(TUPLE)),
        copy(3, FRAME),
        add(3, STACK),
        set(4, number(tuple)),
        call(SKB_LOAD_BYTES),
        skip_if_not_zero(0, 25),
        // The socket; otherwise to the end.
        copy(1, CONTEXT),
        copy(2, FRAME),
        add(2, STACK),
        set(3, number(tuple)),
        set(4, CURRENT_NETNS),
        set(5, 0),
        call(SK_LOOKUP_UDP),
        skip_if_zero(0, 17),
        copy(SOCKET, 0),
        // Its value; otherwise to the release.
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
        set(4, number(size_of::<Translations>())),
        set(5, 0),
        call(SKB_STORE_BYTES),
        set(VERDICT, FOUND.cast_signed()),
        copy(1, SOCKET),
        call(SK_RELEASE),
        // The end.
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

/// The address of a map, which takes two.
fn load_map(register: u8, descriptor: i32) -> [bpf_insn; 2] {
    const BPF_PSEUDO_MAP_FD: u8 = 1;
    [instruction(0x18, register, BPF_PSEUDO_MAP_FD, 0, descriptor), instruction(0, 0, 0, 0, 0)]
}

fn instruction(code: u8, destination: u8, source: u8, off: i16, imm: i32) -> bpf_insn {
    let registers = bpf_insn::new_bitfield_1(destination, source);
    bpf_insn { code, _bitfield_align_1: [], _bitfield_1: registers, off, imm }
}

//! Reads the entry of another process's UDP socket in the maps of programs: in an array indexed by the address of the
//! socket ([`UdpSock::index`]), or in a socket storage map (`BPF_MAP_TYPE_SK_STORAGE`), by the socket's addresses.
//!
//! User space does not know the address of a socket, and bpf(2) reads a storage only by a descriptor of the socket,
//! which another process has. sock_diag has an attribute for storages (INET_DIAG_REQ_SK_BPF_STORAGES) but ignores it
//! for UDP: inet_sk_diag_fill() is done with a UDP socket before it comes to storages. So a BPF program looks the
//! socket up and reads its entry. The program is not attached: BPF_PROG_TEST_RUN runs it, in the network namespace of
//! the calling thread, on a packet that holds the request and takes the answer.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use aya_obj::generated::bpf_insn;

use super::message::Socket;
use crate::bpf;
use lb_common::{Family, Translation, Translations, UdpSock, capacity};

/// Offset of the tuple in the packet, behind room for an Ethernet header, which the kernel requires.
const TUPLE: usize = 14;
/// Offset of the answer in the packet.
const ANSWER: usize = TUPLE + TUPLE_V6;

/// Lengths of a `struct bpf_sock_tuple`, by which the kernel tells the families apart.
const TUPLE_V4: usize = 12;
const TUPLE_V6: usize = 36;

/// Return value of the program if the packet holds the value of the socket's storage.
const FOUND_LIST: u32 = 1;
/// Return value of the program if the packet holds the entry of the socket's place.
const FOUND_SINGLE: u32 = 2;

/// The entries of a socket, as octets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UdpEntries {
    /// A [`Translation`]: the entry in the socket's place.
    Single(Vec<u8>),
    /// A [`Translations`]: the value of the socket's storage.
    List(Vec<u8>),
}

/// Loaded reader programs of both families.
pub struct UdpEntryReader {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl UdpEntryReader {
    /// Loads the programs over an array of [`UdpSock`], and a socket storage map of [`Translations`].
    ///
    /// # Errors
    /// When the kernel refuses a program, which no supported kernel does.
    pub fn load(places: BorrowedFd<'_>, storage: BorrowedFd<'_>) -> Result<Self> {
        let load = |tuple| {
            bpf::load_classifier(c"beeline_probe", &program(places.as_raw_fd(), storage.as_raw_fd(), tuple))
                .context("loading the program that reads the entries of UDP sockets")
        };
        Ok(Self { v4: load(TUPLE_V4)?, v6: load(TUPLE_V6)? })
    }

    /// Reads the entries of a connected socket of this thread's network namespace; None if the socket is gone or has no
    /// entries.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn read(&self, socket: &Socket) -> Result<Option<UdpEntries>> {
        let (program, mut packet) = match Family::of(&socket.remote.addr) {
            Family::V4 => (&self.v4, request(socket, 12)),
            Family::V6 => (&self.v6, request(socket, 0)),
        };
        packet.resize(ANSWER + size_of::<Translations>(), 0);
        match bpf::run_classifier(program, &mut packet, socket.interface) {
            Ok(FOUND_LIST) => Ok(Some(UdpEntries::List(packet.split_off(ANSWER)))),
            Ok(FOUND_SINGLE) => {
                packet.truncate(ANSWER + size_of::<Translation>());
                Ok(Some(UdpEntries::Single(packet.split_off(ANSWER))))
            }
            Ok(_) => Ok(None),
            // The interface is gone, and a socket bound to it can send no more.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error).context("reading the entries of a UDP socket"),
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

/// Assembles the program: it looks a socket up by the tuple, and copies the entry of its place or the value of its
/// storage into the packet. All its helpers exist since Linux 5.2.
fn program(places: i32, storage: i32, tuple: usize) -> Vec<bpf_insn> {
    // include/uapi/linux/bpf.h
    const MAP_LOOKUP_ELEM: i32 = 1;
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
    const ID: u8 = 9;
    let number = |number: usize| i32::try_from(number).expect("small");
    // Copy from register 3 to the packet. The calls of the program after the copy need no other register.
    let answer = |verdict: u32, size: usize| {
        [
            copy(1, CONTEXT),
            set(2, number(ANSWER)),
            set(4, number(size)),
            set(5, 0),
            call(SKB_STORE_BYTES),
            set(VERDICT, verdict.cast_signed()),
        ]
    };
    let end = vec![copy(0, VERDICT), instruction(0x95, 0, 0, 0, 0)];
    let release = vec![copy(1, SOCKET), call(SK_RELEASE)];
    let from_storage = {
        let found = [vec![copy(3, 0)], answer(FOUND_LIST, size_of::<Translations>()).to_vec()].concat();
        [
            load_map(1, storage).to_vec(),
            vec![copy(2, SOCKET), set(3, 0), set(4, 0), call(SK_STORAGE_GET), skip_if_zero(0, len(&found))],
            found,
        ]
        .concat()
    };
    let from_place = {
        let given = number(std::mem::offset_of!(UdpSock, given));
        let mut found = vec![copy(3, 0), add(3, given)];
        found.extend(answer(FOUND_SINGLE, size_of::<Translation>()));
        found.push(skip(len(&from_storage)));
        let compare = vec![
            load(1, 0, std::mem::offset_of!(UdpSock, socket)),
            // To the storage, if another socket holds the place.
            skip_if_not_equal(1, ID, len(&found)),
        ];
        let look_up = [
            vec![
                copy(ID, SOCKET),
                subtract(ID, 0),
                copy(1, ID),
                shift_right(1, UdpSock::SHIFT.cast_signed()),
                and(1, number(capacity::UDP_SOCKS) - 1),
                store_word(FRAME, STACK, 1),
            ],
            load_map(1, places).to_vec(),
            vec![copy(2, FRAME), add(2, STACK), call(MAP_LOOKUP_ELEM)],
            vec![skip_if_zero(0, len(&compare) + len(&found))],
            compare,
            found,
        ]
        .concat();
        [
            vec![set(1, 0), store_word(FRAME, STACK, 1)],
            load_map(1, places).to_vec(),
            vec![copy(2, FRAME), add(2, STACK), call(MAP_LOOKUP_ELEM), skip_if_zero(0, len(&look_up))],
            look_up,
        ]
        .concat()
    };
    let look_up = {
        let found = [vec![copy(SOCKET, 0)], from_place, from_storage, release].concat();
        [
            vec![
                copy(1, CONTEXT),
                copy(2, FRAME),
                add(2, STACK),
                set(3, number(tuple)),
                set(4, CURRENT_NETNS),
                set(5, 0),
                call(SK_LOOKUP_UDP),
                skip_if_zero(0, len(&found)),
            ],
            found,
        ]
        .concat()
    };
    [
        vec![
            copy(CONTEXT, 1),
            set(VERDICT, 0),
            // Copy the tuple to the stack.
            set(2, number(TUPLE)),
            copy(3, FRAME),
            add(3, STACK),
            set(4, number(tuple)),
            call(SKB_LOAD_BYTES),
            skip_if_not_zero(0, len(&look_up)),
        ],
        look_up,
        end,
    ]
    .concat()
}

fn len(instructions: &[bpf_insn]) -> i16 {
    i16::try_from(instructions.len()).expect("a short program")
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

fn and(register: u8, value: i32) -> bpf_insn {
    instruction(0x57, register, 0, 0, value)
}

fn shift_right(register: u8, bits: i32) -> bpf_insn {
    instruction(0x77, register, 0, 0, bits)
}

fn subtract(from: u8, register: u8) -> bpf_insn {
    instruction(0x1f, from, register, 0, 0)
}

/// Loads 64 bits from the memory that a register points to.
fn load(to: u8, pointer: u8, offset: usize) -> bpf_insn {
    instruction(0x79, to, pointer, i16::try_from(offset).expect("small"), 0)
}

/// Stores 32 bits.
fn store_word(pointer: u8, offset: i32, register: u8) -> bpf_insn {
    instruction(0x63, pointer, register, i16::try_from(offset).expect("small"), 0)
}

fn skip(count: i16) -> bpf_insn {
    instruction(0x05, 0, 0, count, 0)
}

fn skip_if_not_equal(left: u8, right: u8, count: i16) -> bpf_insn {
    instruction(0x5d, left, right, count, 0)
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

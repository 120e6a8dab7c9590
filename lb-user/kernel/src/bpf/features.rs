//! Features of the kernel, found by a small program that needs them and is attached nowhere.

use aya_obj::generated::bpf_insn;

use super::programs::load_connect4;

/// True if programs at connect can find the application's MPTCP socket of a TCP socket (`bpf_skc_to_mptcp_sock`, 6.0),
/// and reach its storage.
#[must_use]
pub fn has_mptcp_sock() -> bool {
    const SKC_TO_MPTCP_SOCK: i32 = 196;
    /// Offset of `sk` in a `struct bpf_sock_addr`.
    const SK: i16 = 64;
    let program = [
        // r1 = sk of the context, of 64 bits
        instruction(0x79, 1, 1, SK, 0),
        // call; then return 1
        instruction(0x85, 0, 0, 0, SKC_TO_MPTCP_SOCK),
        instruction(0xb7, 0, 0, 0, 1),
        instruction(0x95, 0, 0, 0, 0),
    ];
    load_connect4(c"beeline_probe", &program).is_ok()
}

/// True if programs at connect may read the memory of the kernel (`bpf_probe_read_kernel`): not under lockdown for
/// confidentiality.
#[must_use]
pub fn has_probe_read() -> bool {
    const PROBE_READ_KERNEL: i32 = 113;
    let program = [
        // r3 = the context; r1 = eight octets of the stack
        instruction(0xbf, 3, 1, 0, 0),
        instruction(0xbf, 1, 10, 0, 0),
        instruction(0x07, 1, 0, 0, -8),
        instruction(0xb7, 2, 0, 0, 8),
        // call; then return 1
        instruction(0x85, 0, 0, 0, PROBE_READ_KERNEL),
        instruction(0xb7, 0, 0, 0, 1),
        instruction(0x95, 0, 0, 0, 0),
    ];
    load_connect4(c"beeline_probe", &program).is_ok()
}

fn instruction(code: u8, destination: u8, source: u8, off: i16, imm: i32) -> bpf_insn {
    let registers = bpf_insn::new_bitfield_1(destination, source);
    bpf_insn { code, _bitfield_align_1: [], _bitfield_1: registers, off, imm }
}

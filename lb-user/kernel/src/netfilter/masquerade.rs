//! The table of nf_tables by which netfilter masquerades flows on the slow path: the kernel forwards their packets,
//! which the programs mark.
//!
//! ```text
//! chain prerouting { type filter hook prerouting priority -199;
//!                    mark & MARK != 0 ct label set BIT mark set mark & ~MARK }
//! chain postrouting { type nat hook postrouting priority 99; ct label BIT masquerade to :32768-65535 }
//! ```
//!
//! The mark is gone before any other rule sees the packet, so that it meets neither `ip rule` nor CONNMARK. Outer
//! packets of a tunnel, which are connections of their own, have no label. The first NAT rule of a connection counts:
//! this one goes before those of others.

use std::io;

use lb_common::{Family, MASQUERADE_MARK};

use super::{
    NftTable,
    nftables::{BaseChain, Batch, Expressions, Nftables, data, number},
};

/// Name of the table.
pub const MASQUERADE_TABLE: &str = "beeline";

// NF_INET_
const PRE_ROUTING: u32 = 0;
const POST_ROUTING: u32 = 4;
/// Just after conntrack (NF_IP_PRI_CONNTRACK), and before rules that set marks (NF_IP_PRI_MANGLE).
const AFTER_CONNTRACK: i32 = -199;
/// Just before NF_IP_PRI_NAT_SRC.
const BEFORE_NAT_SRC: i32 = 99;

/// The last of the 128 labels of a connection.
const LABEL: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80];
/// Source ports: neither those of flows that the programs masquerade, nor NodePorts.
const PORTS: [u16; 2] = [32_768, 65_535];

// NFT_REG_1, NFT_REG_2, NFT_REG_3
const ONE: u32 = 1;
const TWO: u32 = 2;
const THREE: u32 = 3;
/// NFT_META_MARK
const MARK: u32 = 3;
/// NFT_CT_LABELS
const LABELS: u32 = 13;
/// NFT_CMP_NEQ
const NOT_EQUAL: u32 = 1;

/// Adds the table of each family that does not have it. True if one was added.
///
/// # Errors
/// The kernel's errno; ENOENT or EOPNOTSUPP if it lacks NAT or labels of connections.
pub fn ensure() -> io::Result<bool> {
    let Some(mut nftables) = Nftables::open()? else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel has no nf_tables"));
    };
    let mut batch = Batch::default();
    for family in [Family::V4, Family::V6] {
        if !nftables.tables(family.into())?.iter().any(|table| table.name == MASQUERADE_TABLE) {
            add(&mut batch, family);
        }
    }
    nftables.commit(&batch)?;
    Ok(batch.len() != 0)
}

fn add(batch: &mut Batch, family: Family) {
    let table = NftTable { family: family.into(), name: MASQUERADE_TABLE.to_owned() };
    batch.add_table(&table);
    let mark = MASQUERADE_MARK.to_ne_bytes();
    let without = (!MASQUERADE_MARK).to_ne_bytes();
    let label = Expressions::default()
        // NFTA_META_DREG, _KEY
        .with("meta", &[(1, number(ONE)), (2, number(MARK))])
        .with("bitwise", &bitwise(ONE, TWO, &mark))
        .with("cmp", &compare(TWO, NOT_EQUAL, &[0; 4]))
        .with("immediate", &immediate(TWO, &LABEL))
        // NFTA_CT_KEY, _SREG
        .with("ct", &[(2, number(LABELS)), (4, number(TWO))])
        .with("bitwise", &bitwise(ONE, ONE, &without))
        // NFTA_META_KEY, _SREG
        .with("meta", &[(2, number(MARK)), (3, number(ONE))]);
    let prerouting = BaseChain { hook: PRE_ROUTING, priority: AFTER_CONNTRACK, kind: "filter" };
    batch.add_base_chain(&table, "prerouting", prerouting, &label);
    let [first, last] = PORTS.map(u16::to_be_bytes);
    let masquerade = Expressions::default()
        // NFTA_CT_DREG, _KEY
        .with("ct", &[(1, number(ONE)), (2, number(LABELS))])
        .with("bitwise", &bitwise(ONE, ONE, &LABEL))
        .with("cmp", &compare(ONE, NOT_EQUAL, &[0; 16]))
        .with("immediate", &immediate(TWO, &first))
        .with("immediate", &immediate(THREE, &last))
        // NFTA_MASQ_REG_PROTO_MIN, _MAX
        .with("masq", &[(2, number(TWO)), (3, number(THREE))]);
    let postrouting = BaseChain { hook: POST_ROUTING, priority: BEFORE_NAT_SRC, kind: "nat" };
    batch.add_base_chain(&table, "postrouting", postrouting, &masquerade);
}

/// Returns NFTA_BITWISE_SREG, _DREG, _LEN, _MASK and _XOR of `to = from & mask`.
fn bitwise(from: u32, to: u32, mask: &[u8]) -> [(u16, Vec<u8>); 5] {
    let length = u32::try_from(mask.len()).expect("a register is short");
    let none = vec![0; mask.len()];
    [(1, number(from)), (2, number(to)), (3, number(length)), (4, data(mask)), (5, data(&none))]
}

/// Returns NFTA_CMP_SREG, _OP and _DATA.
fn compare(register: u32, operator: u32, with: &[u8]) -> [(u16, Vec<u8>); 3] {
    [(1, number(register)), (2, number(operator)), (3, data(with))]
}

/// Returns NFTA_IMMEDIATE_DREG and _DATA.
fn immediate(register: u32, value: &[u8]) -> [(u16, Vec<u8>); 2] {
    [(1, number(register)), (2, data(value))]
}

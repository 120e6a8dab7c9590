//! Two temporary tables of nf_tables for the change between kube-proxy and Beeline.
//!
//! The keep-alive table: the kernel goes on translating the packets of an established connection without any rule, but
//! only while conntrack and NAT are registered in the network namespace. A rule that reads conntrack registers the one,
//! a chain of type `nat` the other, and removing the last of them unregisters it (net/netfilter/nf_conntrack_proto.c
//! `nf_ct_netns_put`, nf_nat_core.c `nf_nat_unregister_fn`). This table holds one of each until kube-proxy's last
//! connection is closed.
//!
//! The notrack table: hides some packets from conntrack for a moment.

use std::io;

use lb_common::Tuple;

use super::{
    NftTable,
    conntrack::octets,
    nftables::{BaseChain, Batch, Expressions, Nftables, c_string, number},
};
use lb_common::Family;

/// Name of the table that keeps conntrack and NAT registered.
pub const KEEP_ALIVE_TABLE: &str = "beeline-handover";
/// Name of the table that hides packets from conntrack.
pub const NOTRACK_TABLE: &str = "beeline-cleanup";

const SET: &str = "flows";

// NF_INET_, NF_IP_PRI_, NFT_REG_1, NFT_REG32_00
const PRE_ROUTING: u32 = 0;
const LOCAL_OUT: u32 = 3;
const BEFORE_CONNTRACK: i32 = -300;
const NAT_DST: i32 = -100;
const FIRST: u32 = 1;
const WORDS: u32 = 8;

/// True if the keep-alive table exists.
///
/// # Errors
/// The kernel's errno.
pub fn has_keep_alive() -> io::Result<bool> {
    let Some(mut nftables) = Nftables::open()? else { return Ok(false) };
    Ok(!tables_named(&mut nftables, KEEP_ALIVE_TABLE)?.is_empty())
}

/// Removes the table of this name. True if it existed.
///
/// # Errors
/// The kernel's errno.
pub fn remove(name: &str) -> io::Result<bool> {
    let Some(mut nftables) = Nftables::open()? else { return Ok(false) };
    let mut batch = Batch::default();
    for table in tables_named(&mut nftables, name)? {
        batch.delete_table(&table);
    }
    nftables.commit(&batch)?;
    Ok(batch.len() != 0)
}

/// Adds the notrack table for packets of these tuples and IP protocol numbers, in both directions.
///
/// # Errors
/// The kernel's errno.
pub fn add_notrack(packets: &[(Tuple, u8)]) -> io::Result<()> {
    let Some(mut nftables) = Nftables::open()? else { return Ok(()) };
    let mut batch = Batch::default();
    for family in [Family::V4, Family::V6] {
        let is_of = |tuple: &Tuple| tuple.dst.is_v4() == (family == Family::V4);
        let both = |(tuple, proto): &(Tuple, u8)| [key(tuple, *proto), key(&tuple.reversed(), *proto)];
        let mut keys: Vec<_> = packets.iter().filter(|(tuple, _)| is_of(tuple)).flat_map(both).collect();
        keys.sort_unstable();
        keys.dedup();
        if !keys.is_empty() {
            add_notrack_table(&mut batch, family, &keys);
        }
    }
    nftables.commit(&batch)
}

fn tables_named(nftables: &mut Nftables, name: &str) -> io::Result<Vec<NftTable>> {
    let mut tables = nftables.tables(Family::V4.into())?;
    tables.extend(nftables.tables(Family::V6.into())?);
    tables.retain(|table| table.name == name);
    Ok(tables)
}

/// Adds the keep-alive table to a batch: a chain of type `nat`, with a rule that reads the state of a connection and
/// does nothing.
pub fn add_keep_alive(batch: &mut Batch, family: Family) {
    let table = recreate(batch, family, KEEP_ALIVE_TABLE);
    let base = BaseChain { hook: PRE_ROUTING, priority: NAT_DST, kind: "nat" };
    // NFTA_CT_DREG, _KEY (NFT_CT_STATE)
    let rule = Expressions::default().with("ct", &[(1, number(FIRST)), (2, number(0))]);
    batch.add_base_chain(&table, "keep", base, &rule);
}

fn add_notrack_table(batch: &mut Batch, family: Family, keys: &[Vec<u8>]) {
    let table = recreate(batch, family, NOTRACK_TABLE);
    batch.add_set(&table, SET, keys);
    // Both addresses, which are adjacent, as the ports are.
    let (at, length) = if family == Family::V4 { (12, 8) } else { (8, 32) };
    let after = WORDS + length / 4;
    let rule = Expressions::default()
        // NFTA_PAYLOAD_DREG, _BASE (NFT_PAYLOAD_NETWORK_HEADER, _TRANSPORT_HEADER), _OFFSET, _LEN
        .with("payload", &[(1, number(WORDS)), (2, number(1)), (3, number(at)), (4, number(length))])
        .with("payload", &[(1, number(after)), (2, number(2)), (3, number(0)), (4, number(4))])
        // NFTA_META_DREG, _KEY (NFT_META_L4PROTO)
        .with("meta", &[(1, number(after + 1)), (2, number(16))])
        // NFTA_LOOKUP_SET, _SREG
        .with("lookup", &[(1, c_string(SET)), (2, number(WORDS))])
        .with("notrack", &[]);
    for (name, hook) in [("in", PRE_ROUTING), ("out", LOCAL_OUT)] {
        batch.add_base_chain(&table, name, BaseChain { hook, priority: BEFORE_CONNTRACK, kind: "filter" }, &rule);
    }
}

/// Encodes a tuple as the rule above concatenates the fields of a packet.
fn key(tuple: &Tuple, proto: u8) -> Vec<u8> {
    [
        octets(&tuple.src),
        octets(&tuple.dst),
        tuple.src_port.to_be_bytes().as_slice(),
        tuple.dst_port.to_be_bytes().as_slice(),
        &[proto, 0, 0, 0],
    ]
    .concat()
}

/// Deletes and creates the table in one batch, whether it exists or not.
fn recreate(batch: &mut Batch, family: Family, name: &str) -> NftTable {
    let table = NftTable { family: family.into(), name: name.to_owned() };
    batch.add_table(&table);
    batch.delete_table(&table);
    batch.add_table(&table);
    table
}

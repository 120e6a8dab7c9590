//! Tables of our own, in which netfilter is told how a node changes hands. Neither stays.
//!
//! The kernel translates packets of a connection as its first one was, without any rule: as long as conntrack and NAT are at work
//! in the network namespace. Both are there for those who need them only: conntrack for a rule that looks at it, NAT for a
//! chain of that type (net/netfilter/nf_conntrack_proto.c `nf_ct_netns_put`, nf_nat_core.c `nf_nat_unregister_fn`). So one
//! table keeps one of each until no connection of kube-proxy's is left. The other one keeps conntrack away from some packets
//! for a moment.

use std::io;

use lb_common::Tuple;

use super::{
    Table,
    conntrack::octets,
    nftables::{Batch, Entrance, Expressions, Nftables, named, number},
};
use lb_common::Family;

/// The table that keeps NAT at work.
pub const KEEPER: &str = "beeline-handover";
/// The table that keeps conntrack away from packets.
pub const UNTRACKER: &str = "beeline-cleanup";

const SET: &str = "flows";

// NF_INET_, NF_IP_PRI_, NFT_REG_1, NFT_REG32_00
const PRE_ROUTING: u32 = 0;
const LOCAL_OUT: u32 = 3;
const BEFORE_CONNTRACK: i32 = -300;
const NAT_DST: i32 = -100;
const FIRST: u32 = 1;
const WORDS: u32 = 8;

/// Whether the table that keeps NAT at work is there.
///
/// # Errors
/// What the kernel says.
pub fn is_kept() -> io::Result<bool> {
    let Some(mut nftables) = Nftables::open()? else { return Ok(false) };
    Ok(!named_so(&mut nftables, KEEPER)?.is_empty())
}

/// Takes the table of this name away; whether it was there.
///
/// # Errors
/// What the kernel says.
pub fn release(name: &str) -> io::Result<bool> {
    let Some(mut nftables) = Nftables::open()? else { return Ok(false) };
    let mut batch = Batch::default();
    for table in named_so(&mut nftables, name)? {
        batch.delete_table(&table);
    }
    nftables.perform(&batch)?;
    Ok(batch.len() != 0)
}

/// Keeps conntrack away from packets that look like these, with an IP protocol number each, in whichever direction they go.
///
/// # Errors
/// What the kernel says.
pub fn untrack(packets: &[(Tuple, u8)]) -> io::Result<()> {
    let Some(mut nftables) = Nftables::open()? else { return Ok(()) };
    let mut batch = Batch::default();
    for family in [Family::V4, Family::V6] {
        let is_of = |tuple: &Tuple| tuple.dst.is_v4() == (family == Family::V4);
        let both = |(tuple, proto): &(Tuple, u8)| [key(tuple, *proto), key(&tuple.reversed(), *proto)];
        let mut keys: Vec<_> = packets.iter().filter(|(tuple, _)| is_of(tuple)).flat_map(both).collect();
        keys.sort_unstable();
        keys.dedup();
        if !keys.is_empty() {
            add_untracker(&mut batch, family, &keys);
        }
    }
    nftables.perform(&batch)
}

fn named_so(nftables: &mut Nftables, name: &str) -> io::Result<Vec<Table>> {
    let mut tables = nftables.tables(Family::V4)?;
    tables.extend(nftables.tables(Family::V6)?);
    tables.retain(|table| table.name == name);
    Ok(tables)
}

/// A chain of type `nat`, with a rule that looks at the state of a connection and does nothing.
pub fn add_keeper(batch: &mut Batch, family: Family) {
    let table = anew(batch, family, KEEPER);
    let entrance = Entrance { hook: PRE_ROUTING, priority: NAT_DST, kind: "nat" };
    // NFTA_CT_DREG, _KEY (NFT_CT_STATE)
    let rule = Expressions::default().then("ct", &[(1, number(FIRST)), (2, number(0))]);
    batch.add_chain(&table, "keep", entrance, &rule);
}

fn add_untracker(batch: &mut Batch, family: Family, keys: &[Vec<u8>]) {
    let table = anew(batch, family, UNTRACKER);
    batch.add_set(&table, SET, keys);
    // Both addresses, which follow each other, as the ports do.
    let (at, length) = if family == Family::V4 { (12, 8) } else { (8, 32) };
    let after = WORDS + length / 4;
    let rule = Expressions::default()
        // NFTA_PAYLOAD_DREG, _BASE (NFT_PAYLOAD_NETWORK_HEADER, _TRANSPORT_HEADER), _OFFSET, _LEN
        .then("payload", &[(1, number(WORDS)), (2, number(1)), (3, number(at)), (4, number(length))])
        .then("payload", &[(1, number(after)), (2, number(2)), (3, number(0)), (4, number(4))])
        // NFTA_META_DREG, _KEY (NFT_META_L4PROTO)
        .then("meta", &[(1, number(after + 1)), (2, number(16))])
        // NFTA_LOOKUP_SET, _SREG
        .then("lookup", &[(1, named(SET)), (2, number(WORDS))])
        .then("notrack", &[]);
    for (name, hook) in [("in", PRE_ROUTING), ("out", LOCAL_OUT)] {
        batch.add_chain(&table, name, Entrance { hook, priority: BEFORE_CONNTRACK, kind: "filter" }, &rule);
    }
}

/// Its packets as the rule above puts them together.
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

/// Made anew, so that it is there once whatever was before.
fn anew(batch: &mut Batch, family: Family, name: &str) -> Table {
    let table = Table { family, name: name.to_owned() };
    batch.add_table(&table);
    batch.delete_table(&table);
    batch.add_table(&table);
    table
}

//! nf_tables of the network namespace of the opening thread: lists of tables, chains, rules and elements of maps, and
//! batches of changes (include/uapi/linux/netfilter/nf_tables.h).

use std::{io, ops::RangeInclusive};

use super::{
    Chain, NftTable, TableFamily,
    base_chain::ChainHook,
    expressions::{parse_element, parse_port, parse_rule},
    rule::{Rule, RuleAction},
};
use crate::netlink::{
    NetlinkSocket,
    codec::{attributes, be32, find, put_attribute, put_nested, text},
};

/// NFNL_SUBSYS_NFTABLES, as the high octet of a type.
const SUBSYSTEM: u16 = 10 << 8;
/// Length of the header before the attributes (`struct nfgenmsg`).
const NFGENMSG: usize = 4;

// NFT_MSG_
const NEWTABLE: u16 = SUBSYSTEM;
const GETTABLE: u16 = SUBSYSTEM | 1;
const DELTABLE: u16 = SUBSYSTEM | 2;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const GETCHAIN: u16 = SUBSYSTEM | 4;
const DELCHAIN: u16 = SUBSYSTEM | 5;
const NEWRULE: u16 = SUBSYSTEM | 6;
const GETRULE: u16 = SUBSYSTEM | 7;
const DELRULE: u16 = SUBSYSTEM | 8;
const NEWSET: u16 = SUBSYSTEM | 9;
const NEWSETELEM: u16 = SUBSYSTEM | 12;
const GETSETELEM: u16 = SUBSYSTEM | 13;
/// NFNL_MSG_BATCH_BEGIN, _END
const BATCH: [u16; 2] = [0x10, 0x11];

/// Number of keys of a set in one message: an attribute has at most 64 KiB.
const KEYS_PER_MESSAGE: usize = 500;

/// Hook, priority and type of a base chain.
#[derive(Clone, Copy)]
pub(super) struct BaseChain {
    /// NF_INET_
    pub(super) hook: u32,
    /// NF_IP_PRI_
    pub(super) priority: i32,
    /// `filter`, `nat` or `route`.
    pub(super) kind: &'static str,
}

/// A chain in a list.
pub struct ListedChain {
    /// Table and name.
    pub chain: Chain,
    /// Hook, for a base chain: a hook of the kernel passes packets to it.
    pub hook: Option<ChainHook>,
}

/// A rule in a list.
pub struct ListedRule {
    /// Name of its chain.
    pub chain: String,
    /// The kernel's handle of the rule, in network order.
    pub handle: Vec<u8>,
    /// Matches and actions.
    pub rule: Rule,
}

/// A netlink socket of nf_tables.
pub struct Nftables(NetlinkSocket);

impl Nftables {
    /// Opens the socket; None if the kernel has no nfnetlink.
    ///
    /// # Errors
    /// The kernel's errno of socket(2).
    pub fn open() -> io::Result<Option<Self>> {
        Ok(NetlinkSocket::netfilter()?.map(Self))
    }

    /// Lists the tables of a family.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn tables(&mut self, family: TableFamily) -> io::Result<Vec<NftTable>> {
        self.list(GETTABLE, &nfgenmsg(family), |body| Some(NftTable { family, name: text(find(body, 1)?) }))
    }

    /// Lists the chains of all tables of a family.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn chains(&mut self, family: TableFamily) -> io::Result<Vec<ListedChain>> {
        // NFTA_CHAIN_TABLE, _NAME, _HOOK, _POLICY (NF_DROP 0); NFTA_HOOK_HOOKNUM, _PRIORITY
        self.list(GETCHAIN, &nfgenmsg(family), |body| {
            let table = NftTable { family, name: text(find(body, 1)?) };
            let hook = |nest: &[u8]| {
                let number = |kind| find(nest, kind).and_then(|value| be32(value, 0));
                let drops = find(body, 5).and_then(|policy| be32(policy, 0)) == Some(0);
                Some(ChainHook { number: number(1)?, priority: number(2)?.cast_signed(), drops })
            };
            let chain = Chain { table, name: text(find(body, 3)?) };
            Some(ListedChain { chain, hook: find(body, 4).and_then(hook) })
        })
    }

    /// Lists the rules of a table, in order within each chain.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn rules(&mut self, table: &NftTable) -> io::Result<Vec<ListedRule>> {
        let mut body = nfgenmsg(table.family);
        put_attribute(&mut body, 1, &c_string(&table.name));
        // NFTA_RULE_TABLE, _CHAIN, _HANDLE, _EXPRESSIONS
        let rules = self.list(GETRULE, &body, |body| {
            let rule = parse_rule(table.family, find(body, 4).unwrap_or_default());
            let is_here = text(find(body, 1)?) == table.name;
            is_here.then_some(ListedRule { chain: text(find(body, 2)?), handle: find(body, 3)?.to_vec(), rule })
        })?;
        Ok(rules)
    }

    /// Lists the elements of a verdict map: key and action. None if the map does not exist.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn elements(&mut self, table: &NftTable, map: &str) -> io::Result<Vec<(Vec<u8>, RuleAction)>> {
        self.set_elements(table, map, parse_element)
    }

    fn set_elements<T>(
        &mut self,
        table: &NftTable,
        set: &str,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut body = nfgenmsg(table.family);
        // NFTA_SET_ELEM_LIST_TABLE, _SET, _ELEMENTS
        put_attribute(&mut body, 1, &c_string(&table.name));
        put_attribute(&mut body, 2, &c_string(set));
        let lists = self.list(GETSETELEM, &body, |body| {
            let list = find(body, 3)?;
            Some(attributes(list).filter_map(|(_, nest)| parse(nest)).collect::<Vec<_>>())
        })?;
        Ok(lists.into_iter().flatten().collect())
    }

    /// Lists the ranges of a set of ports.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn ports(&mut self, table: &NftTable, set: &str) -> io::Result<Vec<RangeInclusive<u16>>> {
        Ok(port_ranges(self.set_elements(table, set, parse_port)?))
    }

    /// Commits a batch: all of its commands, or none.
    ///
    /// # Errors
    /// The kernel's errno of the first refused command.
    pub fn commit(&mut self, batch: &Batch) -> io::Result<()> {
        if batch.0.is_empty() {
            return Ok(());
        }
        // The resource of a batch is the subsystem.
        let mark = |kind| (kind, 0, vec![0, 0, 0, (SUBSYSTEM >> 8) as u8]);
        let [begin, end] = BATCH.map(mark);
        let messages: Vec<_> = [begin].into_iter().chain(batch.0.iter().cloned()).chain([end]).collect();
        self.0.batch(&messages)
    }

    fn list<T>(&mut self, kind: u16, body: &[u8], mut parse: impl FnMut(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        match self.0.dump(kind, body, |body| parse(body.get(NFGENMSG..)?)) {
            // EINVAL is nfnetlink's answer if the kernel has no nf_tables.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => Ok(Vec::new()),
            other => other,
        }
    }
}

/// Commands that are committed together: message type, `NLM_F_` flags, body.
#[derive(Default)]
pub struct Batch(Vec<(u16, i32, Vec<u8>)>);

impl Batch {
    /// Returns the number of commands.
    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// Creates a table, if it does not exist.
    pub(super) fn add_table(&mut self, table: &NftTable) {
        self.push(NEWTABLE, libc::NLM_F_CREATE, table, |_| {});
    }

    /// Deletes a table with all its content.
    pub fn delete_table(&mut self, table: &NftTable) {
        self.push(DELTABLE, 0, table, |_| {});
    }

    /// Creates a base chain with one rule.
    pub(super) fn add_base_chain(&mut self, table: &NftTable, name: &str, base: BaseChain, expressions: &Expressions) {
        self.push(NEWCHAIN, libc::NLM_F_CREATE, table, |body| {
            let mut hook = Vec::new();
            // NFTA_HOOK_HOOKNUM, _PRIORITY
            put_attribute(&mut hook, 1, &base.hook.to_be_bytes());
            put_attribute(&mut hook, 2, &base.priority.to_be_bytes());
            put_attribute(body, 3, &c_string(name));
            put_nested(body, 4, &hook);
            put_attribute(body, 7, &c_string(base.kind));
        });
        self.push(NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, table, |body| {
            put_attribute(body, 2, &c_string(name));
            put_nested(body, 4, &expressions.0);
        });
    }

    /// Creates a set of keys of one length.
    pub(super) fn add_set(&mut self, table: &NftTable, name: &str, keys: &[Vec<u8>]) {
        let length = keys.first().map_or(4, Vec::len);
        self.push(NEWSET, libc::NLM_F_CREATE, table, |body| {
            put_attribute(body, 2, &c_string(name));
            // NFTA_SET_KEY_TYPE, which only `nft` reads; _KEY_LEN, _ID
            put_attribute(body, 4, &0_u32.to_be_bytes());
            put_attribute(body, 5, &u32::try_from(length).expect("a key is short").to_be_bytes());
            put_attribute(body, 10, &1_u32.to_be_bytes());
        });
        for keys in keys.chunks(KEYS_PER_MESSAGE) {
            self.push(NEWSETELEM, libc::NLM_F_CREATE, table, |body| {
                let mut elements = Vec::new();
                for octets in keys {
                    let (mut key, mut element) = (Vec::new(), Vec::new());
                    // NFTA_DATA_VALUE, NFTA_SET_ELEM_KEY
                    put_attribute(&mut key, 1, octets);
                    put_nested(&mut element, 1, &key);
                    put_nested(&mut elements, 1, &element);
                }
                put_attribute(body, 2, &c_string(name));
                put_nested(body, 3, &elements);
            });
        }
    }

    /// Deletes one rule.
    pub fn delete_rule(&mut self, table: &NftTable, rule: &ListedRule) {
        self.push(DELRULE, 0, table, |body| {
            put_attribute(body, 2, &c_string(&rule.chain));
            put_attribute(body, 3, &rule.handle);
        });
    }

    /// Deletes all rules of a chain.
    pub fn flush(&mut self, chain: &Chain) {
        self.push(DELRULE, 0, &chain.table, |body| put_attribute(body, 2, &c_string(&chain.name)));
    }

    /// Deletes a chain; no rule may jump to it any more.
    pub fn delete_chain(&mut self, chain: &Chain) {
        self.push(DELCHAIN, 0, &chain.table, |body| put_attribute(body, 3, &c_string(&chain.name)));
    }

    /// Every message names its table in the first attribute.
    fn push(&mut self, kind: u16, flags: i32, table: &NftTable, more: impl FnOnce(&mut Vec<u8>)) {
        let mut body = nfgenmsg(table.family);
        put_attribute(&mut body, 1, &c_string(&table.name));
        more(&mut body);
        self.0.push((kind, flags, body));
    }
}

/// Encoded expressions of a rule, in order.
#[derive(Default)]
pub(super) struct Expressions(pub(super) Vec<u8>);

impl Expressions {
    /// Appends an expression: its name, and its attributes, which are numbers or names.
    pub(super) fn with(mut self, name: &str, attributes: &[(u16, Vec<u8>)]) -> Self {
        let (mut data, mut expression) = (Vec::new(), Vec::new());
        for (kind, value) in attributes {
            put_attribute(&mut data, *kind, value);
        }
        put_attribute(&mut expression, 1, &c_string(name));
        put_nested(&mut expression, 2, &data);
        put_nested(&mut self.0, 1, &expression);
        self
    }
}

/// Encodes a number for an attribute of an expression.
pub(super) fn number(value: u32) -> Vec<u8> {
    value.to_be_bytes().to_vec()
}

/// Encodes a value for an attribute of an expression (NFTA_DATA_VALUE).
pub(super) fn data(value: &[u8]) -> Vec<u8> {
    let mut nest = Vec::new();
    put_attribute(&mut nest, 1, value);
    nest
}

/// Encodes a `struct nfgenmsg`: the family, version 0, no resource.
fn nfgenmsg(family: TableFamily) -> Vec<u8> {
    vec![family.number(), 0, 0, 0]
}

/// Joins the elements of a set of ports to ranges: a set with intervals has the first port of each interval, and the
/// first port behind it.
fn port_ranges(mut elements: Vec<(u16, bool)>) -> Vec<RangeInclusive<u16>> {
    elements.sort_unstable();
    let has_intervals = elements.iter().any(|(_, is_end)| *is_end);
    let mut ranges = Vec::new();
    for (nth, (port, is_end)) in elements.iter().enumerate() {
        let next = elements.get(nth + 1).map_or(u16::MAX, |(next, _)| next.saturating_sub(1));
        if !is_end {
            ranges.push(*port..=if has_intervals { next } else { *port });
        }
    }
    ranges
}

/// Encodes a string with its terminating zero.
pub(super) fn c_string(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_ports_have_single_ports_or_intervals() {
        assert_eq!(port_ranges(vec![(443, false), (80, false)]), [80..=80, 443..=443]);
        let intervals = vec![(0, true), (80, false), (81, true), (30000, false), (32768, true), (65000, false)];
        assert_eq!(port_ranges(intervals), [80..=80, 30000..=32767, 65000..=65535]);
        assert_eq!(port_ranges(Vec::new()), []);
    }
}

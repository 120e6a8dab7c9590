//! What is asked of nf_tables, and ordered: lists of tables, chains, rules and elements of maps, and batches
//! (include/uapi/linux/netfilter/nf_tables.h). It belongs to the network namespace of the thread that opened it.

use std::io;

use super::{
    Chain, Table,
    rule::{Goes, Rule, element, find},
};
use crate::netlink::{
    Channel,
    wire::{attribute, attributes, nest, text},
};
use lb_common::Family;

/// NFNL_SUBSYS_NFTABLES, as the high octet of a type.
const SUBSYSTEM: u16 = 10 << 8;
/// Length of what stands before the attributes (`struct nfgenmsg`).
const GENERIC: usize = 4;

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

/// Keys of a set that one message carries: an attribute has at most 64 KiB.
const KEYS: usize = 500;

/// A place in the kernel where a chain gets packets.
#[derive(Clone, Copy)]
pub struct Entrance {
    /// NF_INET_
    pub hook: u32,
    /// NF_IP_PRI_
    pub priority: i32,
    /// `filter`, `nat` or `route`.
    pub kind: &'static str,
}

/// A chain as it is listed.
pub struct Listed {
    /// Its table and name.
    pub chain: Chain,
    /// Whether packets come to it by themselves.
    pub is_base: bool,
}

/// A rule as it is listed.
pub struct Placed {
    /// Name of its chain.
    pub chain: String,
    /// By which the kernel knows it; network order, as it came.
    pub handle: Vec<u8>,
    /// Its matches and verdict.
    pub rule: Rule,
}

/// A conversation.
pub struct Nftables(Channel);

impl Nftables {
    /// None where the kernel has no netfilter of this kind.
    pub fn open() -> io::Result<Option<Self>> {
        Ok(Channel::netfilter()?.map(Self))
    }

    /// Lists the tables of a family.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn tables(&mut self, family: Family) -> io::Result<Vec<Table>> {
        self.list(GETTABLE, &generic(family), |body| Some(Table { family, name: text(find(body, 1)?) }))
    }

    /// Lists the chains of all tables of a family.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn chains(&mut self, family: Family) -> io::Result<Vec<Listed>> {
        // NFTA_CHAIN_TABLE, _NAME, _HOOK
        self.list(GETCHAIN, &generic(family), |body| {
            let table = Table { family, name: text(find(body, 1)?) };
            Some(Listed { chain: Chain { table, name: text(find(body, 3)?) }, is_base: find(body, 4).is_some() })
        })
    }

    /// The rules of a table, in order within each chain.
    pub fn rules(&mut self, table: &Table) -> io::Result<Vec<Placed>> {
        let mut body = generic(table.family);
        attribute(&mut body, 1, &named(&table.name));
        // NFTA_RULE_TABLE, _CHAIN, _HANDLE, _EXPRESSIONS
        let rules = self.list(GETRULE, &body, |body| {
            let rule = Rule::of_expressions(table.family, find(body, 4).unwrap_or_default());
            let is_here = text(find(body, 1)?) == table.name;
            is_here.then_some(Placed { chain: text(find(body, 2)?), handle: find(body, 3)?.to_vec(), rule })
        })?;
        Ok(rules)
    }

    /// The elements of a verdict map; nothing when it is not there.
    pub fn elements(&mut self, table: &Table, map: &str) -> io::Result<Vec<(Vec<u8>, Goes)>> {
        let mut body = generic(table.family);
        // NFTA_SET_ELEM_LIST_TABLE, _SET, _ELEMENTS
        attribute(&mut body, 1, &named(&table.name));
        attribute(&mut body, 2, &named(map));
        let lists = self.list(GETSETELEM, &body, |body| {
            let list = find(body, 3)?;
            Some(attributes(list).filter_map(|(_, nest)| element(nest)).collect::<Vec<_>>())
        })?;
        Ok(lists.concat())
    }

    /// Does all of it at once, or nothing.
    pub fn perform(&mut self, batch: &Batch) -> io::Result<()> {
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
        match self.0.list(kind, body, |body| parse(body.get(GENERIC..)?)) {
            // nfnetlink says the former where the kernel has no nf_tables.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => Ok(Vec::new()),
            other => other,
        }
    }
}

/// Orders that are carried out together.
#[derive(Default)]
pub struct Batch(Vec<(u16, i32, Vec<u8>)>);

impl Batch {
    /// How many orders it has.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Makes a table, if it is not there.
    pub fn add_table(&mut self, table: &Table) {
        self.push(NEWTABLE, libc::NLM_F_CREATE, table, |_| {});
    }

    /// Deletes a table with all that is in it.
    pub fn delete_table(&mut self, table: &Table) {
        self.push(DELTABLE, 0, table, |_| {});
    }

    /// Makes a chain, to which packets come by themselves, of one rule.
    pub fn add_chain(&mut self, table: &Table, name: &str, entrance: Entrance, expressions: &Expressions) {
        self.push(NEWCHAIN, libc::NLM_F_CREATE, table, |body| {
            let mut hook = Vec::new();
            // NFTA_HOOK_HOOKNUM, _PRIORITY
            attribute(&mut hook, 1, &entrance.hook.to_be_bytes());
            attribute(&mut hook, 2, &entrance.priority.to_be_bytes());
            attribute(body, 3, &named(name));
            nest(body, 4, &hook);
            attribute(body, 7, &named(entrance.kind));
        });
        self.push(NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, table, |body| {
            attribute(body, 2, &named(name));
            nest(body, 4, &expressions.0);
        });
    }

    /// Makes a set of keys, which have one length.
    pub fn add_set(&mut self, table: &Table, name: &str, keys: &[Vec<u8>]) {
        let length = keys.first().map_or(4, Vec::len);
        self.push(NEWSET, libc::NLM_F_CREATE, table, |body| {
            attribute(body, 2, &named(name));
            // NFTA_SET_KEY_TYPE, which only `nft` would read; _KEY_LEN, _ID
            attribute(body, 4, &0_u32.to_be_bytes());
            attribute(body, 5, &u32::try_from(length).expect("a key is short").to_be_bytes());
            attribute(body, 10, &1_u32.to_be_bytes());
        });
        for keys in keys.chunks(KEYS) {
            self.push(NEWSETELEM, libc::NLM_F_CREATE, table, |body| {
                let mut elements = Vec::new();
                for octets in keys {
                    let (mut key, mut element) = (Vec::new(), Vec::new());
                    // NFTA_DATA_VALUE, NFTA_SET_ELEM_KEY
                    attribute(&mut key, 1, octets);
                    nest(&mut element, 1, &key);
                    nest(&mut elements, 1, &element);
                }
                attribute(body, 2, &named(name));
                nest(body, 3, &elements);
            });
        }
    }

    /// Deletes one rule.
    pub fn delete_rule(&mut self, table: &Table, rule: &Placed) {
        self.push(DELRULE, 0, table, |body| {
            attribute(body, 2, &named(&rule.chain));
            attribute(body, 3, &rule.handle);
        });
    }

    /// Deletes all rules of a chain.
    pub fn flush(&mut self, chain: &Chain) {
        self.push(DELRULE, 0, &chain.table, |body| attribute(body, 2, &named(&chain.name)));
    }

    /// Deletes a chain, to which no rule leads any more.
    pub fn delete_chain(&mut self, chain: &Chain) {
        self.push(DELCHAIN, 0, &chain.table, |body| attribute(body, 3, &named(&chain.name)));
    }

    /// Every message names its table in the first attribute.
    fn push(&mut self, kind: u16, flags: i32, table: &Table, more: impl FnOnce(&mut Vec<u8>)) {
        let mut body = generic(table.family);
        attribute(&mut body, 1, &named(&table.name));
        more(&mut body);
        self.0.push((kind, flags, body));
    }
}

/// The expressions of a rule, which a packet goes through in order.
#[derive(Default)]
pub struct Expressions(pub Vec<u8>);

impl Expressions {
    /// One more: its name, and its attributes, which are numbers or names.
    pub fn then(mut self, name: &str, attributes: &[(u16, Vec<u8>)]) -> Self {
        let (mut data, mut expression) = (Vec::new(), Vec::new());
        for (kind, value) in attributes {
            attribute(&mut data, *kind, value);
        }
        attribute(&mut expression, 1, &named(name));
        nest(&mut expression, 2, &data);
        nest(&mut self.0, 1, &expression);
        self
    }
}

/// As an attribute of an expression.
pub fn number(value: u32) -> Vec<u8> {
    value.to_be_bytes().to_vec()
}

/// NFPROTO_IPV4, NFPROTO_IPV6; version 0, no resource.
fn generic(family: Family) -> Vec<u8> {
    vec![if family == Family::V4 { 2 } else { 10 }, 0, 0, 0]
}

/// As an attribute: a string, which a zero closes.
pub fn named(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

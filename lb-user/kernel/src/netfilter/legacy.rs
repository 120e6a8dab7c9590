//! Chains and rules of legacy iptables, by getsockopt(2) as `iptables-legacy` reads them
//! (include/uapi/linux/netfilter_ipv4/ip_tables.h). Only existing tables are read: reading another one would create it.
#![expect(unsafe_code, reason = "a socket option of variable length")]

use std::{
    fs, io, mem,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Result, bail};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::{
    Chain, NftTable,
    base_chain::{ChainHook, HookedChain},
    rule::{Rule, RuleAction, address},
    xt,
};
use crate::netlink::codec::{text, u16_at, u32_at};
use lb_common::Family;

/// IPT_SO_GET_INFO, IP6T_SO_GET_INFO
const GET_INFO: libc::c_int = 64;
/// IPT_SO_GET_ENTRIES, IP6T_SO_GET_ENTRIES
const GET_ENTRIES: libc::c_int = 65;

/// Length of a table's name (XT_TABLE_MAXNAMELEN).
const NAME: usize = 32;

/// Number of readings after which a table that changes during each of them is given up.
const READINGS: usize = 5;

/// Returns where a `struct ipt_entry` or `struct ip6t_entry` has the offsets of its target and of the next entry.
const fn offsets(family: Family) -> usize {
    match family {
        Family::V4 => 88,
        Family::V6 => 140,
    }
}

/// Lists the user-defined chains of all tables.
///
/// # Errors
/// The kernel's errno, or an error if a table changes during every reading.
pub fn chains(family: Family) -> Result<Vec<Chain>> {
    let mut chains = Vec::new();
    for table in tables(family) {
        let entries = Entries::read(family, &table)?;
        let table = NftTable { family: family.into(), name: table };
        chains.extend(user_chains(&entries.bytes, offsets(family)).map(|name| Chain { table: table.clone(), name }));
    }
    Ok(chains)
}

/// Lists the rules in the user-defined chains of a table, with the chain's name, in order; none if the table does not
/// exist.
///
/// # Errors
/// The kernel's errno, or an error if the table changes during every reading.
pub fn rules(family: Family, table: &str) -> Result<Vec<(String, Rule)>> {
    if !tables(family).iter().any(|name| name == table) {
        return Ok(Vec::new());
    }
    Ok(parse_rules(family, &Entries::read(family, table)?.bytes))
}

/// Lists the base chains of all tables.
///
/// # Errors
/// As for [`chains`].
pub(super) fn hooked(family: Family) -> Result<Vec<HookedChain>> {
    let mut hooked = Vec::new();
    for table in tables(family) {
        let entries = Entries::read(family, &table)?;
        let chains = parse_rules(family, &entries.bytes);
        for (number, name) in (0..).zip(HOOKS) {
            let Some((first, policy)) = entries.hooks.get(number as usize).copied().flatten() else { continue };
            let heads = heads(&entries.bytes, offsets(family));
            let own = entries.bytes.get(first..policy).unwrap_or_default();
            let chain_of = |at: usize| heads.iter().find(|(start, _)| *start == at).map(|(_, name)| name.clone());
            let mut rules = Vec::new();
            let mut at = 0;
            while let Some(entry) = entry(own.get(at..).unwrap_or_default(), offsets(family)) {
                at += entry.length;
                rules.push(rule(family, &entry, chain_of));
            }
            let last = entry(entries.bytes.get(policy..).unwrap_or_default(), offsets(family));
            let drops = last.is_some_and(|last| rule(family, &last, |_| None).actions == [RuleAction::Drop]);
            let hook = ChainHook { number, priority: priority(&table, number), drops };
            let table = NftTable { family: family.into(), name: table.clone() };
            let chain = Chain { table, name: name.to_owned() };
            hooked.push(HookedChain::new(chain, hook, rules, &chains));
        }
    }
    Ok(hooked)
}

/// Names of the base chains, by number of the hook.
const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// Returns the priority of a table's chain (NF_IP_PRI_).
fn priority(table: &str, hook: u32) -> i32 {
    match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", 1 | 4) => 100,
        ("nat", _) => -100,
        ("security", _) => 50,
        _ => 0,
    }
}

fn tables(family: Family) -> Vec<String> {
    let list = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    // Without the file the kernel has no legacy tables, or their module is not loaded.
    let names = fs::read_to_string(list).unwrap_or_default();
    names.lines().map(str::to_owned).collect()
}

fn parse_rules(family: Family, entries: &[u8]) -> Vec<(String, Rule)> {
    // A jump names a chain by the offset of its first rule.
    let heads = heads(entries, offsets(family));
    let chain_of = |at: usize| heads.iter().find(|(start, _)| *start == at).map(|(_, name)| name.clone());
    let mut rules = Vec::new();
    let (mut at, mut chain) = (0, None);
    while let Some(entry) = entry(entries.get(at..).unwrap_or_default(), offsets(family)) {
        at += entry.length;
        if let Some(name) = entry.head() {
            chain = (name != "ERROR").then_some(name);
        } else if let Some(chain) = &chain {
            rules.push((chain.clone(), rule(family, &entry, chain_of)));
        }
    }
    rules
}

/// Lists the user-defined chains: offset of the first rule, and name.
fn heads(entries: &[u8], offsets: usize) -> Vec<(usize, String)> {
    let (mut at, mut heads) = (0, Vec::new());
    while let Some(entry) = entry(entries.get(at..).unwrap_or_default(), offsets) {
        at += entry.length;
        heads.extend(entry.head().filter(|name| name != "ERROR").map(|name| (at, name)));
    }
    heads
}

/// A rule in its parts.
struct Entry<'a> {
    /// Matched addresses and protocol (`struct ipt_ip`).
    ip: &'a [u8],
    /// Further matches, one behind the other (`struct xt_entry_match`).
    matches: &'a [u8],
    /// Name in a `struct xt_entry_target`: its length, 29 octets of a name, a revision, then data.
    kind: String,
    revision: u8,
    target: &'a [u8],
    length: usize,
}

impl Entry<'_> {
    /// Returns the name of the chain that begins at this entry; `ERROR` at the end of the table.
    fn head(&self) -> Option<String> {
        (self.kind == "ERROR").then(|| text(self.target))
    }
}

fn entry(bytes: &[u8], offsets: usize) -> Option<Entry<'_>> {
    let number = |at| u16_at(bytes, at).map(usize::from);
    let (target, length) = (number(offsets)?, number(offsets + mem::size_of::<u16>())?);
    let (kind, data) = bytes.get(target..length)?.split_at_checked(32)?;
    // Behind the offsets: `comefrom`, and two counters, aligned.
    let rules = (offsets + 2 * mem::size_of::<u16>() + 4).next_multiple_of(8) + 16;
    Some(Entry {
        ip: bytes.get(..offsets)?,
        matches: bytes.get(rules..target).unwrap_or_default(),
        kind: text(kind.get(2..31)?),
        revision: *kind.get(31)?,
        target: data,
        length,
    })
}

fn rule(family: Family, entry: &Entry<'_>, chain_of: impl Fn(usize) -> Option<String>) -> Rule {
    // struct ipt_ip, struct ip6t_ip6: source, destination, and the masks of both.
    let (size, proto) = match family {
        Family::V4 => (4, 80),
        Family::V6 => (16, 128),
    };
    let field = |nth: usize| entry.ip.get(nth * size..(nth + 1) * size).unwrap_or_default();
    let is_one_address = field(3).iter().all(|octet| *octet == u8::MAX);
    // Behind the masks: the input device, in 16 octets.
    let input = entry.ip.get(4 * size..4 * size + 16).map(text);
    let mut rule = Rule {
        // The part of `struct ipt_ip` before its flags, which tell a goto.
        is_conditional: entry.ip.get(..=proto).unwrap_or_default().iter().any(|octet| *octet != 0),
        skips_new: input.as_deref() == Some("lo"),
        destination: address(field(1)).filter(|_| is_one_address),
        proto: u16_at(entry.ip, proto).and_then(|proto| u8::try_from(proto).ok()).filter(|proto| *proto != 0),
        ..Rule::default()
    };
    let mut matches = entry.matches;
    while let Some((head, _)) = matches.split_at_checked(32)
        && let Some(length) = u16_at(head, 0).map(usize::from).filter(|length| *length >= 32)
        && let Some(info) = matches.get(32..length)
    {
        xt::apply_match(&text(head.get(2..31).unwrap_or_default()), info, &mut rule);
        matches = matches.get(length..).unwrap_or_default();
    }
    rule.actions.extend(match entry.kind.as_str() {
        // The standard target: an offset in the table, or a negative verdict (-NF_DROP - 1, -NF_ACCEPT - 1).
        "" => match u32_at(entry.target, 0).map(u32::cast_signed) {
            Some(-1) => Some(RuleAction::Drop),
            Some(-2) => Some(RuleAction::Accept),
            Some(offset) => usize::try_from(offset).ok().and_then(chain_of).map(RuleAction::Jump),
            None => None,
        },
        kind => xt::parse_target(kind, entry.revision, entry.target),
    });
    rule
}

/// Entries of a table.
struct Entries {
    /// The entries, one behind the other.
    bytes: Vec<u8>,
    /// For each hook of the table the offsets of its first rule and of its policy.
    hooks: [Option<(usize, usize)>; 5],
}

impl Entries {
    fn read(family: Family, table: &str) -> Result<Self> {
        let (domain, level) = match family {
            Family::V4 => (AddressFamily::INET, libc::IPPROTO_IP),
            Family::V6 => (AddressFamily::INET6, libc::IPPROTO_IPV6),
        };
        let socket = socket_with(domain, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        for _ in 0..READINGS {
            // struct ipt_getinfo: the name, the mask of hooks, for each hook the first rule and the policy, the number
            // of entries, and their size in octets.
            let mut info = request(table, NAME + 13 * 4);
            get_option(&socket, level, GET_INFO, &mut info)?;
            let number = |nth: usize| u32_at(&info, NAME + nth * 4).unwrap_or(0);
            let size = number(12);
            let hook = |nth: usize| {
                (number(0) & (1 << nth) != 0).then(|| (number(1 + nth) as usize, number(6 + nth) as usize))
            };
            let hooks = std::array::from_fn(hook);
            // struct ipt_get_entries: the name, the size of the entries, and the entries, aligned.
            let start = NAME + 8;
            let mut answer = request(table, start + size as usize);
            if let Some(place) = answer.get_mut(NAME..NAME + 4) {
                place.copy_from_slice(&size.to_ne_bytes());
            }
            match get_option(&socket, level, GET_ENTRIES, &mut answer) {
                Ok(()) => return Ok(Self { bytes: answer.split_off(start), hooks }),
                // The size has changed meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        bail!("the table {table} changed during each of {READINGS} readings")
    }
}

fn request(table: &str, length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = table.bytes().take(NAME - 1).collect();
    bytes.resize(length, 0);
    bytes
}

fn get_option(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, bytes: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes at most `length` octets of `bytes`.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, bytes.as_mut_ptr().cast(), &raw mut length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lists the names of user-defined chains: each begins with an entry whose target is `ERROR` and has the name. So does
/// the end of the table, whose name is `ERROR`.
fn user_chains(entries: &[u8], offsets: usize) -> impl Iterator<Item = String> {
    heads(entries, offsets).into_iter().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes an entry without matches, with a target and its data.
    fn entry(family: Family, target: &str, data: &[u8]) -> Vec<u8> {
        let head = match family {
            Family::V4 => 112,
            Family::V6 => 168,
        };
        let mut bytes = vec![0; head];
        let length = u16::try_from(head + 32 + data.len()).expect("small");
        let numbers = [u16::try_from(head).expect("small").to_ne_bytes(), length.to_ne_bytes()].concat();
        bytes.get_mut(offsets(family)..offsets(family) + 4).expect("longer").copy_from_slice(&numbers);
        let mut name = target.as_bytes().to_vec();
        name.resize(30, 0);
        bytes.extend(u16::to_ne_bytes(u16::try_from(32 + data.len()).expect("small")));
        bytes.extend(name);
        bytes.extend(data);
        bytes
    }

    fn head(family: Family, name: &str) -> Vec<u8> {
        let mut name = name.as_bytes().to_vec();
        name.resize(32, 0);
        entry(family, "ERROR", &name)
    }

    #[test]
    fn user_defined_chains_are_found_among_the_rules() {
        for family in [Family::V4, Family::V6] {
            let rule = || entry(family, "", &[0; 8]);
            let table = [
                rule(),
                head(family, "KUBE-SERVICES"),
                rule(),
                entry(family, "DNAT", b"ERROR\0\0\0"),
                head(family, "KUBE-MARK-MASQ"),
                head(family, "ERROR"),
            ]
            .concat();
            let found: Vec<_> = user_chains(&table, offsets(family)).collect();
            assert_eq!(found, ["KUBE-SERVICES", "KUBE-MARK-MASQ"], "{family:?}");
            let cut = table.get(..table.len() - 1).expect("shorter");
            assert_eq!(user_chains(cut, offsets(family)).count(), 2);
            assert_eq!(parse_rules(family, &table).len(), 2, "rules of user-defined chains");
            assert_eq!(user_chains(&vec![0; 400], offsets(family)).count(), 0, "an empty entry ends the walk");
        }
    }
}

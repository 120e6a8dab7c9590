//! The lines of `beeline explain` on announcing: the node that announces a Service's address, and why that one.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use anyhow::{Context as _, Result};
use lb_agent::{Source, read_announcers};
use lb_core::{
    announce::{Candidates, Node, choose},
    model::explain::Fact,
};
use lb_dataplane::announced_addresses::{self, boot_time_ns};

/// Adds a line for each address of the Service, if this node or its cluster announces addresses.
pub(super) fn add(facts: &mut Vec<Fact>, pins: &Path, source: Source, addresses: &[(IpAddr, Candidates)]) {
    if addresses.is_empty() {
        return;
    }
    // Without rights for the Lease, or without maps, the rest is explained all the same.
    let members = members(source).unwrap_or_default();
    let (state, now) = (announced_addresses::read(pins).unwrap_or_default(), boot_time_ns());
    let is_here = |addr: &IpAddr| state.since(addr, now).is_some();
    if members.is_none() && !state.addresses.keys().any(is_here) {
        return;
    }
    for (addr, candidates) in addresses {
        let text = line(*addr, candidates, is_here(addr), members.as_ref());
        facts.push(Fact { about: "announce", text });
    }
}

/// Returns the group of announcers.
fn members(source: Source) -> Result<Option<BTreeSet<Node>>> {
    let Source::Kubernetes(options) = source else { return Ok(None) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    Ok(runtime.block_on(read_announcers(options))?.map(|membership| membership.newest().clone()))
}

fn line(addr: IpAddr, candidates: &Candidates, is_here: bool, members: Option<&BTreeSet<Node>>) -> String {
    let here = if is_here { "by this node" } else { "not by this node" };
    let Some(members) = members else { return format!("{addr}: {here}") };
    let may: Vec<&Node> = members.iter().filter(|node| candidates.contains(node)).collect();
    let names = may.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let of = match candidates {
        Candidates::All => format!("the announcers {names}"),
        Candidates::Of(_) => format!("the announcers with a ready endpoint, {names}"),
    };
    match (choose(addr, may.iter().map(|node| (*node, false))), may.len()) {
        (None, _) => format!("{addr}: {here}; no announcer of {} has a ready endpoint", members.len()),
        (Some(only), 1) => format!("{addr}: {here}; {only} is the only one of {of}"),
        (Some(chosen), _) => {
            format!(
                "{addr}: {here}; of {of}, {chosen} has the highest hash of address and name, and goes first, unless it \
                     is drained, was late, or has no link in the network of the address"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_chosen_node_and_the_reason() {
        let addr = IpAddr::from([192, 0, 2, 7]);
        let nodes = |names: &[&str]| names.iter().map(|name| Node::from(*name)).collect::<BTreeSet<_>>();
        let check = |candidates: Candidates, is_here: bool, members: Option<&[&str]>, expected: &str| {
            let members = members.map(nodes);
            assert_eq!(line(addr, &candidates, is_here, members.as_ref()), expected);
        };
        check(Candidates::All, true, None, "192.0.2.7: by this node");
        check(Candidates::All, true, Some(&["a"]), "192.0.2.7: by this node; a is the only one of the announcers a");
        let chosen = choose(addr, nodes(&["a", "b"]).iter().map(|node| (node, false))).expect("a node").to_string();
        check(
            Candidates::All,
            false,
            Some(&["a", "b"]),
            &format!(
                "192.0.2.7: not by this node; of the announcers a, b, {chosen} has the highest hash of address and \
                 name, and goes first, unless it is drained, was late, or has no link in the network of the address"
            ),
        );
        check(
            Candidates::Of(nodes(&["b", "c"])),
            false,
            Some(&["a", "b"]),
            "192.0.2.7: not by this node; b is the only one of the announcers with a ready endpoint, b",
        );
        check(
            Candidates::Of(nodes(&["c"])),
            false,
            Some(&["a", "b"]),
            "192.0.2.7: not by this node; no announcer of 2 has a ready endpoint",
        );
    }
}

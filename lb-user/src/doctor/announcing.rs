//! Announced addresses on the links of an announcer: other hosts that answer for one, devices that cannot answer, and
//! programs of other projects that announce.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::Path,
};

use anyhow::{Context as _, Result};
use lb_common::{Kind, LinkAddr};

use super::{
    Finding,
    link_probe::{self, Answers, AskingLink},
    process,
};
use lb_core::{store::Dump, text::number};
use lb_dataplane::announced_addresses::{self, AnnouncedState, boot_time_ns};
use lb_kernel::{
    netfilter::{base_chain::HookedChain, hooked, rule::RuleAction},
    netlink::{NetlinkSocket, network_state},
};

const CHECK: &str = "announcing";

/// Addresses that are asked for, and named in one finding.
const MAX_ASKED: usize = 256;
const MAX_NAMED: usize = 5;

/// Age of claims that count, in ns.
const RECENT: u64 = 600_000_000_000;

const SECOND: u64 = 1_000_000_000;

/// State of the links, and of announcements on them.
#[derive(Default)]
pub(super) struct AnnounceFacts {
    state: AnnouncedState,
    /// Now, by the clock of the state.
    now: u64,
    /// Load balancer addresses of Services.
    addresses: BTreeSet<IpAddr>,
    /// Devices that answer: names, and true with a carrier.
    devices: BTreeMap<u32, (String, bool)>,
    /// Link addresses of this node.
    own: BTreeSet<LinkAddr>,
    answers: Answers,
    /// The error, if the links could not be asked.
    unasked: Option<String>,
    /// Chains that may drop frames that leave a device.
    egress: Vec<String>,
    /// Other programs that announce: name, and pid.
    others: Vec<(&'static str, u32)>,
}

impl AnnounceFacts {
    /// True if this node answers for the address.
    fn holds(&self, address: &IpAddr) -> bool {
        self.state.since(address, self.now).is_some()
    }

    /// Hosts that answer for the address; this node answers to others only.
    fn answerers(&self, address: &IpAddr) -> Vec<(LinkAddr, u32)> {
        let hosts = self.answers.get(address).into_iter().flatten();
        hosts.copied().filter(|(link, _)| !self.own.contains(link)).collect()
    }

    /// True if several hosts answer for the address.
    fn is_contested(&self, address: &IpAddr) -> bool {
        let links: BTreeSet<LinkAddr> = self.answerers(address).into_iter().map(|(link, _)| link).collect();
        links.len() + usize::from(self.holds(address)) > 1
    }

    fn device(&self, index: u32) -> String {
        self.devices.get(&index).map_or_else(|| format!("#{index}"), |(name, _)| name.clone())
    }
}

/// Reads the maps pinned in `directory`, and asks on the links. `None` if the node never announced an address.
pub(super) fn read(directory: &Path, dump: &Dump) -> Result<Option<AnnounceFacts>> {
    let state = announced_addresses::read(directory)?;
    if state.deadline == 0 {
        return Ok(None);
    }
    let mut channel = NetlinkSocket::open().context("opening a netlink socket")?;
    let links = network_state::links(&mut channel).context("reading links")?;
    let is_balancer = |kind: u8| kind == Kind::LoadBalancer as u8;
    let served = dump.frontends.iter().chain(&dump.port_ranges).filter(|(_, frontend)| is_balancer(frontend.kind));
    let addresses: BTreeSet<IpAddr> =
        served.map(|(key, _)| key.addr.to_ip()).chain(state.addresses.keys().copied()).collect();
    let devices = state.links.keys().filter_map(|index| {
        let link = links.get(index)?;
        Some((*index, (link.name.clone(), link.has_carrier())))
    });
    let mut facts = AnnounceFacts {
        now: boot_time_ns(),
        addresses: addresses.into_iter().take(MAX_ASKED).collect(),
        devices: devices.collect(),
        own: links.values().filter_map(|link| link.address).map(LinkAddr::new).collect(),
        // Kernels before 5.16 have no such chains.
        egress: hooked::read_egress().unwrap_or_default().iter().filter(|chain| drops(chain)).map(name_of).collect(),
        others: others(Path::new("/proc")),
        state,
        ..AnnounceFacts::default()
    };
    let local = network_state::link_local(&mut channel).context("reading addresses")?;
    let with_carrier: BTreeMap<u32, AskingLink> = facts
        .state
        .links
        .iter()
        .filter(|(index, _)| facts.devices.get(index).is_some_and(|device| device.1))
        .map(|(index, own)| (*index, AskingLink { own: *own, local: local.get(index).copied() }))
        .collect();
    match link_probe::ask(&facts.addresses, &with_carrier) {
        Ok(answers) => facts.answers = answers,
        Err(error) => facts.unasked = Some(error.to_string()),
    }
    let contested: BTreeSet<IpAddr> =
        facts.addresses.iter().copied().filter(|address| facts.is_contested(address)).collect();
    if !contested.is_empty() {
        // An address that moved meanwhile had two answerers, one after the other.
        facts.state = announced_addresses::read(directory)?;
        facts.now = boot_time_ns();
        let again = link_probe::ask(&contested, &with_carrier).context("asking on the links")?;
        for address in contested {
            facts.answers.insert(address, again.get(&address).cloned().unwrap_or_default());
        }
    }
    Ok(Some(facts))
}

/// True if a chain may drop frames.
fn drops(chain: &HookedChain) -> bool {
    let may_drop = |action: &RuleAction| matches!(action, RuleAction::Drop);
    chain.hook.drops || chain.rules.iter().any(|(_, rule)| rule.actions.iter().any(may_drop))
}

fn name_of(chain: &HookedChain) -> String {
    format!("{} of {}", chain.chain.name, chain.chain.table)
}

/// Finds other programs that announce addresses, by their names and a mark in their environments.
fn others(proc: &Path) -> Vec<(&'static str, u32)> {
    // MetalLB's speaker, kube-vip for Services, OpenELB's speaker, keepalived.
    let known = [
        ("speaker", "METALLB_", "MetalLB's speaker"),
        ("kube-vip", "svc_enable=true", "kube-vip"),
        ("openelb-speaker", "", "OpenELB's speaker"),
        ("keepalived", "", "keepalived"),
    ];
    let mut found = Vec::new();
    for (name, mark, text) in known {
        let is_marked = |pid: &u32| {
            let environment = fs::read(proc.join(pid.to_string()).join("environ")).unwrap_or_default();
            mark.is_empty() || environment.split(|octet| *octet == 0).any(|entry| entry.starts_with(mark.as_bytes()))
        };
        found.extend(process::named(proc, name).into_iter().find(is_marked).map(|pid| (text, pid)));
    }
    found
}

pub(super) fn evaluate(facts: &Result<Option<AnnounceFacts>>) -> Vec<Finding> {
    let facts = match facts {
        Ok(Some(facts)) => facts,
        Ok(None) => return Vec::new(),
        Err(error) => {
            let what = format!("announced addresses cannot be examined: {error:#}");
            return vec![Finding::note(CHECK, what, "see the findings of the check pins")];
        }
    };
    let mut findings = Vec::new();
    findings.extend(facts.addresses.iter().filter_map(|address| contest(facts, address)));
    findings.extend(claims(facts));
    findings.extend(silence(facts));
    if facts.state.deadline <= facts.now && !facts.state.addresses.is_empty() {
        let ago = (facts.now - facts.state.deadline) / SECOND;
        findings.push(Finding::warning(
            CHECK,
            format!("this node stopped to answer for its addresses {ago} s ago: its time was over, and not renewed"),
            "see the agent's log: it does not run, or does not reach the majority of the announcers",
        ));
    }
    let down: Vec<&str> =
        facts.devices.values().filter(|(_, has_carrier)| !has_carrier).map(|(name, _)| name.as_str()).collect();
    if down.len() == facts.devices.len() {
        let what = if down.is_empty() {
            "no device answers for announced addresses: none is an uplink with an Ethernet header".to_owned()
        } else {
            format!("no device that answers for announced addresses has a carrier: {}", down.join(", "))
        };
        findings.push(Finding::error(
            CHECK,
            what,
            "connect one, name uplinks with --devices, or take the label from the node",
        ));
    } else if !down.is_empty() {
        let what = format!("{} has no carrier: no client there hears this node", down.join(", "));
        findings.push(Finding::note(CHECK, what, "none if the device is not in use"));
    }
    for chain in &facts.egress {
        findings.push(Finding::warning(
            CHECK,
            format!(
                "the chain {chain} drops frames that leave a device: answers for announced addresses may be among them"
            ),
            "`nft list ruleset netdev`; accept `ether type arp` and ICMPv6 neighbour advertisements there",
        ));
    }
    if let Some(error) = &facts.unasked {
        let what = format!("the links cannot be asked who answers for announced addresses: {error}");
        findings.push(Finding::note(CHECK, what, "run `beeline doctor` with CAP_NET_RAW, as root on the node"));
    }
    for (name, pid) in &facts.others {
        findings.push(Finding::warning(
            CHECK,
            format!("{name} (pid {pid}) runs on this node: two programs may answer for one address"),
            "take the addresses of Beeline's pools from its configuration, or stop it",
        ));
    }
    if findings.is_empty() {
        let asked = facts.addresses.len();
        let what = format!("each load balancer address has one host on the links that answers: {asked} were asked for");
        findings.push(Finding::ok(CHECK, what));
    }
    findings
}

/// Reports an address for which several hosts answer.
fn contest(facts: &AnnounceFacts, address: &IpAddr) -> Option<Finding> {
    if !facts.is_contested(address) {
        return None;
    }
    let hosts = facts.answerers(address).into_iter();
    let hosts: Vec<String> = hosts.map(|(link, index)| format!("{link} at {}", facts.device(index))).collect();
    let hosts = hosts.join(" and ");
    let what = if facts.holds(address) {
        format!("another host answers for {address}, which this node announces: {hosts}")
    } else {
        format!("several hosts answer for {address}: {hosts}")
    };
    Some(Finding::error(
        CHECK,
        format!("{what}. Clients reach one or the other"),
        "find the host by its link address (the table of the switch, `ip neigh`); take the address from its interface, \
         or from the pool, or stop its MetalLB, kube-vip or keepalived",
    ))
}

/// Reports recent claims of announced addresses by hosts that do not answer now.
fn claims(facts: &AnnounceFacts) -> impl Iterator<Item = Finding> {
    let answers = |address: &IpAddr, link| facts.answerers(address).iter().any(|(other, _)| *other == link);
    facts.state.claims.iter().filter_map(move |(key, entry)| {
        let (address, age) = (key.addr.to_ip(), facts.now.saturating_sub(entry.last));
        let is_other = !facts.own.contains(&key.link) && !answers(&address, key.link);
        (is_other && age < RECENT && facts.holds(&address)).then(|| {
            let device = facts.device(entry.ifindex);
            Finding::warning(
                CHECK,
                format!(
                    "{} claimed {address}, which this node announces, at {device} {} s ago, and {} in all",
                    key.link,
                    age / SECOND,
                    number(usize::try_from(entry.count).unwrap_or(usize::MAX), "time")
                ),
                "find the host by its link address (the table of the switch, `ip neigh`), and take the address from it",
            )
        })
    })
}

/// Reports addresses for which no host answers.
fn silence(facts: &AnnounceFacts) -> Option<Finding> {
    let has_carrier = facts.unasked.is_none() && facts.devices.values().any(|(_, has_carrier)| *has_carrier);
    let is_silent = |address: &&IpAddr| has_carrier && !facts.holds(address) && facts.answerers(address).is_empty();
    let silent: Vec<String> = facts.addresses.iter().filter(is_silent).map(ToString::to_string).collect();
    let named = silent.get(..MAX_NAMED).unwrap_or(&silent).join(", ");
    let more = match silent.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!silent.is_empty()).then(|| {
        Finding::warning(
            CHECK,
            format!("no host on the links of this node answers for {named}{more}"),
            "`beeline explain` says which node should; if that node announces them (`beeline get addresses` there), a \
             switch or a hypervisor drops its answers: allow the addresses for its port (port security, allowed \
             address pairs), and neither isolate the port nor suppress ARP there",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_findings;
    use lb_common::{ConflictEntry, ConflictKey};

    const fn link(last: u8) -> LinkAddr {
        LinkAddr::new([2, 0, 0, 0, 0, last])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// An announcer at 100 s that holds 192.0.2.7 until then plus 1 s, beside 192.0.2.8, which another node holds.
    fn good() -> AnnounceFacts {
        AnnounceFacts {
            state: AnnouncedState {
                deadline: 101 * SECOND,
                addresses: BTreeMap::from([(ip("192.0.2.7"), 1)]),
                links: BTreeMap::from([(2, link(1))]),
                claims: Vec::new(),
            },
            now: 100 * SECOND,
            addresses: BTreeSet::from([ip("192.0.2.7"), ip("192.0.2.8")]),
            devices: BTreeMap::from([(2, ("eth0".to_owned(), true))]),
            own: BTreeSet::from([link(1), link(2)]),
            answers: BTreeMap::from([(ip("192.0.2.8"), BTreeSet::from([(link(8), 2)]))]),
            ..AnnounceFacts::default()
        }
    }

    fn check(change: impl FnOnce(&mut AnnounceFacts), expected: &[&str]) {
        let mut facts = good();
        change(&mut facts);
        assert_findings(&evaluate(&Ok(Some(facts))), expected);
    }

    #[test]
    fn nodes_that_never_announced_have_no_finding() {
        assert!(evaluate(&Ok(None)).is_empty());
        check(|_| {}, &["ok: each load balancer address has one host on the links that answers: 2 were"]);
    }

    #[test]
    fn a_second_answerer_is_an_error_with_its_link_address() {
        check(
            |facts| drop(facts.answers.insert(ip("192.0.2.7"), BTreeSet::from([(link(0x66), 2)]))),
            &["error: another host answers for 192.0.2.7, which this node announces: 02:00:00:00:00:66 at eth0"],
        );
        check(
            |facts| drop(facts.answers.insert(ip("192.0.2.8"), BTreeSet::from([(link(8), 2), (link(0x66), 2)]))),
            &["error: several hosts answer for 192.0.2.8: 02:00:00:00:00:08 at eth0 and 02:00:00:00:00:66 at eth0"],
        );
        // Another device of this node, and another node's answers at two devices.
        check(|facts| drop(facts.answers.insert(ip("192.0.2.7"), BTreeSet::from([(link(2), 2)]))), &["ok"]);
        check(
            |facts| drop(facts.answers.insert(ip("192.0.2.8"), BTreeSet::from([(link(8), 2), (link(8), 3)]))),
            &["ok"],
        );
    }

    #[test]
    fn claims_of_the_last_minutes_are_warnings() {
        let claim = |address, last: u64, octet| {
            let key = ConflictKey { addr: ip(address).into(), link: link(octet) };
            (key, ConflictEntry { last: last * SECOND, count: 3, ifindex: 2, _pad: 0 })
        };
        let warning =
            "warning: 02:00:00:00:00:66 claimed 192.0.2.7, which this node announces, at eth0 4 s ago, and 3 times";
        check(|facts| facts.state.claims.push(claim("192.0.2.7", 96, 0x66)), &[warning]);
        // Claims of this node itself, claims of an address that it does not hold, and old claims.
        check(|facts| facts.state.claims.push(claim("192.0.2.7", 96, 2)), &["ok"]);
        check(|facts| facts.state.claims.push(claim("192.0.2.8", 96, 0x66)), &["ok"]);
        check(
            |facts| {
                facts.now = 900 * SECOND;
                facts.state.deadline = u64::MAX;
                facts.state.claims.push(claim("192.0.2.7", 96, 0x66));
            },
            &["ok"],
        );
        // The other host answers, too: one finding.
        check(
            |facts| {
                facts.answers.insert(ip("192.0.2.7"), BTreeSet::from([(link(0x66), 2)]));
                facts.state.claims.push(claim("192.0.2.7", 96, 0x66));
            },
            &["error: another host answers"],
        );
    }

    #[test]
    fn addresses_without_an_answerer_are_a_warning() {
        check(|facts| facts.answers.clear(), &["warning: no host on the links of this node answers for 192.0.2.8"]);
        check(
            |facts| facts.addresses.extend((10..20).map(|last| ip(&format!("192.0.2.{last}")))),
            &["warning: no host on the links of this node answers for 192.0.2.10, 192.0.2.11, 192.0.2.12, \
               192.0.2.13, 192.0.2.14 and 5 more"],
        );
    }

    #[test]
    fn a_node_whose_time_is_over_holds_nothing() {
        check(
            |facts| facts.state.deadline = 88 * SECOND,
            &[
                "warning: no host on the links of this node answers for 192.0.2.7",
                "warning: this node stopped to answer for its addresses 12 s ago",
            ],
        );
    }

    #[test]
    fn devices_that_cannot_answer_and_other_announcers_are_reported() {
        check(|facts| drop(facts.devices.insert(3, ("eth1".to_owned(), false))), &["note: eth1 has no carrier"]);
        check(
            |facts| drop(facts.devices.insert(2, ("eth0".to_owned(), false))),
            &["error: no device that answers for announced addresses has a carrier: eth0"],
        );
        let refused = |facts: &mut AnnounceFacts| {
            facts.answers.clear();
            facts.unasked = Some("Operation not permitted".to_owned());
        };
        check(refused, &["note: the links cannot be asked who answers for announced addresses: Operation"]);
        check(|facts| facts.devices.clear(), &["error: no device answers for announced addresses"]);
        check(
            |facts| facts.egress.push("out of netdev lan".to_owned()),
            &["warning: the chain out of netdev lan drops frames"],
        );
        check(
            |facts| facts.others.push(("MetalLB's speaker", 77)),
            &["warning: MetalLB's speaker (pid 77) runs on this node"],
        );
    }

    #[test]
    fn other_announcers_are_known_by_name_and_environment() {
        let proc = tempfile::tempdir().expect("a directory");
        for (pid, comm, environment) in [
            ("5", "speaker\n", &b"HOME=/\0"[..]),
            ("7", "speaker\n", b"HOME=/\0METALLB_NODE_NAME=a\0"),
            ("8", "kube-vip\n", b"cp_enable=true\0svc_enable=false\0"),
            ("9", "keepalived\n", b""),
        ] {
            let process = proc.path().join(pid);
            fs::create_dir_all(&process).expect("a directory");
            fs::write(process.join("comm"), comm).expect("a file");
            fs::write(process.join("environ"), environment).expect("a file");
        }
        assert_eq!(others(proc.path()), [("MetalLB's speaker", 7), ("keepalived", 9)]);
    }
}

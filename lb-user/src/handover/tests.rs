//! Comparisons of kube-proxy's endpoints with the maps.

use super::*;
use lb_common::Family;
use lb_common::{Addr, Kind, List, Proto, ServiceEntry, ServiceFlags, Slot};
use lb_core::{objects::Key, spec::PortKey};

fn endpoint(text: &str) -> AddrPort {
    AddrPort::from(text.parse::<std::net::SocketAddr>().expect("an endpoint"))
}

fn key(addr: &str, port: u16) -> FrontendKey {
    FrontendKey::new(Addr::from(addr.parse::<std::net::IpAddr>().expect("an address")), port, Proto::Tcp)
}

fn answer(here: &[&str], outside: &[&str]) -> RuleEndpoints {
    let set = |endpoints: &[&str]| endpoints.iter().map(|text| endpoint(text)).collect();
    RuleEndpoints { name: "default/web".to_owned(), from_node: set(here), from_outside: set(outside) }
}

/// A service port with a cluster IP, a NodePort and two backends, the first on this node.
fn dump(flags: u32) -> Dump {
    let mut dump = Dump::default();
    dump.frontends.insert(key("10.96.0.1", 80), Frontend::new(1, Kind::ClusterIp));
    dump.frontends.insert(key("0.0.0.0", 30080), Frontend::new(1, Kind::NodePort));
    dump.frontends.insert(key("10.96.0.1", 80).address(), Frontend::new(1, Kind::Address));
    let name = PortKey { service: Key::new("default", "web"), name: "".into(), proto: Proto::Tcp, family: Family::V4 };
    dump.names.insert(1, name);
    dump.services.insert(1, ServiceEntry { cluster_len: 2, local_len: 1, flags, ..ServiceEntry::default() });
    for (list, index, text) in
        [(List::Cluster, 0, "10.0.0.1:80"), (List::Cluster, 1, "10.0.0.2:80"), (List::Local, 0, "10.0.0.1:80")]
    {
        let AddrPort { addr, port } = endpoint(text);
        dump.slots.insert(SlotKey::new(1, list, index), Slot { addr, port, weight: 1, backend: index + 1 });
    }
    dump
}

#[track_caller]
fn check(theirs: &[(FrontendKey, RuleEndpoints)], dump: &Dump, safe: bool, expected: &[&str]) {
    let comparison = compare(&theirs.iter().cloned().collect(), dump);
    let differences: Vec<String> = comparison.differences.iter().map(FrontendDifference::to_string).collect();
    assert_eq!(differences.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    assert_eq!(comparison.is_safe(), safe);
}

const BOTH: &[&str] = &["10.0.0.1:80", "10.0.0.2:80"];
const FIRST: &[&str] = &["10.0.0.1:80"];

#[test]
fn equal_endpoints_are_no_difference() {
    let alike = [(key("10.96.0.1", 80), answer(BOTH, BOTH)), (key("0.0.0.0", 30080), answer(BOTH, BOTH))];
    check(&alike, &dump(0), true, &[]);
    let local = [(key("10.96.0.1", 80), answer(BOTH, BOTH)), (key("0.0.0.0", 30080), answer(BOTH, FIRST))];
    check(&local, &dump(ServiceFlags::EXTERNAL_LOCAL), true, &[]);
    check(
        &local,
        &dump(0),
        false,
        &["default/web at 0.0.0.0:30080/TCP: Beeline also sends clients outside to 10.0.0.2:80"],
    );
}

#[test]
fn lost_endpoints_are_unsafe_and_additional_ones_are_safe() {
    check(
        &[
            (key("10.96.0.1", 80), answer(&["10.0.0.1:80", "10.0.0.3:80"], BOTH)),
            (key("10.96.0.7", 80), answer(FIRST, FIRST)),
        ],
        &dump(0),
        false,
        &[
            "default/web at 0.0.0.0:30080/TCP: only Beeline has it, with 10.0.0.1:80, 10.0.0.2:80",
            "default/web at 10.96.0.1:80/TCP: only kube-proxy sends clients on this node to 10.0.0.3:80, and only \
             Beeline to 10.0.0.2:80",
            "default/web at 10.96.0.7:80/TCP: only kube-proxy has it, with 10.0.0.1:80",
        ],
    );
    check(
        &[
            (key("10.96.0.1", 80), answer(&[], &[])),
            (key("0.0.0.0", 30080), answer(BOTH, BOTH)),
            (key("10.96.0.8", 80), answer(&[], &[])),
        ],
        &dump(0),
        true,
        &[
            "default/web at 10.96.0.1:80/TCP: kube-proxy refuses clients on this node, and Beeline sends them to \
             10.0.0.1:80, 10.0.0.2:80",
            "default/web at 10.96.0.1:80/TCP: kube-proxy refuses clients outside, and Beeline sends them to \
             10.0.0.1:80, 10.0.0.2:80",
            "default/web at 10.96.0.8:80/TCP: only kube-proxy has it, and refuses clients",
        ],
    );
}

#[test]
fn endpoints_that_an_annotation_chooses_are_not_lost() {
    let theirs = [
        (key("10.96.0.1", 80), answer(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"], BOTH)),
        (key("0.0.0.0", 30080), answer(&["10.0.0.3:80"], BOTH)),
    ];
    let (kept, others) = (
        "default/web at 10.96.0.1:80/TCP: an annotation keeps clients on this node from 10.0.0.3:80, to which \
         kube-proxy sends them",
        "default/web at 0.0.0.0:30080/TCP: an annotation sends clients on this node to 10.0.0.1:80, 10.0.0.2:80, and \
         kube-proxy does not",
    );
    check(&theirs, &dump(ServiceFlags::PREFERS_LOCAL), true, &[others, kept]);
    check(&theirs, &dump(ServiceFlags::PROBED_OUT), true, &[others, kept]);
    for tier in [0, 1] {
        check(&theirs, &dump(ServiceFlags::TIERED | tier << ServiceFlags::TIER_SHIFT), true, &[others, kept]);
    }
}

#[test]
fn an_annotation_excuses_only_the_lists_that_it_changes() {
    const ALL_TIERS: u32 = 255 << ServiceFlags::TIER_SHIFT;
    const REDIRECTED: u32 = ServiceFlags::REDIRECTED | ServiceFlags::INTERNAL_LOCAL;
    let three = &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];
    // A redirect changes the local list, of which cluster IPs are the frontends. It changes no NodePort.
    let (cluster_ip, node_port) = (key("10.96.0.1", 80), key("0.0.0.0", 30080));
    check(
        &[(cluster_ip, answer(BOTH, BOTH)), (node_port, answer(BOTH, three))],
        &dump(REDIRECTED),
        false,
        &[
            "default/web at 0.0.0.0:30080/TCP: only kube-proxy sends clients outside to 10.0.0.3:80",
            "default/web at 10.96.0.1:80/TCP: an annotation keeps clients on this node from 10.0.0.2:80, to which \
             kube-proxy sends them",
            "default/web at 10.96.0.1:80/TCP: an annotation keeps clients outside from 10.0.0.2:80, to which \
             kube-proxy sends them",
        ],
    );
    // Tiers and near endpoints narrow the cluster list only, and all tiers at once narrow nothing.
    let lost = "default/web at 0.0.0.0:30080/TCP: only kube-proxy sends clients outside to 10.0.0.3:80";
    let local = ServiceFlags::EXTERNAL_LOCAL;
    for (flags, outside) in [
        (local | ServiceFlags::PREFERS_LOCAL, &["10.0.0.1:80", "10.0.0.3:80"][..]),
        (local | ServiceFlags::TIERED, &["10.0.0.1:80", "10.0.0.3:80"]),
        (ALL_TIERS, three),
    ] {
        let theirs = [(cluster_ip, answer(BOTH, BOTH)), (node_port, answer(BOTH, outside))];
        check(&theirs, &dump(flags), false, &[lost]);
    }
}

#[test]
fn an_annotation_does_not_excuse_an_empty_list() {
    let theirs = [(key("10.96.0.1", 80), answer(BOTH, BOTH)), (key("0.0.0.0", 30080), answer(BOTH, BOTH))];
    let mut dump = dump(ServiceFlags::PREFERS_LOCAL | ServiceFlags::TIERED);
    dump.slots.clear();
    let lost = |frontend: &str, clients: &str| {
        format!(
            "default/web at {frontend}/TCP: Beeline refuses clients {clients}, and kube-proxy sends them to \
             10.0.0.1:80, 10.0.0.2:80"
        )
    };
    let expected = [
        lost("0.0.0.0:30080", "on this node"),
        lost("0.0.0.0:30080", "outside"),
        lost("10.96.0.1:80", "on this node"),
        lost("10.96.0.1:80", "outside"),
    ];
    check(&theirs, &dump, false, &expected.each_ref().map(String::as_str));
}

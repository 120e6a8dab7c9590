//! Network facts for tests, from lines of text.

use lb_kernel::netlink::{
    address::Address,
    network_state::{Link, NetworkState, Route},
};

/// Parses lines such as `2 eth0 up carrier mtu 1500 kind veth layer 65534 port-of 3 peer 0 on 5 at 7` (the last octet
/// of the link address), `addr 2 10.0.0.1/24 secondary`, `route 2 default src 10.0.0.1 metric 100`, and `on-link 2` for
/// a route to neighbours.
pub(super) fn network(text: &str) -> NetworkState {
    let mut facts = NetworkState::default();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |word: &str| words.iter().position(|at| *at == word).and_then(|at| words.get(at + 1)).copied();
        let number = |word: &str| after(word).map(|text| text.parse::<u32>().expect("a number"));
        let has = |word: &str| words.contains(&word);
        match words.as_slice() {
            ["addr", index, network, ..] => {
                let (ip, length) = network.split_once('/').expect("a prefix length");
                facts.addresses.push(Address {
                    interface: index.parse().expect("an index"),
                    ip: ip.parse().expect("an address"),
                    prefix_len: length.parse().expect("a length"),
                    scope: if has("link") { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE },
                    flags: if has("secondary") { libc::IFA_F_SECONDARY } else { 0 },
                    created: number("created").unwrap_or(0),
                });
            }
            ["on-link", index] => drop(facts.on_link.insert(index.parse().expect("an index"))),
            ["route", index, to, ..] => facts.routes.push(Route {
                device: index.parse().expect("an index"),
                is_v6: has("v6") || to.contains(':'),
                prefix_len: to.split_once('/').map_or(0, |(_, length)| length.parse().expect("a length")),
                metric: number("metric").unwrap_or(0),
                source: after("src").map(|ip| ip.parse().expect("an address")),
            }),
            [index, name, ..] => {
                let flag = |word, flag: libc::c_int| if has(word) { flag.cast_unsigned() } else { 0 };
                let link = Link {
                    name: (*name).to_owned(),
                    kind: after("kind").unwrap_or_default().to_owned(),
                    link_type: number("layer").map_or(libc::ARPHRD_ETHER, |layer| layer.try_into().expect("a layer")),
                    flags: flag("up", libc::IFF_UP)
                        | flag("carrier", libc::IFF_RUNNING)
                        | flag("noarp", libc::IFF_NOARP)
                        | flag("loopback", libc::IFF_LOOPBACK),
                    mtu: number("mtu").unwrap_or(1500),
                    address: number("at").map(|last| [2, 0, 0, 0, 0, u8::try_from(last).expect("an octet")]),
                    controller: number("port-of"),
                    peer_nsid: number("peer").map(u32::cast_signed),
                    lower: number("on"),
                };
                facts.links.insert(index.parse().expect("an index"), link);
            }
            _ => panic!("{line}"),
        }
    }
    facts
}

//! kube-proxy's rules as `nft -j` lists them, and an interpreter that sends a packet through them. It knows the
//! statements that kube-proxy writes, and panics at any other.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    process::Command,
};

use ipnet::IpNet;
use lb_common::Proto;
use serde_json::Value;

use crate::answer::{Answer, Origin, Outcome, Packet};

/// The table of one address family.
#[derive(Default)]
pub struct Ruleset {
    /// Name of IPv4 or IPv6 in expressions.
    ip: &'static str,
    chains: BTreeMap<String, Vec<Vec<Value>>>,
    /// Base chains: hook, priority and name.
    hooks: BTreeSet<(String, i64, String)>,
    /// Elements of named maps by key.
    maps: BTreeMap<String, BTreeMap<Key, Value>>,
    sets: BTreeMap<String, Vec<Value>>,
    /// Timeouts of affinity sets, in seconds.
    timeouts: BTreeMap<String, u32>,
}

/// A key of a map: its fields as text.
type Key = Vec<String>;

/// Result of a chain.
enum Step {
    /// The packet goes on.
    Next,
    /// The verdict on the packet.
    End(Answer),
}

impl Ruleset {
    /// Reads the table of this thread's network namespace; none if there is none yet.
    pub fn read(ip: &'static str) -> Option<Self> {
        let output = Command::new("nft").args(["-j", "list", "table", ip, "kube-proxy"]).output().expect("nft runs");
        if !output.status.success() {
            return None;
        }
        let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON of nft");
        let mut ruleset = Self { ip, ..Self::default() };
        for object in listed["nftables"].as_array().expect("a list") {
            let (kind, value) = object.as_object().and_then(|object| object.iter().next()).expect("an object");
            let name = || value["name"].as_str().expect("a name").to_owned();
            match kind.as_str() {
                "chain" => {
                    ruleset.chains.entry(name()).or_default();
                    if let (Some(hook), Some(priority)) = (value["hook"].as_str(), value["prio"].as_i64()) {
                        ruleset.hooks.insert((hook.to_owned(), priority, name()));
                    }
                }
                "rule" => {
                    let chain = value["chain"].as_str().expect("a chain").to_owned();
                    let expressions = value["expr"].as_array().expect("expressions").clone();
                    ruleset.chains.entry(chain).or_default().push(expressions);
                }
                "map" => _ = ruleset.maps.insert(name(), elements(&value["elem"])),
                "set" => {
                    if let Some(timeout) = value["timeout"].as_u64() {
                        ruleset.timeouts.insert(name(), u32::try_from(timeout).expect("seconds"));
                    }
                    ruleset.sets.insert(name(), value["elem"].as_array().cloned().unwrap_or_default());
                }
                "metainfo" | "table" | "counter" => {}
                other => panic!("{other} in kube-proxy's table"),
            }
        }
        Some(ruleset)
    }

    /// Addresses, protocols and ports of a map's keys, which begin with an address.
    pub fn frontends(&self) -> BTreeSet<(SocketAddr, Proto)> {
        let maps = ["service-ips", "no-endpoint-services", "firewall-ips"];
        let keys = maps.iter().filter_map(|map| self.maps.get(*map)).flat_map(BTreeMap::keys);
        let frontend = |key: &Key| {
            let [address, proto, port] = key.as_slice() else { panic!("{key:?}") };
            (SocketAddr::new(ip(address), port.parse().expect("a port")), self::proto(proto))
        };
        keys.map(frontend).collect()
    }

    /// Protocols and ports of NodePorts.
    pub fn node_ports(&self) -> BTreeSet<(u16, Proto)> {
        let maps = ["service-nodeports", "no-endpoint-nodeports"];
        let keys = maps.iter().filter_map(|map| self.maps.get(*map)).flat_map(BTreeMap::keys);
        keys.map(|key| (key[1].parse().expect("a port"), proto(&key[0]))).collect()
    }

    /// Sends a packet through the hooks until it is translated, refused or accepted. Packets that are translated go no
    /// further: translation happens once.
    pub fn answer(&self, packet: &Packet<'_>) -> Answer {
        let hooks: &[&str] = match packet.origin {
            // By the loopback device; conntrack knows the connection by then, so that NAT is not asked again.
            Origin::Process if packet.is_local(packet.to.ip()) => &["output", "input"],
            Origin::Process => &["output"],
            Origin::Pod | Origin::Outside if packet.is_local(packet.to.ip()) => &["prerouting", "input"],
            Origin::Pod | Origin::Outside => &["prerouting", "forward"],
        };
        for hook in hooks {
            for (.., chain) in self.hooks.iter().filter(|(own, ..)| own == hook) {
                if let Step::End(answer) = self.walk(chain, packet) {
                    return answer;
                }
            }
        }
        Outcome::Unchanged.into()
    }

    fn walk(&self, chain: &str, packet: &Packet<'_>) -> Step {
        let rules = self.chains.get(chain).unwrap_or_else(|| panic!("no chain {chain}"));
        for rule in rules {
            let mut matches = true;
            for expression in rule {
                let (kind, value) = expression.as_object().and_then(|object| object.iter().next()).expect("one");
                match kind.as_str() {
                    "match" => matches = self.matches(value, packet),
                    // A goto does not come back here. All of kube-proxy's gotos stand at the end of a path.
                    "goto" => return self.walk(target(value), packet),
                    "vmap" => match self.look_up(value, packet) {
                        Step::Next => {}
                        end @ Step::End(_) => return end,
                    },
                    "jump" | "drop" | "reject" | "dnat" => match self.verdict(kind, value, packet) {
                        Step::Next => {}
                        end @ Step::End(_) => return end,
                    },
                    // Marks for masquerading, updates of affinity and counters.
                    "mangle" | "masquerade" | "counter" | "set" => {}
                    other => panic!("statement {other} of kube-proxy in {chain}: {value}"),
                }
                if !matches {
                    break;
                }
            }
        }
        Step::Next
    }

    fn verdict(&self, kind: &str, value: &Value, packet: &Packet<'_>) -> Step {
        match kind {
            "jump" | "goto" => self.walk(target(value), packet),
            "drop" => Step::End(Outcome::Dropped.into()),
            "reject" => Step::End(Outcome::Rejected.into()),
            "dnat" => Step::End(Outcome::Endpoints(destinations(value)).into()),
            other => panic!("verdict {other} of kube-proxy: {value}"),
        }
    }

    /// The verdict of a verdict map: of a named one at the packet's key, or of all elements of a random choice.
    fn look_up(&self, vmap: &Value, packet: &Packet<'_>) -> Step {
        let (key, data) = (&vmap["key"], &vmap["data"]);
        let verdict = |value: &Value| {
            let (kind, value) = value.as_object().and_then(|object| object.iter().next()).expect("a verdict");
            self.verdict(kind, value, packet)
        };
        if key.get("numgen").is_some() {
            let mut all: Option<Answer> = None;
            for element in data["set"].as_array().expect("a set") {
                let Step::End(answer) = self.endpoint(&element[1]) else { panic!("no endpoint: {element}") };
                match &mut all {
                    None => all = Some(answer),
                    Some(all) => all.add(answer),
                }
            }
            return Step::End(all.expect("an element"));
        }
        let map = data.as_str().and_then(|name| name.strip_prefix('@')).unwrap_or_else(|| panic!("{vmap}"));
        let fields = key["concat"].as_array().expect("fields").iter().map(|field| self.field(field, packet)).collect();
        self.maps.get(map).and_then(|map| map.get::<Key>(&fields)).map_or(Step::Next, verdict)
    }

    /// The answer of a chain of one endpoint, which keeps affinity.
    fn endpoint(&self, verdict: &Value) -> Step {
        let chain = target(&verdict["goto"]);
        let expressions = || self.chains.get(chain).into_iter().flatten().flatten();
        let mut to = BTreeSet::new();
        expressions().filter_map(|expression| expression.get("dnat")).for_each(|dnat| to.extend(destinations(dnat)));
        let set = expressions().find_map(|expression| expression["set"]["set"].as_str()).expect("affinity");
        let affinity_seconds = self.timeouts.get(set.trim_start_matches('@')).copied();
        Step::End(Answer { outcome: Outcome::Endpoints(to), affinity_seconds })
    }

    fn field(&self, field: &Value, packet: &Packet<'_>) -> String {
        if field["meta"]["key"] == "l4proto" {
            return packet.proto.name().to_lowercase();
        }
        let payload = &field["payload"];
        match (payload["protocol"].as_str(), payload["field"].as_str()) {
            (Some("th"), Some("dport")) => packet.to.port().to_string(),
            (Some(ip), Some("daddr")) if ip == self.ip => packet.to.ip().to_string(),
            (Some(ip), Some("saddr")) if ip == self.ip => packet.from.to_string(),
            _ => panic!("field {field}"),
        }
    }

    fn matches(&self, expression: &Value, packet: &Packet<'_>) -> bool {
        let (left, right) = (&expression["left"], &expression["right"]);
        let is_equal = if let Some(flags) = left["fib"]["flags"].as_array() {
            assert_eq!(right, "local");
            let ip = if flags.contains(&Value::from("saddr")) { packet.from } else { packet.to.ip() };
            packet.is_local(ip)
        } else if left["ct"]["key"] == "state" {
            assert!(right == "new", "{expression}");
            true
        } else if left["meta"]["key"] == "l4proto" {
            *right == self.field(left, packet).as_str()
        } else {
            self.contains(right, &self.field(left, packet))
        };
        match expression["op"].as_str() {
            Some("==" | "in") => is_equal,
            Some("!=") => !is_equal,
            _ => panic!("operator of {expression}"),
        }
    }

    /// True if an address is, or is in, an address, a prefix, a range or a set. Affinity sets count as empty.
    fn contains(&self, of: &Value, address: &str) -> bool {
        if let Some(set) = of.as_str().and_then(|name| name.strip_prefix('@')) {
            let is_affinity = self.timeouts.contains_key(set);
            return !is_affinity && self.sets.get(set).into_iter().flatten().any(|of| self.contains(of, address));
        }
        if let Some(set) = of["set"].as_array() {
            return set.iter().any(|of| self.contains(of, address));
        }
        let ip = ip(address);
        if let Some(range) = of["range"].as_array() {
            let [first, last] = [0, 1].map(|index| self::ip(range[index].as_str().expect("an address")));
            return (first..=last).contains(&ip);
        }
        match &of["prefix"] {
            Value::Null => self::ip(of.as_str().unwrap_or_else(|| panic!("{of}"))) == ip,
            prefix => {
                let addr = self::ip(prefix["addr"].as_str().expect("an address"));
                let length = prefix["len"].as_u64().and_then(|length| u8::try_from(length).ok()).expect("a length");
                IpNet::new(addr, length).expect("a prefix").contains(&ip)
            }
        }
    }
}

fn target(value: &Value) -> &str {
    value["target"].as_str().unwrap_or_else(|| panic!("no target: {value}"))
}

/// The destinations of a dnat statement: one, or those of a random choice.
fn destinations(dnat: &Value) -> BTreeSet<SocketAddr> {
    let destination = |addr: &Value, port: &Value| {
        let port = port.as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or_else(|| panic!("{dnat}"));
        SocketAddr::new(ip(addr.as_str().expect("an address")), port)
    };
    match dnat["addr"]["map"]["data"]["set"].as_array() {
        None => [destination(&dnat["addr"], &dnat["port"])].into(),
        Some(set) => {
            assert!(dnat["addr"]["map"]["key"].get("numgen").is_some(), "{dnat}");
            set.iter().map(|element| &element[1]["concat"]).map(|to| destination(&to[0], &to[1])).collect()
        }
    }
}

fn elements(listed: &Value) -> BTreeMap<Key, Value> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let element = |element: &Value| {
        // A comment wraps the key.
        let key = element[0].get("elem").map_or(&element[0], |wrapped| &wrapped["val"]);
        let fields = key["concat"].as_array().unwrap_or_else(|| panic!("{element}"));
        (fields.iter().map(text).collect(), element[1].clone())
    };
    listed.as_array().into_iter().flatten().map(element).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("no address: {text}"))
}

fn proto(name: &str) -> Proto {
    let all = [Proto::Tcp, Proto::Udp, Proto::Sctp];
    all.into_iter().find(|proto| proto.name().eq_ignore_ascii_case(name)).unwrap_or_else(|| panic!("{name}"))
}

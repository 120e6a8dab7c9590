//! Annotations: Beeline's own (`beeline.io/…`), and those of kube-router and Cilium with the same meaning.

use std::{
    net::IpAddr,
    num::{NonZeroU8, NonZeroU16, NonZeroU32},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_common::{NEVER, Scheduler};

use super::{addr, label};
use lb_core::{
    label_selector::LabelSelector,
    objects::{
        ConnectionAge, DEFAULT_TIER_SHARE, Drain, Eject, FrontendType, Key, MAX_CONNECTION_AGE, MAX_EJECT_FAILURES,
        MAX_EJECT_TIME, MAX_SLOW_START, Preference, RangePolicy, Tuning, WORST_TIER,
    },
    port_ranges::{self, PortRanges},
};

mod probe;

/// Prefix of Beeline's annotations.
const PREFIX: &str = "beeline.io/";
const SCHEDULER: &str = "beeline.io/scheduler";
/// kube-router's annotation.
const KUBE_ROUTER_SCHEDULER: &str = "kube-router.io/service.scheduler";
/// Cilium's annotation.
const CILIUM_ALGORITHM: &str = "service.cilium.io/lb-algorithm";
const WEIGHTS: &str = "beeline.io/weights";
const WEIGHT: &str = "beeline.io/weight";
/// Cilium's annotation.
const CILIUM_WEIGHT: &str = "service.cilium.io/weight";
const TCP_DRAIN: &str = "beeline.io/tcp-drain";
/// Also a label of an EndpointSlice.
const PRIORITY: &str = "beeline.io/priority";
const PRIORITY_SHARE: &str = "beeline.io/priority-share";
const SLOW_START: &str = "beeline.io/slow-start";
const MAX_AGE: &str = "beeline.io/max-connection-age";
const PROBE: &str = "beeline.io/probe";
const EJECT: &str = "beeline.io/eject";
const AFFINITY_SCOPE: &str = "beeline.io/affinity-scope";
const UDP_CONNECT: &str = "beeline.io/udp-connect";
const PREFER_LOCAL: &str = "beeline.io/prefer-local";
const REDIRECT_FROM: &str = "beeline.io/redirect-from";
const PORTS: &str = "beeline.io/ports";
pub(super) const LB_ADDRESSES: &str = "beeline.io/lb-addresses";
pub(super) const LB_POOL: &str = "beeline.io/lb-pool";
pub(super) const LB_SHARING_KEY: &str = "beeline.io/lb-sharing-key";
pub(super) const LB_SHARING_NAMESPACES: &str = "beeline.io/lb-sharing-namespaces";
/// Beeline's annotations of a Service.
const OF_SERVICES: &[&str] = &[
    SCHEDULER,
    WEIGHTS,
    TCP_DRAIN,
    MAX_AGE,
    PROBE,
    PRIORITY_SHARE,
    SLOW_START,
    EJECT,
    AFFINITY_SCOPE,
    UDP_CONNECT,
    PREFER_LOCAL,
    REDIRECT_FROM,
    PORTS,
    LB_ADDRESSES,
    LB_POOL,
    LB_SHARING_KEY,
    LB_SHARING_NAMESPACES,
];
/// Beeline's annotations of an EndpointSlice or Endpoints object.
const OF_ENDPOINTS: &[&str] = &[WEIGHT, WEIGHTS, PRIORITY];
// Cilium's annotations (its documentation, "Kubernetes Without kube-proxy").
const CILIUM_TYPE: &str = "service.cilium.io/type";
const CILIUM_NODE: &str = "service.cilium.io/node";
const CILIUM_NODE_SELECTOR: &str = "service.cilium.io/node-selector";
const CILIUM_RANGE_POLICY: &str = "service.cilium.io/src-ranges-policy";

/// Reads the tuning annotations of a Service; None if it has none.
pub(super) fn tuning(meta: &ObjectMeta, problems: &mut Vec<String>) -> Option<Box<Tuning>> {
    // Most Services have no annotations.
    meta.annotations.as_ref()?;
    let tuning = Tuning {
        scheduler: scheduler(meta, problems),
        weights: weights(meta, problems),
        drain: get(meta, TCP_DRAIN).map_or(Drain::Never, |text| drain(text, problems)),
        only: only(meta, problems),
        nodes: nodes(meta, problems),
        range_policy: range_policy(meta, problems),
        preference: preference(meta, problems),
        redirect_from: redirect_from(meta, problems),
        tier_share: tier_share(meta, problems),
        slow_start: slow_start(meta, problems),
        max_connection_age: max_connection_age(meta, problems),
        probe: get(meta, PROBE).and_then(|text| probe::parse(text, problems)),
        eject: eject(meta, problems),
        shares_affinity: shares_affinity(meta, problems),
        allows_udp_connect: allows_udp_connect(meta, problems),
    };
    unknown(meta, "a Service", OF_SERVICES, problems);
    (tuning != Tuning::default()).then(|| Box::new(tuning))
}

/// Reads the port ranges of a Service: none if the annotation cannot be read.
pub(super) fn port_ranges(meta: &ObjectMeta, problems: &mut Vec<String>) -> Vec<PortRanges> {
    let Some(text) = get(meta, PORTS) else { return Vec::new() };
    port_ranges::parse(text).unwrap_or_else(|flaw| {
        problems.push(format!("annotation {PORTS} {flaw}; until then no port range is served"));
        Vec::new()
    })
}

/// Weights and tier of the endpoints of an EndpointSlice or Endpoints object. Both kinds have the same annotations,
/// since the mirroring controller copies annotations from one to the other.
pub(super) struct EndpointTuning {
    /// Tier of all endpoints.
    pub(super) tier: u8,
    /// Weight of addresses that are not listed.
    default: u16,
    /// Weights by address, sorted.
    by_address: Vec<(IpAddr, u16)>,
}

impl EndpointTuning {
    /// Reads the annotations of an object; `kind` is its kind with an article, for warnings.
    pub(super) fn read(meta: &ObjectMeta, kind: &str, problems: &mut Vec<String>) -> Self {
        unknown(meta, kind, OF_ENDPOINTS, problems);
        Self {
            tier: tier(meta, problems),
            default: weight(meta, problems).unwrap_or(1),
            by_address: weights(meta, problems),
        }
    }

    /// Returns the weight of the endpoint with this address.
    pub(super) fn weight(&self, addr: IpAddr) -> u16 {
        let at = self.by_address.binary_search_by_key(&addr, |(addr, _)| *addr).ok();
        at.and_then(|at| self.by_address.get(at)).map_or(self.default, |(_, weight)| *weight)
    }
}

/// Returns the text of an annotation, trimmed: YAML easily adds a newline.
pub(super) fn get<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(|text| text.trim())
}

/// Returns name and text of the first of these annotations that the object has.
fn first<'a, const N: usize>(meta: &'a ObjectMeta, names: [&'static str; N]) -> Option<(&'static str, &'a str)> {
    names.into_iter().find_map(|name| Some((name, get(meta, name)?)))
}

fn scheduler(meta: &ObjectMeta, problems: &mut Vec<String>) -> Option<Scheduler> {
    let (name, text) = first(meta, [SCHEDULER, KUBE_ROUTER_SCHEDULER, CILIUM_ALGORITHM])?;
    let scheduler = Scheduler::from_name(text);
    if scheduler.is_none() {
        let known = Scheduler::ALL.map(Scheduler::name).join(", ");
        problems.push(format!("annotation {name} {text:?}: unknown, the node's default is used; write one of {known}"));
    }
    scheduler
}

fn only(meta: &ObjectMeta, problems: &mut Vec<String>) -> Option<FrontendType> {
    let text = get(meta, CILIUM_TYPE)?;
    match text {
        "ClusterIP" => Some(FrontendType::ClusterIp),
        "NodePort" => Some(FrontendType::NodePort),
        "LoadBalancer" => Some(FrontendType::LoadBalancer),
        _ => {
            problems.push(format!(
                "annotation {CILIUM_TYPE} {text:?}: unknown, all types are served; write ClusterIP, NodePort or \
                 LoadBalancer"
            ));
            None
        }
    }
}

fn nodes(meta: &ObjectMeta, problems: &mut Vec<String>) -> Option<LabelSelector> {
    if let Some(text) = get(meta, CILIUM_NODE_SELECTOR) {
        let selector = text.parse().ok();
        if selector.is_none() {
            problems.push(format!(
                "annotation {CILIUM_NODE_SELECTOR} {text:?}: not a label selector, all nodes serve it; write one such \
                 as {CILIUM_NODE} in (a, b)"
            ));
        }
        return selector;
    }
    get(meta, CILIUM_NODE).map(|value| LabelSelector::equals(CILIUM_NODE, value))
}

fn range_policy(meta: &ObjectMeta, problems: &mut Vec<String>) -> RangePolicy {
    match get(meta, CILIUM_RANGE_POLICY).map(str::to_ascii_lowercase).as_deref() {
        None | Some("allow") => RangePolicy::Allow,
        Some("deny") => RangePolicy::Deny,
        Some(text) => {
            problems.push(format!(
                "annotation {CILIUM_RANGE_POLICY} {text:?}: unknown, the ranges let clients in; write allow or deny"
            ));
            RangePolicy::Allow
        }
    }
}

fn tier(meta: &ObjectMeta, problems: &mut Vec<String>) -> u8 {
    // Controllers that write slices copy labels where they leave out annotations.
    let (place, text) = match get(meta, PRIORITY) {
        Some(text) => ("annotation", text),
        None => match label(meta, PRIORITY) {
            Some(text) => ("label", text),
            None => return 0,
        },
    };
    text.parse().ok().filter(|&tier| tier <= WORST_TIER).unwrap_or_else(|| {
        problems.push(format!(
            "{place} {PRIORITY} {text:?}: not a priority, 0 is used; write a number from 0 to {WORST_TIER}"
        ));
        0
    })
}

fn tier_share(meta: &ObjectMeta, problems: &mut Vec<String>) -> Option<NonZeroU8> {
    let text = get(meta, PRIORITY_SHARE)?;
    let share = text.strip_suffix('%').and_then(|number| number.parse().ok()).filter(|&share: &u8| share <= 100);
    let share = share.and_then(NonZeroU8::new);
    if share.is_none() {
        problems.push(format!(
            "annotation {PRIORITY_SHARE} {text:?}: not a share, {DEFAULT_TIER_SHARE}% is used; write 1% to 100%"
        ));
    }
    share
}

fn slow_start(meta: &ObjectMeta, problems: &mut Vec<String>) -> Option<NonZeroU32> {
    let text = get(meta, SLOW_START)?;
    let time = seconds(text).filter(|&seconds| seconds <= MAX_SLOW_START).and_then(NonZeroU32::new);
    if time.is_none() {
        problems.push(format!(
            "annotation {SLOW_START} {text:?}: not a time, new endpoints have their whole weight at once; write 1s to \
             1h, as in 30s or 1m30s"
        ));
    }
    time
}

fn max_connection_age(meta: &ObjectMeta, problems: &mut Vec<String>) -> Option<ConnectionAge> {
    let text = get(meta, MAX_AGE)?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let time = |text: &str| seconds(text).filter(|&seconds| seconds <= MAX_CONNECTION_AGE);
    let age = |text: &str| time(text).and_then(NonZeroU32::new);
    let age = match words.as_slice() {
        [text] => age(text).map(|seconds| ConnectionAge { seconds, grace: None }),
        [text, "grace", grace] => {
            age(text).zip(time(grace)).map(|(seconds, grace)| ConnectionAge { seconds, grace: Some(grace) })
        }
        _ => None,
    };
    if age.is_none() {
        problems.push(format!(
            "annotation {MAX_AGE} {text:?}: unknown, connections stay; write a time from 1s to 720h, as in 1h, or two, \
             as in 1h grace 10m"
        ));
    }
    age
}

fn eject(meta: &ObjectMeta, problems: &mut Vec<String>) -> Option<Eject> {
    let text = get(meta, EJECT)?;
    let eject = parse_eject(text);
    if eject.is_none() {
        problems.push(format!(
            "annotation {EJECT} {text:?}: not failures, a window and a time, no endpoint is ejected; write 1 to \
             {MAX_EJECT_FAILURES} in 1s to 1h for 1s to 1h, as in \"5 in 10s for 30s\""
        ));
    }
    eject
}

fn parse_eject(text: &str) -> Option<Eject> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [failures, "in", window, "for", time] = words.as_slice() else { return None };
    let time_of = |text: &str| {
        let seconds = seconds(text).and_then(|seconds| u16::try_from(seconds).ok());
        seconds.filter(|&seconds| seconds <= MAX_EJECT_TIME).and_then(NonZeroU16::new)
    };
    let failures = failures.parse().ok().filter(|&failures: &u16| failures <= MAX_EJECT_FAILURES);
    Some(Eject { failures: failures.and_then(NonZeroU16::new)?, window: time_of(window)?, time: time_of(time)? })
}

fn preference(meta: &ObjectMeta, problems: &mut Vec<String>) -> Preference {
    match get(meta, PREFER_LOCAL) {
        None | Some("false") => Preference::None,
        Some("true") => Preference::Local,
        Some(text) => {
            problems.push(format!(
                "annotation {PREFER_LOCAL} {text:?}: unknown, no endpoint is preferred; write \"true\" or \"false\""
            ));
            Preference::None
        }
    }
}

fn shares_affinity(meta: &ObjectMeta, problems: &mut Vec<String>) -> bool {
    match get(meta, AFFINITY_SCOPE) {
        None | Some("port") => false,
        Some("service") => true,
        Some(text) => {
            problems.push(format!(
                "annotation {AFFINITY_SCOPE} {text:?}: unknown, affinity holds for each port by itself; write port or \
                 service"
            ));
            false
        }
    }
}

fn allows_udp_connect(meta: &ObjectMeta, problems: &mut Vec<String>) -> bool {
    match get(meta, UDP_CONNECT) {
        None | Some("refuse") => false,
        Some("allow") => true,
        Some(text) => {
            problems.push(format!(
                "annotation {UDP_CONNECT} {text:?}: unknown, connects without endpoints are refused; write refuse or \
                 allow"
            ));
            false
        }
    }
}

fn redirect_from(meta: &ObjectMeta, problems: &mut Vec<String>) -> Option<Key> {
    let text = get(meta, REDIRECT_FROM)?;
    let is_name = |name: &str| {
        let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        (1..=63).contains(&name.len()) && name.chars().all(is_allowed)
    };
    let target = text.split_once('/').filter(|(namespace, name)| is_name(namespace) && is_name(name));
    if target.is_none() {
        problems.push(format!(
            "annotation {REDIRECT_FROM} {text:?}: not NAMESPACE/NAME of a Service, no client is redirected; write it \
             as in kube-system/kube-dns"
        ));
    }
    target.map(|(namespace, name)| Key::new(namespace, name))
}

fn weight(meta: &ObjectMeta, problems: &mut Vec<String>) -> Option<u16> {
    let (name, text) = first(meta, [WEIGHT, CILIUM_WEIGHT])?;
    let weight = text.parse().ok();
    if weight.is_none() {
        problems.push(format!("annotation {name} {text:?}: not a weight, 1 is used; write a number from 0 to 65535"));
    }
    weight
}

/// Reads the weights of single endpoints, sorted by address, each once.
fn weights(meta: &ObjectMeta, problems: &mut Vec<String>) -> Vec<(IpAddr, u16)> {
    let parts = get(meta, WEIGHTS).unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty());
    let mut weights: Vec<(IpAddr, u16)> = Vec::new();
    for part in parts {
        let pair = part.split_once('=').and_then(|(ip, weight)| Some((ip.trim(), weight.trim().parse().ok()?)));
        let Some((ip, weight)) = pair else {
            problems.push(format!(
                "annotation {WEIGHTS} {part:?}: not an address, = and a number from 0 to 65535; \
                 write it as in 10.0.0.1=3"
            ));
            continue;
        };
        let Some(addr) = addr(problems, format_args!("annotation {WEIGHTS}"), ip) else { continue };
        match weights.binary_search_by_key(&addr, |(addr, _)| *addr) {
            Ok(_) => {
                problems.push(format!("annotation {WEIGHTS}: {addr} listed twice; the first counts, remove one"));
            }
            Err(at) => weights.insert(at, (addr, weight)),
        }
    }
    weights
}

fn drain(text: &str, problems: &mut Vec<String>) -> Drain {
    let words: Vec<&str> = text.split_whitespace().collect();
    let drain = match words.as_slice() {
        ["none"] => Some(Drain::Never),
        ["on-removal"] => Some(Drain::After(0)),
        ["after", time] => seconds(time).map(Drain::After),
        _ => None,
    };
    drain.unwrap_or_else(|| {
        problems.push(format!(
            "annotation {TCP_DRAIN} {text:?}: unknown, none is used; write none, on-removal, or after with a time such \
             as 30s, 5m or 1h30m"
        ));
        Drain::Never
    })
}

/// Parses a duration as Go writes it, in whole seconds.
fn seconds(text: &str) -> Option<u32> {
    let mut sum = 0_u32;
    let mut rest = text;
    loop {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, tail) = tail.split_at_checked(1)?;
        let unit = match unit {
            "h" => 3600,
            "m" => 60,
            "s" => 1,
            _ => return None,
        };
        sum = number.parse::<u32>().ok()?.checked_mul(unit)?.checked_add(sum)?;
        if tail.is_empty() {
            return Some(sum).filter(|&sum| sum != NEVER);
        }
        rest = tail;
    }
}

/// Adds a problem for each unknown annotation with Beeline's prefix: a typing error in a name would go unnoticed
/// otherwise.
pub(super) fn unknown(meta: &ObjectMeta, kind: &str, known: &[&str], problems: &mut Vec<String>) {
    let names = meta.annotations.iter().flat_map(|annotations| annotations.keys());
    for name in names.filter(|name| name.starts_with(PREFIX) && !known.contains(&name.as_str())) {
        problems.push(format!(
            "annotation {}: unknown on {kind}, which has {}; fix its name or remove it",
            name.escape_debug(),
            known.join(", ")
        ));
    }
}

#[cfg(test)]
mod tests;

//! Annotations: Beeline's own (`beeline.io/…`), and those of kube-router and Cilium with the same meaning.

use std::{net::IpAddr, num::NonZeroU8};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_common::{NEVER, Scheduler};

use super::{addr, label};
use lb_core::{
    label_selector::LabelSelector,
    objects::{DEFAULT_TIER_SHARE, Drain, FrontendType, Key, Preference, RangePolicy, Tuning, WORST_TIER},
};

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
const PREFER_LOCAL: &str = "beeline.io/prefer-local";
const REDIRECT_FROM: &str = "beeline.io/redirect-from";
/// Beeline's annotations of a Service.
const OF_SERVICES: &[&str] = &[SCHEDULER, WEIGHTS, TCP_DRAIN, PRIORITY_SHARE, PREFER_LOCAL, REDIRECT_FROM];
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
    };
    unknown(meta, "a Service", OF_SERVICES, problems);
    (tuning != Tuning::default()).then(|| Box::new(tuning))
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
mod tests {
    use super::*;

    fn meta(annotations: &[(&str, &str)]) -> ObjectMeta {
        let annotations = annotations.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect();
        ObjectMeta { annotations: Some(annotations), ..ObjectMeta::default() }
    }

    #[test]
    fn ciliums_annotations_choose_types_nodes_and_the_meaning_of_ranges() {
        let check = |annotations: &[(&str, &str)], expected: Tuning, problem: Option<&str>| {
            let mut problems = Vec::new();
            let tuning = tuning(&meta(annotations), &mut problems).map_or_else(Tuning::default, |tuning| *tuning);
            assert_eq!(tuning, expected, "{annotations:?}");
            assert_eq!(problems.len(), usize::from(problem.is_some()), "{problems:?}");
            assert!(problem.is_none_or(|problem| problems[0].contains(problem)), "{problems:?}");
        };
        let only = |only| Tuning { only: Some(only), ..Tuning::default() };
        check(&[("service.cilium.io/type", "LoadBalancer")], only(FrontendType::LoadBalancer), None);
        check(&[("service.cilium.io/type", "ClusterIP\n")], only(FrontendType::ClusterIp), None);
        check(&[("service.cilium.io/type", "NodePort")], only(FrontendType::NodePort), None);
        check(&[("service.cilium.io/type", "all")], Tuning::default(), Some("all types are served"));
        let nodes = |text: &str| Tuning { nodes: text.parse().ok(), ..Tuning::default() };
        check(&[("service.cilium.io/node", "beefy")], nodes("service.cilium.io/node=beefy"), None);
        let both = [("service.cilium.io/node", "beefy"), ("service.cilium.io/node-selector", "a in (x)")];
        check(&both, nodes("a in (x)"), None);
        check(&[("service.cilium.io/node-selector", "a in x")], Tuning::default(), Some("all nodes serve it"));
        let deny = Tuning { range_policy: RangePolicy::Deny, ..Tuning::default() };
        check(&[("service.cilium.io/src-ranges-policy", "Deny")], deny, None);
        check(&[("service.cilium.io/src-ranges-policy", "allow")], Tuning::default(), None);
        check(&[("service.cilium.io/src-ranges-policy", "no")], Tuning::default(), Some("write allow or deny"));
    }

    #[test]
    fn a_preference_for_local_endpoints_is_true_or_false() {
        let check = |text: &str, expected: Preference, problem: Option<&str>| {
            let mut problems = Vec::new();
            let tuning = tuning(&meta(&[(PREFER_LOCAL, text)]), &mut problems).unwrap_or_default();
            assert_eq!((tuning.preference, problems.first().map(String::as_str)), (expected, problem), "{text}");
        };
        check("true", Preference::Local, None);
        check("true\n", Preference::Local, None);
        check("false", Preference::None, None);
        for text in ["", "True", "yes", "1"] {
            let problem = format!(
                "annotation beeline.io/prefer-local {text:?}: unknown, no endpoint is preferred; write \"true\" or \
                 \"false\""
            );
            check(text, Preference::None, Some(&problem));
        }
    }

    #[test]
    fn a_redirect_names_a_namespace_and_a_service() {
        let check = |text: &str, expected: Option<Key>| {
            let mut problems = Vec::new();
            let tuning = tuning(&meta(&[(REDIRECT_FROM, text)]), &mut problems).unwrap_or_default();
            let problem = expected.is_none().then(|| {
                format!(
                    "annotation beeline.io/redirect-from {text:?}: not NAMESPACE/NAME of a Service, no client is \
                     redirected; write it as in kube-system/kube-dns"
                )
            });
            assert_eq!((tuning.redirect_from, problems.pop()), (expected, problem), "{text}");
        };
        check("kube-system/kube-dns", Some(Key::new("kube-system", "kube-dns")));
        check("a/b\n", Some(Key::new("a", "b")));
        let long = format!("a/{}", "b".repeat(64));
        for text in ["", "/", "kube-dns", "/kube-dns", "a/", "a/b/c", "a/b c", "a/B", "a/b, c/d", "a/\u{0}", &long] {
            check(text.trim(), None);
        }
    }

    #[test]
    fn a_priority_is_an_annotation_or_a_label() {
        let check = |meta: &ObjectMeta, expected: u8, problem: Option<&str>| {
            let mut problems = Vec::new();
            let tier = EndpointTuning::read(meta, "an EndpointSlice", &mut problems).tier;
            assert_eq!((tier, problems.first().map(String::as_str)), (expected, problem), "{meta:?}");
        };
        let labelled = |text: &str, annotations: &[(&str, &str)]| ObjectMeta {
            labels: Some([(PRIORITY.to_owned(), text.to_owned())].into()),
            ..meta(annotations)
        };
        check(&meta(&[]), 0, None);
        check(&meta(&[(PRIORITY, "1\n")]), 1, None);
        check(&labelled("2", &[]), 2, None);
        check(&labelled("2", &[(PRIORITY, "254")]), 254, None);
        let bad = |place, text: &str| {
            format!("{place} beeline.io/priority {text:?}: not a priority, 0 is used; write a number from 0 to 254")
        };
        for text in ["", "-1", "255", "256", "first"] {
            check(&meta(&[(PRIORITY, text)]), 0, Some(&bad("annotation", text)));
            check(&labelled(text, &[]), 0, Some(&bad("label", text)));
        }
    }

    #[test]
    fn a_share_is_a_percentage() {
        let check = |text: &str, expected: Option<u8>| {
            let mut problems = Vec::new();
            let share = tier_share(&meta(&[(PRIORITY_SHARE, text)]), &mut problems).map(NonZeroU8::get);
            let problem = expected.is_none().then(|| {
                format!("annotation beeline.io/priority-share {text:?}: not a share, 50% is used; write 1% to 100%")
            });
            assert_eq!((share, problems.pop()), (expected, problem), "{text}");
        };
        [("1%", 1), ("70%", 70), ("100%", 100)].into_iter().for_each(|(text, share)| check(text, Some(share)));
        ["", "%", "0%", "101%", "50", "-5%", "0.5%", "50 %"].into_iter().for_each(|text| check(text, None));
    }

    #[test]
    fn tuning_holds_only_what_differs_from_the_default() {
        let check = |meta: &ObjectMeta, expected: Option<Tuning>| {
            let mut problems = Vec::new();
            assert_eq!(tuning(meta, &mut problems).map(|tuning| *tuning), expected, "{meta:?}");
            assert!(problems.is_empty(), "{problems:?}");
        };
        check(&ObjectMeta::default(), None);
        check(&meta(&[]), None);
        check(&meta(&[("kubectl.kubernetes.io/last-applied-configuration", "{}"), (TCP_DRAIN, "none")]), None);
        // Random must be kept: the node's default may be another.
        check(
            &meta(&[(SCHEDULER, "random")]),
            Some(Tuning { scheduler: Some(Scheduler::Random), ..Tuning::default() }),
        );
        check(
            &meta(&[(SCHEDULER, "wlc\n"), (WEIGHTS, "10.0.0.1=0"), (TCP_DRAIN, "after 30s")]),
            Some(Tuning {
                scheduler: Some(Scheduler::Wlc),
                weights: vec![("10.0.0.1".parse().unwrap(), 0)],
                drain: Drain::After(30),
                ..Tuning::default()
            }),
        );
    }

    #[test]
    fn scheduler_has_a_known_name_and_beelines_annotation_goes_first() {
        let check = |annotations: &[(&str, &str)], expected: Result<Scheduler, &str>| {
            let mut problems = Vec::new();
            let scheduler = scheduler(&meta(annotations), &mut problems).ok_or(problems);
            assert_eq!(scheduler, expected.map_err(|problem| vec![problem.to_owned()]), "{annotations:?}");
        };
        for scheduler in Scheduler::ALL {
            check(&[(SCHEDULER, scheduler.name())], Ok(scheduler));
            check(&[(KUBE_ROUTER_SCHEDULER, scheduler.name())], Ok(scheduler));
        }
        check(&[(SCHEDULER, "sed"), (KUBE_ROUTER_SCHEDULER, "lc")], Ok(Scheduler::Sed));
        check(
            &[(SCHEDULER, "fastest"), (KUBE_ROUTER_SCHEDULER, "lc")],
            Err("annotation beeline.io/scheduler \"fastest\": unknown, the node's default is used; write one of \
                 random, rr, wrr, lc, wlc, sed, nq, sh, dh, mh"),
        );
        check(
            &[(KUBE_ROUTER_SCHEDULER, "lblc")],
            Err(
                "annotation kube-router.io/service.scheduler \"lblc\": unknown, the node's default is used; write one \
                 of random, rr, wrr, lc, wlc, sed, nq, sh, dh, mh",
            ),
        );
        // Cilium's names of its two algorithms.
        check(&[(CILIUM_ALGORITHM, "maglev")], Ok(Scheduler::Mh));
        check(&[(CILIUM_ALGORITHM, "random")], Ok(Scheduler::Random));
        check(&[(SCHEDULER, "maglev"), (CILIUM_ALGORITHM, "random")], Ok(Scheduler::Mh));
    }

    #[test]
    fn weights_go_by_address_then_by_object() {
        let check = |annotations: &[(&str, &str)], expected: [u16; 3], expected_problems: &[&str]| {
            let mut problems = Vec::new();
            let weights = EndpointTuning::read(&meta(annotations), "an EndpointSlice", &mut problems);
            let addrs = ["10.0.0.1", "10.0.0.2", "fd00::1"];
            assert_eq!(addrs.map(|addr| weights.weight(addr.parse().unwrap())), expected, "{annotations:?}");
            assert_eq!(problems, expected_problems, "{annotations:?}");
        };
        check(&[], [1, 1, 1], &[]);
        check(&[(WEIGHT, "0")], [0, 0, 0], &[]);
        check(&[(WEIGHT, "65535"), (CILIUM_WEIGHT, "2")], [65535, 65535, 65535], &[]);
        check(&[(CILIUM_WEIGHT, "2"), (WEIGHTS, " fd00::1 = 5,\n10.0.0.1=0,")], [0, 2, 5], &[]);
        check(&[(WEIGHTS, "")], [1, 1, 1], &[]);
        check(
            &[(WEIGHT, "65536"), (CILIUM_WEIGHT, "2")],
            [1, 1, 1],
            &["annotation beeline.io/weight \"65536\": not a weight, 1 is used; write a number from 0 to 65535"],
        );
        check(
            &[(CILIUM_WEIGHT, "many")],
            [1, 1, 1],
            &["annotation service.cilium.io/weight \"many\": not a weight, 1 is used; write a number from 0 to 65535"],
        );
        check(
            &[(WEIGHTS, "10.0.0.1=3, 10.0.0.1=4, 10.0.0.2, 10.0.0=1, ::ffff:10.0.0.2=2, fd00::1=65536, fd00::1=-1")],
            [3, 2, 1],
            &[
                "annotation beeline.io/weights: 10.0.0.1 listed twice; the first counts, remove one",
                "annotation beeline.io/weights \"10.0.0.2\": not an address, = and a number from 0 to 65535; \
                 write it as in 10.0.0.1=3",
                "annotation beeline.io/weights \"10.0.0\": not an IP address; fix or remove it",
                "annotation beeline.io/weights \"::ffff:10.0.0.2\": not in standard form, read as 10.0.0.2; \
                 write it as 10.0.0.2",
                "annotation beeline.io/weights \"fd00::1=65536\": not an address, = and a number from 0 to 65535; \
                 write it as in 10.0.0.1=3",
                "annotation beeline.io/weights \"fd00::1=-1\": not an address, = and a number from 0 to 65535; \
                 write it as in 10.0.0.1=3",
            ],
        );
    }

    #[test]
    fn drain_has_three_forms() {
        let check = |text: &str, expected: Option<Drain>| {
            let mut problems = Vec::new();
            let drain = drain(text, &mut problems);
            assert_eq!(drain, expected.unwrap_or_default(), "{text:?}");
            assert_eq!(problems.len(), usize::from(expected.is_none()), "{problems:?}");
        };
        check("none", Some(Drain::Never));
        check("on-removal", Some(Drain::After(0)));
        check("after 0s", Some(Drain::After(0)));
        check("after 30s", Some(Drain::After(30)));
        check("after  5m", Some(Drain::After(300)));
        check("after 1h30m", Some(Drain::After(5400)));
        check("after 1h0m5s", Some(Drain::After(3605)));
        check("after 4294967294s", Some(Drain::After(NEVER - 1)));
        for bad in [
            "",
            "never",
            "None",
            "after",
            "30s",
            "after 30",
            "after s",
            "after 30ms",
            "after 1.5h",
            "after -1s",
            "after 30 s",
            "after 1d",
            "after 5µs",
            "after 4294967295s",
            "after 4294967296s",
            "after 2000000h",
        ] {
            check(bad, None);
        }
        let mut problems = Vec::new();
        drain("soon", &mut problems);
        assert_eq!(
            problems,
            ["annotation beeline.io/tcp-drain \"soon\": unknown, none is used; write none, on-removal, or after with \
                 a time such as 30s, 5m or 1h30m"]
        );
    }

    #[test]
    fn unknown_annotations_with_beelines_prefix_are_problems() {
        let meta = meta(&[("beeline.io/shceduler", "rr"), (WEIGHT, "2"), ("example.com/weights", "x")]);
        let mut problems = Vec::new();
        assert_eq!(tuning(&meta, &mut problems), None);
        EndpointTuning::read(&meta, "an EndpointSlice", &mut problems);
        let of_services = OF_SERVICES.join(", ");
        let unknown =
            |name: &str, known: &str| format!("annotation {name}: unknown on {known}; fix its name or remove it");
        assert_eq!(
            problems,
            [
                unknown("beeline.io/shceduler", &format!("a Service, which has {of_services}")),
                unknown("beeline.io/weight", &format!("a Service, which has {of_services}")),
                unknown("beeline.io/shceduler", &format!("an EndpointSlice, which has {}", OF_ENDPOINTS.join(", "))),
            ]
        );
    }
}

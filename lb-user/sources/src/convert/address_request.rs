//! Requests of Services for load balancer addresses: by Beeline's annotations, by those of MetalLB and of Cilium with
//! the same meaning, and by `spec.loadBalancerIP`. Values that contradict each other are a problem of the request.

use std::{collections::BTreeSet, fmt::Debug, net::IpAddr, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_common::Family;
use lb_core::{
    allot::{AddressRequest, Attraction, SharedWith, Sharing, Stack},
    port_ranges::PortSpan,
};

use super::{
    address::{addr, parse_ip},
    annotations::{LB_ADDRESSES, LB_POOL, LB_SHARING_KEY, LB_SHARING_NAMESPACES, get, port_ranges},
    key, list, port,
};
use crate::api;

/// Type of the condition that `beeline lb` writes into the status of a Service.
pub const ADDRESS_CONDITION: &str = "beeline.io/LoadBalancerAddress";
/// Reason of that condition if nothing is wrong.
pub(crate) const ALLOTTED: &str = "Allotted";
/// `spec.loadBalancerClass` of Services that Beeline allots addresses to.
const CLASS: &str = "beeline.io/lb";

// MetalLB's annotations (controller/service.go): the present name first.
const METALLB_ADDRESSES: [&str; 2] = ["metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"];
const METALLB_POOL: [&str; 2] = ["metallb.io/address-pool", "metallb.universe.tf/address-pool"];
const METALLB_SHARING_KEY: [&str; 2] = ["metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"];
// Cilium's annotations (its documentation, "LoadBalancer IP Address Management"; pkg/annotation/k8s.go).
const CILIUM_ADDRESSES: [&str; 2] = ["lbipam.cilium.io/ips", "io.cilium/lb-ipam-ips"];
const CILIUM_SHARING_KEY: [&str; 2] = ["lbipam.cilium.io/sharing-key", "io.cilium/lb-ipam-sharing-key"];
const CILIUM_SHARING_NAMESPACES: [&str; 2] =
    ["lbipam.cilium.io/sharing-cross-namespace", "io.cilium/lb-ipam-sharing-cross-namespace"];

/// True for an annotation of MetalLB or of Cilium that [`address_request`] reads.
pub(crate) fn is_address_annotation(name: &str) -> bool {
    let groups: [&[&str]; 6] = [
        &METALLB_ADDRESSES,
        &METALLB_POOL,
        &METALLB_SHARING_KEY,
        &CILIUM_ADDRESSES,
        &CILIUM_SHARING_KEY,
        &CILIUM_SHARING_NAMESPACES,
    ];
    groups.iter().any(|names| names.contains(&name))
}

/// The controller of a Service's load balancer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BalancerClass {
    /// The Service names Beeline.
    Beeline,
    /// The Service names none.
    Default,
    /// The Service names another one.
    Other,
}

impl BalancerClass {
    /// Returns the class of a Service of type LoadBalancer; None for other types.
    #[must_use]
    pub fn of(object: &api::Service) -> Option<Self> {
        let spec = object.spec.as_ref().filter(|spec| spec.type_.as_deref() == Some("LoadBalancer"))?;
        Some(match spec.load_balancer_class.as_deref() {
            Some(CLASS) => Self::Beeline,
            None | Some("") => Self::Default,
            Some(_) => Self::Other,
        })
    }
}

/// Returns the condition that `beeline lb` wrote.
#[must_use]
pub(crate) fn address_condition(object: &api::Service) -> Option<&api::Condition> {
    let conditions = object.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == ADDRESS_CONDITION)
}

/// Returns the addresses in the status of a Service; texts that are no address are ignored.
#[must_use]
pub(crate) fn ingress_addresses(object: &api::Service) -> Vec<IpAddr> {
    let balancer = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.map_or(&[][..], |balancer| list(&balancer.ingress));
    ingress.iter().filter_map(|ingress| parse_ip(ingress.ip.as_deref()?)).collect()
}

/// Converts a Service of type LoadBalancer.
#[must_use]
pub(crate) fn address_request(object: &api::Service) -> AddressRequest {
    let meta = &object.metadata;
    let default = api::ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&default);
    let mut problems = Vec::new();
    let mut ports = BTreeSet::new();
    for (i, object) in list(&spec.ports).iter().enumerate() {
        // Wrong ports are a problem of the Service itself.
        let parsed = port(&mut Vec::new(), format_args!("ports[{i}]"), object);
        ports.extend(parsed.map(|(proto, port)| (proto, PortSpan { first: port.get(), last: port.get() })));
    }
    for ranges in port_ranges(meta, &mut Vec::new()) {
        ports.extend(ranges.spans.iter().map(|span| (ranges.proto, *span)));
    }
    let is_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let attraction = if is_local {
        Attraction::NodesOfPods(spec.selector.clone().unwrap_or_default())
    } else {
        Attraction::EveryNode
    };
    AddressRequest {
        created: meta.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        families: families(spec),
        stack: match spec.ip_family_policy.as_deref() {
            Some("PreferDualStack") => Stack::Any,
            _ => Stack::All,
        },
        addresses: addresses(meta, spec, &mut problems),
        pool: pool(meta, &mut problems),
        sharing: sharing(meta, &mut problems),
        ports,
        attraction,
        labels: meta.labels.clone().unwrap_or_default(),
        holds: ingress_addresses(object),
        problems,
        ..AddressRequest::new(key(meta))
    }
}

/// Returns the families of a Service: those of its cluster IPs where a file leaves out `ipFamilies`.
fn families(spec: &api::ServiceSpec) -> Vec<Family> {
    let named = list(&spec.ip_families).iter().filter_map(|name| match name.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    });
    let mut families: Vec<Family> = named.collect();
    if families.is_empty() {
        let single = spec.cluster_ip.iter().filter(|_| list(&spec.cluster_ips).is_empty());
        let cluster_ips = list(&spec.cluster_ips).iter().chain(single).filter_map(|text| parse_ip(text));
        families.extend(cluster_ips.map(|ip| if ip.is_ipv4() { Family::V4 } else { Family::V6 }));
    }
    families.dedup();
    families
}

/// A value of a request, and the field that has it.
struct Value<T> {
    place: &'static str,
    value: T,
}

/// Returns the common value of several fields; none if there is no field, or if they differ, which is a problem.
fn agreed<T: PartialEq + Debug>(
    values: Vec<Value<T>>,
    text: impl Fn(&T) -> String,
    problems: &mut Vec<String>,
) -> Option<T> {
    let mut values = values.into_iter();
    let first = values.next()?;
    if let Some(other) = values.find(|other| other.value != first.value) {
        problems.push(format!(
            "{} {:?} and {} {:?} contradict each other; remove one of the two",
            first.place,
            text(&first.value),
            other.place,
            text(&other.value)
        ));
        return None;
    }
    Some(first.value)
}

/// Returns the annotations of these names that have a text. Of an annotation's two names the first counts.
fn texts<'a>(meta: &'a ObjectMeta, names: &[&[&'static str]]) -> Vec<Value<&'a str>> {
    let first =
        |names: &&[&'static str]| names.iter().find_map(|place| Some(Value { place, value: get(meta, place)? }));
    names.iter().filter_map(first).filter(|text| !text.value.is_empty()).collect()
}

fn addresses(meta: &ObjectMeta, spec: &api::ServiceSpec, problems: &mut Vec<String>) -> Vec<IpAddr> {
    let mut texts = texts(meta, &[&[LB_ADDRESSES], &METALLB_ADDRESSES, &CILIUM_ADDRESSES]);
    let field = spec.load_balancer_ip.as_deref().map(str::trim).filter(|text| !text.is_empty());
    texts.extend(field.map(|value| Value { place: "spec.loadBalancerIP", value }));
    let mut values = Vec::new();
    for Value { place, value } in texts {
        let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
        let parsed: BTreeSet<IpAddr> = parts.filter_map(|part| addr(problems, format_args!("{place}"), part)).collect();
        values.push(Value { place, value: parsed });
    }
    let text = |addrs: &BTreeSet<IpAddr>| addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    agreed(values, text, problems).unwrap_or_default().into_iter().collect()
}

fn pool(meta: &ObjectMeta, problems: &mut Vec<String>) -> Option<Arc<str>> {
    let texts = texts(meta, &[&[LB_POOL], &METALLB_POOL]);
    agreed(texts, |text| (*text).to_owned(), problems).map(Arc::from)
}

fn sharing(meta: &ObjectMeta, problems: &mut Vec<String>) -> Option<Sharing> {
    let texts = texts(meta, &[&[LB_SHARING_KEY], &METALLB_SHARING_KEY, &CILIUM_SHARING_KEY]);
    let place = texts.first().map(|text| text.place)?;
    let key = agreed(texts, |text| (*text).to_owned(), problems)?;
    let namespaces = match place {
        LB_SHARING_KEY => namespaces(get(meta, LB_SHARING_NAMESPACES)),
        place if METALLB_SHARING_KEY.contains(&place) => SharedWith::All,
        _ => namespaces(CILIUM_SHARING_NAMESPACES.iter().find_map(|name| get(meta, name))),
    };
    Some(Sharing { key: key.into(), namespaces })
}

/// Parses a list of namespaces; `*` is all.
fn namespaces(text: Option<&str>) -> SharedWith {
    let names: BTreeSet<Arc<str>> =
        text.unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty()).map(Arc::from).collect();
    if names.contains("*") { SharedWith::All } else { SharedWith::These(names) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::tests::yaml;

    /// Converts a Service with these annotations and this spec.
    fn request(annotations: &str, spec: &str) -> AddressRequest {
        address_request(&yaml(&format!(
            "{{metadata: {{name: a, namespace: d, annotations: {{{annotations}}}}}, \
             spec: {{type: LoadBalancer, {spec}}}}}"
        )))
    }

    #[test]
    fn an_address_is_asked_for_by_each_field_and_by_several_that_agree() {
        let check = |annotations: &str, spec: &str, expected: &[&str]| {
            let request = request(annotations, spec);
            let addresses: Vec<_> = request.addresses.iter().map(ToString::to_string).collect();
            assert_eq!(
                (addresses.as_slice(), request.problems.as_slice()),
                (&*own(expected), &[][..]),
                "{annotations}"
            );
        };
        check("", "", &[]);
        check("", "loadBalancerIP: 192.0.2.1", &["192.0.2.1"]);
        for name in [
            "beeline.io/lb-addresses",
            "metallb.io/loadBalancerIPs",
            "metallb.universe.tf/loadBalancerIPs",
            "lbipam.cilium.io/ips",
            "io.cilium/lb-ipam-ips",
        ] {
            check(&format!("{name}: '192.0.2.1, 2001:db8::1'"), "", &["192.0.2.1", "2001:db8::1"]);
            check(&format!("{name}: 192.0.2.1"), "loadBalancerIP: 192.0.2.1", &["192.0.2.1"]);
        }
        check(
            "metallb.io/loadBalancerIPs: 192.0.2.1, metallb.universe.tf/loadBalancerIPs: 192.0.2.9",
            "",
            &["192.0.2.1"],
        );
        check("beeline.io/lb-addresses: '', lbipam.cilium.io/ips: 192.0.2.1", "", &["192.0.2.1"]);
    }

    #[test]
    fn fields_that_contradict_each_other_ask_for_nothing_and_are_a_problem() {
        let check = |annotations: &str, spec: &str, expected: &[&str]| {
            let request = request(annotations, spec);
            assert_eq!(request.problems, expected, "{annotations}");
            assert!(request.addresses.is_empty() && request.pool.is_none() && request.sharing.is_none());
        };
        check(
            "beeline.io/lb-addresses: 192.0.2.1, metallb.io/loadBalancerIPs: 192.0.2.2",
            "",
            &["beeline.io/lb-addresses \"192.0.2.1\" and metallb.io/loadBalancerIPs \"192.0.2.2\" contradict each \
               other; remove one of the two"],
        );
        check(
            "lbipam.cilium.io/ips: 192.0.2.1",
            "loadBalancerIP: 192.0.2.2",
            &["lbipam.cilium.io/ips \"192.0.2.1\" and spec.loadBalancerIP \"192.0.2.2\" contradict each other; \
               remove one of the two"],
        );
        check(
            "beeline.io/lb-pool: p, metallb.io/address-pool: q",
            "",
            &["beeline.io/lb-pool \"p\" and metallb.io/address-pool \"q\" contradict each other; remove one of \
                 the two"],
        );
        check(
            "metallb.io/allow-shared-ip: k, lbipam.cilium.io/sharing-key: l",
            "",
            &["metallb.io/allow-shared-ip \"k\" and lbipam.cilium.io/sharing-key \"l\" contradict each other; remove \
               one of the two"],
        );
        check("", "loadBalancerIP: web", &["spec.loadBalancerIP \"web\": not an IP address; fix or remove it"]);
    }

    #[test]
    fn the_sharing_key_says_with_which_namespaces() {
        let check = |annotations: &str, expected: Option<(&str, Option<&[&str]>)>| {
            let sharing = request(annotations, "").sharing;
            let expected = expected.map(|(key, namespaces)| Sharing {
                key: key.into(),
                namespaces: namespaces.map_or(SharedWith::All, |names| {
                    SharedWith::These(names.iter().map(|name| Arc::from(*name)).collect())
                }),
            });
            assert_eq!(sharing, expected, "{annotations}");
        };
        check("", None);
        check("beeline.io/lb-sharing-key: ''", None);
        check("beeline.io/lb-sharing-key: k", Some(("k", Some(&[]))));
        check("beeline.io/lb-sharing-key: k, beeline.io/lb-sharing-namespaces: 'a, b'", Some(("k", Some(&["a", "b"]))));
        check("beeline.io/lb-sharing-key: k, beeline.io/lb-sharing-namespaces: '*'", Some(("k", None)));
        // MetalLB asks for no consent of namespaces.
        check("metallb.io/allow-shared-ip: k", Some(("k", None)));
        check("metallb.universe.tf/allow-shared-ip: k", Some(("k", None)));
        check("lbipam.cilium.io/sharing-key: k", Some(("k", Some(&[]))));
        check(
            "io.cilium/lb-ipam-sharing-key: k, io.cilium/lb-ipam-sharing-cross-namespace: 'a'",
            Some(("k", Some(&["a"]))),
        );
    }

    #[test]
    fn families_policy_and_ports_are_those_of_the_spec() {
        let request = request(
            "",
            "ipFamilies: [IPv6, IPv4], ipFamilyPolicy: PreferDualStack, externalTrafficPolicy: Local, \
             selector: {app: a}, ports: [{port: 53, protocol: UDP}, {port: 0}]",
        );
        assert_eq!((request.families, request.stack), (vec![Family::V6, Family::V4], Stack::Any));
        assert_eq!(request.attraction, Attraction::NodesOfPods([("app".to_owned(), "a".to_owned())].into()));
        let ports: Vec<_> = request.ports.iter().map(|(proto, port)| format!("{port}/{}", proto.name())).collect();
        assert_eq!(ports, ["53/UDP"]);
        let ranged = super::tests::request("beeline.io/ports: '5060-5160/udp, 53/udp'", "ports: [{port: 80}]");
        let ports: Vec<_> = ranged.ports.iter().map(|(proto, span)| format!("{span}/{}", proto.name())).collect();
        assert_eq!(ports, ["80/TCP", "53/UDP", "5060-5160/UDP"]);
        let file = super::tests::request("", "clusterIPs: [10.96.0.1, 'fd96::1']");
        assert_eq!((file.families, file.stack), (vec![Family::V4, Family::V6], Stack::All));
        assert_eq!(super::tests::request("", "clusterIP: 'fd96::1'").families, [Family::V6]);
    }

    #[test]
    fn the_class_decides_which_controller_serves_a_load_balancer() {
        let class = |spec: &str| BalancerClass::of(&yaml(&format!("{{spec: {{{spec}}}}}")));
        assert_eq!(class("type: ClusterIP"), None);
        assert_eq!(class("type: LoadBalancer"), Some(BalancerClass::Default));
        assert_eq!(class("type: LoadBalancer, loadBalancerClass: beeline.io/lb"), Some(BalancerClass::Beeline));
        assert_eq!(class("type: LoadBalancer, loadBalancerClass: x.io/y"), Some(BalancerClass::Other));
    }

    fn own(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }
}

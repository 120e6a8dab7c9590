//! Conversion of an AddressPool.

use std::fmt::Display;

use super::list;
use crate::api;
use lb_core::{
    allot::{AddressPool, AddressRange, PoolOffer},
    label_selector::LabelSelector,
};

/// Converts an AddressPool. A selector that cannot be read selects nothing: the pool may be meant for few.
#[must_use]
pub(crate) fn address_pool(object: &api::AddressPool) -> AddressPool {
    let meta = &object.metadata;
    let default = api::AddressPoolSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&default);
    let mut problems = Vec::new();
    let mut ranges = Vec::with_capacity(list(&spec.addresses).len());
    for (i, text) in list(&spec.addresses).iter().enumerate() {
        match text.parse::<AddressRange>() {
            Ok(range) => ranges.push(range),
            Err(problem) => problems.push(format!("spec.addresses[{i}] {text:?}: {problem}")),
        }
    }
    let offer = match spec.allotment.as_deref() {
        None | Some("" | "Automatic") => PoolOffer::Automatic,
        Some("OnRequest") => PoolOffer::OnRequest,
        Some(other) => {
            problems
                .push(format!("spec.allotment {other:?}: unknown, OnRequest is used; write Automatic or OnRequest"));
            PoolOffer::OnRequest
        }
    };
    let priority = spec.priority.and_then(|number| {
        let priority = u32::try_from(number).ok();
        if priority.is_none() {
            problems.push(format!("spec.priority {number}: out of range, none is used; write 0 to {}", u32::MAX));
        }
        priority
    });
    let namespaces = selectors("namespaceSelectors", list(&spec.namespace_selectors), &mut problems);
    let services = selectors("serviceSelectors", list(&spec.service_selectors), &mut problems);
    AddressPool {
        created: meta.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        ranges,
        offer,
        priority,
        namespaces,
        services,
        problems,
        ..AddressPool::new(meta.name.as_deref().unwrap_or_default())
    }
}

/// Converts the selectors in the field `place`.
fn selectors(place: &str, selectors: &[api::Selector], problems: &mut Vec<String>) -> Vec<LabelSelector> {
    let numbered = selectors.iter().enumerate();
    numbered.map(|(i, one)| selector(format_args!("{place}[{i}]"), one, problems)).collect()
}

/// Converts a selector. An unknown operator makes it select nothing.
fn selector(place: impl Display, selector: &api::Selector, problems: &mut Vec<String>) -> LabelSelector {
    let labels = selector.match_labels.iter().flatten();
    let equal = labels.map(|(label, value)| (label.as_str(), "In", vec![value.clone()]));
    let expressions = list(&selector.match_expressions).iter();
    let expressions = expressions.map(|one| (one.key.as_str(), one.operator.as_str(), list(&one.values).to_vec()));
    let mut converted = LabelSelector::default();
    for (label, operator, values) in equal.chain(expressions) {
        match converted.and(label, operator, &values) {
            Some(more) => converted = more,
            None => {
                problems.push(format!(
                    "spec.{place}: operator {operator:?} unknown, nothing is selected; write In, NotIn, Exists or \
                     DoesNotExist"
                ));
                return LabelSelector::nothing();
            }
        }
    }
    converted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::tests::yaml;

    #[test]
    fn a_pool_has_addresses_an_offer_a_priority_and_selectors() {
        let pool = address_pool(&yaml(
            "{metadata: {name: p, creationTimestamp: '1970-01-01T00:00:07Z'}, spec: {addresses: [192.0.2.0/24, \
             2001:db8::1-2001:db8::9], allotment: OnRequest, priority: 3, namespaceSelectors: [{matchLabels: {team: \
             x}}], serviceSelectors: [{matchExpressions: [{key: app, operator: In, values: [a, b]}]}]}}",
        ));
        let ranges: Vec<_> = pool.ranges.iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["192.0.2.0/24", "2001:db8::1-2001:db8::9"]);
        let labels = |label: &str, value: &str| [(label.to_owned(), value.to_owned())].into();
        let selects = |selector: &[LabelSelector], label: &str, value: &str| {
            selector.iter().any(|selector| selector.matches(&labels(label, value)))
        };
        assert!(selects(&pool.namespaces, "team", "x") && !selects(&pool.namespaces, "team", "y"));
        assert!(selects(&pool.services, "app", "b") && !selects(&pool.services, "app", "c"));
        assert_eq!(
            (&*pool.name, pool.created, pool.offer, pool.priority),
            ("p", Some(7), PoolOffer::OnRequest, Some(3))
        );
        assert!(pool.problems.is_empty(), "{:?}", pool.problems);
        let plain = address_pool(&yaml("{metadata: {name: p}, spec: {addresses: [192.0.2.1]}}"));
        assert_eq!((plain.offer, plain.priority, plain.namespaces), (PoolOffer::Automatic, None, vec![]));
    }

    #[test]
    fn wrong_values_of_a_pool_are_problems_and_open_it_to_none() {
        let pool = address_pool(&yaml(
            "{metadata: {name: p}, spec: {addresses: [192.0.2.1/24, x, 127.0.0.1, 192.0.2.9], allotment: Never, \
             priority: -1, namespaceSelectors: [{matchExpressions: [{key: a, operator: Near}]}]}}",
        ));
        assert_eq!((pool.ranges.len(), pool.offer, pool.priority), (1, PoolOffer::OnRequest, None));
        let all = [("a".to_owned(), String::new())].into();
        assert!(!pool.namespaces[0].matches(&all));
        let texts =
            ["spec.addresses[0] \"192.0.2.1/24\": bits behind the prefix are set; write 192.0.2.0/24 for all of it"];
        assert_eq!(pool.problems[..1], texts);
        let places: Vec<_> = pool.problems.iter().filter_map(|text| text.split([' ', ':']).next()).collect();
        assert_eq!(
            places,
            [
                "spec.addresses[0]",
                "spec.addresses[1]",
                "spec.addresses[2]",
                "spec.allotment",
                "spec.priority",
                "spec.namespaceSelectors[0]"
            ]
        );
    }
}

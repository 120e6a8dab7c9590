//! Writes of a pass, as data: the status of each Service and pool that differs from its allotment. Equal objects need
//! no write, so that passes cost none.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::jiff::Timestamp;
use lb_common::Family;
use lb_core::{
    allot::{Allotment, FamilyUsage, PoolUsage},
    objects::Key,
};
use lb_sources::{
    api::{AddressCounts, AddressPoolStatus, Condition},
    convert::ADDRESS_CONDITION,
    kubernetes::load_balancers::{BalancerPool, BalancerService},
};
use serde_json::{Value, json};

/// Most characters of a condition's message; the API allows 32768.
const MAX_MESSAGE: usize = 4096;
/// Most problems in the status of a pool.
const MAX_PROBLEMS: usize = 20;

/// Condition of a pool: all its addresses may be allotted.
const POOL_CONDITION: &str = "Valid";

/// A write of a status.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Write {
    /// Status of a Service.
    Service(Key, Value),
    /// Status of a pool.
    Pool(Arc<str>, Value),
}

/// Lists the writes that the allotments need. `now` is the time of changed conditions.
pub(super) fn writes(
    services: &BTreeMap<Key, BalancerService>,
    allotments: &BTreeMap<Key, Allotment>,
    pools: &BTreeMap<Key, BalancerPool>,
    usage: &BTreeMap<Arc<str>, PoolUsage>,
    now: Timestamp,
) -> Vec<Write> {
    let of_service = |(key, service): (&Key, &BalancerService)| {
        let patch = service_patch(service, allotments.get(key)?, now)?;
        Some(Write::Service(key.clone(), patch))
    };
    let of_pool = |pool: &BalancerPool| {
        let name = &pool.pool.name;
        let status = pool_status(usage.get(name)?, pool.status.as_ref(), now);
        // A family that has gone is null, which removes it.
        let patch = json!({"status": {"ipv4": status.ipv4, "ipv6": status.ipv6, "problems": status.problems,
            "conditions": status.conditions}});
        (pool.status.as_ref() != Some(&status)).then(|| Write::Pool(name.clone(), patch))
    };
    services.iter().filter_map(of_service).chain(pools.values().filter_map(of_pool)).collect()
}

/// Returns the strategic merge patch of a Service's status; None if it is right. The version makes the server refuse
/// the patch if the Service has changed meanwhile.
fn service_patch(service: &BalancerService, allotment: &Allotment, now: Timestamp) -> Option<Value> {
    let addresses: Vec<IpAddr> = allotment.addresses.iter().map(|(addr, _)| *addr).collect();
    let status = if addresses.is_empty() { "False" } else { "True" };
    let (reason, mut message) = (allotment.reason(), allotment.message());
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    let before = service.condition.as_ref();
    let is_right =
        before.is_some_and(|before| before.status == status && before.reason == reason && before.message == message);
    if is_right && service.request.holds == addresses {
        return None;
    }
    let mut condition = json!({"type": ADDRESS_CONDITION, "status": status, "reason": reason, "message": message});
    if before.is_none_or(|before| before.status != status) {
        condition["lastTransitionTime"] = rfc3339(now).into();
    }
    let ingress: Vec<_> = addresses.iter().map(|addr| json!({"ip": addr, "ipMode": "VIP"})).collect();
    Some(json!({
        "metadata": {"resourceVersion": service.resource_version},
        "status": {"loadBalancer": {"ingress": ingress}, "conditions": [condition]},
    }))
}

fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn pool_status(usage: &PoolUsage, before: Option<&AddressPoolStatus>, now: Timestamp) -> AddressPoolStatus {
    let number = |number: u128| i64::try_from(number).unwrap_or(i64::MAX);
    let counts = |family: Family| {
        let FamilyUsage { used, free } = usage.families[family];
        (used > 0 || free > 0).then(|| AddressCounts { used: number(used), free: number(free) })
    };
    let problems: Vec<String> = usage.problems.iter().take(MAX_PROBLEMS).map(ToString::to_string).collect();
    let (status, reason) = usage.problems.first().map_or(("True", "AllAllotted"), |first| ("False", first.reason()));
    let mut message = problems.join("; ");
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    let mut conditions = before.iter().flat_map(|before| before.conditions.iter().flatten());
    let unchanged = conditions.find(|old| old.type_ == POOL_CONDITION && old.status == status);
    let condition = Condition {
        type_: POOL_CONDITION.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: unchanged.map_or_else(|| Some(rfc3339(now)), |old| old.last_transition_time.clone()),
    };
    AddressPoolStatus {
        conditions: Some(vec![condition]),
        ipv4: counts(Family::V4),
        ipv6: counts(Family::V6),
        problems: (!problems.is_empty()).then_some(problems),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::known::tests::service, *};
    use lb_core::allot::{AddressPool, AddressProblem, NotGiven, PoolProblem};

    fn now() -> Timestamp {
        Timestamp::from_second(86_400).expect("a time")
    }

    fn allotted(last: &[u8], problems: Vec<AddressProblem>) -> Allotment {
        let addresses = last.iter().map(|last| (IpAddr::from([192, 0, 2, *last]), Some("p".into()))).collect();
        Allotment { addresses, problems, ..Allotment::default() }
    }

    fn condition(status: &str, reason: &str, message: &str) -> Option<Condition> {
        let [status, reason, message] = [status, reason, message].map(str::to_owned);
        Some(Condition { type_: ADDRESS_CONDITION.to_owned(), status, reason, message, last_transition_time: None })
    }

    #[test]
    fn a_status_that_is_right_needs_no_write() {
        let (_, mut service) = service("a", 7, &[1]);
        service.condition = condition("True", "Allotted", "192.0.2.1 from pool p");
        assert_eq!(service_patch(&service, &allotted(&[1], vec![]), now()), None);
        let full = AddressProblem::NoAddress(Family::V4, vec![("p".into(), NotGiven::Full)]);
        service.request.holds.clear();
        service.condition =
            condition("False", "NoFreeAddress", "no pool gives it an IPv4 address: p has no free one (add addresses)");
        assert_eq!(service_patch(&service, &allotted(&[], vec![full]), now()), None);
    }

    #[test]
    fn a_patch_names_the_version_that_it_changes_the_addresses_and_the_reason() {
        let (_, service) = service("a", 7, &[]);
        assert_eq!(
            service_patch(&service, &allotted(&[1], vec![]), now()),
            Some(json!({
                "metadata": {"resourceVersion": "7"},
                "status": {
                    "loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]},
                    "conditions": [{
                        "type": "beeline.io/LoadBalancerAddress", "status": "True", "reason": "Allotted",
                        "message": "192.0.2.1 from pool p", "lastTransitionTime": "1970-01-02T00:00:00Z",
                    }],
                },
            }))
        );
    }

    #[test]
    fn the_time_of_a_condition_changes_with_its_status_only() {
        let (_, mut service) = service("a", 7, &[1]);
        let time = |service: &BalancerService, last: &[u8]| {
            let patch = service_patch(service, &allotted(last, vec![]), now()).expect("a patch");
            patch["status"]["conditions"][0].get("lastTransitionTime").is_some()
        };
        assert!(time(&service, &[1]));
        service.condition = condition("True", "Allotted", "192.0.2.1 from pool old");
        assert!(!time(&service, &[1]));
        service.condition = condition("False", "NoPool", "x");
        assert!(time(&service, &[1]));
    }

    #[test]
    fn the_status_of_a_pool_counts_each_family_and_names_its_problems() {
        let mut usage = PoolUsage { problems: vec![PoolProblem::Empty], ..PoolUsage::default() };
        usage.families.v4 = FamilyUsage { used: 1, free: 2 };
        usage.families.v6 = FamilyUsage { used: 0, free: 1 << 64 };
        let status = pool_status(&usage, None, now());
        let counts = |used, free| Some(AddressCounts { used, free });
        assert_eq!((status.ipv4, status.ipv6), (counts(1, 2), counts(0, i64::MAX)));
        let pool = |status| {
            let pool = BalancerPool { pool: AddressPool::new("p"), status };
            BTreeMap::from([(Key::new("", "p"), pool)])
        };
        let writes = |pools: &BTreeMap<Key, BalancerPool>| {
            let usage = BTreeMap::from([(Arc::from("p"), usage.clone())]);
            writes(&BTreeMap::new(), &BTreeMap::new(), pools, &usage, now())
        };
        assert_eq!(writes(&pool(Some(status))), []);
        let expected = json!({"status": {"ipv4": {"used": 1, "free": 2}, "ipv6": {"used": 0, "free": i64::MAX},
            "problems": ["spec.addresses: no address; add some"],
            "conditions": [{"type": "Valid", "status": "False", "reason": "NoAddresses",
                "message": "spec.addresses: no address; add some", "lastTransitionTime": "1970-01-02T00:00:00Z"}]}});
        assert_eq!(writes(&pool(None)), [Write::Pool("p".into(), expected)]);
    }

    #[test]
    fn the_condition_of_a_pool_keeps_its_time_while_its_status_stays() {
        let usage = |problems: Vec<PoolProblem>| PoolUsage { problems, ..PoolUsage::default() };
        let later = Timestamp::from_second(2 * 86_400).expect("a time");
        let condition = |status: &AddressPoolStatus| {
            let [condition] = status.conditions.as_deref().expect("conditions") else { panic!("{status:?}") };
            let time = condition.last_transition_time.as_deref().expect("a time")[8..10].to_owned();
            format!("{} {} {time}", condition.status, condition.reason)
        };
        let node = PoolProblem::Node(IpAddr::from([192, 0, 2, 1]));
        let first = pool_status(&usage(vec![node.clone()]), None, now());
        assert_eq!(condition(&first), "False NodeAddress 02");
        let second = pool_status(&usage(vec![PoolProblem::Empty, node]), Some(&first), later);
        assert_eq!(condition(&second), "False NoAddresses 02");
        let third = pool_status(&usage(vec![]), Some(&second), later);
        assert_eq!(condition(&third), "True AllAllotted 03");
    }
}

//! Warnings: their reasons, and the bounds of their number.

use super::*;
use crate::{
    objects::AddressReport,
    warning::{ObjectRef, Warning, WarningReason},
};

#[test]
fn each_warning_has_its_reason() {
    let older = Service { external_ips: vec![addr("192.0.2.7")], ..named("0") };
    let service = Service {
        external_ips: vec![addr("192.0.2.7"), addr("127.0.0.1")],
        problems: vec!["healthCheckNodePort 0: not a port; use 1 to 65535".to_owned()],
        internal_policy: Policy::Local,
        cluster_ips: vec![addr("10.96.0.2")],
        ..service()
    };
    let case = Case { others: vec![older], ..Case::new(service, &["127.0.0.1; 2 nodeless"]) };
    let warnings = case.spec().warnings;
    let reasons: Vec<_> = warnings.iter().map(|warning| (warning.reason(), warning.to_string())).collect();
    let expected = [
        (WarningReason::InvalidValue, "healthCheckNodePort 0: not a port; use 1 to 65535"),
        (WarningReason::FrontendNotServed, "spec.externalIPs: 127.0.0.1 is a loopback address"),
        (WarningReason::FrontendConflict, "192.0.2.7:80/TCP (ExternalIP) belongs to the Service default/0"),
        (WarningReason::EndpointNotUsed, "its endpoint 127.0.0.1:8080 is not used"),
        (WarningReason::CheckService, "internalTrafficPolicy is Local, but its endpoint 10.0.0.2:8080 has no nodeName"),
    ];
    assert_eq!(reasons.len(), expected.len(), "{reasons:#?}");
    for ((reason, text), (expected, start)) in reasons.iter().zip(expected) {
        assert!(*reason == expected && text.starts_with(start), "{reason:?}: {text}");
    }
}

#[test]
fn a_problem_of_the_load_balancer_address_is_a_warning_and_an_allotted_address_is_none() {
    let report = |is_clean: bool| {
        let message = "no free IPv4 address in pool p; add addresses".to_owned();
        let address_report = Some(Arc::new(AddressReport { is_clean, message }));
        Case::new(Service { address_report, ..service() }, &["1"])
    };
    assert_eq!(report(false).spec().warnings[0].reason(), WarningReason::LoadBalancerAddress);
    assert_eq!(report(false).warnings(), ["load balancer address: no free IPv4 address in pool p; add addresses"]);
    assert!(report(true).warnings().is_empty());
}

#[test]
fn a_service_without_problems_has_no_warning() {
    assert!(Case::new(service(), &["1"]).warnings().is_empty());
}

#[test]
fn a_warning_names_the_object_at_fault() {
    let mut case = Case::new(service(), &["1"]);
    let slice = Arc::make_mut(&mut case.slices[0]);
    slice.problems = vec!["endpoints[0]: bad; fix it".to_owned()];
    let object = ObjectRef::EndpointSlice(slice.key.clone());
    let warnings = case.spec().warnings;
    assert_eq!(warnings.iter().map(Warning::object).collect::<Vec<_>>(), [Some(&object)]);
    assert_eq!(warnings[0].to_string(), "EndpointSlice default/a-1: endpoints[0]: bad; fix it");
}

#[test]
fn refused_endpoints_of_one_reason_are_one_warning() {
    let many: Vec<_> = (1..=250).map(|last| format!("127.0.0.{last}")).collect();
    assert_eq!(
        Case::new(service(), &[&many.join("; ")]).warnings(),
        ["its endpoint 127.0.0.1:8080, 127.0.0.2:8080, 127.0.0.3:8080, 127.0.0.4:8080, 127.0.0.5:8080 and 245 more \
             is not used: that is a loopback address; write the address at which the other nodes reach it"]
    );
}

#[test]
fn problems_of_one_object_are_counted_beyond_the_first() {
    let warnings = |count: usize| {
        let problems = (0..count).map(|index| format!("problem {index}; fix it")).collect();
        Case::new(Service { problems, ..service() }, &["1"]).warnings()
    };
    assert_eq!((warnings(0).len(), warnings(21).len(), warnings(22).len(), warnings(5000).len()), (0, 21, 21, 21));
    assert_eq!(warnings(5000)[20], "4980 more such problems; fix the first ones to see them");
}

#[test]
fn equal_problems_are_one_warning() {
    let problems = vec!["a; fix it".to_owned(), "a; fix it".to_owned()];
    assert_eq!(Case::new(Service { problems, ..service() }, &["1"]).warnings(), ["a; fix it"]);
}

//! What warnings are about, for Events.

use super::*;
use crate::warning::reason;

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
    let told = case.with(about);
    let texts: Vec<_> = told.iter().map(|problem| problem.text.clone()).collect();
    assert_eq!(texts, case.spec().warnings, "all of them, as the log has them");
    let of = |part: &str| {
        let found: Vec<_> = told.iter().filter(|problem| problem.text.contains(part)).collect();
        assert_eq!(found.len(), 1, "{part}: {told:#?}");
        found[0].reason
    };
    assert_eq!(of("belongs to the Service default/0"), reason::CONFLICT);
    assert_eq!(of("spec.externalIPs: 127.0.0.1"), reason::FRONTEND);
    assert_eq!(of("its endpoint 127.0.0.1:8080 is not used"), reason::ENDPOINT);
    assert_eq!(of("healthCheckNodePort 0"), reason::VALUE);
    assert_eq!(of("has no nodeName"), reason::CHECK);
    assert_eq!(told.len(), 5, "{told:#?}");
}

#[test]
fn a_service_that_is_well_has_none() {
    assert!(Case::new(service(), &["1"]).with(about).is_empty());
}

//! Advice about Services of type LoadBalancer whose addresses come from another controller.

use super::Notes;
use crate::{
    api,
    convert::{BalancerClass, ingress_addresses, is_address_annotation},
};

/// Prefixes of annotations by which MetalLB and Cilium's LB IPAM are asked for addresses.
const PREFIXES: [&str; 4] = ["metallb.io/", "metallb.universe.tf/", "lbipam.cilium.io/", "io.cilium/lb-ipam-"];
/// Reports of MetalLB, which ask for nothing.
const REPORTS: [&str; 2] = ["metallb.io/ip-allocated-from-pool", "metallb.universe.tf/ip-allocated-from-pool"];

/// Names the values of a Service that Beeline does not read.
pub(super) fn advise(object: &api::Service, notes: &mut Notes<'_>) {
    let Some(class) = BalancerClass::of(object) else { return };
    if class == BalancerClass::Other {
        let class = object.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_deref()).unwrap_or_default();
        let addresses: Vec<String> = ingress_addresses(object).iter().map(ToString::to_string).collect();
        let keeping = match addresses.as_slice() {
            [] => String::new(),
            addresses => format!(", and to keep the address beeline.io/lb-addresses: {}", addresses.join(",")),
        };
        notes.error(format!(
            "spec.loadBalancerClass {class:?}: left to its controller, as a class cannot be changed; make the Service \
             anew with beeline.io/lb{keeping}"
        ));
    }
    for (name, value) in object.metadata.annotations.iter().flatten() {
        let is_foreign = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        if is_foreign && !is_address_annotation(name) && !REPORTS.contains(&name.as_str()) {
            notes.error(format!("{name} {value:?}: not read; see what it is for, and do that by hand"));
        }
    }
}

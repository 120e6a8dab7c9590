//! `beeline import-pools`: writes the pools of MetalLB or Cilium as AddressPools, names what has no counterpart, and
//! tries the result on the Services in the input.

use std::{
    collections::BTreeMap,
    fs,
    io::{IsTerminal as _, Read as _},
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::print_text;
use lb_agent::{Served, preview};
use lb_core::{objects::Key, text::number};
use lb_sources::{
    import::{Import, Note, Severity, import},
    kubernetes::load_balancers::{AddressEvent, Change},
};

/// Arguments of `beeline import-pools`.
#[derive(Args)]
#[command(after_help = "Examples:
  kubectl get ipaddresspools,l2advertisements,bgpadvertisements,services,namespaces,nodes -A -o yaml |
    beeline import-pools > pools.yaml
  kubectl get ciliumloadbalancerippools,services,namespaces,nodes -A -o yaml | beeline import-pools > pools.yaml
  beeline import-pools -f metallb.yaml

The AddressPools go to stdout. Notes go to stderr: what belongs elsewhere, and errors, which need a hand. Services in \
the input are tried with the pools: each that would not keep its addresses is an error. Nothing is changed.

Exit codes: 0 nothing is lost; 1 there are errors.")]
pub(super) struct ImportPoolsArgs {
    /// File of objects, in YAML or JSON; `-` is stdin; may be repeated.
    #[arg(short = 'f', long, value_name = "FILE", default_value = "-")]
    filename: Vec<PathBuf>,
}

pub(super) fn run(arguments: &ImportPoolsArgs) -> Result<ExitCode> {
    let mut text = String::new();
    for path in &arguments.filename {
        text += "\n---\n";
        text += &read(path)?;
    }
    let Import { pools, mut notes, events } =
        import(&text).map_err(|error| anyhow::anyhow!("{error}; nothing is imported"))?;
    ensure!(
        !pools.is_empty() || !notes.is_empty(),
        "the input has neither an IPAddressPool nor a CiliumLoadBalancerIPPool; `kubectl get ipaddresspools -A -o \
         yaml` writes those of MetalLB"
    );
    let mut yaml = String::new();
    for pool in &pools {
        yaml += "---\n";
        yaml += &serde_saphyr::to_string(pool)?;
    }
    let summary = try_out(events, &mut notes);
    for note in &notes {
        eprintln!("{note}");
    }
    eprintln!("{}; {summary}", number(pools.len(), "pool"));
    print_text(&yaml)?;
    let has_errors = notes.iter().any(|note| note.severity == Severity::Error);
    Ok(if has_errors { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn read(path: &Path) -> Result<String> {
    if path != Path::new("-") {
        return fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    }
    let mut stdin = std::io::stdin().lock();
    ensure!(!stdin.is_terminal(), "stdin is a terminal: pipe the objects, or name a file with -f");
    let mut text = String::new();
    stdin.read_to_string(&mut text).context("reading stdin")?;
    Ok(text)
}

/// Allots addresses as the controller would, adds a note on each Service whose addresses would change or be doubtful,
/// and returns a summary.
fn try_out(events: Vec<AddressEvent>, notes: &mut Vec<Note>) -> String {
    let mut before: BTreeMap<Key, Vec<IpAddr>> = BTreeMap::new();
    for event in &events {
        if let AddressEvent::Service(Change::Listed(services)) = event {
            before.extend(services.iter().map(|(key, service)| (key.clone(), service.request.holds.clone())));
        }
    }
    let allotments = preview(events, Served::OwnClassAndNone);
    let mut kept = 0;
    for (key, allotment) in &allotments.services {
        let held = before.get(key).map_or(&[][..], Vec::as_slice);
        let lost: Vec<IpAddr> =
            held.iter().copied().filter(|held| !allotment.addresses.iter().any(|(addr, _)| addr == held)).collect();
        let mut add = |severity, text| notes.push(Note { severity, object: format!("Service {key}"), text });
        for addr in &lost {
            add(Severity::Error, format!("would lose {addr}"));
        }
        if lost.is_empty() && !held.is_empty() {
            kept += 1;
        }
        if !allotment.problems.is_empty() {
            add(Severity::Error, allotment.message());
        } else if allotment.addresses.len() + lost.len() > held.len() {
            add(Severity::Note, format!("would get {}", allotment.message()));
        }
    }
    for (name, usage) in &allotments.pools {
        for problem in &usage.problems {
            let object = format!("AddressPool {name}");
            let text = problem.to_string();
            // The import has said what a pool's own values lack.
            if !notes.iter().any(|note| note.text.contains(&text)) {
                notes.push(Note { severity: Severity::Error, object, text });
            }
        }
    }
    if before.is_empty() {
        return "no Service of type LoadBalancer in the input: add them to see that each keeps its addresses"
            .to_owned();
    }
    let others = before.len() - allotments.services.len();
    let others = if others == 0 { String::new() } else { format!(", {} of other classes", number(others, "Service")) };
    let with_address = allotments.services.keys().filter(|key| before.get(*key).is_some_and(|held| !held.is_empty()));
    format!("{kept} of {} with addresses would keep them{others}", number(with_address.count(), "Service"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOLS: &str = "
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: front}
spec: {addresses: [192.0.2.0/28]}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: red}
spec:
  addresses: [198.51.100.0/29]
  serviceAllocation: {namespaceSelectors: [{matchLabels: {team: red}}]}
";

    fn service(name: &str, more: &str, held: &[&str]) -> String {
        let ingress: Vec<_> = held.iter().map(|ip| format!("{{ip: '{ip}'}}")).collect();
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: d}}, spec: {{type: \
             LoadBalancer, ports: [{{port: 80}}], ipFamilies: [IPv4]{more}}}, status: {{loadBalancer: {{ingress: \
             [{}]}}}}}}\n",
            ingress.join(", ")
        )
    }

    #[track_caller]
    fn check(objects: &[String], notes: &[&str], summary: &str) {
        let Import { notes: mut found, events, .. } = import(&(POOLS.to_owned() + &objects.concat())).expect("objects");
        let said = try_out(events, &mut found);
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), notes);
        assert_eq!(said, summary);
    }

    #[test]
    fn services_keep_the_addresses_that_another_controller_gave_them() {
        // The first and the last address of a prefix too.
        let overlap = "---\n{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: late}, spec: \
                       {addresses: [192.0.2.8/29]}}\n";
        check(
            &[overlap.to_owned()],
            &["error: AddressPool late: 192.0.2.8-192.0.2.15 is in pool front too, which allots it; remove it from \
                 one"],
            "no Service of type LoadBalancer in the input: add them to see that each keeps its addresses",
        );
        let services = [service("a", "", &["192.0.2.0"]), service("b", "", &["192.0.2.15"])];
        check(&services, &[], "2 of 2 Services with addresses would keep them");
        check(&[], &[], "no Service of type LoadBalancer in the input: add them to see that each keeps its addresses");
    }

    #[test]
    fn a_service_that_would_not_keep_its_address_or_has_a_doubtful_one_is_an_error() {
        let services = [
            service("a", "", &["192.0.2.1"]),
            service("b", "", &["192.0.2.1"]),
            service("c", "", &["198.51.100.1"]),
            service("d", "", &["203.0.113.1"]),
            service("e", "", &[]),
            service("f", ", loadBalancerClass: x.io/y", &["192.0.2.9"]),
        ];
        check(
            &services,
            &[
                "error: Service d/f: spec.loadBalancerClass \"x.io/y\": left to its controller, as a class cannot be \
                 changed; make the Service anew with beeline.io/lb, and to keep the address beeline.io/lb-addresses: \
                 192.0.2.9",
                "error: Service d/b: would lose 192.0.2.1",
                "note: Service d/b: would get 192.0.2.0 from pool front",
                "error: Service d/c: 198.51.100.1 from pool red; it keeps 198.51.100.1, although the \
                 namespaceSelectors of pool red leave it out; change them, or ask for another address to move",
                "error: Service d/d: 203.0.113.1; it keeps 203.0.113.1, which is in no pool any more; add it to one, \
                 or ask for another to move",
                "note: Service d/e: would get 192.0.2.2 from pool front",
            ],
            "3 of 4 Services with addresses would keep them, 1 Service of other classes",
        );
        let namespace = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: d, labels: {team: red}}}\n".to_owned();
        check(&[service("c", "", &["198.51.100.1"]), namespace], &[], "1 of 1 Service with addresses would keep them");
        let node = "---\n{apiVersion: v1, kind: Node, metadata: {name: n}, status: {addresses: [{type: InternalIP, \
                    address: 192.0.2.3}]}}\n";
        check(
            &[service("a", "", &["192.0.2.1"]), node.to_owned()],
            &["error: AddressPool front: 192.0.2.3 is an address of a node and is not allotted; leave it out"],
            "1 of 1 Service with addresses would keep them",
        );
    }
}

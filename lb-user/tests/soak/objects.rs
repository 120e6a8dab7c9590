//! Objects of a soak, as YAML.

use std::{fmt::Write as _, fs, net::IpAddr, path::Path};

use lb_lab::rng::Rng;

use crate::testbed::{FLOODED_TARGET, TARGET};

/// Cluster IPs of the Service that is never changed, which has NodePort [`STEADY_PORT`].
pub const STEADY: [&str; 2] = ["10.96.1.1", "fd96::1:1"];
pub const STEADY_PORT: u16 = 30_001;
/// NodePort of the Service that floods hit.
pub const FLOODED_PORT: u16 = 30_002;
/// Services that change.
pub const CHANGING: u64 = 60;

/// Writes a file atomically.
pub fn write(directory: &Path, file: &str, text: &str) {
    let staged = directory.with_file_name(format!("{file}.staged"));
    fs::write(&staged, text).unwrap();
    fs::rename(staged, directory.join(file)).unwrap();
}

fn slices(name: &str, target: u16, endpoints: &[(IpAddr, &str, &str)]) -> String {
    let mut yaml = String::new();
    for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
        write!(
            yaml,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {family}\n\
             metadata: {{name: {name}-{}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             ports: [{{name: t, port: {target}, protocol: TCP}}, {{name: u, port: {target}, protocol: UDP}}]\n\
             endpoints:\n",
            family.to_lowercase()
        )
        .unwrap();
        for (ip, node, conditions) in endpoints.iter().filter(|(ip, ..)| ip.is_ipv4() == is_v4) {
            writeln!(yaml, "- {{addresses: [\"{ip}\"], nodeName: {node}, conditions: {{{conditions}}}}}").unwrap();
        }
    }
    yaml
}

fn service(name: &str, ips: [&str; 2], annotations: &str, spec: &str, node_port: Option<u16>) -> String {
    let port = |offset| node_port.map_or_else(String::new, |port| format!(", nodePort: {}", port + offset));
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\nspec:\n  \
         type: {}\n  clusterIPs: [{}, \"{}\"]\n  ipFamilies: [IPv4, IPv6]\n{spec}  ports:\n  \
         - {{name: t, port: 80, protocol: TCP{}}}\n  - {{name: u, port: 80, protocol: UDP{}}}\n",
        if node_port.is_some() { "LoadBalancer" } else { "ClusterIP" },
        ips[0],
        ips[1],
        port(0),
        port(0),
    )
}

/// The Services that stay: for clients, and for floods.
pub fn steady(backends: &[(IpAddr, &str)]) -> String {
    let endpoints: Vec<_> = backends.iter().map(|&(ip, node)| (ip, node, "")).collect();
    let one = &endpoints[..2];
    service("steady", STEADY, "", "", Some(STEADY_PORT))
        + &slices("steady", TARGET, &endpoints)
        + "---\n"
        + &service("flooded", ["10.96.1.2", "fd96::1:2"], "", "", Some(FLOODED_PORT))
        + &slices("flooded", FLOODED_TARGET, one)
}

/// A random version of a Service that changes.
pub fn changing(rng: &mut Rng, number: u64, backends: &[(IpAddr, &str)]) -> String {
    // Sometimes the cluster IP of another one.
    let of = if rng.chance(5) { rng.below(CHANGING) } else { number };
    let ips = [format!("10.96.0.{}", of + 1), format!("fd96::{:x}", of + 1)];
    let scheduler = rng.pick(&["random", "rr", "wrr", "lc", "sh", "dh", "mh"]);
    let annotations = format!("beeline.io/scheduler: {scheduler}");
    let mut spec = String::new();
    for field in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        writeln!(spec, "  {field}: {}", rng.pick(&["Cluster", "Cluster", "Local"])).unwrap();
    }
    if rng.chance(30) {
        spec += "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}\n";
    }
    if rng.chance(20) {
        spec += "  loadBalancerSourceRanges: [172.30.0.0/24, 10.244.1.0/24]\n";
    }
    let node_port = rng.chance(50).then(|| 30_010 + u16::try_from(number).unwrap());
    let mut yaml = service(&format!("c{number}"), [&ips[0], &ips[1]], &annotations, &spec, node_port);
    if node_port.is_some() {
        writeln!(yaml, "status: {{loadBalancer: {{ingress: [{{ip: 198.51.100.{}}}]}}}}", number + 1).unwrap();
    }
    let states = ["", "", "", "ready: false", "ready: false, terminating: true", "ready: false, serving: false"];
    let mut endpoints = Vec::new();
    for &(ip, node) in backends {
        if rng.chance(60) {
            endpoints.push((ip, node, rng.pick(&states)));
        }
    }
    yaml + &slices(&format!("c{number}"), TARGET, &endpoints)
}

/// A pod with its addresses and its mode.
pub fn pod(name: &str, ips: [IpAddr; 2], uid: &str, mode: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{labels: {{beeline.io/path: {mode}}}, name: {name}, \
         namespace: apps, uid: {uid}}}\nspec: {{nodeName: here}}\n\
         status: {{phase: Running, podIPs: [{{ip: {}}}, {{ip: \"{}\"}}]}}\n",
        ips[0], ips[1]
    )
}

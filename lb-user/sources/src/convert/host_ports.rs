//! Conversion of the hostPorts of a Pod.

use super::{addr, list, number, protocol};
use crate::api;
use lb_core::objects::HostPort;

/// Converts the hostPorts of a pod's containers, and of its init containers that keep running; other init containers
/// have none (kubelet gives the ports of both to the CNI plugins). Returns them with their problems.
pub(super) fn host_ports(spec: &api::PodSpec) -> (Vec<HostPort>, Vec<String>) {
    let (mut ports, mut problems) = (Vec::new(), Vec::new());
    let containers = list(&spec.containers).iter().enumerate().map(|(i, object)| ("containers", i, object));
    let init = list(&spec.init_containers).iter().enumerate().map(|(i, object)| ("initContainers", i, object));
    let keeps_running = |object: &api::Container| object.restart_policy.as_deref() == Some("Always");
    for (field, i, container) in containers.chain(init.filter(|(.., object)| keeps_running(object))) {
        for (j, port) in list(&container.ports).iter().enumerate() {
            ports.extend(host_port(&mut problems, format_args!("spec.{field}[{i}].ports[{j}]"), port));
        }
    }
    (ports, problems)
}

fn host_port(
    problems: &mut Vec<String>,
    place: std::fmt::Arguments<'_>,
    object: &api::ContainerPort,
) -> Option<HostPort> {
    let host_port = object.host_port.filter(|number| *number != 0)?;
    let proto = protocol(problems, place, object.protocol.as_deref())?;
    let port = number(problems, format_args!("{place}.hostPort"), Some(host_port))?;
    let container_port = number(problems, format_args!("{place}.containerPort"), object.container_port)?;
    let host_ip = object.host_ip.as_deref().filter(|text| !text.is_empty());
    // An address that cannot be read must not become all addresses.
    let addr = match host_ip {
        Some(text) => Some(addr(problems, format_args!("{place}.hostIP"), text)?),
        None => None,
    };
    Some(HostPort { addr, port, container_port, proto })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::tests::yaml;

    fn check(spec: &str, expected: &[&str], expected_problems: &[&str]) {
        let (ports, problems) = host_ports(&yaml(spec));
        let text = |port: &HostPort| {
            let addr = port.addr.map_or("*".to_owned(), |addr| addr.to_string());
            format!("{addr} {}/{} -> {}", port.port, port.proto.name(), port.container_port)
        };
        let ports: Vec<_> = ports.iter().map(text).collect();
        assert_eq!((ports, problems), (own(expected), own(expected_problems)));
    }

    fn own(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn host_ports_of_containers_and_of_init_containers_that_keep_running_are_read() {
        check("{}", &[], &[]);
        check("{containers: null, initContainers: null}", &[], &[]);
        check("{containers: [{ports: [{containerPort: 80}, {containerPort: 81, hostPort: 0}]}]}", &[], &[]);
        check(
            "{containers: [{name: a, ports: [{containerPort: 80, hostPort: 8080}, \
             {containerPort: 53, hostPort: 53, hostIP: 127.0.0.1, protocol: UDP}]}, \
             {name: b, ports: [{containerPort: 1, hostPort: 2, hostIP: '::', protocol: SCTP}, \
             {containerPort: 3, hostPort: 4, hostIP: ''}]}]}",
            &["* 8080/TCP -> 80", "127.0.0.1 53/UDP -> 53", ":: 2/SCTP -> 1", "* 4/TCP -> 3"],
            &[],
        );
        let init = "ports: [{containerPort: 80, hostPort: 8080}]";
        check(&format!("{{initContainers: [{{{init}}}]}}"), &[], &[]);
        check(&format!("{{initContainers: [{{restartPolicy: Always, {init}}}]}}"), &["* 8080/TCP -> 80"], &[]);
    }

    #[test]
    fn a_wrong_value_costs_its_port_alone_and_has_a_cure() {
        check(
            "{containers: [{ports: [{containerPort: 80, hostPort: 65536}, {containerPort: 0, hostPort: 1}, \
             {hostPort: 1}, {containerPort: 80, hostPort: 1, protocol: tcp}, \
             {containerPort: 80, hostPort: 1, hostIP: all}, {containerPort: 80, hostPort: 1}]}]}",
            &["* 1/TCP -> 80"],
            &[
                "spec.containers[0].ports[0].hostPort 65536: not a port; use 1 to 65535",
                "spec.containers[0].ports[1].containerPort 0: not a port; use 1 to 65535",
                "spec.containers[0].ports[2].containerPort: missing; give it a number from 1 to 65535",
                "spec.containers[0].ports[3].protocol \"tcp\": unknown; use TCP, UDP or SCTP",
                "spec.containers[0].ports[4].hostIP \"all\": not an IP address; fix or remove it",
            ],
        );
    }
}

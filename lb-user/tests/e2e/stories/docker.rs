//! Containers of Docker on a node of the cluster: clients behind docker0, with FORWARD that drops by default.

use super::Story;

use crate::{
    addresses::{self, at},
    cluster::Cluster,
    network::NODES,
    pods::Web,
    process::{run, try_run, until, within},
};

pub const STORIES: &[Story] = &[("containers_behind_docker0_reach_services", containers_behind_docker0_reach_services)];

fn containers_behind_docker0_reach_services(cluster: &Cluster) {
    let web = Web { name: "docked", replicas: 2, node: None, service: "type: NodePort", port: "nodePort: 30084" };
    web.make(cluster);
    for words in [
        "netns add container",
        "-n node1 link add container type veth peer name eth0 netns container",
        "-n node1 link set container master docker0 up",
        "-n container link set lo up",
        "-n container link set eth0 up",
        "-n container addr add 172.17.0.2/16 dev eth0",
        "-n container route add default via 172.17.0.1",
    ] {
        run("ip", &words.split(' ').collect::<Vec<_>>());
    }
    let targets = [web.vip(cluster), at(&addresses::node(1), 30084), "172.17.0.1:30084".to_owned()];
    for target in targets.iter().flat_map(|target| ["tcp", "udp"].map(|kind| format!("{kind}={target}"))) {
        let own = std::env::current_exe().expect("this program");
        // A guest of a virtual machine is in no cgroup of the node, a container is.
        let guest = || try_run(within("container", &own).args(["ask", &target]));
        let container = || {
            let mut command = cluster.node("node1").host_process("nsenter");
            try_run(command.arg("--net=/run/netns/container").arg(&own).args(["ask", &target]))
        };
        for (client, ask) in [("a guest", &guest as &dyn Fn() -> Result<String, String>), ("a container", &container)] {
            let mut seen = std::collections::BTreeSet::new();
            until("the backends of both nodes have answered", 60, || {
                seen.insert(ask()?.split(' ').next().unwrap_or_default().to_owned());
                if seen.len() == NODES.len() { Ok(()) } else { Err(format!("only {seen:?}")) }
            });
            println!("   {client} behind docker0 -> {target}: both backends");
        }
    }
    run("ip", &["netns", "delete", "container"]);
    web.remove(cluster);
}

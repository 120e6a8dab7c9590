//! A host with containers and without a cluster: Beeline in a container, with Services in a directory.

use std::{fs, process::Command};

use super::{Story, nodes::ask_on};
use lb_lab::ChildProcess;

use crate::{
    addresses::{self, at},
    cluster::Cluster,
    install,
    process::{asset, try_run, until, within},
};

pub const STORIES: &[Story] = &[("a_container_serves_a_plain_host", a_container_serves_a_plain_host)];

fn a_container_serves_a_plain_host(cluster: &Cluster) {
    install::remove(cluster);
    let vip = addresses::first("10.200.0.10", "fd20::10");
    let target = &format!("tcp={}", at(vip, 80));
    let own = std::env::current_exe().expect("this program");
    let log = cluster.directory.join("log/plain-server.log");
    let server = ChildProcess::start_appending(within("outside", own).args(["serve", "9377", "9378"]), &log);
    let services = cluster.directory.join("services");
    fs::create_dir(&services).expect("a directory");
    let write = |port: u16| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: plain}}\n\
             spec: {{clusterIP: '{vip}', ports: [{{port: 80}}]}}\n\
             ---\napiVersion: v1\nkind: Endpoints\nmetadata: {{name: plain}}\nsubsets:\n\
             - addresses: [{{ip: '{}'}}]\n  ports: [{{port: {port}}}]\n",
            addresses::outside()
        );
        fs::write(services.join("plain.yaml"), text).expect("a file");
    };
    write(9377);
    let node = cluster.node("node1");
    let ctr = |words: &str| -> Command {
        let mut command = node.inside(&asset("ctr").display().to_string());
        command.args(["--namespace", "k8s.io"]).args(words.split(' '));
        command
    };
    // The documentation's command for podman, as arguments of ctr.
    let mut run = ctr("run --detach --privileged --net-host");
    for mount in [
        "type=bind,src=/sys/fs/bpf,dst=/sys/fs/bpf,options=rbind:rshared:rw",
        "type=bind,src=/sys/fs/cgroup,dst=/sys/fs/cgroup,options=rbind:ro",
        &format!("type=bind,src={},dst=/services,options=rbind:ro", services.display()),
    ] {
        run.arg("--mount").arg(mount);
    }
    let image = format!("docker.io/library/beeline:{}", env!("CARGO_PKG_VERSION"));
    run.args([&image, "plain", "/beeline", "run", "--directory=/services", "--cgroup=/sys/fs/cgroup/unified"]);
    try_run(&mut run).unwrap_or_else(|error| panic!("{error}"));
    let answer = until("a process of the host is served", 30, || ask_on(cluster, "node1", target));
    println!("   in a container of node1, from a directory: {target} -> {answer}");
    // No server listens at this port: a refusal shows that the edit counts.
    write(9379);
    until("an edit of the file counts at once", 10, || match ask_on(cluster, "node1", target) {
        Err(error) if error.contains("refused") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    write(9378);
    let answer = until("the next edit counts too", 10, || ask_on(cluster, "node1", target));
    println!("   edited twice: a port without a server is refused, the next one answers {answer}");
    try_run(&mut ctr("task kill --signal SIGKILL plain")).unwrap_or_else(|error| panic!("{error}"));
    until("the container has ended", 20, || try_run(&mut ctr("container rm plain")));
    let answer = ask_on(cluster, "node1", target).expect("an answer");
    println!("   the container is killed and removed: {answer}");
    install::beeline_on_host(cluster, "node1", "cleanup").unwrap_or_else(|error| panic!("{error}"));
    drop(server);
    install::install(cluster, install::PLAIN);
}

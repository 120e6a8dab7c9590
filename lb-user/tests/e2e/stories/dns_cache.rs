//! A DNS cache on each node, by kubelet: NodeLocal DNSCache, which is CoreDNS with the same listeners and rules here,
//! and a cache in pods that takes the clients of `kube-dns`. They end in a loop while pods ask 500 times a second.

use std::{fs, path::PathBuf};

use super::Story;
use crate::{
    addresses::{self, at},
    cluster::Cluster,
    install,
    pods::{IMAGE, Web, ask, client},
    process::{asset, try_run, until, within},
    resolver::{self, Counts, Lost, Resolver, ask_from_node, ask_from_pod},
};

pub const STORIES: &[Story] = &[
    (
        "a_dns_cache_in_the_hosts_network_loses_only_what_its_sockets_had_when_killed",
        a_dns_cache_in_the_hosts_network_loses_only_what_its_sockets_had_when_killed,
    ),
    ("a_dns_cache_in_pods_takes_the_clients_of_kube_dns", a_dns_cache_in_pods_takes_the_clients_of_kube_dns),
];

const NODES: [&str; 2] = ["node1", "node2"];
/// The program in the cache's pods.
const PROGRAM: &str = "/coredns";
const INTERFACE: &str = "nodelocaldns";
/// Ends of each kind on each node.
const TURNS: usize = 4;

/// The second address of NodeLocal DNSCache.
fn link_local() -> &'static str {
    addresses::first("169.254.20.10", "fd00:53::10")
}

/// Another Service of the same pods of DNS, which the cache asks.
fn upstream() -> &'static str {
    addresses::first("10.96.0.11", "fd96::b")
}

/// Makes the DaemonSet of a cache, with CoreDNS and its Corefile from the node, and the Service that it asks.
fn make_cache(cluster: &Cluster, name: &str, bind: &str, pod: &str, container: &str) {
    let directory = cluster.directory.join(name);
    fs::create_dir(&directory).expect("a directory");
    let corefile = format!(
        "{}.:53 {{\n  {bind}\n  errors\n  cache 30\n  forward . {} {{\n    force_tcp\n  }}\n  ready :8181\n}}\n",
        resolver::zone(bind, resolver::BY_CACHE),
        at(upstream(), 53)
    );
    fs::write(directory.join("Corefile"), corefile).expect("a file");
    let program: PathBuf = asset("coredns").canonicalize().expect("CoreDNS");
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: kube-dns-upstream, namespace: kube-system}}\nspec:\n  \
         clusterIP: '{}'\n  \
         ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]\n---\n\
         apiVersion: v1\nkind: Endpoints\nmetadata: {{name: kube-dns-upstream, namespace: kube-system}}\nsubsets:\n\
         - addresses: [{{ip: '{}'}}]\n  \
         ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]\n---\n\
         apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: {name}, namespace: kube-system}}\nspec:\n  \
         selector: {{matchLabels: {{k8s-app: {name}}}}}\n  \
         template:\n    metadata: {{labels: {{k8s-app: {name}}}}}\n    spec:\n      {pod}\n      \
         dnsPolicy: Default\n      priorityClassName: system-node-critical\n      \
         tolerations: [{{operator: Exists}}]\n      containers:\n      - name: cache\n        image: {IMAGE}\n        \
         command: [{PROGRAM}, -conf, /etc/coredns/Corefile]\n        {container}\n        \
         resources: {{requests: {{cpu: 50m}}}}\n        \
         volumeMounts: [{{name: program, mountPath: {PROGRAM}}}, {{name: config, mountPath: /etc/coredns}}]\n      \
         volumes: [{{name: program, hostPath: {{path: '{}', type: File}}}}, \
         {{name: config, hostPath: {{path: '{}'}}}}]\n",
        upstream(),
        addresses::control(),
        program.display(),
        directory.display()
    ));
    cluster.until_rolled_out(&format!("daemonset/{name}"), "kube-system");
}

fn remove_cache(cluster: &Cluster, name: &str) {
    let objects = [&format!("daemonset/{name}"), "service/kube-dns-upstream", "endpoints/kube-dns-upstream"];
    cluster.kubectl(&[&["delete", "--ignore-not-found", "--namespace=kube-system"], &objects[..]].concat());
}

/// Waits until pods and processes of both nodes get the cache's answers, by both protocols, and other names through it.
fn until_answered_by_cache(cluster: &Cluster, servers: &[&str]) {
    Web { name: "web", replicas: 4, node: None, service: "", port: "" }.make(cluster);
    for node in NODES {
        let (pod, host_pod) = (format!("client-{node}"), format!("host-client-{node}"));
        client(cluster, &pod, node, false);
        client(cluster, &host_pod, node, true);
        for server in servers {
            for kind in ["udp", "tcp"] {
                let target = format!("{kind}={}", at(server, 53));
                let is_right = |answer: Result<String, String>| match answer {
                    Ok(answer) if answer == resolver::BY_CACHE => Ok(()),
                    other => Err(format!("{other:?}")),
                };
                until("a pod is answered by the cache", 60, || is_right(ask_from_pod(cluster, &pod, &target)));
                until("a pod on the host's network is, too", 60, || {
                    is_right(ask_from_pod(cluster, &host_pod, &target))
                });
                until("a process of the node is, too", 60, || is_right(ask_from_node(cluster, node, &target)));
            }
        }
        for pod in [&pod, &host_pod] {
            let answer = ask(cluster, pod, "tcp=web.default.svc.cluster.local:80").expect("an answer");
            assert!(answer.starts_with("web-"), "{answer}");
        }
        println!("   pods and processes of {node} -> {servers:?}: the cache answers, by UDP and TCP");
    }
}

/// The name of the cache's running pod on a node.
fn pod_on(cluster: &Cluster, name: &str, node: &str) -> String {
    until("the cache has a pod on the node", 60, || {
        let pods = cluster.get(&format!("pods --namespace kube-system --selector k8s-app={name}"));
        let pods = pods["items"].as_array().ok_or("no list")?;
        let is_there = |pod: &&serde_json::Value| {
            pod["spec"]["nodeName"] == node && pod["metadata"]["deletionTimestamp"].is_null()
        };
        let pod = pods.iter().find(is_there).and_then(|pod| pod["metadata"]["name"].as_str());
        pod.map(str::to_owned).ok_or_else(|| "none".to_owned())
    })
}

/// Deletes a pod of the cache, which the DaemonSet replaces.
fn delete(cluster: &Cluster, pod: &str, more: &[&str]) {
    cluster.kubectl(&[&["delete", "pod", pod, "--namespace=kube-system", "--wait=false"], more].concat());
}

const AT_ONCE: &[&str] = &["--force", "--grace-period=0"];

/// An end of the cache on a node.
struct End {
    what: &'static str,
    node: &'static str,
    /// The counts before it.
    before: Counts,
    /// Seconds since 1970 before it, when it was done, and when the Service had answered.
    times: [f64; 3],
}

impl End {
    /// Ends the cache with `end`, and waits until the Service answers.
    fn make(what: &'static str, node: &'static str, resolver: &Resolver<'_>, end: impl FnOnce()) -> Self {
        resolver.until_more("the cache answers", |counts| counts.by_cache);
        let (before, begin) = (resolver.counts(), resolver::now());
        end();
        let done = resolver::now();
        resolver.until_more("the Service answers", |counts| counts.by_service);
        Self { what, node, before, times: [begin, done, resolver::now()] }
    }

    /// Prints what was lost until the next end, and returns the number of lost questions that were sent after the end
    /// was done. Later ones, after answers of the Service, belong to the next pod or a container that kubelet restarts.
    fn lost_afterwards(&self, next: Option<&Self>, settled: &Counts) -> usize {
        let Self { what, node, before, times: [begin, done, answered] } = self;
        let (until, now) = next.map_or((f64::INFINITY, settled), |next| (next.times[0], &next.before));
        let lost: Vec<_> = settled.lost.iter().filter(|lost| (*begin..until).contains(&lost.sent)).collect();
        let is_late = |lost: &&&Lost| (*done..*answered).contains(&lost.sent);
        let late: Vec<_> = lost.iter().filter(is_late).collect();
        let mut times = late.iter().map(|lost| format!("{:+.3} s {}", lost.sent - done, lost.error));
        let times: Vec<_> = times.clone().take(2).chain(times.next_back()).collect();
        println!(
            "   {node}, {what}: of {} questions {} lost, {} of them sent afterwards {times:?}; {} by the cache, {} by \
             the Service",
            now.asked - before.asked,
            lost.len(),
            late.len(),
            now.by_cache - before.by_cache,
            now.by_service - before.by_service,
        );
        late.len()
    }
}

/// The sums of [`End::lost_afterwards`] over the ends of one kind.
fn lost_afterwards(what: &str, ends: &[End], settled: &[(&str, Counts)]) -> usize {
    let of_kind = ends.iter().enumerate().filter(|(_, end)| end.what == what);
    let lost = of_kind.map(|(index, end)| {
        let next = ends.iter().skip(index + 1).find(|next| next.node == end.node);
        let (_, settled) = settled.iter().find(|(node, _)| *node == end.node).expect("counts of the node");
        end.lost_afterwards(next, settled)
    });
    lost.sum()
}

/// Rules as node-cache makes them: its traffic passes conntrack and the firewall by.
fn rules(node: &str, action: &str) {
    let iptables = addresses::first("iptables", "ip6tables");
    for address in [addresses::dns(), link_local()] {
        for protocol in ["udp", "tcp"] {
            for (table, chain, side, target) in [
                ("raw", "PREROUTING", "d", "NOTRACK"),
                ("raw", "OUTPUT", "s", "NOTRACK"),
                ("raw", "OUTPUT", "d", "NOTRACK"),
                ("filter", "INPUT", "d", "ACCEPT"),
                ("filter", "OUTPUT", "s", "ACCEPT"),
            ] {
                let rule =
                    format!("-t {table} {action} {chain} -p {protocol} -{side} {address} --{side}port 53 -j {target}");
                let done = try_run(within(node, iptables).args(rule.split(' ')));
                done.unwrap_or_else(|error| panic!("{error}"));
            }
        }
    }
}

/// The cache's interface, as node-cache makes it: a bridge without ports, as every kernel has it, for the dummy device.
fn interface(node: &str, is_there: bool) {
    let ip = |words: &str| {
        let done = try_run(within(node, "ip").args(words.split(' ')));
        done.unwrap_or_else(|error| panic!("{error}"));
    };
    if !is_there {
        return ip(&format!("link del {INTERFACE}"));
    }
    ip(&format!("link add {INTERFACE} type bridge"));
    for address in [addresses::dns(), link_local()] {
        let length = addresses::first("32", "128");
        ip(&format!("addr add {address}/{length} dev {INTERFACE} nodad"));
    }
    ip(&format!("link set {INTERFACE} up"));
}

fn a_dns_cache_in_the_hosts_network_loses_only_what_its_sockets_had_when_killed(cluster: &Cluster) {
    const NAME: &str = "node-local-dns";
    NODES.iter().for_each(|node| interface(node, true));
    // With its rules on one node, and without on the other.
    rules("node1", "-I");
    let bind = format!("bind {} {}", link_local(), addresses::dns());
    make_cache(cluster, NAME, &bind, "hostNetwork: true\n      terminationGracePeriodSeconds: 5", "");
    until_answered_by_cache(cluster, &[addresses::dns(), link_local()]);
    let resolvers = NODES
        .map(|node| (node, Resolver::start(cluster, &format!("resolver-{node}"), node, &at(addresses::dns(), 53))));
    let mut ends = Vec::new();
    for what in ["killed", "deleted", "torn down"].into_iter().flat_map(|what| [what; TURNS]) {
        for (node, resolver) in &resolvers {
            let pod = pod_on(cluster, NAME, node);
            ends.push(End::make(what, node, resolver, || match what {
                "killed" => cluster.node(node).kill(PROGRAM),
                "deleted" => delete(cluster, &pod, &[]),
                _ => interface(node, false),
            }));
            if what == "torn down" {
                interface(node, true);
            }
            if what != "deleted" {
                // Without a back-off.
                delete(cluster, &pod, AT_ONCE);
            }
            resolver.until_more("the next pod of the cache answers", |counts| counts.by_cache);
        }
    }
    let settled: Vec<_> = resolvers.iter().map(|(node, resolver)| (*node, resolver.settled())).collect();
    let [killed, ..] = ["killed", "deleted", "torn down"].map(|what| lost_afterwards(what, &ends, &settled));
    for (node, Counts { asked, by_cache, by_service, lost }) in &settled {
        println!(
            "   {node}: {asked} questions, {by_cache} by the cache, {by_service} by the Service, {} lost",
            lost.len()
        );
    }
    drop(resolvers);
    remove_cache(cluster, NAME);
    rules("node1", "-D");
    NODES.iter().for_each(|node| interface(node, false));
    assert_eq!(killed, 0, "questions sent after the end of the cache's sockets");
}

fn a_dns_cache_in_pods_takes_the_clients_of_kube_dns(cluster: &Cluster) {
    const NAME: &str = "dns-cache";
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {NAME}\n  namespace: kube-system\n  \
         annotations: {{beeline.io/redirect-from: kube-system/kube-dns}}\nspec:\n  selector: {{k8s-app: {NAME}}}\n  \
         ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]\n"
    ));
    let container = "readinessProbe: {httpGet: {path: /ready, port: 8181}, periodSeconds: 1}\n        \
                     lifecycle: {preStop: {sleep: {seconds: 5}}}";
    make_cache(cluster, NAME, "", "terminationGracePeriodSeconds: 10", container);
    until_answered_by_cache(cluster, &[addresses::dns()]);
    let agent = install::agent_on(cluster, "node1");
    let resolver = Resolver::start(cluster, "resolver", "node1", &at(addresses::dns(), 53));
    let elsewhere = Resolver::start(cluster, "resolver-node2", "node2", &at(addresses::dns(), 53));
    let bystander = elsewhere.counts();
    let mut ends = Vec::new();
    for what in ["deleted", "deleted at once", "killed"].into_iter().flat_map(|what| [what; TURNS]) {
        let pod = pod_on(cluster, NAME, "node1");
        ends.push(End::make(what, "node1", &resolver, || match what {
            "deleted" => delete(cluster, &pod, &[]),
            "killed" => cluster.node("node1").kill(PROGRAM),
            _ => delete(cluster, &pod, AT_ONCE),
        }));
        if what == "killed" {
            delete(cluster, &pod, AT_ONCE);
        }
        resolver.until_more("the next pod of the cache answers", |counts| counts.by_cache);
    }
    let settled = [("node1", resolver.settled())];
    let [deleted, ..] = ["deleted", "deleted at once", "killed"].map(|what| lost_afterwards(what, &ends, &settled));
    let untouched = elsewhere.counts();
    println!("   node2, where nothing ends: of {} questions {} lost", untouched.asked, untouched.lost.len());
    drop(resolver);
    drop(elsewhere);
    remove_cache(cluster, NAME);
    cluster.kubectl(&["delete", "service", NAME, "--namespace=kube-system"]);
    let agent = cluster.kubectl(&["logs", "--namespace=kube-system", &agent]);
    assert!(agent.matches("has closed its socket").count() >= TURNS, "the agent was told of each kill: {agent}");
    assert_eq!(deleted, 0, "a pod that is deleted answers until its clients have left");
    assert_eq!(untouched.by_service, bystander.by_service, "the other node's clients keep their cache");
}

//! `beeline lb` with the rights of its account: addresses, conditions, Events, the Lease, outages, and 1,000 Services.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use lb_lab::{
    api_client::ApiClient,
    api_server::{ApiServer, free_port},
    process::ChildProcess,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    agent::{http_get, until},
    deploy::{deploy, granted_to, in_own_namespace},
};

/// A running controller, killed when dropped.
pub(crate) struct Controller {
    process: ChildProcess,
    port: u16,
    _directory: TempDir,
}

impl Controller {
    pub(crate) fn start(kubeconfig: &Path, flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let port = free_port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_beeline"));
        command.args(["lb", "--log-level=info,lb_agent=debug", "--bind-address", &format!("127.0.0.1:{port}")]);
        command.arg("--kubeconfig").arg(kubeconfig).args(flags);
        let process = ChildProcess::start(&mut command, &directory.path().join("log"));
        Self { process, port, _directory: directory }
    }

    /// The value of a metric with its labels.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = http_get(self.port, "/metrics")?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.metric("beeline_lb_leader") == Some(1.0)
    }

    fn written(&self) -> Option<f64> {
        self.metric("beeline_lb_status_writes_total{result=\"done\"}")
    }

    /// Ends it as kubelet does.
    fn terminate(mut self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.process.pid()).expect("a pid")).expect("not 0");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.process.is_running() {
            assert!(Instant::now() < deadline, "it does not end: {}", self.process.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        println!("--- the controller's log\n{}", self.process.log());
    }
}

/// Installs the controller's account and the kind of pools; returns credentials of the account.
pub(crate) fn install(server: &ApiServer) -> PathBuf {
    let overlay = deploy().join("overlays/load-balancer");
    server.kubectl(&["apply", "-k", overlay.to_str().expect("a path")]);
    server.kubectl(&["wait", "--for=condition=Established", "crd/addresspools.beeline.io"]);
    let token = server.kubectl(&["create", "token", "beeline-lb", "--namespace=kube-system"]);
    in_own_namespace(server.kubeconfig_with(token.trim()))
}

pub(crate) fn uninstall(server: &ApiServer) {
    server.kubectl(&["delete", "services", "--selector=story=lb", "--all-namespaces"]);
    server.kubectl(&["delete", "addresspools", "--all"]);
    let _ = server.try_kubectl(&["delete", "lease/beeline-lb", "--namespace=kube-system"], "");
    let overlay = deploy().join("overlays/load-balancer");
    // A story that announces too has deleted the agent's objects, which both overlays have.
    server.kubectl(&["delete", "--ignore-not-found", "-k", overlay.to_str().expect("a path")]);
}

pub(crate) fn pool(name: &str, spec: &str) -> String {
    format!("---\napiVersion: beeline.io/v1alpha1\nkind: AddressPool\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
}

fn balancer(name: &str, annotations: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\n\
         metadata: {{name: {name}, labels: {{story: lb}}, annotations: {{{annotations}}}}}\n\
         spec: {{type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{{port: 80}}], {spec}}}\n"
    )
}

const OURS: &str = "loadBalancerClass: beeline.io/lb";

fn object(server: &ApiServer, what: &str) -> Value {
    serde_json::from_str(&server.kubectl(&["get", what, "--output=json"])).expect("JSON")
}

/// The addresses of a Service with their modes.
fn addresses(server: &ApiServer, name: &str) -> Vec<String> {
    let service = object(server, &format!("service/{name}"));
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
    let text =
        |entry: &Value| format!("{} {}", entry["ip"].as_str().unwrap_or("-"), entry["ipMode"].as_str().unwrap_or("-"));
    ingress.iter().map(text).collect()
}

/// Reason and message of the controller's condition.
fn condition(server: &ApiServer, name: &str) -> (String, String) {
    let service = object(server, &format!("service/{name}"));
    let conditions = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ours = conditions.iter().find(|condition| condition["type"] == "beeline.io/LoadBalancerAddress");
    let text = |field: &str| ours.map_or(String::new(), |ours| ours[field].as_str().unwrap_or_default().to_owned());
    (text("reason"), text("message"))
}

#[track_caller]
fn until_reason(server: &ApiServer, name: &str, reason: &str) -> String {
    until(&format!("{name}: {reason}"), || condition(server, name).0 == reason);
    condition(server, name).1
}

/// Waits for an Event about the object of this name.
fn until_event(server: &ApiServer, name: &str, reason: &str, note: &str) {
    until(&format!("an Event about {name}: {note}"), || {
        let list = object(server, "events.events.k8s.io");
        let events = list["items"].as_array().expect("a list");
        events
            .iter()
            .any(|event| event["regarding"]["name"] == name && event["reason"] == reason && event["note"] == note)
    });
}

/// Services get addresses of pools, keep them over restarts and changes of pools, and are told why they get none.
pub(crate) fn addresses_are_allotted_kept_and_explained(server: &mut ApiServer) {
    let kubeconfig = install(server);
    server.apply(
        &(pool("p", "addresses: [192.0.2.0/29, '2001:db8::/125']")
            + &pool("q", "addresses: [198.51.100.1], allotment: OnRequest")
            + &pool("r", "addresses: [192.0.2.3, 10.96.0.0/30, 203.0.113.9]")
            + "---\napiVersion: v1\nkind: Node\nmetadata: {name: lb-node}\n"),
    );
    let status = json!({"status": {"addresses": [{"type": "ExternalIP", "address": "203.0.113.9"}]}}).to_string();
    server.kubectl(&["patch", "node/lb-node", "--subresource=status", "--type=merge", "--patch", &status]);
    server.apply(
        &(balancer("lb-a", "", OURS)
            + &balancer("lb-none", "", "")
            + &balancer("lb-other", "", "loadBalancerClass: example.com/other")
            + &balancer("lb-dual", "", &format!("{OURS}, ipFamilyPolicy: RequireDualStack"))
            + &balancer("lb-metallb", "metallb.io/address-pool: q", OURS)
            + &balancer("lb-cilium", "lbipam.cilium.io/ips: 192.0.2.5", OURS)
            + &balancer("lb-torn", "beeline.io/lb-pool: p, metallb.universe.tf/address-pool: q", OURS)),
    );
    let controller = Controller::start(&kubeconfig, &[]);
    until_reason(server, "lb-a", "Allotted");
    // The older Service comes first; those of one second come by name.
    let a = addresses(server, "lb-a");
    assert!(a.len() == 1 && a[0].starts_with("192.0.2.") && a[0].ends_with(" VIP"), "{a:?}");
    until_reason(server, "lb-dual", "Allotted");
    let dual = addresses(server, "lb-dual");
    assert!(dual.len() == 2 && dual.iter().any(|text| text.starts_with("2001:db8::")), "{dual:?}");
    assert_eq!(until_reason(server, "lb-metallb", "Allotted"), "198.51.100.1 from pool q");
    assert_eq!(until_reason(server, "lb-cilium", "Allotted"), "192.0.2.5 from pool p");
    let torn = "beeline.io/lb-pool \"p\" and metallb.universe.tf/address-pool \"q\" contradict each other; remove one \
                of the two";
    assert_eq!(until_reason(server, "lb-torn", "InvalidRequest"), torn);
    for foreign in ["lb-none", "lb-other"] {
        assert_eq!((addresses(server, foreign), condition(server, foreign).0), (vec![], String::new()), "{foreign}");
    }
    until("the status of the pools", || object(server, "addresspool/r")["status"]["problems"].as_array().is_some());
    let shown = server.kubectl(&["get", "lbpool"]);
    println!("{shown}");
    let row = shown.lines().find(|line| line.starts_with("p ")).expect("a row").split_whitespace().collect::<Vec<_>>();
    // 6 addresses beside network and broadcast address, of which 3 are used; 7 of IPv6.
    assert_eq!(row[2..7], ["Automatic", "3", "3", "1", "6"], "{shown}");
    let problems = object(server, "addresspool/r")["status"]["problems"].clone();
    assert_eq!(
        problems,
        json!([
            "192.0.2.3-192.0.2.3 is in pool p too, which allots it; remove it from one",
            "it has addresses of the cluster IP range 10.96.0.0/16, which are not allotted; leave them out",
            "203.0.113.9 is an address of a node and is not allotted; leave it out",
        ])
    );
    let valid = object(server, "addresspool/r")["status"]["conditions"][0].clone();
    assert_eq!(
        (&valid["type"], &valid["status"], &valid["reason"]),
        (&json!("Valid"), &json!("False"), &json!("Overlap"))
    );
    server.kubectl(&["wait", "--for=condition=Valid", "addresspool/p", "--timeout=10s"]);
    until_event(server, "lb-torn", "LoadBalancerAddress", &format!("load balancer address: {torn}"));
    for problem in problems.as_array().expect("a list") {
        until_event(server, "r", "AddressPoolProblem", problem.as_str().expect("a text"));
    }

    // A pass without a difference writes nothing.
    let (passes, written) = (controller.metric("beeline_lb_passes_total"), controller.written());
    server.kubectl(&["label", "service/lb-a", "unrelated=label"]);
    until("a further pass", || controller.metric("beeline_lb_passes_total") > passes);
    assert_eq!(controller.written(), written);

    // Addresses stay when their pool goes, and it is told.
    server.kubectl(&["delete", "addresspool/p"]);
    let kept = until_reason(server, "lb-a", "CheckAddress");
    assert!(kept.contains("which is in no pool any more; add it to one"), "{kept}");
    assert_eq!((addresses(server, "lb-a"), addresses(server, "lb-dual")), (a.clone(), dual.clone()));
    server.apply(&pool("p", "addresses: ['192.0.2.0/29', '2001:db8::/125']"));
    until_reason(server, "lb-a", "Allotted");

    // Addresses stay over a restart too, which writes nothing.
    let version = |server: &ApiServer| object(server, "service/lb-dual")["metadata"]["resourceVersion"].clone();
    let before = version(server);
    controller.terminate();
    let controller = Controller::start(&kubeconfig, &[]);
    until("a pass", || controller.metric("beeline_lb_passes_total") > Some(0.0));
    assert_eq!((controller.written(), version(server)), (Some(0.0), before));
    assert_eq!((addresses(server, "lb-a"), addresses(server, "lb-dual")), (a, dual));

    // With the flag, Services without a class are served too.
    controller.terminate();
    let controller = Controller::start(&kubeconfig, &["--default-class"]);
    until_reason(server, "lb-none", "Allotted");
    assert_eq!(condition(server, "lb-other").0, "");
    // A Service of another type has no address.
    server.kubectl(&["patch", "service/lb-none", "--patch", r#"{"spec": {"type": "ClusterIP"}}"#]);
    until("the count of the pool", || controller.metric("beeline_lb_services{state=\"allotted\"}") == Some(4.0));
    assert_eq!(addresses(server, "lb-none"), Vec::<String>::new());
    drop(controller);
    server.kubectl(&["delete", "node/lb-node"]);
    uninstall(server);
}

/// One of two controllers allots addresses. The other one takes over, at once if the first ends, else after the Lease's
/// duration; and both survive an outage of the API server, in which all addresses stay.
pub(crate) fn one_controller_leads_and_another_takes_over(server: &mut ApiServer) {
    let kubeconfig = install(server);
    server.apply(&(pool("p", "addresses: [192.0.2.0/24]") + &balancer("lb-a", "", OURS)));
    let first = Controller::start(&kubeconfig, &[]);
    until("the first leads", || first.is_leader());
    let second = Controller::start(&kubeconfig, &[]);
    until_reason(server, "lb-a", "Allotted");
    let a = addresses(server, "lb-a");
    std::thread::sleep(Duration::from_secs(4));
    assert!(first.is_leader() && !second.is_leader());

    let start = Instant::now();
    first.terminate();
    until("the second leads", || second.is_leader());
    println!("after an end: {:?}", start.elapsed());
    // A Lease that is not released takes longer: see below.
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());

    let third = Controller::start(&kubeconfig, &[]);
    until("the third looks on", || third.metric("beeline_lb_leader") == Some(0.0));
    std::thread::sleep(Duration::from_secs(3));
    let start = Instant::now();
    // Killed: it does not release the Lease.
    drop(second);
    until("the third leads", || third.is_leader());
    println!("after a kill: {:?}", start.elapsed());
    assert!(start.elapsed() > Duration::from_secs(10), "{:?}", start.elapsed());

    server.stop_api();
    until("the leader knows that it may not be alone", || !third.is_leader());
    server.start_api();
    server.apply(&balancer("lb-b", "", OURS));
    until_reason(server, "lb-b", "Allotted");
    assert_eq!(addresses(server, "lb-a"), a);
    assert_ne!(addresses(server, "lb-b"), a);
    drop(third);
    uninstall(server);
}

/// A controller that takes an address away again and again has the last word, and the Service is told; so two
/// controllers do not write for ever. An address that another controller has given is kept.
pub(crate) fn another_controller_at_the_same_service_is_told(server: &mut ApiServer) {
    let kubeconfig = install(server);
    server.apply(&(pool("p", "addresses: [192.0.2.0/24]") + &balancer("lb-a", "", OURS) + &balancer("lb-b", "", OURS)));
    let controller = Controller::start(&kubeconfig, &[]);
    let give = |name: &str, ingress: &Value| {
        let patch = json!({"status": {"loadBalancer": {"ingress": ingress}}}).to_string();
        let service = format!("service/{name}");
        server.kubectl(&["patch", &service, "--subresource=status", "--type=merge", "--patch", &patch]);
    };
    until_reason(server, "lb-a", "Allotted");
    until_reason(server, "lb-b", "Allotted");
    let a = addresses(server, "lb-a");
    give("lb-b", &json!([{"ip": "203.0.113.7"}]));
    let kept = until_reason(server, "lb-b", "CheckAddress");
    assert!(kept.starts_with("203.0.113.7; it keeps 203.0.113.7, which is in no pool any more"), "{kept}");
    for _ in 0..2 {
        give("lb-a", &json!([]));
        until("it has its address again", || addresses(server, "lb-a") == a);
    }
    give("lb-a", &json!([]));
    let told = until_reason(server, "lb-a", "TwoControllers");
    let address = a[0].trim_end_matches(" VIP");
    let part = format!("another controller changes its addresses again and again, from {address} to none");
    assert!(told.starts_with(&part), "{told}");
    until_event(server, "lb-a", "LoadBalancerAddress", &format!("load balancer address: {told}"));
    let written = controller.written();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((addresses(server, "lb-a"), controller.written()), (vec![], written));
    drop(controller);
    uninstall(server);
}

/// The account may do what the controller does, and nothing else.
pub(crate) fn the_account_writes_statuses_and_nothing_else(server: &mut ApiServer) {
    install(server);
    let rights: Vec<String> = granted_to(server, "beeline-lb")
        .into_iter()
        .map(|((group, resource), verbs)| format!("{resource}.{group} {}", verbs.join(",")))
        .collect();
    assert_eq!(
        rights,
        [
            "namespaces. list,watch",
            "nodes. list,watch",
            "services. list,watch",
            "services/status. patch",
            "addresspools.beeline.io list,watch",
            "addresspools/status.beeline.io patch",
            "events.events.k8s.io create",
            "servicecidrs.networking.k8s.io list,watch",
        ]
    );
    // The agents' account reads as before.
    assert!(granted_to(server, "beeline").values().flatten().all(|verb| verb == "list" || verb == "watch"));
    uninstall(server);
}

/// 1,000 Services cost one write each, and nothing later.
pub(crate) fn a_thousand_services_cost_one_write_each(server: &mut ApiServer) {
    const SERVICES: usize = 1000;
    let kubeconfig = install(server);
    server.apply(&pool("p", "addresses: [192.0.0.0/16]"));
    let client = ApiClient::new(&server.kubeconfig());
    let objects = (0..SERVICES).map(|number| {
        let name = format!("lb-{number}");
        let service = json!({"metadata": {"name": name, "labels": {"story": "lb"}}, "spec": {"type": "LoadBalancer",
            "loadBalancerClass": "beeline.io/lb", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]}});
        let slice = json!({"metadata": {"name": name, "labels": {"story": "lb",
            "kubernetes.io/service-name": name}}, "addressType": "IPv4", "endpoints": []});
        (service, slice)
    });
    let controller = Controller::start(&kubeconfig, &[]);
    until("it leads", || controller.is_leader());
    let start = Instant::now();
    client.add_services(objects);
    let created = start.elapsed();
    let allotted = |controller: &Controller| controller.metric("beeline_lb_services{state=\"allotted\"}");
    until("all have an address", || allotted(&controller) == Some(SERVICES as f64));
    let took = start.elapsed();
    let service_writes = controller.written().expect("a metric");
    let passes = controller.metric("beeline_lb_passes_total").expect("a metric");
    println!(
        "1,000 Services: made in {created:?}, all allotted after {took:?}, {service_writes} writes in {passes} passes"
    );
    let list: Value =
        serde_json::from_str(&server.kubectl(&["get", "services", "--selector=story=lb", "--output=json"]))
            .expect("JSON");
    let mut seen: Vec<IpAddr> = list["items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|service| {
            service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().expect("an IP").parse().expect("an IP")
        })
        .collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(
        (seen.len(), seen[0]),
        (SERVICES, IpAddr::V4(Ipv4Addr::new(192, 0, 0, 1))),
        "each its own, from the lowest"
    );
    // Besides, a write of the pool for each pass.
    assert!(service_writes <= SERVICES as f64 + passes, "{service_writes} writes");
    controller.terminate();
    let start = Instant::now();
    let controller = Controller::start(&kubeconfig, &[]);
    until("a pass over all", || allotted(&controller) == Some(SERVICES as f64));
    println!("a restart over them: {:?}", start.elapsed());
    assert_eq!(controller.written(), Some(0.0));
    drop(controller);
    // Two requests: kubectl deletes the objects of a selector one by one, which takes minutes.
    for collection in
        ["/api/v1/namespaces/default/services", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"]
    {
        server.kubectl(&["delete", "--raw", &format!("{collection}?labelSelector=story%3Dlb")]);
    }
    uninstall(server);
}

//! The Kubernetes source, the agent and `deploy/` against a real API server: the objects that the source sends, and
//! outages of the server.
#![expect(clippy::unwrap_used, reason = "a test")]

mod agent;
mod announcing;
mod bootstrap;
mod deploy;
mod events;
mod host_ports;
mod load_balancers;
mod node;
mod relay;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use lb_core::{
    event::{Event, Object, ObjectKind},
    objects::Key,
};
use lb_lab::api_server::{ApiServer, Assets, free_port};
use lb_sources::kubernetes::{KubernetesOptions, run};
use libtest_mimic::{Arguments, Trial};
use relay::Relay;
use tokio::{runtime::Runtime, sync::mpsc};
use tracing_subscriber::EnvFilter;

/// Limit for an event to arrive. Generous, since only failures reach it.
const DEADLINE: Duration = Duration::from_secs(120);

type Story = fn(&mut ApiServer);

/// The stories. The first one needs a new server; then come the longest.
const STORIES: [(&str, Story); 39] = [
    ("the_ranges_of_cluster_ips_are_those_of_the_api", the_ranges_of_cluster_ips_are_those_of_the_api),
    ("one_node_answers_for_an_address_whatever_fails", announcing::one_node_answers_whatever_fails),
    ("deploys_account_needs_each_verb", deploy::each_verb_is_needed),
    ("of_two_load_balancer_controllers_one_leads", load_balancers::one_controller_leads_and_another_takes_over),
    ("a_thousand_load_balancers_cost_one_write_each", load_balancers::a_thousand_services_cost_one_write_each),
    ("objects_are_added_changed_and_deleted", objects_are_added_changed_and_deleted),
    (
        "a_service_that_gets_the_label_of_another_proxy_is_deleted",
        a_service_that_gets_the_label_of_another_proxy_is_deleted,
    ),
    ("only_services_of_the_proxy_name_are_sent", only_services_of_the_proxy_name_are_sent),
    ("only_endpoints_without_a_mirror_are_sent", only_endpoints_without_a_mirror_are_sent),
    ("only_the_own_node_is_sent", only_the_own_node_is_sent),
    ("pods_are_sent_by_their_label_or_that_of_their_namespace", pods_are_sent_by_label),
    (
        "all_pods_of_the_node_are_sent_for_host_ports_only",
        host_ports::all_pods_of_the_node_are_sent_for_host_ports_only,
    ),
    ("a_host_port_goes_over_to_the_next_pod_which_hears_of_it", host_ports::goes_over_to_the_next_pod),
    ("explain_reads_from_the_api_server", explain_reads_from_the_api_server),
    ("doctor_checks_each_api_server", doctor_checks_each_api_server),
    ("the_first_server_that_answers_is_used", the_first_server_that_answers_is_used),
    ("the_next_server_takes_over", the_next_server_takes_over),
    ("a_server_that_has_moved_is_found_by_the_pins", bootstrap::a_server_that_has_moved_is_found_by_the_pins),
    (
        "a_certificate_for_another_name_is_refused_and_logged",
        bootstrap::a_certificate_for_another_name_is_refused_and_logged,
    ),
    ("deploy_variants_are_accepted_without_a_warning", deploy::variants_are_accepted_without_a_warning),
    ("deploys_chart_and_kustomizations_render_the_same", deploy::chart_and_kustomizations_render_the_same),
    ("deploys_drop_in_has_kube_proxys_label_and_ports", deploy::drop_in_has_kube_proxys_label_and_ports),
    (
        "deploys_account_may_read_what_the_agent_reads_and_nothing_else",
        deploy::account_may_read_what_the_agent_reads_and_nothing_else,
    ),
    ("a_problem_of_an_object_is_one_event_of_all_nodes", events::a_problem_of_an_object_is_one_event_of_all_nodes),
    ("an_ejected_endpoint_is_an_event_of_its_service", events::an_ejected_endpoint_is_an_event_of_its_service),
    (
        "the_agent_serves_without_the_right_to_create_events",
        events::the_agent_serves_without_the_right_to_create_events,
    ),
    (
        "load_balancer_addresses_are_allotted_kept_and_explained",
        load_balancers::addresses_are_allotted_kept_and_explained,
    ),
    ("another_controller_at_the_same_service_is_told", load_balancers::another_controller_at_the_same_service_is_told),
    (
        "the_load_balancer_controllers_account_writes_statuses_and_nothing_else",
        load_balancers::the_account_writes_statuses_and_nothing_else,
    ),
    (
        "the_announcers_account_writes_one_lease_and_nothing_else",
        deploy::announcers_account_writes_one_lease_and_nothing_else,
    ),
    ("an_announcer_needs_the_right_to_its_lease", announcing::an_announcer_needs_the_right_to_its_lease),
    (
        "an_announcer_that_is_cut_off_stops_before_another_begins",
        announcing::a_node_that_is_cut_off_stops_before_another_begins,
    ),
    (
        "an_announcer_that_hears_or_is_heard_only_loses_its_addresses_once",
        announcing::a_node_that_hears_or_is_heard_only_loses_its_addresses_once,
    ),
    (
        "a_host_that_claims_an_announced_address_is_told_by_an_event",
        announcing::a_host_that_claims_an_announced_address_is_told_by_an_event,
    ),
    ("renewals_of_announced_addresses_have_a_priority", announcing::renewals_have_a_priority),
    ("a_thousand_addresses_are_announced", announcing::a_thousand_addresses_are_announced),
    (
        "announced_addresses_are_answered_over_changes_of_the_layout",
        announcing::addresses_are_answered_over_changes_of_the_layout,
    ),
    ("the_source_survives_a_restart_of_the_server", the_source_survives_a_restart_of_the_server),
    ("a_compacted_history_leads_to_a_new_list", a_compacted_history_leads_to_a_new_list),
];

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env()).with_writer(std::io::stderr).init();
    let mut args = Arguments::from_args();
    // Most of a story is waiting. Each thread has a server of its own, since some stories stop it.
    args.test_threads = args.test_threads.or(Some(2));
    if let Err(missing) = Assets::find() {
        println!("skipped: {missing}; set KUBEBUILDER_ASSETS to a directory with kube-apiserver, kubectl and etcd");
        return match std::env::var_os("BEELINE_REQUIRE_KERNEL") {
            Some(_) => ExitCode::FAILURE,
            None => ExitCode::SUCCESS,
        };
    }
    let idle: Arc<Mutex<Vec<ApiServer>>> = Arc::default();
    let trials = STORIES.into_iter().map(|(name, story)| {
        let idle = Arc::clone(&idle);
        Trial::test(name, move || {
            let lock = || idle.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = lock().pop();
            let mut server = taken.unwrap_or_else(|| ApiServer::start(Assets::find().expect("found before")));
            // A story that fails drops its server, with the objects that it has left there.
            story(&mut server);
            lock().push(server);
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&args, trials.collect());
    // Without this the children would outlive the process.
    drop(idle);
    conclusion.exit_code()
}

/// The source under test, and the events that it has sent.
struct Source {
    runtime: Runtime,
    events: mpsc::Receiver<Event>,
    /// The objects that the events have left.
    known: BTreeMap<(ObjectKind, Key), Object>,
    /// The number of lists of each kind.
    lists: BTreeMap<ObjectKind, usize>,
    /// Every object that was ever applied, listed or deleted.
    seen: Vec<(ObjectKind, Key)>,
    /// The ranges of cluster IPs.
    ranges: BTreeSet<IpNet>,
}

impl Source {
    fn new(options: KubernetesOptions) -> Self {
        let runtime = Runtime::new().unwrap();
        let (tx, events) = mpsc::channel(16);
        runtime.spawn(async { run(options, tx).await.unwrap() });
        let (known, lists, seen, ranges) = Default::default();
        let mut source = Self { runtime, events, known, lists, seen, ranges };
        source.until("all kinds are listed", |source| source.lists.len() == ObjectKind::ALL.len());
        source
    }

    fn of(server: &ApiServer) -> Self {
        Self::new(options(server))
    }

    /// Receives events until `done` returns true.
    #[track_caller]
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = std::time::Instant::now() + DEADLINE;
        while !done(self) {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let event = self.runtime.block_on(async { tokio::time::timeout(left, self.events.recv()).await });
            let Ok(Some(event)) = event else {
                panic!("not within {DEADLINE:?}: {what}; known: {:?}, lists: {:?}", self.known.keys(), self.lists)
            };
            self.take(event);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Apply(object) => self.add(object),
            Event::Delete(kind, key) => {
                self.known.remove(&(kind, key.clone()));
                self.seen.push((kind, key));
            }
            Event::Replace(kind, objects) => {
                self.known.retain(|(of, _), _| *of != kind);
                *self.lists.entry(kind).or_default() += 1;
                objects.into_iter().for_each(|object| self.add(object));
            }
            Event::Forbidden(kind) => panic!("{kind:?} may not be read"),
            Event::ClusterRanges(ranges) => self.ranges = ranges,
            Event::NodeAddresses(_) | Event::ClosedListeners(_) | Event::Probed { .. } => {
                panic!("the API server knows none of them")
            }
        }
    }

    fn add(&mut self, object: Object) {
        let id = object.id();
        self.seen.push(id.clone());
        self.known.insert(id, object);
    }

    fn has(&self, kind: ObjectKind, name: &str) -> bool {
        self.known.contains_key(&(kind, Key::new("default", name)))
    }

    fn saw(&self, kind: ObjectKind, name: &str) -> bool {
        self.seen.contains(&(kind, Key::new("default", name)))
    }

    fn zone(&self, node: &str) -> Option<&str> {
        match self.known.get(&(ObjectKind::Node, Key::new("", node))) {
            Some(Object::Node(node)) => node.zone.as_deref(),
            _ => None,
        }
    }
}

fn options(server: &ApiServer) -> KubernetesOptions {
    KubernetesOptions {
        kubeconfig: Some(server.kubeconfig()),
        node_name: "n1".to_owned(),
        ..KubernetesOptions::default()
    }
}

fn service(name: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n\
         spec: {{ports: [{{port: 80}}]}}\n"
    )
}

fn endpoints(name: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Endpoints\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n\
         subsets: [{{addresses: [{{ip: 10.0.0.1}}], ports: [{{port: 80}}]}}]\n"
    )
}

fn objects_are_added_changed_and_deleted(server: &mut ApiServer) {
    server.apply(&service("early", ""));
    let mut source = Source::of(server);
    assert!(source.has(ObjectKind::Service, "early"), "listed");

    server.apply(&service("late", ""));
    source.until("the Service", |source| source.has(ObjectKind::Service, "late"));
    let Some(Object::Service(late)) = source.known.get(&(ObjectKind::Service, Key::new("default", "late"))) else {
        panic!("no Service")
    };
    assert_eq!((late.exempt, late.cluster_ips.len(), late.ports.len()), (None, 1, 1));
    assert!(late.created.is_some() && late.problems.is_empty(), "{late:?}");

    // The API server gives a port without a name the empty name.
    let slice = |addr: &str| {
        format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: late-1, \
             labels: {{kubernetes.io/service-name: late}}}}, addressType: IPv4, ports: [{{port: 8080}}], \
             endpoints: [{{addresses: [{addr}], nodeName: n1}}]}}"
        )
    };
    let reads = |source: &Source, addr: &str| match source
        .known
        .get(&(ObjectKind::EndpointSlice, Key::new("default", "late-1")))
    {
        Some(Object::EndpointSlice(slice)) => {
            assert_eq!((slice.group.ports.len(), &*slice.problems), (1, &[][..]));
            slice.group.endpoints[0].addr.to_string() == addr
        }
        _ => false,
    };
    server.apply(&slice("10.0.0.1"));
    source.until("the slice", |source| reads(source, "10.0.0.1"));
    server.apply(&slice("10.0.0.2"));
    source.until("its change", |source| reads(source, "10.0.0.2"));

    server.kubectl(&["delete", "service/early", "service/late", "endpointslice/late-1"]);
    source.until("their deletion", |source| {
        ![(ObjectKind::Service, "early"), (ObjectKind::Service, "late"), (ObjectKind::EndpointSlice, "late-1")]
            .into_iter()
            .any(|(kind, name)| source.has(kind, name))
    });
    assert!(source.lists.values().all(|lists| *lists == 1), "{:?}", source.lists);
}

fn the_ranges_of_cluster_ips_are_those_of_the_api(server: &mut ApiServer) {
    let mut source = Source::of(server);
    let all = || BTreeSet::from(["10.96.0.0/16", "fd96::/108"].map(|range| range.parse::<IpNet>().unwrap()));
    if server.try_kubectl(&["get", "servicecidrs"], "").is_err() {
        println!("LACKS ServiceCIDR objects: the server is older than 1.33");
        return;
    }
    source.until("the ranges of the server's flags", |source| source.ranges == all());
    let more = |name: &str, range: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: {name}}}\n\
             spec: {{cidrs: ['{range}']}}\n"
        )
    };
    server.apply(&more("more", "10.97.0.0/24"));
    source.until("one more", |source| source.ranges.len() == 3);
    // The cluster IPs of another proxy's Services are unknown here.
    server.apply(
        "apiVersion: v1\nkind: Service\n\
         metadata: {name: foreign, labels: {service.kubernetes.io/service-proxy-name: x}}\n\
         spec: {ports: [{port: 80}]}\n",
    );
    source.until("none", |source| source.ranges.is_empty());
    server.kubectl(&["delete", "service", "foreign"]);
    source.until("all again", |source| source.ranges.len() == 3);
}

fn a_service_that_gets_the_label_of_another_proxy_is_deleted(server: &mut ApiServer) {
    let mut source = Source::of(server);
    server.apply(&(service("a", "") + &service("b", "")));
    source.until("the Services", |source| source.has(ObjectKind::Service, "a") && source.has(ObjectKind::Service, "b"));
    // As kube-proxy 1.37 reads it, this label is one of slices.
    server.kubectl(&["label", "service/b", "service.kubernetes.io/headless="]);
    server.kubectl(&["label", "service/a", "service.kubernetes.io/service-proxy-name=other"]);
    source.until("its deletion", |source| !source.has(ObjectKind::Service, "a"));
    assert!(source.has(ObjectKind::Service, "b"));
    server.kubectl(&["label", "service/a", "service.kubernetes.io/service-proxy-name-"]);
    source.until("the return of one", |source| source.has(ObjectKind::Service, "a"));
    server.kubectl(&["delete", "service/a", "service/b"]);
}

fn only_services_of_the_proxy_name_are_sent(server: &mut ApiServer) {
    let named = "service.kubernetes.io/service-proxy-name: x";
    let headless = "---\napiVersion: v1\nkind: Service\nmetadata: {name: none}\nspec: {clusterIP: None}\n";
    server.apply(&(service("plain", "") + &service("named", named) + headless));
    let plain = Source::of(server);
    let named = Source::new(KubernetesOptions { proxy_name: Some("x".to_owned()), ..options(server) });
    let has = |source: &Source| ["plain", "named", "none"].map(|name| source.has(ObjectKind::Service, name));
    assert_eq!((has(&plain), has(&named)), ([true, false, false], [false, true, false]));
    server.kubectl(&["delete", "service/plain", "service/named", "service/none"]);
}

fn only_endpoints_without_a_mirror_are_sent(server: &mut ApiServer) {
    let mut source = Source::of(server);
    server.apply(&endpoints("managed", "endpoints.kubernetes.io/managed-by: endpoint-controller"));
    server.apply(&endpoints("hand", ""));
    source.until("the hand-written Endpoints", |source| source.has(ObjectKind::Endpoints, "hand"));
    assert!(!source.saw(ObjectKind::Endpoints, "managed"));
    server.kubectl(&["label", "endpoints/hand", "endpointslice.kubernetes.io/skip-mirror=true"]);
    source.until("its deletion", |source| !source.has(ObjectKind::Endpoints, "hand"));
    server.kubectl(&["delete", "endpoints/hand", "endpoints/managed"]);
}

fn only_the_own_node_is_sent(server: &mut ApiServer) {
    let node = |name: &str| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
    server.apply(&(node("n1") + &node("n2")));
    let mut source = Source::of(server);
    assert_eq!(source.zone("n1"), None);
    server.kubectl(&["label", "node/n2", "topology.kubernetes.io/zone=z2"]);
    server.kubectl(&["label", "node/n1", "topology.kubernetes.io/zone=z1"]);
    source.until("the zone", |source| source.zone("n1") == Some("z1"));
    server.kubectl(&["label", "--overwrite", "node/n1", "topology.kubernetes.io/zone=z3"]);
    source.until("the other zone", |source| source.zone("n1") == Some("z3"));
    assert!(!source.seen.contains(&(ObjectKind::Node, Key::new("", "n2"))));
    server.kubectl(&["delete", "node/n1", "node/n2"]);
}

/// Only pods of this node with a mode are sent; all pods of the node while a Namespace has a mode; no pod that has
/// ended.
fn pods_are_sent_by_label(server: &mut ApiServer) {
    let pod = |name: &str, node: &str, labels: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n\
             spec: {{nodeName: {node}, containers: [{{name: c, image: i}}]}}\n"
        )
    };
    let packet = "beeline.io/path: packet";
    server.apply(&(pod("chosen", "n1", packet) + &pod("plain", "n1", "") + &pod("elsewhere", "n2", packet)));
    let mut source = Source::of(server);
    source.until("the pod", |source| source.has(ObjectKind::Pod, "chosen"));
    let Some(Object::Pod(chosen)) = source.known.get(&(ObjectKind::Pod, Key::new("default", "chosen"))) else {
        panic!("no Pod")
    };
    assert_eq!((chosen.mode, chosen.node.as_deref()), (Some(lb_common::PodMode::Packet), Some("n1")));
    assert!(chosen.uid.as_ref().is_some_and(|uid| uid.len() == 36) && chosen.netns.is_none(), "{chosen:?}");
    server.kubectl(&["label", "pod/plain", "beeline.io/path=off"]);
    source.until("a second pod with a mode", |source| source.has(ObjectKind::Pod, "plain"));
    server.kubectl(&["label", "pod/plain", "beeline.io/path-"]);
    source.until("its deletion", |source| !source.has(ObjectKind::Pod, "plain"));
    assert!(
        !source.known.keys().any(|(kind, _)| *kind == ObjectKind::Namespace),
        "no Namespace without the label is sent"
    );

    server.kubectl(&["label", "namespace/default", "beeline.io/path=off"]);
    source.until("all pods of the node", |source| {
        source.known.contains_key(&(ObjectKind::Namespace, Key::new("", "default")))
            && source.has(ObjectKind::Pod, "plain")
    });
    server.kubectl(&["label", "namespace/default", "beeline.io/path-"]);
    source.until("only pods with a mode", |source| {
        !source.has(ObjectKind::Pod, "plain") && source.has(ObjectKind::Pod, "chosen")
    });
    assert!(!source.saw(ObjectKind::Pod, "elsewhere"));
    let ended = r#"--patch={"status":{"phase":"Succeeded"}}"#;
    server.kubectl(&["patch", "pod/chosen", "--subresource=status", "--type=merge", ended]);
    source.until("the deletion of a pod that has ended", |source| !source.has(ObjectKind::Pod, "chosen"));
    for name in ["pod/chosen", "pod/plain", "pod/elsewhere"] {
        server.kubectl(&["delete", name, "--grace-period=0", "--force"]);
    }
}

/// `explain` reads objects as the API server stores them, with defaults and allocated addresses filled in.
fn explain_reads_from_the_api_server(server: &mut ApiServer) {
    server.apply(
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: told, annotations: {beeline.io/scheduler: wrr}}\n\
         spec: {type: NodePort, selector: {app: told}, sessionAffinity: ClientIP, externalTrafficPolicy: Local, \
         ports: [{name: http, port: 80}]}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {name: told-1, labels: {kubernetes.io/service-name: told}}\n\
         ports: [{name: http, port: 8080}]\nendpoints:\n- {addresses: [10.0.0.1], nodeName: n1}\n\
         - {addresses: [10.0.0.2], nodeName: n2, conditions: {ready: false}}\n",
    );
    let kubeconfig = server.kubeconfig();
    let explain = |service: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_beeline"))
            .args(["--pins", "/nowhere/beeline", "explain", service, "--node-name", "n1", "--kubeconfig"])
            .arg(&kubeconfig)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        println!("{text}");
        (output.status.code(), text)
    };
    let (code, text) = explain("default/told");
    assert_eq!(code, Some(0));
    for part in ["ClusterIP, NodePort", "wrr, by annotation", "10800", "10.0.0.1:8080  n1  used", "it is not ready"] {
        assert!(text.contains(part), "{part:?}");
    }
    assert!(text.lines().any(|line| line.contains("/TCP") && line.contains("NodePort") && line.contains("owned")));
    let (code, text) = explain("other/told");
    assert!(code == Some(1) && text.contains("default/told"), "the error names the Service in another namespace");
}

fn doctor_checks_each_api_server(server: &mut ApiServer) {
    let (alive, dead) = (server.url(), format!("https://127.0.0.1:{}", free_port()));
    let kubeconfig = server.kubeconfig();
    let doctor = |servers: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_beeline"));
        command.args(["--pins", "/nowhere/beeline", "doctor", "-o", "json", "--node-name", "n1", "--kubeconfig"]);
        command.arg(&kubeconfig).args(servers.iter().flat_map(|url| ["--api-server", url]));
        let report: serde_json::Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        let finding = |check: &str| {
            let mut findings = report["findings"].as_array().unwrap().iter();
            let finding = findings.find(|finding| finding["check"] == check).unwrap();
            println!("{finding}");
            [&finding["severity"], &finding["what"]].map(|text| text.as_str().unwrap().to_owned())
        };
        (finding("source"), finding("clock"))
    };
    let ([severity, what], [_, clock]) = doctor(&[]);
    assert!(severity == "ok" && what.contains("(Kubernetes v1."), "{what}");
    assert!(clock.starts_with("the clock is within ") && clock.contains(" s of the clock of "), "{clock}");
    let ([severity, what], _) = doctor(&[&alive, &dead]);
    assert!(severity == "warning" && what.contains("1 of 2") && what.contains(&dead), "{what}");
    let ([severity, what], _) = doctor(&[&dead]);
    assert!(severity == "error" && what.starts_with("no API server answers"), "{what}");
}

fn the_first_server_that_answers_is_used(server: &mut ApiServer) {
    let dead = format!("https://127.0.0.1:{}", free_port());
    // This URL answers, but without TLS.
    let plain = format!("http://127.0.0.1:{}", server.port());
    let api_server = vec![dead, plain, server.url()];
    let mut source = Source::new(KubernetesOptions { api_server, ..options(server) });
    server.apply(&service("a", ""));
    source.until("the Service", |source| source.has(ObjectKind::Service, "a"));
    server.kubectl(&["delete", "service/a"]);
}

fn the_next_server_takes_over(server: &mut ApiServer) {
    let relay = Relay::open(0, server.port());
    let api_server = vec![relay.url(), server.url()];
    let mut source = Source::new(KubernetesOptions { api_server, ..options(server) });
    drop(relay);
    server.apply(&service("a", ""));
    source.until("the Service", |source| source.has(ObjectKind::Service, "a"));
    server.kubectl(&["delete", "service/a"]);
}

fn the_source_survives_a_restart_of_the_server(server: &mut ApiServer) {
    let mut source = Source::of(server);
    server.apply(&service("a", ""));
    source.until("the Service", |source| source.has(ObjectKind::Service, "a"));
    server.stop_api();
    server.start_api();
    server.apply(&service("b", ""));
    server.kubectl(&["delete", "service/a"]);
    source.until("the changes during the restart", |source| {
        source.has(ObjectKind::Service, "b") && !source.has(ObjectKind::Service, "a")
    });
    server.kubectl(&["delete", "service/b"]);
}

fn a_compacted_history_leads_to_a_new_list(server: &mut ApiServer) {
    server.apply(&(service("a", "") + &service("b", "")));
    // The relay is closed while objects change.
    let relay = Relay::open(0, server.port());
    let api_server = vec![relay.url()];
    let mut source = Source::new(KubernetesOptions { api_server, ..options(server) });
    assert!(source.has(ObjectKind::Service, "a") && source.has(ObjectKind::Service, "b"));
    let port = relay.port();
    drop(relay);

    server.kubectl(&["delete", "service/a"]);
    server.apply(&service("c", ""));
    server.stop_api();
    server.compact();
    server.start_api();
    let _relay = Relay::open(port, server.port());
    source.until("a new list", |source| source.lists.get(&ObjectKind::Service) == Some(&2));
    let has = ["a", "b", "c"].map(|name| source.has(ObjectKind::Service, name));
    assert_eq!(has, [false, true, true]);
    server.apply(&service("d", ""));
    source.until("changes after it", |source| source.has(ObjectKind::Service, "d"));
    server.kubectl(&["delete", "service/b", "service/c", "service/d"]);
}

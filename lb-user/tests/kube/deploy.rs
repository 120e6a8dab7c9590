//! The manifests in `deploy/` against a real API server: they are accepted, and grant the rights that the agent needs
//! and no more.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use lb_core::event::ObjectKind;
use serde_json::Value;

use crate::{
    KubernetesOptions, Source,
    agent::{KubeTestAgent, alone_on_this_node, until},
    bootstrap::is_skipped,
    options, service,
};
use lb_lab::api_server::ApiServer;

/// The ServiceAccount, as the API server names it.
const ACCOUNT: &str = "system:serviceaccount:kube-system:beeline";

/// Resources that the role may grant, by API group.
const READ: [(&str, &str); 7] = [
    ("", "services"),
    ("", "endpoints"),
    ("", "nodes"),
    ("discovery.k8s.io", "endpointslices"),
    ("networking.k8s.io", "servicecidrs"),
    ("", "pods"),
    ("", "namespaces"),
];

/// Resources that only pod modes need: Services are served without them.
const OF_POD_MODES: [&str; 2] = ["pods", "namespaces"];

/// Verbs that the role may grant for each.
const VERBS: [&str; 2] = ["list", "watch"];

/// The directory `deploy/`.
pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// A variant of the installation.
struct Variant {
    /// Directory below `deploy/`.
    dir: &'static str,
    /// Pointer to the field of the DaemonSet, as stored by the API server, that the variant sets to `expected`.
    field: &'static str,
    expected: &'static str,
    /// Values that make the chart render the same objects.
    values: &'static str,
}

const VARIANTS: [Variant; 9] = [
    Variant {
        dir: "",
        field: "/spec/template/spec/containers/0/securityContext/privileged",
        expected: "true",
        values: "{}",
    },
    Variant {
        dir: "overlays/without-kube-proxy",
        field: "/spec/template/spec/containers/0/args/2",
        expected: "--api-server=https://192.0.2.10:6443",
        values: "extraArgs: ['--api-server=https://192.0.2.10:6443', '--api-server=https://192.0.2.11:6443']",
    },
    Variant {
        dir: "overlays/load-balancer",
        field: "/spec/template/spec/containers/0/securityContext/privileged",
        expected: "true",
        values: "loadBalancer: {enabled: true}",
    },
    Variant {
        dir: "overlays/announce",
        field: "/spec/template/spec/containers/0/args/2",
        expected: "--announce",
        values: "announce: {enabled: true}",
    },
    Variant {
        dir: "overlays/kube-proxy-labels",
        field: "/spec/template/metadata/labels/k8s-app",
        expected: "kube-proxy",
        values: "kubeProxyLabels: true",
    },
    Variant {
        dir: "overlays/least-capabilities",
        field: "/spec/template/spec/containers/0/securityContext/privileged",
        expected: "false",
        values: "capabilities: least",
    },
    Variant {
        dir: "overlays/fewest-capabilities",
        field: "/spec/template/spec/containers/0/securityContext/capabilities/add",
        expected: r#"["BPF","NET_ADMIN","PERFMON"]"#,
        values: "capabilities: fewest",
    },
    Variant {
        dir: "overlays/events",
        field: "/spec/template/spec/containers/0/args/2",
        expected: "--events",
        values: "events: true",
    },
    Variant {
        dir: "overlays/beside-kube-proxy",
        field: "/spec/template/spec/containers/0/ports/0/containerPort",
        expected: "10266",
        values: "config: {healthz-bind-address: '0.0.0.0:10266', metrics-bind-address: 'localhost:10267'}",
    },
];

/// Objects of every variant.
const KINDS: [&str; 5] = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet"];
/// Objects of the controller of load balancer addresses.
const OF_BALANCER: [&str; 7] = [
    "ServiceAccount beeline-lb",
    "ClusterRole beeline-lb",
    "ClusterRoleBinding beeline-lb",
    "Role beeline-lb",
    "RoleBinding beeline-lb",
    "Deployment beeline-lb",
    "CustomResourceDefinition addresspools.beeline.io",
];
/// Objects of announcers, beside those of the agent.
const OF_ANNOUNCERS: [&str; 2] = ["Role", "RoleBinding"];
/// Arguments of kubectl that make every unknown field and every warning an error.
const STRICTLY: [&str; 4] = ["--dry-run=server", "--validate=strict", "--warnings-as-errors", "--output=json"];

/// The API server accepts every field of each variant without a warning.
pub(crate) fn variants_are_accepted_without_a_warning(server: &mut ApiServer) {
    let overlays = std::fs::read_dir(deploy().join("overlays")).expect("overlays");
    assert_eq!(overlays.count() + 1, VARIANTS.len(), "each overlay has its variant");
    for Variant { dir, field, expected, .. } in VARIANTS {
        let dir = deploy().join(dir);
        let output = server.kubectl(&[&["apply", "-k", dir.to_str().expect("a path")], STRICTLY.as_slice()].concat());
        let objects = kinds(&output);
        let (config, daemonset) = (&objects["ConfigMap"], &objects["DaemonSet"]);
        // The hash of the options in the name of the ConfigMap makes a change of options a rollout.
        let name = config["metadata"]["name"].as_str().expect("a name");
        assert!(name.strip_prefix("beeline-").is_some_and(|hash| hash.len() == 10), "{name}");
        let mounted = |volume: &Value| volume["configMap"]["name"] == name;
        let volumes = daemonset["spec"]["template"]["spec"]["volumes"].as_array().expect("volumes");
        assert!(volumes.iter().any(mounted), "{}: nothing mounts {name}", dir.display());
        let value = daemonset.pointer(field).unwrap_or_else(|| panic!("{}: no {field}: {daemonset}", dir.display()));
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        assert_eq!(value, expected, "{}", dir.display());
        // The selector is immutable: with different selectors one variant could not replace another.
        let selector = serde_json::json!({"matchLabels": {"app.kubernetes.io/name": "beeline"}});
        assert_eq!(daemonset["spec"]["selector"], selector, "{}", dir.display());
    }
}

/// Reads objects from a List or a sequence: those of the agent by kind, each of which must be there once, and those of
/// the controller, all or none, by kind and name.
fn kinds(text: &str) -> BTreeMap<String, Value> {
    let values: Vec<Value> =
        serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>().expect("JSON");
    let items: Vec<Value> = match values.as_slice() {
        [list] => list["items"].as_array().expect("a List").clone(),
        _ => values,
    };
    let kind = |item: Value| {
        let (kind, name) = (item["kind"].as_str().unwrap_or_default(), item["metadata"]["name"].as_str());
        let name = name.filter(|name| *name == "beeline-lb" || *name == "addresspools.beeline.io");
        (name.map_or(kind.to_owned(), |name| format!("{kind} {name}")), item)
    };
    let count = items.len();
    let objects: BTreeMap<_, _> = items.into_iter().map(kind).collect();
    let mut expected = BTreeSet::from(KINDS);
    for further in [&OF_BALANCER[..], &OF_ANNOUNCERS] {
        if further.iter().any(|kind| objects.contains_key(*kind)) {
            expected.extend(further);
        }
    }
    assert_eq!((count, objects.keys().map(String::as_str).collect()), (expected.len(), expected));
    objects
}

/// Helm renders the same objects as kustomize, and the API server accepts them too.
pub(crate) fn chart_and_kustomizations_render_the_same(server: &mut ApiServer) {
    let helm = std::env::var_os("BEELINE_HELM").unwrap_or_else(|| "helm".into());
    if let Err(error) = Command::new(&helm).arg("version").output() {
        println!("skipped: no helm ({error}); set BEELINE_HELM to one");
        assert!(std::env::var_os("BEELINE_REQUIRE_KERNEL").is_none(), "no helm: {error}");
        return;
    }
    let chart = deploy().join("chart");
    let render = |values: &str| {
        let mut helm = Command::new(&helm)
            .args(["template", "beeline", "--namespace=kube-system", "--kube-version=1.37", "--values=-"])
            .arg(&chart)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("helm runs, as tried before");
        helm.stdin.take().expect("piped").write_all(values.as_bytes()).expect("helm reads");
        let output = helm.wait_with_output().expect("helm");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    };
    for Variant { dir, values, .. } in VARIANTS {
        let rendered = render(values).unwrap_or_else(|error| panic!("{values}: {error}"));
        let apply = [&["apply", "-f", "-"], STRICTLY.as_slice()].concat();
        server.try_kubectl(&apply, &rendered).unwrap_or_else(|error| panic!("{values}: {error}\n{rendered}"));
        let client = ["create", "-f", "-", "--dry-run=client", "--output=json"];
        let of_chart = server.try_kubectl(&client, &rendered).unwrap_or_else(|error| panic!("{values}: {error}"));
        let kustomized = server.kubectl(&["kustomize", deploy().join(dir).to_str().expect("a path")]);
        let of_kustomize = server.try_kubectl(&client, &kustomized).unwrap_or_else(|error| panic!("{dir}: {error}"));
        assert_eq!(normalised(&of_chart), normalised(&of_kustomize), "deploy/{dir} and the chart with {values}");
    }
    // Ports follow the addresses, and unknown or wrong values are refused.
    let moved = render("config: {healthz-bind-address: '[::]:10266', metrics-bind-address: ''}").expect("right values");
    assert!(moved.contains("containerPort: 10266") && !moved.contains("name: metrics"), "{moved}");
    for wrong in ["capabilites: least", "config: {healthz-bind-address: ''}"] {
        assert!(render(wrong).is_err(), "{wrong}");
    }
    let version = concat!("appVersion: ", env!("CARGO_PKG_VERSION"), "\n");
    assert!(std::fs::read_to_string(chart.join("Chart.yaml")).expect("Chart.yaml").contains(version), "{version}");
}

/// Returns the objects without hash and checksum, by which kustomize and Helm roll out changed options, and with the
/// options parsed, so that comments do not count.
fn normalised(list: &str) -> BTreeMap<String, Value> {
    let mut objects = kinds(list);
    let config = objects.get_mut("ConfigMap").expect("one");
    let name = std::mem::replace(&mut config["metadata"]["name"], "beeline".into());
    let options: Value =
        serde_saphyr::from_str(config["data"]["beeline.yaml"].as_str().expect("options")).expect("YAML");
    config["data"]["beeline.yaml"] = options;
    let template = &mut objects.get_mut("DaemonSet").expect("one")["spec"]["template"];
    let checksum = template["metadata"].as_object_mut().and_then(|metadata| metadata.remove("annotations"));
    assert!(name != "beeline" || checksum.is_some_and(|checksum| checksum["checksum/config"].is_string()), "{name}");
    for volume in template["spec"]["volumes"].as_array_mut().expect("volumes") {
        if volume["configMap"]["name"] == name {
            volume["configMap"]["name"] = "beeline".into();
        }
    }
    // Helm's own annotation: the pools stay when the release goes.
    if let Some(kind) = objects.get_mut("CustomResourceDefinition addresspools.beeline.io") {
        kind["metadata"].as_object_mut().expect("metadata").remove("annotations");
    }
    objects
}

/// With the overlay, and only with it, kube-proxy's label, namespace and ports lead to a pod of Beeline.
pub(crate) fn drop_in_has_kube_proxys_label_and_ports(server: &mut ApiServer) {
    for (dir, expected) in [("", ""), ("overlays/kube-proxy-labels", "pod/beeline")] {
        let kustomized = server.kubectl(&["kustomize", deploy().join(dir).to_str().expect("a path")]);
        let client = ["create", "-f", "-", "--dry-run=client", "--output=json"];
        let objects = kinds(&server.try_kubectl(&client, &kustomized).expect("objects"));
        let template = &objects["DaemonSet"]["spec"]["template"];
        let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "spec": template["spec"], "metadata":
            {"name": "beeline", "namespace": "kube-system", "labels": template["metadata"]["labels"]}});
        server.apply(&pod.to_string());
        let select = ["get", "pods", "--namespace=kube-system", "--selector=k8s-app=kube-proxy"];
        assert_eq!(server.kubectl(&[&select[..], &["--output=name"]].concat()).trim(), expected);
        if !expected.is_empty() {
            // pkg/cluster/ports/ports.go
            let ports = "--output=jsonpath={range .items[*].spec.containers[*].ports[*]}{.name}={.hostPort} {end}";
            assert_eq!(server.kubectl(&[&select[..], &[ports]].concat()).trim(), "healthz=10256 metrics=10249");
        }
        server.kubectl(&["delete", "--namespace=kube-system", "--grace-period=0", "--force", "pod/beeline"]);
    }
}

/// With the token of the account the source receives all kinds and their changes; the account may do nothing else.
pub(crate) fn account_may_read_what_the_agent_reads_and_nothing_else(server: &mut ApiServer) {
    server.kubectl(&["apply", "-k", deploy().to_str().expect("a path")]);
    let kubeconfig = account(server);
    let mut source = Source::new(KubernetesOptions { kubeconfig: Some(kubeconfig), ..options(server) });
    server.apply(&service("seen", ""));
    source.until("the Service", |source| source.has(ObjectKind::Service, "seen"));

    for (group, resource) in READ {
        let what = format!("{resource}.{group}");
        let what = what.trim_end_matches('.');
        for verb in VERBS {
            assert!(may(server, verb, what), "{verb} {what}");
        }
        for verb in ["get", "create", "update", "patch", "delete", "deletecollection"] {
            assert!(!may(server, verb, what), "{verb} {what}");
        }
    }
    for what in ["secrets", "configmaps", "serviceaccounts", "leases.coordination.k8s.io"] {
        for verb in ["get", "list", "watch", "create"] {
            assert!(!may(server, verb, what), "{verb} {what}");
        }
    }
    let read =
        |(group, resource): (&str, &str)| ((group.to_owned(), resource.to_owned()), VERBS.map(str::to_owned).into());
    assert_eq!(granted(server), READ.map(read).into());

    server.kubectl(&["delete", "service/seen"]);
    server.kubectl(&["delete", "-k", deploy().to_str().expect("a path")]);
}

/// Applies the overlay whose account may create Events. Returns the overlay and the credentials of the account.
pub(crate) fn with_events(server: &ApiServer) -> (PathBuf, PathBuf) {
    let overlay = deploy().join("overlays/events");
    server.kubectl(&["apply", "-k", overlay.to_str().expect("a path")]);
    (overlay, account(server))
}

/// Credentials of the account.
pub(crate) fn account(server: &ApiServer) -> PathBuf {
    let token = server.kubectl(&["create", "token", "beeline", "--namespace=kube-system"]);
    server.kubeconfig_with(token.trim())
}

/// Makes credentials of an account of the agent's namespace the default for that namespace, as in a pod.
pub(crate) fn in_own_namespace(kubeconfig: PathBuf) -> PathBuf {
    let text = std::fs::read_to_string(&kubeconfig).expect("a file");
    let text = text.replace("context: {cluster: c, user: u}", "context: {cluster: c, user: u, namespace: kube-system}");
    std::fs::write(&kubeconfig, text).expect("a file");
    kubeconfig
}

fn announcers() -> PathBuf {
    deploy().join("overlays/announce")
}

/// Applies the overlay of announcers. Returns the credentials of their account.
pub(crate) fn announcer_account(server: &ApiServer) -> PathBuf {
    server.kubectl(&["apply", "-k", announcers().to_str().expect("a path")]);
    in_own_namespace(account(server))
}

/// Deletes what [`announcer_account`] has applied.
pub(crate) fn delete_announcers(server: &ApiServer) {
    server.kubectl(&["delete", "-k", announcers().to_str().expect("a path")]);
}

/// Beside the rights of the agent, the account may make Leases in its namespace, and read and write the one of
/// announcers. The stories of announcing run with it, and need each of these rights.
pub(crate) fn announcers_account_writes_one_lease_and_nothing_else(server: &mut ApiServer) {
    let _credentials = announcer_account(server);
    let leases = "leases.coordination.k8s.io";
    let ours = "leases.coordination.k8s.io/beeline-announce";
    let may = |verb: &str, what: &str, namespace: &str| {
        let arguments = ["auth", "can-i", verb, what, "--namespace", namespace, "--as", ACCOUNT];
        server.try_kubectl(&arguments, "").is_ok_and(|output| output.trim() == "yes")
    };
    for (verb, what) in [("create", leases), ("get", ours), ("update", ours)] {
        assert!(may(verb, what, "kube-system"), "{verb} {what}");
        assert!(!may(verb, what, "default"), "{verb} {what} in another namespace");
    }
    for verb in ["get", "list", "watch", "update", "patch", "delete"] {
        assert!(!may(verb, leases, "kube-system"), "{verb} {leases}");
        assert!(!may(verb, "leases.coordination.k8s.io/beeline-lb", "kube-system"), "{verb} the other Lease");
    }
    for verb in ["list", "watch", "patch", "delete"] {
        assert!(!may(verb, ours, "kube-system"), "{verb} {ours}");
    }
    for what in ["secrets", "secrets/beeline-announce", "configmaps", "pods/exec"] {
        assert!(!may("get", what, "kube-system"), "{what}");
    }
    let read =
        |(group, resource): (&str, &str)| ((group.to_owned(), resource.to_owned()), VERBS.map(str::to_owned).into());
    assert_eq!(granted(server), READ.map(read).into(), "the rights in all namespaces are those of the agent");
    delete_announcers(server);
}

/// True if the account has the right.
pub(crate) fn may(server: &ApiServer, verb: &str, resource: &str) -> bool {
    match server.try_kubectl(&["auth", "can-i", verb, resource, "--all-namespaces", "--as", ACCOUNT], "") {
        Ok(output) => output.trim() == "yes",
        // kubectl prints "no" to stdout and exits with 1.
        Err(output) => {
            assert!(output.lines().all(|line| line.is_empty() || line.starts_with("Warning: ")), "{output}");
            false
        }
    }
}

/// An agent that lacks one verb on one resource logs this with the cure, and is unhealthy until it has the verb. For
/// resources of pod modes and for the ranges of cluster IPs it only logs.
pub(crate) fn each_verb_is_needed(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
    let _alone = alone_on_this_node();
    server.kubectl(&["apply", "-k", deploy().to_str().expect("a path")]);
    let kubeconfig = account(server);
    server.apply(&service("before", ""));
    let role = |without: Option<(&str, &str)>| {
        let rule = |(group, resource): (&str, &str)| {
            let verbs: Vec<_> = VERBS.into_iter().filter(|verb| Some((*verb, resource)) != without).collect();
            serde_json::json!({"apiGroups": [group], "resources": [resource], "verbs": verbs})
        };
        let rules: Vec<_> = READ.into_iter().map(rule).collect();
        let role = serde_json::json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "beeline"}, "rules": rules});
        server.apply(&role.to_string());
    };
    for (group, resource) in READ {
        let what = format!("{resource}.{group}");
        let what = what.trim_end_matches('.');
        for verb in VERBS {
            role(Some((verb, resource)));
            until("the verb is removed", || !may(server, verb, what));
            let agent = KubeTestAgent::start(&kubeconfig);
            until("the agent logs the missing verb", || agent.log().contains("does not let this agent"));
            let output = agent.log();
            if resource == "servicecidrs" {
                let expected = "does not let this agent list and watch servicecidrs.networking.k8s.io, so calls";
                assert!(output.contains(expected) && output.contains("deploy/base/rbac.yaml"), "{verb}: {output}");
                until("the agent is healthy", || agent.health("/livez") == Some(200));
                role(None);
                until("the agent logs that it may read the kind", || agent.log().contains("may be read now"));
                continue;
            }
            let expected = format!("does not let this agent {verb} {what}, so it does not learn of changes");
            assert!(output.contains(&expected) && output.contains("deploy/base/rbac.yaml"), "{verb} {what}: {output}");
            until("the metric counts the missing kind", || agent.metric("beeline_kinds_forbidden") == Some(1.0));
            if OF_POD_MODES.contains(&resource) {
                until("the agent is healthy", || agent.health("/livez") == Some(200));
            } else {
                assert_eq!([agent.health("/livez"), agent.health("/healthz")], [Some(503), Some(503)], "{verb} {what}");
            }
            role(None);
            until("the agent logs that it may read the kind", || agent.log().contains("may be read now"));
            until("the agent is healthy", || agent.health("/livez") == Some(200));
            until("the metric is 0 again", || agent.metric("beeline_kinds_forbidden") == Some(0.0));
            if resource == "services" {
                server.apply(&service("after", ""));
                until("a change arrives", || agent.log().contains("default/after"));
                server.kubectl(&["delete", "service/after"]);
            }
        }
    }
    server.kubectl(&["delete", "service/before"]);
    server.kubectl(&["delete", "-k", deploy().to_str().expect("a path")]);
}

/// Returns the verbs of the agent's role, by group and resource.
pub(crate) fn granted(server: &ApiServer) -> BTreeMap<(String, String), Vec<String>> {
    granted_to(server, "beeline")
}

/// Returns the verbs of a role, by group and resource.
pub(crate) fn granted_to(server: &ApiServer, role: &str) -> BTreeMap<(String, String), Vec<String>> {
    let role = server.kubectl(&["get", "clusterrole", role, "--output=json"]);
    let role: serde_json::Value = serde_json::from_str(&role).expect("JSON");
    let texts = |value: &serde_json::Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let mut granted = BTreeMap::new();
    for rule in role["rules"].as_array().expect("rules") {
        assert!(rule.get("nonResourceURLs").is_none(), "{rule}");
        for group in texts(&rule["apiGroups"]) {
            granted.extend(
                texts(&rule["resources"])
                    .into_iter()
                    .map(|resource| ((group.clone(), resource), texts(&rule["verbs"]))),
            );
        }
    }
    granted
}

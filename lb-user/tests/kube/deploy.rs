//! What `deploy/` says, against a real API server: it is accepted, and its account may do what the agent needs and no
//! more.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use lb_core::event::Kind;
use serde_json::Value;

use crate::{
    Options, Source,
    agent::{Agent, until},
    bootstrap::is_skipped,
    options, service,
};
use lb_lab::api_server::ApiServer;

/// The account, as the API server names it.
const ACCOUNT: &str = "system:serviceaccount:kube-system:beeline";

/// All that the role may grant.
const READ: [(&str, &str); 6] = [
    ("", "services"),
    ("", "endpoints"),
    ("", "nodes"),
    ("discovery.k8s.io", "endpointslices"),
    ("", "pods"),
    ("", "namespaces"),
];

/// Of these: those without which Services are served all the same.
const OF_PATHS: [&str; 2] = ["pods", "namespaces"];

/// All that it may do with each.
const VERBS: [&str; 2] = ["list", "watch"];

pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// A way to install it.
struct Variant {
    /// Below `deploy/`.
    dir: &'static str,
    /// What it is about, as the API server would keep it in the DaemonSet.
    field: &'static str,
    expected: &'static str,
    /// What makes the same of the chart.
    values: &'static str,
}

const VARIANTS: [Variant; 7] = [
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
        values: "config: {healthz-bind-address: '0.0.0.0:10266', metrics-bind-address: '127.0.0.1:10267'}",
    },
];

const KINDS: [&str; 5] = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet"];
/// What the API server must be content with.
const STRICTLY: [&str; 4] = ["--dry-run=server", "--validate=strict", "--warnings-as-errors", "--output=json"];

/// The API server takes all of each variant, and takes it for what it is: no field is unknown, nothing is warned of.
pub(crate) fn variants_are_accepted_whole(server: &mut ApiServer) {
    let overlays = std::fs::read_dir(deploy().join("overlays")).expect("overlays");
    assert_eq!(overlays.count() + 1, VARIANTS.len(), "each overlay has its row");
    for Variant { dir, field, expected, .. } in VARIANTS {
        let dir = deploy().join(dir);
        let said = server.kubectl(&[&["apply", "-k", dir.to_str().expect("a path")], STRICTLY.as_slice()].concat());
        let objects = kinds(&said);
        let (config, daemonset) = (&objects["ConfigMap"], &objects["DaemonSet"]);
        // A change of options is a rollout: the name that the DaemonSet mounts has their hash.
        let name = config["metadata"]["name"].as_str().expect("a name");
        assert!(name.strip_prefix("beeline-").is_some_and(|hash| hash.len() == 10), "{name}");
        let mounted = |volume: &Value| volume["configMap"]["name"] == name;
        let volumes = daemonset["spec"]["template"]["spec"]["volumes"].as_array().expect("volumes");
        assert!(volumes.iter().any(mounted), "{}: nothing mounts {name}", dir.display());
        let value = daemonset.pointer(field).unwrap_or_else(|| panic!("{}: no {field}: {daemonset}", dir.display()));
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        assert_eq!(value, expected, "{}", dir.display());
        // It cannot be changed, so variants that differed in it could not take each other's place.
        let selector = serde_json::json!({"matchLabels": {"app.kubernetes.io/name": "beeline"}});
        assert_eq!(daemonset["spec"]["selector"], selector, "{}", dir.display());
    }
}

/// Objects by kind, from a List or one after the other; each of the kinds once.
fn kinds(text: &str) -> BTreeMap<String, Value> {
    let values: Vec<Value> =
        serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>().expect("JSON");
    let items: Vec<Value> = match values.as_slice() {
        [list] => list["items"].as_array().expect("a List").clone(),
        _ => values,
    };
    let kind = |item: Value| (item["kind"].as_str().unwrap_or_default().to_owned(), item);
    let count = items.len();
    let objects: BTreeMap<_, _> = items.into_iter().map(kind).collect();
    assert_eq!((count, objects.keys().map(String::as_str).collect()), (KINDS.len(), BTreeSet::from(KINDS)));
    objects
}

/// What Helm makes of the chart is what kustomize makes, and the API server takes it just as well.
pub(crate) fn chart_makes_what_the_kustomizations_make(server: &mut ApiServer) {
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
            .expect("asked before");
        helm.stdin.take().expect("piped").write_all(values.as_bytes()).expect("it reads");
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
    // The ports follow the addresses, and what nobody knows is refused.
    let moved = render("config: {healthz-bind-address: '[::]:10266', metrics-bind-address: ''}").expect("right values");
    assert!(moved.contains("containerPort: 10266") && !moved.contains("name: metrics"), "{moved}");
    for wrong in ["capabilites: least", "config: {healthz-bind-address: ''}"] {
        assert!(render(wrong).is_err(), "{wrong}");
    }
    let version = concat!("appVersion: ", env!("CARGO_PKG_VERSION"), "\n");
    assert!(std::fs::read_to_string(chart.join("Chart.yaml")).expect("Chart.yaml").contains(version), "{version}");
}

/// The objects, with the ways of the two to roll out changed options taken away, and the options themselves without
/// comments.
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
    objects
}

/// Who looks for kube-proxy by its label, in its namespace and on its ports finds a pod of Beeline's, and only with the
/// overlay.
pub(crate) fn drop_in_is_found_where_kube_proxy_was(server: &mut ApiServer) {
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

/// An agent with the account's own token sees the kinds that it reads and their changes; the account may do nothing
/// else.
pub(crate) fn account_may_read_what_the_agent_reads_and_nothing_else(server: &mut ApiServer) {
    server.kubectl(&["apply", "-k", deploy().to_str().expect("a path")]);
    let kubeconfig = account(server);
    let mut source = Source::new(Options { kubeconfig: Some(kubeconfig), ..options(server) });
    server.apply(&service("seen", ""));
    source.until("the Service", |source| source.has(Kind::Service, "seen"));

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

/// Credentials of the account.
pub(crate) fn account(server: &ApiServer) -> PathBuf {
    let token = server.kubectl(&["create", "token", "beeline", "--namespace=kube-system"]);
    server.kubeconfig_with(token.trim())
}

pub(crate) fn may(server: &ApiServer, verb: &str, resource: &str) -> bool {
    match server.try_kubectl(&["auth", "can-i", verb, resource, "--all-namespaces", "--as", ACCOUNT], "") {
        Ok(said) => said.trim() == "yes",
        // It says "no" to stdout, and ends with 1.
        Err(said) => {
            assert!(said.lines().all(|line| line.is_empty() || line.starts_with("Warning: ")), "{said}");
            false
        }
    }
}

/// An agent that lacks one verb on one resource says so, with the cure, and is not healthy until it has it; of those
/// that only say which pods take another path, it says so.
pub(crate) fn each_verb_is_needed(server: &mut ApiServer) {
    if is_skipped() {
        return;
    }
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
            until("it is taken away", || !may(server, verb, what));
            let agent = Agent::start(&kubeconfig);
            until("the agent says so", || agent.log().contains("does not let this agent"));
            let said = agent.log();
            let expected = format!("does not let this agent {verb} {what}, so it does not learn of changes");
            assert!(said.contains(&expected) && said.contains("deploy/base/rbac.yaml"), "{verb} {what}: {said}");
            until("it knows that it is not healthy", || agent.metric("beeline_kinds_forbidden") == Some(1.0));
            if OF_PATHS.contains(&resource) {
                until("it is well", || agent.health("/livez") == Some(200));
            } else {
                assert_eq!([agent.health("/livez"), agent.health("/healthz")], [Some(503), Some(503)], "{verb} {what}");
            }
            role(None);
            until("it has all it needs", || agent.log().contains("may be read now"));
            until("it is well", || agent.health("/livez") == Some(200));
            until("it knows", || agent.metric("beeline_kinds_forbidden") == Some(0.0));
            if resource == "services" {
                server.apply(&service("after", ""));
                until("it learns of changes", || agent.log().contains("default/after"));
                server.kubectl(&["delete", "service/after"]);
            }
        }
    }
    server.kubectl(&["delete", "service/before"]);
    server.kubectl(&["delete", "-k", deploy().to_str().expect("a path")]);
}

/// The verbs of the role, by group and resource.
pub(crate) fn granted(server: &ApiServer) -> BTreeMap<(String, String), Vec<String>> {
    let role = server.kubectl(&["get", "clusterrole", "beeline", "--output=json"]);
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

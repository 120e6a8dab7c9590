//! The move from MetalLB, as its own manifest installs it, step by step as the documentation says, while clients
//! outside connect all the time; and its speakers beside announcers.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use super::{
    Story,
    announce::{PATIENT, SETTLED, ask_on_link, holder, targets},
};
use crate::{
    addresses,
    cluster::Cluster,
    install,
    pods::Web,
    prober::Prober,
    process::{asset, try_run, until},
};

pub const STORIES: &[Story] = &[(
    "addresses_move_from_metallb_and_a_speaker_that_stays_is_found",
    addresses_move_from_metallb_and_a_speaker_that_stays_is_found,
)];

const NAMESPACE: &str = "metallb-system";
/// The label of announcers.
const LABEL: &str = "beeline.io/announcer";
/// The Services: of a wish for nothing, for addresses, and for nodes with endpoints.
const NAMES: [&str; 3] = ["moved", "moved-asked", "moved-local"];

fn web() -> Web<'static> {
    Web { name: NAMES[0], replicas: 2, node: None, service: "type: LoadBalancer", port: "" }
}

/// MetalLB's manifest, with the images of `cargo xtask e2e`, and without webhooks: the API server has no route to
/// cluster IPs.
fn manifest() -> String {
    let text = fs::read_to_string(asset("metallb-native.yaml")).expect("MetalLB's manifest");
    let documents = text.split("\n---\n").filter(|document| !document.contains("kind: ValidatingWebhookConfiguration"));
    let mut text = documents.collect::<Vec<_>>().join("\n---\n");
    text = text.replace("- --tls-min-version", "- --webhook-mode=disabled\n        - --tls-min-version");
    for program in ["speaker", "controller"] {
        let start = text.find(&format!("quay.io/metallb/{program}:")).expect("an image");
        let end = start + text[start..].find('\n').expect("a line");
        text.replace_range(start..end, &image(program));
    }
    text
}

fn image(program: &str) -> String {
    format!("docker.io/library/metallb-{program}:{}", env!("CARGO_PKG_VERSION"))
}

fn start_metallb(cluster: &Cluster) {
    let ctr = asset("ctr").display().to_string();
    for node in &cluster.nodes {
        for program in ["speaker", "controller"] {
            let archive = asset(&format!("metallb-{program}.tar"));
            let import = ["--namespace", "k8s.io", "images", "import"];
            try_run(node.inside(&ctr).args(import).arg(archive)).unwrap_or_else(|error| panic!("{error}"));
        }
    }
    cluster.apply(&manifest());
    cluster.until_rolled_out("deployment/controller", NAMESPACE);
    cluster.until_rolled_out("daemonset/speaker", NAMESPACE);
}

fn make_services(cluster: &Cluster) {
    let ranges = |v4, v6| addresses::ranges(v4, v6).replace(',', "', '");
    cluster.apply(&format!(
        "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {{name: moved, namespace: {NAMESPACE}}}\n\
         spec: {{addresses: ['{}']}}\n---\n\
         apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {{name: moved, namespace: {NAMESPACE}}}\n",
        ranges("172.30.0.200-172.30.0.207", "fd30::200-fd30::207")
    ));
    web().make(cluster);
    for (name, annotation, policy) in
        [(NAMES[1], addresses::ranges("172.30.0.207", "fd30::207"), "Cluster"), (NAMES[2], String::new(), "Local")]
    {
        let wish =
            if annotation.is_empty() { annotation } else { format!("metallb.io/loadBalancerIPs: '{annotation}'") };
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{wish}}}}}\nspec:\n  \
             selector: {{app: {}}}\n  type: LoadBalancer\n  externalTrafficPolicy: {policy}\n  \
             ipFamilyPolicy: PreferDualStack\n  ports: [{{port: 80, targetPort: 8080}}]\n",
            NAMES[0]
        ));
    }
}

/// The addresses of each Service.
fn of_services(cluster: &Cluster) -> BTreeMap<&'static str, Vec<SocketAddr>> {
    NAMES.into_iter().map(|name| (name, targets(cluster, name))).collect()
}

/// Runs `beeline import-pools`: the pools, and the notes.
fn import(objects: &str) -> (String, String) {
    let program = std::env::var("BEELINE_BIN").expect("`cargo xtask e2e` sets it");
    let mut command = Command::new(program);
    command.arg("import-pools").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("beeline");
    child.stdin.take().expect("a pipe").write_all(objects.as_bytes()).expect("beeline reads");
    let output = child.wait_with_output().expect("beeline");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// MetalLB's own examples: every pool is written, and no value is an error.
fn assert_examples_are_read() {
    let files = fs::read_dir(asset("configsamples")).expect("MetalLB's examples").flatten();
    let mut count = 0;
    for file in files {
        let text = fs::read_to_string(file.path()).expect("a file");
        let (pools, notes) = import(&text);
        let wanted = text.matches("kind: IPAddressPool\n").count();
        assert_eq!(pools.matches("kind: AddressPool\n").count(), wanted, "{:?}: {pools}{notes}", file.path());
        assert!(!notes.contains("error") && !notes.contains("unknown"), "{:?}: {notes}", file.path());
        count += 1;
    }
    println!("   {count} examples of MetalLB are read");
    assert!(count > 10, "{count}");
}

/// Findings of `beeline doctor` on announcing, on a node.
fn doctor(cluster: &Cluster, node: &str) -> String {
    let said = install::beeline(cluster, node, "doctor").unwrap_or_else(|error| error);
    let mut lines = Vec::new();
    let mut is_of_check = false;
    for line in said.lines() {
        is_of_check = line.contains("announcing") || (is_of_check && line.starts_with(' '));
        if is_of_check {
            lines.push(format!("   {line}\n"));
        }
    }
    lines.concat()
}

fn addresses_move_from_metallb_and_a_speaker_that_stays_is_found(cluster: &Cluster) {
    assert_examples_are_read();
    start_metallb(cluster);
    make_services(cluster);
    let before = of_services(cluster);
    let all: Vec<SocketAddr> = before.values().flatten().copied().collect();
    println!("   MetalLB announces {before:?}");
    thread::sleep(SETTLED);
    let probers: Vec<Prober> = all.iter().map(|target| Prober::start(*target, PATIENT)).collect();
    thread::sleep(SETTLED);
    let assert_unchanged = |since: Instant, what: &str| {
        thread::sleep(SETTLED);
        assert_eq!(of_services(cluster), before, "{what}");
        probers.iter().for_each(|prober| prober.assert_no_connect_failed(since, what));
    };

    let start = Instant::now();
    let kinds = "ipaddresspools,l2advertisements,bgpadvertisements,bgppeers,services,namespaces,nodes";
    let (pools, notes) = import(&cluster.kubectl(&["get", kinds, "--all-namespaces", "--output=yaml"]));
    println!("   $ kubectl get … | beeline import-pools\n{notes}");
    assert!(notes.ends_with("1 pool; 3 of 3 Services with addresses would keep them\n"), "{notes}");
    let crd = std::env::var("BEELINE_DEPLOY").expect("`cargo xtask e2e` sets it");
    cluster.kubectl(&["apply", "--filename", &format!("{crd}/components/load-balancer/crd.yaml")]);
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/addresspools.beeline.io"]);
    cluster.apply(&pools);
    cluster.kubectl(&["--namespace", NAMESPACE, "scale", "deployment", "controller", "--replicas=0"]);
    install::install(cluster, install::ALLOTTING);
    cluster.until_rolled_out("deployment/beeline-lb", "kube-system");
    for name in NAMES {
        until("the Service's condition names the pool", 60, || {
            let service = cluster.get(&format!("service {name}"));
            let conditions = service["status"]["conditions"].to_string();
            if conditions.contains(r#""Allotted""#) { Ok(()) } else { Err(conditions) }
        });
    }
    let events = "get events --all-namespaces --field-selector=reason=LoadBalancerAddress --output=name";
    assert_eq!(cluster.kubectl(&events.split(' ').collect::<Vec<_>>()), "");
    assert_unchanged(start, "Beeline allots, MetalLB announces");

    let start = Instant::now();
    install::install_announced_as(cluster, install::ALLOTTING_AND_ANNOUNCED);
    assert_unchanged(start, "agents may announce, and no node has the label");

    let start = Instant::now();
    // With its pods.
    let delete = ["--namespace", NAMESPACE, "delete", "daemonset", "speaker", "--cascade=foreground"];
    cluster.kubectl(&delete);
    // Ask only now: on a busy machine two speakers answer for a while.
    let asking = ask_on_link(&all);
    cluster.kubectl(&["label", "nodes", "--all", &format!("{LABEL}=")]);
    let until_announced = || {
        for target in &all {
            until("a node announces the address", 60, || holder(cluster, target.ip()));
        }
    };
    until_announced();
    assert_unchanged(start, "the speakers end, and nodes get the label");
    let gap = asking.longest_gap(start);
    println!("   {gap:.1?} without an answer; {} questions, none with answers of two hosts", asking.end());
    drop(probers);

    // Speakers that an operator has forgotten, or that another one installs anew.
    cluster.apply(&manifest());
    cluster.until_rolled_out("daemonset/speaker", NAMESPACE);
    let said = until("doctor finds both answerers, by NDP too", 60, || {
        let said = ["node1", "node2"].map(|node| doctor(cluster, node));
        let names_both = |said: &String| said.contains("MetalLB's speaker (pid ") && said.contains("answer for ");
        let has_both_families = said.concat().contains("answers for fd30::");
        if said.iter().all(names_both) && has_both_families { Ok(said) } else { Err(said.concat()) }
    });
    println!("   $ beeline doctor   # on both nodes, beside MetalLB's speakers\n{}", said.concat());
    cluster.kubectl(&delete);
    until("doctor finds no other answerer any more", 60, || {
        let said = ["node1", "node2"].map(|node| doctor(cluster, node));
        // The agent warns of their claims for ten minutes.
        let is_well =
            |said: &String| said.contains("announcing") && !said.contains("error") && !said.contains("MetalLB");
        if said.iter().all(is_well) { Ok(()) } else { Err(said.concat()) }
    });
    let asking = ask_on_link(&all);
    thread::sleep(SETTLED);
    println!("   without them: {} questions, none with answers of two hosts", asking.end());

    // Back to MetalLB.
    let probers: Vec<Prober> = all.iter().map(|target| Prober::start(*target, PATIENT)).collect();
    thread::sleep(SETTLED);
    let start = Instant::now();
    install::install(cluster, install::ALLOTTING);
    cluster.apply(&manifest());
    cluster.until_rolled_out("daemonset/speaker", NAMESPACE);
    cluster.kubectl(&["--namespace=kube-system", "scale", "deployment", "beeline-lb", "--replicas=0"]);
    cluster.kubectl(&["--namespace", NAMESPACE, "scale", "deployment", "controller", "--replicas=1"]);
    cluster.until_rolled_out("deployment/controller", NAMESPACE);
    thread::sleep(SETTLED);
    assert_eq!(of_services(cluster), before, "back to MetalLB");
    probers.iter().for_each(|prober| prober.assert_no_connect_failed(start, "back to MetalLB"));
    drop(probers);

    remove(cluster);
}

fn remove(cluster: &Cluster) {
    web().remove(cluster);
    cluster.kubectl(&["delete", "service", NAMES[1], NAMES[2]]);
    let path = cluster.directory.join("metallb.yaml");
    fs::write(&path, manifest()).expect("a file");
    cluster.kubectl(&["delete", "--filename", &path.display().to_string(), "--ignore-not-found", "--wait=false"]);
    install::remove_announced(cluster);
    cluster.kubectl(&["label", "nodes", "--all", &format!("{LABEL}-")]);
    install::install(cluster, install::PLAIN);
}

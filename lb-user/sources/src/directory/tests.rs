//! Tests with changing directories on a real file system.

use std::{os::unix::fs::symlink, time::Instant};

use super::*;

/// Formats a Service as YAML.
fn service(name: &str, addr: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{clusterIP: {addr}, ports: [{{port: 80}}]}}\n"
    )
}

/// Returns names and addresses of the Services in a round of events, which must hold all kinds; None for no events.
fn services(events: Vec<Event>) -> Option<Vec<String>> {
    let kinds: Vec<ObjectKind> = events
        .iter()
        .map(|event| match event {
            Event::Replace(kind, _) => *kind,
            other => panic!("{other:?}"),
        })
        .collect();
    if kinds.is_empty() {
        return None;
    }
    assert_eq!(kinds, ObjectKind::ALL);
    let Some(Event::Replace(_, objects)) = events.into_iter().next() else { panic!("checked above") };
    let named = |object| match object {
        Object::Service(service) => format!("{} {}", service.key.name(), service.cluster_ips[0]),
        other => panic!("{other:?}"),
    };
    Some(objects.into_iter().map(named).collect())
}

fn options(dir: &Path) -> DirectoryOptions {
    DirectoryOptions { path: dir.to_owned(), proxy_name: None, remembered: RememberedAddresses::default() }
}

/// Repeated readings of a directory, without a watch.
struct Reading {
    dir: tempfile::TempDir,
    good: DirectoryState,
}

impl Reading {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), good: DirectoryState::new(None) }
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[track_caller]
    fn expect(&mut self, services_now: Option<&[&str]>, problems: &[&str]) {
        let events = load(self.dir.path(), &mut self.good).unwrap();
        let expected = services_now.map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(services(events), expected);
        let dir = format!("{}/", self.dir.path().display());
        let got: Vec<String> = self.good.problems().map(|problem| problem.replace(&dir, "")).collect();
        assert_eq!(got, problems);
    }
}

#[test]
fn the_first_reading_returns_all_kinds_and_later_ones_only_changes() {
    let mut reading = Reading::new();
    reading.expect(Some(&[]), &[]);
    reading.expect(None, &[]);
    reading.write("a.yaml", &service("a", "10.96.0.1"));
    reading.write("sub/b.yml", &service("b", "10.96.0.2"));
    reading.write(
        "sub/c.json",
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"c"},"spec":{"clusterIP":"10.96.0.3"}}"#,
    );
    reading.write("note.txt", "[");
    reading.write(".hidden.yaml", "[");
    reading.write("..data/a.yaml", "[");
    reading.expect(Some(&["a 10.96.0.1", "b 10.96.0.2", "c 10.96.0.3"]), &[]);
    reading.expect(None, &[]);
    reading.write("a.yaml", &format!("# a comment\n{}", service("a", "10.96.0.1")));
    reading.expect(None, &[]);
    reading.write("a.yaml", &service("a", "10.96.0.9"));
    reading.expect(Some(&["a 10.96.0.9", "b 10.96.0.2", "c 10.96.0.3"]), &[]);
    fs::remove_dir_all(reading.dir.path().join("sub")).unwrap();
    reading.expect(Some(&["a 10.96.0.9"]), &[]);
}

/// Formats a Service of type LoadBalancer as YAML.
fn balancer(name: &str, cluster_ip: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{type: LoadBalancer, clusterIP: {cluster_ip}, ports: [{{port: 80}}], {spec}}}\n"
    )
}

fn pool(name: &str, spec: &str) -> String {
    format!("---\napiVersion: beeline.io/v1alpha1\nkind: AddressPool\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
}

/// Reads the directory; returns the load balancer addresses of each Service, and the reports that are not clean.
fn addresses(reading: &mut Reading) -> Vec<String> {
    let events = load(reading.dir.path(), &mut reading.good).unwrap();
    let objects = events.into_iter().find_map(|event| match event {
        Event::Replace(ObjectKind::Service, objects) => Some(objects),
        _ => None,
    });
    let text = |object| {
        let Object::Service(service) = object else { panic!("{object:?}") };
        let mut parts = vec![service.key.name().to_owned()];
        parts.extend(service.ingress_ips.iter().map(ToString::to_string));
        parts.extend(
            service.address_report.iter().filter(|report| !report.is_clean).map(|report| report.message.clone()),
        );
        parts.join(" ")
    };
    objects.unwrap_or_default().into_iter().map(text).collect()
}

#[test]
fn services_get_addresses_of_the_pools_in_the_files_and_keep_them() {
    let mut reading = Reading::new();
    let other = "loadBalancerClass: x.io/y";
    reading.write("b.yaml", &(balancer("b", "10.96.0.2", "") + &balancer("other", "10.96.0.9", other)));
    assert_eq!(addresses(&mut reading), ["b", "other"], "without a pool there is no report");
    reading.write("p.yaml", &pool("p", "addresses: [192.0.2.10-192.0.2.11]"));
    assert_eq!(addresses(&mut reading), ["b 192.0.2.10", "other"]);
    reading.write("a.yaml", &balancer("a", "10.96.0.1", "loadBalancerClass: beeline.io/lb"));
    assert_eq!(addresses(&mut reading), ["a 192.0.2.11", "b 192.0.2.10", "other"], "a newcomer displaces none");
    reading.write("c.yaml", &balancer("c", "10.96.0.3", ""));
    let full = "c no pool gives it an IPv4 address: p has no free one (add addresses)";
    assert_eq!(addresses(&mut reading), ["a 192.0.2.11", "b 192.0.2.10", "other", full]);
    fs::remove_file(reading.dir.path().join("p.yaml")).unwrap();
    let now = addresses(&mut reading);
    assert!(now[0].starts_with("a 192.0.2.11 192.0.2.11; it keeps 192.0.2.11, which is in no pool"), "{now:?}");
    // A status in a file takes precedence over a remembered address.
    reading
        .write("c.yaml", &(balancer("c", "10.96.0.3", "") + "status: {loadBalancer: {ingress: [{ip: 192.0.2.10}]}}\n"));
    reading.write("p.yaml", &pool("p", "addresses: [192.0.2.10-192.0.2.12]"));
    assert_eq!(addresses(&mut reading), ["a 192.0.2.11", "b 192.0.2.10", "other", "c 192.0.2.12"]);
}

#[test]
fn addresses_of_an_earlier_run_stay_with_their_services() {
    let mut reading = Reading::new();
    reading.write("a.yaml", &(balancer("a", "10.96.0.1", "") + &balancer("b", "10.96.0.2", "")));
    reading.write("p.yaml", &pool("p", "addresses: [192.0.2.10-192.0.2.12]"));
    let remembered = || [(Key::new("default", "b"), vec!["192.0.2.10".parse().unwrap()])].into();
    reading.good = DirectoryState::new(None).remembering(RememberedAddresses::new(remembered));
    assert_eq!(addresses(&mut reading), ["a 192.0.2.11", "b 192.0.2.10"]);
}

#[test]
fn pools_select_by_labels_of_namespaces_and_services_and_their_problems_are_reported() {
    let mut reading = Reading::new();
    reading.write("a.yaml", &(balancer("a", "10.96.0.1", "") + &balancer("b", "10.96.0.2", "")));
    let by_name = "namespaceSelectors: [{matchLabels: {kubernetes.io/metadata.name: default}}]";
    reading.write("p.yaml", &pool("p", &format!("addresses: [192.0.2.10/31, 10.96.0.1, 192.0.2.1/24], {by_name}")));
    reading.write("q.yaml", &(pool("q", "addresses: [192.0.2.11]") + &pool("q", "addresses: []")));
    assert_eq!(addresses(&mut reading), ["a 192.0.2.10", "b 192.0.2.11"]);
    let problems: Vec<&str> = reading.good.problems().collect();
    assert_eq!(
        problems,
        [
            "AddressPool p: it has addresses of the cluster IP range 10.96.0.1/32, which are not allotted; leave them \
             out",
            "AddressPool p: spec.addresses[2] \"192.0.2.1/24\": bits behind the prefix are set; write 192.0.2.0/24 \
             for all of it",
            "AddressPool q is there twice: the first counts; remove one",
            "AddressPool q: 192.0.2.11-192.0.2.11 is in pool p too, which allots it; remove it from one",
        ]
    );
}

#[test]
fn endpoints_without_a_service_are_problems() {
    let slice = |name: &str, labels: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}, labels: {{{labels}}}}}\naddressType: IPv4\n"
        )
    };
    let endpoints = |name: &str| format!("---\napiVersion: v1\nkind: Endpoints\nmetadata: {{name: {name}}}\n");
    let mut reading = Reading::new();
    reading.write("a.yaml", &service("a", "10.96.0.1"));
    reading.write("b.yaml", &(endpoints("a") + &endpoints("b")));
    reading.write(
        "c.yaml",
        &(slice("s1", "kubernetes.io/service-name: a")
            + &slice("s2", "kubernetes.io/service-name: c")
            + &slice("s3", "")),
    );
    reading.expect(
        Some(&["a 10.96.0.1"]),
        &[
            "EndpointSlice default/s2: there is no Service default/c; write it, or fix the label \
             kubernetes.io/service-name",
            "EndpointSlice default/s3: label kubernetes.io/service-name: missing; set it to the name of the Service",
            "Endpoints default/b: there is no Service of that name; write it, or fix the name",
        ],
    );
}

#[test]
fn a_bad_file_keeps_its_last_good_objects_and_others_are_read() {
    let mut reading = Reading::new();
    reading.write("a.yaml", &service("a", "10.96.0.1"));
    reading.write("b.yaml", &service("b", "10.96.0.2"));
    reading.expect(Some(&["a 10.96.0.1", "b 10.96.0.2"]), &[]);
    let bad = format!("{}---\nkind: Service\n", service("a", "10.96.0.8"));
    reading.write("a.yaml", &bad);
    reading.write("b.yaml", &service("b", "10.96.0.9"));
    let problem = "a.yaml: document 2, line 7: apiVersion: missing; add it; the objects last read from it are kept";
    reading.expect(Some(&["a 10.96.0.1", "b 10.96.0.9"]), &[problem]);
    reading.expect(None, &[problem]);
    reading.write("a.yaml", "");
    reading.expect(
        None,
        &["a.yaml: empty; remove the file to remove its objects; the objects last read from it are kept"],
    );
    reading.write("a.yaml", "# none\n");
    reading.expect(Some(&["b 10.96.0.9"]), &[]);
    reading.write("c.yaml", "[");
    let events = load(reading.dir.path(), &mut reading.good).unwrap();
    assert_eq!(services(events), None, "a new bad file changes nothing");
    assert_eq!(reading.good.problems().count(), 1);
    fs::remove_file(reading.dir.path().join("c.yaml")).unwrap();
    reading.write("b.yaml", &bad);
    fs::remove_file(reading.dir.path().join("b.yaml")).unwrap();
    reading.expect(Some(&[]), &[]);
}

#[test]
fn an_object_in_two_files_counts_once() {
    let mut reading = Reading::new();
    reading.write("b.yaml", &service("a", "10.96.0.2"));
    reading.write("a.yaml", &service("a", "10.96.0.1"));
    let dir = reading.dir.path().to_owned();
    let problem =
        format!("Service default/a is in {}/a.yaml and in b.yaml: the first counts; remove one", dir.display());
    let problem = problem.replace(&format!("{}/", dir.display()), "");
    reading.expect(Some(&["a 10.96.0.1"]), &[&problem]);
    fs::remove_file(dir.join("a.yaml")).unwrap();
    reading.expect(Some(&["a 10.96.0.2"]), &[]);
}

#[test]
fn a_cycle_of_links_is_read_once_and_a_dangling_link_keeps_its_objects() {
    let mut reading = Reading::new();
    let dir = reading.dir.path().to_owned();
    reading.write("sub/a.yaml", &service("a", "10.96.0.1"));
    symlink(&dir, dir.join("sub/up")).unwrap();
    reading.write(".store/b", &service("b", "10.96.0.2"));
    symlink(dir.join(".store/b"), dir.join("b.yaml")).unwrap();
    reading.expect(Some(&["b 10.96.0.2", "a 10.96.0.1"]), &[]);
    fs::rename(dir.join(".store"), dir.join(".moved")).unwrap();
    let events = load(&dir, &mut reading.good).unwrap();
    assert_eq!((services(events), reading.good.problems().count()), (None, 1));
}

#[test]
fn a_missing_directory_is_an_error_with_its_cure() {
    let dir = tempfile::tempdir().unwrap();
    let error = load(&dir.path().join("absent"), &mut DirectoryState::new(None)).unwrap_err();
    assert!(format!("{error:#}").contains("absent: not readable; create the directory"), "{error:#}");
}

/// A directory with a running source.
struct Following {
    dir: PathBuf,
    rx: mpsc::Receiver<Event>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Following {
    fn new(dir: &Path) -> Self {
        let (tx, rx) = mpsc::channel(4);
        let task = tokio::spawn(run(options(dir), tx));
        Self { dir: dir.to_owned(), rx, task }
    }

    /// Receives rounds until one holds these Services; rounds before it may hold only what was there before. Returns
    /// how long it took.
    async fn expect(&mut self, expected: &[&str]) -> Duration {
        let begin = Instant::now();
        let deadline = tokio::time::sleep(Duration::from_secs(10));
        tokio::pin!(deadline);
        loop {
            let mut round = Vec::new();
            while round.len() < ObjectKind::ALL.len() {
                tokio::select! {
                    event = self.rx.recv() => round.push(event.unwrap()),
                    () = &mut deadline => panic!("no round with {expected:?}"),
                }
            }
            if services(round).unwrap() == expected {
                return begin.elapsed();
            }
        }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).unwrap();
    }
}

#[tokio::test]
async fn changes_arrive_soon() {
    let dir = tempfile::tempdir().unwrap();
    let mut following = Following::new(dir.path());
    following.expect(&[]).await;
    following.write("a.yaml", &service("a", "10.96.0.1"));
    let took = following.expect(&["a 10.96.0.1"]).await;
    assert!(took < watch_poll(), "seen by the poll only: {took:?}");
    fs::create_dir(dir.path().join("sub")).unwrap();
    following.write("sub/b.yaml", &service("b", "10.96.0.2"));
    following.expect(&["a 10.96.0.1", "b 10.96.0.2"]).await;
    following.write("sub/b.yaml", &service("b", "10.96.0.3"));
    let took = following.expect(&["a 10.96.0.1", "b 10.96.0.3"]).await;
    assert!(took < watch_poll(), "seen by the poll only: {took:?}");
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    following.expect(&["b 10.96.0.3"]).await;
}

/// Upper bound that proves that inotify saw a change before the poll did.
fn watch_poll() -> Duration {
    Duration::from_millis(1900)
}

#[tokio::test]
async fn a_configmap_swap_is_one_change() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (version, addr) in [("..1", "10.96.0.1"), ("..2", "10.96.0.2")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("a.yaml"), service("a", addr)).unwrap();
        fs::write(at(version).join("b.yaml"), service("b", addr)).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/a.yaml", at("a.yaml")).unwrap();
    symlink("..data/b.yaml", at("b.yaml")).unwrap();
    let mut following = Following::new(dir.path());
    following.expect(&["a 10.96.0.1", "b 10.96.0.1"]).await;
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    fs::remove_dir_all(at("..1")).unwrap();
    let took = following.expect(&["a 10.96.0.2", "b 10.96.0.2"]).await;
    assert!(took < watch_poll(), "seen by the poll only: {took:?}");
}

#[tokio::test]
async fn a_half_written_file_never_removes_objects() {
    let dir = tempfile::tempdir().unwrap();
    let mut following = Following::new(dir.path());
    following.expect(&[]).await;
    let text = service("a", "10.96.0.1") + &service("b", "10.96.0.2");
    following.write("a.yaml", &text);
    following.expect(&["a 10.96.0.1", "b 10.96.0.2"]).await;
    // Truncated, then cut within a document, then a new whole.
    following.write("a.yaml", "");
    following.write("a.yaml", &text[..text.len() - 8]);
    following.write("c.yaml", &service("c", "10.96.0.3"));
    following.expect(&["a 10.96.0.1", "b 10.96.0.2", "c 10.96.0.3"]).await;
    following.write("a.yaml", &service("a", "10.96.0.9"));
    following.expect(&["a 10.96.0.9", "c 10.96.0.3"]).await;
}

#[tokio::test]
async fn a_directory_may_vanish_and_return() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("services");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), service("a", "10.96.0.1")).unwrap();
    let mut following = Following::new(&dir);
    following.expect(&["a 10.96.0.1"]).await;
    fs::rename(&dir, outer.path().join("away")).unwrap();
    let silence = tokio::time::timeout(Duration::from_millis(300), following.rx.recv()).await;
    assert!(silence.is_err(), "a vanished directory removes nothing: {silence:?}");
    let next = outer.path().join("next");
    fs::create_dir(&next).unwrap();
    fs::write(next.join("b.yaml"), service("b", "10.96.0.2")).unwrap();
    fs::rename(&next, &dir).unwrap();
    following.expect(&["b 10.96.0.2"]).await;
    following.write("b.yaml", &service("b", "10.96.0.3"));
    let took = following.expect(&["b 10.96.0.3"]).await;
    assert!(took < watch_poll(), "the new directory is not watched: {took:?}");
}

#[tokio::test]
async fn a_linked_directory_may_be_swapped() {
    let outer = tempfile::tempdir().unwrap();
    let at = |name: &str| outer.path().join(name);
    for (version, addr) in [("v1", "10.96.0.1"), ("v2", "10.96.0.2")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("a.yaml"), service("a", addr)).unwrap();
    }
    symlink("v1", at("current")).unwrap();
    let mut following = Following::new(&at("current"));
    following.expect(&["a 10.96.0.1"]).await;
    symlink("v2", at("next")).unwrap();
    fs::rename(at("next"), at("current")).unwrap();
    following.expect(&["a 10.96.0.2"]).await;
    following.write("a.yaml", &service("a", "10.96.0.3"));
    let took = following.expect(&["a 10.96.0.3"]).await;
    assert!(took < watch_poll(), "the new directory is not watched: {took:?}");
}

#[tokio::test]
async fn the_source_ends_with_its_receiver_and_fails_without_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let mut following = Following::new(dir.path());
    following.expect(&[]).await;
    let Following { rx, task, .. } = following;
    drop(rx);
    task.await.unwrap().unwrap();
    let absent = Following::new(&dir.path().join("absent"));
    absent.task.await.unwrap().unwrap_err();
}

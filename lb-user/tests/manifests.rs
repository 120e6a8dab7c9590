//! The host paths that the manifests give to the agent, and what its code does with the host (CVE-2023-27593); the
//! schema of AddressPool against its type.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use lb_sources::api::{AddressPool, AddressPoolSpec, AddressPoolStatus, Selector};

/// Returns the files below a directory with this extension, and their text.
fn files(directory: &str, extension: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)];
    while let Some(directory) = open.pop() {
        for path in fs::read_dir(&directory).expect("a directory").map(|entry| entry.expect("an entry").path()) {
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = fs::read_to_string(&path).expect("text");
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "{directory}");
    found
}

#[test]
fn the_agents_pod_has_the_hosts_bpffs_and_cgroups_and_no_other_path() {
    let mut files_with_paths = BTreeSet::new();
    for (file, text) in files("../deploy", "yaml") {
        let paths: BTreeSet<&str> = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .filter_map(|line| line.split_once("hostPath:"))
            .map(|(_, value)| value.split_once("path: ").expect("on one line").1.split(',').next().expect("a path"))
            .collect();
        if paths.is_empty() {
            continue;
        }
        assert_eq!(paths, BTreeSet::from(["/sys/fs/bpf", "/sys/fs/cgroup"]), "{}", file.display());
        let mounts: Vec<_> = text.split("- name: ").filter(|part| part.contains("mountPath:")).collect();
        let cgroup: Vec<_> = mounts.iter().filter(|part| part.starts_with("cgroup\n")).collect();
        assert!(!cgroup.is_empty() && cgroup.iter().all(|part| part.contains("readOnly: true")), "{}", file.display());
        files_with_paths.insert(file.file_name().expect("a file").to_owned());
    }
    assert_eq!(
        files_with_paths,
        BTreeSet::from(["daemonset.yaml".into()]),
        "only the DaemonSets of the base and of the chart have host paths"
    );
}

/// Returns the source files of the agent without their tests.
fn sources() -> Vec<(PathBuf, String)> {
    let is_test =
        |path: &Path| path.components().any(|part| ["tests", "tests.rs"].iter().any(|name| part.as_os_str() == *name));
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = files("src", "rs")
        .into_iter()
        .filter(|(path, _)| !is_test(path.strip_prefix(directory).expect("a path below the crate")));
    own.map(|(path, text)| (path, text.split("#[cfg(test)]").next().unwrap_or_default().to_owned())).collect()
}

#[test]
fn the_agent_executes_nothing_and_sets_no_sysctl() {
    for (file, text) in sources() {
        for word in
            ["process::Command", "execv", "posix_spawn", "libc::fork", "libc::system", "fs::write(", "File::create("]
        {
            assert!(!text.contains(word), "{}: {word}", file.display());
        }
    }
}

/// Returns the names of the properties below a pointer of the schema of AddressPool.
fn properties<'a>(schema: &'a serde_json::Value, pointer: &str) -> BTreeSet<&'a str> {
    let properties = schema.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}"));
    properties.as_object().expect("properties").keys().map(String::as_str).collect()
}

#[test]
fn the_schema_of_pools_has_the_fields_of_their_type_and_no_others() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/components/load-balancer/crd.yaml");
    let crd: serde_json::Value = serde_saphyr::from_str(&fs::read_to_string(path).expect("a file")).expect("an object");
    let schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema").expect("a schema");
    let selector = serde_json::json!({"matchLabels": {"a": "b"},
        "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]});
    let counts = serde_json::json!({"used": 1, "free": 2});
    let condition = serde_json::json!({"type": "t", "status": "True", "reason": "r", "message": "m",
        "lastTransitionTime": "1970-01-01T00:00:00Z"});
    let object = serde_json::json!({
        "spec": {"addresses": ["192.0.2.1"], "allotment": "OnRequest", "priority": 1, "namespaceSelectors": [selector],
            "serviceSelectors": [selector]},
        "status": {"ipv4": counts, "ipv6": counts, "problems": ["x"], "conditions": [condition]},
    });
    let pool: AddressPool = serde_json::from_value(object.clone()).expect("a pool");
    // A new field of the type fails here, until object and schema have it.
    let AddressPoolSpec { addresses, allotment, priority, namespace_selectors, service_selectors } =
        pool.spec.expect("a spec");
    let is_read = [
        addresses.is_some(),
        allotment.is_some(),
        priority.is_some(),
        service_selectors.is_some(),
        namespace_selectors.and_then(|mut selectors| selectors.pop()).is_some_and(|selector| {
            let Selector { match_labels, match_expressions } = selector;
            match_labels.is_some() && match_expressions.is_some()
        }),
    ];
    assert_eq!(is_read, [true; 5], "the names of fields are those of the type");
    let AddressPoolStatus { ipv4, ipv6, problems, conditions } = pool.status.expect("a status");
    assert!(ipv4 == ipv6 && ipv4.is_some_and(|counts| (counts.used, counts.free) == (1, 2)) && problems.is_some());
    assert_eq!(serde_json::to_value(conditions).expect("JSON"), serde_json::json!([condition]));
    for (pointer, of) in [
        ("/properties/spec/properties", "/spec"),
        ("/properties/spec/properties/namespaceSelectors/items/properties", "/spec/namespaceSelectors/0"),
        ("/properties/spec/properties/serviceSelectors/items/properties", "/spec/serviceSelectors/0"),
        (
            "/properties/spec/properties/serviceSelectors/items/properties/matchExpressions/items/properties",
            "/spec/serviceSelectors/0/matchExpressions/0",
        ),
        ("/properties/status/properties", "/status"),
        ("/properties/status/properties/ipv4/properties", "/status/ipv4"),
        ("/properties/status/properties/conditions/items/properties", "/status/conditions/0"),
    ] {
        assert_eq!(properties(schema, pointer), properties(&object, of), "{pointer}");
    }
}

//! Malformed Kubernetes objects, as JSON: each field right, absent, or wrong in a way that users or attackers might
//! write it.

use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Map, Value, json};

/// The agent's node.
pub const NODE: &str = "node-1";
/// Prefix of the names of well-formed Services, which no malformed one has.
pub const GOOD: &str = "good";

type Field = BoxedStrategy<Option<(&'static str, Value)>>;

/// Returns well-formed objects. They share frontends with the malformed ones and nothing else.
pub fn well_formed() -> Vec<Value> {
    let mut objects = Vec::new();
    for (index, created) in [(1, json!("2020-01-02T00:00:00Z")), (2, json!("2022-01-01T00:00:00Z")), (3, Value::Null)] {
        let name = format!("{GOOD}-{index}");
        let vip = format!("10.96.1.{index}");
        objects.push(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "creationTimestamp": created},
            "spec": {
                "type": "NodePort", "clusterIP": vip, "clusterIPs": [vip], "externalIPs": [format!("192.0.2.{index}")],
                "selector": {"app": name}, "sessionAffinity": "ClientIP",
                "ports": [
                    {"name": "http", "port": 80, "nodePort": 30080 + index},
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                ],
            },
        }));
        let endpoint = |last: i32| {
            let conditions = json!({"ready": last % 3 > 0});
            json!({"addresses": [format!("10.0.1.{last}")], "nodeName": NODE, "conditions": conditions})
        };
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-x"), "namespace": "default", "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
            "endpoints": (1..index + 4).map(endpoint).collect::<Vec<_>>(),
        }));
    }
    objects
}

/// Generates an object of any kind.
pub fn object() -> BoxedStrategy<Value> {
    prop_oneof![4 => service(), 3 => slice(), 3 => endpoints(), 1 => node()].boxed()
}

/// Generates the name of a Service, from few names, so that several objects have the same.
fn service_name() -> BoxedStrategy<Value> {
    prop_oneof![12 => select(vec!["b0", "b1", "b2"]).prop_map(Value::from), 1 => odd_name()].boxed()
}

fn odd_name() -> BoxedStrategy<Value> {
    let long = |len: usize| "n".repeat(len);
    let odd = ["", "a/b", "a:b", "x\0y", "\u{e9}", "b0\nx", "Upper", "-", " b0", "b0/TCP6", "\u{1b}[31m"];
    let mut odd: Vec<String> = odd.into_iter().map(str::to_owned).collect();
    odd.extend([63, 64, 253, 254].map(long));
    select(odd).prop_map(Value::from).boxed()
}

/// Generates a value of a wrong type or range.
fn garbage() -> BoxedStrategy<Value> {
    let odd = [
        json!(null),
        json!(""),
        json!("x"),
        json!("80"),
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!(u64::MAX),
        json!(true),
        json!([]),
        json!({}),
        json!([null]),
        json!([[]]),
        json!({"a": null}),
        json!("\u{0}"),
    ];
    select(odd.to_vec()).boxed()
}

/// Generates a field that is mostly right.
fn field(name: &'static str, right: impl Strategy<Value = Value> + 'static) -> Field {
    prop_oneof![
        90 => right.prop_map(move |value| Some((name, value))),
        5 => Just(None),
        2 => Just(Some((name, Value::Null))),
        // Rare, since a value of a wrong type makes the API's client refuse the whole object.
        1 => garbage().prop_map(move |value| Some((name, value))),
    ]
    .boxed()
}

/// Generates a field that is mostly absent.
fn rare(name: &'static str, right: impl Strategy<Value = Value> + 'static) -> Field {
    prop_oneof![3 => Just(None), 1 => field(name, right)].boxed()
}

fn one_of(values: &[Value]) -> BoxedStrategy<Value> {
    select(values.to_vec()).boxed()
}

fn fields(fields: Vec<Field>) -> BoxedStrategy<Value> {
    fields
        .prop_map(|fields| Value::Object(fields.into_iter().flatten().map(|(k, v)| (k.to_owned(), v)).collect()))
        .boxed()
}

fn list(of: impl Strategy<Value = Value> + 'static, most: usize) -> BoxedStrategy<Value> {
    vec(of, 0..=most).prop_map(Value::from).boxed()
}

fn port_number() -> BoxedStrategy<Value> {
    prop_oneof![
        8 => one_of(&[json!(80), json!(53), json!(8080)]),
        1 => one_of(&[json!(0), json!(-1), json!(1), json!(65535), json!(65536), json!(i64::MAX), json!(i64::MIN)]),
    ]
    .boxed()
}

fn protocol() -> BoxedStrategy<Value> {
    prop_oneof![
        6 => one_of(&[json!("TCP"), json!("UDP"), json!("SCTP")]),
        1 => one_of(&[json!(""), json!("tcp"), json!("ICMP"), json!("TCP ")]),
    ]
    .boxed()
}

fn port_name() -> BoxedStrategy<Value> {
    prop_oneof![9 => one_of(&[json!("http"), json!("dns"), json!("")]), 1 => odd_name()].boxed()
}

/// Generates an address, VIPs of the well-formed Services and addresses of the node among them.
fn addr() -> BoxedStrategy<Value> {
    let usual =
        ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2", "10.96.0.1", "10.96.0.2", "fd96::1", "192.0.2.7"];
    let shared =
        ["10.96.1.1", "10.96.1.2", "10.96.1.3", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.9", "127.0.0.1"];
    let odd = [
        "",
        "None",
        "127.0.0.2",
        "::1",
        "0.0.0.0",
        "::",
        "169.254.1.1",
        "fe80::1",
        "fe80::1%eth0",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        " 10.0.0.1",
        "10.0.0.1\n",
        "10.0.0.01",
        "10.0.0.1/32",
        "10.0.0",
        "localhost",
        "999.1.1.1",
        "1",
        "::10.0.0.1",
        "64:ff9b::a00:1",
        "\u{0}",
    ];
    let of = |texts: &[&str]| one_of(&texts.iter().map(|&text| json!(text)).collect::<Vec<_>>());
    prop_oneof![8 => of(&usual), 2 => of(&shared), 2 => of(&odd)].boxed()
}

fn metadata(name: BoxedStrategy<Value>, labels: BoxedStrategy<Value>, annotations: BoxedStrategy<Value>) -> Field {
    let times = [
        json!("2019-01-01T00:00:00Z"),
        json!("2021-01-01T00:00:00Z"),
        json!("9999-12-31T23:59:59Z"),
        json!("-009999-01-02T01:59:59Z"),
        json!("yesterday"),
    ];
    let metadata = fields(vec![
        name.prop_map(|name| Some(("name", name))).boxed(),
        prop_oneof![20 => Just(json!("default")), 1 => odd_name()].prop_map(|name| Some(("namespace", name))).boxed(),
        rare("creationTimestamp", one_of(&times)),
        rare("labels", labels),
        rare("annotations", annotations),
    ]);
    metadata.prop_map(|value| Some(("metadata", value))).boxed()
}

fn kind(api_version: &'static str, kind: &'static str) -> [Field; 2] {
    [Just(Some(("apiVersion", json!(api_version)))).boxed(), Just(Some(("kind", json!(kind)))).boxed()]
}

fn annotations() -> BoxedStrategy<Value> {
    let texts = [
        "",
        "mh",
        "maglev",
        "0",
        "1",
        "65535",
        "65536",
        "-1",
        "none",
        "wrr",
        "random",
        "dh",
        "sh",
        "on-removal",
        "after 5s",
        "after 1e9h",
        "after 99999999h",
        "after s",
        "after \u{663}s",
        "10.0.0.1=0",
        "10.0.0.1=65535,10.0.0.2=1",
        "10.0.0.1=1,10.0.0.1=2",
        "=,=",
        "10.0.0.1",
        "fd00::1=7",
        "::ffff:10.0.0.1=3",
        "x=y",
        "true",
        "30%",
        "5s",
        "default/good",
        "a/b/c",
        "\u{0}",
    ];
    let text = || one_of(&texts.map(Value::from));
    fields(vec![
        rare("beeline.io/scheduler", text()),
        rare("beeline.io/weights", text()),
        rare("beeline.io/weight", text()),
        rare("beeline.io/tcp-drain", text()),
        rare("beeline.io/priority", text()),
        rare("beeline.io/priority-share", text()),
        rare("beeline.io/slow-start", text()),
        rare("beeline.io/prefer-local", text()),
        rare("beeline.io/redirect-from", text()),
        rare("beeline.io/", text()),
        rare("service.cilium.io/weight", text()),
        rare("kube-router.io/service.scheduler", text()),
    ])
}

fn service() -> BoxedStrategy<Value> {
    let port = || {
        fields(vec![
            field("name", port_name()),
            field("port", port_number()),
            rare("protocol", protocol()),
            rare(
                "nodePort",
                one_of(&[json!(30081), json!(30082), json!(8080), json!(0), json!(-1), json!(65536), json!(1)]),
            ),
        ])
    };
    let policy = || one_of(&[json!("Cluster"), json!("Local"), json!(""), json!("local"), json!("Nowhere")]);
    let seconds = [json!(0), json!(-1), json!(1), json!(86400), json!(86401), json!(i64::MAX), json!(10800)];
    let affinity = fields(vec![field("clientIP", fields(vec![field("timeoutSeconds", one_of(&seconds))]))]);
    let types = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "", "nodeport"].map(Value::from);
    let range = one_of(
        &["10.0.0.0/8", " 10.0.0.0/8 ", "10.0.0.1", "::/0", "fd00::/8", "::ffff:10.0.0.0/104", "x", ""]
            .map(Value::from),
    );
    let ingress = || {
        fields(vec![
            field("ip", addr()),
            rare("ipMode", one_of(&["VIP", "Proxy", "vip", ""].map(Value::from))),
            rare("hostname", one_of(&[json!("lb.example")])),
        ])
    };
    let spec = fields(vec![
        rare("type", one_of(&types)),
        rare("selector", one_of(&[json!({}), json!({"app": "b"})])),
        rare("clusterIP", addr()),
        field("clusterIPs", list(addr(), 2)),
        rare("externalIPs", list(addr(), 2)),
        rare("internalTrafficPolicy", policy()),
        rare("externalTrafficPolicy", policy()),
        rare("sessionAffinity", one_of(&["None", "ClientIP", "clientip", ""].map(Value::from))),
        rare("sessionAffinityConfig", affinity),
        rare("loadBalancerSourceRanges", list(range, 2)),
        rare(
            "healthCheckNodePort",
            one_of(&[json!(30100), json!(30101), json!(30081), json!(0), json!(-1), json!(65536)]),
        ),
        field("ports", list(port(), 4)),
    ]);
    let status = fields(vec![field("loadBalancer", fields(vec![field("ingress", list(ingress(), 2))]))]);
    let labels = fields(vec![
        rare("service.kubernetes.io/headless", one_of(&[json!("")])),
        rare("service.kubernetes.io/service-proxy-name", one_of(&[json!("other"), json!("")])),
    ]);
    let [api_version, kind] = kind("v1", "Service");
    let metadata = metadata(service_name(), labels, annotations());
    fields(vec![api_version, kind, metadata, field("spec", spec), rare("status", status)])
}

fn endpoint_port() -> BoxedStrategy<Value> {
    fields(vec![field("name", port_name()), field("port", port_number()), rare("protocol", protocol())])
}

fn slice() -> BoxedStrategy<Value> {
    let flag = || one_of(&[json!(true), json!(false)]);
    let hint = || fields(vec![field("name", one_of(&["z1", "z2", NODE, "nobody", ""].map(Value::from)))]);
    let endpoint = || {
        fields(vec![
            field("addresses", list(addr(), 2)),
            rare("nodeName", one_of(&[NODE, "node-2", ""].map(Value::from))),
            rare(
                "conditions",
                fields(vec![rare("ready", flag()), rare("serving", flag()), rare("terminating", flag())]),
            ),
            rare("hints", fields(vec![rare("forZones", list(hint(), 2)), rare("forNodes", list(hint(), 2))])),
        ])
    };
    let managers = ["endpointslicemirroring-controller.k8s.io", "me", ""].map(Value::from);
    let labels = fields(vec![
        field("kubernetes.io/service-name", service_name()),
        rare("endpointslice.kubernetes.io/managed-by", one_of(&managers)),
    ]);
    // Without labels it belongs to no Service.
    let labels = labels.prop_map(|value| Some(("labels", value))).boxed();
    let name = one_of(&["s0", "s1", "s2", "s3"].map(Value::from));
    let metadata = (metadata(name, garbage(), annotations()), labels).prop_map(|(metadata, labels)| {
        let (name, mut metadata) = metadata?;
        metadata.as_object_mut()?.extend(labels.map(|(name, value)| (name.to_owned(), value)));
        Some((name, metadata))
    });
    let types = ["IPv4", "IPv4", "IPv4", "IPv6", "FQDN", "ipv4", ""].map(Value::from);
    let [api_version, kind] = kind("discovery.k8s.io/v1", "EndpointSlice");
    fields(vec![
        api_version,
        kind,
        metadata.boxed(),
        field("addressType", one_of(&types)),
        field("ports", list(endpoint_port(), 3)),
        field("endpoints", list(endpoint(), 6)),
    ])
}

fn endpoints() -> BoxedStrategy<Value> {
    let address =
        || fields(vec![field("ip", addr()), rare("nodeName", one_of(&[NODE, "node-2", ""].map(Value::from)))]);
    let many =
        |count: usize| (0..count).map(|i| json!({"ip": format!("10.1.{}.{}", i / 250, i % 250)})).collect::<Value>();
    let addresses = || prop_oneof![200 => list(address(), 4), 1 => Just(many(1000)), 1 => Just(many(1001))];
    let subset = fields(vec![
        field("addresses", addresses()),
        rare("notReadyAddresses", addresses()),
        field("ports", list(endpoint_port(), 3)),
    ]);
    let labels = fields(vec![rare("endpointslice.kubernetes.io/skip-mirror", one_of(&[json!("true"), json!("no")]))]);
    let [api_version, kind] = kind("v1", "Endpoints");
    let metadata = metadata(service_name(), labels, annotations());
    fields(vec![api_version, kind, metadata, field("subsets", list(subset, 2))])
}

fn node() -> BoxedStrategy<Value> {
    let labels = fields(vec![field("topology.kubernetes.io/zone", one_of(&["z1", "z2", ""].map(Value::from)))]);
    let address =
        fields(vec![field("type", one_of(&[json!("InternalIP"), json!("Hostname")])), field("address", addr())]);
    let [api_version, kind] = kind("v1", "Node");
    let metadata = metadata(one_of(&[json!(NODE), json!("node-2")]), labels, Just(Value::Object(Map::new())).boxed());
    fields(vec![api_version, kind, metadata, rare("status", fields(vec![field("addresses", list(address, 3))]))])
}

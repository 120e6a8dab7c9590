//! Objects of the shapes that MetalLB and Cilium have, and what becomes of each.

use super::*;

/// Returns the specs of the pools, as JSON without quotes, and the notes.
fn imported(text: &str) -> (Vec<String>, Vec<String>) {
    let import = import(text).expect("objects");
    let pool = |pool: &Value| {
        format!("{} {}", pool["metadata"]["name"].as_str().expect("a name"), pool["spec"].to_string().replace('"', ""))
    };
    (import.pools.iter().map(pool).collect(), import.notes.iter().map(ToString::to_string).collect())
}

#[track_caller]
fn check(text: &str, pools: &[&str], notes: &[&str]) {
    let (found, said) = imported(text);
    assert_eq!(found, pools);
    assert_eq!(said, notes);
}

#[test]
fn a_pool_of_metallb_keeps_each_of_its_addresses() {
    check(
        "apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: front, namespace: metallb-system, labels: {zone: a}}
spec:
  addresses: [192.0.2.0/28, 198.51.100.3-198.51.100.6, 203.0.113.77/24, '2001:db8::/125']
status: {assignedIPv4: 1}
",
        &["front {addresses:[192.0.2.0-192.0.2.15,198.51.100.3-198.51.100.6,\
           203.0.113.0-203.0.113.255,2001:db8::-2001:db8::7]}"],
        &[],
    );
}

#[test]
fn a_pool_of_metallb_keeps_its_order_and_the_services_that_it_is_for() {
    check(
        "apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: few, namespace: metallb-system}
spec:
  addresses: [192.0.2.0/24]
  autoAssign: false
  avoidBuggyIPs: true
  serviceAllocation:
    priority: 7
    namespaces: [one, two]
    namespaceSelectors:
    - matchLabels: {team: red}
    serviceSelectors:
    - matchExpressions: [{key: tier, operator: In, values: [web]}]
    - matchLabels: {tier: mail}
",
        &["few {addresses:[192.0.2.1-192.0.2.254],allotment:OnRequest,namespaceSelectors:\
           [{matchExpressions:[{key:kubernetes.io/metadata.name,operator:In,values:[one,\
           two]}]},{matchLabels:{team:red}}],priority:7,serviceSelectors:\
           [{matchExpressions:[{key:tier,operator:In,values:[web]}]},{matchLabels:{tier:mail}}]}"],
        &[],
    );
    // 0 is the priority of a pool without one.
    check(
        "{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: p}, spec: {addresses: [192.0.2.1/32], \
         serviceAllocation: {priority: 0}}}",
        &["p {addresses:[192.0.2.1]}"],
        &[],
    );
}

#[test]
fn settings_without_a_counterpart_are_named_with_their_cure() {
    let metallb = |kind: &str, spec: &str| {
        let text =
            format!("{{apiVersion: metallb.io/v1beta1, kind: {kind}, metadata: {{name: a, namespace: m}}, {spec}}}");
        let (pools, notes) = imported(&text);
        assert_eq!(pools, Vec::<String>::new(), "{kind}");
        notes
    };
    let contains = |notes: &[String], parts: &[&str]| {
        assert_eq!(notes.len(), parts.len(), "{notes:?}");
        for (note, part) in notes.iter().zip(parts) {
            assert!(note.contains(part), "{note}: no {part}");
        }
    };
    contains(
        &metallb("L2Advertisement", "spec: {}"),
        &["note: L2Advertisement m/a: `beeline run --announce` takes its place"],
    );
    contains(
        &metallb(
            "L2Advertisement",
            "spec: {ipAddressPools: [p], nodeSelectors: [{matchLabels: {a: b}}], interfaces: [eth1, eth2], \
             newField: 1}",
        ),
        &[
            "--announce",
            "error: L2Advertisement m/a: spec.newField 1: unknown",
            "spec.ipAddressPools",
            r#"spec.nodeSelectors [{"matchLabels":{"a":"b"}}]: give these nodes one label"#,
            "spec.interfaces eth1, eth2: the agent answers at all uplinks; --devices",
        ],
    );
    contains(
        &metallb("BGPAdvertisement", "status: {}"),
        &["note: BGPAdvertisement m/a: no counterpart as an object: run"],
    );
    contains(
        &metallb(
            "BGPAdvertisement",
            "spec: {aggregationLength: 26, aggregationLengthV6: 128, localPref: 120, communities: ['65000:1', x], \
             ipAddressPools: [p], nodeSelectors: [{}], peers: [q], serviceSelectors: [{}], newField: 1}",
        ),
        &[
            "--lb-routes",
            "error: BGPAdvertisement m/a: spec.newField 1: unknown",
            "spec.aggregationLength 26",
            "bgp_local_pref = 120",
            "spec.communities 65000:1, x",
            "spec.peers q",
            "spec.ipAddressPools",
            "exclude-from-external-load-balancers",
            "spec.serviceSelectors",
        ],
    );
    let peer = "spec: {myASN: 64512, peerASN: 64513, peerAddress: 192.0.2.9, bfdProfile: b, holdTime: 9m0s, \
                disableMP: false, passwordSecret: {}, password: hidden}";
    contains(
        &metallb("BGPPeer", peer),
        &["address 192.0.2.9, AS 64513, own AS 64512; it sets bfdProfile b, holdTime 9m0s, password"],
    );
    let notes = metallb("BGPPeer", peer);
    assert!(notes[0].ends_with("password"), "a password is not printed: {notes:?}");
    contains(
        &metallb("BFDProfile", "spec: {receiveInterval: 380, echoMode: true}"),
        &["configuration of BIRD or FRR; it sets echoMode true, receiveInterval 380"],
    );
    contains(&metallb("Community", "spec: {}"), &["configuration of BIRD or FRR"]);
    contains(&metallb("ServiceL2Status", "status: {}"), &[]);
    contains(&metallb("Later", "spec: {}"), &["error: Later m/a: a kind"]);
    let (_, notes) = imported(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: config}, data: {config: \"address-pools:\\n- name: a\"}}",
    );
    contains(&notes, &["before 0.13"]);
}

#[test]
fn wrong_values_of_a_pool_are_named() {
    check(
        "{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: p}, spec: {addresses: [web, \
         127.0.0.1], newField: {a: 1}}}",
        &["p {addresses:[web,127.0.0.1]}"],
        &[
            "error: IPAddressPool p: spec.newField {\"a\":1}: unknown, and left out; see what it is for, and do that \
             by hand",
            "error: IPAddressPool p: as AddressPool: spec.addresses[0] \"web\": no addresses; write a prefix as in \
             192.0.2.0/24, a range as in 192.0.2.10-192.0.2.20, or an address",
            "error: IPAddressPool p: as AddressPool: spec.addresses[1] \"127.0.0.1\": it has loopback addresses \
             (127.0.0.0/8), which no Service can have; leave these out",
        ],
    );
    let (_, notes) =
        imported("{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: p}, spec: {addresses: 7}}");
    assert!(notes[0].starts_with("error: IPAddressPool p: spec: invalid type"), "{notes:?}");
    let (_, notes) = imported(
        "{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: p}, spec: {addresses: [10.0.0.0/8], \
         avoidBuggyIPs: true}}",
    );
    assert!(notes[0].contains("spec.avoidBuggyIPs: 10.0.0.0/8 would take"), "{notes:?}");
    assert!(import("a: [").is_err());
}

#[test]
fn a_pool_of_cilium_keeps_its_blocks_and_its_selector() {
    let pool = |name: &str, spec: &str| {
        format!(
            "{{apiVersion: cilium.io/v2, kind: CiliumLoadBalancerIPPool, metadata: {{name: {name}}}, spec: {{{spec}}}}}"
        )
    };
    check(
        &pool(
            "b",
            "blocks: [{cidr: 192.0.2.0/29}, {cidr: '2001:db8::/125'}, {start: 198.51.100.5, stop: 198.51.100.9}, \
                    {start: 203.0.113.1}]",
        ),
        &["b {addresses:[192.0.2.0-192.0.2.7,2001:db8::-2001:db8::7,198.51.100.5-198.51.100.9,\
           203.0.113.1]}"],
        &[],
    );
    check(
        &pool(
            "b",
            "allowFirstLastIPs: 'No', cidrs: [{cidr: 192.0.2.0/29}, {cidr: '2001:db8::/125'}, {cidr: 192.0.2.8/31}, \
                    {cidr: 192.0.2.10/32}]",
        ),
        &["b {addresses:[192.0.2.1-192.0.2.6,2001:db8::1-2001:db8::6,192.0.2.8-192.0.2.9,\
           192.0.2.10]}"],
        &[],
    );
    check(
        &pool(
            "b",
            "blocks: [{cidr: 192.0.2.1/32}], disabled: true, serviceSelector: {matchLabels: \
                    {io.kubernetes.service.namespace: one, color: red}, matchExpressions: [{key: \
                    io.kubernetes.service.name, operator: In, values: [web]}]}",
        ),
        &["b {addresses:[192.0.2.1],allotment:OnRequest,namespaceSelectors:\
           [{matchExpressions:[{key:kubernetes.io/metadata.name,operator:In,values:[one]}]}],serviceSelectors:\
           [{matchExpressions:[{key:color,operator:In,values:[red]},{key:\
           io.kubernetes.service.name,operator:In,values:[web]}]}]}"],
        &[
            "note: CiliumLoadBalancerIPPool b: spec.disabled: becomes allotment OnRequest, so that a Service still \
             gets an address by asking for it",
            "error: CiliumLoadBalancerIPPool b: spec.serviceSelector: io.kubernetes.service.name becomes a label of \
             that name, as AddressPools do not select by name; set it: kubectl label service NAME \
             io.kubernetes.service.name=NAME",
        ],
    );
}

#[test]
fn pools_of_one_name_are_not_mixed_and_a_pool_that_is_read_twice_is_one() {
    let pool =
        "{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: p}, spec: {addresses: [192.0.2.1]}}";
    let other = "{apiVersion: cilium.io/v2, kind: CiliumLoadBalancerIPPool, metadata: {name: p}, spec: {blocks: \
                 [{start: 192.0.2.2}]}}";
    check(&format!("{pool}\n---\n{pool}\n"), &["p {addresses:[192.0.2.1]}"], &[]);
    check(
        &format!("{pool}\n---\n{other}\n"),
        &["p {addresses:[192.0.2.1]}"],
        &["error: CiliumLoadBalancerIPPool p: left out, as IPAddressPool p has the same name; rename one, and what \
           asks for it by name"],
    );
    // `kubectl get -o json` of several kinds, and a raw list of one.
    let list = r#"{"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPoolList",
        "items": [{"metadata": {"name": "q"}, "spec": {"addresses": ["192.0.2.9"]}}]}"#;
    check(list, &["q {addresses:[192.0.2.9]}"], &[]);
}

#[test]
fn values_of_services_that_are_not_read_are_named() {
    let service = |annotations: &str, spec: &str| {
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: d, annotations: {{{annotations}}}}}, \
             spec: {{type: LoadBalancer{spec}}}, status: {{loadBalancer: {{ingress: [{{ip: 192.0.2.7}}]}}}}}}"
        );
        imported(&text).1
    };
    assert_eq!(
        service("metallb.io/address-pool: p, metallb.io/ip-allocated-from-pool: p, io.cilium/lb-ipam-ips: x", ""),
        [""; 0]
    );
    assert_eq!(
        service("metallb.io/later: 'yes'", ""),
        ["error: Service d/web: metallb.io/later \"yes\": not read; see what it is for, and do that by hand"]
    );
    assert_eq!(
        service("", ", loadBalancerClass: io.cilium/l2-announcer"),
        ["error: Service d/web: spec.loadBalancerClass \"io.cilium/l2-announcer\": left to its controller, as a \
          class cannot be changed; make the Service anew with beeline.io/lb, and to keep the address \
          beeline.io/lb-addresses: 192.0.2.7"]
    );
}

//! Annotations: their grammars, and the problem of each bad value.

use super::*;

fn meta(annotations: &[(&str, &str)]) -> ObjectMeta {
    let annotations = annotations.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect();
    ObjectMeta { annotations: Some(annotations), ..ObjectMeta::default() }
}

#[test]
fn ciliums_annotations_choose_types_nodes_and_the_meaning_of_ranges() {
    let check = |annotations: &[(&str, &str)], expected: Tuning, problem: Option<&str>| {
        let mut problems = Vec::new();
        let tuning = tuning(&meta(annotations), &mut problems).map_or_else(Tuning::default, |tuning| *tuning);
        assert_eq!(tuning, expected, "{annotations:?}");
        assert_eq!(problems.len(), usize::from(problem.is_some()), "{problems:?}");
        assert!(problem.is_none_or(|problem| problems[0].contains(problem)), "{problems:?}");
    };
    let only = |only| Tuning { only: Some(only), ..Tuning::default() };
    check(&[("service.cilium.io/type", "LoadBalancer")], only(FrontendType::LoadBalancer), None);
    check(&[("service.cilium.io/type", "ClusterIP\n")], only(FrontendType::ClusterIp), None);
    check(&[("service.cilium.io/type", "NodePort")], only(FrontendType::NodePort), None);
    check(&[("service.cilium.io/type", "all")], Tuning::default(), Some("all types are served"));
    let nodes = |text: &str| Tuning { nodes: text.parse().ok(), ..Tuning::default() };
    check(&[("service.cilium.io/node", "beefy")], nodes("service.cilium.io/node=beefy"), None);
    let both = [("service.cilium.io/node", "beefy"), ("service.cilium.io/node-selector", "a in (x)")];
    check(&both, nodes("a in (x)"), None);
    check(&[("service.cilium.io/node-selector", "a in x")], Tuning::default(), Some("all nodes serve it"));
    let deny = Tuning { range_policy: RangePolicy::Deny, ..Tuning::default() };
    check(&[("service.cilium.io/src-ranges-policy", "Deny")], deny, None);
    check(&[("service.cilium.io/src-ranges-policy", "allow")], Tuning::default(), None);
    check(&[("service.cilium.io/src-ranges-policy", "no")], Tuning::default(), Some("write allow or deny"));
}

#[test]
fn a_preference_for_local_endpoints_is_true_or_false() {
    let check = |text: &str, expected: Preference, problem: Option<&str>| {
        let mut problems = Vec::new();
        let tuning = tuning(&meta(&[(PREFER_LOCAL, text)]), &mut problems).unwrap_or_default();
        assert_eq!((tuning.preference, problems.first().map(String::as_str)), (expected, problem), "{text}");
    };
    check("true", Preference::Local, None);
    check("true\n", Preference::Local, None);
    check("false", Preference::None, None);
    for text in ["", "True", "yes", "1"] {
        let problem = format!(
            "annotation beeline.io/prefer-local {text:?}: unknown, no endpoint is preferred; write \"true\" or \
             \"false\""
        );
        check(text, Preference::None, Some(&problem));
    }
}

#[test]
fn connects_of_udp_without_endpoints_are_refused_or_allowed() {
    for (text, expected) in [("allow", Ok(true)), ("refuse", Ok(false)), ("yes", Err("write refuse or allow"))] {
        let mut problems = Vec::new();
        let tuning = tuning(&meta(&[(UDP_CONNECT, text)]), &mut problems).unwrap_or_default();
        assert_eq!(tuning.allows_udp_connect, expected.unwrap_or(false), "{text}");
        let problem = problems.first().map(String::as_str).unwrap_or_default();
        assert_eq!(expected.is_err(), problem.contains(expected.err().unwrap_or("?")), "{problem}");
    }
}

#[test]
fn the_scope_of_affinity_is_a_port_or_the_service() {
    for (text, expected) in [("service", Ok(true)), ("port", Ok(false)), ("vip", Err("write port or service"))] {
        let mut problems = Vec::new();
        let tuning = tuning(&meta(&[(AFFINITY_SCOPE, text)]), &mut problems).unwrap_or_default();
        assert_eq!(tuning.shares_affinity, expected.unwrap_or(false), "{text}");
        let problem = problems.first().map(String::as_str).unwrap_or_default();
        assert!(problem.ends_with(expected.err().unwrap_or_default()), "{problem}");
        assert_eq!(problem.is_empty(), expected.is_ok(), "{problem}");
    }
}

#[test]
fn a_redirect_names_a_namespace_and_a_service() {
    let check = |text: &str, expected: Option<Key>| {
        let mut problems = Vec::new();
        let tuning = tuning(&meta(&[(REDIRECT_FROM, text)]), &mut problems).unwrap_or_default();
        let problem = expected.is_none().then(|| {
            format!(
                "annotation beeline.io/redirect-from {text:?}: not NAMESPACE/NAME of a Service, no client is \
                 redirected; write it as in kube-system/kube-dns"
            )
        });
        assert_eq!((tuning.redirect_from, problems.pop()), (expected, problem), "{text}");
    };
    check("kube-system/kube-dns", Some(Key::new("kube-system", "kube-dns")));
    check("a/b\n", Some(Key::new("a", "b")));
    let long = format!("a/{}", "b".repeat(64));
    for text in ["", "/", "kube-dns", "/kube-dns", "a/", "a/b/c", "a/b c", "a/B", "a/b, c/d", "a/\u{0}", &long] {
        check(text.trim(), None);
    }
}

#[test]
fn a_priority_is_an_annotation_or_a_label() {
    let check = |meta: &ObjectMeta, expected: u8, problem: Option<&str>| {
        let mut problems = Vec::new();
        let tier = EndpointTuning::read(meta, "an EndpointSlice", &mut problems).tier;
        assert_eq!((tier, problems.first().map(String::as_str)), (expected, problem), "{meta:?}");
    };
    let labelled = |text: &str, annotations: &[(&str, &str)]| ObjectMeta {
        labels: Some([(PRIORITY.to_owned(), text.to_owned())].into()),
        ..meta(annotations)
    };
    check(&meta(&[]), 0, None);
    check(&meta(&[(PRIORITY, "1\n")]), 1, None);
    check(&labelled("2", &[]), 2, None);
    check(&labelled("2", &[(PRIORITY, "254")]), 254, None);
    let bad = |place, text: &str| {
        format!("{place} beeline.io/priority {text:?}: not a priority, 0 is used; write a number from 0 to 254")
    };
    for text in ["", "-1", "255", "256", "first"] {
        check(&meta(&[(PRIORITY, text)]), 0, Some(&bad("annotation", text)));
        check(&labelled(text, &[]), 0, Some(&bad("label", text)));
    }
}

#[test]
fn slow_start_takes_a_time_of_at_most_an_hour() {
    let check = |text: &str, expected: Option<u32>| {
        let mut problems = Vec::new();
        let time = slow_start(&meta(&[(SLOW_START, text)]), &mut problems).map(NonZeroU32::get);
        let problem = expected.is_none().then(|| {
            format!(
                "annotation beeline.io/slow-start {text:?}: not a time, new endpoints have their whole weight at \
                 once; write 1s to 1h, as in 30s or 1m30s"
            )
        });
        assert_eq!((time, problems.pop()), (expected, problem), "{text}");
    };
    [("1s", 1), ("1m30s", 90), ("1h", 3600)].into_iter().for_each(|(text, time)| check(text, Some(time)));
    ["", "0s", "1h1s", "30", "-5s", "0.5s", "5 s"].into_iter().for_each(|text| check(text, None));
}

#[test]
fn the_age_of_connections_is_a_time_and_may_have_a_grace() {
    let check = |text: &str, expected: Option<(u32, Option<u32>)>| {
        let mut problems = Vec::new();
        let age = max_connection_age(&meta(&[(MAX_AGE, text)]), &mut problems);
        let problem = expected.is_none().then(|| {
            format!(
                "annotation beeline.io/max-connection-age {text:?}: unknown, connections stay; write a time from 1s to \
                 720h, as in 1h, or two, as in 1h grace 10m"
            )
        });
        assert_eq!((age.map(|age| (age.seconds.get(), age.grace)), problems.pop()), (expected, problem), "{text}");
    };
    check("1h", Some((3600, None)));
    check("1s grace 0s\n", Some((1, Some(0))));
    check("720h  grace  1h30m", Some((2_592_000, Some(5400))));
    for text in ["", "0s", "721h", "1h grace", "1h 10m", "grace 10m", "1h grace 721h", "1h grace 10m x", "1 h"] {
        check(text, None);
    }
}

#[test]
fn eject_takes_failures_a_window_and_a_time() {
    let check = |text: &str, expected: Option<[u16; 3]>| {
        let mut problems = Vec::new();
        let eject = eject(&meta(&[(EJECT, text)]), &mut problems);
        let numbers = eject.map(|eject| [eject.failures, eject.window, eject.time].map(NonZeroU16::get));
        let problem = expected.is_none().then(|| {
            format!(
                "annotation beeline.io/eject {text:?}: not failures, a window and a time, no endpoint is ejected; \
                 write 1 to 1000 in 1s to 1h for 1s to 1h, as in \"5 in 10s for 30s\""
            )
        });
        assert_eq!((numbers, problems.pop()), (expected, problem), "{text}");
    };
    let good = [
        ("5 in 10s for 30s", [5, 10, 30]),
        (" 1  in 1s for 1h ", [1, 1, 3600]),
        ("1000 in 1m30s for 5m", [1000, 90, 300]),
    ];
    good.into_iter().for_each(|(text, numbers)| check(text, Some(numbers)));
    let bad = [
        "",
        "true",
        "5",
        "5 in 10s",
        "5 in 10s for",
        "0 in 10s for 30s",
        "1001 in 10s for 30s",
        "5 in 0s for 30s",
        "5 in 10s for 1h1s",
        "5 in 10 for 30s",
        "-5 in 10s for 30s",
        "5 for 30s in 10s",
        "5 in 10s for 30s more",
        "70000 in 10s for 30s",
    ];
    bad.into_iter().for_each(|text| check(text.trim(), None));
}

#[test]
fn a_share_is_a_percentage() {
    let check = |text: &str, expected: Option<u8>| {
        let mut problems = Vec::new();
        let share = tier_share(&meta(&[(PRIORITY_SHARE, text)]), &mut problems).map(NonZeroU8::get);
        let problem = expected.is_none().then(|| {
            format!("annotation beeline.io/priority-share {text:?}: not a share, 50% is used; write 1% to 100%")
        });
        assert_eq!((share, problems.pop()), (expected, problem), "{text}");
    };
    [("1%", 1), ("70%", 70), ("100%", 100)].into_iter().for_each(|(text, share)| check(text, Some(share)));
    ["", "%", "0%", "101%", "50", "-5%", "0.5%", "50 %"].into_iter().for_each(|text| check(text, None));
}

#[test]
fn tuning_holds_only_what_differs_from_the_default() {
    let check = |meta: &ObjectMeta, expected: Option<Tuning>| {
        let mut problems = Vec::new();
        assert_eq!(tuning(meta, &mut problems).map(|tuning| *tuning), expected, "{meta:?}");
        assert!(problems.is_empty(), "{problems:?}");
    };
    check(&ObjectMeta::default(), None);
    check(&meta(&[]), None);
    check(&meta(&[("kubectl.kubernetes.io/last-applied-configuration", "{}"), (TCP_DRAIN, "none")]), None);
    // Random must be kept: the node's default may be another.
    check(&meta(&[(SCHEDULER, "random")]), Some(Tuning { scheduler: Some(Scheduler::Random), ..Tuning::default() }));
    check(
        &meta(&[(SCHEDULER, "wlc\n"), (WEIGHTS, "10.0.0.1=0"), (TCP_DRAIN, "after 30s")]),
        Some(Tuning {
            scheduler: Some(Scheduler::Wlc),
            weights: vec![("10.0.0.1".parse().unwrap(), 0)],
            drain: Drain::After(30),
            ..Tuning::default()
        }),
    );
}

#[test]
fn scheduler_has_a_known_name_and_beelines_annotation_goes_first() {
    let check = |annotations: &[(&str, &str)], expected: Result<Scheduler, &str>| {
        let mut problems = Vec::new();
        let scheduler = scheduler(&meta(annotations), &mut problems).ok_or(problems);
        assert_eq!(scheduler, expected.map_err(|problem| vec![problem.to_owned()]), "{annotations:?}");
    };
    for scheduler in Scheduler::ALL {
        check(&[(SCHEDULER, scheduler.name())], Ok(scheduler));
        check(&[(KUBE_ROUTER_SCHEDULER, scheduler.name())], Ok(scheduler));
    }
    check(&[(SCHEDULER, "sed"), (KUBE_ROUTER_SCHEDULER, "lc")], Ok(Scheduler::Sed));
    check(
        &[(SCHEDULER, "fastest"), (KUBE_ROUTER_SCHEDULER, "lc")],
        Err("annotation beeline.io/scheduler \"fastest\": unknown, the node's default is used; write one of \
             random, rr, wrr, lc, wlc, sed, nq, sh, dh, mh"),
    );
    check(
        &[(KUBE_ROUTER_SCHEDULER, "lblc")],
        Err("annotation kube-router.io/service.scheduler \"lblc\": unknown, the node's default is used; write one \
             of random, rr, wrr, lc, wlc, sed, nq, sh, dh, mh"),
    );
    // Cilium's names of its two algorithms.
    check(&[(CILIUM_ALGORITHM, "maglev")], Ok(Scheduler::Mh));
    check(&[(CILIUM_ALGORITHM, "random")], Ok(Scheduler::Random));
    check(&[(SCHEDULER, "maglev"), (CILIUM_ALGORITHM, "random")], Ok(Scheduler::Mh));
}

#[test]
fn weights_go_by_address_then_by_object() {
    let check = |annotations: &[(&str, &str)], expected: [u16; 3], expected_problems: &[&str]| {
        let mut problems = Vec::new();
        let weights = EndpointTuning::read(&meta(annotations), "an EndpointSlice", &mut problems);
        let addrs = ["10.0.0.1", "10.0.0.2", "fd00::1"];
        assert_eq!(addrs.map(|addr| weights.weight(addr.parse().unwrap())), expected, "{annotations:?}");
        assert_eq!(problems, expected_problems, "{annotations:?}");
    };
    check(&[], [1, 1, 1], &[]);
    check(&[(WEIGHT, "0")], [0, 0, 0], &[]);
    check(&[(WEIGHT, "65535"), (CILIUM_WEIGHT, "2")], [65535, 65535, 65535], &[]);
    check(&[(CILIUM_WEIGHT, "2"), (WEIGHTS, " fd00::1 = 5,\n10.0.0.1=0,")], [0, 2, 5], &[]);
    check(&[(WEIGHTS, "")], [1, 1, 1], &[]);
    check(
        &[(WEIGHT, "65536"), (CILIUM_WEIGHT, "2")],
        [1, 1, 1],
        &["annotation beeline.io/weight \"65536\": not a weight, 1 is used; write a number from 0 to 65535"],
    );
    check(
        &[(CILIUM_WEIGHT, "many")],
        [1, 1, 1],
        &["annotation service.cilium.io/weight \"many\": not a weight, 1 is used; write a number from 0 to 65535"],
    );
    check(
        &[(WEIGHTS, "10.0.0.1=3, 10.0.0.1=4, 10.0.0.2, 10.0.0=1, ::ffff:10.0.0.2=2, fd00::1=65536, fd00::1=-1")],
        [3, 2, 1],
        &[
            "annotation beeline.io/weights: 10.0.0.1 listed twice; the first counts, remove one",
            "annotation beeline.io/weights \"10.0.0.2\": not an address, = and a number from 0 to 65535; \
             write it as in 10.0.0.1=3",
            "annotation beeline.io/weights \"10.0.0\": not an IP address; fix or remove it",
            "annotation beeline.io/weights \"::ffff:10.0.0.2\": not in standard form, read as 10.0.0.2; \
             write it as 10.0.0.2",
            "annotation beeline.io/weights \"fd00::1=65536\": not an address, = and a number from 0 to 65535; \
             write it as in 10.0.0.1=3",
            "annotation beeline.io/weights \"fd00::1=-1\": not an address, = and a number from 0 to 65535; \
             write it as in 10.0.0.1=3",
        ],
    );
}

#[test]
fn drain_has_three_forms() {
    let check = |text: &str, expected: Option<Drain>| {
        let mut problems = Vec::new();
        let drain = drain(text, &mut problems);
        assert_eq!(drain, expected.unwrap_or_default(), "{text:?}");
        assert_eq!(problems.len(), usize::from(expected.is_none()), "{problems:?}");
    };
    check("none", Some(Drain::Never));
    check("on-removal", Some(Drain::After(0)));
    check("after 0s", Some(Drain::After(0)));
    check("after 30s", Some(Drain::After(30)));
    check("after  5m", Some(Drain::After(300)));
    check("after 1h30m", Some(Drain::After(5400)));
    check("after 1h0m5s", Some(Drain::After(3605)));
    check("after 4294967294s", Some(Drain::After(NEVER - 1)));
    for bad in [
        "",
        "never",
        "None",
        "after",
        "30s",
        "after 30",
        "after s",
        "after 30ms",
        "after 1.5h",
        "after -1s",
        "after 30 s",
        "after 1d",
        "after 5µs",
        "after 4294967295s",
        "after 4294967296s",
        "after 2000000h",
    ] {
        check(bad, None);
    }
    let mut problems = Vec::new();
    drain("soon", &mut problems);
    assert_eq!(
        problems,
        ["annotation beeline.io/tcp-drain \"soon\": unknown, none is used; write none, on-removal, or after with \
             a time such as 30s, 5m or 1h30m"]
    );
}

#[test]
fn unknown_annotations_with_beelines_prefix_are_problems() {
    let meta = meta(&[("beeline.io/shceduler", "rr"), (WEIGHT, "2"), ("example.com/weights", "x")]);
    let mut problems = Vec::new();
    assert_eq!(tuning(&meta, &mut problems), None);
    EndpointTuning::read(&meta, "an EndpointSlice", &mut problems);
    let of_services = OF_SERVICES.join(", ");
    let unknown = |name: &str, known: &str| format!("annotation {name}: unknown on {known}; fix its name or remove it");
    assert_eq!(
        problems,
        [
            unknown("beeline.io/shceduler", &format!("a Service, which has {of_services}")),
            unknown("beeline.io/weight", &format!("a Service, which has {of_services}")),
            unknown("beeline.io/shceduler", &format!("an EndpointSlice, which has {}", OF_ENDPOINTS.join(", "))),
        ]
    );
}

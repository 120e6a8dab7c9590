//! A directory with bad objects beside one good Service. The good one serves all the time; each bad one serves as far
//! as possible, the log names its problem and cure once, and it serves in full when it is corrected.

use crate::{
    Story,
    agent::Agent,
    node::{StoryNode, service, with_spec},
    sockets::{at, tcp_ask, tcp_server},
};

pub const STORIES: &[Story] = &[
    ("bad_input_affects_only_itself_and_is_logged_with_its_cure", bad_input_affects_only_itself),
    ("thousands_of_bad_endpoints_log_few_lines", thousands_log_few_lines),
];

const GOOD: &str = "10.96.0.1:80";
const SERVER: &str = "10.0.0.2:8080";

/// A file of the directory.
struct BadFile {
    /// Name of the file and, for most, of its Service.
    name: &'static str,
    yaml: String,
    /// Frontends that serve although the file is bad.
    serves: &'static [&'static str],
    /// Texts of the warnings, word for word.
    warnings: &'static [&'static str],
    /// Replacements that correct the file: bad text, good text.
    cure: &'static [(&'static str, &'static str)],
    /// Frontends that serve after the correction.
    serves_after: &'static [&'static str],
}

fn bad_files() -> Vec<BadFile> {
    let one = |name, vip: &str, backends: &[&str]| service(name, &[vip], "TCP", 80, backends);
    let endpoints = |name, vip: &str, first: &str| one(name, vip, &[first, SERVER]);
    let ports = |yaml: String, ports: &str| yaml.replacen("[{port: 80, protocol: TCP}]", ports, 1);
    vec![
        BadFile {
            name: "loopback",
            yaml: endpoints("loopback", "10.96.1.1", "127.0.0.1:8080"),
            serves: &["10.96.1.1:80"],
            warnings: &[
                "its endpoint 127.0.0.1:8080 is not used: that is a loopback address; write the address at which the \
                     other nodes reach it",
            ],
            cure: &[("127.0.0.1", "10.0.0.2")],
            serves_after: &["10.96.1.1:80"],
        },
        BadFile {
            name: "special",
            yaml: one("special", "10.96.1.2", &["169.254.1.1:80", "224.0.0.1:80", "0.0.0.0:80", "255.255.255.255:80"]),
            serves: &[],
            warnings: &[
                "its endpoint 169.254.1.1:80 is not used: that is a link-local address; write the address at which the \
                 other nodes reach it",
                "its endpoint 224.0.0.1:80 is not used: that is a multicast address; write the address at which the \
                 other nodes reach it",
                "its endpoint 0.0.0.0:80 is not used: that is an unspecified address; write the address at which the \
                 other nodes reach it",
                "its endpoint 255.255.255.255:80 is not used: that is a broadcast address; write the address at which \
                 the other nodes reach it",
            ],
            cure: &[("\"169.254.1.1\"}]\n  ports: [{port: 80,", "\"10.0.0.2\"}]\n  ports: [{port: 8080,")],
            serves_after: &["10.96.1.2:80"],
        },
        BadFile {
            name: "loop",
            yaml: endpoints("loop", "10.96.1.3", GOOD),
            serves: &["10.96.1.3:80"],
            warnings: &[
                "its endpoint 10.96.0.1:80 is not used: that is a frontend of the Service default/good, and would lead \
                     back here; write the address of a server",
            ],
            cure: &[("10.96.0.1", "10.0.0.2"), ("port: 80, protocol: TCP}]\n- ", "port: 8080, protocol: TCP}]\n- ")],
            serves_after: &["10.96.1.3:80"],
        },
        BadFile {
            name: "zero",
            yaml: ports(one("zero", "10.96.1.4", &[SERVER]), "[{port: 80}, {name: none, port: 0}]"),
            serves: &["10.96.1.4:80"],
            warnings: &["ports[1].port 0: not a port; use 1 to 65535"],
            cure: &[(", {name: none, port: 0}", "")],
            serves_after: &["10.96.1.4:80"],
        },
        BadFile {
            name: "twice",
            yaml: ports(
                one("twice", "10.96.1.5", &[SERVER]).replacen(
                    "[{port: 8080",
                    "[{name: b, port: 8080}, {name: a, port: 8080",
                    1,
                ),
                "[{name: a, port: 80}, {name: a, port: 81}, {name: b, port: 80}]",
            ),
            serves: &["10.96.1.5:80"],
            warnings: &[
                "spec.ports: \"a\" stands there twice for TCP; the first counts, rename the other",
                "10.96.1.5:80/TCP (ClusterIP) is asked for by the ports \"b\" and \"a\", and \"a\" gets it; remove one",
            ],
            cure: &[("{name: a, port: 81}, {name: b, port: 80}", "{name: b, port: 81}")],
            serves_after: &["10.96.1.5:80", "10.96.1.5:81"],
        },
        BadFile {
            name: "family",
            yaml: endpoints("family", "10.96.1.6", "[fd00::2]:8080"),
            serves: &["10.96.1.6:80"],
            warnings: &[
                "its endpoint [fd00::2]:8080 is not used, since the Service has IPv4 cluster IPs only; add IPv6 to \
                     spec.ipFamilies",
            ],
            cure: &[("\"fd00::2\"", "10.0.0.2")],
            serves_after: &["10.96.1.6:80"],
        },
        BadFile {
            name: "words",
            yaml: with_spec(
                &with_spec(&one("words", "10.96.1.7", &[SERVER]), "sessionAffinity: clientip"),
                "internalTrafficPolicy: local",
            )
            .replacen("[{port: 80, protocol: TCP}]", "[{port: 80}, {name: b, port: 81, protocol: tcp}]", 1),
            serves: &["10.96.1.7:80"],
            warnings: &[
                "sessionAffinity \"clientip\": unknown, None is used; write None or ClientIP",
                "internalTrafficPolicy \"local\": unknown, Cluster is used; write Cluster or Local",
                "ports[1].protocol \"tcp\": unknown; use TCP, UDP or SCTP",
            ],
            cure: &[
                ("clientip", "ClientIP"),
                ("Policy: local", "Policy: Cluster"),
                (", {name: b, port: 81, protocol: tcp}", ""),
            ],
            serves_after: &["10.96.1.7:80"],
        },
        BadFile {
            name: "claims",
            yaml: with_spec(&one("zclaims", "10.96.1.8", &[SERVER]), "externalIPs: [10.96.0.1]"),
            serves: &["10.96.1.8:80"],
            warnings: &[
                "10.96.0.1:80/TCP (ExternalIP) belongs to the Service default/good: what is allotted goes before what \
                 a Service claims, whatever the ages; use another address or port",
            ],
            cure: &[("[10.96.0.1]", "[192.0.2.42]")],
            serves_after: &["10.96.1.8:80", "192.0.2.42:80"],
        },
        BadFile {
            name: "longest",
            yaml: one(LONGEST, "10.96.1.9", &[SERVER]),
            serves: &["10.96.1.9:80"],
            warnings: &[],
            cure: &[],
            serves_after: &["10.96.1.9:80"],
        },
        BadFile {
            name: "longer",
            yaml: one(LONGER, "10.96.1.10", &[SERVER]),
            serves: &[],
            warnings: &["it is not served: its name \
                     \"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\" has more than 63 octets; \
                     choose a shorter one"],
            cure: &[(LONGER, "longer")],
            serves_after: &["10.96.1.10:80"],
        },
        BadFile {
            name: "stray",
            yaml: one("stray", "10.96.1.11", &[SERVER]).replacen(
                "Endpoints\nmetadata: {name: stray}",
                "Endpoints\nmetadata: {name: strey}",
                1,
            ),
            serves: &[],
            warnings: &["Endpoints default/strey: there is no Service of that name; write it, or fix the name"],
            cure: &[("strey", "stray")],
            serves_after: &["10.96.1.11:80"],
        },
        BadFile {
            name: "type",
            yaml: ports(one("type", "10.96.1.12", &[SERVER]), "[{port: eighty}]"),
            serves: &[],
            warnings: &[
                "type.yaml: document 1, line 7: invalid type: string \"eighty\", expected i64; fix or remove it",
            ],
            cure: &[("eighty", "80")],
            serves_after: &["10.96.1.12:80"],
        },
        BadFile {
            name: "deep",
            yaml: one("deep", "10.96.1.13", &[SERVER]) + "x: " + &"{a: ".repeat(5000),
            serves: &[],
            warnings: &["deep.yaml: document 3, line "],
            cure: &[("x: {a: ", "# x: {a: ")],
            serves_after: &["10.96.1.13:80"],
        },
    ]
}

const LONGEST: &str = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";
const LONGER: &str = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";

fn assert_served_by(frontend: &str, backend: &str) {
    assert_eq!(tcp_ask(at(frontend)).map(|(server, _)| server), Ok(backend.to_owned()), "{frontend}");
}

fn warnings(agent: &Agent) -> Vec<String> {
    // Leave out refused calls: they belong to Services without endpoints.
    let is_warning = |line: &&str| (line.contains(" WARN ") || line.contains("ERROR")) && !line.contains("refused: ");
    agent.log().lines().filter(is_warning).map(str::to_owned).collect()
}

fn bad_input_affects_only_itself(node: &mut StoryNode) {
    tcp_server("10.0.0.1:8080");
    tcp_server(SERVER);
    node.write("good.yaml", &service("good", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080"]));
    let bad = bad_files();
    for BadFile { name, yaml, .. } in &bad {
        node.write(&format!("{name}.yaml"), yaml);
    }
    let agent = node.agent(&[]);
    assert_served_by(GOOD, "10.0.0.1:8080");
    for BadFile { serves, .. } in &bad {
        serves.iter().for_each(|frontend| assert_served_by(frontend, SERVER));
    }
    let logged = warnings(&agent);
    for BadFile { name, warnings, .. } in &bad {
        for text in *warnings {
            let lines = logged.iter().filter(|line| line.contains(text)).count();
            assert_eq!(lines, 1, "{name}: {text}\nin\n{}", logged.join("\n"));
        }
    }
    let expected: usize = bad.iter().map(|bad| bad.warnings.len()).sum();
    assert_eq!(logged.len(), expected, "one line per problem\n{}", logged.join("\n"));

    // Each corrected Service serves, one after the other, and the good one all the time.
    for BadFile { name, yaml, cure, serves_after, .. } in &bad {
        let corrected = cure.iter().fold(yaml.clone(), |yaml, (from, to)| {
            assert!(yaml.contains(from), "{name}: {from:?}\n{yaml}");
            yaml.replace(from, to)
        });
        node.write(&format!("{name}.yaml"), &corrected);
        for frontend in *serves_after {
            crate::agent::until(&format!("{frontend} of {name} serves"), || {
                assert_served_by(GOOD, "10.0.0.1:8080");
                tcp_ask(at(frontend)).is_ok_and(|(server, _)| server == SERVER)
            });
        }
    }
    assert_eq!(warnings(&agent), logged, "a correction adds no warning");
}

fn thousands_log_few_lines(node: &mut StoryNode) {
    tcp_server("10.0.0.1:8080");
    node.write("good.yaml", &service("good", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080"]));
    let many = |name: &str, vip: &str, net: &str, count: usize| {
        let addresses: Vec<_> =
            (0..count).map(|at| format!("{{ip: \"{net}.{}.{}\"}}", at / 250, at % 250 + 1)).collect();
        let subsets = format!("subsets:\n- addresses: [{}]\n  ports: [{{port: 8080}}]\n", addresses.join(", "));
        service(name, &[vip], "TCP", 80, &[]).replacen("subsets: []\n", &subsets, 1)
    };
    node.write("most.yaml", &many("most", "10.96.1.1", "10.1", 1000));
    node.write("more.yaml", &many("more", "10.96.1.2", "10.2", 1001));
    node.write("lost.yaml", &many("lost", "10.96.1.3", "127.1", 1000));
    node.write("text.yaml", &many("text", "10.96.1.4", "10.x", 1000));
    let agent = node.agent(&[]);
    assert_served_by(GOOD, "10.0.0.1:8080");
    agent.wait_for("1,000 endpoints of each Service with usable addresses", |dump| dump.backends.len() == 2001);
    let logged = warnings(&agent);
    for text in [
        "subsets[0]: 1 addresses beyond the first 1000 are not served; write EndpointSlices instead",
        "127.1.0.5:8080 and 995 more is not used: that is a loopback address; write the address at which the \
         other nodes",
        "subsets[0].addresses[19].ip \"10.x.0.20\": not an IP address; fix or remove it",
        "Endpoints default/text: 980 more such problems; fix the first ones to see them",
    ] {
        assert_eq!(logged.iter().filter(|line| line.contains(text)).count(), 1, "{text}\nin\n{}", logged.join("\n"));
    }
    assert_eq!(logged.len(), 1 + 1 + 21, "{}", logged.join("\n"));
    for (name, vip) in [("more", "10.96.1.2"), ("lost", "10.96.1.3"), ("text", "10.96.1.4")] {
        node.write(&format!("{name}.yaml"), &service(name, &[vip], "TCP", 80, &["10.0.0.1:8080"]));
    }
    agent.wait_for("the corrected Services", |dump| dump.backends.len() == 1000 + 4);
    for vip in ["10.96.0.1:80", "10.96.1.2:80", "10.96.1.3:80", "10.96.1.4:80"] {
        assert_served_by(vip, "10.0.0.1:8080");
    }
}

//! `explain` beside a running agent: it finds the agent's objects, flags and maps without arguments.

use crate::{
    Story,
    agent::run,
    node::{StoryNode, service},
};

pub const STORIES: &[Story] =
    &[("explain_finds_the_objects_and_flags_of_the_running_agent", finds_the_input_of_the_agent)];

fn finds_the_input_of_the_agent(node: &mut StoryNode) {
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.1:8080", "127.0.0.1:8080"]));
    let explain = |arguments: &[&str]| {
        let output = run(node, &[&["explain"], arguments].concat());
        let utf8 = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        (output.status.code(), utf8(&output.stdout), utf8(&output.stderr))
    };
    let (code, _, error) = explain(&["default/web"]);
    assert!(code == Some(1) && error.contains("no agent runs"), "{error}");

    let mut agent = node.agent(&["--external-ips", "none"]);
    agent.wait_for("the endpoint is there", |dump| dump.backends.len() == 1);
    let (code, text, _) = explain(&["default/web"]);
    let first = format!(
        "objects from the directory {}, which the agent (pid {}) reads, seen from node here",
        node.yaml.display(),
        agent.pid()
    );
    assert_eq!((code, text.lines().next()), (Some(0), Some(first.as_str())));
    for line in [
        "  10.96.0.1:80/TCP  ClusterIP  owned",
        "port 80/TCP, IPv4: 1 in the cluster list",
        "  10.0.0.1:8080   -  used",
        "  127.0.0.1:8080  -  not used: that is a loopback address",
        "  agree: the pinned maps of this node hold exactly this",
    ] {
        assert!(text.lines().any(|other| other == line), "{line:?} in\n{text}");
    }
    let (code, json, _) = explain(&["default/web", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((code, &json["maps"]["agree"], &json["node"]), (Some(0), &true.into(), &"here".into()));
    let (code, _, error) = explain(&["other/web"]);
    assert!(code == Some(1) && error.contains("there is default/web"), "{error}");

    // Without the agent, arguments name the objects; the maps still hold the old state.
    agent.kill();
    node.write("web.yaml", &service("web", &["10.96.0.1"], "TCP", 80, &["10.0.0.2:8080"]));
    let directory = node.yaml.to_str().expect("a path");
    let (code, text, _) = explain(&["default/web", "-f", directory, "--node-name", "here"]);
    let differs = text.contains("  differ by ") && text.contains("put BACKENDS") && text.contains("10.0.0.2:8080");
    assert!(code == Some(0) && differs, "{text}");
}

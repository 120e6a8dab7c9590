//! `beeline explain`: why each endpoint of a Service is used on this node or is not, by the code that decides it, and
//! whether the maps hold what was decided.

use std::{collections::BTreeSet, fmt::Write as _};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;

use super::{
    log,
    objects::{self, Flags, Named, Origin, Output},
};
use lb_agent::reconcile::Reconciler;
use lb_core::{
    event::Event,
    model::explain::Explanation,
    objects::Key,
    plan::{OnOrphan, Plan, Scope, plan},
    shadow::Shadow,
    spec::ServiceSpec,
    store::{Dump, Limits, MemoryStore, Store as _},
    text::number,
};
use lb_dataplane::{pins::Pins, store::BpfStore};

/// A Service, and where its objects are.
#[derive(Args)]
#[command(after_help = "Examples:
  beeline explain default/web                  as the agent on this node sees it
  beeline explain default/web -f ./services    as the objects of a directory would have it
  beeline explain default/web -o json

Without -f, --kubeconfig and --api-server the objects come from where the running agent has them, and its flags count.

Exit codes: 0 explained; 1 there is no such Service.")]
pub(super) struct Arguments {
    /// The Service.
    #[arg(value_name = "NAMESPACE/NAME", value_parser = parse_key)]
    service: Key,

    /// Form of the output.
    #[arg(short, long, default_value = "text", value_name = "FORM")]
    output: Output,

    #[command(flatten)]
    named: Named,
}

fn parse_key(text: &str) -> Result<Key, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Key::new(namespace, name))
        }
        _ => Err("want NAMESPACE/NAME, as in default/web".to_owned()),
    }
}

pub(super) fn render(pins: &Pins, flags: Flags, arguments: Arguments) -> Result<String> {
    // What the pass says of every Service would drown what is asked for.
    log::start(log::Format::Text, "warn,lb_agent::reconcile=off")?;
    let (service, output) = (arguments.service.clone(), arguments.output);
    let Origin { text, source, settings, node_name } = match flags {
        Flags::Given => arguments.named.origin()?,
        Flags::Agents => objects::agent(pins)?
            .context(
                "no agent runs on this node, whose objects could be read: name a directory with -f, or a cluster with \
                 --kubeconfig or --api-server",
            )?
            .origin,
    };
    let pinned = if pins.current().exists() {
        let store = BpfStore::open(&pins.current())?;
        Some((store.dump()?, store.limits()))
    } else {
        None
    };
    let mut reconciler = Reconciler::new(MemoryStore::default(), &node_name, settings);
    reconciler.handle(objects::load(source)?);
    if let Some((dump, _)) = &pinned {
        // Where the agent lets NodePorts answer.
        let addresses = dump.node_addrs.keys().map(|addr| addr.to_ip()).collect();
        reconciler.handle([Event::NodeAddresses(addresses)]);
    }
    reconciler.preview()?;
    let Some(explanation) = reconciler.explain(&service) else {
        bail!("{}", unknown(&service, reconciler.world().services(), &text));
    };
    let zone = reconciler.world().zone().map(str::to_owned);
    let maps = pinned.map(|(dump, limits)| Maps::compare(&dump, &limits, reconciler.spec(&service)));
    let told = Told { objects: text, node: node_name, zone, explanation, maps };
    Ok(match output {
        Output::Json => serde_json::to_string_pretty(&told)? + "\n",
        Output::Text => told.text(),
    })
}

/// That there is no such Service, and what may have been meant.
fn unknown<'a>(service: &Key, known: impl Iterator<Item = &'a Key>, objects: &str) -> String {
    let alike = |other: &&Key| {
        let (own, other) = ((service.namespace(), service.name()), (other.namespace(), other.name()));
        own.1 == other.1 || own.0 == other.0 && (own.1.contains(other.1) || other.1.contains(own.1))
    };
    let alike: BTreeSet<_> = known.filter(alike).map(ToString::to_string).collect();
    let mut text = format!("no Service {service} in {objects}");
    if !alike.is_empty() {
        let alike: Vec<_> = alike.into_iter().take(5).collect();
        write!(text, "; there is {}", alike.join(", ")).expect("a String takes everything");
    }
    text
}

/// Everything that is said.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    /// Where the objects are.
    objects: String,
    node: String,
    zone: Option<String>,
    #[serde(flatten)]
    explanation: Explanation,
    /// None when there are none.
    maps: Option<Maps>,
}

impl Told {
    fn text(&self) -> String {
        let zone = self.zone.as_ref().map(|zone| format!(" in zone {zone}")).unwrap_or_default();
        let maps = match &self.maps {
            None => "  are not there: nothing is pinned on this node\n".to_owned(),
            Some(maps) => maps.text(),
        };
        format!("objects from {}, seen from node {}{zone}\n{}maps\n{maps}", self.objects, self.node, self.explanation)
    }
}

/// Whether the maps hold what was decided.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Maps {
    /// They do.
    agree: bool,
    /// The map that has no room.
    full: Option<String>,
    /// The writes that would make them so.
    missing: Vec<String>,
}

impl Maps {
    /// By the planner that the agent uses.
    fn compare(dump: &Dump, limits: &Limits, spec: ServiceSpec) -> Self {
        let (shadow, _) = Shadow::from_dump(dump);
        let Plan { ops, refused, .. } = plan(&shadow, &[spec], None, Scope::Some, OnOrphan::Keep, limits);
        Self {
            agree: ops.is_empty() && refused.is_empty(),
            full: refused.first().map(ToString::to_string),
            missing: ops.iter().map(ToString::to_string).collect(),
        }
    }

    fn text(&self) -> String {
        const LINES: usize = 10;
        if self.agree {
            return "  agree: the pinned maps of this node hold exactly this\n".to_owned();
        }
        let mut text = String::new();
        if let Some(full) = &self.full {
            text += &format!("  differ: {full}\n");
        }
        if !self.missing.is_empty() {
            text += &format!("  differ by {}:\n", number(self.missing.len(), "write"));
        }
        self.missing.iter().take(LINES).for_each(|op| text += &format!("    {op}\n"));
        if self.missing.len() > LINES {
            text += &format!("    and {} more\n", self.missing.len() - LINES);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use expect_test::{Expect, expect};
    use lb_agent::Source;
    use lb_sources::directory;

    #[test]
    fn a_service_has_a_namespace_and_a_name() {
        assert_eq!(parse_key("default/web"), Ok(Key::new("default", "web")));
        for bad in ["web", "/web", "default/", "a/b/c", ""] {
            assert!(parse_key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn without_flags_those_of_the_agent_count() {
        let flags = |more: &[&str]| {
            let line = ["beeline", "--pins", "/x", "explain", "default/web"].iter().chain(more);
            let matches = super::super::Cli::command().try_get_matches_from(line).expect("it is right");
            Flags::of(matches.subcommand_matches("explain").expect("explain"))
        };
        assert_eq!(flags(&[]), Flags::Agents);
        assert_eq!(flags(&["-o", "json"]), Flags::Agents);
        assert_eq!(flags(&["-f", "y"]), Flags::Given);
        assert_eq!(flags(&["--external-ips", "any"]), Flags::Given);
    }

    #[test]
    fn an_unknown_service_is_told_with_what_is_alike() {
        let known = [("other", "web"), ("default", "web-2"), ("default", "db"), ("other", "db")];
        let known: Vec<_> = known.iter().map(|(namespace, name)| Key::new(namespace, name)).collect();
        let told = |namespace, name| unknown(&Key::new(namespace, name), known.iter(), "the API server");
        assert_eq!(
            told("default", "web"),
            "no Service default/web in the API server; there is default/web-2, other/web"
        );
        assert_eq!(told("other", "x"), "no Service other/x in the API server");
    }

    /// A directory, and what is told of `default/web` in it beside maps that hold another one.
    fn check(yaml: &str, service: &str, before: &str, limits: Limits, expected: &Expect) {
        let directory = tempfile::tempdir().expect("a directory");
        let node = "here";
        let mut reconcilers = [before, yaml].map(|text| {
            std::fs::write(directory.path().join("a.yaml"), text).expect("a file");
            let options = directory::Options { path: directory.path().to_owned(), proxy_name: None };
            let mut reconciler = Reconciler::new(MemoryStore::new(limits), node, lb_core::model::Settings::default());
            reconciler.handle(objects::load(Source::Directory(options)).expect("it is read"));
            reconciler.pass();
            reconciler
        });
        let [before, after] = &mut reconcilers;
        let key = parse_key(service).expect("a name");
        let told = Told {
            objects: "the directory services".to_owned(),
            node: node.to_owned(),
            zone: None,
            explanation: after.explain(&key).expect("it is there"),
            maps: Some(Maps::compare(&before.store().dump, &limits, after.spec(&key))),
        };
        expected.assert_eq(&told.text());
        assert!(serde_json::to_string(&told).is_ok_and(|json| json.contains("\"maps\":{\"agree\":")));
    }

    const WEB: &str = "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: default}, \
        spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}\n---\n";

    fn with(addresses: &str) -> String {
        let object = "apiVersion: v1, kind: Endpoints, metadata: {name: web, namespace: default}";
        format!("{WEB}{{{object}, subsets: [{{addresses: [{addresses}], ports: [{{port: 8080}}]}}]}}\n")
    }

    #[test]
    fn the_maps_agree_or_it_is_told_what_is_missing() {
        let (one, two) = ("{ip: 10.0.0.1, nodeName: here}", "{ip: 10.0.0.2}, {ip: 10.0.0.3}");
        check(
            &with(one),
            "default/web",
            &with(one),
            Limits::DEFAULT,
            &expect![[r#"
                objects from the directory services, seen from node here
                Service default/web
                  type       ClusterIP
                  selector   none: endpoints are written by hand
                  internal   Cluster: cluster IPs lead to endpoints on any node
                  scheduler  random, the default of this node
                frontends
                  10.96.0.1:80/TCP  ClusterIP  owned
                port 80/TCP, IPv4: 1 in the cluster list
                  10.0.0.1:8080  here  used
                maps
                  agree: the pinned maps of this node hold exactly this
            "#]],
        );
        check(
            &with(two),
            "default/web",
            &with(one),
            Limits::DEFAULT,
            &expect![[r#"
                objects from the directory services, seen from node here
                Service default/web
                  type       ClusterIP
                  selector   none: endpoints are written by hand
                  internal   Cluster: cluster IPs lead to endpoints on any node
                  scheduler  random, the default of this node
                frontends
                  10.96.0.1:80/TCP  ClusterIP  owned
                port 80/TCP, IPv4: 2 in the cluster list
                  10.0.0.2:8080  -  used
                  10.0.0.3:8080  -  used
                maps
                  differ by 6 writes:
                    put BACKENDS 2 = 10.0.0.2:8080 of service port 1, flags 0x1
                    put BACKENDS 3 = 10.0.0.3:8080 of service port 1, flags 0x1
                    put SLOTS 1 0 1 = 10.0.0.3:8080 backend 3
                    put SLOTS 1 0 0 = 10.0.0.2:8080 backend 2
                    put SERVICES 1 = cluster 2 local 0 flags 0x0
                    delete BACKENDS 1
            "#]],
        );
        let limits = Limits { slots: 1, ..Limits::DEFAULT };
        check(
            &with(two),
            "default/web",
            &with(one),
            limits,
            &expect![[r#"
                objects from the directory services, seen from node here
                Service default/web
                  type       ClusterIP
                  selector   none: endpoints are written by hand
                  internal   Cluster: cluster IPs lead to endpoints on any node
                  scheduler  random, the default of this node
                frontends
                  10.96.0.1:80/TCP  ClusterIP  owned
                port 80/TCP, IPv4: 2 in the cluster list
                  10.0.0.2:8080  -  used
                  10.0.0.3:8080  -  used
                maps
                  differ: the map SLOTS has 1 entries and no room for default/web, which stays as it was; raise it with --map-size slots=2
            "#]],
        );
    }
}

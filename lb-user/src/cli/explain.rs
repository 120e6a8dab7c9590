//! `beeline explain`: prints the agent's own decisions about each frontend and endpoint of a Service, and compares them
//! with the pinned maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;

use super::{
    announced, arguments,
    log::{self, LogFormat},
    objects::{self, FlagSource, ObjectSource, ReportFormat, SourceArgs},
};
use lb_agent::reconcile::Reconciler;
use lb_core::{
    event::{Event, NodeAddresses},
    host_ports,
    model::explain::{Explanation, PortLines},
    objects::Key,
    plan::{OnOrphan, Plan, Scope, plan},
    shadow::Shadow,
    spec::ServiceSpec,
    store::{Dump, Limits, MemoryStore, Store as _},
    text::number,
};
use lb_dataplane::{
    pins::Pins,
    stats::{EjectedBackend, LiveIds, StatMaps},
    store::BpfStore,
};
use lb_kernel::clock;
use lb_sources::addresses;

/// Arguments of `beeline explain`: a Service or a pod with hostPorts, and the source of the objects.
#[derive(Args)]
#[command(after_help = "Examples:
  beeline explain default/web                  with the objects of the agent on this node
  beeline explain default/pod/web              the hostPorts of a pod on this node
  beeline explain default/web -f ./services    with the objects of a directory
  beeline explain default/web -o json

Without -f, --kubeconfig and --api-server the objects come from the running agent's source, with the agent's flags.

Exit codes: 0 explained; 1 there is no such Service or pod.")]
pub(super) struct ExplainArgs {
    /// Service; or NAMESPACE/pod/NAME, a pod whose hostPorts are served.
    #[arg(value_name = "NAMESPACE/NAME", value_parser = arguments::service)]
    service: Key,

    /// Form of the output.
    #[arg(short, long, default_value = "text", value_name = "FORM")]
    output: ReportFormat,

    #[command(flatten)]
    source: SourceArgs,
}

pub(super) fn render(pins: &Pins, flags: FlagSource, arguments: ExplainArgs) -> Result<String> {
    // The pass would log warnings about every Service.
    log::start(LogFormat::Text, "warn,lb_agent::reconcile=off")?;
    let (service, output) = (arguments.service.clone(), arguments.output);
    let ObjectSource { text, source, settings, node_name } = match flags {
        FlagSource::CommandLine => arguments.source.object_source()?,
        FlagSource::Agent => objects::agent(pins)?
            .context(
                "no agent runs on this node: name a directory with -f, or a cluster with --kubeconfig or --api-server",
            )?
            .objects,
    };
    let pinned = if pins.current().exists() {
        let store = BpfStore::open(&pins.current())?;
        Some((store.dump()?, store.limits()))
    } else {
        None
    };
    // The maps have the tiers in use, on which the next decision depends.
    let store =
        pinned.as_ref().map_or_else(MemoryStore::default, |(dump, limits)| MemoryStore::holding(dump.clone(), *limits));
    let mut reconciler = Reconciler::new(store, &node_name, settings);
    reconciler.handle(objects::load(source.clone())?);
    if let Some((dump, _)) = &pinned {
        // The addresses at which the agent serves NodePorts. The maps do not tell which of them local routes give.
        let all: BTreeSet<IpAddr> = dump.node_addrs.keys().map(|addr| addr.to_ip()).collect();
        let local_routes = addresses::current().map(|own| &own.local_routes & &all).unwrap_or_default();
        let interfaces = &all - &local_routes;
        reconciler.handle([Event::NodeAddresses(NodeAddresses { interfaces, local_routes })]);
    }
    reconciler.preview()?;
    let Some(explanation) = reconciler.explain(&service) else {
        bail!("{}", unknown(&service, reconciler.world().services(), &text));
    };
    let mut explanation = explanation;
    if let Some((dump, _)) = &pinned {
        let (maps, live) = (StatMaps::open(&pins.current())?, LiveIds::open(&pins.current())?);
        add_ejections(&mut explanation, &service, dump, &maps.ejected_backends(&live, clock::monotonic_ns())?);
    }
    let spec = reconciler.spec(&service);
    announced::add(&mut explanation.facts, &pins.current(), source, &spec.attracted);
    let zone = reconciler.world().zone().map(str::to_owned);
    let maps = pinned.map(|(dump, limits)| MapComparison::compare(&dump, &limits, spec));
    let report = ExplainReport { objects: text, node: node_name, zone, explanation, maps };
    Ok(match output {
        ReportFormat::Json => serde_json::to_string_pretty(&report)? + "\n",
        ReportFormat::Text => report.text(),
    })
}

/// Adds to each endpoint which clients of this node do not get it, since their connects failed.
fn add_ejections(explanation: &mut Explanation, service: &Key, dump: &Dump, ejected: &BTreeMap<u32, EjectedBackend>) {
    for (id, EjectedBackend { clients, seconds }) in ejected {
        let Some(backend) = dump.backends.get(id) else { continue };
        let Some(key) = dump.names.get(&backend.service).filter(|key| key.service == *service) else { continue };
        let endpoint = SocketAddr::new(backend.addr.to_ip(), backend.port).to_string();
        let is_same = |port: &&mut PortLines| {
            (port.name.as_str(), port.protocol, port.family) == (&*key.name, key.proto.name(), key.family.name())
        };
        let ports = explanation.ports.iter_mut().filter(is_same);
        for line in ports.flat_map(|port| &mut port.endpoints).filter(|line| line.endpoint == endpoint) {
            let clients = number(*clients, "client");
            line.why +=
                &format!("; ejected by {clients} of this node, whose connects failed, for up to {seconds} s more");
        }
    }
}

/// Formats the error for an unknown Service, with similar names.
fn unknown<'a>(service: &Key, known: impl Iterator<Item = &'a Key>, objects: &str) -> String {
    let is_similar = |other: &&Key| {
        let (name, other_name) = (service.name(), other.name());
        let contains = name.contains(other_name) || other_name.contains(name);
        name == other_name || service.namespace() == other.namespace() && contains
    };
    let similar: BTreeSet<_> = known.filter(is_similar).map(ToString::to_string).collect();
    let mut text = if host_ports::is_pod(service) {
        format!("no pod {service} of this node has hostPorts that are served, in {objects}")
    } else {
        format!("no Service {service} in {objects}")
    };
    if !similar.is_empty() {
        let similar: Vec<_> = similar.into_iter().take(5).collect();
        write!(text, "; there is {}", similar.join(", ")).expect("a String takes everything");
    }
    text
}

/// Output of the command.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExplainReport {
    /// Description of the source of the objects.
    objects: String,
    node: String,
    zone: Option<String>,
    #[serde(flatten)]
    explanation: Explanation,
    /// `None` if nothing is pinned.
    maps: Option<MapComparison>,
}

impl ExplainReport {
    fn text(&self) -> String {
        let zone = self.zone.as_ref().map(|zone| format!(" in zone {zone}")).unwrap_or_default();
        let maps = match &self.maps {
            None => "  are not there: nothing is pinned on this node\n".to_owned(),
            Some(maps) => maps.text(),
        };
        format!("objects from {}, seen from node {}{zone}\n{}maps\n{maps}", self.objects, self.node, self.explanation)
    }
}

/// Comparison of the pinned maps with the decisions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct MapComparison {
    /// True if the maps hold exactly the decisions.
    agree: bool,
    /// The map without room.
    full: Option<String>,
    /// The writes that are missing.
    missing: Vec<String>,
}

impl MapComparison {
    /// Plans the missing writes, with the agent's own planner.
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
        const MAX_LISTED: usize = 10;
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
        self.missing.iter().take(MAX_LISTED).for_each(|op| text += &format!("    {op}\n"));
        if self.missing.len() > MAX_LISTED {
            text += &format!("    and {} more\n", self.missing.len() - MAX_LISTED);
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
    fn without_flags_the_agents_flags_count() {
        let flags = |more: &[&str]| {
            let line = ["beeline", "--pins", "/x", "explain", "default/web"].iter().chain(more);
            let matches = super::super::Cli::command().try_get_matches_from(line).expect("it is right");
            FlagSource::of(matches.subcommand_matches("explain").expect("explain"))
        };
        assert_eq!(flags(&[]), FlagSource::Agent);
        assert_eq!(flags(&["-o", "json"]), FlagSource::Agent);
        assert_eq!(flags(&["-f", "y"]), FlagSource::CommandLine);
        assert_eq!(flags(&["--external-ips", "any"]), FlagSource::CommandLine);
    }

    #[test]
    fn an_unknown_service_is_reported_with_similar_names() {
        let known = [("other", "web"), ("default", "web-2"), ("default", "db"), ("other", "db")];
        let known: Vec<_> = known.iter().map(|(namespace, name)| Key::new(namespace, name)).collect();
        let error = |namespace, name| unknown(&Key::new(namespace, name), known.iter(), "the API server");
        assert_eq!(
            error("default", "web"),
            "no Service default/web in the API server; there is default/web-2, other/web"
        );
        assert_eq!(
            error("default", "pod/x"),
            "no pod default/pod/x of this node has hostPorts that are served, in the API server"
        );
        assert_eq!(error("other", "x"), "no Service other/x in the API server");
    }

    /// Checks the text about a Service of the directory `yaml` beside maps that hold the directory `before`.
    fn check(yaml: &str, service: &str, before: &str, limits: Limits, expected: &Expect) {
        let dir = tempfile::tempdir().expect("a directory");
        let node = "here";
        let mut reconcilers = [before, yaml].map(|text| {
            std::fs::write(dir.path().join("a.yaml"), text).expect("a file");
            let options = directory::DirectoryOptions {
                path: dir.path().to_owned(),
                proxy_name: None,
                remembered: directory::RememberedAddresses::default(),
            };
            let mut reconciler = Reconciler::new(MemoryStore::new(limits), node, lb_core::model::Settings::default());
            reconciler.handle(objects::load(Source::Directory(options)).expect("it is read"));
            reconciler.pass();
            reconciler
        });
        let [before, after] = &mut reconcilers;
        let key = arguments::service(service).expect("a name");
        let report = ExplainReport {
            objects: "the directory services".to_owned(),
            node: node.to_owned(),
            zone: None,
            explanation: after.explain(&key).expect("it is there"),
            maps: Some(MapComparison::compare(&before.store().dump, &limits, after.spec(&key))),
        };
        expected.assert_eq(&report.text());
        assert!(serde_json::to_string(&report).is_ok_and(|json| json.contains("\"maps\":{\"agree\":")));
    }

    const WEB: &str = "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: default}, \
        spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}\n---\n";

    fn with(addresses: &str) -> String {
        let object = "apiVersion: v1, kind: Endpoints, metadata: {name: web, namespace: default}";
        format!("{WEB}{{{object}, subsets: [{{addresses: [{addresses}], ports: [{{port: 8080}}]}}]}}\n")
    }

    #[test]
    fn the_maps_agree_or_the_missing_writes_are_listed() {
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

//! Effect of probes on lists: by results, while there are none, over a restart, and beside tiers.

use std::net::IpAddr;

use lb_common::FrontendKey;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    event::{Event, Object},
    model::{
        NodeContext, Settings, claims::Claims, compile, cross_namespace::CrossNamespaceIndex, explain::explain,
        frontends::request, redirects::RedirectIndex, slow_start::SlowStarts,
    },
    objects::{
        Endpoint, EndpointGroup, EndpointPort, EndpointSlice, Key, ProbeQuestion, ServicePort, SliceManager, Tuning,
    },
    plan::{OnOrphan, Scope, plan},
    port_ranges::{PortRanges, PortSpan},
    spec::ServiceSpec,
    store::{Limits, MemoryStore, Store as _},
    world::World,
};

const NODE: NodeContext<'static> =
    NodeContext { name: "here", zone: None, node_ports: &BTreeSet::new(), own: &BTreeSet::new() };

fn key() -> Key {
    Key::new("default", "a")
}

fn addr(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn target(last: u8) -> AddrPort {
    AddrPort { addr: addr(last).into(), port: 8080 }
}

/// A Service without selector, of TCP and UDP, with a probe.
fn service() -> Service {
    let probe = Probe {
        question: ProbeQuestion::HttpGet("/healthz".into()),
        every: 5.try_into().expect("not 0"),
        timeout: 1.try_into().expect("not 0"),
        fail: 3.try_into().expect("not 0"),
        pass: 1.try_into().expect("not 0"),
    };
    let port = |name, proto, number: u16| ServicePort::new(name, proto, number.try_into().expect("not 0"));
    Service {
        selector: Selector::None,
        cluster_ips: vec![[10, 96, 0, 1].into()],
        ports: [port("tcp", Proto::Tcp, 80), port("udp", Proto::Udp, 80), port("other", Proto::Udp, 81)].into(),
        tuning: Some(Box::new(Tuning { probe: Some(probe), ..Tuning::default() })),
        ..Service::new(key())
    }
}

/// Endpoints 10.0.0.N by N and tier, at 8080, and 9090 for the port `other`.
fn slice(endpoints: &[(u8, u8)]) -> EndpointSlice {
    let port = |name: &str, proto, number: u16| EndpointPort {
        name: name.into(),
        proto,
        port: number.try_into().expect("not 0"),
    };
    let ports = [port("tcp", Proto::Tcp, 8080), port("udp", Proto::Udp, 8080), port("other", Proto::Udp, 9090)];
    let endpoint = |&(last, tier): &(u8, u8)| Endpoint { tier, ..Endpoint::new(addr(last)) };
    EndpointSlice {
        key: key(),
        service: Some(key()),
        manager: SliceManager::Other,
        group: EndpointGroup { ports: ports.into(), endpoints: endpoints.iter().map(endpoint).collect() },
        triggered: None,
        problems: Vec::new(),
    }
}

/// The objects, the results and the maps.
struct Fixture {
    world: World,
    claims: Claims,
    service: Service,
    slice: EndpointSlice,
    maps: Shadow,
    store: MemoryStore,
    /// Number of writes so far.
    writes: usize,
}

impl Fixture {
    fn new(endpoints: &[(u8, u8)]) -> Self {
        let (maps, store) = (Shadow::default(), MemoryStore::default());
        let mut fixture = Self {
            world: World::new("here"),
            claims: Claims::default(),
            service: service(),
            slice: slice(endpoints),
            maps,
            store,
            writes: 0,
        };
        fixture.restart();
        fixture
    }

    /// Begins without results, over the maps.
    fn restart(&mut self) {
        self.world = World::new("here");
        self.world.apply(Event::Apply(Object::Service(self.service.clone())));
        self.set_slice(self.slice.clone());
        self.maps = Shadow::from_dump(&self.store.dump().expect("a dump")).0;
    }

    fn set_slice(&mut self, slice: EndpointSlice) {
        self.slice = slice;
        self.world.apply(Event::Apply(Object::EndpointSlice(self.slice.clone())));
    }

    fn verdict(&mut self, last: u8, verdict: Option<ProbeVerdict>) {
        self.world.apply(Event::Probed { service: key(), target: target(last), verdict });
    }

    fn fails(&mut self, last: u8) {
        self.verdict(last, Some(ProbeVerdict::Fails("connection refused".into())));
    }

    fn passes(&mut self, last: u8) {
        self.verdict(last, Some(ProbeVerdict::Passes));
    }

    /// True if the flags of the port `tcp` tell that an endpoint is kept out.
    fn is_probed_out(&self) -> bool {
        let spec = self.spec();
        let port = spec.ports.iter().find(|port| &*port.key.name == "tcp").expect("a port");
        port.flags & lb_common::ServiceFlags::PROBED_OUT != 0
    }

    /// The results so far.
    fn results(&self) -> Vec<(u8, ProbeVerdict)> {
        let of = |last| Some((last, self.world.probe_verdict(&key(), &target(last))?.clone()));
        (1..8).filter_map(of).collect()
    }

    fn with<T>(&self, run: impl FnOnce(&View<'_>, ClusterContext<'_>) -> T) -> T {
        let (cross_namespace, redirects, slow_starts) =
            (CrossNamespaceIndex::default(), RedirectIndex::default(), SlowStarts::default());
        let cluster = ClusterContext {
            claims: &self.claims,
            cross_namespace: &cross_namespace,
            redirects: &redirects,
            maps: Some(&self.maps),
            slow_starts: &slow_starts,
            world: &self.world,
        };
        run(&self.world.view(&key()).expect("a Service"), cluster)
    }

    fn spec(&self) -> ServiceSpec {
        let settings = Settings::default();
        self.with(|view, cluster| {
            let request = request(view.service, &settings.external_ips, cluster.cross_namespace);
            compile(view, request, NODE, &settings, cluster)
        })
    }

    /// Writes the maps, and returns the lists of the ports `tcp`, `udp` and `other`.
    fn pass(&mut self) -> String {
        let spec = self.spec();
        let lists = ["tcp", "udp", "other"].map(|name| {
            let port = spec.ports.iter().find(|port| &*port.key.name == name).expect("a port");
            let members = port.backends.iter().filter(|member| member.is_in(List::Cluster));
            members.map(|member| member.target.addr.octets[15].to_string()).collect::<Vec<_>>().join(" ")
        });
        let plan = plan(&self.maps, &[spec], None, Scope::Some, OnOrphan::Keep, &Limits::DEFAULT);
        self.store.apply(&plan.ops).expect("room");
        self.maps.apply_all(&plan.ops);
        self.writes += plan.ops.len();
        lists.join(" | ")
    }

    fn explain(&self) -> String {
        let settings = Settings::default();
        self.with(|view, cluster| {
            let request = request(view.service, &settings.external_ips, cluster.cross_namespace);
            explain(view, request, NODE, &settings, cluster).to_string()
        })
    }
}

const THREE: [(u8, u8); 3] = [(1, 0), (2, 0), (3, 0)];

#[test]
fn an_endpoint_that_fails_is_not_used_until_it_passes_unless_all_fail() {
    let mut fixture = Fixture::new(&THREE);
    assert_eq!(fixture.pass(), "1 2 3 | 1 2 3 | 1 2 3", "there is no result yet");
    fixture.passes(1);
    assert_eq!(fixture.pass(), "1 2 3 | 1 2 3 | 1 2 3", "the others are in use");
    fixture.fails(2);
    // A UDP port of the same number shares the result; another one is not probed.
    assert_eq!(fixture.pass(), "1 3 | 1 3 | 1 2 3");
    assert!(fixture.is_probed_out());
    fixture.fails(3);
    assert_eq!(fixture.pass(), "1 | 1 | 1 2 3");
    fixture.fails(1);
    assert_eq!(fixture.pass(), "1 2 3 | 1 2 3 | 1 2 3", "all fail");
    assert!(!fixture.is_probed_out());
    fixture.passes(3);
    assert_eq!(fixture.pass(), "3 | 3 | 1 2 3");
    // An endpoint whose result is withdrawn stays as it is.
    fixture.verdict(3, None);
    assert_eq!(fixture.pass(), "3 | 3 | 1 2 3");
}

#[test]
fn a_new_endpoint_is_used_when_it_has_passed() {
    let mut fixture = Fixture::new(&THREE[..2]);
    fixture.pass();
    fixture.passes(1);
    fixture.set_slice(slice(&THREE));
    assert_eq!(fixture.pass(), "1 2 | 1 2 | 1 2 3");
    assert_eq!(fixture.pass(), "1 2 | 1 2 | 1 2 3");
    fixture.passes(3);
    assert_eq!(fixture.pass(), "1 2 3 | 1 2 3 | 1 2 3");
}

#[test]
fn a_restart_takes_no_endpoint_away_and_brings_none_back() {
    let mut fixture = Fixture::new(&THREE);
    fixture.pass();
    fixture.fails(2);
    assert_eq!(fixture.pass(), "1 3 | 1 3 | 1 2 3");
    fixture.restart();
    assert_eq!(fixture.pass(), "1 3 | 1 3 | 1 2 3");
    assert!(fixture.explain().contains("10.0.0.2:8080  -  not used: its probe fails, or has not passed yet"));
    fixture.passes(2);
    assert_eq!(fixture.pass(), "1 2 3 | 1 2 3 | 1 2 3");
    // All fail, so that all are used.
    (1..=3).for_each(|last| fixture.fails(last));
    fixture.pass();
    fixture.restart();
    assert_eq!(fixture.pass(), "1 2 3 | 1 2 3 | 1 2 3");
}

#[test]
fn tiers_count_failing_endpoints_as_not_ready_and_waiting_ones_of_the_tier_in_use_not_at_all() {
    let mut fixture = Fixture::new(&[(1, 0), (2, 0), (7, 1)]);
    assert_eq!(fixture.pass(), "1 2 | 1 2 | 1 2");
    fixture.passes(7);
    // Two more are new, and not half of all are ready.
    fixture.set_slice(slice(&[(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (7, 1)]));
    assert_eq!(fixture.pass(), "1 2 | 1 2 | 1 2 3 4 5");
    (1..=4).for_each(|last| fixture.fails(last));
    assert_eq!(fixture.pass(), "7 | 7 | 1 2 3 4 5");
}

#[test]
fn a_restart_brings_no_tier_back_whose_endpoints_are_dead() {
    // Half of priority 0 and one of priority 1 are dead, so that priority 1 serves.
    let mut fixture = Fixture::new(&[(1, 0), (2, 0), (3, 0), (7, 1), (8, 1), (9, 1)]);
    fixture.pass();
    [1, 2, 8].into_iter().for_each(|last| fixture.fails(last));
    [3, 7, 9].into_iter().for_each(|last| fixture.passes(last));
    assert_eq!(fixture.pass(), "7 9 | 7 9 | 1 2 3");
    fixture.restart();
    assert_eq!(fixture.pass(), "7 9 | 7 9 | 1 2 3");
    assert_eq!(fixture.pass(), "7 9 | 7 9 | 1 2 3");
    // The spare tier of a Service whose first one serves is not taken for dead.
    let mut fixture = Fixture::new(&[(1, 0), (7, 1)]);
    fixture.pass();
    fixture.restart();
    assert_eq!(fixture.pass(), "1 | 1 | 1");
    fixture.fails(7);
    assert!(!fixture.is_probed_out(), "it would not be in the list anyway");
    fixture.verdict(7, None);
    let text = fixture.explain();
    assert!(text.contains("10.0.0.7:8080  -  not used: its priority is 1, and another one is used"), "{text}");
}

#[test]
fn an_endpoint_that_goes_out_of_use_with_its_tier_stays_a_backend() {
    let mut fixture = Fixture::new(&[(2, 1)]);
    fixture.pass();
    fixture.passes(1);
    fixture.fails(3);
    // Endpoint 2 has no result. It moves to priority 0, which has too many dead and new ones.
    fixture.set_slice(slice(&[(1, 1), (2, 0), (3, 0), (4, 0), (5, 0)]));
    assert_eq!(fixture.pass(), "1 | 1 | 2 3 4 5");
    let writes = fixture.writes;
    assert_eq!((fixture.pass(), fixture.writes), ("1 | 1 | 2 3 4 5".to_owned(), writes), "its sockets do not end");
}

#[test]
fn only_ready_endpoints_that_are_no_frontend_are_probed() {
    let mut fixture = Fixture::new(&THREE);
    fixture.slice.group.endpoints[0].ready = false;
    fixture.slice.group.endpoints[1].weight = 0;
    fixture.set_slice(fixture.slice.clone());
    let targets = |fixture: &Fixture| {
        let targets = fixture.spec().probes.map(|probes| probes.targets).unwrap_or_default();
        targets.into_iter().map(|target| target.addr.octets[15]).collect::<Vec<_>>()
    };
    assert_eq!(targets(&fixture), [3]);
    // A load balancer address of another Service.
    let key = FrontendKey::new(addr(3).into(), 8080, Proto::Tcp);
    fixture.claims.set(&Key::new("default", "b"), None, &[(key, lb_common::Kind::LoadBalancer)]);
    assert_eq!(targets(&fixture), [0; 0]);
    fixture.fails(3);
    assert_eq!(fixture.pass(), "3 | 3 | 3", "its result counts no more");
    fixture.claims = Claims::default();
    fixture.service.selector = Selector::Some;
    fixture.restart();
    assert_eq!(targets(&fixture), [0; 0], "the Service has a selector");
    fixture.service = Service { tuning: None, ..service() };
    fixture.restart();
    assert_eq!(targets(&fixture), [0; 0], "the Service has no probe");
}

#[test]
fn port_ranges_are_not_probed_whatever_their_offset() {
    let mut fixture = Fixture::new(&THREE);
    let spans = vec![PortSpan { first: 100, last: 200 }];
    let ranges = ServicePort::of_ranges(PortRanges { proto: Proto::Tcp, offset: 8080, spans }).expect("a range");
    fixture.service.ports = service().ports.iter().cloned().chain([ranges]).collect();
    fixture.restart();
    fixture.pass();
    fixture.fails(1);
    let text = fixture.explain();
    assert!(text.contains("port [ports+8080]"), "{text}");
    assert_eq!(text.matches("-  not used: its probe fails").count(), 2, "at tcp and udp: {text}");
}

#[test]
fn warnings_and_explain_name_cause_and_cure() {
    let mut fixture = Fixture::new(&THREE);
    fixture.pass();
    let warnings = |fixture: &Fixture| fixture.spec().warnings.iter().map(ToString::to_string).collect::<Vec<_>>();
    fixture.fails(1);
    fixture.fails(2);
    assert_eq!(
        warnings(&fixture),
        ["its endpoint 10.0.0.1:8080, 10.0.0.2:8080 is not used: its probe fails: connection refused; it is used \
          again when it passes"]
    );
    let text = fixture.explain();
    for line in [
        "  probe      HTTP GET /healthz every 5 s, within 1 s; out after 3 failures, in after 1 passes\n",
        "10.0.0.1:8080  -  not used: its probe fails: connection refused\n",
        "10.0.0.3:8080  -  used\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    fixture.fails(3);
    assert_eq!(
        warnings(&fixture),
        ["its endpoint 10.0.0.1:8080, 10.0.0.2:8080, 10.0.0.3:8080 fails its probe (connection refused) and is used \
          all the same, since no endpoint of the port passes; check the servers, and the annotation beeline.io/probe"]
    );
    assert!(
        fixture.explain().contains("10.0.0.3:8080  -  used; its probe fails (connection refused), as those of all do")
    );
    fixture.service.selector = Selector::Some;
    fixture.restart();
    assert_eq!(
        warnings(&fixture),
        ["annotation beeline.io/probe has no effect, since the Service has a selector: the kubelet knows the \
          readiness of its pods; remove the annotation, and give the pods a readinessProbe"]
    );
    fixture.service = Service { ports: service().ports[1..].into(), ..service() };
    fixture.restart();
    assert_eq!(
        warnings(&fixture),
        ["annotation beeline.io/probe has no effect, since the Service has no port of TCP; remove the annotation, \
          or add a port of TCP"]
    );
}

/// A step of a history.
#[derive(Clone, Debug)]
enum Step {
    Verdict(u8, Option<bool>),
    Endpoints(Vec<(u8, u8)>),
}

fn step() -> impl Strategy<Value = Step> {
    let endpoints = vec((1_u8..8, 0_u8..3), 0..7).prop_map(|mut endpoints| {
        endpoints.sort_unstable();
        endpoints.dedup_by_key(|(last, _)| *last);
        Step::Endpoints(endpoints)
    });
    prop_oneof![1 => endpoints, 4 => (1_u8..8, any::<Option<bool>>()).prop_map(|(last, of)| Step::Verdict(last, of))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_pass_has_more_to_do_and_a_restart_uses_no_other_endpoint(steps in vec(step(), 1..20)) {
        let mut fixture = Fixture::new(&THREE);
        for step in steps {
            match step {
                Step::Endpoints(endpoints) => fixture.set_slice(slice(&endpoints)),
                Step::Verdict(last, Some(true)) => fixture.passes(last),
                Step::Verdict(last, Some(false)) => fixture.fails(last),
                Step::Verdict(last, None) => fixture.verdict(last, None),
            }
            let lists = fixture.pass();
            let writes = fixture.writes;
            prop_assert_eq!((fixture.pass(), fixture.writes), (lists, writes), "the second pass");
            let has_tiers = fixture.slice.group.endpoints.iter().any(|endpoint| endpoint.tier != 0);
            let results = fixture.results();
            let of_first = |lists: &str| -> BTreeSet<u8> {
                lists.split('|').next().into_iter().flat_map(str::split_whitespace).flat_map(str::parse).collect()
            };
            let before = of_first(&fixture.pass());
            let (maps, store) = (fixture.store.clone(), fixture.writes);
            fixture.restart();
            let after = of_first(&fixture.pass());
            prop_assert!(after.is_subset(&before), "{before:?} became {after:?}");
            prop_assert!(has_tiers || (after == before && fixture.writes == store), "{before:?} became {after:?}");
            // The history goes on where it was.
            (fixture.store, fixture.writes) = (maps, store);
            fixture.restart();
            results.into_iter().for_each(|(last, verdict)| fixture.verdict(last, Some(verdict)));
        }
    }
}

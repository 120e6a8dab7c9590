//! Malformed objects beside well-formed ones: nothing panics, the promises hold, the well-formed Services are served
//! as if alone, and each dropped part has a warning. `PROPTEST_CASES` sets the number of cases.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use lb_agent::reconcile::{PassReport, Reconciler};
use lb_common::{FrontendKey, Name};
use lb_core::{
    event::{Event, Object, ObjectKind},
    model::{Settings, claims::Precedence},
    objects::{Key, Service},
    spec::PortKey,
    store::{Limits, MemoryStore},
    warning::{ObjectRef, Warning},
};
use lb_sources::{api, convert::ApiObject, yaml};
use proptest::{collection::vec, prelude::*, test_runner::TestCaseResult};
use serde_json::Value;

use crate::content::{Content, check_consistent, content};
use crate::malformed::{self, GOOD, NODE};

/// The objects at one time, the addresses of the node, and true if the agent restarts before.
#[derive(Clone)]
struct Sample {
    objects: Vec<Object>,
    /// Texts of the malformed objects.
    texts: Vec<String>,
    /// Texts that were refused, after the error.
    errors: Vec<String>,
    addresses: Vec<IpAddr>,
    restart: bool,
}

impl fmt::Debug for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "addresses: {:?}, restart: {}", self.addresses, self.restart)?;
        self.texts.iter().try_for_each(|text| writeln!(f, "---\n{text}"))
    }
}

/// The source of an object.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// In a file, as JSON.
    Json,
    /// In a file, as YAML.
    Yaml,
    /// From an API server that fills in no defaults.
    Api,
}

impl Form {
    fn write(self, value: &Value) -> String {
        match self {
            Self::Json | Self::Api => value.to_string(),
            Self::Yaml => serde_saphyr::to_string(value).expect("every value has a text"),
        }
    }

    /// Reads the objects in a text; none if the API's client would refuse it.
    fn read(self, text: &str) -> Option<Result<Vec<Object>, yaml::ParseError>> {
        fn convert<T: ApiObject>(value: Value) -> Option<Result<Vec<Object>, yaml::ParseError>> {
            let object: T = serde_json::from_value(value).ok()?;
            Some(Ok(object.convert(None).into_iter().collect()))
        }
        if !matches!(self, Self::Api) {
            return Some(yaml::parse(text, None));
        }
        let value: Value = serde_json::from_str(text).expect("JSON, as written");
        match value["kind"].as_str()? {
            "Service" => convert::<api::Service>(value),
            "EndpointSlice" => convert::<api::EndpointSlice>(value),
            "Endpoints" => convert::<api::Endpoints>(value),
            _ => convert::<api::Node>(value),
        }
    }
}

fn sample() -> impl Strategy<Value = Sample> {
    let addresses = prop::sample::subsequence(vec!["192.0.2.9", "127.0.0.1", "10.0.0.3", "::1", "fd00::1"], 0..4);
    let form = prop_oneof![Just(Form::Json), Just(Form::Yaml), Just(Form::Api)];
    (vec((malformed::object(), form), 0..9), addresses, any::<bool>()).prop_map(|(malformed, addresses, restart)| {
        let (mut objects, mut texts, mut errors) = (read(&malformed::well_formed()), Vec::new(), Vec::new());
        for (value, form) in malformed {
            let text = form.write(&value);
            match form.read(&text) {
                Some(Ok(read)) => {
                    objects.extend(read);
                    texts.push(text);
                }
                None => {}
                Some(Err(error)) => errors.push(format!("{error}\n{text}")),
            }
        }
        let addresses = addresses.into_iter().map(|text| text.parse().expect("an address")).collect();
        Sample { objects, texts, errors, addresses, restart }
    })
}

fn read(values: &[Value]) -> Vec<Object> {
    values.iter().flat_map(|value| yaml::parse(&value.to_string(), None).expect("well-formed objects")).collect()
}

impl Sample {
    /// Objects without addresses of the node.
    fn of(objects: Vec<Object>) -> Self {
        Self { objects, texts: Vec::new(), errors: Vec::new(), addresses: Vec::new(), restart: false }
    }

    fn events(&self) -> Vec<Event> {
        let of = |kind| self.objects.iter().filter(|object| object.kind() == kind).cloned().collect();
        let addresses = Event::NodeAddresses(self.addresses.iter().copied().collect());
        ObjectKind::ALL.into_iter().map(|kind| Event::Replace(kind, of(kind))).chain([addresses]).collect()
    }

    /// Returns the Services by key; of two with one key the last counts.
    fn services(&self) -> BTreeMap<&Key, &Service> {
        let all = self.objects.iter().filter_map(|object| match object {
            Object::Service(service) => Some((&service.key, service)),
            _ => None,
        });
        all.collect()
    }
}

fn reconciler(store: MemoryStore) -> Reconciler<MemoryStore> {
    Reconciler::new(store, NODE, Settings::default())
}

fn settle(reconciler: &mut Reconciler<MemoryStore>, state: &Sample) -> PassReport {
    reconciler.handle(state.events());
    let report = reconciler.pass();
    assert!(report.failure.is_none() && report.waiting.is_empty(), "{report:?}");
    check_consistent(&reconciler.store().dump);
    report
}

/// Returns a reconciler that has seen nothing but `state`.
fn fresh(state: &Sample) -> Reconciler<MemoryStore> {
    let mut reconciler = reconciler(MemoryStore::default());
    settle(&mut reconciler, state);
    reconciler
}

fn is_well_formed(key: &Key) -> bool {
    key.namespace() == "default" && key.name().starts_with(GOOD)
}

/// The maps hold names as text of a fixed length, by which each must be found again.
fn check_names(content: &Content) -> TestCaseResult {
    for PortKey { service, name, .. } in content.keys() {
        for text in [service.namespace(), service.name(), name] {
            let stored = Name::new(text).map(|name| name.to_string());
            prop_assert_eq!(stored.as_deref(), Some(text), "the maps hold another name");
        }
    }
    Ok(())
}

/// Returns the precedence of a Service for a frontend that several ask for: the least owns it.
fn rank(service: &Service, frontend: &FrontendKey) -> (Precedence, i64, Key) {
    let has = |ips: &[std::net::IpAddr]| ips.iter().any(|&ip| lb_common::Addr::from(ip) == frontend.addr);
    let right = if has(&service.cluster_ips) || frontend.addr.is_unspecified() {
        Precedence::Allotted
    } else if has(&service.ingress_ips) {
        Precedence::Assigned
    } else {
        Precedence::Claimed
    };
    (right, service.created.unwrap_or(i64::MAX), service.key.clone())
}

/// Checks that well-formed Services are served as if alone, but for frontends that an older Service owns.
fn check_well_formed(state: &Sample, now: &Content, alone: &Content) -> TestCaseResult {
    let services = state.services();
    let rank = |key: &Key, frontend: &FrontendKey| rank(services[key], frontend);
    let owners: BTreeMap<FrontendKey, &Key> = now
        .iter()
        .flat_map(|(key, port)| port.frontends.keys().map(move |frontend| (*frontend, &key.service)))
        .collect();
    for (key, wanted) in alone {
        let have = now.get(key);
        for frontend in wanted.frontends.keys() {
            let owner = owners.get(frontend).copied();
            let older = owner.is_some_and(|owner| rank(owner, frontend) < rank(&key.service, frontend));
            let owned = have.is_some_and(|have| have.frontends.contains_key(frontend));
            prop_assert!(owned || older, "{} lost {} to {:?}", key, frontend, owner);
        }
        if let Some(have) = have {
            prop_assert_eq!((&have.lists, have.flags), (&wanted.lists, wanted.flags), "{}", key);
        }
    }
    for (key, have) in now.iter().filter(|(key, _)| is_well_formed(&key.service)) {
        let wanted = alone.get(key).map(|port| &port.frontends);
        prop_assert!(wanted.is_some_and(|wanted| have.frontends.keys().all(|key| wanted.contains_key(key))), "{}", key);
    }
    Ok(())
}

/// Checks invariant I6 from the objects: no younger Service owns a cluster IP of a Service that is served.
fn check_owners(state: &Sample, now: &Content) -> TestCaseResult {
    let services = state.services();
    let rank = |key: &Key, frontend: &FrontendKey| rank(services[key], frontend);
    for (key, port) in now {
        for frontend in port.frontends.keys() {
            for (other, service) in &services {
                let served = |own: &&lb_core::objects::ServicePort| {
                    let first = service.ports.iter().find(|other| (&other.name, other.proto) == (&own.name, own.proto));
                    first == Some(*own)
                        && now
                            .keys()
                            .any(|key| key.service == **other && key.name == own.name && key.proto == own.proto)
                };
                let asks = service.cluster_ips.iter().any(|&ip| lb_common::Addr::from(ip) == frontend.addr)
                    && service
                        .ports
                        .iter()
                        .filter(served)
                        .any(|own| FrontendKey::new(frontend.addr, own.port.get(), own.proto) == *frontend);
                let is_first = || rank(&key.service, frontend) <= rank(other, frontend);
                prop_assert!(!asks || is_first(), "{} has {} of {}", key, frontend, other);
            }
        }
    }
    Ok(())
}

/// Checks that each problem has one warning, with its cure.
fn check_warnings(state: &Sample, reconciler: &Reconciler<MemoryStore>) -> TestCaseResult {
    let services = state.services();
    let dump = &reconciler.store().dump;
    for (key, warnings) in reconciler.warnings() {
        prop_assert!(services.contains_key(key), "a warning for {}, which does not exist", key);
        let distinct: BTreeSet<_> = warnings.iter().collect();
        prop_assert_eq!(distinct.len(), warnings.len(), "{}: {:#?}", key, warnings);
        prop_assert!(warnings.len() < 60, "{} warnings for {}", warnings.len(), key);
        for warning in warnings.iter().map(ToString::to_string) {
            prop_assert!(warning.contains("; "), "no cure: {}", warning);
            prop_assert!(!warning.contains(|c: char| c.is_control()), "{:?}", warning);
            prop_assert!(warning.len() < 1000, "{}", warning);
        }
    }
    let none = Vec::new();
    for (key, service) in &services {
        let warnings = reconciler.warnings().get(*key).unwrap_or(&none);
        for problem in &service.problems {
            let warning = Warning::InvalidValue { object: None, problem: problem.clone() };
            prop_assert!(warnings.contains(&warning), "{}: {} is not in {:#?}", key, problem, warnings);
        }
        if service.exempt.is_some() {
            continue;
        }
        let ips = || service.cluster_ips.iter().chain(&service.external_ips).chain(&service.ingress_ips);
        let asked: BTreeSet<_> =
            service.ports.iter().flat_map(|port| ips().map(move |ip| (*ip, port.port, port.proto))).collect();
        let node_ports = |frontend: &&FrontendKey| !frontend.addr.to_ip().is_unspecified() && !frontend.is_address();
        let owner = |id: &u32| dump.names.get(id).is_some_and(|port| port.service == **key);
        let have = dump.frontends.iter().filter(|(_, frontend)| owner(&frontend.service)).map(|(key, _)| key);
        let have = have.filter(node_ports).count();
        prop_assert!(have == asked.len() && have > 0 || !warnings.is_empty(), "{}: {} of {:?}", key, have, asked);
    }
    for object in &state.objects {
        let Object::EndpointSlice(slice) = object else { continue };
        let Some(service) = slice.service.as_ref().filter(|key| services.contains_key(key)) else { continue };
        let known = reconciler.world().view(service).is_some_and(|view| view.slices.iter().any(|own| **own == *slice));
        let warnings = reconciler.warnings().get(service).unwrap_or(&none);
        let object = ObjectRef::EndpointSlice(slice.key.clone());
        let is_warned = warnings.iter().any(|warning| warning.object() == Some(&object));
        prop_assert!(!known || slice.problems.is_empty() || is_warned, "{:?} not in {:#?}", slice.problems, warnings);
    }
    Ok(())
}

/// Checks that each Service has an explanation.
fn check_explained(state: &Sample, reconciler: &Reconciler<MemoryStore>) -> TestCaseResult {
    for key in state.services().keys() {
        let explanation = reconciler.explain(key);
        prop_assert!(explanation.is_some(), "{}", key);
        let text = explanation.as_ref().map(ToString::to_string).unwrap_or_default();
        prop_assert!(text.starts_with("Service "), "{}", text);
        prop_assert!(serde_json::to_string(&explanation).is_ok());
    }
    Ok(())
}

fn check_errors(state: &Sample) -> TestCaseResult {
    for error in &state.errors {
        prop_assert!(error.starts_with("document 1, line "), "{}", error);
        let line = error.trim_start_matches("document 1, line ").split(':').next().and_then(|line| line.parse().ok());
        prop_assert!(line.is_some_and(|line: usize| line >= 1 && line < error.lines().count()), "{}", error);
    }
    Ok(())
}

fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(cases), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(192))]

    #[test]
    fn the_promises_hold_beside_malformed_objects(states in vec(sample(), 1..4)) {
        let alone = Sample::of(read(&malformed::well_formed()));
        let alone = content(&fresh(&alone).store().dump);
        let mut reconciler = reconciler(MemoryStore::default());
        for state in &states {
            check_errors(state)?;
            if state.restart {
                reconciler = self::reconciler(reconciler.into_store());
            }
            settle(&mut reconciler, state);
            let now = content(&reconciler.store().dump);
            let fresh = fresh(state);
            prop_assert_eq!(&now, &content(&fresh.store().dump));
            prop_assert_eq!(reconciler.warnings(), fresh.warnings());
            check_names(&now)?;
            check_well_formed(state, &now, &alone)?;
            check_owners(state, &now)?;
            check_warnings(state, &reconciler)?;
            check_explained(state, &reconciler)?;
            // Invariants I2 and I4.
            prop_assert_eq!(reconciler.pass().writes, 0);
            reconciler.resync();
            prop_assert_eq!(reconciler.preview().expect("a dump").ops, vec![]);
            let mut again = self::reconciler(MemoryStore::holding(reconciler.store().dump.clone(), Limits::DEFAULT));
            prop_assert_eq!(settle(&mut again, state).writes, 0);
        }
    }

    #[test]
    fn a_service_without_room_keeps_its_old_version_beside_malformed_objects(
        states in vec(sample(), 1..4), frontends in 1_usize..24, services in 1_usize..12, slots in 1_usize..30,
    ) {
        let limits = Limits { frontends, services, slots, backends: slots, ..Limits::DEFAULT };
        let mut reconciler = reconciler(MemoryStore::new(limits));
        let mut old = Content::new();
        for state in &states {
            let report = settle(&mut reconciler, state);
            let (now, wanted) = (content(&reconciler.store().dump), content(&fresh(state).store().dump));
            for key in wanted.keys().chain(now.keys()) {
                let refused = report.refused.iter().any(|refused| refused.service == key.service);
                let of = |content: &Content| content.get(key).map(|port| port.lists.clone());
                prop_assert_eq!(of(&now), of(if refused { &old } else { &wanted }), "{} (refused: {})", key, refused);
            }
            prop_assert_eq!(reconciler.pass().writes, 0);
            old = now;
        }
    }
}

/// Claims are where Services meet: thousands of claims to one address must not take long.
#[test]
fn the_oldest_of_thousands_of_services_owns_an_address() {
    let service = |index: i64, created: i64| {
        let key = Key::new("default", &format!("s{index:04}"));
        let ports = [lb_core::objects::ServicePort::new("", lb_common::Proto::Tcp, 80.try_into().expect("not 0"))];
        let cluster_ips = vec!["10.96.0.1".parse().expect("an address")];
        Object::Service(Service { created: Some(created), cluster_ips, ports: ports.into(), ..Service::new(key) })
    };
    const COUNT: i64 = 3000;
    for oldest_last in [false, true] {
        let created = |index| if oldest_last { COUNT - index } else { index };
        let mut reconciler = reconciler(MemoryStore::default());
        let objects = (0..COUNT).map(|index| service(index, created(index))).collect();
        let mut state = Sample::of(objects);
        for _ in 0..3 {
            settle(&mut reconciler, &state);
            let oldest = if oldest_last { state.objects.pop() } else { Some(state.objects.remove(0)) };
            let Some(Object::Service(oldest)) = oldest else { panic!("a Service") };
            let owner = reconciler.store().dump.names.values().map(|port| port.service.clone()).collect::<Vec<_>>();
            assert_eq!(owner, std::slice::from_ref(&oldest.key));
            let others = state.services();
            let names = |key: &Key| {
                reconciler.warnings()[key].iter().any(|warning| warning.to_string().contains(&oldest.key.to_string()))
            };
            assert!(others.into_keys().all(names));
        }
    }
}

//! Pools of MetalLB and of Cilium's LB IPAM as AddressPools, with a note for each value that has no counterpart there.
//! Objects of other kinds are ignored, but for those with which the result can be tried: Services, Nodes and the like.

mod cilium;
mod metallb;
mod ranges;
mod services;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::{
    api,
    convert::{NAMESPACE_NAME, address_pool, key, node_addresses, service_cidr},
    kubernetes::load_balancers::{AddressEvent, BalancerPool, BalancerService, Change, balancer_service},
    yaml::{self, ParseError},
};
use lb_core::{label_selector::Labels, objects::Key};

/// The result of reading objects of other controllers.
#[derive(Debug, Default)]
pub struct Import {
    /// AddressPools, in the order of the pools that were read.
    pub pools: Vec<Value>,
    /// Notes, in the order of the objects.
    pub notes: Vec<Note>,
    /// The pools, and the objects that were read, as the controller `beeline lb` gets them.
    pub events: Vec<AddressEvent>,
}

/// A note on an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// Weight.
    pub severity: Severity,
    /// Kind, namespace and name of the object.
    pub object: String,
    /// Text, with the cure.
    pub text: String,
}

/// Weight of a note.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// Has its place elsewhere.
    Note,
    /// Would act otherwise after the import.
    Error,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Error => "error",
        };
        write!(f, "{severity}: {}: {}", self.object, self.text)
    }
}

/// Reads objects in YAML or JSON, several documents and lists among them.
///
/// # Errors
/// If the text is neither.
pub fn import(text: &str) -> Result<Import, ParseError> {
    let mut reader = Reader::default();
    for object in yaml::values(text)? {
        reader.read(&object);
    }
    Ok(reader.finish())
}

/// A pool while it is converted.
#[derive(Debug, Default)]
struct Pool {
    addresses: Vec<String>,
    is_on_request: bool,
    priority: Option<u32>,
    namespace_selectors: Vec<Value>,
    service_selectors: Vec<Value>,
}

impl Pool {
    fn into_object(self, name: &str) -> Value {
        let mut spec = Map::new();
        spec.insert("addresses".to_owned(), self.addresses.into());
        if self.is_on_request {
            spec.insert("allotment".to_owned(), "OnRequest".into());
        }
        spec.extend(self.priority.map(|priority| ("priority".to_owned(), priority.into())));
        for (field, selectors) in
            [("namespaceSelectors", self.namespace_selectors), ("serviceSelectors", self.service_selectors)]
        {
            if !selectors.is_empty() {
                spec.insert(field.to_owned(), selectors.into());
            }
        }
        json!({
            "apiVersion": "beeline.io/v1alpha1", "kind": "AddressPool", "metadata": {"name": name},
            "spec": Value::Object(spec),
        })
    }
}

/// Notes on one object.
struct Notes<'a> {
    object: String,
    all: &'a mut Vec<Note>,
}

impl Notes<'_> {
    fn add(&mut self, severity: Severity, text: String) {
        self.all.push(Note { severity, object: self.object.clone(), text });
    }

    fn note(&mut self, text: impl Into<String>) {
        self.add(Severity::Note, text.into());
    }

    fn error(&mut self, text: impl Into<String>) {
        self.add(Severity::Error, text.into());
    }

    /// Adds an error for each field that this version does not know.
    fn unknown(&mut self, place: &str, fields: &BTreeMap<String, Value>) {
        for (field, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            self.error(format!(
                "{place}.{field} {value}: unknown, and left out; see what it is for, and do that by hand"
            ));
        }
    }

    /// Decodes the spec; the default of a wrong one.
    fn spec<T: Default + DeserializeOwned>(&mut self, object: &Value) -> T {
        match object.get("spec") {
            None | Some(Value::Null) => T::default(),
            Some(spec) => T::deserialize(spec).unwrap_or_else(|error| {
                self.error(format!("spec: {error}; fix it, and import again"));
                T::default()
            }),
        }
    }
}

/// Objects that were read.
#[derive(Default)]
struct Reader {
    pools: Vec<Value>,
    /// The object that each pool comes from, by name.
    names: BTreeMap<String, String>,
    notes: Vec<Note>,
    services: BTreeMap<Key, BalancerService>,
    nodes: BTreeMap<Key, BTreeSet<IpAddr>>,
    namespaces: BTreeMap<Key, Labels>,
    service_ranges: BTreeMap<Key, BTreeSet<IpNet>>,
}

impl Reader {
    fn read(&mut self, object: &Value) {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let place = match text("/metadata/namespace") {
            "" => name.to_owned(),
            namespace => format!("{namespace}/{name}"),
        };
        let mut notes = Notes { object: format!("{kind} {place}"), all: &mut self.notes };
        match (group, kind) {
            ("metallb.io", "IPAddressPool" | "AddressPool") => {
                let pool = metallb::pool(object, &mut notes);
                self.add_pool(name, format!("{kind} {place}"), pool);
            }
            ("metallb.io", _) => metallb::advise(kind, object, &mut notes),
            ("cilium.io", "CiliumLoadBalancerIPPool") => {
                let pool = cilium::pool(object, &mut notes);
                self.add_pool(name, format!("{kind} {place}"), pool);
            }
            ("cilium.io", _) => cilium::advise(kind, &mut notes),
            ("", "ConfigMap") => metallb::advise_config_map(object, &mut notes),
            ("", "Service") => {
                let Some(mut service) = decode::<api::Service>(object, &mut notes) else { return };
                service.metadata.namespace.get_or_insert_with(|| "default".to_owned());
                services::advise(&service, &mut notes);
                self.services.extend(balancer_service(&service));
            }
            ("", "Node") => {
                let node: Option<api::Node> = decode(object, &mut notes);
                self.nodes.extend(node.map(|node| (key(&node.metadata), node_addresses(&node))));
            }
            ("", "Namespace") => {
                let namespace: Option<api::Namespace> = decode(object, &mut notes);
                let labels = |namespace: api::Namespace| {
                    (key(&namespace.metadata), namespace.metadata.labels.unwrap_or_default())
                };
                self.namespaces.extend(namespace.map(labels));
            }
            ("networking.k8s.io", "ServiceCIDR") => {
                let ranges: Option<api::ServiceCIDR> = decode(object, &mut notes);
                let ranges = ranges.map(|object| (key(&object.metadata), service_cidr(&object).into_iter().collect()));
                self.service_ranges.extend(ranges);
            }
            _ => {}
        }
    }

    fn add_pool(&mut self, name: &str, from: String, pool: Pool) {
        let pool = pool.into_object(name);
        if let Some(other) = self.names.get(name) {
            if self.pools.contains(&pool) {
                return;
            }
            let text = format!("left out, as {other} has the same name; rename one, and what asks for it by name");
            self.notes.push(Note { severity: Severity::Error, object: from, text });
            return;
        }
        self.names.insert(name.to_owned(), from);
        self.pools.push(pool);
    }

    fn finish(mut self) -> Import {
        // The API server gives each namespace this label.
        for key in self.services.keys() {
            self.namespaces.entry(Key::new("", key.namespace())).or_default();
        }
        for (key, labels) in &mut self.namespaces {
            labels.entry(NAMESPACE_NAME.to_owned()).or_insert_with(|| key.name().to_owned());
        }
        let mut pools = Vec::new();
        for object in &self.pools {
            let from = object.pointer("/metadata/name").and_then(Value::as_str).and_then(|name| self.names.get(name));
            let mut notes = Notes { object: from.cloned().unwrap_or_default(), all: &mut self.notes };
            let Some(pool) = decode::<api::AddressPool>(object, &mut notes) else { continue };
            let (key, pool) = (key(&pool.metadata), address_pool(&pool));
            for problem in &pool.problems {
                notes.error(format!("as AddressPool: {problem}"));
            }
            pools.push((key, BalancerPool { pool, status: None }));
        }
        let events = vec![
            AddressEvent::Pool(Change::Listed(pools)),
            AddressEvent::Node(Change::Listed(self.nodes.into_iter().collect())),
            AddressEvent::Namespace(Change::Listed(self.namespaces.into_iter().collect())),
            AddressEvent::ServiceRanges(Change::Listed(self.service_ranges.into_iter().collect())),
            AddressEvent::Service(Change::Listed(self.services.into_iter().collect())),
        ];
        Import { pools: self.pools, notes: self.notes, events }
    }
}

/// Decodes an object; None, with an error, if a field has a wrong type.
fn decode<T: DeserializeOwned>(object: &Value, notes: &mut Notes<'_>) -> Option<T> {
    T::deserialize(object).map_err(|error| notes.error(format!("{error}; fix it, and import again"))).ok()
}

//! Parsing of a file into objects: YAML or JSON, several documents, the kinds that Beeline reads and lists of them. A
//! file is read as a whole or not at all; an error names document and line.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::Value;
use serde_saphyr::Spanned;

use super::{
    api::{self, EndpointSlice, Endpoints, Namespace, Node, Pod, Service},
    convert::{ApiObject, BalancerClass, NETNS, address_pool, address_request},
};
use lb_core::{
    allot::{AddressPool, AddressRequest},
    event::{Object, ObjectKind},
    label_selector::Labels,
    objects::Key,
};

/// Error of a file, with its position.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("document {document}, line {line}: {reason}")]
pub struct ParseError {
    /// Number of the document, from 1.
    pub document: usize,
    /// Line in the file, from 1.
    pub line: usize,
    /// Reason, with its cure.
    pub reason: String,
}

/// The content of a file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FileContent {
    /// Objects that Services consist of, in order.
    pub objects: Vec<Object>,
    /// Pools and requests for load balancer addresses.
    pub addresses: AddressContent,
}

/// Objects of a file that bear on load balancer addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AddressContent {
    /// Pools, in order.
    pub pools: Vec<AddressPool>,
    /// Services of type LoadBalancer, in order, each with the controller that it names.
    pub requests: Vec<(BalancerClass, AddressRequest)>,
    /// Labels of Namespaces, in order.
    pub namespaces: Vec<(Key, Labels)>,
}

/// Parses all objects of a file, in order. `proxy_name` is the value of `--service-proxy-name`.
///
/// # Errors
/// The first error of the file.
pub fn parse(text: &str, proxy_name: Option<&str>) -> Result<Vec<Object>, ParseError> {
    parse_all(text, proxy_name).map(|content| content.objects)
}

/// Parses all objects of a file, in order, pools of addresses among them. `proxy_name` is the value of
/// `--service-proxy-name`.
///
/// # Errors
/// The first error of the file.
pub fn parse_all(text: &str, proxy_name: Option<&str>) -> Result<FileContent, ParseError> {
    let mut content = FileContent::default();
    for (i, document) in documents(text).into_iter().enumerate() {
        let failed = match value(document.text) {
            Ok(value) => add(value, &mut content, proxy_name).err(),
            Err(_) => Some(Failure { item: None, reason: None, reread: |text| read::<Value>(text).map(drop) }),
        };
        if let Some(failure) = failed {
            let (line, reason) = locate(&document, failure);
            return Err(ParseError { document: i + 1, line, reason });
        }
    }
    Ok(content)
}

/// Parses all documents of a text, in order; a list becomes its items.
///
/// # Errors
/// The first error of the text.
pub(crate) fn values(text: &str) -> Result<Vec<Value>, ParseError> {
    let mut values = Vec::new();
    for (i, document) in documents(text).into_iter().enumerate() {
        let parsed = value(document.text);
        let parsed =
            parsed.map_err(|_| Failure { item: None, reason: None, reread: |text| read::<Value>(text).map(drop) });
        match parsed {
            Ok(Value::Object(mut object)) => {
                let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
                let Some(element) = kind.strip_suffix("List").map(str::to_owned) else {
                    values.push(Value::Object(object));
                    continue;
                };
                let api_version = object.remove("apiVersion").unwrap_or_default();
                let Some(Value::Array(items)) = object.remove("items") else { continue };
                values.extend(items.into_iter().map(|mut item| {
                    // The items of a typed list may omit apiVersion and kind.
                    if let Some(item) = item.as_object_mut().filter(|_| !element.is_empty()) {
                        item.entry("apiVersion").or_insert_with(|| api_version.clone());
                        item.entry("kind").or_insert_with(|| element.as_str().into());
                    }
                    item
                }));
            }
            Ok(_) => {}
            Err(failure) => {
                let (line, reason) = locate(&document, failure);
                return Err(ParseError { document: i + 1, line, reason });
            }
        }
    }
    Ok(values)
}

/// Parses a document. JSON is YAML too, but its own parser is many times faster; the YAML parser explains or accepts
/// the rest.
fn value(text: &str) -> Result<Value, Fault> {
    let json = text.starts_with('{').then(|| serde_json::from_str(text));
    json.and_then(Result::ok).map_or_else(|| read::<Value>(text), Ok)
}

/// A document of a file.
struct Document<'a> {
    /// Line of its beginning in the file, from 1.
    first_line: usize,
    text: &'a str,
}

/// Splits at the lines that begin with `---`: YAML allows them nowhere else at the start of a line (YAML 1.2, 9.1.2).
/// Documents without content are left out.
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut first_line, mut at) = (0, 1, 0);
    let mut take = |start: usize, end: usize, first_line: usize| {
        let text = &text[start..end];
        if text.lines().any(is_content) {
            documents.push(Document { first_line, text });
        }
    };
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marker && at > start {
            take(start, at, first_line);
            (start, first_line) = (at, i + 1);
        }
        at += line.len();
    }
    take(start, at, first_line);
    documents
}

/// Deepest nesting of a document. Kubernetes objects, schemas of custom resources included, stay far below.
const MAX_DEPTH: usize = 64;
/// Most values that the aliases of a document may repeat.
const MAX_REPEATED: usize = 20_000;
/// Most octets of text in repeated values.
const MAX_REPEATED_BYTES: usize = 1 << 20;

/// Line and reason.
type Fault = (usize, String);

fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Fault> {
    // The files belong to the agent's administrator: no limit of size. But a short text must not cost much more than
    // its length: nesting is limited, since parsing it takes stack, and so are repetitions by aliases. `n` is a string.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_total_scalar_bytes: text.len() + MAX_REPEATED_BYTES,
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_merge_keys: usize::MAX,
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_REPEATED },
        with_snippet: false,
        strict_booleans: true,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(1, |location| usize::try_from(location.line()).unwrap_or(usize::MAX));
        (line, cured(&error))
    })
}

/// Formats a parser's error with its cure.
fn cured(error: &impl std::fmt::Display) -> String {
    format!("{error}; fix or remove it")
}

/// Error in a document, before its line is known.
struct Failure {
    /// Index of the item, in a list.
    item: Option<usize>,
    /// Reason; None if `reread` returns a better one.
    reason: Option<String>,
    /// Parses the document again as its kind, to find the line.
    reread: fn(&str) -> Result<(), Fault>,
}

/// Adds the object, or the items of the list, that `value` holds.
fn add(value: Value, content: &mut FileContent, proxy_name: Option<&str>) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct List {
        items: Option<Vec<Value>>,
    }
    let (api_version, kind) = (string(&value, "apiVersion"), string(&value, "kind"));
    match (api_version.as_str(), kind.as_str()) {
        ("", _) => {
            Err(Failure { item: None, reason: Some("apiVersion: missing; add it".to_owned()), reread: |_| Ok(()) })
        }
        (_, "") => Err(Failure { item: None, reason: Some("kind: missing; add it".to_owned()), reread: |_| Ok(()) }),
        ("v1", "List" | "ServiceList" | "EndpointsList" | "NodeList" | "PodList" | "NamespaceList")
        | ("discovery.k8s.io/v1", "EndpointSliceList")
        | ("beeline.io/v1alpha1", "AddressPoolList") => {
            let list: List = serde_json::from_value(value).map_err(|error| Failure {
                item: None,
                reason: Some(cured(&error)),
                reread: |_| Ok(()),
            })?;
            for (i, mut item) in list.items.unwrap_or_default().into_iter().enumerate() {
                // The items of a typed list may omit apiVersion and kind.
                let element = kind.strip_suffix("List").filter(|element| !element.is_empty());
                if let (Some(item), Some(element)) = (item.as_object_mut(), element) {
                    item.entry("apiVersion").or_insert_with(|| api_version.as_str().into());
                    item.entry("kind").or_insert_with(|| element.into());
                }
                add(item, content, proxy_name).map_err(|failure| Failure { item: Some(i), ..failure })?;
            }
            Ok(())
        }
        ("v1", "Service") => add_one(value, content, proxy_name, add_request),
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            add_one(value, content, proxy_name, |slice, _| default_slice(slice))
        }
        ("v1", "Endpoints") => add_one::<Endpoints>(value, content, proxy_name, |_, _| {}),
        ("v1", "Node") => add_one::<Node>(value, content, proxy_name, |_, _| {}),
        ("v1", "Pod") => add_one(value, content, proxy_name, |pod, _| name_netns(pod)),
        ("v1", "Namespace") => add_one(value, content, proxy_name, add_labels),
        ("beeline.io/v1alpha1", "AddressPool") => {
            let pool: api::AddressPool = decode(value)?;
            content.addresses.pools.push(address_pool(&pool));
            Ok(())
        }
        _ => {
            tracing::debug!(api_version, kind, "ignored kind");
            Ok(())
        }
    }
}

fn string(value: &Value, field: &str) -> String {
    value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Adds one object, with the defaults of the API server: the namespace, and those of `complete`, which also adds the
/// object's part in load balancer addresses.
fn add_one<T: ApiObject>(
    value: Value,
    content: &mut FileContent,
    proxy_name: Option<&str>,
    complete: fn(&mut T, &mut AddressContent),
) -> Result<(), Failure> {
    let mut object: T = decode(value)?;
    let meta = object.metadata_mut();
    if matches!(T::EVENT_KIND, ObjectKind::Node | ObjectKind::Namespace) {
        meta.namespace = None;
    } else if meta.namespace.as_deref().is_none_or(str::is_empty) {
        meta.namespace = Some("default".to_owned());
    }
    complete(&mut object, &mut content.addresses);
    content.objects.extend(object.convert(proxy_name));
    Ok(())
}

/// Decodes an object, which has a name.
fn decode<T>(value: Value) -> Result<T, Failure>
where
    T: k8s_openapi::Metadata<Ty = ObjectMeta> + DeserializeOwned,
{
    let fail = |reason: String, reread| Failure { item: None, reason: Some(reason), reread };
    let object: T =
        serde_json::from_value(value).map_err(|error| fail(cured(&error), |text| read::<T>(text).map(drop)))?;
    if object.metadata().name.as_deref().is_none_or(str::is_empty) {
        return Err(fail("metadata.name: missing; add it".to_owned(), |_| Ok(())));
    }
    Ok(object)
}

/// Adds the request of a Service of type LoadBalancer.
fn add_request(service: &mut Service, addresses: &mut AddressContent) {
    if let Some(class) = BalancerClass::of(service) {
        addresses.requests.push((class, address_request(service)));
    }
}

/// Adds the labels of a Namespace.
fn add_labels(namespace: &mut Namespace, addresses: &mut AddressContent) {
    addresses.namespaces.push((namespace.key(), namespace.metadata.labels.clone().unwrap_or_default()));
}

/// An absent port name is stored as the empty one (pkg/apis/discovery/v1/defaults.go `SetDefaults_EndpointPort`).
fn default_slice(slice: &mut EndpointSlice) {
    for port in slice.ports.iter_mut().flatten() {
        port.name.get_or_insert_default();
    }
}

/// Fills in the path of the network namespace: files come from the node's administrator, who may choose it.
fn name_netns(pod: &mut Pod) {
    pod.netns = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(NETNS)).cloned();
}

/// Finds the line of a failure in the file: the field's line if parsing the document as its kind fails there again,
/// else the item's line, else the first line with content.
fn locate(document: &Document<'_>, failure: Failure) -> Fault {
    #[derive(Deserialize)]
    struct Items {
        items: Vec<Spanned<IgnoredAny>>,
    }
    // Empty lines in front make its line numbers those of the file.
    let text = "\n".repeat(document.first_line - 1) + document.text;
    let Some(item) = failure.item else {
        let first = text.lines().position(is_content).unwrap_or_default() + 1;
        let (line, reread) = (failure.reread)(&text).err().unwrap_or((first, String::new()));
        return (line, failure.reason.unwrap_or(reread));
    };
    let line = read::<Items>(&text).ok().and_then(|list| list.items.get(item).map(|item| item.referenced.line()));
    let line = line.and_then(|line| usize::try_from(line).ok()).unwrap_or(document.first_line);
    (line, format!("items[{item}]: {}", failure.reason.unwrap_or_default()))
}

/// True if a line holds more than a marker, a directive or a comment.
fn is_content(line: &str) -> bool {
    let line = line.trim_start_matches('\u{feff}').trim();
    let line = line.strip_prefix("---").map_or(line, str::trim_start);
    !(line.is_empty() || line == "..." || line.starts_with(['#', '%']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let name = |object: &Object| match object {
            Object::Service(service) => format!("Service {}", service.key),
            Object::EndpointSlice(slice) => format!("EndpointSlice {}", slice.key),
            Object::Endpoints(endpoints) => format!("Endpoints {}", endpoints.key),
            Object::Node(node) => format!("Node {}", node.name),
            Object::Pod(pod) => format!("Pod {}", pod.key),
            Object::Namespace(namespace) => format!("Namespace {}", namespace.name),
        };
        parse(text, None).unwrap().iter().map(name).collect()
    }

    #[test]
    fn every_kind_is_read_and_other_kinds_are_skipped() {
        let text = "
# a comment is no document
---
apiVersion: v1
kind: Service
metadata: {name: a}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: a}
spec: {selector: {matchLabels: {app: a}}, ports: none}
---
addressType: IPv4
apiVersion: discovery.k8s.io/v1
endpoints: [{addresses: [10.0.0.1]}]
kind: EndpointSlice
metadata: {name: a-1, namespace: ns}
---
---
{\"apiVersion\": \"v1\", \"kind\": \"Endpoints\", \"metadata\": {\"name\": \"a\"}}
--- # the last
apiVersion: v1
kind: Node
metadata: {name: n, namespace: ignored}
---
apiVersion: v1
kind: Namespace
metadata: {name: ns}
---
apiVersion: v1
kind: Pod
metadata: {name: p, annotations: {beeline.io/netns: /run/netns/p}}
...
";
        let read = ["Service default/a", "EndpointSlice ns/a-1", "Endpoints default/a", "Node n", "Namespace ns"];
        assert_eq!(names(text), [&read[..], &["Pod default/p"]].concat());
        let netns = |object: &Object| if let Object::Pod(pod) = object { pod.netns.clone() } else { None };
        assert_eq!(parse(text, None).unwrap().iter().find_map(netns), Some("/run/netns/p".into()));
        assert!(names("").is_empty());
        assert!(names("# nothing\n---\n").is_empty());
        assert_eq!(names("\u{feff}%YAML 1.2\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n}\n"), ["Node n"]);
    }

    #[test]
    fn lists_are_read() {
        let text = "
apiVersion: v1
items:
- {apiVersion: v1, kind: Service, metadata: {name: a}}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {ports: none}}
- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: b}, addressType: IPv4}
kind: List
metadata: {resourceVersion: ''}
---
kind: ServiceList
apiVersion: v1
items: [{metadata: {name: c}}]
---
kind: EndpointSliceList
apiVersion: discovery.k8s.io/v1
items: [{metadata: {name: d}, addressType: IPv4}]
---
kind: EndpointsList
apiVersion: v1
items: [{metadata: {name: e}}]
---
kind: NodeList
apiVersion: v1
items: [{metadata: {name: f}}]
---
kind: NodeList
apiVersion: v1
items: null
";
        assert_eq!(
            names(text),
            [
                "Service default/a",
                "EndpointSlice default/b",
                "Service default/c",
                "EndpointSlice default/d",
                "Endpoints default/e",
                "Node f"
            ]
        );
    }

    #[test]
    fn json_is_read_whatever_its_white_space() {
        let text =
            "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Service\",\n\t\"metadata\": {\n\t\t\"name\": \"a\"\n\t}\n}\n";
        assert_eq!(names(text), ["Service default/a"]);
        let compact = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"ports":[{"port":80}]}}"#;
        assert_eq!(names(compact), ["Service default/a"]);
    }

    #[test]
    fn an_absent_port_name_of_a_slice_is_the_unnamed_port() {
        let text = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a, \
                    labels: {kubernetes.io/service-name: a}}, addressType: IPv4, ports: [{port: 80}]}";
        let objects = parse(text, None).unwrap();
        let [Object::EndpointSlice(slice)] = objects.as_slice() else { panic!("{objects:?}") };
        assert_eq!((&*slice.group.ports[0].name, slice.problems.len()), ("", 0));
    }

    #[test]
    fn an_error_names_document_and_line() {
        let check = |text: &str, document: usize, line: usize, reason: &str| {
            let error = parse(text, None).unwrap_err();
            assert_eq!((error.document, error.line), (document, line), "{text}\n{error}");
            assert!(error.reason.contains(reason), "{error}");
        };
        let good = "apiVersion: v1\nkind: Node\nmetadata: {name: n}\n";
        check(&format!("{good}---\n{good}  bad: [\n"), 2, 8, "");
        check(&format!("# c\n---\n{good}---\nkind: Service\nmetadata: {{name: a}}\n"), 2, 7, "apiVersion: missing");
        check("apiVersion: v1\nmetadata: {name: a}\n", 1, 1, "kind: missing");
        check("just a word\n", 1, 1, "apiVersion: missing");
        check(&format!("{good}---\n\napiVersion: v1\nkind: Service\nmetadata: {{}}\n"), 2, 6, "metadata.name: missing");
        check(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - port: eighty\n",
            1,
            6,
            "eighty",
        );
        check("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports: 80\n", 1, 5, "");
        check(
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Node\n  metadata: {name: n}\n\
             - apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n  spec: {ports: 80}\n",
            1,
            7,
            "items[1]: ",
        );
        check("apiVersion: v1\nkind: Node\nkind: Node\nmetadata: {name: n}\n", 1, 3, "kind");
    }

    #[test]
    fn a_short_text_costs_little_memory_and_stack() {
        let check = |rest: &str, expected: Result<usize, &str>| {
            let text = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: n}}\n{rest}");
            let result = parse(&text, None).map(|objects| objects.len()).map_err(|error| error.to_string());
            match (result, expected) {
                (Err(error), Err(part)) => {
                    assert!(error.starts_with("document 1, line ") && error.contains(part), "{error}");
                }
                (result, expected) => assert_eq!(result, expected.map_err(str::to_owned), "{rest:.100}"),
            }
        };
        // A thread of the agent has 2 MiB of stack.
        let block = |depth: usize| (0..depth).map(|at| format!("{}a:\n", " ".repeat(at))).collect::<String>();
        check(&block(63), Ok(1));
        for depth in [70, 1000, 50_000] {
            check(&format!("x: {}1\n", "- ".repeat(depth)), Err(""));
            check(&format!("x:\n- {}1\n", "- ".repeat(depth)), Err("depth"));
            check(&format!("x: {}{}\n", "[".repeat(depth), "]".repeat(depth)), Err(""));
            check(&format!("x: {}{}\n", "{a: ".repeat(depth), "}".repeat(depth)), Err(""));
            check(&format!("x: {}", "[".repeat(depth)), Err(""));
        }
        check(&block(1000), Err("depth"));
        // Nine times nine times nine …
        let row = |at: usize| format!("  a{}: &a{} [{}]\n", at + 1, at + 1, vec![format!("*a{at}"); 9].join(", "));
        let bomb = |rows: usize| format!("x:\n  a0: &a0 [b]\n{}", (0..rows).map(row).collect::<String>());
        check(&bomb(3), Ok(1));
        check(&bomb(30), Err("alias"));
        let merge = |at: usize| format!("  a{}: &a{} {{k{at}: v, <<: [*a{at}, *a{at}]}}\n", at + 1, at + 1);
        let merges = |rows: usize| format!("x:\n  a0: &a0 {{k: v}}\n{}", (0..rows).map(merge).collect::<String>());
        check(&merges(3), Ok(1));
        check(&merges(30), Err("alias"));
        let long = |times| format!("x: &a {}\ny: [{}]\n", "b".repeat(100_000), vec!["*a"; times].join(", "));
        check(&long(5), Ok(1));
        check(&long(10_000), Err("ScalarBytes"));
    }
}

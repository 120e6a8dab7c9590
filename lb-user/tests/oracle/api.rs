//! A server of lists and watches, as far as kube-proxy needs an API server. It validates nothing and sets no defaults,
//! so that it serves objects as etcd may hold them.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use serde_json::{Value, json};

/// A kind of object, by its path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Resource {
    Services,
    EndpointSlices,
    Nodes,
    ServiceCidrs,
}

const RESOURCES: [(Resource, &str, &str, &str); 4] = [
    (Resource::Services, "/api/v1/services", "v1", "Service"),
    (Resource::EndpointSlices, "/apis/discovery.k8s.io/v1/endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    (Resource::Nodes, "/api/v1/nodes", "v1", "Node"),
    (Resource::ServiceCidrs, "/apis/networking.k8s.io/v1/servicecidrs", "networking.k8s.io/v1", "ServiceCIDR"),
];

/// Selectors of kube-proxy 1.37 (cmd/kube-proxy/app/server.go), which [`is_selected`] follows.
const SELECTORS: [(Resource, &str, &str); 2] = [
    (Resource::Services, "spec.clusterIP!=None", "!service.kubernetes.io/service-proxy-name"),
    (Resource::EndpointSlices, "", "!service.kubernetes.io/headless"),
];

/// True if kube-proxy asks for an object.
fn is_selected(resource: Resource, object: &Value) -> bool {
    let has_label = |name: &str| object["metadata"]["labels"].get(name).is_some();
    match resource {
        Resource::Services => {
            object["spec"]["clusterIP"] != "None" && !has_label("service.kubernetes.io/service-proxy-name")
        }
        Resource::EndpointSlices => !has_label("service.kubernetes.io/headless"),
        Resource::Nodes | Resource::ServiceCidrs => true,
    }
}

/// A change of an object, as a watch reports it.
struct Change {
    version: u64,
    resource: Resource,
    kind: &'static str,
    object: Value,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<(Resource, String), Value>,
    changes: Vec<Change>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server. Its threads end with the process.
pub struct ObjectServer {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl ObjectServer {
    /// Listens at a free port of 127.0.0.1 of this thread's network namespace.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                // A client that goes away ends its thread with an error.
                thread::spawn(move || _ = serve(&stream, &shared));
            }
        });
        Self { shared, address }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes these all objects of a kind. Changes are reported in this order, after those of objects that have gone.
    pub fn replace(&self, resource: Resource, objects: &[Value]) {
        let key = |object: &Value| {
            let name = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
            (resource, name("namespace") + "/" + &name("name"))
        };
        let mut state = self.shared.lock();
        let selected = || objects.iter().filter(|object| is_selected(resource, object));
        let stay: Vec<_> = selected().map(key).collect();
        let gone = state.objects.keys().filter(|key| key.0 == resource && !stay.contains(key));
        for key in gone.cloned().collect::<Vec<_>>() {
            let object = state.objects.remove(&key).expect("its key was listed");
            state.report(resource, "DELETED", object);
        }
        for object in selected() {
            let mut object = object.clone();
            object["metadata"]["resourceVersion"] = json!((state.version + 1).to_string());
            let kind = match state.objects.insert(key(&object), object.clone()) {
                None => "ADDED",
                Some(_) => "MODIFIED",
            };
            state.report(resource, kind, object);
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl State {
    fn report(&mut self, resource: Resource, kind: &'static str, object: Value) {
        self.version += 1;
        self.changes.push(Change { version: self.version, resource, kind, object });
    }

    fn list(&self, resource: Resource) -> Vec<&Value> {
        self.objects.iter().filter(|(key, _)| key.0 == resource).map(|(_, object)| object).collect()
    }
}

/// Answers the requests of a connection.
fn serve(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream.try_clone()?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if header.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        io::copy(&mut reader.by_ref().take(length), &mut io::sink())?;
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let parameter = |name: &str| {
            let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            decoded(value.unwrap_or_default())
        };
        let Some((resource, base, version, kind)) = RESOURCES.into_iter().find(|(_, base, ..)| path.starts_with(base))
        else {
            // Events, which no test reads.
            answer(&mut stream, 404, &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}))?;
            continue;
        };
        if let Some(name) = path.strip_prefix(base).and_then(|rest| rest.strip_prefix('/')) {
            let object = shared.lock().objects.get(&(resource, format!("/{name}"))).cloned();
            match object {
                Some(object) => answer(&mut stream, 200, &object)?,
                None => answer(&mut stream, 404, &json!({"kind": "Status", "apiVersion": "v1", "code": 404}))?,
            }
            continue;
        }
        for (_, field, label) in SELECTORS.into_iter().filter(|(of, ..)| *of == resource) {
            let asked = [parameter("fieldSelector"), parameter("labelSelector")];
            assert_eq!(asked, [field, label], "kube-proxy selects {resource:?} in another way than is_selected");
        }
        if parameter("watch") == "true" || parameter("watch") == "1" {
            let starts_with_objects = parameter("sendInitialEvents") == "true";
            return watch(
                &mut stream,
                shared,
                resource,
                &parameter("resourceVersion"),
                starts_with_objects,
                [version, kind],
            );
        }
        let list = {
            let state = shared.lock();
            let metadata = json!({"resourceVersion": state.version.to_string()});
            json!({
                "kind": format!("{kind}List"), "apiVersion": version, "metadata": metadata,
                "items": state.list(resource),
            })
        };
        answer(&mut stream, 200, &list)?;
    }
}

fn answer(stream: &mut TcpStream, status: u16, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// Sends the changes after a version until the client goes away.
fn watch(
    stream: &mut TcpStream,
    shared: &Shared,
    resource: Resource,
    version: &str,
    starts_with_objects: bool,
    [api_version, kind]: [&str; 2],
) -> io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    let mut send = |event: &Value| {
        let line = event.to_string() + "\n";
        write!(stream, "{:x}\r\n{line}\r\n", line.len())
    };
    let mut seen: u64 = version.parse().unwrap_or(0);
    if starts_with_objects {
        let (objects, now) = {
            let state = shared.lock();
            (state.list(resource).into_iter().cloned().collect::<Vec<_>>(), state.version)
        };
        seen = now;
        for object in objects {
            send(&json!({"type": "ADDED", "object": object}))?;
        }
        let metadata = json!({
            "resourceVersion": now.to_string(), "annotations": {"k8s.io/initial-events-end": "true"},
        });
        let object = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
        send(&json!({"type": "BOOKMARK", "object": object}))?;
    }
    let mut index = 0;
    loop {
        let events: Vec<Value> = {
            let mut state = shared.lock();
            while state.changes.len() == index {
                state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let new = state.changes.iter().skip(index);
            let own = new.filter(|change| change.resource == resource && change.version > seen);
            let events = own.map(|change| json!({"type": change.kind, "object": change.object})).collect();
            index = state.changes.len();
            events
        };
        events.iter().try_for_each(&mut send)?;
    }
}

/// Decodes `%21` and the like.
fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut decoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..2).and_then(|code| u8::from_str_radix(code, 16).ok());
        decoded.push(code.map_or('%', char::from));
        decoded += part.get(2..).unwrap_or_default();
    }
    decoded
}

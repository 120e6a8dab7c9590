//! Nodes that shall announce load balancer addresses on the link, and their addresses, from a watch of the Nodes with a
//! label.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use futures::StreamExt as _;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::sync::watch;

use super::{ErrorChain, WATCH_SECONDS, status};
use crate::{
    api::Node,
    convert::{internal_ips, is_excluded},
};

/// Time until a watch that the server refused is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// The nodes that shall be announcers, with their `InternalIP` addresses.
pub type Announcers = BTreeMap<Arc<str>, Vec<IpAddr>>;

/// Sends the Nodes of the label selector after each change, without Nodes that load balancers leave out. Retries
/// outages without end.
pub async fn follow(client: Client, selector: String, tx: watch::Sender<Option<Announcers>>) {
    let config = watcher::Config {
        label_selector: Some(selector).filter(|selector| !selector.is_empty()),
        timeout: Some(WATCH_SECONDS),
        list_semantic: watcher::ListSemantic::Any,
        ..watcher::Config::default()
    };
    let mut logged = None;
    loop {
        let mut stream = watcher::watcher(Api::<Node>::all(client.clone()), config.clone()).default_backoff().boxed();
        let mut listed = Announcers::new();
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(node)) => insert(&mut listed, &node),
                Ok(watcher::Event::InitDone) => {
                    logged = None;
                    let listed = std::mem::take(&mut listed);
                    tx.send_if_modified(|known| known.replace(listed.clone()).as_ref() != Some(&listed));
                }
                Ok(watcher::Event::Apply(node)) => change(&tx, |known| insert(known, &node)),
                Ok(watcher::Event::Delete(node)) => change(&tx, |known| remove(known, &node)),
                Err(error) => {
                    let code = status(&error);
                    if logged != Some(code) {
                        let error = ErrorChain(&error);
                        tracing::warn!(%error, "the announcers' Nodes cannot be watched, retrying");
                        logged = Some(code);
                    }
                    // A refused watch gives no sign when it is allowed.
                    if let Some(401 | 403) = code {
                        tokio::time::sleep(RETRY).await;
                        break;
                    }
                }
            }
        }
    }
}

fn change(tx: &watch::Sender<Option<Announcers>>, change: impl FnOnce(&mut Announcers)) {
    tx.send_if_modified(|known| {
        let Some(known) = known else { return false };
        let before = known.clone();
        change(known);
        before != *known
    });
}

/// Inserts a node, or removes it if it announces nothing.
fn insert(known: &mut Announcers, node: &Node) {
    if is_excluded(node) {
        return remove(known, node);
    }
    known.insert(node.metadata.name.as_deref().unwrap_or_default().into(), internal_ips(node));
}

fn remove(known: &mut Announcers, node: &Node) {
    known.remove(node.metadata.name.as_deref().unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(labels: &str) -> Node {
        let text = format!(
            "metadata: {{name: n, labels: {labels}}}\nstatus: {{addresses: [{{type: InternalIP, address: 192.0.2.1}}, \
             {{type: ExternalIP, address: 198.51.100.1}}]}}\n"
        );
        serde_saphyr::from_str(&text).expect("a Node")
    }

    #[test]
    fn a_node_that_load_balancers_leave_out_announces_nothing() {
        let mut known = Announcers::new();
        insert(&mut known, &node("{}"));
        assert_eq!(known, [("n".into(), vec![IpAddr::from([192, 0, 2, 1])])].into());
        insert(&mut known, &node("{node.kubernetes.io/exclude-from-external-load-balancers: ''}"));
        assert_eq!(known, Announcers::new());
    }
}

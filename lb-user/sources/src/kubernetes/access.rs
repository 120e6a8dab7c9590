//! Missing permissions: while the API server refuses list or watch of a kind, the agent logs which role to grant,
//! reports the kind to health, and asks again until access is granted. A refused watch gives no sign when access is
//! granted, so it asks by separate requests.

use std::time::Duration;

use kube::{
    Api,
    api::{ListParams, WatchParams},
    runtime::watcher,
};
use tokio::time::Instant;

use super::{ErrorChain, Recovery, Reflector, WatchEnd};
use crate::convert::ApiObject;
use lb_core::event::{Event, ObjectKind};

/// A watch that lived for this long counts as granted.
const GRANTED_AFTER: Duration = Duration::from_secs(5);
/// Time for which a kind that was granted before may be refused before health knows: an API server that has just
/// started may refuse what it grants a moment later.
const GRACE: Duration = Duration::from_secs(60);
const FIRST_DELAY: Duration = Duration::from_millis(500);
const MAX_DELAY: Duration = Duration::from_secs(10);

/// True for a status about the account (unauthorized, forbidden), and not about the request.
pub(super) fn is_refusal(status: Option<u16>) -> bool {
    matches!(status, Some(401 | 403))
}

/// Waits until the kind may be listed and watched with these selectors; an error ends the watch instead. `listed` is
/// the time of the last complete list.
pub(super) async fn wait_for_access<K: ApiObject>(
    reflector: &Reflector,
    config: &watcher::Config,
    refusal: &watcher::Error,
    listed: Option<Instant>,
) -> Result<(), WatchEnd> {
    let start = Instant::now();
    let api = Api::<K>::all(reflector.server.client.clone());
    let grace = if listed.is_some_and(|at| at.elapsed() > GRANTED_AFTER) { GRACE } else { Duration::ZERO };
    let message = super::api_status(refusal).map(|status| status.message.as_str());
    let (mut delay, mut reported, mut is_sent) = (FIRST_DELAY, Vec::new(), false);
    loop {
        let refused = match refused_verbs(&api, config).await {
            Ok(refused) => refused,
            // The server cannot be reached now.
            Err(error) => match reflector.server.outlast(&ErrorChain(&error)).await {
                Recovery::OtherServer => return Err(WatchEnd::ServerLost),
                Recovery::SameServer => reported.clone(),
            },
        };
        if refused != reported {
            match refused.as_slice() {
                [] => tracing::info!(kind = ?K::EVENT_KIND, after = ?start.elapsed(), "may be read now"),
                verbs => tracing::error!(message, "{}", text(verbs, &resource::<K>(), K::EVENT_KIND)),
            }
        }
        if !is_sent && !refused.is_empty() && start.elapsed() >= grace {
            is_sent = true;
            reflector.tx.send(Event::Forbidden(K::EVENT_KIND)).await.map_err(|_| WatchEnd::ReceiverGone)?;
        }
        reported = refused;
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = reflector.tx.closed() => return Err(WatchEnd::ReceiverGone),
        }
        if reported.is_empty() {
            return Ok(());
        }
        delay = (delay * 2).min(MAX_DELAY);
    }
}

/// Asks which verbs the server refuses.
async fn refused_verbs<K: ApiObject>(api: &Api<K>, config: &watcher::Config) -> Result<Vec<&'static str>, kube::Error> {
    let (labels, fields) = (config.label_selector.clone(), config.field_selector.clone());
    let list = ListParams { label_selector: labels.clone(), field_selector: fields.clone(), ..ListParams::default() };
    let watch = WatchParams { label_selector: labels, field_selector: fields, ..WatchParams::default() };
    let list = api.list(&list.limit(1)).await.map(drop);
    // The beginning of the answer is enough; the stream is not read.
    let watch = api.watch(&watch.timeout(1), "0").await.map(drop);
    let mut refused = Vec::new();
    for (verb, answer) in [("list", list), ("watch", watch)] {
        match answer {
            Err(kube::Error::Api(status)) if is_refusal(Some(status.code)) => refused.push(verb),
            // Other statuses (too many requests, internal errors) are no refusal.
            Ok(()) | Err(kube::Error::Api(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(refused)
}

/// Formats the log line: verbs, resource and cure.
fn text(verbs: &[&str], resource: &str, kind: ObjectKind) -> String {
    let effect = match kind {
        _ if ObjectKind::OF_SERVICES.contains(&kind) => "is not healthy",
        ObjectKind::Pod => "keeps the modes and hostPorts of pods as they are",
        _ => "keeps the modes of pods as they are",
    };
    format!(
        "the API server does not let this agent {} {resource}, so it does not learn of changes and {effect}: bind its \
         account to a role that grants it, as deploy/base/rbac.yaml does; the agent retries by itself",
        verbs.join(" and ")
    )
}

/// Returns the resource in kubectl's form.
fn resource<K: ApiObject>() -> String {
    let (path, group) = (K::URL_PATH_SEGMENT, K::GROUP);
    if group.is_empty() { path.to_owned() } else { format!("{path}.{group}") }
}

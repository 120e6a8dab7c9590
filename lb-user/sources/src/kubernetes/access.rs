//! What the agent does while the API server does not let it read a kind: it says what to grant, lets health know, and asks
//! until it may. A watch that is refused says nothing when it is let in again, so the server is asked beside it.

use std::time::Duration;

use kube::{
    Api,
    api::{ListParams, WatchParams},
    runtime::watcher,
};
use tokio::time::Instant;

use super::{Chain, Ended, Feed, Outcome};
use crate::api::Wire;
use lb_core::event::{Event, Kind};

/// A watch that has gone on for so long worked.
const WORKED: Duration = Duration::from_secs(5);
/// For so long a kind that could be read may be refused before health knows: an API server that has just started may refuse
/// what it will grant in a moment.
const GRACE: Duration = Duration::from_secs(60);
const FIRST_ASK: Duration = Duration::from_millis(500);
const LAST_ASK: Duration = Duration::from_secs(10);

/// Whether an answer is about who asks, and not about what is asked.
pub(super) fn is_refusal(status: Option<u16>) -> bool {
    matches!(status, Some(401 | 403))
}

/// Returns when the kind may be listed and watched in this way; with an error when nobody needs it any more. `listed` is when
/// it last was.
pub(super) async fn regain<K: Wire>(
    feed: &Feed,
    config: &watcher::Config,
    refusal: &watcher::Error,
    listed: Option<Instant>,
) -> Result<(), Ended> {
    let start = Instant::now();
    let api = Api::<K>::all(feed.server.client.clone());
    let grace = if listed.is_some_and(|at| at.elapsed() > WORKED) { GRACE } else { Duration::ZERO };
    let said = super::answer(refusal).map(|status| status.message.as_str());
    let (mut delay, mut told, mut is_known) = (FIRST_ASK, Vec::new(), false);
    loop {
        let refused = match ask(&api, config).await {
            Ok(refused) => refused,
            // The way to the server is what is wrong now.
            Err(error) => match feed.server.outlast(&Chain(&error)).await {
                Outcome::Lost => return Err(Ended::ServerLost),
                Outcome::Answers => told.clone(),
            },
        };
        if refused != told {
            match refused.as_slice() {
                [] => tracing::info!(kind = ?K::WHICH, after = ?start.elapsed(), "may be read now"),
                verbs => tracing::error!(said, "{}", text(verbs, &resource::<K>(), K::WHICH)),
            }
        }
        if !is_known && !refused.is_empty() && start.elapsed() >= grace {
            is_known = true;
            feed.tx.send(Event::Forbidden(K::WHICH)).await.map_err(|_| Ended::NobodyListens)?;
        }
        told = refused;
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = feed.tx.closed() => return Err(Ended::NobodyListens),
        }
        if told.is_empty() {
            return Ok(());
        }
        delay = (delay * 2).min(LAST_ASK);
    }
}

/// The verbs that the server refuses.
async fn ask<K: Wire>(api: &Api<K>, config: &watcher::Config) -> Result<Vec<&'static str>, kube::Error> {
    let (labels, fields) = (config.label_selector.clone(), config.field_selector.clone());
    let list = ListParams { label_selector: labels.clone(), field_selector: fields.clone(), ..ListParams::default() };
    let watch = WatchParams { label_selector: labels, field_selector: fields, ..WatchParams::default() };
    let list = api.list(&list.limit(1)).await.map(drop);
    // That it begins says enough; it ends unread.
    let watch = api.watch(&watch.timeout(1), "0").await.map(drop);
    let mut refused = Vec::new();
    for (verb, answer) in [("list", list), ("watch", watch)] {
        match answer {
            Err(kube::Error::Api(status)) if is_refusal(Some(status.code)) => refused.push(verb),
            // Busy, or about to end: it has not said no.
            Ok(()) | Err(kube::Error::Api(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(refused)
}

/// Which verbs, on what, and what to do.
fn text(verbs: &[&str], resource: &str, kind: Kind) -> String {
    let is_needed = Kind::OF_SERVICES.contains(&kind);
    let so = if is_needed { "is not healthy" } else { "lets pods keep the path that they have" };
    format!(
        "the API server does not let this agent {} {resource}, so it does not learn of changes and {so}: bind its account \
         to a role that grants it, as deploy/base/rbac.yaml does; it asks again by itself",
        verbs.join(" and ")
    )
}

/// As kubectl takes it.
fn resource<K: Wire>() -> String {
    let (path, group) = (K::URL_PATH_SEGMENT, K::GROUP);
    if group.is_empty() { path.to_owned() } else { format!("{path}.{group}") }
}

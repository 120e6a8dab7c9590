//! The Lease `beeline-announce` at the API server: the vote of even groups, and the membership in an annotation. Its
//! rules are in `lb_core::announce`; here are requests and the form of the object.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use lb_core::announce::{LeaseRequest, LeaseState, Membership, Node, PERMIT, Time};
use lb_sources::kubernetes::{self, KubernetesOptions};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

/// Name of the Lease.
pub(super) const NAME: &str = "beeline-announce";
/// Annotation with the membership.
const ANNOTATION: &str = "beeline.io/announcers";
/// Timeout of a request: a later answer is of no use to a vote.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout of the search for an API server that answers.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The state of a Lease, with the object whose version it has.
pub(super) type State = LeaseState<Version>;

/// An object, by its version.
#[derive(Clone, Debug)]
pub(super) struct Version(Box<Lease>);

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.0.metadata.resource_version == other.0.metadata.resource_version
            && self.0.metadata.uid == other.0.metadata.uid
    }
}

/// A request, and what it needs.
pub(super) struct Request {
    pub(super) kubernetes: KubernetesOptions,
    /// None after a failure: another server may answer.
    pub(super) client: Option<Client>,
    pub(super) request: LeaseRequest<Version>,
    /// The membership with which to make the Lease; none: it must not be made now.
    pub(super) first: Option<Membership>,
    /// Time before the request.
    pub(super) start: Time,
}

/// The end of a request.
pub(super) struct Answer {
    pub(super) client: Option<Client>,
    /// None: the Lease has changed, or must not be made.
    pub(super) state: Result<Option<State>>,
    pub(super) is_write: bool,
    pub(super) start: Time,
}

/// Performs a request.
pub(super) async fn perform(request: Request) -> Answer {
    let Request { kubernetes, client, request, first, start } = request;
    let is_write = matches!(request, LeaseRequest::Write(_));
    let client = match client {
        Some(client) => client,
        None => match timeout(CONNECT_TIMEOUT, kubernetes::client(&kubernetes)).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Answer { client: None, state: Err(error), is_write, start },
            Err(_) => {
                let state = Err(anyhow::anyhow!("no API server answers"));
                return Answer { client: None, state, is_write, start };
            }
        },
    };
    let leases = Api::<Lease>::namespaced(client.clone(), client.default_namespace());
    let state = match timeout(TIMEOUT, ask(&leases, request, first)).await {
        Ok(state) => state,
        Err(_) => Err(anyhow::anyhow!("no answer in {TIMEOUT:?}")),
    };
    let is_heard = !matches!(&state, Err(error) if !is_refusal(error));
    Answer { client: is_heard.then_some(client), state, is_write, start }
}

/// Reads the group of announcers; none if there is none.
///
/// # Errors
/// If the API server does not answer, or refuses the Lease.
pub async fn read(kubernetes: KubernetesOptions) -> Result<Option<Membership>> {
    let client = timeout(CONNECT_TIMEOUT, kubernetes::client(&kubernetes)).await.context("no API server answers")??;
    let leases = Api::<Lease>::namespaced(client.clone(), client.default_namespace());
    let found = timeout(CONNECT_TIMEOUT, leases.get_opt(NAME)).await.context("no answer")?;
    Ok(found.with_context(|| format!("reading the Lease {NAME}"))?.as_ref().and_then(membership))
}

async fn ask(leases: &Api<Lease>, request: LeaseRequest<Version>, first: Option<Membership>) -> Result<Option<State>> {
    let parameters = PostParams::default();
    let answer = match request {
        LeaseRequest::Read => {
            let found = leases.get_opt(NAME).await.map_err(explained)?;
            match (found, first) {
                (Some(lease), _) => Ok(lease),
                (None, None) => return Ok(None),
                (None, Some(membership)) => {
                    let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
                    let lease = Lease { metadata, ..Lease::default() };
                    let lease = object(LeaseState {
                        version: Version(Box::new(lease)),
                        holder: None,
                        membership: Some(membership),
                    })?;
                    leases.create(&parameters, &lease).await
                }
            }
        }
        LeaseRequest::Write(state) => leases.replace(NAME, &parameters, &object(state)?).await,
    };
    match answer {
        Ok(lease) => Ok(Some(state(lease))),
        // Another announcer was faster, or the Lease was deleted.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
        Err(error) => Err(explained(error)),
    }
}

/// Adds the cure of a refusal.
fn explained(error: kube::Error) -> anyhow::Error {
    let error = anyhow::Error::from(error);
    if is_refusal(&error) {
        return error.context(format!(
            "the API server does not let this agent read and write the Lease {NAME}; bind its account to a role that \
             grants it, as deploy/components/announce does"
        ));
    }
    error.context(format!("asking for the Lease {NAME}"))
}

/// True if the API server refuses the request for lack of a right.
pub(super) fn is_refusal(error: &anyhow::Error) -> bool {
    let is_refusal =
        |error: &kube::Error| matches!(error, kube::Error::Api(status) if matches!(status.code, 401 | 403));
    error.downcast_ref::<kube::Error>().is_some_and(is_refusal)
}

/// The text of a membership.
#[derive(Serialize, Deserialize)]
struct Text {
    version: u64,
    members: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<BTreeSet<String>>,
}

/// Returns the membership in a Lease.
fn membership(lease: &Lease) -> Option<Membership> {
    let text: Text = serde_json::from_str(lease.metadata.annotations.as_ref()?.get(ANNOTATION)?).ok()?;
    let nodes = |names: BTreeSet<String>| names.into_iter().map(Node::from).collect::<BTreeSet<_>>();
    Some(Membership { version: text.version, members: nodes(text.members), next: text.next.map(nodes) })
}

fn state(lease: Lease) -> State {
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
    let holder = holder.filter(|holder| !holder.is_empty()).map(Node::from);
    LeaseState { membership: membership(&lease), holder, version: Version(Box::new(lease)) }
}

/// Returns the object that has this state, at the version that it replaces.
fn object(state: State) -> Result<Lease> {
    let LeaseState { version: Version(before), holder, membership } = state;
    let Lease { mut metadata, spec } = *before;
    if let Some(membership) = membership {
        let names = |nodes: &BTreeSet<Node>| nodes.iter().map(ToString::to_string).collect();
        let Membership { version, members, next } = &membership;
        let text = Text { version: *version, members: names(members), next: next.as_ref().map(names) };
        let text = serde_json::to_string(&text).context("writing the membership")?;
        metadata.annotations.get_or_insert_default().insert(ANNOTATION.to_owned(), text);
    }
    let seconds = i32::try_from(PERMIT.as_secs() + 1).unwrap_or(i32::MAX);
    let spec = LeaseSpec {
        renew_time: holder.is_some().then(|| MicroTime(Timestamp::now())),
        holder_identity: holder.map(|holder| holder.to_string()),
        lease_duration_seconds: Some(seconds),
        ..spec.unwrap_or_default()
    };
    Ok(Lease { metadata, spec: Some(spec) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_read_as_it_was_written_and_keeps_what_it_had() {
        let membership =
            Membership { version: 3, members: ["a".into()].into(), next: Some(["a".into(), "b".into()].into()) };
        let before = Lease {
            metadata: ObjectMeta { resource_version: Some("7".to_owned()), ..ObjectMeta::default() },
            ..Lease::default()
        };
        let wanted = LeaseState {
            version: Version(Box::new(before)),
            holder: Some("a".into()),
            membership: Some(membership.clone()),
        };
        let lease = object(wanted).expect("a Lease");
        assert_eq!(lease.metadata.resource_version.as_deref(), Some("7"), "the version that it replaces");
        let read = state(lease);
        assert_eq!((read.holder.as_deref(), read.membership), (Some("a"), Some(membership)));
        let free = object(LeaseState { version: read.version, holder: None, membership: None }).expect("a Lease");
        let free = state(free);
        assert_eq!((free.holder, free.membership.map(|membership| membership.version)), (None, Some(3)));
    }

    #[test]
    fn a_lease_of_another_program_has_no_membership() {
        let lease = |text: Option<&str>| {
            let annotations = text.map(|text| [(ANNOTATION.to_owned(), text.to_owned())].into());
            Lease { metadata: ObjectMeta { annotations, ..ObjectMeta::default() }, spec: None }
        };
        for text in [None, Some(""), Some("{}"), Some("[1]"), Some(r#"{"version":-1,"members":[]}"#)] {
            assert_eq!(state(lease(text)).membership, None, "{text:?}");
        }
    }
}

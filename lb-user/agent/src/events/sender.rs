//! Asks the API server to make Events, and says once what stands in the way.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Service},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};

use super::{problem::ServiceEvent, schedule::Said};
use lb_sources::kubernetes;

/// How long one question may take.
const ANSWER: Duration = Duration::from_secs(10);

pub(super) struct Sender {
    options: kubernetes::Options,
    /// None before the first problem, and after one that the server did not answer.
    client: Option<Client>,
    /// Whether the log has that it is refused.
    is_refused: bool,
}

impl Sender {
    pub(super) fn new(options: kubernetes::Options) -> Self {
        Self { options, client: None, is_refused: false }
    }

    /// Makes the Event, if it is not there.
    ///
    /// # Errors
    /// When the configuration cannot be read.
    pub(super) async fn send(&mut self, announcement: &ServiceEvent, node: &str) -> Result<Said> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.client.insert(kubernetes::client(&self.options).await?).clone(),
        };
        let answer = tokio::time::timeout(ANSWER, create(client, announcement, node)).await;
        let said = match answer {
            Ok(Ok(said)) => said,
            Ok(Err(kube::Error::Api(status))) => self.meaning(&status, announcement),
            Ok(Err(error)) => {
                tracing::debug!(%error, "no Event could be made");
                // The server may have gone.
                self.client = None;
                Said::Failed
            }
            Err(_) => {
                self.client = None;
                Said::Failed
            }
        };
        tracing::debug!(service = %announcement.service, reason = announcement.warning.reason().name(), ?said, "told by an Event");
        if self.is_refused && matches!(said, Said::New | Said::Known) {
            self.is_refused = false;
            tracing::info!("Events may be made now");
        }
        Ok(said)
    }

    fn meaning(&mut self, status: &kube::core::Status, announcement: &ServiceEvent) -> Said {
        match status.code {
            409 => Said::Known,
            404 => Said::NoService,
            403 if is_going(status) => Said::NoService,
            401 | 403 => {
                if !self.is_refused {
                    self.is_refused = true;
                    tracing::warn!(
                        said = status.message,
                        "the API server does not let this agent create events.events.k8s.io, so that problems of Services stand \
                         in the log only: bind its account to a role that grants it, as deploy/components/events does, or run \
                         without --events; it asks again by itself"
                    );
                }
                Said::Refused
            }
            400 | 422 => {
                tracing::warn!(service = %announcement.service, said = status.message, "the API server takes no such Event");
                Said::Invalid
            }
            _ => {
                tracing::debug!(said = status.message, "no Event could be made");
                Said::Failed
            }
        }
    }
}

/// Whether a refusal is about the namespace, which takes nothing new while it is being deleted.
fn is_going(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

async fn create(client: Client, announcement: &ServiceEvent, node: &str) -> Result<Said, kube::Error> {
    let ServiceEvent { service, warning, .. } = announcement;
    let services = Api::<Service>::namespaced(client.clone(), service.namespace());
    // By list, which the agent may, and from the server's cache.
    let only = ListParams::default().fields(&format!("metadata.name={}", service.name())).match_any();
    let found = services.list_metadata(&only).await?.items.into_iter().next();
    let Some(uid) = found.and_then(|service| service.metadata.uid) else { return Ok(Said::NoService) };
    let event = Event {
        metadata: ObjectMeta {
            name: Some(announcement.name(node, &uid)),
            namespace: Some(service.namespace().to_owned()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        reporting_controller: Some("beeline".to_owned()),
        reporting_instance: Some(node.to_owned()),
        action: Some("Serve".to_owned()),
        reason: Some(warning.reason().name().to_owned()),
        type_: Some("Warning".to_owned()),
        note: Some(announcement.note(node)),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(service.namespace().to_owned()),
            name: Some(service.name().to_owned()),
            uid: Some(uid),
            ..ObjectReference::default()
        }),
        ..Event::default()
    };
    let events = Api::<Event>::namespaced(client, service.namespace());
    events.create(&PostParams::default(), &event).await.map(|_| Said::New)
}

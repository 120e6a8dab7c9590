//! Creation of Events in the API server. A refusal is logged once.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::{
    Resource as _,
    api::{
        core::v1::{ObjectReference, Pod, Service},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};

use super::{problem::ServiceEvent, schedule::Outcome};
use lb_core::{host_ports, objects::Key};
use lb_sources::{api::AddressPool, kubernetes};

/// Timeout of one Event.
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Sender {
    options: kubernetes::KubernetesOptions,
    /// None before the first Event, and after a server did not answer: the next client may choose another.
    client: Option<Client>,
    /// True if the refusal is in the log.
    is_forbidden: bool,
}

impl Sender {
    pub(super) fn new(options: kubernetes::KubernetesOptions) -> Self {
        Self { options, client: None, is_forbidden: false }
    }

    /// Creates the Event, unless it exists.
    ///
    /// # Errors
    /// If the client configuration cannot be read.
    pub(super) async fn send(&mut self, event: &ServiceEvent, node: &str) -> Result<Outcome> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.client.insert(kubernetes::client(&self.options).await?).clone(),
        };
        let outcome = match tokio::time::timeout(TIMEOUT, create(client, event, node)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(kube::Error::Api(status))) => self.refusal(&status, event),
            Ok(Err(error)) => {
                tracing::debug!(%error, "an Event could not be created");
                self.client = None;
                Outcome::Failed
            }
            Err(_) => {
                self.client = None;
                Outcome::Failed
            }
        };
        tracing::debug!(service = %event.service, reason = event.warning.reason().name(), ?outcome, "sent an Event");
        if self.is_forbidden && matches!(outcome, Outcome::Created | Outcome::Exists) {
            self.is_forbidden = false;
            tracing::info!("the API server lets this agent create Events now");
        }
        Ok(outcome)
    }

    /// Classifies an error of the API server, and logs the errors that an operator can mend.
    fn refusal(&mut self, status: &kube::core::Status, event: &ServiceEvent) -> Outcome {
        match status.code {
            409 => Outcome::Exists,
            404 => Outcome::NoService,
            403 if namespace_is_terminating(status) => Outcome::NoService,
            401 | 403 => {
                if !self.is_forbidden {
                    self.is_forbidden = true;
                    tracing::warn!(
                        error = status.message,
                        "the API server does not let this agent create events.events.k8s.io, so problems of Services \
                         are in the log only: bind its account to a role that grants it, as deploy/components/events \
                         does, or run without --events; the agent tries again by itself"
                    );
                }
                Outcome::Forbidden
            }
            400 | 422 => {
                let service = &event.service;
                tracing::warn!(%service, error = status.message, "the API server rejects an Event");
                Outcome::Invalid
            }
            _ => {
                tracing::debug!(error = status.message, "an Event could not be created");
                Outcome::Failed
            }
        }
    }
}

/// True if a refusal is about a namespace that is being deleted: it accepts no new objects.
fn namespace_is_terminating(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

async fn create(client: Client, event: &ServiceEvent, node: &str) -> Result<Outcome, kube::Error> {
    let ServiceEvent { service, warning, .. } = event;
    let Some(regarding) = regarding(&client, service, node).await? else { return Ok(Outcome::NoService) };
    let uid = regarding.uid.clone().unwrap_or_default();
    // The API server wants Events about objects of the cluster there.
    let namespace = regarding.namespace.as_deref().unwrap_or("default");
    let object = Event {
        metadata: ObjectMeta {
            name: Some(event.name(node, &uid)),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        reporting_controller: Some("beeline".to_owned()),
        reporting_instance: Some(node.to_owned()),
        action: Some("Serve".to_owned()),
        reason: Some(warning.reason().name().to_owned()),
        type_: Some("Warning".to_owned()),
        note: Some(event.note(node)),
        regarding: Some(regarding.clone()),
        ..Event::default()
    };
    let events = Api::<Event>::namespaced(client, namespace);
    events.create(&PostParams::default(), &object).await.map(|_| Outcome::Created)
}

/// Finds the object of a problem: the Service, the pod whose Service it is, or the pool, which has no namespace. None
/// if it does not exist.
async fn regarding(client: &Client, service: &Key, node: &str) -> Result<Option<ObjectReference>, kube::Error> {
    // A list with a field selector needs only the verb that the agent has, and comes from the server's cache.
    let list = |fields: &str| ListParams::default().fields(fields).match_any();
    let (kind, found) = if host_ports::is_pod(service) {
        // A long name of a pod is known by its start and a hash only.
        let pods = Api::<Pod>::namespaced(client.clone(), service.namespace());
        let listed = pods.list_metadata(&list(&format!("spec.nodeName={node}"))).await?;
        let is_meant = |meta: &ObjectMeta| {
            let name = meta.name.as_deref().unwrap_or_default();
            host_ports::service_key(&Key::new(service.namespace(), name)) == *service
        };
        ("Pod", listed.items.into_iter().map(|pod| pod.metadata).find(is_meant))
    } else if service.namespace().is_empty() {
        let pools = Api::<AddressPool>::all(client.clone());
        let listed = pools.list_metadata(&list(&format!("metadata.name={}", service.name()))).await?;
        let meta = listed.items.into_iter().next().map(|pool| pool.metadata);
        return Ok(meta.map(|meta| ObjectReference {
            api_version: Some(AddressPool::API_VERSION.to_owned()),
            kind: Some(AddressPool::KIND.to_owned()),
            name: meta.name,
            uid: meta.uid,
            ..ObjectReference::default()
        }));
    } else {
        let services = Api::<Service>::namespaced(client.clone(), service.namespace());
        let listed = services.list_metadata(&list(&format!("metadata.name={}", service.name()))).await?;
        ("Service", listed.items.into_iter().next().map(|service| service.metadata))
    };
    let Some(ObjectMeta { name, uid: Some(uid), .. }) = found else { return Ok(None) };
    Ok(Some(ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace: Some(service.namespace().to_owned()),
        name,
        uid: Some(uid),
        ..ObjectReference::default()
    }))
}

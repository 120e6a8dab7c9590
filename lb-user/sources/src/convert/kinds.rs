//! The conversion of each kind of API object to its object.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;

use super::{HEADLESS_LABEL, endpoint_slice, endpoints, key, label, namespace, node, pod, service};
use crate::api;
use lb_core::{
    event::{Object, ObjectKind},
    objects::Key,
};

/// An API type that a source reads.
pub trait ApiObject:
    k8s_openapi::Metadata<Ty = ObjectMeta> + DeserializeOwned + Clone + std::fmt::Debug + Send + Sync + 'static
{
    /// Kind in events.
    const EVENT_KIND: ObjectKind;

    /// Converts the object. `proxy_name` is the value of `--service-proxy-name`. None if the object can have no effect
    /// here, whatever other objects exist.
    fn convert(&self, proxy_name: Option<&str>) -> Option<Object>;

    /// Returns namespace and name.
    fn key(&self) -> Key {
        key(self.metadata())
    }
}

impl ApiObject for api::Service {
    const EVENT_KIND: ObjectKind = ObjectKind::Service;

    fn convert(&self, proxy_name: Option<&str>) -> Option<Object> {
        Some(Object::Service(service(self, proxy_name)))
    }
}

impl ApiObject for api::EndpointSlice {
    const EVENT_KIND: ObjectKind = ObjectKind::EndpointSlice;

    /// None for slices of headless Services: they outlive for a moment a Service that is made again with a cluster IP.
    fn convert(&self, _: Option<&str>) -> Option<Object> {
        let is_headless = label(&self.metadata, HEADLESS_LABEL).is_some();
        (!is_headless).then(|| Object::EndpointSlice(endpoint_slice(self)))
    }
}

impl ApiObject for api::Endpoints {
    const EVENT_KIND: ObjectKind = ObjectKind::Endpoints;

    /// None for Endpoints that the mirroring controller ignores.
    fn convert(&self, _: Option<&str>) -> Option<Object> {
        let endpoints = endpoints(self);
        endpoints.mirrorable.then_some(Object::Endpoints(endpoints))
    }
}

impl ApiObject for api::Node {
    const EVENT_KIND: ObjectKind = ObjectKind::Node;

    fn convert(&self, _: Option<&str>) -> Option<Object> {
        Some(Object::Node(node(self)))
    }
}

impl ApiObject for api::Pod {
    const EVENT_KIND: ObjectKind = ObjectKind::Pod;

    /// None for pods that have ended.
    fn convert(&self, _: Option<&str>) -> Option<Object> {
        pod(self).map(Object::Pod)
    }
}

impl ApiObject for api::Namespace {
    const EVENT_KIND: ObjectKind = ObjectKind::Namespace;

    fn convert(&self, _: Option<&str>) -> Option<Object> {
        Some(Object::Namespace(namespace(self)))
    }
}

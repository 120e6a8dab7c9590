//! The pods of this node, and the Namespaces, which set the modes of pods.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    event::ObjectKind,
    objects::{Key, Namespace, Pod},
};

/// Pods of this node, and Namespaces.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pods {
    pods: BTreeMap<Key, Pod>,
    namespaces: BTreeMap<Arc<str>, Namespace>,
}

impl Pods {
    /// Lists the pods by key, each with its Namespace if that is known.
    pub fn pods(&self) -> impl Iterator<Item = (&Pod, Option<&Namespace>)> {
        self.pods.values().map(|pod| (pod, self.namespaces.get(pod.key.namespace())))
    }

    /// Lists the Namespaces by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// Takes a pod of this node. A pod without a node is one of this node: a file may leave the node out.
    pub(super) fn put(&mut self, pod: Pod, node: &str) {
        if pod.node.as_deref().is_none_or(|of| of == node) {
            self.pods.insert(pod.key.clone(), pod);
        } else {
            self.pods.remove(&pod.key);
        }
    }

    pub(super) fn put_namespace(&mut self, namespace: Namespace) {
        self.namespaces.insert(Arc::clone(&namespace.name), namespace);
    }

    pub(super) fn delete(&mut self, key: &Key) {
        self.pods.remove(key);
    }

    pub(super) fn delete_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Removes all objects of a kind.
    pub(super) fn clear(&mut self, kind: ObjectKind) {
        match kind {
            ObjectKind::Pod => self.pods.clear(),
            ObjectKind::Namespace => self.namespaces.clear(),
            _ => {}
        }
    }
}

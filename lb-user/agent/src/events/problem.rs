//! Text and name of an Event. The name depends on the text alone, so that the API server keeps one Event of all nodes
//! with the same problem.

use std::net::SocketAddr;

use lb_core::{host_ports, objects::Key, warning::Warning};

/// Maximum length of an Event's note in bytes (k8s.io/kubernetes, pkg/apis/core/validation/events.go).
const MAX_NOTE: usize = 1024;

/// Part of the agent that found a problem.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum ProblemOrigin {
    /// The model: every node finds the same problems in the objects.
    Objects,
    /// Maps of this node that are full.
    MapSize,
    /// Processes of this node that listened on a NodePort when it was added.
    NodePort,
    /// Endpoints that clients of this node have ejected.
    Ejection,
    /// Other hosts that claim addresses which this node announces.
    Announcing,
    /// A `healthCheckNodePort` at this address of the node.
    HealthPort(SocketAddr),
}

impl ProblemOrigin {
    /// True if other nodes may not have the problem.
    pub(crate) const fn is_of_node(self) -> bool {
        !matches!(self, Self::Objects)
    }

    /// True if no report ends the problem: its Event is sent once.
    pub(crate) const fn is_one_shot(self) -> bool {
        matches!(self, Self::NodePort)
    }
}

/// A problem of a Service, for an Event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ServiceEvent {
    pub(crate) service: Key,
    pub(crate) origin: ProblemOrigin,
    pub(crate) warning: Warning,
}

impl ServiceEvent {
    /// Returns the text of the Event.
    pub(crate) fn note(&self, node: &str) -> String {
        let mut note = self.warning.to_string();
        if self.origin.is_of_node() {
            note = format!("on node {node}: {note}");
        }
        if note.len() > MAX_NOTE {
            note.truncate(note.floor_char_boundary(MAX_NOTE - '…'.len_utf8()));
            note.push('…');
        }
        note
    }

    /// Returns an id of the problem: equal on all nodes, except for problems of a node.
    pub(crate) fn id(&self, node: &str) -> u64 {
        let parts = [self.service.namespace(), self.service.name(), self.warning.reason().name(), &self.note(node)];
        parts.into_iter().fold(HASH_START, hash)
    }

    /// Returns the name of the Event about the Service or pod with this uid. A recreated one has another uid, and new
    /// Events.
    pub(crate) fn name(&self, node: &str, uid: &str) -> String {
        let name = host_ports::pod_name(&self.service).unwrap_or_else(|| self.service.name().to_owned());
        format!("{name}.{:016x}", hash(self.id(node), uid))
    }
}

/// Initial value of [`hash`] (FNV-1a, 64 bits).
const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

/// Adds a text and an end mark to a hash. The result is equal in all versions of Beeline and on all processors.
pub(super) fn hash(so_far: u64, text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    // UTF-8 never has the byte 0xff.
    text.bytes().chain([0xff]).fold(so_far, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, origin: ProblemOrigin, text: &str) -> ServiceEvent {
        let warning = Warning::InvalidValue { object: None, problem: text.to_owned() };
        ServiceEvent { service: Key::new("default", name), origin, warning }
    }

    #[test]
    fn nodes_share_the_name_of_a_problem_of_the_objects_and_not_of_their_own_problems() {
        let objects = event("a", ProblemOrigin::Objects, "x");
        assert_eq!(objects.name("n1", "u"), objects.name("n2", "u"));
        assert_eq!((objects.note("n1"), objects.name("n1", "u").len()), ("x".to_owned(), "a.".len() + 16));
        let map_size = event("a", ProblemOrigin::MapSize, "x");
        assert_ne!(map_size.name("n1", "u"), map_size.name("n2", "u"));
        assert_eq!(map_size.note("n1"), "on node n1: x");
    }

    #[test]
    fn each_problem_of_each_service_has_its_own_name() {
        let name = |service, text, uid| event(service, ProblemOrigin::Objects, text).name("n", uid);
        let names = [name("a", "x", "u"), name("b", "x", "u"), name("a", "y", "u"), name("a", "x", "v")];
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
        let of_pod = host_ports::service_key(&Key::new("default", "a"));
        assert_eq!(event(of_pod.name(), ProblemOrigin::Objects, "x").name("n", "u").find('.'), Some(1));
        // Another program computed this value: two versions of Beeline in one cluster must share their Events.
        assert_eq!(hash(HASH_START, "a"), 0x089b_c907_b544_c769);
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let note = event("a", ProblemOrigin::Objects, &"é".repeat(600)).note("n");
        assert!(note.len() <= MAX_NOTE && note.ends_with("é…"), "{}", note.len());
    }
}

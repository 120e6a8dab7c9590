//! What an Event says, and its name: the same on every node that says the same, so that the API server keeps one of them.

use std::net::SocketAddr;

use lb_core::{objects::Key, warning::Warning};

/// Octets that the text of an Event may have (k8s.io/kubernetes, pkg/apis/core/validation/events.go).
const NOTE: usize = 1024;

/// Who found a problem, and so whose it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Origin {
    /// The model, in the objects: every node finds the same.
    Objects,
    /// The maps of this node.
    Room,
    /// Processes of this node, at the moment when a NodePort came.
    NodePort,
    /// Where this node tells the health of Services.
    HealthPort(SocketAddr),
}

impl Origin {
    /// Whether it is this node's own: others may be well.
    #[must_use]
    pub const fn is_of_node(self) -> bool {
        !matches!(self, Self::Objects)
    }

    /// Whether nobody says when it is over.
    #[must_use]
    pub const fn is_moment(self) -> bool {
        matches!(self, Self::NodePort)
    }
}

/// A problem of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceEvent {
    /// The Service.
    pub service: Key,
    /// Who found it.
    pub origin: Origin,
    /// The problem.
    pub warning: Warning,
}

impl ServiceEvent {
    /// The text of the Event.
    #[must_use]
    pub fn note(&self, node: &str) -> String {
        let mut note = self.warning.to_string();
        if self.origin.is_of_node() {
            note = format!("on node {node}: {note}");
        }
        if note.len() > NOTE {
            note.truncate(note.floor_char_boundary(NOTE - '…'.len_utf8()));
            note.push('…');
        }
        note
    }

    /// Equal for equal problems, whoever has them; those of a node are its own.
    #[must_use]
    pub fn id(&self, node: &str) -> u64 {
        let parts = [self.service.namespace(), self.service.name(), self.warning.reason().name(), &self.note(node)];
        parts.into_iter().fold(START, digest)
    }

    /// Name of the Event about the Service that has this uid: one that was made anew has Events of its own.
    #[must_use]
    pub fn name(&self, node: &str, uid: &str) -> String {
        format!("{}.{:016x}", self.service.name(), digest(self.id(node), uid))
    }
}

/// Where a digest starts (FNV-1a, 64 bits).
const START: u64 = 0xcbf2_9ce4_8422_2325;

/// Adds a text and its end to a digest. It is the same in each version and on each processor.
pub(super) fn digest(so_far: u64, text: &str) -> u64 {
    let step = |digest: u64, octet: u8| (digest ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3);
    // No text has this octet.
    text.bytes().chain([0xff]).fold(so_far, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(name: &str, origin: Origin, text: &str) -> ServiceEvent {
        let warning = Warning::InvalidValue { object: None, problem: text.to_owned() };
        ServiceEvent { service: Key::new("default", name), origin, warning }
    }

    #[test]
    fn all_nodes_name_a_problem_of_the_objects_alike_and_each_its_own_ones() {
        let objects = about("a", Origin::Objects, "x");
        assert_eq!(objects.name("n1", "u"), objects.name("n2", "u"));
        assert_eq!((objects.note("n1"), objects.name("n1", "u").len()), ("x".to_owned(), "a.".len() + 16));
        let room = about("a", Origin::Room, "x");
        assert_ne!(room.name("n1", "u"), room.name("n2", "u"));
        assert_eq!(room.note("n1"), "on node n1: x");
    }

    #[test]
    fn each_problem_of_each_service_has_a_name_of_its_own() {
        let name = |service, text, uid| about(service, Origin::Objects, text).name("n", uid);
        let names = [name("a", "x", "u"), name("b", "x", "u"), name("a", "y", "u"), name("a", "x", "v")];
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
        // As every version has it, so that two of them in one cluster say it once: computed by another program.
        assert_eq!(digest(START, "a"), 0x089b_c907_b544_c769);
    }

    #[test]
    fn a_long_text_is_cut_between_letters() {
        let note = about("a", Origin::Objects, &"é".repeat(600)).note("n");
        assert!(note.len() <= NOTE && note.ends_with("é…"), "{}", note.len());
    }
}

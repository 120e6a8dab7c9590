//! What a Kubernetes Service means: pure functions from the objects of one Service to its [`crate::spec::ServiceSpec`].
//!
//! The reference is kube-proxy; where its source decided something, the file is named.

pub mod claims;
mod compile;
pub mod endpoints;
pub mod frontends;
pub mod topology;

pub use compile::compile;
pub use frontends::ExternalIps;

/// The node that this agent serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Here<'a> {
    /// Its name.
    pub node: &'a str,
    /// Its zone, if the Node has the label.
    pub zone: Option<&'a str>,
}

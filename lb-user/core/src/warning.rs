//! A warning about a Service, for its owner.

/// In one word, by which people select: `kubectl get events --field-selector reason=FrontendConflict`.
pub mod reason {
    /// Another Service, or another port of this one, has a frontend that it asks for.
    pub const CONFLICT: &str = "FrontendConflict";
    /// A frontend that it asks for is not served.
    pub const FRONTEND: &str = "FrontendNotServed";
    /// An endpoint cannot be used.
    pub const ENDPOINT: &str = "EndpointNotUsed";
    /// A field or an annotation has a value that cannot be used.
    pub const VALUE: &str = "InvalidValue";
    /// What it asks for has an effect that its owner may not mean.
    pub const CHECK: &str = "CheckService";
    /// A map is full, and the Service stays as it was.
    pub const ROOM: &str = "NoRoom";
    /// A process is bound to a port of its own.
    pub const NODE_PORT: &str = "NodePortInUse";
    /// Nothing answers at its `healthCheckNodePort`.
    pub const HEALTH_PORT: &str = "HealthCheckNodePortUnavailable";
}

/// Something that the owner of a Service must know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// One of [`reason`].
    pub reason: &'static str,
    /// What is wrong, with its cure: as in the log.
    pub text: String,
}

//! Ids of service ports and backends that maps or sockets still name. New ids begin beyond them.

/// The highest ids in use; 0 if there are none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HighestIds {
    /// Of a service port.
    pub service: u32,
    /// Of a backend.
    pub backend: u32,
}

impl HighestIds {
    /// Returns the higher id of each kind.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { service: self.service.max(other.service), backend: self.backend.max(other.backend) }
    }
}

//! A value for each IP family.

use std::ops::{Index, IndexMut};

use lb_common::Family;

/// A value for IPv4 and one for IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PerFamily<T> {
    /// For IPv4.
    pub v4: T,
    /// For IPv6.
    pub v6: T,
}

impl<T> PerFamily<T> {
    /// Makes the value of each family, IPv4 first.
    #[must_use]
    pub fn from_fn(mut make: impl FnMut(Family) -> T) -> Self {
        Self { v4: make(Family::V4), v6: make(Family::V6) }
    }

    /// The values, IPv4 first.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        [&self.v4, &self.v6].into_iter()
    }

    /// Both values, each changed by `change`.
    #[must_use]
    pub fn map<U>(self, mut change: impl FnMut(T) -> U) -> PerFamily<U> {
        PerFamily { v4: change(self.v4), v6: change(self.v6) }
    }
}

impl<T> Index<Family> for PerFamily<T> {
    type Output = T;

    fn index(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl<T> IndexMut<Family> for PerFamily<T> {
    fn index_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

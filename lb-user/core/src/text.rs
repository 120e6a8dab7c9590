//! Words for people: counts of things.

/// A number of things.
#[must_use]
pub fn number(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

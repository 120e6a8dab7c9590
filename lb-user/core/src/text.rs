//! Text with counts.

/// Returns a count with its noun, in the singular or with an `s`.
#[must_use]
pub fn number(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

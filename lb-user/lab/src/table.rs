//! The tables that benches print: median, minimum and maximum of the rounds, beside the aim.

use std::fmt;

/// The distribution of a figure over the rounds.
pub struct Spread {
    /// The median; of an even number, the greater of the two in the middle.
    pub median: f64,
    /// Minimum.
    pub min: f64,
    /// Maximum.
    pub max: f64,
}

impl Spread {
    /// Statistics of at least one value.
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().expect("a round");
        Self { median: at(values.len() / 2), min: at(0), max: at(values.len() - 1) }
    }
}

/// A number with three significant digits.
pub struct Short(pub f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(value) = self;
        match value.abs() {
            0.0 | 100.0.. => write!(f, "{value:.0}"),
            10.0.. => write!(f, "{value:.1}"),
            1.0.. => write!(f, "{value:.2}"),
            _ => write!(f, "{value:.3}"),
        }
    }
}

/// Prints the head of the table.
pub fn header() {
    println!("| what | aim | median | least to most |\n|---|---|---|---|");
}

/// Prints a row of it.
pub fn row(what: &str, aim: &str, unit: &str, spread: &Spread) {
    let Spread { median, min, max } = spread;
    println!("| {what} | {aim} | {} {unit} | {} to {} |", Short(*median), Short(*min), Short(*max));
}

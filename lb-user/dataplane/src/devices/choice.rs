//! The flags `--devices` and `--pod-devices`: which links get the programs of the packet path. Pure.

use std::{convert::Infallible, str::FromStr};

/// Names of links; a `*` stands for any characters.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Patterns(Vec<String>);

impl Patterns {
    /// Whether one of them fits.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| fits(pattern, name))
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for Patterns {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Ok(Self(parts.map(str::to_owned).collect()))
    }
}

/// Which links are uplinks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Choice {
    /// Those that the routes and the node's addresses say.
    #[default]
    ByRoute,
    /// Those of these names; none switches the packet path off.
    Named(Patterns),
}

impl Choice {
    /// Whether there shall be none.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        matches!(self, Self::Named(patterns) if patterns.is_empty())
    }
}

impl FromStr for Choice {
    type Err = Infallible;

    /// kube-proxy's way to say that something is off is an empty flag; here a word does too.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::Named(if text.trim() == "none" { Patterns::default() } else { text.parse()? }))
    }
}

/// Whether the whole of `name` is what the pattern says.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut left) = name.strip_prefix(head) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    // The first place will do: what comes later can only have less room for the rest.
    for part in parts {
        match left.find(part) {
            Some(at) => left = left.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    left.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        let check = |text: &str, yes: &[&str], no: &[&str]| {
            let Ok(patterns) = text.parse::<Patterns>();
            assert!(yes.iter().all(|name| patterns.has(name)), "{text} has {yes:?}");
            assert!(!no.iter().any(|name| patterns.has(name)), "{text} has none of {no:?}");
        };
        check("eth0", &["eth0"], &["eth1", "eth00", "xeth0", ""]);
        check("eth0, wg*", &["eth0", "wg", "wg0", "wg-home"], &["eth0.5", "awg0"]);
        check("*", &["eth0", ""], &[]);
        check("*.100", &["eth0.100", ".100", ".100.100"], &["eth0.1000"]);
        check("en*s*f0", &["enp1s0f0", "ensf0"], &["enf0", "enp1s0f1"]);
        check("a*a", &["aa", "aba"], &["a"]);
        check("", &[], &["", "eth0"]);
    }

    #[test]
    fn nothing_and_none_switch_it_off() {
        for text in ["", "none", " none ", ","] {
            let Ok(choice) = text.parse::<Choice>();
            assert_eq!(choice, Choice::Named(Patterns::default()), "{text:?}");
        }
        let Ok(choice) = "none*".parse::<Choice>();
        assert!(matches!(choice, Choice::Named(patterns) if patterns.has("none0")));
    }
}

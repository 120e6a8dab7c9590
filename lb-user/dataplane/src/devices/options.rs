//! The flags of the packet path's devices: links that get the programs, and treatment of packets there. Pure.

use std::{convert::Infallible, str::FromStr};

/// Options of the packet path's devices.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceOptions {
    /// Uplinks.
    pub uplinks: UplinkChoice,
    /// Names of links to pods in mode `packet`.
    pub pods: LinkPatterns,
    /// True if flows to pods of this node bypass the kernel's routing.
    pub host_routing: bool,
    /// Masquerade of clients outside.
    pub masquerade: Masquerade,
}

/// Masquerade of clients outside, where the traffic policy is Cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Masquerade {
    /// If replies would not come back through this node otherwise.
    #[default]
    Needed,
    /// Always, as kube-proxy does.
    Always,
}

impl FromStr for Masquerade {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "needed" => Ok(Self::Needed),
            "always" => Ok(Self::Always),
            _ => Err("expected needed or always".to_owned()),
        }
    }
}

impl DeviceOptions {
    /// True if no link can get programs, unless a pod chooses a mode.
    #[must_use]
    pub(super) fn are_off(&self) -> bool {
        self.pods.is_empty() && self.uplinks.is_none()
    }
}

/// Patterns of link names; a `*` matches any characters.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LinkPatterns(Vec<String>);

impl LinkPatterns {
    /// True if a pattern matches the name.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| matches(pattern, name))
    }

    /// True if there is no pattern.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for LinkPatterns {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Ok(Self(parts.map(str::to_owned).collect()))
    }
}

/// Choice of the uplinks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum UplinkChoice {
    /// Links with an address of this node or a route, but for links of pods and ports of a bridge or bond.
    #[default]
    ByRoute,
    /// Links with matching names. Without a pattern the packet path is off.
    Named(LinkPatterns),
}

impl UplinkChoice {
    /// True if no link can be an uplink.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        matches!(self, Self::Named(patterns) if patterns.is_empty())
    }
}

impl FromStr for UplinkChoice {
    type Err = Infallible;

    /// Parses the value of `--devices`. An empty value, as with kube-proxy's flags, or `none` switches the packet path
    /// off.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::Named(if text.trim() == "none" { LinkPatterns::default() } else { text.parse()? }))
    }
}

/// True if the pattern matches the whole name.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut left) = name.strip_prefix(head) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    // The first occurrence is enough: a later one leaves less room for the rest.
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
    fn a_star_matches_any_characters() {
        let check = |text: &str, yes: &[&str], no: &[&str]| {
            let Ok(patterns) = text.parse::<LinkPatterns>();
            assert!(yes.iter().all(|name| patterns.matches(name)), "{text} matches {yes:?}");
            assert!(!no.iter().any(|name| patterns.matches(name)), "{text} matches none of {no:?}");
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
    fn an_empty_value_and_none_switch_the_packet_path_off() {
        for text in ["", "none", " none ", ","] {
            let Ok(choice) = text.parse::<UplinkChoice>();
            assert_eq!(choice, UplinkChoice::Named(LinkPatterns::default()), "{text:?}");
        }
        let Ok(choice) = "none*".parse::<UplinkChoice>();
        assert!(matches!(choice, UplinkChoice::Named(patterns) if patterns.matches("none0")));
    }
}

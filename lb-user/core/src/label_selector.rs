//! Label selectors in the text form of Kubernetes (apimachinery, pkg/labels/selector.go): requirements that are joined
//! by commas, each on one label. Pure.

use std::{collections::BTreeMap, str::FromStr};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A label selector: all requirements must hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LabelSelector(Vec<Requirement>);

/// A requirement on one label.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Requirement {
    /// `a`, or `!a` if false.
    Exists(String, bool),
    /// `a in (x, y)`, `a = x`, `a == x`.
    In(String, Vec<String>),
    /// `a notin (x, y)`, `a != x`; a missing label fits.
    NotIn(String, Vec<String>),
    /// `a > 1`.
    Above(String, i64),
    /// `a < 1`.
    Below(String, i64),
}

impl LabelSelector {
    /// Makes the selector of one label with one value.
    #[must_use]
    pub fn equals(label: &str, value: &str) -> Self {
        Self(vec![Requirement::In(label.to_owned(), vec![value.to_owned()])])
    }

    /// Makes the selector that selects nothing.
    #[must_use]
    pub fn nothing() -> Self {
        // No label has one of no values.
        Self(vec![Requirement::In(String::new(), Vec::new())])
    }

    /// Adds a requirement in the form of the API (`matchExpressions`); None if the operator is unknown.
    #[must_use]
    pub fn and(mut self, label: &str, operator: &str, values: &[String]) -> Option<Self> {
        let (label, values) = (label.to_owned(), values.to_vec());
        self.0.push(match operator {
            "In" => Requirement::In(label, values),
            "NotIn" => Requirement::NotIn(label, values),
            "Exists" => Requirement::Exists(label, true),
            "DoesNotExist" => Requirement::Exists(label, false),
            _ => return None,
        });
        Some(self)
    }

    /// True if the labels meet all requirements.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let number = |label: &String| labels.get(label).and_then(|value| value.parse::<i64>().ok());
        self.0.iter().all(|requirement| match requirement {
            Requirement::Exists(label, exists) => labels.contains_key(label) == *exists,
            Requirement::In(label, values) => labels.get(label).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(label, values) => labels.get(label).is_none_or(|value| !values.contains(value)),
            Requirement::Above(label, than) => number(label).is_some_and(|value| value > *than),
            Requirement::Below(label, than) => number(label).is_some_and(|value| value < *than),
        })
    }
}

impl FromStr for LabelSelector {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        parts(text).into_iter().map(|part| requirement(part.trim()).ok_or(())).collect::<Result<_, _>>().map(Self)
    }
}

/// Splits at the commas outside of parentheses.
fn parts(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .collect()
}

fn requirement(text: &str) -> Option<Requirement> {
    if let Some(label) = text.strip_prefix('!') {
        return Some(Requirement::Exists(name(label.trim())?, false));
    }
    let end = text.find(|c: char| c.is_whitespace() || "=!<>(".contains(c)).unwrap_or(text.len());
    let (label, rest) = text.split_at(end);
    let (label, rest) = (name(label)?, rest.trim());
    let value = |text: &str| vec![text.trim().to_owned()];
    let is_value = |text: &str| !text.contains(|c: char| "=!<>(),".contains(c)) && text.trim().split(' ').count() == 1;
    if rest.is_empty() {
        return Some(Requirement::Exists(label, true));
    }
    if let Some(set) = rest.strip_prefix("notin").or_else(|| rest.strip_prefix("in")) {
        let values = set.trim().strip_prefix('(')?.strip_suffix(')')?.split(',').map(|value| value.trim().to_owned());
        let values: Vec<String> = values.collect();
        if !values.iter().all(|value| is_value(value)) {
            return None;
        }
        let make = if rest.starts_with("notin") { Requirement::NotIn } else { Requirement::In };
        return Some(make(label, values));
    }
    let (operator, operand) = ["==", "!=", "=", ">", "<"]
        .into_iter()
        .find_map(|operator| Some((operator, rest.strip_prefix(operator).filter(|operand| is_value(operand))?)))?;
    Some(match operator {
        "!=" => Requirement::NotIn(label, value(operand)),
        ">" => Requirement::Above(label, operand.trim().parse().ok()?),
        "<" => Requirement::Below(label, operand.trim().parse().ok()?),
        _ => Requirement::In(label, value(operand)),
    })
}

/// Returns the name of a label, if it has the characters of one.
fn name(text: &str) -> Option<String> {
    let is_name = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    is_name.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_selects_as_in_kubernetes() {
        let labels: Labels = [("service.cilium.io/node", "beefy"), ("cores", "8"), ("empty", "")]
            .map(|(label, value)| (label.to_owned(), value.to_owned()))
            .into();
        let check = |text: &str, expected: Option<bool>| {
            let selector = text.parse::<LabelSelector>().ok();
            assert_eq!(selector.map(|selector| selector.matches(&labels)), expected, "{text}");
        };
        for (text, expected) in [
            ("", true),
            ("service.cilium.io/node", true),
            ("!service.cilium.io/node", false),
            ("other", false),
            ("! other", true),
            ("service.cilium.io/node=beefy", true),
            ("service.cilium.io/node == beefy", true),
            ("service.cilium.io/node = slow", false),
            ("service.cilium.io/node!=beefy", false),
            ("other != beefy", true),
            ("service.cilium.io/node in ( beefy , slow )", true),
            ("service.cilium.io/node in (slow)", false),
            ("service.cilium.io/node notin (beefy)", false),
            ("other notin (beefy, slow)", true),
            ("other in (beefy)", false),
            ("cores > 7", true),
            ("cores<8", false),
            ("other > 1", false),
            ("empty=", true),
            ("empty in ()", true),
            ("service.cilium.io/node in (beefy, slow), cores=8,!other", true),
            ("service.cilium.io/node in (beefy, slow), cores=9", false),
        ] {
            check(text, Some(expected));
        }
        for bad in [",", "a,", "=x", "a in", "a in x", "a in (x", "a x", "a = x y", "a > b", "a == b == c", "in (x)"] {
            check(bad, None);
        }
        let of_api = |operator, values: &[&str]| {
            let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
            LabelSelector::default().and("cores", operator, &values).map(|selector| selector.matches(&labels))
        };
        assert_eq!(of_api("In", &["7", "8"]), Some(true));
        assert_eq!(of_api("NotIn", &["7", "8"]), Some(false));
        assert_eq!([of_api("Exists", &[]), of_api("DoesNotExist", &[])], [Some(true), Some(false)]);
        assert_eq!(of_api("Near", &[]), None);
        assert!(LabelSelector::equals("cores", "8").matches(&labels));
        assert!(!LabelSelector::equals("cores", "8").matches(&Labels::new()));
    }
}

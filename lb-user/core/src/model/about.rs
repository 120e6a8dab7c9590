//! What each warning about a Service is about, in one word: for Events, which are selected by it.

use super::{
    NodeContext, Settings,
    evaluate::{ClusterContext, evaluate},
    frontends::Denial,
    warnings,
};
use crate::{
    warning::{Problem, reason},
    world::View,
};

/// The warnings, in their order, each with its reason.
#[must_use]
pub fn about(view: &View<'_>, here: NodeContext<'_>, settings: &Settings, others: ClusterContext<'_>) -> Vec<Problem> {
    let evaluation = evaluate(view, here, settings, others);
    let (mut values, mut endpoints) = (Vec::new(), Vec::new());
    warnings::objects(view, &mut values);
    evaluation.ports.iter().for_each(|port| warnings::refused(port, &mut endpoints));
    let denied: Vec<_> = evaluation.denied.iter().map(|denied| (denied.to_string(), denied.why)).collect();
    let reason = |text: &String| match denied.iter().find(|(denied, _)| denied == text) {
        Some((_, Denial::Lost(_) | Denial::Twice(..))) => reason::CONFLICT,
        Some(_) => reason::FRONTEND,
        None if endpoints.contains(text) => reason::ENDPOINT,
        None if values.contains(text) => reason::VALUE,
        None => reason::CHECK,
    };
    evaluation.warnings.iter().map(|text| Problem { reason: reason(text), text: text.clone() }).collect()
}

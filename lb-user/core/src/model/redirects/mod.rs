//! Services that take the clients of another one on their node (`beeline.io/redirect-from`): which of them may, and
//! which Services must be compiled again when one changes. The lists are made in `evaluate`.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use super::ClusterContext;
use crate::{
    objects::{Exempt, Key, Policy, Service},
    warning::{RedirectRefusal, Warning},
    world::{View, World},
};

/// Refused Services that a warning lists before it only counts them.
const LISTED: usize = 5;

/// The flag `--redirect-namespaces`: namespaces whose Services may take the clients of Services of other namespaces.
/// Within a namespace every Service may.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RedirectNamespaces(BTreeSet<String>);

impl RedirectNamespaces {
    fn allow(&self, source: &Key, target: &Key) -> bool {
        source.namespace() == target.namespace() || self.0.contains(source.namespace())
    }
}

impl FromStr for RedirectNamespaces {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_name = |part: &str| {
            let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            (1..=63).contains(&part.len()) && part.chars().all(is_allowed)
        };
        let name = |part: &str| {
            let part = part.trim();
            let error = || format!("{part:?} is no namespace: want none, or a list such as kube-system,dns");
            is_name(part).then(|| part.to_owned()).ok_or_else(error)
        };
        match text {
            "none" => Ok(Self::default()),
            _ => text.split(',').map(name).collect::<Result<_, _>>().map(Self),
        }
    }
}

/// A Service that names another one; the smaller one wins.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Source {
    /// Seconds since 1970; the greatest number without a time.
    created: i64,
    service: Key,
}

/// The Services that name one Service.
#[derive(Default)]
struct Sources {
    /// Services whose namespace may take the clients.
    allowed: BTreeSet<Source>,
    /// Services whose namespace may not.
    refused: BTreeSet<Key>,
}

impl Sources {
    fn owner(&self) -> Option<&Key> {
        self.allowed.first().map(|source| &source.service)
    }
}

/// The Services that name another one in `beeline.io/redirect-from`; mostly none.
#[derive(Default)]
pub struct RedirectIndex {
    /// The time of creation and the named Service of each.
    by_source: BTreeMap<Key, (i64, Key)>,
    by_target: BTreeMap<Key, Sources>,
}

impl RedirectIndex {
    /// Returns the Service that takes the clients of `target`: of those whose namespace allows it the oldest, then the
    /// first by name.
    #[must_use]
    pub fn owner(&self, target: &Key) -> Option<&Key> {
        self.by_target.get(target)?.owner()
    }

    /// Returns the Services whose namespace does not allow them to take the clients of `target`.
    fn refused(&self, target: &Key) -> Option<&BTreeSet<Key>> {
        self.by_target.get(target).map(|sources| &sources.refused).filter(|refused| !refused.is_empty())
    }

    /// Takes over the Services `changed`, as they are in `world`. Returns other Services that must be compiled again: a
    /// Service whose clients another one takes, and Services that name a Service that has changed, or whose taker has.
    pub fn update(&mut self, world: &World, changed: &[Key], namespaces: &RedirectNamespaces) -> Vec<Key> {
        let mut affected = Vec::new();
        for key in changed {
            let service = world.view(key).map(|view| view.service);
            let named = service.and_then(named).map(|(created, target)| (created, target.clone()));
            if self.by_source.is_empty() && named.is_none() {
                continue;
            }
            let old = self.by_source.get(key);
            if old != named.as_ref() {
                let old = old.cloned();
                old.into_iter().for_each(|old| self.remove(key, &old, namespaces, &mut affected));
                named.into_iter().for_each(|new| self.add(key, new, namespaces, &mut affected));
            } else if let Some((_, target)) = old
                && self.owner(target) == Some(key)
            {
                affected.push(target.clone());
            }
            if let Some(sources) = self.by_target.get(key) {
                affected.extend(sources.allowed.iter().map(|source| source.service.clone()));
            }
        }
        affected
    }

    fn add(&mut self, key: &Key, named: (i64, Key), namespaces: &RedirectNamespaces, affected: &mut Vec<Key>) {
        let (created, target) = named.clone();
        self.change(&target, affected, |sources| {
            if namespaces.allow(key, &target) {
                sources.allowed.insert(Source { created, service: key.clone() });
            } else {
                sources.refused.insert(key.clone());
            }
        });
        self.by_source.insert(key.clone(), named);
    }

    fn remove(&mut self, key: &Key, named: &(i64, Key), namespaces: &RedirectNamespaces, affected: &mut Vec<Key>) {
        let (created, target) = named;
        self.change(target, affected, |sources| {
            if namespaces.allow(key, target) {
                sources.allowed.remove(&Source { created: *created, service: key.clone() });
            } else {
                sources.refused.remove(key);
            }
        });
        self.by_source.remove(key);
    }

    /// Changes the Services that name `target`. It is affected, and so are they if another one takes its clients now.
    fn change(&mut self, target: &Key, affected: &mut Vec<Key>, change: impl FnOnce(&mut Sources)) {
        let sources = self.by_target.entry(target.clone()).or_default();
        let before = sources.owner().cloned();
        change(sources);
        affected.push(target.clone());
        if sources.owner() != before.as_ref() {
            affected.extend(sources.allowed.iter().map(|source| source.service.clone()));
        }
        if sources.allowed.is_empty() && sources.refused.is_empty() {
            self.by_target.remove(target);
        }
    }
}

/// Returns the time of creation of a Service, and the other Service that it names.
fn named(service: &Service) -> Option<(i64, &Key)> {
    let target = service.tuning.as_deref()?.redirect_from.as_ref()?;
    (*target != service.key).then(|| (service.created.unwrap_or(i64::MAX), target))
}

/// Returns the Service whose endpoints on this node take the clients of `target`.
pub(super) fn source<'a>(target: &Service, cluster: ClusterContext<'a>) -> Option<View<'a>> {
    let owner = cluster.redirects.owner(&target.key)?;
    let source = cluster.world.view(owner)?;
    (source.service.exempt.is_none() && target.external_policy == Policy::Cluster).then_some(source)
}

/// Reports a Service that names another one in vain, and at the other one those of other namespaces.
pub(super) fn warn(view: &View<'_>, cluster: ClusterContext<'_>, warnings: &mut Vec<Warning>) {
    let service = view.service;
    if let Some(target) = service.tuning.as_deref().and_then(|tuning| tuning.redirect_from.as_ref())
        && let Some(refusal) = refusal(service, target, cluster)
    {
        warnings.push(Warning::RedirectRefused { target: target.clone(), refusal });
    }
    if let Some(refused) = cluster.redirects.refused(&service.key) {
        let sources = refused.iter().take(LISTED).cloned().collect();
        warnings.push(Warning::RedirectAttempt { sources, count: refused.len() });
    }
}

/// The reason why `service` does not take the clients of `target`, apart from the state of its endpoints.
fn refusal(service: &Service, target: &Key, cluster: ClusterContext<'_>) -> Option<RedirectRefusal> {
    if *target == service.key {
        return Some(RedirectRefusal::Itself);
    }
    match service.exempt {
        Some(Exempt::Headless) => return Some(RedirectRefusal::Headless),
        Some(_) => return None,
        None => {}
    }
    if cluster.redirects.refused(target).is_some_and(|refused| refused.contains(&service.key)) {
        return Some(RedirectRefusal::OtherNamespace);
    }
    if let Some(owner) = cluster.redirects.owner(target).filter(|owner| **owner != service.key) {
        return Some(RedirectRefusal::Older(owner.clone()));
    }
    let target = cluster.world.view(target).map(|view| view.service).filter(|target| target.exempt.is_none());
    let Some(target) = target else { return Some(RedirectRefusal::NoTarget) };
    if target.external_policy == Policy::Local {
        return Some(RedirectRefusal::ExternalLocal);
    }
    let has_port = |port: &crate::objects::ServicePort| {
        target.ports.iter().any(|other| other.name == port.name && other.proto == port.proto)
    };
    (!service.ports.iter().any(has_port)).then_some(RedirectRefusal::NoCommonPort)
}

#[cfg(test)]
mod tests;

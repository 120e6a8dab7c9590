//! Changes of the group of announcers: the members that it should have, the member that proposes a change, and the need
//! for the vote of the Lease.

use std::collections::BTreeSet;

use super::{Announcer, EVICTION, MAX_MEMBERS, Membership, Node, PERMIT, PeerState, SMALLEST, STAGGER, Time};

impl Announcer {
    /// True if the vote of the Lease is needed.
    #[must_use]
    pub fn needs_lease(&self, now: Time) -> bool {
        let may = !self.claims.is_empty() && !self.is_cut_off;
        let Some(membership) = self.membership.as_ref().filter(|_| may) else { return false };
        let votes = |node: &Node| *node == self.me || self.peers.alive(node, now).is_some_and(|state| !state.is_silent);
        let would_decide = |votes: &dyn Fn(&Node) -> bool| {
            !membership.is_majority(votes, false) && membership.is_majority(votes, true)
        };
        would_decide(&votes) || (self.is_lease_tied && membership.newest().len().is_multiple_of(2))
    }

    /// Returns a membership to write into the Lease, which has the version `written`.
    #[must_use]
    pub fn proposal(&mut self, written: Option<u64>, now: Time) -> Option<Membership> {
        let membership = self.membership.as_ref()?;
        if written.is_none_or(|version| version < membership.version) {
            return Some(membership.clone());
        }
        let has_settled = |node: &Node| {
            let settled = |state: &PeerState| state.version == membership.version && state.is_settled;
            if *node == self.me { now >= self.settled } else { self.peers.alive(node, now).is_some_and(settled) }
        };
        let may_change = membership.contains(&self.me)
            && has_settled(&self.me)
            && !self.permits.is_silent(now)
            && membership.is_majority(has_settled, true);
        let change = membership.toward(&self.desired(membership, now)).filter(|_| may_change);
        if change.is_none() {
            self.change_since = None;
            return None;
        }
        let is_before = |node: &&Node| **node < self.me && self.peers.alive(node, now).is_some();
        let place = membership.voters().iter().filter(is_before).count();
        let since = *self.change_since.get_or_insert(now);
        change.filter(|_| now >= since + STAGGER * u32::try_from(place).unwrap_or(u32::MAX))
    }

    /// True if this announcer may make the Lease: no other one knows a membership.
    #[must_use]
    pub fn may_begin(&self, now: Time) -> bool {
        let has_membership = |node: &Node| self.peers.alive(node, now).is_some_and(|state| state.version > 0);
        now >= self.started + PERMIT && !self.nodes.iter().flatten().any(has_membership)
    }

    /// Lists the members from which nothing was heard for some time.
    #[must_use]
    pub fn silent_members(&self, now: Time) -> Vec<Node> {
        let members = self.membership.as_ref().map(Membership::voters).unwrap_or_default();
        members.into_iter().filter(|node| *node != self.me && self.peers.alive(node, now).is_none()).collect()
    }

    /// Returns the members that the group should have: nodes that answer, and members that have not been away for long.
    fn desired(&self, membership: &Membership, now: Time) -> BTreeSet<Node> {
        let Some(nodes) = &self.nodes else { return membership.members.clone() };
        let is_alive = |node: &Node| *node == self.me || self.peers.alive(node, now).is_some();
        let is_absent = |node: &Node| !is_alive(node) && now >= self.peers.heard(node).max(self.started) + EVICTION;
        let is_member = |node: &Node| membership.members.contains(node);
        let stays = |node: &Node| is_member(node) && nodes.contains(node);
        let without_absent = membership.members.iter().filter(|node| stays(node) && !is_absent(node)).count();
        let evicts = without_absent >= SMALLEST;
        let wanted = |node: &&Node| if is_member(node) { !evicts || !is_absent(node) } else { is_alive(node) };
        let mut desired: BTreeSet<Node> = nodes.iter().filter(wanted).cloned().collect();
        while desired.len() > MAX_MEMBERS {
            // Members go before nodes that are not.
            let last = desired.iter().rev().find(|node| !is_member(node)).or_else(|| desired.last()).cloned();
            desired.remove(&last.unwrap_or_else(|| self.me.clone()));
        }
        desired
    }
}

//! Members of the group of announcers, and majorities of them. A membership has a version; a change goes through a
//! version with both sets, in which every decision needs a majority of each (joint consensus, as in Raft), so that
//! majorities of a version and of the next one always have a common voter.

use std::collections::BTreeSet;

use super::{Node, Time};

/// The members of the group, as of a version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Membership {
    /// Grows with each change.
    pub version: u64,
    /// The members.
    pub members: BTreeSet<Node>,
    /// The members after the change that is under way; none between changes.
    pub next: Option<BTreeSet<Node>>,
}

impl Membership {
    /// Makes the first membership of a group, which has one member.
    #[must_use]
    pub fn first(node: Node) -> Self {
        Self { version: 1, members: [node].into(), next: None }
    }

    fn sets(&self) -> impl Iterator<Item = &BTreeSet<Node>> {
        [&self.members].into_iter().chain(&self.next)
    }

    /// The members after the change that is under way, or the members.
    #[must_use]
    pub fn newest(&self) -> &BTreeSet<Node> {
        self.next.as_ref().unwrap_or(&self.members)
    }

    /// True if the node has a vote.
    #[must_use]
    pub fn contains(&self, node: &str) -> bool {
        self.sets().any(|set| set.contains(node))
    }

    /// All nodes with a vote.
    #[must_use]
    pub(crate) fn voters(&self) -> BTreeSet<Node> {
        self.sets().flatten().cloned().collect()
    }

    /// True if the node is the only voter.
    #[must_use]
    pub(crate) fn is_alone(&self, node: &str) -> bool {
        self.voters().iter().all(|voter| **voter == *node)
    }

    /// Returns the time until which a majority of every set votes. The Lease has a vote in a set of even size.
    pub(super) fn until(&self, vote: impl Fn(&Node) -> Time, lease: Time) -> Time {
        let of_set = |set: &BTreeSet<Node>| {
            let is_even = !set.is_empty() && set.len().is_multiple_of(2);
            let mut votes: Vec<Time> = set.iter().map(&vote).chain(is_even.then_some(lease)).collect();
            votes.sort_unstable();
            // The middle one of an odd number of sorted votes: a majority lasts as long or longer.
            votes.get(votes.len() / 2).copied().unwrap_or_default()
        };
        self.sets().map(of_set).min().unwrap_or_default()
    }

    /// True if the nodes that vote are a majority of every set.
    pub(super) fn is_majority(&self, votes: impl Fn(&Node) -> bool, lease: bool) -> bool {
        let time = |votes: bool| if votes { Time::MAX } else { Time::ZERO };
        self.until(|node| time(votes(node)), time(lease)) == Time::MAX
    }

    /// Returns the next version on the way to the members `desired`; none if there is nothing to change. It may be
    /// written only once a majority has settled in this version.
    pub(super) fn toward(&self, desired: &BTreeSet<Node>) -> Option<Self> {
        let version = self.version + 1;
        match &self.next {
            Some(next) => Some(Self { version, members: next.clone(), next: None }),
            None if desired.is_empty() || *desired == self.members => None,
            None => Some(Self { version, members: self.members.clone(), next: Some(desired.clone()) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &str) -> BTreeSet<Node> {
        names.chars().map(|name| Node::from(name.to_string())).collect()
    }

    fn membership(members: &str, next: Option<&str>) -> Membership {
        Membership { version: 1, members: set(members), next: next.map(set) }
    }

    #[test]
    fn a_majority_is_more_than_half_and_the_lease_votes_in_even_sets() {
        let check = |members: &str, next: Option<&str>, votes: &str, lease: bool, expected: bool| {
            let got = membership(members, next).is_majority(|node| votes.contains(&**node), lease);
            assert_eq!(got, expected, "{members} {next:?} {votes} {lease}");
        };
        check("a", None, "a", false, true);
        check("a", None, "", true, false);
        check("ab", None, "ab", false, true);
        check("ab", None, "a", false, false);
        check("ab", None, "a", true, true);
        check("ab", None, "", true, false);
        check("abc", None, "ab", false, true);
        check("abc", None, "a", true, false);
        check("abcd", None, "ab", true, true);
        check("abcd", None, "abc", false, true);
        check("abcd", None, "ab", false, false);
        check("abc", Some("ab"), "ac", false, false);
        check("abc", Some("ab"), "ac", true, true);
        check("abc", Some("ade"), "ab", false, false);
        check("abc", Some("ade"), "abd", false, true);
        check("", None, "a", true, false);
    }

    #[test]
    fn a_majority_lasts_until_the_time_of_its_first_member_to_end() {
        let time = |node: &Node| {
            Time::from_secs(match &**node {
                "a" => 5,
                "b" => 3,
                _ => 1,
            })
        };
        let until = |members: &str, lease: u64| membership(members, None).until(time, Time::from_secs(lease)).as_secs();
        assert_eq!((until("a", 9), until("ab", 0), until("ab", 4), until("ab", 9)), (5, 3, 4, 5));
        assert_eq!((until("abc", 9), until("abcd", 0), until("abcd", 2)), (3, 1, 2));
    }

    #[test]
    fn a_change_goes_through_both_sets() {
        let first = membership("ab", None);
        assert_eq!(first.toward(&set("ab")), None);
        assert_eq!(first.toward(&set("")), None);
        let both = first.toward(&set("abc")).expect("a change");
        assert_eq!(both, Membership { version: 2, ..membership("ab", Some("abc")) });
        let last = both.toward(&set("a")).expect("the change that is under way ends first");
        assert_eq!(last, Membership { version: 3, ..membership("abc", None) });
    }
}

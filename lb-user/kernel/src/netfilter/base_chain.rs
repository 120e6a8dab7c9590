//! A base chain of nf_tables or of legacy iptables, with all rules that it can reach. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Chain,
    rule::{Rule, RuleAction},
};

/// Place of a base chain at a hook of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChainHook {
    /// NF_INET_PRE_ROUTING 0, _LOCAL_IN 1, _FORWARD 2, _LOCAL_OUT 3, _POST_ROUTING 4.
    pub number: u32,
    /// Order among the chains of the hook, ascending (NF_IP_PRI_): destination NAT is at -100.
    pub priority: i32,
    /// True if the policy, or a last rule for all packets, drops packets that no rule accepts.
    pub drops: bool,
}

/// A base chain, and the rules that packets may meet in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HookedChain {
    /// Table and name.
    pub chain: Chain,
    /// Place at a hook of the kernel.
    pub hook: ChainHook,
    /// Rules of the chain and of the chains to which they jump, each with the name of its chain.
    pub rules: Vec<(String, Rule)>,
}

impl HookedChain {
    /// Follows the jumps of the base chain's rules; `chains` has the rules of the other chains of its table.
    pub(super) fn new(chain: Chain, mut hook: ChainHook, own: Vec<Rule>, chains: &[(String, Rule)]) -> Self {
        hook.drops |= own.last().is_some_and(|last| !last.is_conditional && last.actions == [RuleAction::Drop]);
        let mut by_name = BTreeMap::<&str, Vec<&Rule>>::new();
        for (name, rule) in chains {
            by_name.entry(name).or_default().push(rule);
        }
        let (mut seen, mut left) = (BTreeSet::new(), Vec::new());
        let mut rules: Vec<(String, Rule)> = own.into_iter().map(|rule| (chain.name.clone(), rule)).collect();
        left.extend(rules.iter().flat_map(|(_, rule)| rule.chains().map(str::to_owned)));
        while let Some(name) = left.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            for rule in by_name.get(name.as_str()).into_iter().flatten() {
                left.extend(rule.chains().map(str::to_owned));
                rules.push((name.clone(), (*rule).clone()));
            }
        }
        Self { chain, hook, rules }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{NftTable, rule::RuleAction},
        *,
    };
    use lb_common::Family;

    #[test]
    fn rules_behind_jumps_belong_to_the_base_chain() {
        let jump = |to: &str| Rule { actions: vec![RuleAction::Jump(to.to_owned())], ..Rule::default() };
        let drop = Rule { ports: vec![80..=80], actions: vec![RuleAction::Drop], ..Rule::default() };
        let table = NftTable { family: Family::V4.into(), name: "filter".to_owned() };
        let chains: Vec<_> = [("a", jump("b")), ("b", drop.clone()), ("b", jump("a")), ("other", drop.clone())]
            .map(|(name, rule)| (name.to_owned(), rule))
            .into();
        let hook = ChainHook { number: 2, priority: 0, drops: false };
        let chain = Chain { table, name: "FORWARD".to_owned() };
        let hooked = HookedChain::new(chain, hook, vec![jump("a")], &chains);
        let names: Vec<_> = hooked.rules.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["FORWARD", "a", "b", "b"], "a circle ends, and other chains are not reached");
        assert!(!hooked.hook.drops);
    }

    #[test]
    fn a_last_rule_that_drops_all_packets_is_as_a_policy() {
        let table = NftTable { family: Family::V4.into(), name: "filter".to_owned() };
        let drops = |rules: Vec<Rule>| {
            let chain = Chain { table: table.clone(), name: "FORWARD".to_owned() };
            HookedChain::new(chain, ChainHook { number: 2, priority: 0, drops: false }, rules, &[]).hook.drops
        };
        let drop = |is_conditional| Rule { actions: vec![RuleAction::Drop], is_conditional, ..Rule::default() };
        let accept = Rule { actions: vec![RuleAction::Accept], ..Rule::default() };
        assert!(drops(vec![accept.clone(), drop(false)]));
        assert!(!drops(vec![drop(true)]) && !drops(vec![drop(false), accept]) && !drops(Vec::new()));
    }
}

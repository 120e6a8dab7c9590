//! The permits that a voter has granted: for each address, the one announcer that may answer for it, and until when.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Node, PERMIT, Time};

/// The memory of a voter.
#[derive(Debug)]
pub(super) struct Permits {
    permits: BTreeMap<IpAddr, Permit>,
    /// Until then nothing is granted: a voter that has started has forgotten its permits.
    silent_until: Time,
}

#[derive(Debug)]
struct Permit {
    holder: Node,
    until: Time,
}

impl Permits {
    /// Makes the memory of a voter that starts `now`.
    pub(super) fn new(now: Time) -> Self {
        Self { permits: BTreeMap::new(), silent_until: now + PERMIT }
    }

    /// Records a permit that is known from before the start.
    pub(super) fn remember(&mut self, addr: IpAddr, holder: Node, until: Time) {
        self.permits.insert(addr, Permit { holder, until });
    }

    pub(super) fn is_silent(&self, now: Time) -> bool {
        now < self.silent_until
    }

    /// Grants or renews a permit, unless another announcer has one. True if `asker` has it now.
    pub(super) fn grant(&mut self, addr: IpAddr, asker: &Node, now: Time) -> bool {
        let until = now + PERMIT;
        let is_silent = self.is_silent(now);
        match self.permits.get_mut(&addr) {
            Some(permit) if permit.until > now => {
                let is_own = permit.holder == *asker;
                if is_own {
                    permit.until = until;
                }
                is_own
            }
            _ if is_silent => false,
            _ => {
                self.remember(addr, asker.clone(), until);
                true
            }
        }
    }

    /// Ends a permit, if `holder` has it.
    pub(super) fn void(&mut self, addr: IpAddr, holder: &str) {
        if self.permits.get(&addr).is_some_and(|permit| *permit.holder == *holder) {
            self.permits.remove(&addr);
        }
    }

    /// Returns the holder of the permit, and its end.
    pub(super) fn holder(&self, addr: &IpAddr, now: Time) -> Option<(&Node, Time)> {
        let permit = self.permits.get(addr).filter(|permit| permit.until > now)?;
        Some((&permit.holder, permit.until))
    }

    /// Forgets permits that have ended.
    pub(super) fn prune(&mut self, now: Time) {
        self.permits.retain(|_, permit| permit.until > now);
    }

    /// Iterates over the permits that have not ended.
    pub(super) fn current(&self, now: Time) -> impl Iterator<Item = (IpAddr, &Node)> {
        let is_current = move |(_, permit): &(&IpAddr, &Permit)| permit.until > now;
        self.permits.iter().filter(is_current).map(|(addr, permit)| (*addr, &permit.holder))
    }
}

//! The vote of the API server, in groups of even size: one Lease, which also has the membership. An announcer has the
//! vote for [`HOLD`] after the time before its write. Another one takes the Lease over once it has seen it unchanged
//! for as long as a permit lasts. Every write names the version that it replaces, so that of two writers one fails.

use super::{HOLD, Membership, Node, PERMIT, Time};

/// Interval of renewals while the vote is needed.
const RENEWAL: Time = Time::from_millis(500);
/// Time for which the vote is kept when it is needed no longer.
const LINGER: Time = Time::from_secs(3);
/// Interval of reads of the Lease. A known version makes a take-over one request.
const READ_INTERVAL: Time = Time::from_secs(10);

/// The Lease, as it was read or written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseState<V> {
    /// Version of the Lease, by which a write is refused if it has changed.
    pub version: V,
    /// The announcer that has the vote.
    pub holder: Option<Node>,
    /// The membership; none if another program has written the Lease.
    pub membership: Option<Membership>,
}

/// A request to the API server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaseRequest<V> {
    /// Read the Lease; make it, with a membership of this announcer alone, if there is none.
    Read,
    /// Replace this version by one with this holder and membership.
    Write(LeaseState<V>),
}

/// The knowledge of an announcer of the Lease.
#[derive(Debug)]
pub struct LeaseVote<V> {
    me: Node,
    known: Option<(LeaseState<V>, Time)>,
    looked: Time,
    until: Time,
    needed: Option<Time>,
}

impl<V: Clone + PartialEq> LeaseVote<V> {
    /// Makes a vote of an announcer that knows nothing of the Lease.
    #[must_use]
    pub fn new(me: Node) -> Self {
        Self { me, known: None, looked: Time::ZERO, until: Time::ZERO, needed: None }
    }

    /// Time until which this announcer has the vote.
    #[must_use]
    pub fn until(&self) -> Time {
        self.until
    }

    /// Version of the membership in the Lease; 0 without one. None while the Lease is not known.
    #[must_use]
    pub fn written_version(&self) -> Option<u64> {
        let (state, _) = self.known.as_ref()?;
        Some(state.membership.as_ref().map_or(0, |membership| membership.version))
    }

    /// True if the vote is to be given up: [`LeaseVote::give_up`], then the request.
    #[must_use]
    pub fn is_spare(&self, now: Time) -> bool {
        self.is_mine() && self.needed.is_none_or(|needed| now >= needed + LINGER)
    }

    fn is_mine(&self) -> bool {
        self.known.as_ref().is_some_and(|(state, _)| state.holder.as_ref() == Some(&self.me))
    }

    /// Ends the vote of this announcer. Its addresses must not rest on the vote any more when the next request leaves.
    pub fn give_up(&mut self) {
        self.until = Time::ZERO;
    }

    /// Returns the next request; none if there is nothing to ask now. `proposal` is a membership to write.
    pub fn request(&mut self, is_needed: bool, proposal: Option<Membership>, now: Time) -> Option<LeaseRequest<V>> {
        if is_needed {
            self.needed = Some(now);
        }
        let Some((state, since)) = &self.known else { return Some(LeaseRequest::Read) };
        if let Some(membership) = proposal {
            return Some(LeaseRequest::Write(LeaseState { membership: Some(membership), ..state.clone() }));
        }
        let holder = match &state.holder {
            Some(holder) if *holder == self.me => {
                let is_spare = self.is_spare(now);
                if is_spare && self.until == Time::ZERO {
                    None
                } else if !is_spare && self.until < now + HOLD.saturating_sub(RENEWAL) {
                    Some(self.me.clone())
                } else {
                    return None;
                }
            }
            None if is_needed => Some(self.me.clone()),
            Some(_) if is_needed && now >= *since + PERMIT => Some(self.me.clone()),
            _ => return (now >= self.looked + READ_INTERVAL).then_some(LeaseRequest::Read),
        };
        Some(LeaseRequest::Write(LeaseState { holder, ..state.clone() }))
    }

    /// Takes the Lease as a request that began at `start` has read it, and ended `now`.
    pub fn read(&mut self, state: LeaseState<V>, now: Time) {
        self.looked = now;
        if self.known.as_ref().is_none_or(|(known, _)| *known != state) {
            self.known = Some((state, now));
        }
    }

    /// Takes the Lease as a write that began at `start` has left it.
    pub fn written(&mut self, state: LeaseState<V>, start: Time, now: Time) {
        if state.holder.as_ref() == Some(&self.me) {
            self.until = self.until.max(start + HOLD);
        }
        self.known = None;
        self.read(state, now);
    }

    /// Forgets the Lease: a write was refused, or has an unknown end.
    pub fn forget(&mut self) {
        self.known = None;
    }
}

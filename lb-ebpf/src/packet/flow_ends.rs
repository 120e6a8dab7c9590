//! Marks of the node's ends of flows, by which most packets of no flow are known without a look-up in `FLOWS`, whose
//! buckets no cache has: see [`FlowEnds`].

use lb_common::{FlowEnds, FlowKey, Hook, Tuple};

use crate::{globals::FLOWS_MOVE, maps::FLOW_ENDS};

/// False if no flow has packets of this tuple at the hook.
#[inline(always)]
pub fn may_be_of_a_flow(tuple: &Tuple, hook: Hook) -> bool {
    let is_marked = |place| FLOW_ENDS.get(place).is_none_or(|mark| *mark != 0);
    FLOWS_MOVE.load() != 0 || is_marked(FlowEnds::place(tuple, hook)) || !is_marked(FlowEnds::ARE_COMPLETE)
}

/// Marks the end of a key, before it gets an entry. Not inlined: the verifier walks it once for each caller.
#[inline(never)]
pub fn mark(key: &FlowKey) {
    if let Some(mark) = FLOW_ENDS.get_ptr_mut(key.end()) {
        // SAFETY: a word of our map. Written if it must be: other CPUs read it for each packet.
        unsafe {
            if *mark == 0 {
                *mark = 1;
            }
        }
    }
}

//! IPsec policies of a network namespace (include/uapi/linux/xfrm.h), as far as they apply to forwarded packets.

use std::io;

use super::{
    NetlinkSocket,
    codec::{find, u32_at},
};

/// XFRMGRP_POLICY
pub(super) const POLICIES: u32 = 8;

/// XFRM_MSG_GETPOLICY
const GETPOLICY: u16 = 0x15;
/// Length of a `struct xfrm_userpolicy_id`, the body of a request.
const REQUEST: usize = 64;
/// Length of a `struct xfrm_userpolicy_info`, and the offset of its direction.
const INFO: usize = 168;
const DIRECTION: usize = 160;
/// XFRM_POLICY_OUT
const OUT: u8 = 1;
/// XFRMA_IF_ID
const IF_ID: u16 = 31;

/// True if the network namespace of this thread has a policy for packets that leave by any device. Policies of an xfrm
/// interface apply to that device's packets alone.
///
/// # Errors
/// The kernel's errno, or an error if the list changes during every reading.
pub fn has_policies() -> io::Result<bool> {
    let Some(mut netlink) = NetlinkSocket::xfrm()? else { return Ok(false) };
    Ok(netlink.dump(GETPOLICY, &[0; REQUEST], |body| Some(applies(body)))?.contains(&true))
}

fn applies(policy: &[u8]) -> bool {
    let interface = find(policy.get(INFO..).unwrap_or_default(), IF_ID).and_then(|id| u32_at(id, 0));
    policy.get(DIRECTION) == Some(&OUT) && interface.unwrap_or(0) == 0
}

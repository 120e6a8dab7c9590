//! The messages of nf_tables (include/uapi/linux/netfilter/nf_tables.h), as bytes: what is asked, and what is answered. Pure.

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NlasIterator};

use crate::spec::Family;

// include/uapi/linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Length of a netlink header, and of what stands behind it in every message of netfilter (`struct nfgenmsg`).
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// NFNL_SUBSYS_NFTABLES, as the high octet of a type.
const SUBSYSTEM: u16 = 10 << 8;

/// What can be listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    Tables,
    Chains,
}

impl What {
    /// NFT_MSG_GETTABLE, NFT_MSG_GETCHAIN
    const fn request(self) -> u16 {
        SUBSYSTEM
            | match self {
                Self::Tables => 1,
                Self::Chains => 4,
            }
    }

    /// NFT_MSG_NEWTABLE, NFT_MSG_NEWCHAIN: how each one is told.
    const fn reply(self) -> u16 {
        SUBSYSTEM
            | match self {
                Self::Tables => 0,
                Self::Chains => 3,
            }
    }

    /// The attributes with the name of the table, and of the chain.
    const fn names(self) -> (u16, Option<u16>) {
        match self {
            // NFTA_TABLE_NAME
            Self::Tables => (1, None),
            // NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
            Self::Chains => (1, Some(3)),
        }
    }
}

/// One message of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    /// A table, or a chain of it: empty for a table.
    Named { table: String, chain: String },
    /// The end: 0, or the number of an error.
    End(i32),
    /// What nobody asked for.
    Other,
}

/// The request for a list.
pub(super) fn request(what: What, family: Family, sequence: u32) -> Vec<u8> {
    let length = u32::try_from(HEADER + GENERIC).expect("small");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(what.request().to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // The kernel fills in whose it is.
    bytes.extend([0; 4]);
    // NFPROTO_IPV4, NFPROTO_IPV6; version 0, no resource.
    bytes.extend([if family == Family::V4 { 2 } else { 10 }, 0, 0, 0]);
    bytes
}

/// The messages of one datagram that answer the request `sequence`, and whether each says that the list changed meanwhile.
pub(super) fn replies(mut bytes: &[u8], what: What, sequence: u32) -> Vec<(bool, Reply)> {
    let mut replies = Vec::new();
    while let Ok(message) = NetlinkBuffer::new_checked(bytes) {
        if message.sequence_number() == sequence {
            let reply = match message.message_type() {
                NLMSG_DONE | NLMSG_ERROR => {
                    let code = message.payload().first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    Reply::End(code.wrapping_neg())
                }
                kind if kind == what.reply() => named(what, message.payload()).unwrap_or(Reply::Other),
                _ => Reply::Other,
            };
            replies.push((message.flags() & NLM_F_DUMP_INTR != 0, reply));
        }
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    replies
}

fn named(what: What, payload: &[u8]) -> Option<Reply> {
    let (table, chain) = what.names();
    let (mut in_table, mut called) = (None, None);
    for attribute in NlasIterator::new(payload.get(GENERIC..)?).map_while(Result::ok) {
        if attribute.kind() == table {
            in_table = Some(text(attribute.value()));
        } else if Some(attribute.kind()) == chain {
            called = Some(text(attribute.value()));
        }
    }
    Some(Reply::Named { table: in_table?, chain: if chain.is_some() { called? } else { String::new() } })
}

/// A text, which a zero ends.
fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets.split(|&octet| octet == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + body.len()).expect("small");
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        bytes.extend([sequence.to_ne_bytes(), [0; 4]].concat());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("small");
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_request_is_a_dump_of_one_family() {
        let bytes = request(What::Chains, Family::V6, 7);
        let header = NetlinkBuffer::new_checked(&bytes).expect("a message");
        assert_eq!((header.length(), header.message_type(), header.sequence_number()), (20, 0xa04, 7));
        assert_eq!(header.flags(), NLM_F_REQUEST | NLM_F_DUMP);
        assert_eq!(bytes.get(16..), Some(&[10, 0, 0, 0][..]));
    }

    #[test]
    fn tables_and_chains_are_read_and_the_end_is_seen() {
        let chain =
            [vec![2, 0, 0, 0], attribute(1, b"nat\0"), attribute(2, &[0; 8]), attribute(3, b"KUBE-A\0")].concat();
        let stranger = message(0xa00, 0, 8, &[2, 0, 0, 0]);
        let bytes = [
            message(0xa03, 0, 7, &chain),
            stranger,
            message(0xa03, NLM_F_DUMP_INTR, 7, &[2, 0, 0, 0]),
            message(NLMSG_DONE, 0, 7, &0_i32.to_ne_bytes()),
        ]
        .concat();
        let named = Reply::Named { table: "nat".to_owned(), chain: "KUBE-A".to_owned() };
        assert_eq!(replies(&bytes, What::Chains, 7), [(false, named), (true, Reply::Other), (false, Reply::End(0))]);

        let table = [vec![2, 0, 0, 0], attribute(1, b"kube-proxy\0")].concat();
        let named = Reply::Named { table: "kube-proxy".to_owned(), chain: String::new() };
        assert_eq!(replies(&message(0xa00, 0, 7, &table), What::Tables, 7), [(false, named)]);
        let refused = message(NLMSG_ERROR, 0, 7, &(-libc::EINVAL).to_ne_bytes());
        assert_eq!(replies(&refused, What::Tables, 7), [(false, Reply::End(libc::EINVAL))]);
    }

    #[test]
    fn what_is_cut_short_is_no_message() {
        let whole = message(0xa00, 0, 7, &[vec![2, 0, 0, 0], attribute(1, b"a\0")].concat());
        for length in 0..whole.len() {
            assert!(replies(whole.get(..length).expect("shorter"), What::Tables, 7).is_empty(), "{length}");
        }
    }
}

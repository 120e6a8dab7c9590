//! The part of DNS (RFC 1035) that the demo needs: a query with one question, a response with one TXT record.

const HEADER: usize = 12;
const TXT: u16 = 16;
const IN: u16 = 1;

/// A query for the TXT record of `name`.
pub(super) fn query(id: u16, name: &str) -> Vec<u8> {
    // Recursion desired, as stub resolvers ask; one question.
    let mut message: Vec<u8> = [id, 0x0100, 1, 0, 0, 0].iter().flat_map(|word| word.to_be_bytes()).collect();
    for label in name.split('.') {
        push_text(&mut message, label);
    }
    message.push(0);
    message.extend([TXT, IN].iter().flat_map(|word| word.to_be_bytes()));
    message
}

/// The response to a query: its question, and `text`. None if it is not a query.
pub(super) fn answer(query: &[u8], text: &str) -> Option<Vec<u8>> {
    let end = question_end(query)?;
    let is_query = query.get(2)? & 0x80 == 0;
    let mut message = query.get(..end)?.to_vec();
    // A response, recursion available; one question, one answer, no additional records.
    let words = [0x8180, 1, 1, 0, 0].iter().flat_map(|word: &u16| word.to_be_bytes());
    message.splice(2..HEADER, words);
    let mut data = Vec::new();
    push_text(&mut data, text);
    // The name of the question, at offset 12; TTL 0.
    message.extend([0xc00c, TXT, IN, 0, 0, u16::try_from(data.len()).ok()?].iter().flat_map(|word| word.to_be_bytes()));
    message.extend(data);
    is_query.then_some(message)
}

/// The text in the response to the query `id`.
pub(super) fn text(answer: &[u8], id: u16) -> Option<String> {
    let word = |at: usize| Some(u16::from_be_bytes([*answer.get(at)?, *answer.get(at + 1)?]));
    let end = question_end(answer)?;
    if word(0)? != id || word(6)? == 0 || word(end + 2)? != TXT {
        return None;
    }
    let data = answer.get(end + HEADER..)?;
    let (len, text) = data.split_first()?;
    Some(String::from_utf8_lossy(text.get(..usize::from(*len))?).into_owned())
}

fn question_end(message: &[u8]) -> Option<usize> {
    let labels = message.get(HEADER..)?.iter().position(|octet| *octet == 0)?;
    let end = HEADER + labels + 1 + 4;
    (end <= message.len()).then_some(end)
}

/// Appends a length and that many octets, at most 255.
fn push_text(message: &mut Vec<u8>, text: &str) {
    let len = u8::try_from(text.len()).unwrap_or(u8::MAX);
    message.push(len);
    message.extend(text.bytes().take(len.into()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_answered_and_the_answer_read() {
        let query = query(7, "who.are.you");
        let reply = answer(&query, "a").unwrap();
        assert_eq!(text(&reply, 7).as_deref(), Some("a"));
        assert_eq!(text(&reply, 8), None);
        assert_eq!(answer(&reply, "b"), None, "a response is not answered");
    }

    #[test]
    fn additional_records_of_a_query_are_not_in_the_answer() {
        let plain = query(7, "a");
        let mut more = plain.clone();
        more[11] = 1;
        more.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        assert_eq!(answer(&more, "x"), answer(&plain, "x"));
    }

    #[test]
    fn a_truncated_message_is_ignored() {
        let reply = answer(&query(7, "a"), "x").unwrap();
        for len in 0..reply.len() {
            assert_eq!(text(&reply[..len], 7), None);
        }
        assert_eq!(answer(&[0; 5], "x"), None);
    }
}

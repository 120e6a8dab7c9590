//! The key by which announcers know each other: HMAC-SHA256 of each datagram. A file may have several keys, a line
//! each: the first one signs and all verify, so that a key can be replaced without a gap.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use ring::hmac;

/// Bytes of a signature.
const SIGNATURE: usize = 32;
/// Fewest bytes of a key.
const SHORTEST: usize = 16;

/// Keys of announcers.
pub(super) struct Keys(Vec<hmac::Key>);

impl Keys {
    /// Reads a file with keys.
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read(file).with_context(|| format!("reading the key of announcers {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("the key of announcers {}", file.display()))
    }

    fn parse(text: &[u8]) -> Result<Self> {
        let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        let lines: Vec<&[u8]> = lines.collect();
        ensure!(!lines.is_empty(), "the file is empty: write a line of {SHORTEST} or more random characters");
        ensure!(
            lines.iter().all(|line| line.len() >= SHORTEST),
            "a key has fewer than {SHORTEST} characters: write random ones, as `openssl rand -hex 32` does"
        );
        Ok(Self(lines.into_iter().map(|line| hmac::Key::new(hmac::HMAC_SHA256, line)).collect()))
    }

    /// Appends the signature.
    pub(super) fn sign(&self, bytes: &mut Vec<u8>) {
        if let Some(key) = self.0.first() {
            let signature = hmac::sign(key, bytes);
            bytes.extend(signature.as_ref());
        }
    }

    /// Returns the bytes without their signature; none if no key verifies it.
    pub(super) fn verify<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let (content, signature) = bytes.split_at_checked(bytes.len().checked_sub(SIGNATURE)?)?;
        self.0.iter().any(|key| hmac::verify(key, content, signature).is_ok()).then_some(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "0123456789abcdef";
    const NEW: &str = "fedcba9876543210";

    fn keys(text: &str) -> Keys {
        Keys::parse(text.as_bytes()).expect("keys")
    }

    #[test]
    fn only_bytes_that_a_key_has_signed_are_taken() {
        let mut bytes = b"content".to_vec();
        keys(OLD).sign(&mut bytes);
        assert_eq!(keys(OLD).verify(&bytes), Some(&b"content"[..]));
        assert_eq!(keys(NEW).verify(&bytes), None);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(keys(OLD).verify(&changed), None);
            assert_eq!(keys(OLD).verify(&bytes[..at]), None);
        }
    }

    #[test]
    fn a_key_is_replaced_in_steps_without_a_gap() {
        let steps = [OLD.to_owned(), format!("{OLD}\n{NEW}\n"), format!("{NEW}\n{OLD}"), NEW.to_owned()];
        for pair in steps.windows(2) {
            for (signer, verifier) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
                let mut bytes = b"content".to_vec();
                keys(signer).sign(&mut bytes);
                assert!(keys(verifier).verify(&bytes).is_some(), "{signer:?} {verifier:?}");
            }
        }
    }

    #[test]
    fn a_key_that_is_missing_or_short_is_refused() {
        for text in ["", "\n \n", "short", "0123456789abcdef\nshort"] {
            assert!(Keys::parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}

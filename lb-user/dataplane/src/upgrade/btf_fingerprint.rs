//! Fingerprints of the object's maps: key and value, field by field, from the object's BTF. Equal fingerprints in two
//! versions of the layout mean that a map may go over. Pure.
//!
//! Names of fields count, names of types do not: rename a field when its meaning changes.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context as _, Result, bail, ensure};

use crate::btf::{ARRAY, Btf, DATASEC, INT, PTR, Part, STRUCT, VAR};

/// Greatest depth of nested types; our maps have less.
const DEEPEST: u32 = 16;

/// Describes each wanted map as text, by name: the number of the map's type, then `key -> value`. Fails if the BTF is
/// broken, or a map has a type that cannot be compared.
pub(super) fn texts(btf: &[u8], is_wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, String>> {
    let btf = Btf::parse(btf)?;
    let mut texts = BTreeMap::new();
    for section in btf.types.iter().filter(|ty| ty.kind == DATASEC && btf.name(ty.name) == ".maps") {
        for variable in &section.parts {
            let variable = btf.get(variable.id)?;
            ensure!(variable.kind == VAR, "a map is no variable");
            let name = btf.name(variable.name);
            if is_wanted(&name) {
                let text = btf.map(variable.id_or_size).with_context(|| format!("map {name}"))?;
                texts.insert(name, text);
            }
        }
    }
    Ok(texts)
}

/// Hashes a description of [`texts`] (FNV-1a).
pub(super) fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

impl Btf<'_> {
    /// Describes a map. Its declaration is a struct of pointers: to key and value, and, for each number, to an array of
    /// that length.
    fn map(&self, id: u32) -> Result<String> {
        let declaration = self.get(id)?;
        let member = |wanted: &str| -> Result<u32> {
            let part = declaration.parts.iter().find(|part| self.name(part.name) == wanted);
            let pointer = self.get(part.with_context(|| format!("it has no `{wanted}`"))?.id)?;
            ensure!(pointer.kind == PTR, "`{wanted}` is no pointer");
            Ok(pointer.id_or_size)
        };
        let number = self.get(member("type")?)?.parts.first().context("`type` is no array")?.offset;
        let mut text = format!("{number}: ");
        self.describe(member("key")?, DEEPEST, &mut text)?;
        text.push_str(" -> ");
        self.describe(member("value")?, DEEPEST, &mut text)?;
        Ok(text)
    }

    fn describe(&self, id: u32, depth: u32, text: &mut String) -> Result<()> {
        let depth = depth.checked_sub(1).context("types within types without end")?;
        let ty = self.get(id)?;
        match (ty.kind, ty.parts.as_slice()) {
            (INT, _) => text.push_str(&self.name(ty.name)),
            (ARRAY, [Part { id, offset, .. }]) => {
                text.push('[');
                self.describe(*id, depth, text)?;
                write!(text, "; {offset}]")?;
            }
            (STRUCT, parts) => {
                text.push('{');
                for (at, Part { name, id, offset }) in parts.iter().enumerate() {
                    write!(text, "{}{}@{}: ", if at == 0 { "" } else { ", " }, self.name(*name), offset / 8)?;
                    self.describe(*id, depth, text)?;
                }
                text.push('}');
            }
            (kind, _) => bail!("{} is of BTF kind {kind}, which is not compared", self.name(ty.name)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::HEADER;

    /// The BTF of one map, `M`, from u32 to a struct of two fields.
    fn btf(field: &str, second_at: u32) -> Vec<u8> {
        let mut strings = vec![0_u8];
        let mut name = |text: &str| {
            let at = u32::try_from(strings.len()).expect("small");
            strings.extend(text.bytes().chain([0]));
            at
        };
        let [int, value, first, second] = ["u32", "Value", "a", field].map(&mut name);
        let [kind_of, key, value_of, map, section] = ["type", "key", "value", "M", ".maps"].map(&mut name);
        let types = [
            vec![int, INT << 24, 4, 32],
            vec![value, STRUCT << 24 | 2, 8, first, 1, 0, second, 1, second_at],
            vec![0, PTR << 24, 1],
            vec![0, PTR << 24, 2],
            vec![0, ARRAY << 24, 0, 1, 1, 9],
            vec![0, PTR << 24, 5],
            vec![0, STRUCT << 24 | 3, 24, kind_of, 6, 0, key, 3, 64, value_of, 4, 128],
            vec![map, VAR << 24, 7, 1],
            vec![section, DATASEC << 24 | 1, 24, 8, 0, 24],
        ]
        .concat();
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let len = |len: usize| u32::try_from(len).expect("small");
        for word in [len(HEADER), 0, len(types.len() * 4), len(types.len() * 4), len(strings.len())] {
            bytes.extend(word.to_le_bytes());
        }
        types.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.extend(strings);
        bytes
    }

    fn text(btf: &[u8]) -> String {
        texts(btf, |_| true).expect("sound BTF").remove("M").expect("the map")
    }

    #[test]
    fn type_fields_and_offsets_make_the_fingerprint() {
        assert_eq!(text(&btf("b", 32)), "9: u32 -> {a@0: u32, b@4: u32}");
        let all = [btf("b", 32), btf("c", 32), btf("b", 64)].map(|btf| fingerprint(&text(&btf)));
        assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2], "{all:x?}");
        assert_eq!(texts(&btf("b", 32), |_| false).expect("sound BTF"), BTreeMap::new());
    }

    #[test]
    fn a_member_is_found_by_the_whole_names_of_struct_and_member() {
        let bytes = btf("second", 32);
        let types = Btf::parse(&bytes).expect("sound BTF");
        let found = [("Value", "second"), ("Value", "a"), ("Value", "sec"), ("Val", "second"), ("u32", "a")]
            .map(|(of, member)| types.member_offset(of, member));
        assert_eq!(found, [Some(4), Some(0), None, None, None]);
    }

    #[test]
    fn truncated_btf_is_an_error() {
        let whole = btf("b", 32);
        assert!((0..whole.len() - 40).all(|len| texts(&whole[..len], |_| true).is_err()));
    }
}

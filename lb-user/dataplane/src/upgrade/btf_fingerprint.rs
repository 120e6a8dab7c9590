//! Fingerprints of the object's maps: key and value, field by field, from the object's BTF. Equal fingerprints in two
//! versions of the layout mean that a map may go over. Pure.
//!
//! Names of fields count, names of types do not: rename a field when its meaning changes.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context as _, Result, bail, ensure};

// include/uapi/linux/btf.h
const HEADER: usize = 24;
const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const VAR: u32 = 14;
const DATASEC: u32 = 15;

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

/// A member of a struct, an element of an array, or a variable of a section.
struct Part {
    name: u32,
    id: u32,
    /// Offset in bits; for an array the number of elements.
    offset: u32,
}

struct Type {
    kind: u32,
    name: u32,
    id_or_size: u32,
    parts: Vec<Part>,
}

struct Btf<'a> {
    strings: &'a [u8],
    types: Vec<Type>,
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self> {
        ensure!(bytes.starts_with(&[0x9f, 0xeb]) && bytes.len() >= HEADER, "no little-endian BTF");
        let header = word(bytes, 4)? as usize;
        let section = |offset: usize, len: usize| -> Result<&'a [u8]> {
            let start = header + word(bytes, offset)? as usize;
            bytes.get(start..start + word(bytes, len)? as usize).context("a part of the BTF is missing")
        };
        let (mut rest, strings) = (section(8, 12)?, section(16, 20)?);
        let mut types = Vec::new();
        while !rest.is_empty() {
            let (name, info, id_or_size) = (word(rest, 0)?, word(rest, 4)?, word(rest, 8)?);
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let len = 12
                + match kind {
                    PTR | 7..=12 | 16 | 18 => 0,
                    INT | VAR | 17 => 4,
                    ARRAY => 12,
                    6 | 13 => count * 8,
                    STRUCT | UNION | DATASEC | 19 => count * 12,
                    other => bail!("BTF kind {other} is not known here"),
                };
            let part = |at: usize| -> Result<Part> {
                let [name, id, offset] = [word(rest, at)?, word(rest, at + 4)?, word(rest, at + 8)?];
                Ok(match kind {
                    ARRAY => Part { name: 0, id: name, offset },
                    DATASEC => Part { name: 0, id: name, offset: id },
                    _ => Part { name, id, offset },
                })
            };
            let parts = match kind {
                ARRAY | STRUCT | UNION | DATASEC => (12..len).step_by(12).map(part).collect::<Result<_>>()?,
                _ => Vec::new(),
            };
            types.push(Type { kind, name, id_or_size, parts });
            rest = rest.get(len..).context("the BTF ends within a type")?;
        }
        Ok(Self { strings, types })
    }

    /// Returns a type by id. Ids begin with 1; 0 is void.
    fn get(&self, id: u32) -> Result<&Type> {
        let at = (id as usize).checked_sub(1).context("void, where a type is expected")?;
        self.types.get(at).with_context(|| format!("BTF type {id} is missing"))
    }

    fn name(&self, offset: u32) -> String {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        String::from_utf8_lossy(rest.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
    }

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

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let bytes = bytes.get(at..at + 4).context("the BTF ends within a number")?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn truncated_btf_is_an_error() {
        let whole = btf("b", 32);
        assert!((0..whole.len() - 40).all(|len| texts(&whole[..len], |_| true).is_err()));
    }
}

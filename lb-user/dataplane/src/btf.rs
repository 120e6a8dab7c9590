//! BTF, the kernel's format of types (Documentation/bpf/btf.rst): a parser of little-endian BTF. Pure.

use anyhow::{Context as _, Result, bail, ensure};

// include/uapi/linux/btf.h
pub(crate) const HEADER: usize = 24;
pub(crate) const INT: u32 = 1;
pub(crate) const PTR: u32 = 2;
pub(crate) const ARRAY: u32 = 3;
pub(crate) const STRUCT: u32 = 4;
const UNION: u32 = 5;
pub(crate) const VAR: u32 = 14;
pub(crate) const DATASEC: u32 = 15;

/// A member of a struct, an element of an array, or a variable of a section.
pub(crate) struct Part {
    pub(crate) name: u32,
    pub(crate) id: u32,
    /// Offset in bits; for an array the number of elements.
    pub(crate) offset: u32,
}

/// A type.
pub(crate) struct Type {
    pub(crate) kind: u32,
    pub(crate) name: u32,
    pub(crate) id_or_size: u32,
    pub(crate) parts: Vec<Part>,
}

/// The types of a kernel or of an object.
pub(crate) struct Btf<'a> {
    strings: &'a [u8],
    pub(crate) types: Vec<Type>,
}

impl<'a> Btf<'a> {
    /// Parses the types. Fails if they are broken, or of a kind that is not known here.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self> {
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
    pub(crate) fn get(&self, id: u32) -> Result<&Type> {
        let at = (id as usize).checked_sub(1).context("void, where a type is expected")?;
        self.types.get(at).with_context(|| format!("BTF type {id} is missing"))
    }

    /// Returns the name at an offset of the strings.
    pub(crate) fn name(&self, offset: u32) -> String {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        String::from_utf8_lossy(rest.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
    }

    /// Returns the offset of a member of a struct, in octets; none if there is no such member.
    pub(crate) fn member_offset(&self, of: &str, member: &str) -> Option<u32> {
        let is_of = |ty: &&Type| ty.kind == STRUCT && self.is_named(ty.name, of);
        let parts = self.types.iter().filter(is_of).flat_map(|ty| &ty.parts);
        parts.into_iter().find(|part| self.is_named(part.name, member)).map(|part| part.offset / 8)
    }

    /// True if the name at an offset of the strings is this one.
    fn is_named(&self, offset: u32, name: &str) -> bool {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        rest.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let bytes = bytes.get(at..at + 4).context("the BTF ends within a number")?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

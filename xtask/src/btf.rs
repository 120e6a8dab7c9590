//! Small repairs of the object's BTF, in place: LLVM's output for Rust, in a form that the kernel and bpftool accept.
//!
//! - A parameter without a name (a closure's environment) gets one: the kernel refuses a function type that has none,
//!   and with it the whole BTF (kernel/bpf/btf.c, `btf_func_check`).
//! - `i8` is marked as a character, so that `bpftool map dump` prints the names in the maps as strings.

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};

const HEADER: usize = 24;
const INT: u32 = 1;
const FUNC_PROTO: u32 = 13;
const ENCODING_CHAR: u32 = 2 << 24;
const ENCODING_MASK: u32 = 0x0f00_0000;

/// Repairs the BTF of an ELF object.
///
/// # Errors
/// When there is no BTF or it is not of the form that the kernel documents (Documentation/bpf/btf.rst).
pub(crate) fn repair(elf: &mut [u8]) -> Result<()> {
    let (start, len) = {
        let file = object::File::parse(&*elf).context("reading the object")?;
        let section = file.section_by_name(".BTF").context("the object has no BTF: was it linked with --btf?")?;
        section.file_range().context("the BTF section is empty")?
    };
    let (start, len) = (usize::try_from(start)?, usize::try_from(len)?);
    repair_section(elf.get_mut(start..start + len).context("the BTF section lies outside the file")?)
}

fn repair_section(btf: &mut [u8]) -> Result<()> {
    ensure!(btf.len() >= HEADER && btf.starts_with(&[0x9f, 0xeb]), "no little-endian BTF");
    let header = usize::try_from(word(btf, 4)?)?;
    let types = header + usize::try_from(word(btf, 8)?)?;
    let end = types + usize::try_from(word(btf, 12)?)?;
    let strings = header + usize::try_from(word(btf, 16)?)?;
    let parameter_name = name_offset(btf, strings, "ctx")?;
    let mut at = types;
    while at < end {
        let name = strings + usize::try_from(word(btf, at)?)?;
        let info = word(btf, at + 4)?;
        let (kind, vlen) = (info >> 24 & 0x1f, usize::try_from(info & 0xffff)?);
        at += 12;
        let extra = match kind {
            2 | 7..=12 | 16 | 18 => 0,
            INT | 14 | 17 => 4,
            3 => 12,
            6 | FUNC_PROTO => vlen * 8,
            4 | 5 | 15 | 19 => vlen * 12,
            other => bail!("BTF kind {other} is not known here"),
        };
        if kind == INT && btf.get(name..name + 3) == Some(b"i8\0") {
            let encoding = word(btf, at)? & !ENCODING_MASK | ENCODING_CHAR;
            put(btf, at, encoding)?;
        }
        if kind == FUNC_PROTO {
            for parameter in (at..at + extra).step_by(8) {
                if word(btf, parameter)? == 0 {
                    put(btf, parameter, parameter_name)?;
                }
            }
        }
        at += extra;
    }
    Ok(())
}

fn word(btf: &[u8], at: usize) -> Result<u32> {
    let bytes = btf.get(at..at + 4).context("the BTF ends within a type")?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

fn put(btf: &mut [u8], at: usize, value: u32) -> Result<()> {
    btf.get_mut(at..at + 4).context("the BTF ends within a type")?.copy_from_slice(&value.to_le_bytes());
    Ok(())
}

/// Offset of a string that the object has anyway.
fn name_offset(btf: &[u8], strings: usize, name: &str) -> Result<u32> {
    let needle = [b"\0", name.as_bytes(), b"\0"].concat();
    let all = btf.get(strings..).context("the BTF has no strings")?;
    let at = all.windows(needle.len()).position(|window| window == needle);
    let at = at.with_context(|| format!("no program has a parameter named {name}"))?;
    Ok(u32::try_from(at + 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nameless_parameter_gets_a_name_and_i8_becomes_a_character() {
        let strings = b"\0ctx\0i8\0";
        let mut types = Vec::new();
        for word in [5u32, INT << 24, 1, 1 << 24 | 8, 0, FUNC_PROTO << 24 | 1, 1, 0, 1] {
            types.extend(word.to_le_bytes());
        }
        let mut btf = vec![0x9f, 0xeb, 1, 0];
        let len = |n: usize| u32::try_from(n).expect("small").to_le_bytes();
        for n in [HEADER, 0, types.len(), types.len(), strings.len()] {
            btf.extend(len(n));
        }
        btf.extend(&types);
        btf.extend(strings);
        repair_section(&mut btf).expect("well formed");
        assert_eq!(word(&btf, HEADER + 12).expect("int"), ENCODING_CHAR | 8);
        assert_eq!(word(&btf, HEADER + 28).expect("parameter"), 1);
        let once = btf.clone();
        repair_section(&mut btf).expect("well formed");
        assert_eq!(btf, once);
    }

    #[test]
    fn other_bytes_than_btf_are_an_error() {
        assert!(repair(&mut [1, 2, 3]).is_err());
        assert!(repair_section(&mut [0x9f, 0xeb, 1, 0]).is_err());
    }
}

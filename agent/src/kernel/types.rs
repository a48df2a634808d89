//! The running kernel's own account of its types (BTF): where a member lies in a structure.
//!
//! Owns: the format. Must not know: who wants to know, or why. What does not parse is an error, never a guess.

use std::fs;

/// Where the kernel keeps it.
const PATH: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: usize = 24;
/// Name, information, and size or type.
const TYPE_BYTES: usize = 12;
/// Name, type, offset in bits.
const MEMBER_BYTES: usize = 12;

const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// Anonymous structures lie in one another, but not this deep.
const DEPTH_MAX: u32 = 16;

/// The types of a kernel.
pub(super) struct KernelTypes {
    bytes: Vec<u8>,
    /// Where each type begins; the id of the first is 1.
    begins: Vec<usize>,
    /// Where the strings lie.
    strings: usize,
}

impl KernelTypes {
    /// Those of the running kernel. The error is why they cannot be had.
    pub(super) fn read() -> Result<Self, String> {
        let bytes = fs::read(PATH).map_err(|error| format!("cannot read {PATH}: {error}"))?;
        Self::parse(bytes).ok_or_else(|| format!("{PATH} is not understood"))
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        if u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let word = |at| word(&bytes, at).map(|word| word as usize);
        let header_bytes = word(4)?.max(HEADER_BYTES);
        let first = header_bytes.checked_add(word(8)?)?;
        let end = first.checked_add(word(12)?)?;
        let strings = header_bytes.checked_add(word(16)?)?;
        let mut types = Self { bytes, begins: Vec::new(), strings };
        let mut at = first;
        while at < end {
            types.begins.push(at);
            at = at.checked_add(TYPE_BYTES)?.checked_add(types.trailing_bytes(at)?)?;
        }
        (at == end && end <= types.bytes.len()).then_some(types)
    }

    /// How far into a structure one of its members lies, in bytes; members of anonymous structures within it are its own.
    pub(super) fn offset_of(&self, structure: &str, member: &str) -> Result<u32, String> {
        let found = self.begins.iter().find_map(|at| {
            let is_it = self.kind(*at)? == STRUCT && self.name_at(*at)? == structure.as_bytes();
            self.member_bits(*at, member.as_bytes(), DEPTH_MAX).filter(|_| is_it)
        });
        match found {
            Some(bits) if bits % 8 == 0 => Ok(bits / 8),
            Some(_) => Err(format!("this kernel's `{member}` of `struct {structure}` begins within a byte")),
            None => Err(format!("this kernel's `struct {structure}` has no `{member}`")),
        }
    }

    fn member_bits(&self, at: usize, member: &[u8], depth: u32) -> Option<u32> {
        let information = self.word(at + 4)?;
        // With this flag the upper byte of a member's offset is the width of a bit field.
        let mask = if information >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
        let members =
            (0..(information & 0xffff) as usize).map(|index| at + TYPE_BYTES + index * MEMBER_BYTES);
        members.into_iter().find_map(|at| {
            let bits = self.word(at + 8)? & mask;
            match self.name_at(at)? {
                b"" => {
                    let inner = self.begins.get((self.word(at + 4)? as usize).checked_sub(1)?)?;
                    let is_nested = matches!(self.kind(*inner)?, STRUCT | UNION) && depth > 0;
                    let within = is_nested.then(|| self.member_bits(*inner, member, depth - 1))??;
                    bits.checked_add(within)
                }
                name => (name == member).then_some(bits),
            }
        })
    }

    fn kind(&self, at: usize) -> Option<u32> {
        Some(self.word(at + 4)? >> 24 & 0x1f)
    }

    /// What follows a type's first three words. None: of a kind that was unknown when this was written.
    fn trailing_bytes(&self, at: usize) -> Option<usize> {
        let count = (self.word(at + 4)? & 0xffff) as usize;
        let bytes = match self.kind(at)? {
            // Pointers, forward declarations, names for types, modifiers, functions, floats.
            2 | 7..=12 | 16 | 18 => 0,
            // Integers, variables, tags.
            1 | 14 | 17 => 4,
            // An array.
            3 => 12,
            // Enumerations, parameters.
            6 | 13 => 8 * count,
            // Members, variables of a section, wide enumerations.
            STRUCT | UNION | 15 | 19 => 12 * count,
            _ => return None,
        };
        Some(bytes)
    }

    /// The name of what begins there, whose first word refers to it.
    fn name_at(&self, at: usize) -> Option<&[u8]> {
        let name = self.bytes.get(self.strings.checked_add(self.word(at)? as usize)?..)?;
        name.split(|byte| *byte == 0).next()
    }

    fn word(&self, at: usize) -> Option<u32> {
        word(&self.bytes, at)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRINGS: &[u8] = b"\0int\0outer\0first\0second\0third\0";
    const INT: u32 = 1;
    const OUTER: u32 = 5;
    const FIRST: u32 = 11;
    const SECOND: u32 = 17;
    const THIRD: u32 = 24;

    /// `int`; a structure without a name that holds `second`; and `struct outer`, which holds `first`, and that one at byte 8.
    fn types() -> Vec<u8> {
        let structure = |members: u32| STRUCT << 24 | members;
        let words = [
            [INT, 1 << 24, 4].as_slice(),
            &[32],
            &[0, structure(1), 8, SECOND, 1, 32],
            &[OUTER, structure(2) | 1 << 31, 16, FIRST, 1, 0, 0, 2, 64],
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let (length, strings) = (types.len() as u32, STRINGS.len() as u32);
        let header = [1 << 16 | u32::from(MAGIC), 24, 0, length, length, strings];
        let header = header.iter().flat_map(|word| word.to_ne_bytes());
        header.chain(types).chain(STRINGS.iter().copied()).collect()
    }

    #[test]
    fn members_are_found() {
        let parsed = KernelTypes::parse(types()).expect("well made");
        assert_eq!(parsed.offset_of("outer", "first"), Ok(0));
        assert_eq!(parsed.offset_of("outer", "second"), Ok(12));
        assert_eq!(STRINGS.get(THIRD as usize..THIRD as usize + 5), Some(b"third".as_slice()));
        let missing = parsed.offset_of("outer", "third").expect_err("there is none");
        assert_eq!(missing, "this kernel's `struct outer` has no `third`");
        assert!(parsed.offset_of("int", "first").is_err());
    }

    #[test]
    fn half_of_it_is_nothing() {
        let whole = types();
        assert!(KernelTypes::parse(whole[..whole.len() - STRINGS.len() - 4].to_vec()).is_none());
        assert!(KernelTypes::parse(Vec::new()).is_none());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(change in 0usize..120, byte: u8) {
            let mut bytes = types();
            if let Some(place) = bytes.get_mut(change) {
                *place = byte;
            }
            if let Some(types) = KernelTypes::parse(bytes) {
                let _ = types.offset_of("outer", "second");
            }
        }
    }
}

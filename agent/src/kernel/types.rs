//! Where the fields of the kernel's structures lie, by the kernel's own description of its types (BTF).
//!
//! Owns: reading that description. Must not know: what the fields are for.

use std::fs;
use std::io;

/// Where the kernel describes its types.
const PATH: &str = "/sys/kernel/btf/vmlinux";

/// The description, as far as it is needed.
pub(super) struct Types {
    bytes: Vec<u8>,
    /// Where each type stands in `bytes`, by its number; type 0 is `void`, which stands nowhere.
    places: Vec<usize>,
    /// Where the names begin in `bytes`.
    names: usize,
}

/// Why no field can be told.
#[derive(Debug, thiserror::Error)]
pub(super) enum TypesError {
    /// The kernel does not describe its types.
    #[error("cannot read {PATH}")]
    Read(#[source] io::Error),
    /// It does in a way that is not known.
    #[error("cannot make sense of {PATH}: {0}")]
    Format(&'static str),
    /// It has no such field.
    #[error("the kernel has no field `{field}` of `{structure}`")]
    NoField {
        /// Of which structure.
        structure: &'static str,
        /// Its name, with those that lead to it.
        field: String,
    },
}

/// One type: what stands before its details, and where these begin.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    /// How many details.
    count: usize,
    /// Of a structure: whether an offset's upper byte is the width of a bit field.
    has_widths: bool,
    /// Size, or another type's number.
    value: u32,
    details: usize,
}

// Kinds, as the format numbers them.
const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;
const KIND_MAX: u32 = ENUM64;

/// How deep structures lie in one another at the most.
const DEPTH_MAX: usize = 16;

impl Types {
    /// Reads what the running kernel says.
    pub(super) fn of_kernel() -> Result<Self, TypesError> {
        Self::parse(fs::read(PATH).map_err(TypesError::Read)?)
    }

    fn parse(bytes: Vec<u8>) -> Result<Self, TypesError> {
        const MAGIC: u32 = 0xeb9f;
        let word = |at: usize| word(&bytes, at).ok_or(TypesError::Format("it ends too early"));
        if word(0)? & 0xffff != MAGIC {
            return Err(TypesError::Format("it begins with something else"));
        }
        let header = word(4)? as usize;
        let at = |offset: u32| header.saturating_add(offset as usize);
        let (first, end, names) = (at(word(8)?), at(word(8)?.saturating_add(word(12)?)), at(word(16)?));
        let mut types = Self { bytes, places: vec![usize::MAX], names };
        let mut place = first;
        while place < end {
            let read = types.read(place).ok_or(TypesError::Format("it ends within a type"))?;
            // What a later kernel adds may have details of any length.
            let details =
                details_bytes(&read).ok_or(TypesError::Format("it has a kind that is not known"))?;
            types.places.push(place);
            place = read.details + details;
        }
        Ok(types)
    }

    fn read(&self, place: usize) -> Option<Type> {
        const HEAD_BYTES: usize = 12;
        let word = |index: usize| word(&self.bytes, place.checked_add(4 * index)?);
        let info = word(1)?;
        Some(Type {
            name: word(0)?,
            kind: info >> 24 & 0x1f,
            count: (info & 0xffff) as usize,
            has_widths: info >> 31 == 1,
            value: word(2)?,
            details: place + HEAD_BYTES,
        })
    }

    fn numbered(&self, number: u32) -> Option<Type> {
        self.read(*self.places.get(number as usize)?)
    }

    fn is_named(&self, name: u32, expected: &str) -> bool {
        let rest = self.names.checked_add(name as usize).and_then(|start| self.bytes.get(start..));
        rest.and_then(|rest| rest.strip_prefix(expected.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// How many bytes from the beginning of a structure a field lies. Each of `fields` is one of what the one before is; what has
    /// no name is looked into.
    pub(super) fn offset(&self, structure: &'static str, fields: &[&str]) -> Result<u32, TypesError> {
        let found = self.places.iter().skip(1).filter_map(|place| self.read(*place));
        let mut found = found.filter(|found| found.kind == STRUCT && self.is_named(found.name, structure));
        let offset = found.next().and_then(|found| {
            let (mut bits, mut within) = (0, found);
            for field in fields {
                let (offset, number) = self.member(within, field, DEPTH_MAX)?;
                bits += offset;
                within = self.resolved(number)?;
            }
            (bits % 8 == 0).then_some(bits / 8)
        });
        offset.ok_or_else(|| TypesError::NoField { structure, field: fields.join(".") })
    }

    /// The first of these that there is.
    pub(super) fn offset_of_one(
        &self,
        structure: &'static str,
        alternatives: &[&[&str]],
    ) -> Result<u32, TypesError> {
        let found = alternatives.iter().find_map(|fields| self.offset(structure, fields).ok());
        let names = || alternatives.iter().map(|fields| fields.join(".")).collect::<Vec<_>>().join("` or `");
        found.ok_or_else(|| TypesError::NoField { structure, field: names() })
    }

    /// Where a member begins, in bits, and its type's number.
    fn member(&self, within: Type, name: &str, depth: usize) -> Option<(u32, u32)> {
        const MEMBER_BYTES: usize = 12;
        if ![STRUCT, UNION].contains(&within.kind) || depth == 0 {
            return None;
        }
        (0..within.count).find_map(|index| {
            let at = within.details + MEMBER_BYTES * index;
            let (found, number, offset) =
                (word(&self.bytes, at)?, word(&self.bytes, at + 4)?, word(&self.bytes, at + 8)?);
            let offset = if within.has_widths { offset & 0x00ff_ffff } else { offset };
            if self.is_named(found, name) {
                return Some((offset, number));
            }
            if !self.is_named(found, "") {
                return None;
            }
            let (inner, number) = self.member(self.resolved(number)?, name, depth - 1)?;
            Some((offset + inner, number))
        })
    }

    /// A type, without what only says how it may be used.
    fn resolved(&self, mut number: u32) -> Option<Type> {
        for _ in 0..DEPTH_MAX {
            let found = self.numbered(number)?;
            match found.kind {
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => number = found.value,
                _ => return Some(found),
            }
        }
        None
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// None: a kind that is not known.
fn details_bytes(found: &Type) -> Option<usize> {
    let each = match found.kind {
        STRUCT | UNION | DATASEC | ENUM64 => 12,
        ENUM | FUNC_PROTO => 8,
        INT | VAR | DECL_TAG => return Some(4),
        ARRAY => return Some(12),
        0 | KIND_MAX.. => return None,
        _ => return Some(0),
    };
    Some(each * found.count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A description of `struct outer { int a; union { int b; struct { int c; }; }; const inner_t d; }` with
    /// `typedef struct { int e; int f; } inner_t`.
    fn description() -> Vec<u8> {
        let mut names = vec![0];
        let mut name = |text: &str| {
            let at = names.len() as u32;
            names.extend(text.bytes());
            names.push(0);
            at
        };
        let kind = |kind: u32, count: u32| kind << 24 | count;
        let types: Vec<u32> = [
            // 1: int; its details are one word.
            vec![name("int"), kind(INT, 0), 4, 32],
            // 2: struct { int c; }
            vec![0, kind(STRUCT, 1), 4, name("c"), 1, 0],
            // 3: union { int b; struct { int c; }; }
            vec![0, kind(UNION, 2), 4, name("b"), 1, 0, 0, 2, 0],
            // 4: struct { int e; int f; }
            vec![0, kind(STRUCT, 2), 8, name("e"), 1, 0, name("f"), 1, 32],
            // 5: typedef
            vec![name("inner_t"), kind(TYPEDEF, 0), 4],
            // 6: const
            vec![0, kind(CONST, 0), 5],
            // 7: struct outer, whose offsets have widths.
            vec![name("outer"), kind(STRUCT, 3) | 1 << 31, 16, name("a"), 1, 0, 0, 3, 32, name("d"), 6, 64],
        ]
        .concat();
        let bytes = types.len() as u32 * 4;
        let header = [0x0001_eb9f, 24, 0, bytes, bytes, names.len() as u32];
        header.iter().chain(&types).flat_map(|word| word.to_ne_bytes()).chain(names).collect()
    }

    #[test]
    fn fields_are_found() {
        let types = Types::parse(description()).expect("it is one");
        let offset = |fields: &[&str]| types.offset("outer", fields).ok();
        assert_eq!(offset(&["a"]), Some(0));
        assert_eq!(offset(&["b"]), Some(4));
        assert_eq!(offset(&["c"]), Some(4));
        assert_eq!(offset(&["d", "f"]), Some(12));
        assert_eq!(offset(&["f"]), None);
        assert_eq!(offset(&["a", "a"]), None);
        assert_eq!(types.offset("inner", &["e"]).ok(), None);
        assert_eq!(types.offset_of_one("outer", &[&["x"], &["d", "e"]]).ok(), Some(8));
        let error = types.offset_of_one("outer", &[&["x"], &["y", "z"]]).expect_err("there is none");
        assert_eq!(error.to_string(), "the kernel has no field `x` or `y.z` of `outer`");
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let whole = description();
        for end in 0..whole.len() {
            if let Ok(types) = Types::parse(whole[..end].to_vec()) {
                let _ = types.offset("outer", &["d", "f"]);
            }
        }
        assert!(Types::parse(vec![0; 64]).is_err());
    }
}

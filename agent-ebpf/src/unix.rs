//! What a unix socket is known by: the device of its file system, and its path there.
//!
//! Owns: how both become one key, the same way in the kernel and in the agent. Must not know: how either is found out.
//!
//! A server that starts again makes another inode at the same path, so an inode would not do. Two paths may share a key, by a
//! chance of one in 2⁶⁴; the other one is then protected too, and nothing is open.

/// How many names a path can have, from the root of its file system on.
pub const NAMES_MAX: usize = 8;

/// The longest name, in bytes. Longer ones the kernel keeps outside of its directory entries, where the programs do not look;
/// Linux before 6.14 or so keeps 31 bytes there.
pub const NAME_MAX_BYTES: usize = 31;

/// FNV-1a's.
const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// The key while its names are added, the last one of the path first: the kernel finds them in this order.
#[derive(Clone, Copy)]
pub struct KeyBuilder(u64);

impl KeyBuilder {
    /// A path on the file system of this device, as the kernel numbers it: see [`device`].
    #[inline(always)]
    pub const fn new(device: u32) -> Self {
        let bytes = device.to_le_bytes();
        Self(OFFSET_BASIS).byte(bytes[0]).byte(bytes[1]).byte(bytes[2]).byte(bytes[3])
    }

    /// The next byte of a name.
    #[inline(always)]
    pub const fn byte(self, byte: u8) -> Self {
        Self((self.0 ^ byte as u64).wrapping_mul(PRIME))
    }

    /// The name is complete. No name has this byte.
    #[inline(always)]
    pub const fn end_of_name(self) -> Self {
        self.byte(b'/')
    }

    /// The path is complete.
    #[inline(always)]
    pub const fn build(self) -> u64 {
        self.0
    }
}

/// The kernel's own number of a device.
pub const fn device(major: u32, minor: u32) -> u32 {
    const MINOR_BITS: u32 = 20;
    (major << MINOR_BITS) | minor
}

/// The key of a path, by its names from the root of its file system on. None: the programs would not find it.
pub fn key<'a>(device: u32, names: impl DoubleEndedIterator<Item = &'a [u8]>) -> Option<u64> {
    let mut key = KeyBuilder::new(device);
    let mut count = 0;
    for name in names.rev() {
        count += 1;
        if count > NAMES_MAX || name.is_empty() || name.len() > NAME_MAX_BYTES {
            return None;
        }
        key = name.iter().fold(key, |key, byte| key.byte(*byte)).end_of_name();
    }
    (count > 0).then_some(key.build())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(device: u32, path: &str) -> Option<u64> {
        key(device, path.split('/').map(str::as_bytes))
    }

    #[test]
    fn each_path_has_a_key_of_its_own() {
        let paths = ["a", "b", "a/b", "b/a", "ab", "a/bc", "ab/c", "postgresql/.s.PGSQL.5432"];
        for (index, path) in paths.iter().enumerate() {
            for other in &paths[..index] {
                assert_ne!(of(1, path), of(1, other), "{path} and {other}");
            }
            assert_ne!(of(1, path), of(2, path));
            assert_eq!(of(1, path), of(1, path));
        }
    }

    #[test]
    fn what_the_programs_would_not_find_has_none() {
        assert!(of(1, "1/2/3/4/5/6/7/8").is_some());
        assert_eq!(of(1, "1/2/3/4/5/6/7/8/9"), None);
        assert!(of(1, "0123456789012345678901234567890").is_some());
        assert_eq!(of(1, "01234567890123456789012345678901"), None);
        assert_eq!(of(1, ""), None);
        assert_eq!(key(1, core::iter::empty()), None);
    }

    #[test]
    fn devices_are_the_kernels() {
        assert_eq!((device(0, 28), device(259, 1)), (28, 0x1030_0001));
    }

    /// A change would part the agent from programs that are pinned.
    #[test]
    fn keys_stay_as_they_are() {
        assert_eq!(of(device(0, 28), "postgresql/.s.PGSQL.5432"), Some(0x7403_176c_20ac_714f));
    }
}

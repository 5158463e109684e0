//! Capabilities of files (`security.capability`): of everyone, or of those in the user namespaces whose root is one user
//! (capabilities(7), "Namespaced file capabilities"). The value names that user, by the number outside of the namespace.

use std::borrow::Cow;

use byteorder::{ByteOrder, LittleEndian};

pub(crate) const NAME: &[u8] = b"security.capability";

/// The version, in the upper byte of the first word: the flags below it are of both.
const REVISION_MASK: u32 = 0xFF00_0000;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;

/// Bytes of a value of version 2; one of version 3 has the user behind that.
const SIZE_2: usize = 20;
const SIZE_3: usize = 24;

/// The capabilities with another user as root of their namespace. Where that becomes 0, they are everyone's, as the kernel
/// has it, and older kernels know no other. What has no such user stays as it is.
pub(crate) fn map_root(value: &[u8], user: impl Fn(u32) -> u32) -> Cow<'_, [u8]> {
    if value.len() != SIZE_3 {
        return Cow::Borrowed(value);
    }
    let (word, old) = (
        LittleEndian::read_u32(value),
        LittleEndian::read_u32(&value[SIZE_2..]),
    );
    let new = user(old);
    if word & REVISION_MASK != REVISION_3 || new == old {
        return Cow::Borrowed(value);
    }
    let mut mapped = value.to_vec();
    if new == 0 {
        LittleEndian::write_u32(&mut mapped, word & !REVISION_MASK | REVISION_2);
        mapped.truncate(SIZE_2);
    } else {
        LittleEndian::write_u32(&mut mapped[SIZE_2..], new);
    }
    Cow::Owned(mapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_a_namespace_becomes_another() {
        let of_user = |user: u32| {
            [
                &b"\x01\0\0\x03\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..],
                &user.to_le_bytes(),
            ]
            .concat()
        };
        let everyones = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(*map_root(&of_user(1000), |user| user + 5), of_user(1005));
        assert_eq!(*map_root(&of_user(1000), |_| 0), everyones[..]);
        for same in [&everyones[..], &of_user(0), b"", b"short", &[7; 24]] {
            assert_eq!(*map_root(same, |user| user), *same);
        }
        assert_eq!(*map_root(&[7; 24], |_| 5), [7; 24]);
        assert_eq!(*map_root(everyones, |_| 5), everyones[..]);
    }
}

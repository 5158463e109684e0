//! Extended attributes of what a directory has by a name, which is not followed: `listxattrat` and `getxattrat`.
//!
//! Linux has them since 6.13. Before, a link cannot be opened for its attributes, and what was asked is a path through
//! `/proc`, which takes several times as long as the question. They are asked of the kernel directly, as the C library may
//! be older than it.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use linux_raw_sys::general::{__NR_getxattrat, __NR_listxattrat, AT_SYMLINK_NOFOLLOW, xattr_args};
use rustix::io::{self, Errno};

/// Fills `names` with the names of all attributes, each with a NUL at its end. Returns how many bytes they are.
///
/// # Errors
/// `RANGE` where `names` is too short; `NOSYS` of a kernel before 6.13, and that or `PERM` where a sandbox knows no such
/// call; otherwise as `llistxattr`.
pub fn list_at(directory: BorrowedFd<'_>, name: &CStr, names: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `names.len()` bytes, which are ours alone until it returns, and reads `name` up to
    // its NUL. The descriptor is borrowed, so it is open.
    #[allow(unsafe_code)]
    let done = unsafe {
        libc::syscall(
            __NR_listxattrat.into(),
            directory.as_raw_fd(),
            name.as_ptr(),
            AT_SYMLINK_NOFOLLOW,
            names.as_mut_ptr(),
            names.len(),
        )
    };
    length(done)
}

/// Fills `value` with that of an attribute. Returns how many bytes it is.
///
/// # Errors
/// `NODATA` where there is none by this name; otherwise as [`list_at`].
pub fn get_at(
    directory: BorrowedFd<'_>,
    name: &CStr,
    attribute: &CStr,
    value: &mut [u8],
) -> io::Result<usize> {
    let arguments = xattr_args {
        // The kernel gets the address as a number.
        value: value.as_mut_ptr().expose_provenance() as u64,
        // No value is longer than 64 KiB.
        size: u32::try_from(value.len()).unwrap_or(u32::MAX),
        flags: 0,
    };
    // SAFETY: the kernel writes at most `size` bytes from `value` on, which are that many at least and ours alone until it
    // returns, and reads `name` and `attribute` up to their NULs and one `xattr_args`. The descriptor is borrowed, so it
    // is open.
    #[allow(unsafe_code)]
    let done = unsafe {
        libc::syscall(
            __NR_getxattrat.into(),
            directory.as_raw_fd(),
            name.as_ptr(),
            AT_SYMLINK_NOFOLLOW,
            attribute.as_ptr(),
            &raw const arguments,
            size_of::<xattr_args>(),
        )
    };
    length(done)
}

fn length(done: libc::c_long) -> io::Result<usize> {
    usize::try_from(done).map_err(|_| {
        let error = std::io::Error::last_os_error();
        Errno::from_io_error(&error).unwrap_or(Errno::IO)
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};

    use super::*;

    /// What both ways say, where the kernel has both.
    fn same(new: &io::Result<(usize, Vec<u8>)>, old: &io::Result<(usize, Vec<u8>)>) {
        if *new != Err(Errno::NOSYS) {
            assert_eq!(new, old);
        }
    }

    #[test]
    fn a_name_in_a_directory_and_its_path_have_the_same_attributes() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "contents").unwrap();
        std::fs::write(directory.path().join("plain"), "contents").unwrap();
        symlink("file", directory.path().join("link")).unwrap();
        let value = vec![7; 300];
        for (name, attribute) in [
            ("file", "user.a"),
            ("file", "user.b"),
            ("file", "trusted.c"),
            ("link", "trusted.d"),
        ] {
            lsetxattr(
                directory.path().join(name),
                attribute,
                &value,
                XattrFlags::empty(),
            )
            .unwrap();
        }
        let open = std::fs::File::open(directory.path()).unwrap();
        for name in [c"file", c"plain", c"link", c"missing"] {
            let path = directory.path().join(name.to_str().unwrap());
            for len in [1, 10, 100] {
                let (mut new, mut old) = (vec![0; len], vec![0; len]);
                same(
                    &list_at(open.as_fd(), name, &mut new).map(|len| (len, new)),
                    &llistxattr(&path, &mut old[..]).map(|len| (len, old)),
                );
            }
            for attribute in [c"user.a", c"trusted.c", c"trusted.d", c"other.x"] {
                for len in [1, 10, 300, 1000] {
                    let (mut new, mut old) = (vec![0; len], vec![0; len]);
                    same(
                        &get_at(open.as_fd(), name, attribute, &mut new).map(|len| (len, new)),
                        &lgetxattr(&path, attribute, &mut old[..]).map(|len| (len, old)),
                    );
                }
            }
        }
    }
}

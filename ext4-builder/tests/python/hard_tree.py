"""Makes a tree of all that is hard to copy, in the current directory, as root."""

import os
import socket
import struct

NO_ID = 0xFFFFFFFF


def write(name, *pieces, size=None):
    """A file with pieces of data at offsets, and holes elsewhere."""
    with open(name, "wb") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
        if size is not None:
            file.truncate(size)


def acl(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def everything(where):
    os.mkdir(where)
    os.chdir(where)
    for size in (0, 1, 4095, 4096, 4097, 300_000, 3_000_001):
        write(f"file{size}", (0, bytes(i * 31 % 251 for i in range(size))))
    write("zeros", (0, bytes(1 << 20)), (1 << 20, b"not zero"), (2 << 20, bytes(100)))
    write("hole-first", (1 << 20, b"data"))
    write("hole-last", (0, b"data"), size=1 << 20)
    write("all-hole", size=123_456_789)
    write("holes", *((at << 16, b"x" * 5000) for at in range(1, 500)))
    # As long as a file can be.
    write("large", (0, b"first"), ((2**32 - 1) * 4096 - 4, b"last"))

    for length in (1, 59, 60, 61, 4095):
        os.symlink("t" * length, f"symlink{length}")
    os.symlink(b"\xff\n", "symlink-odd")
    os.mkfifo("fifo")
    socket.socket(socket.AF_UNIX).bind("socket")
    for name, kind, number in (
        ("null", 0o020666, (1, 3)),
        ("large-number", 0o020600, (4095, 1048575)),
        ("disk", 0o060660, (8, 17)),
    ):
        os.mknod(name, kind, os.makedev(*number))
    for name in ("file4097", "symlink60", "fifo", "null", "socket", "disk"):
        os.link(name, f"link-to-{name}", follow_symlinks=False)
    os.mkdir("links")
    os.link("file4097", "links/another")
    os.link("symlink60", "links/another-symlink", follow_symlinks=False)

    for name in (b"n" * 255, b"\xff\xfe\x80", b"a b\tc\nd", b"-rf", "käse".encode(), b"*", b"\\"):
        write(name, (0, b"odd"))
    os.mkdir("empty-directory")
    os.mkdir(b"d" * 255)
    os.mkdir("many")
    for number in range(3000):
        os.mknod(f"many/{number}")

    for mode in (0o0, 0o1777, 0o2755, 0o4755, 0o6111, 0o7777):
        write(f"mode{mode:o}", (0, b"mode"))
        os.chmod(f"mode{mode:o}", mode)
        os.mkdir(f"directory-mode{mode:o}")
        os.chmod(f"directory-mode{mode:o}", mode)
    for name in ("owned", "symlink59", "null"):
        if name == "owned":
            write(name)
        os.chown(name, 70_000, 4_000_000_000, follow_symlinks=False)

    os.setxattr("file1", "user.small", b"value")
    os.setxattr("file1", "user.empty", b"")
    os.setxattr("file1", b"user.\xff\xe4", bytes(range(256)))
    os.setxattr("file4096", "user.large", b"v" * 3000)
    for name in ("file4096", "symlink61", "fifo", "disk", "links", "."):
        os.setxattr(name, "trusted.x", name.encode(), follow_symlinks=False)
    os.setxattr("file4095", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    user, group, other = (0x01, 6, NO_ID), (0x04, 4, NO_ID), (0x20, 0, NO_ID)
    full = acl(user, (0x02, 7, 70_001), (0x02, 0, 4_000_000_001), group, (0x08, 5, 7), (0x10, 7, NO_ID), other)
    for name in ("file300000", "links", "mode0"):
        os.setxattr(name, "system.posix_acl_access", full)
    os.setxattr("links", "system.posix_acl_default", full)
    for number in range(200):
        os.setxattr(f"many/{number}", "user.shared", b"s" * 500)

    deep = os.getcwd()
    for level in range(150):
        os.mkdir(f"deep{level}")
        os.chdir(f"deep{level}")
        write("here", (0, str(level).encode()))
        os.symlink("here", "there")
    os.chdir(deep)

    for name, when in (
        ("file1", -2**31),
        ("file4095", -1_500_000_001),
        ("symlink1", 2**31 * 10**9 + 999_999_999),
        ("file4096", (2**34 - 2**31 - 1) * 10**9 + 999_999_999),
        ("fifo", 1_600_000_000_123_456_789),
        ("many", 0),
    ):
        if name == "file1":
            when *= 10**9
        os.utime(name, ns=(when, when), follow_symlinks=False)


if __name__ == "__main__":
    import sys

    everything(sys.argv[1])

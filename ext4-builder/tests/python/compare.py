"""Compares two trees, and prints every difference: names, types, metadata with all times, attributes, link structure,
holes and contents. What is only in the second tree's root by the name lost+found does not count.

    compare.py FIRST SECOND [WITHOUT...]

WITHOUT are keys that are not compared, such as changed."""

import os
import subprocess
import sys

FORMAT = "%P\\0%y\\0%m\\0%U\\0%G\\0%s\\0%n\\0%T@\\0%C@\\0%B@\\0%A@\\0%l\\0%i\\0"
KEYS = "type mode uid gid size links modified changed created accessed target inode".split()


def tree(root):
    """Everything about every path."""
    command = ["find", root, "-printf", FORMAT]
    fields = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split(b"\0")
    width = 1 + len(KEYS)
    found = {}
    for start in range(0, len(fields) - 1, width):
        found[fields[start]] = dict(zip(KEYS, fields[start + 1 : start + width]))
    first = {}
    for path in sorted(found):
        entry = found[path]
        full = os.path.join(os.fsencode(root), path) if path else os.fsencode(root)
        entry["same-as"] = first.setdefault(entry.pop("inode"), path)
        names = os.listxattr(full, follow_symlinks=False)
        entry["attributes"] = {name: os.getxattr(full, name, follow_symlinks=False) for name in sorted(names)}
        if entry["type"] in b"bc":
            entry["device"] = os.lstat(full).st_rdev
        if entry["type"] == b"d":
            # How a directory is stored is the file system's own business.
            del entry["size"], entry["links"]
        if entry["type"] == b"l":
            # Reading changes it.
            del entry["accessed"]
    return found


def data(file, size):
    """The ranges that hold data."""
    at = 0
    while at < size:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
        except OSError:
            return
        at = os.lseek(file, start, os.SEEK_HOLE)
        yield start, at


def compare_contents(path, first, second, without):
    with open(first, "rb", 0) as a, open(second, "rb", 0) as b:
        size = os.fstat(a.fileno()).st_size
        ranges = list(data(a.fileno(), size))
        others = list(data(b.fileno(), size))
        if "holes" not in without and ranges != others:
            print(path, "holes", ranges[:5], others[:5])
        for start, end in ranges + others:
            while start < end:
                length = min(end - start, 1 << 20)
                if os.pread(a.fileno(), length, start) != os.pread(b.fileno(), length, start):
                    print(path, "contents at", start)
                    return
                start += length


def main(first, second, *without):
    a, b = tree(first), tree(second)
    if b"lost+found" not in a:
        b.pop(b"lost+found", None)
    for path in sorted(set(a) | set(b)):
        if path not in a or path not in b:
            print(path, "is only in the", "second" if path not in a else "first")
            continue
        for key in a[path]:
            if key not in without and a[path][key] != b[path].get(key):
                print(path, key, a[path][key], b[path].get(key))
        if a[path]["type"] == b"f" and b[path]["type"] == b"f":
            compare_contents(path, *(os.path.join(os.fsencode(root), path) for root in (first, second)), without)
    print(len(a), "compared")


if __name__ == "__main__":
    main(*sys.argv[1:])

//! The options of every command, and what its `--help` says: the one place where they are listed.
//!
//! Letters and long names are those of QEMU 10.0.2 and of the later ones that distributions have taken over.

use super::getopt::{Flag, Page, flag, valued};

const HELP: Flag = flag("h", "help", "show this help and end");
const QUIET: Flag = flag("q", "quiet", "print nothing but what is wrong");
const PROGRESS: Flag = flag("p", "progress", "show how far it has come");
const FORMAT: Flag = valued(
    "f",
    "format",
    "FMT",
    "format of the image; looked for in the file unless given",
);
const IMAGE_OPTS: Flag = flag(
    "",
    "image-opts",
    "FILENAME is a list of options (driver=qcow2,file.filename=PATH) instead of a name",
);
const OBJECT: Flag = valued(
    "",
    "object",
    "OBJDEF",
    "an object such as secret,id=ID,file=PATH, which opens an encrypted image",
);
const FORCE_SHARE: Flag = flag(
    "U",
    "force-share",
    "take no locks: what others write meanwhile may be read in part",
);
const OUTPUT: Flag = valued("", "output", "human|json", "how the result is printed");
const CACHE: Flag = valued(
    "t",
    "cache",
    "CACHE",
    "cache mode of what is written: none, writeback, writethrough, directsync, unsafe",
);
const SOURCE_CACHE: Flag = valued("T", "cache", "CACHE", "cache mode of what is read");
const RATE: Flag = valued("r", "rate", "RATE", "bytes a second to write, at most");
const BACKING_FORMAT: Flag = valued("F", "backing-format", "BACKING_FMT", "format of the backing file");
const FILENAME: (&str, &str) = ("FILENAME", "name of the image, or with --image-opts its options");

pub(super) const AMEND: Page = Page {
    name: "amend",
    about: "Change options of an image in place",
    usage: "[-f FMT | --image-opts] [-t CACHE] [--force] [-p] [-q]\n[--object OBJDEF] -o OPTIONS FILENAME",
    flags: &[
        HELP,
        QUIET,
        PROGRESS,
        FORMAT,
        IMAGE_OPTS,
        CACHE,
        valued(
            "o",
            "options",
            "OPTIONS",
            "what to change, as key=value,...; `-f FMT -o help` lists what can be",
        ),
        flag(
            "",
            "force",
            "also do what may lose the data, such as taking away the last key",
        ),
        OBJECT,
    ],
    operands: &[FILENAME],
    examples: &[
        "-o compat=1.1 old.qcow2",
        "-f qcow2 -o refcount_bits=8,lazy_refcounts=on disk.qcow2",
        "--object secret,id=s0,file=old.key --object secret,id=s1,file=new.key --image-opts \
         -o encrypt.state=active,encrypt.new-secret=s1 driver=qcow2,file.filename=disk.qcow2,encrypt.key-secret=s0",
    ],
};

pub(super) const BENCH: Page = Page {
    name: "bench",
    about: "Time requests to an image",
    usage: "[-f FMT | --image-opts] [-t CACHE] [-c COUNT] [-d DEPTH] [-o OFFSET]\n[-s BUFFER_SIZE] [-S STEP_SIZE] [-i AIO] [-n] \
            [-q] [-U]\n[-w [--pattern PATTERN] [--flush-interval INTERVAL [--no-drain]]] FILENAME",
    flags: &[
        HELP,
        flag(
            "q",
            "quiet",
            "taken for the sake of scripts; the times are printed all the same",
        ),
        FORMAT,
        IMAGE_OPTS,
        CACHE,
        valued("c", "count", "COUNT", "requests in all; 75000 unless given"),
        valued(
            "d",
            "depth",
            "DEPTH",
            "requests under way at once; 64 unless given",
        ),
        valued(
            "s",
            "buffer-size",
            "BUFFER_SIZE",
            "bytes of each request; 4096 unless given",
        ),
        valued("o", "offset", "OFFSET", "where the first request starts"),
        valued(
            "S",
            "step-size",
            "STEP_SIZE",
            "how much further each starts than the one before; its size unless given",
        ),
        valued(
            "i",
            "aio",
            "AIO",
            "how files are read and written: threads, native, io_uring",
        ),
        flag("n", "native", "the same as -i native; needs -t none"),
        flag(
            "w",
            "write",
            "write instead of reading: what the image holds there is lost",
        ),
        valued(
            "",
            "pattern",
            "PATTERN",
            "the byte that is written; 0 unless given",
        ),
        valued("", "flush-interval", "INTERVAL", "flush after so many writes"),
        flag("", "no-drain", "send further requests while it is flushed"),
        FORCE_SHARE,
    ],
    operands: &[FILENAME],
    examples: &[
        "-t none -c 100000 -d 32 disk.qcow2",
        "-w --pattern 0x5a --flush-interval 64 -s 64k scratch.qcow2",
    ],
};

pub(super) const BITMAP: Page = Page {
    name: "bitmap",
    about: "Change a bitmap that is kept in an image",
    usage: "(--add [-g GRANULARITY] | --remove | --clear | --enable | --disable |\n--merge SOURCE [-b SRC_FILENAME \
            [-F SRC_FMT]])... [-f FMT | --image-opts]\n[--object OBJDEF] FILENAME BITMAP",
    flags: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        flag("", "add", "make the bitmap, which records from then on"),
        valued(
            "g",
            "granularity",
            "GRANULARITY",
            "bytes for each bit of a new bitmap: a power of two from 512 up",
        ),
        flag("", "remove", "delete the bitmap"),
        flag("", "clear", "forget what was recorded"),
        flag("", "enable", "record from now on"),
        flag("", "disable", "record no more"),
        valued("", "merge", "SOURCE", "add what the bitmap SOURCE has recorded"),
        valued(
            "b",
            "source-file",
            "SRC_FILENAME",
            "the image that SOURCE is in, if it is another",
        ),
        valued("F", "source-format", "SRC_FMT", "format of that image"),
        OBJECT,
    ],
    operands: &[FILENAME, ("BITMAP", "name of the bitmap")],
    examples: &[
        "--add -g 64k disk.qcow2 backup0",
        "--merge backup0 --disable disk.qcow2 all",
    ],
};

pub(super) const CHECK: Page = Page {
    name: "check",
    about: "Check whether an image is whole, and repair it",
    usage: "[-f FMT | --image-opts] [-T CACHE] [-r leaks|all] [-U] [-q]\n[--output human|json] [--object OBJDEF] FILENAME",
    flags: &[
        HELP,
        QUIET,
        FORMAT,
        IMAGE_OPTS,
        SOURCE_CACHE,
        FORCE_SHARE,
        OUTPUT,
        valued(
            "r",
            "repair",
            "leaks|all",
            "repair lost room only, or all that can be",
        ),
        OBJECT,
    ],
    operands: &[FILENAME],
    examples: &["disk.qcow2", "-r all --output json disk.qcow2"],
};

pub(super) const COMMIT: Page = Page {
    name: "commit",
    about: "Write what an image holds into its backing file",
    usage: "[-f FMT | --image-opts] [-t CACHE] [-b BASE] [-d] [-r RATE] [-p] [-q]\n[--object OBJDEF] FILENAME",
    flags: &[
        HELP,
        QUIET,
        PROGRESS,
        FORMAT,
        IMAGE_OPTS,
        CACHE,
        valued(
            "b",
            "base",
            "BASE",
            "the image of the chain that is written to; implies -d",
        ),
        flag("d", "drop", "leave the image as it is, as it will be deleted"),
        RATE,
        OBJECT,
    ],
    operands: &[FILENAME],
    examples: &["-p overlay.qcow2", "-b base.qcow2 top.qcow2"],
};

pub(super) const COMPARE: Page = Page {
    name: "compare",
    about: "Compare what two images hold",
    usage: "[-f FMT] [-F FMT] [--image-opts] [-s] [-T CACHE] [-p] [-q] [-U]\n[--object OBJDEF] FILENAME1 FILENAME2",
    flags: &[
        HELP,
        QUIET,
        PROGRESS,
        valued("f", "a-format", "FMT", "format of the first image"),
        valued("F", "b-format", "FMT", "format of the second image"),
        IMAGE_OPTS,
        flag("s", "strict", "sizes and what is allocated must be the same too"),
        SOURCE_CACHE,
        FORCE_SHARE,
        OBJECT,
    ],
    operands: &[(
        "FILENAME1, FILENAME2",
        "names of the images, or with --image-opts their options",
    )],
    examples: &["-f raw -F qcow2 disk.raw disk.qcow2"],
};

pub(super) const CONVERT: Page = Page {
    name: "convert",
    about: "Copy images into another, with another format where that is asked for",
    usage: "[-f FMT | --image-opts] [-T CACHE] [-l SNAPSHOT] [-O FMT]\n[-o OPTIONS | --target-image-opts] [-t CACHE] [-c] \
            [-n [--target-is-zero]]\n[-B BACKING [-F BACKING_FMT]] [-S SPARSE_SIZE] [-m THREADS] [-W] [-C] [-r RATE]\n[--salvage] \
            [--bitmaps [--skip-broken-bitmaps]] [-p] [-q] [-U]\n[--object OBJDEF] SRC_FILENAME [SRC_FILENAME2 [...]] TGT_FILENAME",
    flags: &[
        HELP,
        QUIET,
        PROGRESS,
        valued(
            "f",
            "source-format",
            "FMT",
            "format of the sources; looked for in the files unless given",
        ),
        flag(
            "",
            "image-opts",
            "each SRC_FILENAME is a list of options instead of a name",
        ),
        flag("", "source-image-opts", "the same"),
        valued(
            "l",
            "source-snapshot",
            "SNAPSHOT",
            "copy a snapshot: its name or ID, or snapshot.name=NAME, snapshot.id=ID",
        ),
        valued("T", "source-cache", "CACHE", "cache mode of the sources"),
        valued(
            "O",
            "target-format",
            "FMT",
            "format of the target; raw unless given",
        ),
        flag(
            "",
            "target-image-opts",
            "TGT_FILENAME is a list of options instead of a name; needs -n",
        ),
        valued(
            "o",
            "target-options",
            "OPTIONS",
            "options of the target, as key=value,...; `-O FMT -o help` lists them",
        ),
        flag("c", "compress", "compress what is written"),
        valued(
            "t",
            "target-cache",
            "CACHE",
            "cache mode of the target; unsafe unless given",
        ),
        valued(
            "B",
            "backing",
            "BACKING",
            "backing file of the target: what is the same there is not copied",
        ),
        BACKING_FORMAT,
        flag("n", "no-create", "write to a target that is there already"),
        flag(
            "",
            "target-is-zero",
            "the target reads as zeros: write none; needs -n",
        ),
        valued(
            "S",
            "sparse-size",
            "SPARSE_SIZE",
            "zeros of at least so many bytes are left out; 4k unless given, 0 for none",
        ),
        flag("", "bitmaps", "copy bitmaps too"),
        flag(
            "",
            "skip-broken-bitmaps",
            "leave out those that were not kept right",
        ),
        FORCE_SHARE,
        RATE,
        valued("m", "parallel", "THREADS", "threads that copy, from 1 to 16"),
        flag("C", "copy-range-offloading", "let the host copy"),
        flag(
            "",
            "salvage",
            "go on where a source cannot be read, with zeros for that",
        ),
        flag("W", "oob-writes", "write in any order"),
        OBJECT,
    ],
    operands: &[
        (
            "SRC_FILENAME",
            "name of an image that is read; several are put one behind the other",
        ),
        ("TGT_FILENAME", "name of the image that is made or written to"),
    ],
    examples: &[
        "-p -f qcow2 -O raw disk.qcow2 disk.raw",
        "--object secret,id=s0,file=disk.key --image-opts driver=luks,file.filename=disk.luks,key-secret=s0 -O raw disk.raw",
        "-f raw -O qcow2 -c -o compression_type=zstd disk.raw small.qcow2",
        "-O qcow2 -B base.qcow2 -F qcow2 disk.qcow2 overlay.qcow2",
    ],
};

pub(super) const CREATE: Page = Page {
    name: "create",
    about: "Make a new image",
    usage: "[-f FMT] [-o OPTIONS] [-b BACKING [-F BACKING_FMT]] [-u] [-q]\n[--object OBJDEF] FILENAME [SIZE[bkKMGTPE]]",
    flags: &[
        HELP,
        QUIET,
        valued("f", "format", "FMT", "format of the image; raw unless given"),
        valued(
            "o",
            "options",
            "OPTIONS",
            "options of the format, as key=value,...; `-f FMT -o help` lists them",
        ),
        valued(
            "b",
            "backing",
            "BACKING",
            "what the image reads as where nothing was written to it",
        ),
        BACKING_FORMAT,
        flag(
            "u",
            "backing-unsafe",
            "do not open the backing file; SIZE must then be given",
        ),
        OBJECT,
    ],
    operands: &[
        ("FILENAME", "name of the new image"),
        ("SIZE", "size of the disk; that of the backing file unless given"),
    ],
    examples: &[
        "-f qcow2 disk.qcow2 20G",
        "-f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2",
        "--object secret,id=s0,file=disk.key -f luks -o key-secret=s0 disk.luks 20G",
    ],
};

pub(super) const DD: Page = Page {
    name: "dd",
    about: "Copy blocks of an image into another",
    usage: "[-f FMT | --image-opts] [-O OUTPUT_FMT] [-U] [--object OBJDEF]\n[bs=BLOCK_SIZE] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT",
    flags: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        valued(
            "O",
            "output-format",
            "OUTPUT_FMT",
            "format of the new image; raw unless given",
        ),
        FORCE_SHARE,
        OBJECT,
    ],
    operands: &[
        ("bs=BLOCK_SIZE", "bytes of a block; 512 unless given"),
        ("count=BLOCKS", "blocks in all, with those that are skipped"),
        (
            "skip=BLOCKS",
            "blocks of the input that are left out at its start",
        ),
        ("if=INPUT", "the image that is read"),
        ("of=OUTPUT", "the image that is made"),
    ],
    examples: &["-f qcow2 -O raw bs=1M count=4 if=disk.qcow2 of=start.raw"],
};

pub(super) const INFO: Page = Page {
    name: "info",
    about: "Say what an image is",
    usage: "[-f FMT | --image-opts] [-b] [-U] [--object OBJDEF]\n[--output human|json] FILENAME",
    flags: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        flag(
            "b",
            "backing-chain",
            "also say it of every image that this one is based on",
        ),
        FORCE_SHARE,
        OBJECT,
        OUTPUT,
    ],
    operands: &[FILENAME],
    examples: &["disk.qcow2", "--backing-chain --output json overlay.qcow2"],
};

pub(super) const MAP: Page = Page {
    name: "map",
    about: "List what parts of a disk lie where",
    usage: "[-f FMT | --image-opts] [--object OBJDEF] [--output human|json]\n[-s OFFSET] [-l LENGTH] [-U] FILENAME",
    flags: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        valued("s", "start-offset", "OFFSET", "where on the disk to start"),
        valued("l", "max-length", "LENGTH", "how far to go"),
        OUTPUT,
        FORCE_SHARE,
        OBJECT,
    ],
    operands: &[FILENAME],
    examples: &["--output json disk.qcow2"],
};

pub(super) const MEASURE: Page = Page {
    name: "measure",
    about: "Say how much room a new image would need",
    usage: "[-f FMT | --image-opts] [-l SNAPSHOT] [-O OUTPUT_FMT] [-o OPTIONS]\n[--output human|json] [--object OBJDEF] [-U] \
            (--size SIZE | FILENAME)",
    flags: &[
        HELP,
        valued(
            "O",
            "target-format",
            "OUTPUT_FMT",
            "format of the new image; raw unless given",
        ),
        valued(
            "o",
            "target-options",
            "OPTIONS",
            "options of the new image, as key=value,...",
        ),
        valued("s", "size", "SIZE", "size of an empty disk, instead of FILENAME"),
        FORMAT,
        IMAGE_OPTS,
        valued(
            "l",
            "snapshot",
            "SNAPSHOT",
            "measure a snapshot: its name or ID, or snapshot.name=NAME, snapshot.id=ID",
        ),
        OUTPUT,
        FORCE_SHARE,
        OBJECT,
    ],
    operands: &[("FILENAME", "the image that would be copied")],
    examples: &["-O qcow2 --size 20G", "-f raw -O qcow2 --output json disk.raw"],
};

pub(super) const REBASE: Page = Page {
    name: "rebase",
    about: "Change the backing file of an image",
    usage: "[-f FMT | --image-opts] [-t CACHE] [-q] [-U] [-p]\n(-b BACKING [-F BACKING_FMT] | -b \"\") [-T CACHE] [-u] [-c]\n\
            [--object OBJDEF] FILENAME",
    flags: &[
        HELP,
        QUIET,
        PROGRESS,
        FORMAT,
        IMAGE_OPTS,
        CACHE,
        valued("b", "backing", "BACKING", "the new backing file; \"\" for none"),
        BACKING_FORMAT,
        valued("T", "backing-cache", "CACHE", "cache mode of backing files"),
        flag(
            "u",
            "backing-unsafe",
            "change the name only: what the disk holds changes with it",
        ),
        flag("c", "compress", "compress what is copied into the image"),
        FORCE_SHARE,
        OBJECT,
    ],
    operands: &[FILENAME],
    examples: &[
        "-p -b other.qcow2 -F qcow2 overlay.qcow2",
        "-b \"\" overlay.qcow2",
    ],
};

pub(super) const RESIZE: Page = Page {
    name: "resize",
    about: "Change the size of a disk",
    usage: "[-f FMT | --image-opts] [--preallocation PREALLOC] [--shrink]\n[--object OBJDEF] [-q] FILENAME [+-]SIZE[bkKMGTPE]",
    flags: &[
        HELP,
        QUIET,
        FORMAT,
        IMAGE_OPTS,
        flag(
            "",
            "shrink",
            "let it become smaller: what lies behind the new end is lost",
        ),
        valued(
            "",
            "preallocation",
            "PREALLOC",
            "how room is made for what is added: off, metadata, falloc, full",
        ),
        OBJECT,
    ],
    operands: &[
        FILENAME,
        (
            "[+-]SIZE",
            "the new size, or with a sign how much is added or taken away",
        ),
    ],
    examples: &["-f qcow2 disk.qcow2 +10G", "--shrink -f raw disk.raw 4G"],
};

pub(super) const SNAPSHOT: Page = Page {
    name: "snapshot",
    about: "List, take, go back to and delete snapshots of an image",
    usage: "[-f FMT | --image-opts] [-l | -a SNAPSHOT | -c SNAPSHOT | -d SNAPSHOT]\n[-U] [-q] [--object OBJDEF] FILENAME",
    flags: &[
        HELP,
        QUIET,
        FORMAT,
        IMAGE_OPTS,
        FORCE_SHARE,
        OBJECT,
        flag(
            "l",
            "list",
            "list the snapshots; what is done unless anything else is asked for",
        ),
        valued("c", "create", "SNAPSHOT", "take one"),
        valued("a", "apply", "SNAPSHOT", "go back to one"),
        valued("d", "delete", "SNAPSHOT", "delete one"),
    ],
    operands: &[FILENAME],
    examples: &["-c before-upgrade disk.qcow2", "-a before-upgrade disk.qcow2"],
};

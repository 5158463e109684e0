//! Filesystems made of directories.

use std::fs::{self, File};
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use block::{Error, ErrorKind, FileId, MemStorage, Result, Storage};
use ext4_builder::source::{Control, Directory, Filter, Pattern, copy_directory};
use ext4_builder::{Builder, Compat, Free, Options, Size, Summary};
use tempfile::TempDir;

use crate::image::{Image, MIB, UUID, given, lose_primary_superblock, run, succeed};
use crate::trees::CHURN;

const LIST: &str = "cd \"$1\"; find . -not -name lost+found | LC_ALL=C sort; cd /";

pub(crate) const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python");

pub(crate) fn fit() -> Options {
    Options::new(Size::Fit(Free::Bytes(MIB)), UUID)
}

/// Makes a filesystem of a directory.
fn copy(
    storage: &dyn Storage,
    options: &Options,
    path: &Path,
    (directory, filter): &(Directory, Filter),
    control: &Control<'_>,
) -> Result<Summary> {
    let mut builder = Builder::new(storage, options.clone())?;
    copy_directory(&mut builder, path, directory, filter, control)?;
    builder.finish()
}

fn image(options: &Options, path: &Path, directory: &(Directory, Filter)) -> Image {
    let storage = MemStorage::new();
    copy(&storage, options, path, directory, &Control::unwatched()).expect("copy");
    Image::of(&storage)
}

/// A tree of everything that is hard, which takes root to make.
pub(crate) fn hard_tree() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let tree = directory.path().join("tree");
    let mut command = Command::new("python3");
    command.arg(format!("{PYTHON}/hard_tree.py")).arg(&tree);
    let output = run(&mut command);
    assert!(output.status.success(), "{output:#?}");
    (directory, tree)
}

/// What differs between a filesystem and a tree, but for `without`.
pub(crate) fn compare(image: &Image, tree: &Path, without: &str) -> String {
    let script = format!(
        "mount -o remount,ro,noatime \"$1\"; python3 {PYTHON}/compare.py '{}' \"$1\" {without}",
        tree.display()
    );
    image.mounted(&script)
}

#[test]
fn nothing_differs_between_a_tree_and_its_filesystem() {
    let (_directory, tree) = hard_tree();
    for (compat, inline_data) in [
        (Compat::Latest, false),
        (Compat::Latest, true),
        (Compat::Linux3_10, false),
        (Compat::Linux4_19, true),
    ] {
        let options = Options {
            compat,
            inline_data,
            ..Options::new(Size::Fit(Free::Bytes(10 * MIB)), UUID)
        };
        let image = image(&options, &tree, &Default::default());
        image.assert_clean("as made");
        let found = compare(&image, &tree, "");
        let (number, rest) = found.trim().split_once(' ').expect("a summary");
        assert_eq!(rest, "compared", "{compat:?} {inline_data}: {found}");
        assert!(number.parse::<u32>().expect("number") > 3400);
        image.assert_clean("after mounting");
        if inline_data {
            let features = image.field("Filesystem features");
            assert!(features.contains("inline_data"), "{features}");
            image.mounted(CHURN);
            image.assert_clean("after churn");
        }
    }
}

#[test]
fn what_is_hard_survives_use_repair_and_growth() {
    let (_directory, tree) = hard_tree();
    let image = image(&given(300 * MIB), &tree, &<(Directory, Filter)>::default());
    let assert_same = |when: &str| {
        image.assert_clean(when);
        // Comparing reads the tree.
        let found = compare(&image, &tree, "accessed");
        let (_, rest) = found.trim().split_once(' ').expect("a summary");
        assert_eq!(rest, "compared", "{when}: {found}");
    };
    lose_primary_superblock(&image.path);
    let output = run(Command::new("e2fsck")
        .args(["-fy", "-b", "32768", "-B", "4096"])
        .arg(&image.path));
    assert_eq!(output.status.code(), Some(1), "{output:#?}");
    assert_same("recovered from the copy in group 1");

    succeed(Command::new("resize2fs").arg("-f").arg(&image.path).arg("1000M"));
    assert_same("grown");
    assert_eq!(image.field("Block count"), (1000 * MIB / 4096).to_string());
    image.mounted(CHURN);
    image.assert_clean("after the kernel wrote to every directory");
}

#[test]
fn runs_and_numbers_of_threads_make_the_same_bytes() {
    let (_directory, tree) = hard_tree();
    let bytes = |threads| {
        let storage = MemStorage::new();
        let control = Control {
            threads: NonZeroUsize::new(threads).expect("threads"),
            ..Control::unwatched()
        };
        // The largest file makes the image too large to look at all of it.
        let filter = Filter {
            exclude: vec![Pattern::new(b"large").expect("pattern")],
            ..Filter::default()
        };
        copy(&storage, &fit(), &tree, &(Directory::default(), filter), &control).expect("copy");
        storage.to_vec()
    };
    let first = bytes(4);
    assert!(first == bytes(4) && first == bytes(1));
}

#[test]
fn what_is_excluded_and_what_is_mounted_is_left_out() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let tree = directory.path();
    for path in ["var/cache/a", "var/lib/cache/b", "mounted"] {
        fs::create_dir_all(tree.join(path)).expect("directory");
    }
    fs::write(tree.join("var/cache/a/file.o"), "x").expect("write");
    fs::write(tree.join("var/lib/file.o"), "x").expect("write");
    let filter = Filter {
        exclude: ["*.o", "/var/cache/*"]
            .map(|pattern| Pattern::new(pattern.as_bytes()).expect("pattern"))
            .to_vec(),
        ..Filter::default()
    };
    let options = Directory {
        one_file_system: true,
        ..Directory::default()
    };
    let storage = MemStorage::new();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "none"]).arg(tree.join("mounted"));
    assert!(run(&mut mount).status.success());
    fs::write(tree.join("mounted/file"), "x").expect("write");
    let copied = copy(&storage, &fit(), tree, &(options, filter), &Control::unwatched());
    let with_mounted = image(&fit(), tree, &Default::default());
    assert!(
        run(Command::new("umount").arg(tree.join("mounted")))
            .status
            .success()
    );
    copied.expect("copy");
    assert_eq!(
        Image::of(&storage).mounted(LIST),
        ".\n./mounted\n./var\n./var/cache\n./var/lib\n./var/lib/cache\n./var/lib/cache/b\n"
    );
    assert!(with_mounted.mounted(LIST).contains("./mounted/file\n"));
}

/// Copies a tree of one file of 1 MiB, `a`, and one of 3 bytes, `b/c`, and changes it as soon as some of `a` is read (`late`)
/// or before.
fn copy_changing(late: bool, change: impl Fn(&Path) + Sync) -> Error {
    let directory = tempfile::tempdir().expect("temporary directory");
    let tree = directory.path();
    fs::write(tree.join("a"), vec![1; MIB as usize]).expect("write");
    // Written now, it may be written to once more within one tick of the kernel's clock, which nobody could tell.
    let file = File::options().write(true).open(tree.join("a")).expect("open");
    file.set_modified(UNIX_EPOCH).expect("set the time");
    fs::create_dir(tree.join("b")).expect("directory");
    fs::write(tree.join("b/c"), "123").expect("write");
    let changed = AtomicBool::new(false);
    let report = |bytes| {
        // Who reads `a` waits for the change of it; who reads `b/c` would not keep that one back.
        let is_time = if late { bytes > 3 } else { bytes == 0 };
        if is_time && !changed.swap(true, Ordering::Relaxed) {
            change(tree);
        }
        Ok(())
    };
    let control = Control {
        report: &report,
        ..Control::unwatched()
    };
    let storage = MemStorage::new();
    let error = copy(&storage, &fit(), tree, &Default::default(), &control).expect_err("a change");
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    error
}

#[test]
fn what_changes_while_it_is_read_is_an_error_that_names_it() {
    let append = |tree: &Path| {
        let mut file = File::options().append(true).open(tree.join("a")).expect("open");
        file.write_all(b"more").expect("write");
    };
    let cut = |tree: &Path| {
        let file = File::options().write(true).open(tree.join("a")).expect("open");
        file.set_len(300_000).expect("cut");
    };
    // Never shorter in between, as that is another error.
    let overwrite = |tree: &Path| {
        let mut file = File::options().write(true).open(tree.join("a")).expect("open");
        file.write_all(&vec![2; MIB as usize]).expect("write");
    };
    let remove = |tree: &Path| fs::remove_file(tree.join("a")).expect("remove");
    let remove_directory = |tree: &Path| fs::remove_dir_all(tree.join("b")).expect("remove");
    for (late, change, name, words) in [
        (true, &append as &(dyn Fn(&Path) + Sync), "a", "it became longer"),
        (true, &cut, "a", "it became shorter"),
        (true, &overwrite, "a", "it was written to"),
        (false, &remove, "a", "it vanished"),
        (false, &remove_directory, "b", "it vanished"),
    ] {
        let error = copy_changing(late, change);
        assert!(error.path().expect("a path").ends_with(name), "{error}");
        assert!(error.message().contains(words), "{error}");
        assert!(error.hint().is_some());
    }
}

#[test]
fn a_request_to_stop_ends_it() {
    let (_directory, tree) = hard_tree();
    for late in [false, true] {
        let report = |bytes| {
            if bytes > 0 || !late {
                return Err(Error::new(ErrorKind::Interrupted, "stopped"));
            }
            Ok(())
        };
        let control = Control {
            report: &report,
            ..Control::unwatched()
        };
        let storage = MemStorage::new();
        let error = copy(&storage, &fit(), &tree, &Default::default(), &control).expect_err("stopped");
        assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
    }
}

#[test]
fn the_filesystem_itself_is_not_to_be_in_the_tree() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("image");
    fs::write(&path, "").expect("write");
    let metadata = fs::metadata(&path).expect("metadata");
    let options = Directory {
        refuse: vec![FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
        }],
        ..Directory::default()
    };
    let options = (options, Filter::default());
    let storage = MemStorage::new();
    let error = copy(
        &storage,
        &fit(),
        directory.path(),
        &options,
        &Control::unwatched(),
    )
    .expect_err("refused");
    assert_eq!(error.path(), Some(directory.path()));
    assert!(error.hint().is_some());
}

#[test]
fn a_size_that_is_too_small_for_a_tree_says_which_would_do() {
    let directory = tempfile::tempdir().expect("temporary directory");
    for name in 0..40 {
        fs::write(directory.path().join(name.to_string()), vec![1; MIB as usize]).expect("write");
    }
    let build = |size| {
        let storage = MemStorage::new();
        let options = Options::new(Size::Given(size), UUID);
        let result = copy(
            &storage,
            &options,
            directory.path(),
            &Default::default(),
            &Control::unwatched(),
        );
        assert!(storage.len().expect("len") <= size);
        result
    };
    let error = build(8 * MIB).expect_err("too small");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let number = |text: &str| -> u64 {
        let mut words = text.split(' ').filter_map(|word| word.parse().ok());
        words.next().expect("a number")
    };
    let enough = number(error.hint().expect("a hint"));
    assert_eq!(number(&error.to_string()), enough - 8 * MIB);
    build(enough - 4096).expect_err("less");
    build(enough).expect("what was said to do");
}

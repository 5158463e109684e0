//! What the tests share: images made and judged by QEMU's tools.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use block::test_utils::Rng;
use block::{Access, Backing, BlockDevice, Keys, MemStorage, Passphrase, Storage};
use encryption::{CipherSpec, Hash, Iterations, LuksOptions};
use qcow2::{CreateOptions, EncryptionMethod, Image, NewEncryption, OpenOptions};

/// The methods of a [`Storage`] around another, but for reading and syncing.
#[allow(unused_macros, reason = "each test binary uses its own part")]
macro_rules! pass_on_to_inner {
    () => {
        fn write_all_at(&self, buf: &[u8], offset: u64) -> block::Result<()> {
            self.inner.write_all_at(buf, offset)
        }
        fn zero(&self, offset: u64, len: u64, mode: block::ZeroMode) -> block::Result<()> {
            self.inner.zero(offset, len, mode)
        }
        fn discard(&self, offset: u64, len: u64) -> block::Result<()> {
            self.inner.discard(offset, len)
        }
        fn host_extent(&self, offset: u64, len: u64) -> block::Result<block::HostExtent> {
            self.inner.host_extent(offset, len)
        }
        fn len(&self) -> block::Result<u64> {
            self.inner.len()
        }
        fn set_len(&self, len: u64) -> block::Result<()> {
            self.inner.set_len(len)
        }
    };
}
#[allow(unused_imports, reason = "each test binary uses its own part")]
pub(crate) use pass_on_to_inner;

/// Runs a program that must be there.
pub(crate) fn run(program: &str, args: &[&str]) -> Output {
    run_in(Path::new("."), program, args)
}

/// Runs a program in a directory: QEMU looks names of data files up from there.
fn run_in(dir: &Path, program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).current_dir(dir).output();
    output.unwrap_or_else(|error| panic!("{program} cannot be run ({error}): install qemu-utils"))
}

/// Runs a program that must succeed.
pub(crate) fn run_ok(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}{errors}");
    text
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// A file in memory.
pub(crate) fn load(path: &Path) -> MemStorage {
    let storage = MemStorage::new();
    storage
        .write_all_at(&std::fs::read(path).expect("the file can be read"), 0)
        .expect("memory");
    storage
}

/// An image made by qemu-img, in memory. `backing` is the length of a backing file of which only the name matters.
pub(crate) fn create(options: &str, size: u64, backing: Option<u64>) -> MemStorage {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("image.qcow2");
    let size = size.to_string();
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", options];
    if backing.is_some() {
        args.extend(["-u", "-b", "base.raw", "-F", "raw"]);
    }
    args.extend([text(&image), &size]);
    run_ok("qemu-img", &args);
    load(&image)
}

/// What opens all encrypted images of the tests.
pub(crate) const KEY: &str = "correct horse";

pub(crate) fn keys() -> Keys {
    Keys::Passphrases(vec![Passphrase::new(KEY)])
}

/// Encryption that costs little to open.
pub(crate) fn luks(spec: CipherSpec) -> NewEncryption {
    let iterations = Iterations::Exactly(1);
    let options = LuksOptions {
        spec,
        hash: Hash::Sha256,
        iterations,
    };
    NewEncryption {
        method: EncryptionMethod::Luks(options),
        passphrase: Passphrase::new(KEY),
    }
}

/// The encryption of old images.
pub(crate) fn aes() -> NewEncryption {
    NewEncryption {
        method: EncryptionMethod::Aes,
        passphrase: Passphrase::new(KEY),
    }
}

/// An image of ours, in memory.
pub(crate) fn created(options: &CreateOptions) -> MemStorage {
    let storage = MemStorage::new();
    qcow2::create(&storage, options).expect("the options are valid");
    storage
}

/// What names the image at `path` to QEMU.
fn qemu_name_of(image: &[u8], path: &Path) -> Vec<String> {
    let encrypted = image[32..36] != [0; 4];
    if encrypted {
        qemu_name(path).to_vec()
    } else {
        ["-f", "qcow2", text(path)].map(String::from).to_vec()
    }
}

/// What names the encrypted image at `path` to QEMU, with its key.
pub(crate) fn qemu_name(path: &Path) -> [String; 4] {
    [
        "--object".into(),
        format!("secret,id=key,data={KEY}"),
        "--image-opts".into(),
        format!("driver=qcow2,encrypt.key-secret=key,file.filename={}", text(path)),
    ]
}

/// An image with a data file called `data.raw`, and that file, in memory.
pub(crate) fn create_with_data_file(options: &CreateOptions, raw: bool) -> (MemStorage, MemStorage) {
    let options = CreateOptions {
        data_file: Some(block::DataFileReference {
            name: Some("data.raw".into()),
            raw,
        }),
        ..options.clone()
    };
    let (image, data) = (MemStorage::new(), MemStorage::new());
    qcow2::create(&image, &options).expect("the options are valid");
    data.set_len(options.size).expect("memory");
    (image, data)
}

/// Opens an image for writing.
pub(crate) fn open(storage: Arc<dyn Storage>, backing: Option<&Arc<dyn BlockDevice>>) -> Image {
    open_with_data_file(storage, backing, None)
}

/// Opens an image for writing, its guest's data in `data_file`.
pub(crate) fn open_with_data_file(
    storage: Arc<dyn Storage>,
    backing: Option<&Arc<dyn BlockDevice>>,
    data_file: Option<Arc<dyn Storage>>,
) -> Image {
    let backing = backing.map_or(Backing::None, |device| Backing::Device(Arc::clone(device)));
    // A cache of one set of slots, so that eviction happens too.
    let options = OpenOptions {
        access: Access::WRITE,
        backing,
        data_file,
        l2_cache: 1,
        keys: keys(),
        ..OpenOptions::default()
    };
    Image::open(storage, options).expect("the image opens")
}

/// What `qemu-img check` says: its exit code (0 clean, 2 corrupt, 3 leaks) and its words.
pub(crate) fn qemu_check(image: &[u8]) -> (i32, String) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("image.qcow2");
    std::fs::write(&path, image).expect("room for the image");
    // What the image may name must be there; what it holds does not matter.
    for name in ["base.raw", "data.raw"] {
        std::fs::write(dir.path().join(name), []).expect("room for the file");
    }
    let name = qemu_name_of(image, &path);
    let mut args = vec!["check"];
    args.extend(name.iter().map(String::as_str));
    let output = run_in(dir.path(), "qemu-img", &args);
    let words = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&words).into_owned(),
    )
}

/// The image as `qemu-img check -r all` leaves it, which must find nothing wrong then.
pub(crate) fn qemu_repair(image: &[u8]) -> MemStorage {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("image.qcow2");
    std::fs::write(&path, image).expect("room for the image");
    for name in ["base.raw", "data.raw"] {
        std::fs::write(dir.path().join(name), []).expect("room for the file");
    }
    let name = qemu_name_of(image, &path);
    let mut args = vec!["check", "-q", "-r", "all"];
    args.extend(name.iter().map(String::as_str));
    let output = run_in(dir.path(), "qemu-img", &args);
    assert!(output.status.success(), "{output:?}");
    load(&path)
}

/// The disk as QEMU reads it, over a raw backing file of `backing`.
pub(crate) fn qemu_read(image: &[u8], backing: Option<&[u8]>) -> Vec<u8> {
    qemu_read_with_data_file(image, backing, None)
}

/// The disk as QEMU reads it, its data in a file called `data.raw`.
pub(crate) fn qemu_read_with_data_file(
    image: &[u8],
    backing: Option<&[u8]>,
    data_file: Option<&[u8]>,
) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (path, raw) = (dir.path().join("image.qcow2"), dir.path().join("out.raw"));
    std::fs::write(&path, image).expect("room for the image");
    if let Some(backing) = backing {
        std::fs::write(dir.path().join("base.raw"), backing).expect("room for the backing file");
    }
    if let Some(data_file) = data_file {
        std::fs::write(dir.path().join("data.raw"), data_file).expect("room for the data file");
    }
    let name = qemu_name_of(image, &path);
    let mut args = vec!["convert", "-O", "raw"];
    args.extend(name.iter().map(String::as_str));
    args.push(text(&raw));
    let output = run_in(dir.path(), "qemu-img", &args);
    assert!(output.status.success(), "{output:?}");
    std::fs::read(&raw).expect("the output")
}

/// A device in memory with the given bytes.
#[derive(Debug)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Bytes {
    /// `len` bytes, none of them zero.
    pub(crate) fn pattern(len: u64, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        Self((0..len).map(|_| rng.below(255) as u8 + 1).collect())
    }
}

impl BlockDevice for Bytes {
    fn info(&self) -> block::DeviceInfo {
        block::DeviceInfo::new("raw")
    }
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> block::Result<()> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }
    fn write_at(&self, _: &[u8], _: u64) -> block::Result<()> {
        Err(block::Error::read_only("write"))
    }
    fn zero_at(&self, _: u64, _: u64, _: block::ZeroMode) -> block::Result<()> {
        Err(block::Error::read_only("write"))
    }
    fn discard_at(&self, _: u64, _: u64) -> block::Result<()> {
        Err(block::Error::read_only("discard"))
    }
    fn extent_at(&self, offset: u64, len: u64) -> block::Result<block::Extent> {
        let len = len.min(self.size() - offset);
        Ok(block::Extent {
            offset,
            len,
            state: block::ExtentState::Data,
            depth: 0,
            host: Some(offset),
        })
    }
    fn flush(&self) -> block::Result<()> {
        Ok(())
    }
}

//! QEMU is the judge of disks in LUKS's own form: it reads what we wrote, and we read what it wrote, with every cipher that both
//! have.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use block::{Access, BlockDevice, Keys, MemStorage, Passphrase, Preallocation};
use encryption::{
    Cipher, CipherSpec, Hash, Image, Iterations, IvGenerator, KeySlots, LuksOptions, Mode, SECTOR, create,
};

const SIZE: usize = 256 << 10;
const SECRET: [&str; 2] = ["--object", "secret,id=key,data=the first"];

/// Every cipher in every mode, and every initialisation vector and hash with some. QEMU falls over keys whose copies do not end
/// with a sector.
fn options() -> impl Iterator<Item = LuksOptions> {
    let ivs = [IvGenerator::Plain64, IvGenerator::Plain, IvGenerator::Essiv];
    let all = Cipher::ALL
        .into_iter()
        .flat_map(|cipher| Mode::ALL.map(|mode| (cipher, mode)));
    all.enumerate()
        .map(move |(number, (cipher, mode))| LuksOptions {
            spec: CipherSpec {
                cipher,
                mode,
                iv: if cipher.name().ends_with("256") {
                    ivs[number % 3]
                } else {
                    ivs[number % 2]
                },
            },
            hash: Hash::ALL[number % Hash::ALL.len()],
            iterations: Iterations::Exactly(1000),
        })
        .filter(|options| (options.spec.key_len() * 4000).is_multiple_of(SECTOR))
}

fn run(directory: &Path, program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed (Debian: qemu-utils): {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn qemu_io(directory: &Path, commands: &[&str]) {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let image = ["--image-opts", "driver=luks,file.filename=disk,key-secret=key"];
    let args: Vec<&str> = SECRET.into_iter().chain(commands).chain(image).collect();
    let said = run(directory, "qemu-io", &args);
    assert!(!said.contains("failed"), "{said}");
}

fn open(bytes: Vec<u8>, passphrase: &str) -> (Arc<MemStorage>, Image) {
    let storage = Arc::new(MemStorage::from(bytes));
    let keys = Keys::Passphrases(vec![Passphrase::new(passphrase)]);
    let image = Image::open(storage.clone(), Access::WRITE, &keys).unwrap();
    (storage, image)
}

#[test]
fn it_reads_what_we_wrote() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    for options in options() {
        let storage = MemStorage::new();
        let passphrase = Passphrase::new("the first");
        create(&storage, SIZE as u64, &options, &passphrase, Preallocation::Full).unwrap();
        let (storage, image) = open(storage.to_vec(), "the first");
        image.write_at(&vec![0x11; 70_000], 1000).unwrap();
        image.write_at(&[0x22; 7], 511).unwrap();
        image.write_at(&[0x33; 600], SIZE as u64 - 600).unwrap();
        image.flush().unwrap();
        fs::write(directory.join("disk"), storage.to_vec()).unwrap();
        qemu_io(
            directory,
            &[
                "read -P 0 0 511",
                "read -P 0x22 511 7",
                "read -P 0 518 482",
                "read -P 0x11 1000 70000",
                "read -P 0 71000 190544",
                "read -P 0x33 261544 600",
            ],
        );
    }
}

#[test]
fn we_read_what_it_wrote_and_it_opens_the_disk_by_a_key_of_ours() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    // It takes its time to make each.
    for options in options().step_by(5) {
        let spec = options.spec;
        let list = format!(
            "key-secret=key,iter-time=10,cipher-alg={},cipher-mode={},ivgen-alg={},hash-alg={}",
            spec.cipher.name(),
            spec.mode.name(),
            spec.iv.name(),
            options.hash.name()
        );
        let list = match spec.iv {
            IvGenerator::Essiv => format!("{list},ivgen-hash-alg=sha256"),
            _ => list,
        };
        let args = [
            SECRET[0],
            "secret,id=key,data=the first",
            "-o",
            &list,
            "disk",
            "256k",
        ];
        run(
            directory,
            "qemu-img",
            &[&["create", "-q", "-f", "luks"][..], &args[..]].concat(),
        );
        qemu_io(
            directory,
            &[
                "write -z 0 256k",
                "write -P 0x11 1000 70000",
                "write -P 0x22 255k 1k",
            ],
        );
        let (storage, image) = open(fs::read(directory.join("disk")).unwrap(), "the first");
        let mut bytes = vec![1; SIZE];
        image.read_at(&mut bytes, 0).unwrap();
        let mut expected = vec![0; SIZE];
        expected[1000..71_000].fill(0x11);
        expected[SIZE - 1024..].fill(0x22);
        assert!(bytes == expected, "{options:?}");

        let third = Passphrase::new("the third");
        image.add_key(&third, Some(3), Iterations::Exactly(1000)).unwrap();
        image.remove_key(0, false).unwrap();
        fs::write(directory.join("disk"), storage.to_vec()).unwrap();
        let mut args = vec![
            "--object",
            "secret,id=key,data=the third",
            "-c",
            "read -P 0x11 1000 70000",
        ];
        args.extend(["--image-opts", "driver=luks,file.filename=disk,key-secret=key"]);
        let said = run(directory, "qemu-io", &args);
        assert!(!said.contains("failed"), "{options:?}: {said}");
    }
}

//! cryptsetup is the judge of LUKS headers: it opens ours and we open its own.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use encryption::{Cipher, CipherSpec, Hash, Iterations, IvGenerator, Luks, LuksOptions, MasterKey, Mode};

const SPECS: [(Cipher, Mode, IvGenerator, Hash); 7] = [
    (Cipher::Aes256, Mode::Xts, IvGenerator::Plain64, Hash::Sha256),
    (Cipher::Aes128, Mode::Xts, IvGenerator::Plain, Hash::Sha512),
    (Cipher::Aes256, Mode::Cbc, IvGenerator::Essiv, Hash::Sha1),
    (Cipher::Aes128, Mode::Cbc, IvGenerator::Essiv, Hash::Sha384),
    (Cipher::Aes192, Mode::Cbc, IvGenerator::Plain64, Hash::Ripemd160),
    (Cipher::Aes192, Mode::Cbc, IvGenerator::Plain, Hash::Sha224),
    (Cipher::Aes128, Mode::Xts, IvGenerator::Plain64, Hash::Sha256),
];

fn run(directory: &Path, args: &[&str]) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let command = Command::new("cryptsetup")
        .args(args)
        .current_dir(directory)
        .env("PATH", path)
        .output();
    command.expect("cryptsetup must be installed (scripts/setup.sh test)")
}

fn cryptsetup(directory: &Path, args: &[&str]) -> String {
    let output = run(directory, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The master key of the header in the file `disk`, as cryptsetup finds it with the passphrase in `key`.
fn their_key(directory: &Path, key: &str) -> Vec<u8> {
    let args = ["luksDump", "-q", "--dump-volume-key", "--key-file", key, "disk"];
    let dump = cryptsetup(directory, &args);
    let bytes = dump.split("MK dump:").nth(1).unwrap();
    let bytes = bytes.split_whitespace();
    bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn our_key(area: &[u8], passphrase: &str) -> Option<MasterKey> {
    let luks = Luks::parse(area).unwrap();
    let material = |slot| Ok(area[luks.material(slot)].to_vec());
    luks.unlock(passphrase.as_bytes(), material).unwrap()
}

fn write_disk(directory: &Path, area: &[u8]) {
    let mut disk = area.to_vec();
    disk.resize(area.len() + (1 << 20), 0);
    fs::write(directory.join("disk"), disk).unwrap();
}

#[test]
fn it_opens_our_headers_and_adds_keys_that_we_open() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    fs::write(directory.join("first"), "the first").unwrap();
    fs::write(directory.join("second"), "the second").unwrap();
    for (cipher, mode, iv, hash) in SPECS {
        let spec = CipherSpec { cipher, mode, iv };
        let options = LuksOptions {
            spec,
            hash,
            iterations: Iterations::Exactly(1000),
        };
        let (luks, area) = Luks::format(&options, b"the first").unwrap();
        write_disk(directory, &area);
        let dump = cryptsetup(directory, &["luksDump", "disk"]);
        for name in luks.names() {
            assert!(dump.contains(&format!("\t{name}\n")), "{name}: {dump}");
        }
        let key = our_key(&area, "the first").unwrap();
        assert_eq!(key.as_bytes(), their_key(directory, "first"), "{spec:?} {hash:?}");
        let args = [
            "luksAddKey",
            "-q",
            "--pbkdf-force-iterations",
            "1000",
            "--key-file",
            "first",
            "disk",
            "second",
        ];
        cryptsetup(directory, &args);
        let area = fs::read(directory.join("disk")).unwrap();
        assert_eq!(our_key(&area, "the second").unwrap().as_bytes(), key.as_bytes());
        assert!(our_key(&area, "the third").is_none());
    }
}

#[test]
fn we_open_its_headers_and_add_and_remove_keys_as_it_does() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    fs::write(directory.join("first"), "the first").unwrap();
    fs::write(directory.join("second"), "the second").unwrap();
    for (cipher, mode, iv, hash) in SPECS {
        let name = match iv {
            IvGenerator::Essiv => "essiv:sha256",
            iv => iv.name(),
        };
        let name = format!("aes-{}-{name}", mode.name());
        let bits = (CipherSpec { cipher, mode, iv }.key_len() * 8).to_string();
        write_disk(directory, &vec![0; 4 << 20]);
        let args = [
            "luksFormat",
            "-q",
            "--type",
            "luks1",
            "--pbkdf-force-iterations",
            "1000",
            "-c",
            &name,
        ];
        let more = ["-s", &bits, "-h", hash.name(), "disk", "first"];
        cryptsetup(directory, &[&args[..], &more[..]].concat());
        let mut area = fs::read(directory.join("disk")).unwrap();
        let key = our_key(&area, "the first").unwrap();
        assert_eq!(key.as_bytes(), their_key(directory, "first"));

        let mut luks = Luks::parse(&area).unwrap();
        let new = luks
            .add_key(&key, b"the second", Some(6), Iterations::Exactly(1234))
            .unwrap();
        area[luks.material(6)].copy_from_slice(&new.material);
        let gone = luks.remove_key(0, false).unwrap();
        area[luks.material(0)].copy_from_slice(&gone.material);
        area[..encryption::HEADER_LEN].copy_from_slice(&luks.encode());
        fs::write(directory.join("disk"), &area).unwrap();
        assert_eq!(key.as_bytes(), their_key(directory, "second"), "{name} {hash:?}");
        let test = [
            "open",
            "--test-passphrase",
            "--type",
            "luks1",
            "--key-file",
            "first",
            "disk",
        ];
        assert!(!run(directory, &test).status.success());
    }
}

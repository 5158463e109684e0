//! Archives that kernels unpack as their first root: cpio in the form "newc" (cpio(5); buffer-format.rst of the kernel), as
//! small as gzip makes them.

use std::io::Write;

use block::{Error, Result};
use flate2::Compression;
use flate2::write::GzEncoder;

/// Bytes that headers and contents are padded to.
const ALIGNMENT: usize = 4;

/// What ends an archive.
const END: &str = "TRAILER!!!";

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;

/// An archive in the making. All is root's, and made at the start of 1970.
pub(super) struct Archive {
    to: GzEncoder<Vec<u8>>,
    entries: u32,
}

impl Archive {
    pub(super) fn new() -> Self {
        Self {
            to: GzEncoder::new(Vec::new(), Compression::default()),
            entries: 0,
        }
    }

    pub(super) fn directory(&mut self, path: &str) -> Result<()> {
        self.entry(path, DIRECTORY, 2, &[])
    }

    pub(super) fn file(&mut self, path: &str, contents: &[u8], permissions: u32) -> Result<()> {
        self.entry(path, REGULAR | permissions, 1, contents)
    }

    /// Ends it.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry(END, 0, 1, &[])?;
        self.to.finish().map_err(failed)
    }

    fn entry(&mut self, path: &str, mode: u32, links: u32, contents: &[u8]) -> Result<()> {
        self.entries += 1;
        let inode = if path == END { 0 } else { self.entries };
        let len = u32::try_from(contents.len())
            .map_err(|_| Error::invalid(format!("{path} is too long for an initrd")))?;
        let name_len = path.len() as u32 + 1;
        let fields = [inode, mode, 0, 0, links, 0, len, 0, 0, 0, 0, name_len, 0];
        let mut header = String::from("070701");
        header.extend(fields.iter().map(|field| format!("{field:08X}")));
        header.push_str(path);
        header.push('\0');
        self.padded(header.as_bytes())?;
        self.padded(contents)
    }

    fn padded(&mut self, bytes: &[u8]) -> Result<()> {
        let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
        self.to
            .write_all(bytes)
            .and_then(|()| self.to.write_all(&[0; ALIGNMENT][..padding]))
            .map_err(failed)
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::io("compress an initrd", error)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn cpio_unpacks_what_was_packed() {
        let mut archive = Archive::new();
        archive.directory("a").unwrap();
        let long = vec![7; 100_001];
        let contents: [&[u8]; 4] = [b"", b"1", b"four", &long];
        for (at, contents) in contents.iter().enumerate() {
            archive
                .file(&format!("a/{}", "n".repeat(at + 1)), contents, 0o640 + at as u32)
                .unwrap();
        }
        let lab = tempfile::tempdir().unwrap();
        fs::write(lab.path().join("archive.gz"), archive.finish().unwrap()).unwrap();
        let unpack =
            "gzip -d archive.gz; cpio -i --quiet -d <archive; find a -type f -printf '%p %m %s\n' | sort";
        let output = Command::new("sh")
            .args(["-ec", unpack])
            .current_dir(lab.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let listed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(listed, "a/n 640 0\na/nn 641 1\na/nnn 642 4\na/nnnn 643 100001\n");
        assert!(fs::read(lab.path().join("a/nnnn")).unwrap() == contents[3]);
    }
}

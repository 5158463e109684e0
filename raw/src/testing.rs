//! What tests need of the host: mounts and loop devices that go away with the value, and other people's tools.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Runs a command that must succeed; returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let (success, text) = try_run(program, arguments);
    assert!(success, "{program} {arguments:?}: {text}");
    text
}

/// Runs a command; returns whether it succeeded and all that it printed.
pub(crate) fn try_run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}, which this test needs: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// A path as an argument of a command.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

/// A mounted file system.
pub(crate) struct Mount {
    directory: TempDir,
    _image: Option<tempfile::NamedTempFile>,
}

impl Mount {
    /// A tmpfs of `size` bytes.
    pub(crate) fn tmpfs(size: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        run(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &options,
                "imgtool-test",
                text(directory.path()),
            ],
        );
        Self {
            directory,
            _image: None,
        }
    }

    /// An ext4 file system of `size` bytes.
    pub(crate) fn ext4(size: u64) -> Self {
        Self::with("ext4", size)
    }

    /// A new file system of this kind, of `size` bytes; XFS wants 300 MiB, Btrfs 110.
    pub(crate) fn with(kind: &str, size: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(size).unwrap();
        let force = if kind == "ext4" { "-F" } else { "-f" };
        run(&format!("mkfs.{kind}"), &["-q", force, text(image.path())]);
        let arguments = [
            "-t",
            kind,
            "-o",
            "loop",
            text(image.path()),
            text(directory.path()),
        ];
        run("mount", &arguments);
        Self {
            directory,
            _image: Some(image),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &["-l", text(self.directory.path())]);
    }
}

/// A loop device.
pub(crate) struct Loop(PathBuf);

impl Loop {
    /// Over the file at `path`, with sectors of `sector` bytes.
    pub(crate) fn over(path: &Path, sector: u32) -> Self {
        let sector = sector.to_string();
        let device = run(
            "losetup",
            &["--find", "--show", "--sector-size", &sector, text(path)],
        );
        Self(device.trim().into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach", text(&self.0)]);
    }
}

/// Another process that goes away with the value.
pub(crate) struct Background(Child);

impl Background {
    pub(crate) fn start(program: &str, arguments: &[&str]) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap_or_else(|error| panic!("cannot run {program}, which this test needs: {error}")))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Asks until there is an answer, for ten seconds.
pub(crate) fn eventually<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "waited in vain");
        std::thread::sleep(Duration::from_millis(10));
    }
}

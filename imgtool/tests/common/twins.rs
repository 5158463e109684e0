//! `qemu-img` by our link and by QEMU's own program: the same is done with both, each in a directory of its own.
//!
//! What is done is a script of lines ([`Twins::script`]):
//!
//! ```text
//! 0 create -q -f qcow2 a 1M      arguments of qemu-img, after the exit code: both end with it, and print the same
//! io a write -P 1 0 64k          qemu-io writes to the image, in both directories
//! same a                         the images read the same, and qemu-img finds ours whole
//! layers a                       each part of the disk comes from the same layer
//! file a                         the files are the same, byte for byte
//! ```
//!
//! Words may stand in single quotes. Lines that start with `#` say something to the reader.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory for each of the two programs.
pub(crate) struct Twins {
    theirs: tempfile::TempDir,
    ours: tempfile::TempDir,
    links: tempfile::TempDir,
}

/// What a program wrote and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Twins {
    pub(crate) fn new() -> Self {
        let directory = || tempfile::tempdir().unwrap();
        let twins = Self {
            theirs: directory(),
            ours: directory(),
            links: directory(),
        };
        symlink(env!("CARGO_BIN_EXE_imgtool"), twins.link()).unwrap();
        twins
    }

    /// Our program, by the name that makes it QEMU's.
    pub(crate) fn link(&self) -> PathBuf {
        self.links.path().join("qemu-img")
    }

    pub(crate) fn theirs(&self) -> &Path {
        self.theirs.path()
    }

    pub(crate) fn ours(&self) -> &Path {
        self.ours.path()
    }

    /// Runs both with the words of a line. What they print is the same, but for what [`comparable`] leaves out.
    pub(crate) fn both(&self, line: &str) -> Outcome {
        let words = words(line);
        let theirs = run(Path::new("qemu-img"), &words, self.theirs());
        let ours = run(&self.link(), &words, self.ours());
        assert_eq!(ours, theirs, "qemu-img {line}");
        ours
    }

    /// Both succeed, in silence on standard error.
    pub(crate) fn ok(&self, line: &str) -> String {
        let outcome = self.both(line);
        assert_eq!((outcome.code, &*outcome.err), (Some(0), ""), "qemu-img {line}");
        outcome.out
    }

    /// Both fail, saying this.
    pub(crate) fn refused(&self, line: &str, text: &str) {
        let Outcome { code, err, .. } = self.both(line);
        assert!(
            code != Some(0) && err.contains(text),
            "qemu-img {line}: {code:?} {err}"
        );
    }

    /// Does what a script says: see the [module](self).
    pub(crate) fn script(&self, script: &str) {
        let lines = script.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
            match verb {
                "io" => {
                    let (image, command) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                    self.qemu_io(image, &[command]);
                }
                "same" => self.assert_same_disk(rest),
                "layers" => self.assert_same_layers(rest),
                "file" => self.assert_same_file(rest),
                code => {
                    let code = code.parse().unwrap_or_else(|_| panic!("{line}"));
                    let outcome = self.both(rest);
                    assert_eq!(outcome.code, Some(code), "qemu-img {rest}: {outcome:?}");
                }
            }
        }
    }

    /// Does something to both directories.
    pub(crate) fn in_both(&self, change: impl Fn(&Path)) {
        change(self.theirs());
        change(self.ours());
    }

    pub(crate) fn qemu_io(&self, image: &str, commands: &[&str]) {
        self.in_both(|directory| {
            let words = commands.iter().flat_map(|command| ["-c", command]);
            let words: Vec<String> = words.chain([image]).map(ToOwned::to_owned).collect();
            let done = run(Path::new("qemu-io"), &words, directory);
            let fine = done.code == Some(0) && !done.out.contains("failed");
            assert!(fine, "{commands:?}: {done:?}");
        });
    }

    /// Both directories have the same file, byte for byte.
    pub(crate) fn assert_same_file(&self, name: &str) {
        let read = |directory: &Path| fs::read(directory.join(name)).unwrap();
        assert!(read(self.ours()) == read(self.theirs()), "{name} is not the same");
    }

    /// The images, which QEMU's own program finds whole, read the same in both directories.
    pub(crate) fn assert_same_disk(&self, name: &str) {
        let theirs = self.theirs().join(name);
        let qemu_img = |line: &str| {
            let done = run(Path::new("qemu-img"), &words(line), self.ours());
            assert_eq!(done.code, Some(0), "qemu-img {line}: {done:?}");
            done.out
        };
        qemu_img(&format!("compare {} {name}", theirs.display()));
        if qemu_img(&format!("info {name}")).contains("file format: qcow2") {
            qemu_img(&format!("check {name}"));
        }
    }

    /// Each part of the disk comes from the same layer, wherever in its file: QEMU copies several at once, in any order.
    pub(crate) fn assert_same_layers(&self, image: &str) {
        let line = format!("map --output=json {image}");
        let runs = |program: &Path, directory: &Path| {
            let done = run(program, &words(&line), directory);
            assert_eq!(done.code, Some(0), "qemu-img {line}: {done:?}");
            let map: Vec<serde_json::Value> = serde_json::from_str(&done.out).unwrap();
            let mut runs: Vec<(u64, u64, bool)> = Vec::new();
            for run in map {
                let (len, depth) = (run["length"].as_u64().unwrap(), run["depth"].as_u64().unwrap());
                let data = run["data"].as_bool().unwrap();
                match runs.last_mut() {
                    Some(last) if (last.1, last.2) == (depth, data) => last.0 += len,
                    _ => runs.push((len, depth, data)),
                }
            }
            runs
        };
        let theirs = runs(Path::new("qemu-img"), self.theirs());
        assert_eq!(runs(&self.link(), self.ours()), theirs, "qemu-img {line}");
    }
}

/// Runs a program; what it printed is made [`comparable`].
pub(crate) fn run(program: &Path, words: &[String], directory: &Path) -> Outcome {
    let output = Command::new(program).args(words).current_dir(directory).output();
    let output = output
        .unwrap_or_else(|error| panic!("{} is needed (Debian: qemu-utils): {error}", program.display()));
    let text = |bytes| comparable(&String::from_utf8(bytes).unwrap());
    Outcome {
        code: output.status.code(),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

/// The words of a line; what begins with a single quote ends with the next one, and may hold spaces or nothing.
pub(crate) fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('\'') {
            Some(quoted) => quoted.split_once('\'').unwrap_or_else(|| panic!("{line}")),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    words
}

/// Nodes without a name are numbered at random.
fn without_node_numbers(line: &str) -> String {
    let mut parts = line.split("#block");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text += "#block";
        text += part.trim_start_matches(|digit: char| digit.is_ascii_digit());
    }
    text
}

/// Leaves out what may differ: what a file takes on its host is less where we leave holes, and a run takes its time. The hint
/// after a wrong command line is upstream's here, and the peer that tests find has its distribution's.
fn comparable(text: &str) -> String {
    let mut comparable = String::new();
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        if trimmed.starts_with("disk size:") || trimmed.contains("\"actual-size\":") {
            continue;
        }
        if trimmed.starts_with("Try 'qemu-img ") {
            comparable += "Try help\n";
        } else if trimmed.starts_with("Run completed in ") && trimmed.ends_with(" seconds.") {
            comparable += "Run completed in N seconds.\n";
        } else {
            comparable += &without_node_numbers(line);
        }
    }
    comparable
}

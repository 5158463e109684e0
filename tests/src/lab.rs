//! A directory with images, and who works on them.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use block::chain::Chain;
use block::gate::Permissive;
use block::test_utils::Rng;
use block::{Access, Format, Result, Storage};
use ops::Extents;
use qcow2::{CheckOptions, CheckReport};
use raw::HostOpener;
use tempfile::TempDir;

use crate::{Figures, Fill, MapEntry, Model, Request, Shape, assert_reads_as, assert_same_bytes};

/// The formats of this toolkit.
pub const FORMATS: &[&dyn Format] = &[&qcow2::Qcow2, &raw::Raw];

/// What became of a program.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its exit code; -1 if a signal ended it.
    pub code: i32,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// And to its standard error.
    pub stderr: String,
}

/// A directory of its own for a test. Names are relative to it.
#[derive(Debug)]
pub struct Lab {
    dir: TempDir,
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// With nothing in it but the file `noise`.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("noise"), Fill::noise()).expect("room for a file");
        Self { dir }
    }

    /// Where a file lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// All bytes of a file.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("the file can be read")
    }

    /// Runs a program, which must be there.
    pub fn run(&self, program: &str, args: &[&str]) -> Outcome {
        let output = Command::new(program)
            .args(args)
            .current_dir(self.dir.path())
            .output();
        let output = output.unwrap_or_else(|error| {
            panic!("{program} is needed (Debian: qemu-utils, qemu-system-common): {error}")
        });
        Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs `qemu-img`, which must succeed.
    pub fn qemu_img(&self, args: &[&str]) -> String {
        let outcome = self.run("qemu-img", args);
        assert_eq!(outcome.code, 0, "qemu-img {args:?}: {outcome:?}");
        outcome.stdout
    }

    /// Makes `requests` of an image through `qemu-io`. Compressed writes may be refused, as QEMU does where there is
    /// something already. They go first, in a process of their own: QEMU damages its image where it packs compressed
    /// data into a cluster that it has given to something else since.
    pub fn qemu_io(&self, name: &str, format: &str, requests: &[Request]) {
        let compressed = |request: &&Request| matches!(request, Request::Compressed { .. });
        let (first, then): (Vec<_>, Vec<_>) = requests.iter().partition(compressed);
        self.qemu_io_process(name, format, &first);
        self.qemu_io_process(name, format, &then);
    }

    fn qemu_io_process(&self, name: &str, format: &str, requests: &[&Request]) {
        if requests.is_empty() {
            return;
        }
        let commands: Vec<String> = requests.iter().map(|request| request.qemu_io()).collect();
        let mut args = vec!["-f", format, "-d", "unmap"];
        for command in &commands {
            args.extend(["-c", command]);
        }
        args.push(name);
        let outcome = self.run("qemu-io", &args);
        let compressed = requests
            .iter()
            .filter(|request| matches!(request, Request::Compressed { .. }))
            .count();
        let words = outcome.stdout + &outcome.stderr;
        let refused = words.matches("write failed: Input/output error").count();
        let failed = words.matches("failed").count();
        assert!(
            failed == refused && refused <= compressed,
            "qemu-io {args:?}: {words}"
        );
        assert!(outcome.code == 0 || refused > 0, "qemu-io {args:?}: {words}");
    }

    /// Has QEMU make an image, over a backing file (name, format) or none.
    pub fn qemu_create(&self, name: &str, shape: Shape, size: u64, backing: Option<(&str, &str)>) {
        let (options, size) = (shape.qemu_options(), size.to_string());
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
        if let Some((backing, format)) = backing {
            args.extend(["-b", backing, "-F", format]);
        }
        args.extend([name, &size]);
        self.qemu_img(&args);
    }

    /// Makes an image ourselves.
    pub fn create(&self, name: &str, shape: Shape, size: u64, backing: Option<(&str, &str)>) {
        let file = raw::OpenOptions::new().write(true).create_new(true);
        let file = file.open(self.path(name)).expect("a new file");
        qcow2::create(&file, &shape.create_options(size, backing)).expect("a new image");
    }

    /// Makes a raw image ourselves.
    pub fn create_raw(&self, name: &str, size: u64) {
        let file = raw::OpenOptions::new().write(true).create_new(true);
        let file = file.open(self.path(name)).expect("a new file");
        raw::create(&file, size, block::Preallocation::Off).expect("a new image");
    }

    /// Opens an image with what it is based on, whatever that is.
    ///
    /// # Errors
    /// As [`Chain::open`].
    pub fn try_open(&self, name: &str, format: &str, access: Access) -> Result<Chain> {
        let gate = Permissive::default();
        Chain::open(
            &HostOpener::new(),
            FORMATS,
            &gate,
            &self.path(name),
            Some(format),
            access,
        )
    }

    /// Opens an image that must open.
    pub fn open(&self, name: &str, format: &str, access: Access) -> Chain {
        self.try_open(name, format, access).expect("the chain opens")
    }

    /// The disk as QEMU reads it: `image` converted to a raw file. `selection` are more arguments, such as a
    /// snapshot.
    pub fn qemu_reads(&self, name: &str, format: &str, selection: &[&str]) -> Arc<dyn Storage> {
        let out = format!("{name}.read");
        let mut args = vec!["convert", "-f", format, "-O", "raw"];
        args.extend(selection);
        args.extend([name, &out]);
        self.qemu_img(&args);
        let file = raw::File::open(self.path(&out)).expect("the output");
        fs::remove_file(self.path(&out)).expect("the output can be removed");
        Arc::new(file)
    }

    /// What `qemu-img map` lists.
    pub fn qemu_map(&self, name: &str, format: &str) -> Vec<MapEntry> {
        let json = self.qemu_img(&["map", "--output=json", "-f", format, name]);
        MapEntry::parse(&json)
    }

    /// What `qemu-img check` finds; `None`, with its words on the standard error, if it does not come to an end.
    pub fn qemu_check(&self, name: &str) -> Option<Figures> {
        let outcome = self.run("qemu-img", &["check", "--output=json", "-f", "qcow2", name]);
        eprint!("{}", outcome.stderr);
        Figures::from_qemu(outcome.code, &outcome.stdout)
    }

    /// Our check of an image.
    ///
    /// # Errors
    /// As [`qcow2::check`].
    pub fn check(&self, name: &str) -> Result<CheckReport> {
        let file = raw::File::open(self.path(name))?;
        qcow2::check(
            &file,
            &CheckOptions::default(),
            &mut |_| ControlFlow::Continue(()),
        )
    }

    /// Fails unless both checks find the same. What they find.
    pub fn assert_same_check(&self, name: &str) -> Figures {
        let report = self.check(name).expect("a check");
        let ours = Figures::from(&report);
        assert_eq!(Some(ours), self.qemu_check(name), "{name}: {:?}", report.findings);
        ours
    }

    /// Fails unless neither check finds anything.
    pub fn assert_clean(&self, name: &str) {
        let figures = self.assert_same_check(name);
        assert!(figures.is_clean(), "{name}: {figures:?}");
    }

    /// Fails unless both list the same runs.
    pub fn assert_same_map(&self, name: &str, format: &str) {
        let chain = self.open(name, format, Access::READ);
        let runs = Extents::new(&**chain.active()).map(|run| run.expect("an extent").into());
        let (ours, qemus) = (runs.collect::<Vec<MapEntry>>(), self.qemu_map(name, format));
        if ours != qemus {
            let at = ours.iter().zip(&qemus).take_while(|(a, b)| a == b).count();
            let (ours_here, qemus_here) = (
                &ours[at..ours.len().min(at + 3)],
                &qemus[at..qemus.len().min(at + 3)],
            );
            panic!("{name}: the maps differ from run {at} on:\nours  {ours_here:#?}\nQEMU's {qemus_here:#?}");
        }
    }

    /// Fails unless both read `model`.
    pub fn assert_holds(&self, name: &str, format: &str, model: &Model, rng: &mut Rng) {
        assert_same_bytes(
            &*self.qemu_reads(name, format, &[]),
            model.bytes(),
            "what QEMU reads",
        );
        let chain = self.open(name, format, Access::READ);
        assert_reads_as(&**chain.active(), model.bytes(), rng);
    }
}

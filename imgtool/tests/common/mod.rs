//! Running imgtool and QEMU's tools in a directory of their own.

pub(crate) mod filesystems;
pub(crate) mod guest;
pub(crate) mod twins;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

/// A mounted file system; goes away with the value.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// What is mounted there.
    pub(crate) fn at(point: &Path) -> Self {
        Self(point.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
    }
}

/// A block device of this machine with the contents of a file.
pub(crate) struct Loop(pub(crate) String);

impl Loop {
    pub(crate) fn new(lab: &Lab, file: &str, options: &[&str]) -> Self {
        let words = [&["losetup", "--show", "-f"], options, &[file]].concat();
        Self(lab.run_words(&words).ok().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// A directory with images, removed at the end.
pub(crate) struct Lab(tempfile::TempDir);

/// Copies the program to where anybody can reach it. A process of its own does: one that another thread is starting has this one's open files
/// for a moment, and no program runs while somebody may write to it.
pub(crate) fn copy_program(to: &Path) {
    let done = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_imgtool"))
        .arg(to)
        .status();
    assert!(
        done.is_ok_and(|status| status.success()),
        "cannot copy to {}",
        to.display()
    );
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// On a new file system of this kind, of `mib` MiB; XFS wants 300, Btrfs 110.
    pub(crate) fn on(kind: &str, mib: u64) -> (Self, Mounted) {
        let lab = Self::new();
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(mib << 20).unwrap();
        let force = if kind == "ext4" { "-F" } else { "-f" };
        let (file, dir) = (image.path().to_str().unwrap(), lab.dir().to_str().unwrap());
        lab.run_words(&[&format!("mkfs.{kind}"), "-q", force, file]).ok();
        lab.run_words(&["mount", "-t", kind, "-o", "loop", file, dir])
            .ok();
        let mounted = Mounted(lab.dir().to_owned());
        (lab, mounted)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The names in the directory, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let program = if program == "imgtool" {
            env!("CARGO_BIN_EXE_imgtool")
        } else {
            program
        };
        let mut command = Command::new(program);
        command.current_dir(self.dir());
        command
    }

    /// Runs a line of words; `program` first.
    pub(crate) fn run(&self, line: &str) -> Done {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.run_words(&words)
    }

    /// Unmounts what is at a path. A program that another thread is starting has this one's open files for a moment, and keeps it
    /// busy.
    pub(crate) fn unmount(&self, path: &Path) {
        let again =
            "for n in $(seq 100); do umount \"$0\" 2>/dev/null && exit; sleep 0.05; done; umount \"$0\"";
        self.run_words(&["sh", "-c", again, path.to_str().unwrap()]).ok();
    }

    pub(crate) fn run_words(&self, words: &[&str]) -> Done {
        let output = self.command(words[0]).args(&words[1..]).output();
        let output = output.unwrap_or_else(|error| panic!("cannot run {}: {error}", words[0]));
        Done {
            line: words.join(" "),
            output,
        }
    }

    /// Runs `imgtool`, which must succeed; gives its standard output.
    pub(crate) fn imgtool(&self, line: &str) -> String {
        self.run(&format!("imgtool {line}")).ok()
    }

    /// Runs `qemu-img`, which must succeed; gives its standard output.
    pub(crate) fn qemu_img(&self, line: &str) -> String {
        self.run(&format!("qemu-img {line}")).ok()
    }

    /// Has qemu-io do something to an image.
    pub(crate) fn qemu_io(&self, format: &str, image: &str, commands: &[&str]) {
        let mut words = vec!["qemu-io", "-f", format];
        for command in commands {
            words.extend(["-c", command]);
        }
        words.push(image);
        self.run_words(&words).ok();
    }

    /// The same line with both programs; the output as JSON.
    pub(crate) fn both(&self, line: &str) -> [Value; 2] {
        [self.imgtool(line), self.qemu_img(line)].map(|text| serde_json::from_str(&text).unwrap())
    }

    /// Both programs say the same, as JSON values.
    pub(crate) fn assert_same_json(&self, line: &str) {
        let [ours, theirs] = self.both(line);
        assert_eq!(ours, theirs, "{line}");
    }

    /// Neither program finds anything wrong with an image that costs more than room or a copy: clusters that are never used, and
    /// missing COPIED flags, though both count the latter as errors.
    pub(crate) fn assert_harmless(&self, format: &str, image: &str, what: &str) {
        let harmless = |finding: &str| {
            !finding.starts_with("ERROR")
                || finding.contains("OFLAG_COPIED") && finding.ends_with(" refcount=1")
        };
        for program in ["imgtool", "qemu-img"] {
            let check = self.run(&format!("{program} check -f {format} {image}"));
            let (code, said) = (check.code(), format!("{}{}", check.stderr(), check.stdout()));
            let worst = said.lines().find(|finding| !harmless(finding));
            // 2 is for findings; 63 says that a format has nothing to check.
            assert!(
                worst.is_none() && matches!(code, 0 | 2 | 3 | 63),
                "{what}: {program} finds, with {code}: {}",
                worst.unwrap_or(&said)
            );
        }
    }

    /// A raw image with data, zeros and holes that differ from place to place.
    pub(crate) fn raw(&self, name: &str, len: usize, seed: u64) -> PathBuf {
        use std::os::unix::fs::FileExt;
        let path = self.path(name);
        let file = fs::File::create(&path).unwrap();
        file.set_len(len as u64).unwrap();
        let mut x = seed | 1;
        let mut next = || {
            x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            x >> 33
        };
        let mut offset = 0;
        while offset < len {
            let run = ((next() % 48 + 1) * 4096) as usize;
            let run = run.min(len - offset);
            match next() % 4 {
                0 => {}
                1 => file.write_all_at(&vec![0; run], offset as u64).unwrap(),
                kind => {
                    // Half of it is easy to compress.
                    let bytes: Vec<u8> = (0..run)
                        .map(|i| if kind == 2 { next() as u8 } else { (i / 700) as u8 })
                        .collect();
                    file.write_all_at(&bytes, offset as u64).unwrap();
                }
            }
            offset += run;
        }
        path
    }
}

/// A program that has ended.
pub(crate) struct Done {
    line: String,
    output: Output,
}

impl Done {
    pub(crate) fn code(&self) -> i32 {
        self.output
            .status
            .code()
            .unwrap_or_else(|| panic!("{} was killed: {:?}", self.line, self.output.status))
    }

    /// The signal that has ended it.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.output.status.signal()
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8(self.output.stdout.clone()).unwrap()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// It must have succeeded.
    pub(crate) fn ok(self) -> String {
        assert!(
            self.output.status.success(),
            "{}: {}\n{}",
            self.line,
            self.output.status,
            self.stderr()
        );
        self.stdout()
    }

    /// It must have failed with one line, and a hint at most, that says `what`.
    pub(crate) fn fails(&self, code: i32, what: &[&str]) {
        let stderr = self.stderr();
        assert_eq!(self.code(), code, "{}: {stderr}", self.line);
        let lines: Vec<&str> = stderr.lines().collect();
        assert!(lines[0].starts_with("imgtool: "), "{}: {stderr}", self.line);
        assert!(
            lines.len() == 1 || (lines.len() == 2 && lines[1].starts_with("hint: ")),
            "{}: {stderr}",
            self.line
        );
        for what in what {
            assert!(
                stderr.contains(what),
                "{}: {stderr} does not say {what}",
                self.line
            );
        }
    }
}

/// The exit code after an interrupt by this signal.
pub(crate) fn interrupted_by(signal: &str) -> i32 {
    let number = match signal {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "USR2" => 12,
        "ALRM" => 14,
        "TERM" => 15,
        "XCPU" => 24,
        _ => panic!("{signal} does not interrupt"),
    };
    128 + number
}

/// A chain `top` over `mid` over `base` in `lab`, and `flat`, which holds what `top` reads as. `mid` is shorter than
/// the others, and all have data, zeros and holes of their own.
pub(crate) fn chain(lab: &Lab, base_format: &str, options: &str) {
    let size = 8 << 20;
    lab.raw("base.raw", size, 1);
    lab.qemu_img(&format!("convert -f raw -O {base_format} base.raw base"));
    let create = |name: &str, below: &str, format: &str, size: &str| {
        lab.qemu_img(&format!(
            "create -q -f qcow2 -o {options} -b {below} -F {format} {name} {size}"
        ));
    };
    create("mid", "base", base_format, "6M");
    let write = "write -q -P 17 1M 300k";
    lab.qemu_io(
        "qcow2",
        "mid",
        &[write, "write -q -z 2M 200k", "write -q -P 18 5900k 100k"],
    );
    create("top", "mid", "qcow2", "9M");
    let write = "write -q -P 33 1100k 700k";
    lab.qemu_io(
        "qcow2",
        "top",
        &[write, "write -q -z 3M 123k", "write -q -P 34 8800k 64k"],
    );
    lab.qemu_img("convert -f qcow2 -O raw top flat");
}

/// QEMU reads from `top` what it read before, and finds no fault with any image.
pub(crate) fn assert_intact(lab: &Lab, what: &str) {
    let same = lab.run("qemu-img compare -f raw -F qcow2 flat top");
    assert_eq!(same.code(), 0, "{what}: {}{}", same.stdout(), same.stderr());
    for name in ["top", "mid"] {
        let check = lab.run(&format!("qemu-img check -q -f qcow2 {name}"));
        // Leaks are what a killed process may leave.
        assert!(
            matches!(check.code(), 0 | 3),
            "{what}: {name}: {}",
            check.stderr()
        );
    }
}

/// Runs `imgtool` and kills it so long after it has said how far it is. Whether it was still at it.
pub(crate) fn killed_inside(lab: &Lab, line: &str, delay: Duration) -> bool {
    let mut command = lab.command("imgtool");
    command.args(line.split_whitespace()).args(["--progress", "json"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    stderr.read_line(&mut said).unwrap();
    let said: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{line}: {said}: {error}"));
    std::thread::sleep(delay);
    let _ = child.kill();
    let status = child.wait().unwrap();
    assert!(status.success() || status.signal() == Some(9), "{line}: {status}");
    status.signal() == Some(9) && said["done"].as_u64() < said["total"].as_u64()
}

/// Runs a job on a [`chain`] several times, at a rate at which it takes long, and kills it in the middle, at another
/// moment each time: `top` must stay what it is, and a last run must finish the job.
pub(crate) fn kill_and_finish(lab: &Lab, line: &str, slowly: &str) {
    // In a directory of its own, where nobody takes them for more overlays of the same base.
    fs::create_dir(lab.path("origin")).unwrap();
    let copy = |from: &str, to: &str| {
        for name in ["top", "mid", "base"] {
            fs::copy(lab.path(from).join(name), lab.path(to).join(name)).unwrap();
        }
    };
    copy("", "origin");
    let slow = format!("{line} {slowly}");
    for milliseconds in [0, 60, 250, 700, 1300] {
        // Each run goes on where the last one was killed. One that is over before is no kill: back to the start.
        let killed = (0..10).any(|_| {
            let inside = killed_inside(lab, &slow, Duration::from_millis(milliseconds));
            if !inside {
                assert_intact(lab, &format!("{line}, over within {milliseconds} ms"));
                copy("origin", "");
            }
            inside
        });
        assert!(
            killed,
            "{line}: always over within {milliseconds} ms, before it was killed"
        );
        assert_intact(lab, &format!("{line}, killed after {milliseconds} ms"));
    }
    lab.imgtool(line);
    assert_intact(lab, line);
}

/// A small file system, for as long as this is held.
pub(crate) struct Mount<'a>(&'a Lab, &'static str);

impl<'a> Mount<'a> {
    /// Mounts one of `size` on the new directory `at`.
    pub(crate) fn tmpfs(lab: &'a Lab, at: &'static str, size: &str) -> Self {
        fs::create_dir(lab.path(at)).unwrap();
        lab.run(&format!("mount -t tmpfs -o size={size} imgtool-test {at}"))
            .ok();
        Self(lab, at)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = self.0.command("umount").arg(self.1).status();
    }
}

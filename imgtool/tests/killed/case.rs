//! Commands that are killed, whose calls fail, or that have no room or no memory, and that are run again.

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::calls::{self, Call, Fate};
use super::promise::{Promise, State};
use crate::common::{Done, Lab};

/// Calls of a command that it is killed at, unless all are asked for.
const SAMPLES: usize = 8;

/// A command that is killed.
pub(crate) struct Case {
    /// The words after `imgtool`.
    line: &'static str,
    /// What is promised of files and directories.
    promises: &'static [(&'static str, Promise)],
    /// A second run finishes the job.
    again: bool,
}

pub(crate) const fn case(line: &'static str, promises: &'static [(&'static str, Promise)]) -> Case {
    Case {
        line,
        promises,
        again: true,
    }
}

/// As [`case`], of a command that refuses to go on with what it finds.
pub(crate) const fn once(line: &'static str, promises: &'static [(&'static str, Promise)]) -> Case {
    Case {
        line,
        promises,
        again: false,
    }
}

/// Kills every command of a table, each in copies of the directory that the lines of `setup` make.
pub(crate) fn kill_all(setup: &[&str], cases: &[Case]) {
    each(setup, cases, Case::kill);
}

/// Runs every command of a table where there is little room or none, each in copies of the directory that the lines of
/// `setup` make.
pub(crate) fn fill_all(setup: &[&str], cases: &[Case]) {
    each(setup, cases, Case::fill);
}

/// Runs every command of a table with little memory, each in copies of the directory that the lines of `setup` make.
pub(crate) fn starve_all(setup: &[&str], cases: &[Case]) {
    each(setup, cases, Case::starve);
}

fn each(setup: &[&str], cases: &[Case], run: fn(&Case, &Lab)) {
    let origin = Lab::new();
    for script in setup {
        origin
            .run_words(&["sh", "-ec", script, env!("CARGO_BIN_EXE_imgtool")])
            .ok();
    }
    // One that fails is told of, and hides none of the others.
    let fails = |case: &&Case| catch_unwind(AssertUnwindSafe(|| run(case, &origin))).is_err();
    let broken: Vec<&str> = cases.iter().filter(fails).map(|case| case.line).collect();
    assert!(broken.is_empty(), "promises are broken by {broken:#?}");
}

fn all_of_them() -> bool {
    env::var_os("TORTURE").is_some()
}

/// Some of the calls, or all of them.
fn sample(calls: &[Call]) -> Vec<Call> {
    let last = calls.len() - 1;
    if all_of_them() || last < SAMPLES {
        return calls.to_vec();
    }
    (0..SAMPLES)
        .map(|number| calls[number * last / (SAMPLES - 1)])
        .collect()
}

/// What becomes of the how many-th call that is looked at: all that can, or a kill and an error.
fn fates(number: usize) -> Vec<Fate> {
    let mut fates = vec![Fate::Killed, Fate::Fails("EIO"), Fate::Fails("ENOSPC")];
    if !all_of_them() {
        fates.remove(1 + number % 2);
    }
    fates
}

/// How many KiB are left to a command on a disk that is full but for them.
fn rooms() -> Vec<u64> {
    if all_of_them() {
        (0..=64)
            .step_by(4)
            .chain((7..=12).map(|bits| 1 << bits))
            .collect()
    } else {
        vec![0, 24, 300, 2000]
    }
}

/// Runs a line of words with so many KiB of memory and addresses.
fn with_memory(lab: &Lab, memory: u64, line: &str) -> Done {
    let script = format!(
        "ulimit -v {memory}; exec env {} '{}' {line}",
        calls::ENVIRONMENT
            .map(|variable| format!("'{variable}'"))
            .join(" "),
        env!("CARGO_BIN_EXE_imgtool")
    );
    lab.run_words(&["sh", "-c", &script])
}

/// How many KiB of memory and addresses the program takes to begin.
fn least_memory(lab: &Lab) -> u64 {
    let begins = |memory: u64| {
        let done = with_memory(lab, memory, "--version");
        done.signal().is_none() && done.code() == 0
    };
    let (mut few, mut enough) = (0_u64, 1 << 21);
    while enough - few > 64 {
        let middle = few.midpoint(enough);
        if begins(middle) {
            enough = middle;
        } else {
            few = middle;
        }
    }
    enough
}

/// Fills the file system that a lab is on, but for so many KiB.
fn fill_up(lab: &Lab, left: u64) {
    // What the file system keeps for itself at first it may give away once it is full.
    let script = "dd if=/dev/zero of=filler bs=64k 2>/dev/null; dd if=/dev/zero of=filler bs=1k oflag=append conv=notrunc 2>/dev/null
        truncate -s -$0K filler; sync .";
    lab.run_words(&["sh", "-c", script, &left.to_string()]).ok();
}

/// The files of a case, before and after a run that nothing happens to.
struct Ends {
    before: Vec<State>,
    after: Vec<State>,
    /// The names in the directory after it.
    names: Vec<String>,
}

impl Case {
    /// What there is without any accident, and the calls that it takes.
    fn ends(&self, origin: &Lab) -> (Ends, Vec<Call>) {
        let before = self.observe(origin);
        let whole = Lab::new();
        copy(origin, &whole);
        let calls = calls::of(&whole, self.line);
        assert!(calls.len() > 1, "{}: it changes nothing", self.line);
        let ends = Ends {
            before,
            after: self.observe(&whole),
            names: whole.names(),
        };
        (ends, calls)
    }

    fn kill(&self, origin: &Lab) {
        let (ends, calls) = self.ends(origin);
        let sampled = sample(&calls);
        let mut killed = 0;
        for (number, call) in sampled.iter().enumerate() {
            for fate in fates(number) {
                let lab = Lab::new();
                copy(origin, &lab);
                let what = format!("{}, {call}: {fate:?}", self.line);
                let end = call.meet(fate, &lab, self.line);
                self.judge(end.as_ref(), &lab, &ends, &what);
                killed += usize::from(end.is_none());
            }
        }
        // Threads take turns as they like, so that a call may come to be made by another.
        let (looked_at, all) = (sampled.len(), calls.len());
        assert!(
            2 * killed >= looked_at,
            "{}: {killed} kills at {looked_at} of {all} calls",
            self.line
        );
    }

    fn fill(&self, origin: &Lab) {
        let (ends, _) = self.ends(origin);
        let mut refused = 0;
        for left in rooms() {
            let (lab, _mounted) = Lab::on("ext4", 96);
            lab.run("rmdir lost+found").ok();
            copy(origin, &lab);
            fill_up(&lab, left);
            let end = self.run(&lab);
            lab.run("rm filler").ok();
            let what = format!("{}, with room for {left} KiB", self.line);
            let without_room = end.stderr().contains("No space left");
            assert!(end.code() == 0 || without_room, "{what}: {}", describe(&end));
            refused += usize::from(without_room);
            self.judge(Some(&end), &lab, &ends, &what);
        }
        assert!(refused > 0, "{}: it takes no room", self.line);
    }

    fn starve(&self, origin: &Lab) {
        let (ends, _) = self.ends(origin);
        let least = least_memory(origin);
        let more: &[u64] = if all_of_them() {
            &[
                0, 500, 1000, 2000, 3000, 4000, 8000, 12_000, 16_000, 32_000, 64_000, 90_000, 128_000,
                200_000,
            ]
        } else {
            &[0, 2000, 16_000, 128_000]
        };
        for memory in more.iter().map(|more| least + more) {
            let lab = Lab::new();
            copy(origin, &lab);
            let end = with_memory(&lab, memory, self.line);
            // Where there is no memory for an error either, the process ends itself; libdeflate does not even ask.
            let aborted = end.signal() == Some(6) || end.stderr().contains("out of memory");
            let what = format!("{}, with {memory} KiB of memory", self.line);
            self.judge((!aborted).then_some(&end), &lab, &ends, &what);
        }
    }

    /// Judges what a run has left that ended so, or was killed.
    fn judge(&self, end: Option<&Done>, lab: &Lab, ends: &Ends, what: &str) {
        let now = self.observe(lab);
        for (number, (name, promise)) in self.promises.iter().enumerate() {
            let what = format!("{what}: {name}");
            let ends = [&ends.before[number], &ends.after[number]];
            promise.judge(lab, name, &now[number], ends, &what);
        }
        // What cannot be done in one way may be done in another; whoever cannot do it says so.
        match end.map(|done| (done.code(), done)) {
            None => {}
            Some((0, _)) => self.assert_finished(&now, &ends.after, what),
            Some((code, done)) => {
                let says = ["imgtool: ", "qemu-img: "]
                    .iter()
                    .any(|name| done.stderr().contains(name));
                assert!(code < 100 && says, "{what}: {}", describe(done));
            }
        }
        if self.again && now != ends.after {
            self.finish(lab, ends, what);
        }
    }

    fn run(&self, lab: &Lab) -> Done {
        let mut words = vec!["env"];
        words.extend(calls::ENVIRONMENT);
        words.push(env!("CARGO_BIN_EXE_imgtool"));
        words.extend(self.line.split(' '));
        lab.run_words(&words)
    }

    fn observe(&self, lab: &Lab) -> Vec<State> {
        let observe = |(name, promise): &(&str, Promise)| promise.observe(lab, name);
        self.promises.iter().map(observe).collect()
    }

    fn assert_finished(&self, now: &[State], after: &[State], what: &str) {
        for (((name, promise), now), after) in self.promises.iter().zip(now).zip(after) {
            assert!(
                promise.is_finished(now, after),
                "{what}: {name}: {}",
                now.tell(after, after)
            );
        }
    }

    /// A second run finishes the job, and leaves nothing lying about.
    fn finish(&self, lab: &Lab, ends: &Ends, what: &str) {
        let again = self.run(lab);
        let what = format!("{what}: another run, with {}", describe(&again));
        self.assert_finished(&self.observe(lab), &ends.after, &what);
        assert_eq!(lab.names(), ends.names, "{what}");
    }
}

fn describe(done: &Done) -> String {
    format!("exit code {}, {}{}", done.code(), done.stdout(), done.stderr())
}

fn copy(origin: &Lab, lab: &Lab) {
    let words = ["cp", "-a", "--sparse=always", ".", lab.dir().to_str().unwrap()];
    origin.run_words(&words).ok();
}

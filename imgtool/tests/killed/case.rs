//! Commands that are killed or whose calls fail, and that are run again.

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
    let origin = Lab::new();
    for script in setup {
        origin
            .run_words(&["sh", "-ec", script, env!("CARGO_BIN_EXE_imgtool")])
            .ok();
    }
    // One that fails is told of, and hides none of the others.
    let kill = |case: &&Case| catch_unwind(AssertUnwindSafe(|| case.kill(&origin))).is_err();
    let broken: Vec<&str> = cases.iter().filter(kill).map(|case| case.line).collect();
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

/// The files of a case, before and after a run that nothing happens to.
struct Ends {
    before: Vec<State>,
    after: Vec<State>,
    /// The names in the directory after it.
    names: Vec<String>,
}

impl Case {
    fn kill(&self, origin: &Lab) {
        let before = self.observe(origin);
        let whole = copy(origin);
        let calls = calls::of(&whole, self.line);
        assert!(calls.len() > 1, "{}: it changes nothing", self.line);
        let ends = Ends {
            before,
            after: self.observe(&whole),
            names: whole.names(),
        };
        let sampled = sample(&calls);
        let mut killed = 0;
        for (number, call) in sampled.iter().enumerate() {
            for fate in fates(number) {
                killed += usize::from(self.meet(*call, fate, &copy(origin), &ends));
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

    /// Whether it was killed.
    fn meet(&self, call: Call, fate: Fate, lab: &Lab, ends: &Ends) -> bool {
        let what = format!("{}, {call}: {fate:?}", self.line);
        let end = call.meet(fate, lab, self.line);
        let now = self.observe(lab);
        for (number, (name, promise)) in self.promises.iter().enumerate() {
            let what = format!("{what}: {name}");
            let ends = [&ends.before[number], &ends.after[number]];
            promise.judge(lab, name, &now[number], ends, &what);
        }
        // What cannot be done in one way may be done in another; whoever cannot do it says so.
        match end.as_ref().map(Done::code) {
            None => {}
            Some(0) => self.assert_finished(&now, &ends.after, &what),
            Some(code) => {
                let done = end.as_ref().expect("it has ended");
                let says = ["imgtool: ", "qemu-img: "]
                    .iter()
                    .any(|name| done.stderr().contains(name));
                assert!(code < 100 && says, "{what}: {}", describe(done));
            }
        }
        if self.again && now != ends.after {
            self.finish(lab, ends, &what);
        }
        end.is_none()
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
        let mut words = vec!["env"];
        words.extend(calls::ENVIRONMENT);
        words.push(env!("CARGO_BIN_EXE_imgtool"));
        words.extend(self.line.split(' '));
        let again = lab.run_words(&words);
        let what = format!("{what}: another run, with {}", describe(&again));
        self.assert_finished(&self.observe(lab), &ends.after, &what);
        assert_eq!(lab.names(), ends.names, "{what}");
    }
}

fn describe(done: &Done) -> String {
    format!("exit code {}, {}{}", done.code(), done.stdout(), done.stderr())
}

fn copy(origin: &Lab) -> Lab {
    let lab = Lab::new();
    let words = ["cp", "-a", "--sparse=always", ".", lab.dir().to_str().unwrap()];
    origin.run_words(&words).ok();
    lab
}

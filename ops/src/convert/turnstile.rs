//! Letting prepared chunks through one at a time, in order.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use block::{Error, Result};

use super::Prepared;
use crate::Control;
use crate::buffer::Buffer;

/// Where the workers of a copy meet: it puts chunks back in order, holds back who runs too far ahead, keeps
/// buffers for reuse, counts, and remembers the first failure.
#[derive(Debug)]
pub(super) struct Turnstile<'a> {
    /// Chunks that may be under way at once.
    window: u64,
    total: u64,
    control: &'a Control<'a>,
    state: Mutex<State>,
    /// The chunk that is due has moved on, or somebody has failed.
    moved: Condvar,
    /// Bytes dealt with; a lock of its own, since a report may take its time.
    done: Mutex<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the chunk to be carried out next.
    due: u64,
    /// Somebody is carrying it out.
    busy: bool,
    /// Chunks whose turn is yet to come.
    early: BTreeMap<u64, Prepared>,
    spare: Vec<Buffer>,
    failed: bool,
    /// Why; taken by [`Turnstile::finish`].
    error: Option<Error>,
}

impl<'a> Turnstile<'a> {
    pub(super) fn new(window: usize, total: u64, control: &'a Control<'a>) -> Self {
        Self {
            window: window as u64,
            total,
            control,
            state: Mutex::default(),
            moved: Condvar::new(),
            done: Mutex::new(0),
        }
    }

    /// Waits until chunk `number` is inside the window. `false` if somebody has failed.
    pub(super) fn wait_for_room(&self, number: u64) -> bool {
        // Numbers are handed out without gaps and whoever has the one that is due does not wait, so this ends.
        let state = self
            .moved
            .wait_while(self.lock(), |state| {
                !state.failed && number >= state.due + self.window
            })
            .unwrap_or_else(PoisonError::into_inner);
        !state.failed
    }

    /// A buffer of `len` bytes with anything in it. All of a copy's have the same length.
    pub(super) fn buffer(&self, len: usize) -> Buffer {
        let spare = self.lock().spare.pop();
        spare.unwrap_or_else(|| Buffer::new(len))
    }

    /// Takes chunk `number` and, if nobody else is at it, carries out every chunk that is due and here.
    pub(super) fn hand_in(
        &self,
        number: u64,
        prepared: Prepared,
        carry_out: impl Fn(&Prepared) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.lock();
        state.early.insert(number, prepared);
        if state.busy {
            return Ok(());
        }
        // On an error it stays busy: nothing may be written after what could not be.
        state.busy = true;
        while !state.failed {
            let due = state.due;
            let Some(prepared) = state.early.remove(&due) else {
                break;
            };
            drop(state);
            carry_out(&prepared)?;
            self.done(prepared);
            state = self.lock();
            state.due += 1;
            self.moved.notify_all();
        }
        state.busy = false;
        Ok(())
    }

    /// Counts a chunk that has been carried out and keeps its buffer.
    pub(super) fn done(&self, prepared: Prepared) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *done += prepared.len;
        self.control.report(*done, self.total);
        drop(done);
        self.keep(prepared.buffer);
    }

    /// Keeps a buffer for reuse.
    pub(super) fn keep(&self, buffer: Option<Buffer>) {
        self.lock().spare.extend(buffer);
    }

    /// Has everybody stop. The first error is the one that [`finish`](Self::finish) gives.
    pub(super) fn fail(&self, error: Error) {
        let mut state = self.lock();
        state.failed = true;
        state.error.get_or_insert(error);
        self.moved.notify_all();
    }

    /// Has everybody stop if this thread panics while it holds the result.
    pub(super) fn fail_on_panic(&self) -> impl Drop {
        FailOnPanic(self)
    }

    /// The first error, once all workers are gone.
    pub(super) fn finish(&self) -> Result<()> {
        self.lock().error.take().map_or(Ok(()), Err)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked has said so through `failed`.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct FailOnPanic<'a>(&'a Turnstile<'a>);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.lock().failed = true;
            self.0.moved.notify_all();
        }
    }
}

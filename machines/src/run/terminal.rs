//! The terminal that a machine's console has.
//!
//! QEMU sets it so that every key is the guest's, and does not wait for keys where it reads them. It sets all of that back when it
//! ends by itself; where it crashes or is killed, whoever has started it does.

use std::io;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// How standard input was before, which it is again when this is dropped.
pub(super) struct Terminal(Option<(Termios, OFlags)>);

impl Terminal {
    /// As it is now; nothing for what is no terminal.
    pub(super) fn remembered() -> Self {
        let stdin = io::stdin();
        let modes = tcgetattr(&stdin).ok();
        Self(modes.and_then(|modes| Some((modes, fcntl_getfl(&stdin).ok()?))))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let Some((modes, flags)) = &self.0 else { return };
        let stdin = io::stdin();
        let is_changed = tcgetattr(&stdin).is_ok_and(|now| now.local_modes != modes.local_modes);
        // Who is in the background and sets what is right already would be stopped for it.
        if is_changed {
            let _ = tcsetattr(&stdin, OptionalActions::Now, modes);
        }
        let _ = fcntl_setfl(&stdin, *flags);
    }
}

//! The locks and atomics of what threads share: those of `std`. Under `--cfg shuttle` they are Shuttle's, which decides at
//! each use of one which thread goes on, so that a test tries one order of events after the other (`make schedules`).
//!
//! A `OnceLock` is always that of `std`: nothing waits while one is filled.

#[cfg(shuttle)]
pub use shuttle::{
    sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic},
    thread,
};
#[cfg(not(shuttle))]
pub use std::{
    sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic},
    thread,
};

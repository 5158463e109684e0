//! Buffers that a thread uses again and again, so that a request neither allocates nor clears memory.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Buffers a thread keeps: a decompressed cluster, and the head and tail of a copy-on-write.
const KEPT: usize = 3;

thread_local! {
    static POOL: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of undefined content; goes back to its thread when dropped.
#[derive(Debug)]
pub struct Scratch {
    bytes: Vec<u8>,
    len: usize,
}

impl Scratch {
    /// A buffer of `len` bytes, a few clusters at most: whatever was in it last.
    pub fn new(len: usize) -> Self {
        let mut bytes = POOL.with(|pool| pool.borrow_mut().pop()).unwrap_or_default();
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        Self { bytes, len }
    }
}

impl Deref for Scratch {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // The thread may be ending, and the pool with it.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT {
                pool.push(bytes);
            }
        });
    }
}

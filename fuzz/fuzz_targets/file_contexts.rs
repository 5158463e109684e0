//! Any text as the patterns of a policy: an error, or labels on a filesystem that can be read as a whole.
#![no_main]

use block::{MemStorage, Result};
use ext4_builder::Builder;
use ext4_builder::source::FileContexts;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &str)| {
    let (how, text) = input;
    let Ok(contexts) = FileContexts::parse(text) else {
        return;
    };
    let Ok(made) = make(&contexts, how) else {
        return;
    };
    let filesystem = fuzz::open(made).expect("what was made can be opened");
    fuzz::tree(&filesystem).expect("what was made can be read");
});

fn make(contexts: &FileContexts, how: u8) -> Result<MemStorage> {
    let storage = MemStorage::new();
    let mut builder = Builder::new(&storage, fuzz::options(how))?;
    fuzz::small_tree(&mut builder);
    contexts.apply(&mut builder)?;
    builder.finish()?;
    Ok(storage)
}

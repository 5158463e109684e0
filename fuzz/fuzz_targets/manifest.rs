//! Any text as a manifest: an error, or a filesystem that can be read as a whole.
#![no_main]

use std::path::Path;

use block::{Error, MemStorage, Result};
use ext4_builder::Builder;
use ext4_builder::source::{Control, Manifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &str)| {
    let (how, text) = input;
    let Ok(manifest) = Manifest::parse(text, Path::new("/nonexistent")) else {
        return;
    };
    // Files of the host are no part of this.
    if text.contains("source") || text.contains("image") {
        return;
    }
    let Ok(made) = make(&manifest, how) else {
        return;
    };
    let filesystem = fuzz::open(made).expect("what was made can be opened");
    fuzz::tree(&filesystem).expect("what was made can be read");
});

fn make(manifest: &Manifest, how: u8) -> Result<MemStorage> {
    let storage = MemStorage::new();
    let mut builder = Builder::new(&storage, fuzz::options(how))?;
    fuzz::small_tree(&mut builder);
    let images = |_: &Path| Err(Error::invalid("there are no images"));
    manifest.apply(&mut builder, &images, &Control::unwatched())?;
    builder.finish()?;
    Ok(storage)
}

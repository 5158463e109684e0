//! Any texts as recipes that may extend one another: an error, or the same recipe when they are read again.
#![no_main]

use std::fs;

use block::ErrorKind;
use libfuzzer_sys::fuzz_target;
use machines::recipe::Recipe;

/// What the texts are called.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fuzz_target!(|text: &str| {
    // Files of the host are no part of this.
    if text.contains("ssh-key-files") {
        return;
    }
    let directory = std::env::temp_dir().join(format!("fuzz-recipes-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    // A text that is not there is empty.
    let mut texts = text.split('\0');
    for name in NAMES {
        fs::write(directory.join(name), texts.next().unwrap_or_default()).expect("write");
    }
    match Recipe::load(&directory.join(NAMES[0])) {
        Ok(recipe) => {
            let again = Recipe::load(&directory.join(NAMES[0])).expect("it was read before");
            assert_eq!(recipe.fingerprint, again.fingerprint);
            assert_eq!(recipe.packages(), again.packages());
        }
        Err(error) => assert!(
            matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Io),
            "{error:?}"
        ),
    }
});

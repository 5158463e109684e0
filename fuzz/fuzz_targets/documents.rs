//! Any text as a document of a store: an error, or a document that is the same when it is written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use machines::store::{Store, TemplateDocument, parse};

/// The only template of the store.
const FINGERPRINT: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fuzz_target!(|text: &str| {
    if let Ok(document) = parse::<TemplateDocument>(text) {
        // What TOML has no number for cannot be written, and was not read.
        let again = document.to_toml().expect("what was read can be written");
        assert_eq!(
            parse::<TemplateDocument>(&again).expect("what was written can be read"),
            document
        );
    }
    let directory = std::env::temp_dir().join(format!("fuzz-store-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("templates")).expect("a directory");
    std::fs::create_dir_all(directory.join("instances")).expect("a directory");
    for name in [
        "aliases.toml".to_owned(),
        "instances/one.toml".to_owned(),
        format!("templates/{FINGERPRINT}.toml"),
    ] {
        std::fs::write(directory.join(name), text).expect("write");
    }
    for image in [
        "instances/one.qcow2".to_owned(),
        format!("templates/{FINGERPRINT}.qcow2"),
    ] {
        std::fs::write(directory.join(image), "").expect("write");
    }
    let store = Store::at(&directory);
    let _ = (store.templates(), store.instances());
    for name in ["one", "0123", FINGERPRINT] {
        let _ = store.template(name);
        let _ = store.instance(name).map(|instance| store.settings(&instance));
    }
});

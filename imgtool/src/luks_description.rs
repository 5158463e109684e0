//! What a LUKS header says about itself, for `info` and for its counterpart in qemu-img.

use encryption::{IvGenerator, KeySlot, Luks};
use serde_json::{Value, json};

/// The facts, named as QEMU does and in the order in which it prints them. Inside of a qcow2 image it says which format the
/// encryption has.
pub(crate) fn facts(luks: &Luks, in_qcow2: bool) -> Value {
    let [cipher, mode, hash] = luks.names();
    // What is known is named as when an image is made.
    let spec = luks.spec().ok();
    let names = spec.map(|spec| (spec.mode.name(), spec.iv.name()));
    let (mode, iv) = names.or(mode.split_once('-')).unwrap_or((mode, ""));
    let mut facts = json!({
        "ivgen-alg": iv,
        "detached-header": false,
        "hash-alg": hash,
        "cipher-alg": spec.map_or(cipher, |spec| spec.cipher.name()),
        "uuid": luks.uuid(),
    });
    if spec.is_some_and(|spec| spec.iv == IvGenerator::Essiv) {
        facts["ivgen-hash-alg"] = "sha256".into();
    }
    if in_qcow2 {
        facts["format"] = "luks".into();
    }
    facts["cipher-mode"] = mode.into();
    facts["slots"] = luks.slots().iter().map(slot_json).collect();
    facts["payload-offset"] = luks.payload_offset().into();
    facts["master-key-iters"] = luks.digest_iterations().into();
    facts
}

fn slot_json(slot: &KeySlot) -> Value {
    let mut facts = json!({ "active": slot.active });
    if slot.active {
        facts["iters"] = slot.iterations.into();
    }
    facts["key-offset"] = slot.offset().into();
    if slot.active {
        facts["stripes"] = slot.stripes.into();
    }
    facts
}

//! What options of an image say of files that it names, and of its encryption.

use qcow2::{Encryption, Header};

use super::console;
use super::node::{Flags, NodeOptions, no_node};
use super::refusal::Refusal;

/// In front of what is wrong with a backing file.
pub(super) const OPEN_BACKING: &str = "Could not open backing file: ";

/// What is below an image.
#[derive(Debug)]
pub(super) enum Below {
    /// What the image names.
    AsStored,
    Nothing,
    /// What these options say.
    Stated(NodeOptions),
}

impl Below {
    /// What options of an image in this format say of it.
    pub(super) fn take(options: &mut NodeOptions, format: &str, flags: Flags) -> Result<Self, Refusal> {
        if options.take_null("backing") {
            return Ok(Self::Nothing);
        }
        if options.text("backing") == Some("") {
            options.take("backing");
            console::warn("Use of \"backing\": \"\" is deprecated; use \"backing\": null instead");
            return Ok(Self::Nothing);
        }
        // Where nothing below is opened, these are options that nobody asks for.
        if flags.no_backing {
            return Ok(Self::AsStored);
        }
        let reference = options.take_text("backing");
        let stated = options.take_node("backing");
        match reference {
            _ if format != "qcow2" && (reference.is_some() || !stated.is_empty()) => {
                Err(Refusal::new("Driver doesn't support backing files"))
            }
            Some(_) if !stated.is_empty() => Err(Refusal::new(
                "Cannot reference an existing block device with additional options or a new filename",
            )
            .after(OPEN_BACKING)),
            Some(reference) => Err(no_node(&reference).after(OPEN_BACKING)),
            None if stated.is_empty() => Ok(Self::AsStored),
            None => Ok(Self::Stated(stated)),
        }
    }
}

/// What options say of a data file.
#[derive(Debug)]
pub(super) enum DataOptions {
    /// It is to be a node that there is.
    Reference(String),
    Stated(NodeOptions),
}

impl DataOptions {
    pub(super) fn take(options: &mut NodeOptions) -> Option<Self> {
        let reference = options.take_text("data-file").map(Self::Reference);
        let stated = options.take_node("data-file");
        reference.or_else(|| (!stated.is_empty()).then_some(Self::Stated(stated)))
    }
}

/// Fails where options say that an image is encrypted in another way than it is, or more than there is to say.
pub(super) fn check_method(header: Option<&Header>, options: &mut NodeOptions) -> Result<(), Refusal> {
    let said = options.take("format");
    let stored = match header.map(|header| header.encryption) {
        Some(Encryption::Aes) => "aes",
        Some(Encryption::Luks) => "luks",
        Some(Encryption::None) => {
            return said.map_or(Ok(()), |said| {
                Err(Refusal::new(format!(
                    "No encryption in image header, but options specified format '{said}'"
                )))
            });
        }
        None => return Ok(()),
    };
    if let Some(said) = said.filter(|said| said != stored) {
        return Err(Refusal::new(format!(
            "Header reported '{stored}' encryption format but options specify '{said}'"
        )));
    }
    match options.first() {
        Some(left) => Err(Refusal::new(match left.split_once('.') {
            Some((node, _)) => format!("Parameters '{node}.*' are unexpected"),
            None => format!("Parameter '{left}' is unexpected"),
        })),
        None => Ok(()),
    }
}

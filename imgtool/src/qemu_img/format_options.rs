//! The options that a format has for new images (`-o`): their names and kinds, their help, and how they are shown.

use super::number::{self, NoSize};
use super::option_list;
use super::refusal::Refusal;

/// What an option's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Switch,
    Number,
    Size,
}

impl Kind {
    fn shown(self) -> &'static str {
        match self {
            Self::Text => "str",
            Self::Switch => "bool (on/off)",
            Self::Number => "num",
            Self::Size => "size",
        }
    }
}

/// An option.
#[derive(Clone, Copy, Debug)]
pub(super) struct Definition {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    /// The value that is shown where none is given.
    default: Option<&'static str>,
}

const fn option(name: &'static str, kind: Kind, help: &'static str) -> Definition {
    Definition {
        name,
        kind,
        help,
        default: None,
    }
}

const fn with_default(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    default: &'static str,
) -> Definition {
    Definition {
        name,
        kind,
        help,
        default: Some(default),
    }
}

/// Of qcow2 images, in the order in which they are shown.
pub(super) const QCOW2: &[Definition] = &[
    option(
        "encryption",
        Kind::Switch,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    option(
        "encrypt.format",
        Kind::Text,
        "Encrypt the image, format choices: 'aes', 'luks'",
    ),
    option(
        "encrypt.key-secret",
        Kind::Text,
        "ID of secret providing qcow AES key or LUKS passphrase",
    ),
    option(
        "encrypt.cipher-alg",
        Kind::Text,
        "Name of encryption cipher algorithm",
    ),
    option(
        "encrypt.cipher-mode",
        Kind::Text,
        "Name of encryption cipher mode",
    ),
    option("encrypt.ivgen-alg", Kind::Text, "Name of IV generator algorithm"),
    option(
        "encrypt.ivgen-hash-alg",
        Kind::Text,
        "Name of IV generator hash algorithm",
    ),
    option(
        "encrypt.hash-alg",
        Kind::Text,
        "Name of encryption hash algorithm",
    ),
    option(
        "encrypt.iter-time",
        Kind::Number,
        "Time to spend in PBKDF in milliseconds",
    ),
    with_default("cluster_size", Kind::Size, "qcow2 cluster size", "65536"),
    with_default("extended_l2", Kind::Switch, "Extended L2 tables", "off"),
    option(
        "preallocation",
        Kind::Text,
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
    ),
    with_default(
        "compression_type",
        Kind::Text,
        "Compression method used for image cluster compression",
        "zlib",
    ),
    option("size", Kind::Size, "Virtual disk size"),
    option(
        "compat",
        Kind::Text,
        "Compatibility level (v2 [0.10] or v3 [1.1])",
    ),
    option("backing_file", Kind::Text, "File name of a base image"),
    option("backing_fmt", Kind::Text, "Image format of the base image"),
    option("data_file", Kind::Text, "File name of an external data file"),
    option(
        "data_file_raw",
        Kind::Switch,
        "The external data file must stay valid as a raw image",
    ),
    with_default("lazy_refcounts", Kind::Switch, "Postpone refcount updates", "off"),
    with_default(
        "refcount_bits",
        Kind::Number,
        "Width of a reference count entry in bits",
        "16",
    ),
];

/// Of encrypted disks that are no images, in LUKS's own form.
pub(super) const LUKS: &[Definition] = &[
    option("size", Kind::Size, "Virtual disk size"),
    option(
        "key-secret",
        Kind::Text,
        "ID of the secret that provides the keyslot passphrase",
    ),
    option("cipher-alg", Kind::Text, "Name of encryption cipher algorithm"),
    option("cipher-mode", Kind::Text, "Name of encryption cipher mode"),
    option("ivgen-alg", Kind::Text, "Name of IV generator algorithm"),
    option(
        "ivgen-hash-alg",
        Kind::Text,
        "Name of IV generator hash algorithm",
    ),
    option("hash-alg", Kind::Text, "Name of encryption hash algorithm"),
    option(
        "iter-time",
        Kind::Number,
        "Time to spend in PBKDF in milliseconds",
    ),
    option("detached-header", Kind::Switch, "Create a detached LUKS header"),
];

/// Of disks in LUKS's own form that exist.
pub(super) const AMEND_LUKS: &[Definition] = &[
    option(
        "state",
        Kind::Text,
        "Select new state of affected keyslots (active/inactive)",
    ),
    option(
        "keyslot",
        Kind::Number,
        "Select a single keyslot to modify explicitly",
    ),
    option(
        "old-secret",
        Kind::Text,
        "Select all keyslots that match this password",
    ),
    option(
        "new-secret",
        Kind::Text,
        "New secret to set in the matching keyslots. Empty string to erase",
    ),
    option(
        "iter-time",
        Kind::Number,
        "Time to spend in PBKDF in milliseconds",
    ),
];

/// Of qcow2 images that exist.
pub(super) const AMEND: &[Definition] = &[
    option(
        "encrypt.state",
        Kind::Text,
        "Select new state of affected keyslots (active/inactive)",
    ),
    option(
        "encrypt.keyslot",
        Kind::Number,
        "Select a single keyslot to modify explicitly",
    ),
    option(
        "encrypt.old-secret",
        Kind::Text,
        "Select all keyslots that match this password",
    ),
    option(
        "encrypt.new-secret",
        Kind::Text,
        "New secret to set in the matching keyslots. Empty string to erase",
    ),
    option(
        "encrypt.iter-time",
        Kind::Number,
        "Time to spend in PBKDF in milliseconds",
    ),
    option("size", Kind::Size, "Virtual disk size"),
    option(
        "compat",
        Kind::Text,
        "Compatibility level (v2 [0.10] or v3 [1.1])",
    ),
    option("backing_file", Kind::Text, "File name of a base image"),
    option("backing_fmt", Kind::Text, "Image format of the base image"),
    option("data_file", Kind::Text, "File name of an external data file"),
    option(
        "data_file_raw",
        Kind::Switch,
        "The external data file must stay valid as a raw image",
    ),
    option("lazy_refcounts", Kind::Switch, "Postpone refcount updates"),
    option(
        "refcount_bits",
        Kind::Number,
        "Width of a reference count entry in bits",
    ),
];

/// Of raw images.
pub(super) const RAW: &[Definition] = &[option("size", Kind::Size, "Virtual disk size")];

/// Of files, which an image in any format may be kept in.
pub(super) const FILE: &[Definition] = &[
    option("size", Kind::Size, "Virtual disk size"),
    option(
        "nocow",
        Kind::Switch,
        "Turn off copy-on-write (valid only on btrfs)",
    ),
    option(
        "preallocation",
        Kind::Text,
        "Preallocation mode (allowed values: off, falloc, full)",
    ),
    option(
        "extent_size_hint",
        Kind::Size,
        "Extent size hint for the image file, 0 to disable",
    ),
];

/// The options that there are for a format, and what was said of them.
#[derive(Clone, Debug)]
pub(super) struct FormatOptions {
    definitions: Vec<Definition>,
    /// Values as they were written, the later ones last.
    values: Vec<(&'static str, String)>,
}

impl FormatOptions {
    /// The options of the format itself, and those of files where an image is to be in one.
    pub(super) fn of(lists: &[&[Definition]]) -> Self {
        let mut definitions: Vec<Definition> = Vec::new();
        for definition in lists.iter().copied().flatten() {
            if definitions.iter().all(|known| known.name != definition.name) {
                definitions.push(*definition);
            }
        }
        Self {
            definitions,
            values: Vec::new(),
        }
    }

    /// Takes what a list says.
    pub(super) fn parse(&mut self, list: &str) -> Result<(), Refusal> {
        for (key, value) in option_list::pairs(list) {
            self.set(&key, &value)?;
        }
        Ok(())
    }

    /// Sets an option.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), Refusal> {
        let Some(definition) = self.definitions.iter().find(|known| known.name == key) else {
            return Err(Refusal::new(format!("Invalid parameter '{key}'")));
        };
        match definition.kind {
            Kind::Text => {}
            Kind::Switch => {
                if switch(value).is_none() {
                    return Err(Refusal::new(format!("Parameter '{key}' expects 'on' or 'off'")));
                }
            }
            Kind::Number => {
                if parse_number(value).is_none() {
                    return Err(Refusal::new(format!("Parameter '{key}' expects a number")));
                }
            }
            Kind::Size => drop(parse_size(key, value)?),
        }
        self.values.push((definition.name, value.to_owned()));
        Ok(())
    }

    /// What was said of an option.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let value = self.values.iter().rev().find(|value| value.0 == name);
        value.map(|value| &*value.1)
    }

    pub(super) fn is_on(&self, name: &str) -> bool {
        self.get(name).and_then(switch) == Some(true)
    }

    /// The value of a size, which is one.
    pub(super) fn size(&self, name: &str) -> Option<u64> {
        number::size(self.get(name)?).ok()
    }

    /// The value of a number, which is one.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        parse_number(self.get(name)?)
    }

    /// All that was said, by name.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.values.iter().map(|value| value.0)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.definitions.iter().any(|known| known.name == name)
    }

    /// ` key=value` for each option that has a value, in the order of the format.
    pub(super) fn show(&self) -> String {
        let mut text = String::new();
        for definition in &self.definitions {
            let Some(value) = self.get(definition.name).or(definition.default) else {
                continue;
            };
            let value = match definition.kind {
                Kind::Text => value.replace(',', ",,"),
                Kind::Switch => value.to_owned(),
                // As C prints it.
                Kind::Number => parse_number(value).unwrap_or_default().cast_signed().to_string(),
                Kind::Size => number::size(value).unwrap_or_default().to_string(),
            };
            text += &format!(" {}={value}", definition.name);
        }
        text
    }

    /// One line for each option, in the order of their names.
    pub(super) fn help(&self) -> String {
        let mut definitions = self.definitions.clone();
        definitions.sort_by_key(|definition| definition.name);
        let line = |definition: &Definition| {
            let head = format!("{}=<{}>", definition.name, definition.kind.shown());
            format!("  {head:<22} - {}\n", definition.help)
        };
        definitions.iter().map(line).collect()
    }
}

/// What says that something is so, or not.
pub(super) fn switch(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// A number; a negative one is as large as C makes it.
pub(super) fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None if text.starts_with('-') => text.parse::<i64>().ok().map(i64::cast_unsigned),
        None => text.parse().ok(),
    }
}

/// The value of a size that the option `key` has.
pub(super) fn parse_size(key: &str, value: &str) -> Result<u64, Refusal> {
    number::size(value).map_err(|why| match why {
        NoSize::Range => Refusal::new(format!("Value '{value}' is out of range for parameter '{key}'")),
        NoSize::Text => Refusal::new(format!(
            "Parameter '{key}' expects a non-negative number below 2^64"
        ))
        .with_hint("Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-")
        .with_hint("and exabytes, respectively."),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2(list: &str) -> Result<FormatOptions, String> {
        let mut options = FormatOptions::of(&[QCOW2, FILE]);
        let parsed = options.parse(list);
        parsed
            .map(|()| options)
            .map_err(|refusal| refusal.text().to_owned())
    }

    #[test]
    fn what_is_given_is_shown_with_the_defaults_in_the_order_of_the_format() {
        let options = qcow2("refcount_bits=8,size=1k,backing_file=a,,b,cluster_size=1M,size=2k").unwrap();
        assert_eq!(
            options.show(),
            " cluster_size=1048576 extended_l2=off compression_type=zlib size=2048 backing_file=a,,b \
             lazy_refcounts=off refcount_bits=8"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (list, text) in [
            ("foo=1", "Invalid parameter 'foo'"),
            (
                "lazy_refcounts=maybe",
                "Parameter 'lazy_refcounts' expects 'on' or 'off'",
            ),
            ("refcount_bits=a", "Parameter 'refcount_bits' expects a number"),
            ("size=-1024", "Value '-1024' is out of range for parameter 'size'"),
            (
                "size=-1k",
                "Parameter 'size' expects a non-negative number below 2^64",
            ),
        ] {
            assert_eq!(qcow2(list).unwrap_err(), text);
        }
    }

    #[test]
    fn help_is_in_columns() {
        let help = FormatOptions::of(&[RAW, FILE]).help();
        let first = help.lines().next();
        assert_eq!(
            first,
            Some("  extent_size_hint=<size> - Extent size hint for the image file, 0 to disable")
        );
        assert!(help.ends_with("  size=<size>            - Virtual disk size\n"));
    }
}

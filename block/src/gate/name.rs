//! From the name that an image holds to the path that it means.

use std::path::PathBuf;

use super::OpenRequest;
use crate::{Error, ErrorKind, Result, escape};

/// The path that a plain name means: as it is if absolute, else below the directory of the image that holds it.
///
/// Nothing is looked up. The path may hold `..`, lead through links, or not exist.
///
/// # Errors
/// `Unsupported` for a name that says how to reach something that is not a plain file, as QEMU's do: anything
/// with a colon before the first slash, so `nbd://host`, `json:{...}`, and `file:name` too. `Denied` for a name
/// that is empty or holds a NUL byte.
pub fn resolve(request: &OpenRequest<'_>) -> Result<PathBuf> {
    let OpenRequest { from, name, purpose } = *request;
    if name.is_empty() {
        return Err(
            Error::new(ErrorKind::Denied, format!("the name of the {purpose} is empty")).with_path(from),
        );
    }
    if name.contains('\0') {
        let message = format!("the name of the {purpose} holds a NUL byte: \"{}\"", escape(name));
        return Err(Error::new(ErrorKind::Denied, message).with_path(from));
    }
    if let Some(protocol) = protocol(name) {
        let message = format!(
            "the {purpose} \"{}\" is named by the protocol \"{}\", and only plain paths are opened",
            escape(name),
            escape(protocol)
        );
        let hint = format!(
            "if a file of that name is meant, have the image name it as \"./{}\"",
            escape(name)
        );
        return Err(Error::unsupported(message).with_path(from).with_hint(hint));
    }
    let directory = from.parent().map(PathBuf::from).unwrap_or_default();
    Ok(directory.join(name))
}

/// What stands before a colon that no slash comes before.
fn protocol(name: &str) -> Option<&str> {
    let at = name.find([':', '/'])?;
    name[at..].starts_with(':').then(|| &name[..at])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Purpose;
    use super::*;

    fn resolved(from: &str, name: &str) -> Result<PathBuf> {
        resolve(&OpenRequest {
            from: Path::new(from),
            name,
            purpose: Purpose::Backing,
        })
    }

    #[test]
    fn names_are_relative_to_the_image_that_holds_them() {
        for (from, name, path) in [
            ("a/b.qcow2", "c", "a/c"),
            ("b.qcow2", "c", "c"),
            ("/a/b.qcow2", "../c", "/a/../c"),
            ("a/b.qcow2", "/c/d", "/c/d"),
            ("b.qcow2", "./odd:name", "./odd:name"),
            ("b.qcow2", "dir/odd:name", "dir/odd:name"),
        ] {
            assert_eq!(resolved(from, name).unwrap(), Path::new(path));
        }
    }

    #[test]
    fn names_of_protocols_are_refused_by_name() {
        for name in [
            "json:{\"driver\":\"nbd\"}",
            "nbd:localhost:10809",
            "nbd+unix:///?socket=/run/x",
            "file:base.raw",
            "ssh://host/base",
            ":",
            "fat:rw:/etc",
        ] {
            let error = resolved("img", name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}");
            assert!(
                error.message().contains(name) && error.hint().is_some(),
                "{error}"
            );
            assert_eq!(error.path(), Some(Path::new("img")));
        }
    }

    #[test]
    fn what_cannot_be_a_name_is_refused_and_printed_safely() {
        assert_eq!(resolved("img", "").unwrap_err().kind(), ErrorKind::Denied);
        let error = resolved("img", "a\0b\u{1b}[2J").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(!error.to_string().contains(char::is_control), "{error}");
        let error = resolved("img", "x\u{1b}[2J:y").unwrap_err();
        assert!(!error.to_string().contains(char::is_control), "{error}");
        assert!(!error.hint().unwrap().contains(char::is_control));
    }
}

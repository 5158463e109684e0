//! File names: which driver a name means, and what a name that an image holds means from there.

/// What stands before a colon that no slash comes before: `nbd` of `nbd://host`.
pub(in super::super) fn protocol(name: &str) -> Option<&str> {
    let at = name.find([':', '/'])?;
    name[at..].starts_with(':').then(|| &name[..at])
}

/// Whether a name is that of an NBD export.
pub(in super::super) fn is_nbd(protocol: &str) -> bool {
    matches!(protocol, "nbd" | "nbd+tcp" | "nbd+unix")
}

/// A path as a name that is no protocol's.
pub(in super::super) fn of_path(path: &str) -> String {
    match protocol(path) {
        Some(_) => format!("./{path}"),
        None => path.to_owned(),
    }
}

/// The directory part of a file's name, with its slash; empty where there is none.
pub(in super::super) fn directory(name: &str) -> &str {
    &name[..name.rfind('/').map_or(0, |slash| slash + 1)]
}

/// What `name`, found in an image in `directory`, means. `None` where the directory is not known and matters.
pub(in super::super) fn combine(directory: Option<&str>, name: &str) -> Option<String> {
    if protocol(name).is_some() || name.starts_with('/') {
        return Some(name.to_owned());
    }
    directory.map(|directory| format!("{directory}{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_any_slash_ends_a_protocol() {
        assert_eq!(protocol("nbd://x"), Some("nbd"));
        assert_eq!(protocol("json:{}"), Some("json"));
        assert_eq!(protocol("./a:b"), None);
        assert_eq!(protocol("a/b:c"), None);
        assert_eq!(
            (of_path("a:b").as_str(), of_path("/a:b").as_str()),
            ("./a:b", "/a:b")
        );
    }

    #[test]
    fn relative_names_are_looked_up_beside_the_image() {
        let from = |image: &str, name| combine(Some(directory(image)), name);
        assert_eq!(from("d/top", "base").as_deref(), Some("d/base"));
        assert_eq!(from("top", "base").as_deref(), Some("base"));
        assert_eq!(from("./a:b", "./c:d").as_deref(), Some("././c:d"));
        assert_eq!(from("d/top", "/base").as_deref(), Some("/base"));
        assert_eq!(from("d/top", "nbd://x").as_deref(), Some("nbd://x"));
        assert_eq!(combine(None, "base"), None);
        assert_eq!(combine(None, "/base").as_deref(), Some("/base"));
    }
}

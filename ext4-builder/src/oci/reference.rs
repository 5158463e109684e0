//! Names of images: `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME]`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use block::{Error, Result};

/// How an image is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storing {
    /// A directory, as the image specification lays it out.
    Layout,
    /// Such a directory in a tar archive.
    LayoutArchive,
    /// A tar archive of `docker save`.
    DockerArchive,
}

impl Storing {
    const ALL: [(&'static str, Self); 3] = [
        ("oci:", Self::Layout),
        ("oci-archive:", Self::LayoutArchive),
        ("docker-archive:", Self::DockerArchive),
    ];
}

/// Names an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// How it is stored.
    pub storing: Storing,
    /// The directory or archive.
    pub path: PathBuf,
    /// Which of the images there, where that is said.
    pub tag: Option<String>,
}

impl Reference {
    /// What a text names, if it starts as the name of an image does. What is a file or directory as a whole has no tag,
    /// whatever colons are in its name.
    ///
    /// # Errors
    /// `InvalidInput` for a tag that is not UTF-8, and where no file is named.
    pub fn parse(text: &OsStr) -> Result<Option<Self>> {
        let bytes = text.as_bytes();
        let found = Storing::ALL
            .iter()
            .find_map(|(prefix, storing)| Some((*storing, bytes.strip_prefix(prefix.as_bytes())?)));
        let Some((storing, rest)) = found else {
            return Ok(None);
        };
        let path = |bytes: &[u8]| PathBuf::from(OsString::from(OsStr::from_bytes(bytes)));
        if rest.is_empty() {
            return Err(Error::invalid("no image is named").with_hint("such as oci:DIRECTORY:TAG"));
        }
        let mut colons = (0..rest.len()).filter(|at| *at > 0 && rest[*at] == b':');
        let split = colons
            .clone()
            .find(|at| path(&rest[..*at]).exists())
            .or(colons.next_back());
        let (file, tag) = match split {
            Some(at) if !path(rest).exists() => (&rest[..at], Some(&rest[at + 1..])),
            _ => (rest, None),
        };
        let tag = match tag.map(std::str::from_utf8) {
            None => None,
            Some(Ok("")) => return Err(Error::invalid("the tag is empty").with_path(text)),
            Some(Ok(tag)) => Some(tag.to_owned()),
            Some(Err(_)) => return Err(Error::invalid("the tag is not UTF-8").with_path(text)),
        };
        Ok(Some(Self {
            storing,
            path: path(file),
            tag,
        }))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = Storing::ALL.iter().find(|(_, storing)| *storing == self.storing);
        let prefix = prefix.map_or("", |(prefix, _)| prefix);
        write!(f, "{prefix}{}", self.path.display())?;
        match &self.tag {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_apart_where_there_is_a_file() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["layout", "with:colon", "a.tar"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let root = directory.path().to_str().unwrap();
        for (text, storing, path, tag) in [
            ("oci:ROOT/layout", Storing::Layout, "ROOT/layout", None),
            (
                "oci:ROOT/layout:latest",
                Storing::Layout,
                "ROOT/layout",
                Some("latest"),
            ),
            ("oci:ROOT/with:colon", Storing::Layout, "ROOT/with:colon", None),
            (
                "oci:ROOT/with:colon:1",
                Storing::Layout,
                "ROOT/with:colon",
                Some("1"),
            ),
            (
                "oci-archive:ROOT/a.tar:1",
                Storing::LayoutArchive,
                "ROOT/a.tar",
                Some("1"),
            ),
            (
                "docker-archive:ROOT/a.tar:debian:12",
                Storing::DockerArchive,
                "ROOT/a.tar",
                Some("debian:12"),
            ),
            ("oci:missing", Storing::Layout, "missing", None),
            ("oci:missing:1", Storing::Layout, "missing", Some("1")),
        ] {
            let [text, path] = [text, path].map(|text| text.replace("ROOT", root));
            let found = Reference::parse(OsStr::new(&text)).unwrap().unwrap();
            assert_eq!(
                (found.storing, found.path.to_str(), found.tag.as_deref()),
                (storing, Some(&*path), tag)
            );
            assert_eq!(found.to_string(), text);
        }
        assert_eq!(Reference::parse(OsStr::new("directory")).unwrap(), None);
        for text in ["oci:", "oci:x:"] {
            Reference::parse(OsStr::new(text)).unwrap_err();
        }
    }
}

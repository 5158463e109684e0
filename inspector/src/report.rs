//! What was found out about a file.

use crate::{Format, Signature};

/// What an image must be to be safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Check {
    /// One format, and the one that was asked for.
    Format,
    /// It names no other file.
    References,
    /// It uses no feature that is not known here.
    Features,
    /// Its disk, and its tables beside the length of the file, are not too large.
    Sizes,
    /// Its tables lie in the file and apart, and nothing is mapped twice.
    Structure,
    /// There are no other bytes behind it.
    End,
}

impl Check {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 6] = [
        Self::Format,
        Self::References,
        Self::Features,
        Self::Sizes,
        Self::Structure,
        Self::End,
    ];

    /// What it is called, in reports too: this does not change.
    pub fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::References => "references",
            Self::Features => "features",
            Self::Sizes => "sizes",
            Self::Structure => "structure",
            Self::End => "end",
        }
    }
}

/// Why an image is not safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What it should have been.
    pub check: Check,
    /// What is wrong, in a line. Names in it are as the image has them: escape them before they are printed.
    pub text: String,
}

/// What was found out about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The one format that it is in; `None` where it could be several.
    pub format: Option<Format>,
    /// The signatures in it. Raw disks have none.
    pub signatures: Vec<Signature>,
    /// Bytes of the disk, where that can be told.
    pub disk_size: Option<u64>,
    /// Bytes of the file.
    pub file_len: u64,
    /// What it makes use of, in words that do not change.
    pub features: Vec<&'static str>,
    /// Why it is not safe.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Problems that are kept: a file may have any number.
    const MAX_PROBLEMS: usize = 100;

    pub(crate) fn new(file_len: u64) -> Self {
        Self {
            format: None,
            signatures: Vec::new(),
            disk_size: None,
            file_len,
            features: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Nothing is wrong with it.
    pub fn is_safe(&self) -> bool {
        self.problems.is_empty()
    }

    pub(crate) fn problem(&mut self, check: Check, text: impl Into<String>) {
        if self.problems.len() < Self::MAX_PROBLEMS {
            let text = text.into();
            self.problems.push(Problem { check, text });
        }
    }

    /// A problem unless `holds`; gives `holds`.
    pub(crate) fn require(&mut self, holds: bool, check: Check, text: impl Into<String>) -> bool {
        if !holds {
            self.problem(check, text);
        }
        holds
    }

    /// Something that must lie in the file.
    pub(crate) fn require_inside(&mut self, what: &str, start: u64, len: u64) -> bool {
        let inside = start.checked_add(len).is_some_and(|end| end <= self.file_len);
        let text = format!(
            "{what} takes {len} bytes at {start}, and the file ends at {}",
            self.file_len
        );
        self.require(inside, Check::Structure, text)
    }

    pub(crate) fn feature(&mut self, name: &'static str, used: bool) {
        if used {
            self.features.push(name);
        }
    }
}

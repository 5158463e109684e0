//! Aliases: the short names that long names have beside them ("Generating 8.3 names from long names").
//!
//! A name that is short but for its case is its own alias, and these come first, so that no other takes it. Any other gets
//! what is left of it when all that a short name cannot have is gone, and a number that makes it the only one: `LOADER~1`.
//! How far numbers have come is kept for each beginning and each count of digits: a directory of names that begin alike
//! takes no longer than another.

use std::collections::{HashMap, HashSet};

use crate::short_name::{self, ShortName};

/// Digits of a number at most.
const MAX_DIGITS: usize = 6;

/// The short names of all that is in one directory, in order.
pub(crate) fn assign(names: &[&str]) -> Vec<ShortName> {
    let own: Vec<_> = names.iter().map(|name| ShortName::of(name)).collect();
    let mut numbered = Numbered {
        taken: own.iter().flatten().copied().collect(),
        next: HashMap::new(),
    };
    let given = names.iter().zip(own);
    given
        .map(|(name, own)| own.unwrap_or_else(|| numbered.give(name)))
        .collect()
}

struct Numbered {
    taken: HashSet<ShortName>,
    /// The number to try next for a beginning, an extension and a count of digits.
    next: HashMap<(String, String, usize), u32>,
}

impl Numbered {
    fn give(&mut self, name: &str) -> ShortName {
        let (base, extension) = basis(name);
        for digits in 1..=MAX_DIGITS {
            let base = &base[..base.len().min(7 - digits)];
            let key = (base.to_owned(), extension.clone(), digits);
            let next = self.next.entry(key).or_insert(10u32.pow(digits as u32 - 1));
            while *next < 10u32.pow(digits as u32) {
                let alias = ShortName::of_parts(&format!("{base}~{next}"), &extension);
                *next += 1;
                if self.taken.insert(alias) {
                    return alias;
                }
            }
        }
        unreachable!("a directory has fewer names than there are numbers")
    }
}

/// What of a name an alias can have: at most 8 and 3 characters.
fn basis(name: &str) -> (String, String) {
    let name = name.trim_start_matches(['.', ' ']);
    let (base, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let cleaned = |part: &str, most: usize| -> String {
        let chars = part.chars().filter(|c| !matches!(c, '.' | ' '));
        chars
            .map(|c| match c {
                c if c.is_ascii() && short_name::is_allowed(c as u8) => c.to_ascii_uppercase(),
                _ => '_',
            })
            .take(most)
            .collect()
    };
    (cleaned(base, 8), cleaned(extension, 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aliases(names: &[&str]) -> Vec<String> {
        let text = |name: ShortName| String::from_utf8(name.0.to_vec()).unwrap();
        assign(names).into_iter().map(text).collect()
    }

    #[test]
    fn aliases_are_those_of_the_specification() {
        assert_eq!(
            aliases(&[
                "The quick brown.fox",
                "The quick",
                "initrd.img-6.1.0",
                ".profile",
                "a+b c.d.html",
                "é"
            ]),
            [
                "THEQUI~1FOX",
                "THEQUI~1   ",
                "INITRD~10  ",
                "PROFIL~1   ",
                "A_BCD~1 HTM",
                "_~1        ",
            ]
        );
    }

    #[test]
    fn no_alias_is_a_name_of_another_whichever_comes_first() {
        let names = ["loader entry", "LOADER~1", "loader~2", "loader entries"];
        let expected = ["LOADER~3   ", "LOADER~1   ", "LOADER~2   ", "LOADER~4   "];
        assert_eq!(aliases(&names), expected);
    }

    #[test]
    fn thousands_of_names_that_begin_alike_have_each_its_own() {
        let names: Vec<String> = (0..60_000)
            .map(|i| format!("a file with the number {i}.text"))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let aliases = aliases(&names);
        assert_eq!(aliases[8..11], ["AFILEW~9TEX", "AFILE~10TEX", "AFILE~11TEX"]);
        assert_eq!(aliases.iter().collect::<HashSet<_>>().len(), names.len());
    }
}

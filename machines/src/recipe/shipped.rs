//! Recipes that come with the program.

use block::{Error, Result, escape};

use crate::store::nearest;

/// A recipe that comes with the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shipped {
    /// What it is called.
    pub name: &'static str,
    /// All of it.
    pub text: &'static str,
}

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        &[$(Shipped {
            name: $name,
            text: include_str!(concat!("../../recipes/", $name, ".toml")),
        }),*]
    };
}

/// All of them, by name.
const SHIPPED: &[Shipped] = shipped![
    "debian-12",
    "debian-12-cloud",
    "tiny",
    "tiny-uefi",
    "ubuntu-24.04"
];

/// The recipes that come with the program, in the order of their names.
pub fn shipped() -> &'static [Shipped] {
    SHIPPED
}

/// The recipe of a name that comes with the program.
///
/// # Errors
/// `InvalidInput` where there is none, with names that may have been meant.
pub fn shipped_named(name: &str) -> Result<Shipped> {
    named(name).ok_or_else(|| {
        let error = Error::invalid(format!("no recipe \"{}\" comes with the program", escape(name)));
        error.with_hint(
            meant(name).unwrap_or_else(|| "imgtool template recipes lists those that do".to_owned()),
        )
    })
}

pub(super) fn named(name: &str) -> Option<Shipped> {
    SHIPPED.iter().copied().find(|one| one.name == name)
}

/// Which there are that may have been meant.
pub(super) fn meant(name: &str) -> Option<String> {
    let near = nearest(name, SHIPPED.iter().map(|one| one.name));
    (!near.is_empty()).then(|| format!("there is {}", near.join(", ")))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe::Recipe;

    #[test]
    fn all_of_them_can_be_read_and_say_what_they_are() {
        for one in SHIPPED {
            let recipe =
                Recipe::load(Path::new(one.name)).unwrap_or_else(|error| panic!("{}: {error}", one.name));
            assert!(recipe.description.is_some(), "{}", one.name);
        }
        assert!(SHIPPED.is_sorted_by_key(|one| one.name));
    }
}

//! Sizes and numbers on the command line.

use super::refusal::Refusal;

/// Why a text is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSize {
    /// It is none.
    Text,
    /// It is one that does not fit, or is negative.
    Range,
}

/// The bytes that `text` stands for: see [`block::size`].
pub(super) fn size(text: &str) -> Result<u64, NoSize> {
    let text = text.trim_start();
    // C takes a sign.
    let text = match text.strip_prefix('+') {
        Some(number) if number.starts_with(|first: char| first.is_ascii_digit()) => number,
        _ => text,
    };
    if let Ok(bytes) = block::size::parse(text) {
        return Ok(bytes);
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    // A number that is too large, with or without a unit; a unit of a negative one is not looked at.
    let numeric = text.trim_end_matches([
        'k', 'K', 'm', 'M', 'g', 'G', 't', 'T', 'p', 'P', 'e', 'E', 'b', 'B',
    ]);
    let large = numeric.len() + 1 >= text.len() && block::size::parse(numeric).is_ok_and(|number| number > 0);
    Err(if plain || large {
        NoSize::Range
    } else {
        NoSize::Text
    })
}

/// The value of an argument that is called `name` in messages, from `min` to `max`.
pub(super) fn argument(name: &str, text: &str, min: u64, max: u64) -> Result<u64, Refusal> {
    match size(text) {
        Ok(value) if (min..=max).contains(&value) => Ok(value),
        Err(NoSize::Text) => Err(no_size(name)),
        _ => Err(Refusal::new(format!(
            "Invalid {name} specified. Must be between {min} and {max}."
        ))),
    }
}

/// Any size that a disk can have.
pub(super) fn disk_size(name: &str, text: &str) -> Result<u64, Refusal> {
    argument(name, text, 0, i64::MAX as u64)
}

fn no_size(name: &str) -> Refusal {
    Refusal::new(format!(
        "Invalid {name} specified. You may use k, M, G, T, P or E suffixes for"
    ))
    .with_more("kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_from_what_is_none_and_from_what_does_not_fit() {
        for (text, expected) in [
            ("1024", Ok(1024)),
            (" 1.5k", Ok(1536)),
            ("0x10", Ok(16)),
            ("+1k", Ok(1024)),
            ("++1", Err(NoSize::Text)),
            ("-1024", Err(NoSize::Range)),
            ("-1k", Err(NoSize::Text)),
            ("1kilobyte", Err(NoSize::Text)),
            ("", Err(NoSize::Text)),
            ("99999999999999999999", Err(NoSize::Range)),
            ("16E", Err(NoSize::Range)),
        ] {
            assert_eq!(size(text), expected, "{text}");
        }
    }
}

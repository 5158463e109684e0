//! Lists of options: `key=value,key=value`, where two commas stand for one in a value.

use super::console;
use super::refusal::Refusal;

/// The pairs of a list, in the order they were written. A key without a value is `on`, one that begins with `no` is then `off`.
pub(super) fn pairs(list: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for part in parts(list) {
        let pair = match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => match part.strip_prefix("no") {
                Some(key) if !key.is_empty() => (key.to_owned(), "off".to_owned()),
                _ => (part, "on".to_owned()),
            },
        };
        pairs.push(pair);
    }
    pairs
}

/// The parts of a list, with doubled commas made one.
pub(super) fn parts(list: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut rest = list.chars().peekable();
    while let Some(char) = rest.next() {
        if char != ',' {
            part.push(char);
        } else if rest.next_if_eq(&',').is_some() {
            part.push(',');
        } else {
            parts.push(std::mem::take(&mut part));
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

/// Says of each key without a value that it should have one; what comes first may be a value alone where that means something.
pub(super) fn warn_of_short_forms(list: &str, first_is_value: bool) {
    let skipped = usize::from(first_is_value);
    let parts = parts(list).into_iter().skip(skipped);
    let help = |part: &str| matches!(part, "" | "help" | "?");
    for part in parts.filter(|part| !part.contains('=') && !help(part)) {
        let (key, value) = match part.strip_prefix("no") {
            Some(key) if !key.is_empty() => (key, "off"),
            _ => (&*part, "on"),
        };
        console::warn(&format!("short-form boolean option '{part}' deprecated"));
        console::note(&format!("Please use {key}={value} instead\n"));
    }
}

/// Adds what one more `-o` says to a list.
pub(super) fn accumulate(list: &mut Option<String>, more: &str) -> Result<(), Refusal> {
    let at_end = more.len() - more.trim_end_matches(',').len();
    if more.is_empty() || more.starts_with(',') || at_end % 2 == 1 {
        return Err(Refusal::new(format!("Invalid option list: {more}")));
    }
    match list {
        Some(list) => {
            list.push(',');
            list.push_str(more);
        }
        None => *list = Some(more.to_owned()),
    }
    Ok(())
}

/// Whether a list asks for help anywhere.
pub(super) fn asks_for_help(list: Option<&str>) -> bool {
    list.is_some_and(|list| parts(list).iter().any(|part| part == "help" || part == "?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(list: &str) -> String {
        let pairs = pairs(list)
            .into_iter()
            .map(|(key, value)| key + ":" + &value + ";");
        pairs.collect()
    }

    #[test]
    fn commas_part_and_doubled_ones_do_not() {
        assert_eq!(joined("a=1,b=x,,y,c,nod"), "a:1;b:x,y;c:on;d:off;");
        assert_eq!(joined("a=,,,b=2"), "a:,;b:2;");
        assert_eq!(joined(""), "");
    }

    #[test]
    fn lists_add_up_unless_they_are_none() {
        let mut list = None;
        accumulate(&mut list, "a=1").unwrap();
        accumulate(&mut list, "b=2,,").unwrap();
        assert_eq!(list.as_deref(), Some("a=1,b=2,,"));
        for more in ["", ",,", ",help", "a=b,", "a=b,,,"] {
            let refusal = accumulate(&mut list, more).unwrap_err();
            assert_eq!(refusal.text(), format!("Invalid option list: {more}"));
        }
    }

    #[test]
    fn help_may_be_asked_for_anywhere() {
        for list in ["help", "a=1,?", "help,a=1"] {
            assert!(asks_for_help(Some(list)), "{list}");
        }
        for list in ["a=help", "a=1,,help", ""] {
            assert!(!asks_for_help(Some(list)), "{list}");
        }
        assert!(!asks_for_help(None));
    }
}

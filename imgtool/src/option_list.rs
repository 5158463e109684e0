//! Format options as `-o` takes them: `key=value,key=value`, a comma in a value doubled.

use block::{Error, Result, escape};

/// The options of all `-o` arguments together, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OptionList {
    pairs: Vec<(String, String)>,
    /// `help` or `?` is among them.
    pub(crate) help: bool,
}

impl OptionList {
    pub(crate) fn parse(arguments: &[String]) -> Result<Self> {
        let mut list = Self::default();
        for argument in arguments {
            for item in split(argument)? {
                match item.split_once('=') {
                    _ if item == "help" || item == "?" => list.help = true,
                    Some((key, value)) => list.pairs.push((key.to_owned(), value.to_owned())),
                    // A switch without a value is switched on.
                    None => list.pairs.push((item, "on".to_owned())),
                }
            }
        }
        Ok(list)
    }

    /// Takes an option out. Of several with one key the last counts.
    pub(crate) fn take(&mut self, key: &str) -> Option<String> {
        let mut value = None;
        self.pairs.retain_mut(|(other, text)| {
            let found = other == key;
            if found {
                value = Some(std::mem::take(text));
            }
            !found
        });
        value
    }

    /// Takes out a switch.
    pub(crate) fn take_switch(&mut self, key: &str) -> Result<Option<bool>> {
        match self.take(key).as_deref() {
            None => Ok(None),
            Some("on") => Ok(Some(true)),
            Some("off") => Ok(Some(false)),
            Some(other) => {
                let message = format!("the option {key} is \"{}\", and can be on or off", escape(other));
                Err(Error::invalid(message))
            }
        }
    }

    /// The key of an option that nobody took.
    pub(crate) fn untaken(&self) -> Option<&str> {
        self.pairs.first().map(|(key, _)| key.as_str())
    }

    /// Fails for what nobody took.
    pub(crate) fn finish(self, format: &str, refused: &[&str]) -> Result<()> {
        let Some((key, _)) = self.pairs.first() else {
            return Ok(());
        };
        if refused
            .iter()
            .any(|name| key == name || key.starts_with(&format!("{name}.")))
        {
            return Err(Error::unsupported(format!(
                "the option {key} of {format} images is not supported"
            )));
        }
        let message = format!("{format} images have no option \"{}\"", escape(key));
        Err(Error::invalid(message).with_hint(format!("`-o help` lists the options of {format} images")))
    }
}

/// The items between single commas.
fn split(argument: &str) -> Result<Vec<String>> {
    let mut items = Vec::new();
    let mut item = String::new();
    let mut chars = argument.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            items.push(std::mem::take(&mut item));
        } else {
            item.push(c);
        }
    }
    items.push(item);
    if items.iter().any(String::is_empty) {
        let message = format!(
            "\"{}\" is no list of options: there is nothing between two commas, or at an end",
            escape(argument)
        );
        return Err(
            Error::invalid(message).with_hint("write key=value,key=value and double a comma inside a value")
        );
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(arguments: &[&str]) -> Result<OptionList> {
        OptionList::parse(&arguments.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn options_add_up_and_the_last_counts() {
        let mut list = list(&["a=1,b=x,,y=z", "a=2,c"]).unwrap();
        assert_eq!(list.take("b").as_deref(), Some("x,y=z"));
        assert_eq!(list.take("a").as_deref(), Some("2"));
        assert_eq!(list.take_switch("c").unwrap(), Some(true));
        assert_eq!(list.take("a"), None);
        list.finish("raw", &[]).unwrap();
    }

    #[test]
    fn empty_items_are_refused() {
        for bad in ["", ",", "a=1,", ",a=1", "a=1,,,b=2,"] {
            assert!(list(&[bad]).is_err(), "{bad}");
        }
        assert_eq!(list(&["a=,,"]).unwrap().take("a").as_deref(), Some(","));
    }

    #[test]
    fn what_is_left_over_is_named() {
        let unknown = list(&["foo=1"]).unwrap().finish("raw", &[]).unwrap_err();
        assert!(unknown.message().contains("\"foo\""));
        let refused = list(&["encrypt.format=luks"])
            .unwrap()
            .finish("qcow2", &["encrypt"])
            .unwrap_err();
        assert_eq!(refused.kind(), block::ErrorKind::Unsupported);
        assert!(list(&["cluster_size=4k,help"]).unwrap().help);
        assert!(list(&["a=maybe"]).unwrap().take_switch("a").is_err());
    }
}

//! What an `--object` says, in a list or in JSON, and what each of its values has to be.
//!
//! In a list all values are texts, a key with dots names a value in an object, and what comes first may be the kind alone. In JSON a value
//! is of the type that it is to have, or refused.

use serde_json::{Map, Value};

use super::format_options::switch;
use super::node::json_text;
use super::refusal::Refusal;

/// What is said.
#[derive(Debug)]
pub(super) enum ObjectText {
    /// It is to be told what can be said, of this kind of objects.
    Help(String),
    Members(Members),
}

/// The values of an object, by their names.
#[derive(Debug)]
pub(super) struct Members {
    values: Map<String, Value>,
    /// What stands in front of their names in messages.
    prefix: String,
    /// A text may stand for a value of any type.
    is_list: bool,
}

/// What says of which kind an object is.
const KIND: &str = "qom-type";

impl ObjectText {
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        if !text.starts_with('{') {
            return parse_list(text);
        }
        let values = match json_text::parse(text)? {
            Value::Object(values) => values,
            _ => Map::new(),
        };
        Ok(Self::Members(Members::new(values, false)))
    }
}

fn parse_list(text: &str) -> Result<ObjectText, Refusal> {
    let mut values = Map::new();
    let (mut rest, mut first, mut help) = (text, true, false);
    while !rest.is_empty() {
        let end = rest.find(['=', ',']).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        if let Some(written) = after.strip_prefix('=') {
            let (value, next) = value(written);
            insert(&mut values, key, value)?;
            rest = next;
        } else {
            match key {
                "" => return Err(invalid("")),
                "help" | "?" => help = true,
                kind if first => drop(values.insert(KIND.to_owned(), kind.into())),
                key => return Err(Refusal::new(format!("Expected '=' after parameter '{key}'"))),
            }
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        first = false;
    }
    if help {
        let kind = values.get(KIND).and_then(Value::as_str);
        return Ok(ObjectText::Help(kind.unwrap_or_default().to_owned()));
    }
    Ok(ObjectText::Members(Members::new(values, true)))
}

/// A value, in which two commas stand for one, and what follows the comma behind it.
fn value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let Some((part, after)) = rest.split_once(',') else {
            return (value + rest, "");
        };
        value += part;
        match after.strip_prefix(',') {
            Some(after) => {
                value.push(',');
                rest = after;
            }
            None => return (value, after),
        }
    }
}

fn invalid(key: &str) -> Refusal {
    Refusal::new(format!("Invalid parameter '{key}'"))
}

/// Sets the value that `key` names; the last one counts.
fn insert(values: &mut Map<String, Value>, key: &str, value: String) -> Result<(), Refusal> {
    let is_name = |part: &str| {
        let mut bytes = part.bytes();
        let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic());
        first && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if !key.split('.').all(is_name) {
        return Err(invalid(key));
    }
    let mut inner = values;
    let mut from = 0;
    for (dot, _) in key.match_indices('.') {
        let entry = inner.entry(&key[from..dot]).or_insert_with(|| Map::new().into());
        inner = entry.as_object_mut().ok_or_else(|| inconsistent(&key[..dot]))?;
        from = dot + 1;
    }
    match inner.insert(key[from..].to_owned(), value.into()) {
        Some(Value::Object(_)) => Err(inconsistent(key)),
        _ => Ok(()),
    }
}

fn inconsistent(key: &str) -> Refusal {
    Refusal::new(format!("Parameters '{key}.*' used inconsistently"))
}

impl Members {
    fn new(values: Map<String, Value>, is_list: bool) -> Self {
        Self {
            values,
            prefix: String::new(),
            is_list,
        }
    }

    /// Takes the kind of the object away.
    pub(super) fn kind(&mut self) -> Result<String, Refusal> {
        self.needed(KIND)
    }

    /// Takes a text away that has to be there.
    pub(super) fn needed(&mut self, key: &str) -> Result<String, Refusal> {
        self.text(key)?
            .ok_or_else(|| Refusal::new(format!("Parameter '{key}' is missing")))
    }

    /// Takes a text away.
    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, Refusal> {
        match self.values.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, &other, "string")),
        }
    }

    /// Takes a whole number away.
    pub(super) fn integer(&mut self, key: &str) -> Result<Option<i64>, Refusal> {
        let Some(value) = self.values.remove(key) else {
            return Ok(None);
        };
        let number = match &value {
            Value::String(text) if self.is_list => {
                let number = integer(text);
                let refuse = || Refusal::new(format!("Parameter '{}{key}' expects integer", self.prefix));
                return number.ok_or_else(refuse).map(Some);
            }
            value => value.as_i64(),
        };
        number.map(Some).ok_or_else(|| self.wrong(key, &value, "integer"))
    }

    /// Takes away what is so or not.
    pub(super) fn switch(&mut self, key: &str) -> Result<Option<bool>, Refusal> {
        let Some(value) = self.values.remove(key) else {
            return Ok(None);
        };
        match &value {
            Value::String(text) if self.is_list => {
                let refuse =
                    || Refusal::new(format!("Parameter '{}{key}' expects 'on' or 'off'", self.prefix));
                switch(text).ok_or_else(refuse).map(Some)
            }
            Value::Bool(value) => Ok(Some(*value)),
            other => Err(self.wrong(key, other, "boolean")),
        }
    }

    /// Takes the values of an object away.
    pub(super) fn object(&mut self, key: &str) -> Result<Option<Self>, Refusal> {
        match self.values.remove(key) {
            None => Ok(None),
            Some(Value::Object(values)) => Ok(Some(Self {
                values,
                prefix: format!("{}{key}.", self.prefix),
                is_list: self.is_list,
            })),
            Some(_) => Err(self.no_type(key, "object")),
        }
    }

    /// Fails where something is left that nobody asked for.
    pub(super) fn finish(&self) -> Result<(), Refusal> {
        match self.values.keys().min() {
            None => Ok(()),
            Some(key) => Err(Refusal::new(format!(
                "Parameter '{}{key}' is unexpected",
                self.prefix
            ))),
        }
    }

    fn wrong(&self, key: &str, value: &Value, expected: &str) -> Refusal {
        if self.is_list && value.is_object() {
            return Refusal::new(format!("Parameters '{}{key}.*' are unexpected", self.prefix));
        }
        self.no_type(key, expected)
    }

    fn no_type(&self, key: &str, expected: &str) -> Refusal {
        Refusal::new(format!(
            "Invalid parameter type for '{}{key}', expected: {expected}",
            self.prefix
        ))
    }
}

fn integer(text: &str) -> Option<i64> {
    let text = text.trim_ascii_start();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let number = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) if digits.starts_with('+') => return None,
        Some(digits) => i128::from(u64::from_str_radix(digits, 16).ok()?),
        None if digits.starts_with('+') => return None,
        None => i128::from(digits.parse::<u64>().ok()?),
    };
    i64::try_from(sign * number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(text: &str) -> Members {
        match ObjectText::parse(text) {
            Ok(ObjectText::Members(members)) => members,
            other => panic!("{other:?}"),
        }
    }

    fn refused(text: &str) -> String {
        ObjectText::parse(text).unwrap_err().text().to_owned()
    }

    #[test]
    fn lists_name_values_in_objects() {
        let mut list = members("kind,id=a,,b,limits.x=1,limits.y=0x10,on=yes,id=c,");
        assert_eq!(list.kind().unwrap(), "kind");
        assert_eq!(list.needed("id").unwrap(), "c");
        let mut limits = list.object("limits").unwrap().unwrap();
        assert_eq!(limits.integer("y").unwrap(), Some(16));
        assert_eq!(
            limits.finish().unwrap_err().text(),
            "Parameter 'limits.x' is unexpected"
        );
        assert_eq!(list.switch("on").unwrap(), Some(true));
        assert!(list.finish().is_ok());
    }

    #[test]
    fn values_in_json_are_of_the_type_that_they_are_to_have() {
        let mut json = members(r#"{"id":1,"n":"1","b":"on","o":[]}"#);
        for (why, expected) in [
            (
                json.text("id").unwrap_err(),
                "Invalid parameter type for 'id', expected: string",
            ),
            (
                json.integer("n").unwrap_err(),
                "Invalid parameter type for 'n', expected: integer",
            ),
            (
                json.switch("b").unwrap_err(),
                "Invalid parameter type for 'b', expected: boolean",
            ),
            (
                json.object("o").unwrap_err(),
                "Invalid parameter type for 'o', expected: object",
            ),
        ] {
            assert_eq!(why.text(), expected);
        }
    }

    #[test]
    fn lists_that_are_none_are_refused() {
        for (text, why) in [
            (",", "Invalid parameter ''"),
            ("kind,id", "Expected '=' after parameter 'id'"),
            ("kind,a..b=1", "Invalid parameter 'a..b'"),
            ("kind,a=1,a.b=1", "Parameters 'a.*' used inconsistently"),
            ("kind,a.b=1,a=1", "Parameters 'a.*' used inconsistently"),
        ] {
            assert_eq!(refused(text), why);
        }
        assert!(matches!(ObjectText::parse("kind,help"), Ok(ObjectText::Help(kind)) if kind == "kind"));
    }
}

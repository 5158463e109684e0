//! What a node is made of, as flat options: `file.driver` is the option `driver` of the node that is called `file`. A name of the
//! form `json:{...}` and the option lists of `--image-opts` both are written this way.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::json::{self, Json, Object};
use super::super::refusal::Refusal;
use super::super::{object, option_list};
use super::json_text;

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq)]
pub(in super::super) struct NodeOptions(BTreeMap<String, Value>);

impl NodeOptions {
    /// What `driver=qcow2,file.filename=disk` says. What comes first and is no pair refers to a node.
    pub(in super::super) fn of_image_opts(list: &str) -> Self {
        let mut options = Self::of_list(list);
        let first = option_list::parts(list).into_iter().next();
        if let Some(first) = first.filter(|first| !first.is_empty() && !first.contains('=')) {
            for (key, _) in option_list::pairs(&first.replace(',', ",,")) {
                options.take(&key);
            }
            options.set_default("file", &first);
        }
        options
    }

    /// Fails for a list whose ID is none.
    pub(in super::super) fn check_id(list: &str) -> Result<(), Refusal> {
        Self::of_list(list).text("id").map_or(Ok(()), object::check_id)
    }

    /// What the pairs of a list say.
    pub(in super::super) fn of_list(list: &str) -> Self {
        let pairs = option_list::pairs(list).into_iter();
        Self(pairs.map(|(key, value)| (key, Value::String(value))).collect())
    }

    /// What stands behind `json:` says.
    pub(in super::super) fn of_json(text: &str) -> Result<Self, Refusal> {
        let value = json_text::parse(text);
        match value.map_err(|refusal| refusal.after("Could not parse the JSON options: "))? {
            members @ Value::Object(_) => {
                let mut options = Self::default();
                options.flatten("", members);
                Ok(options)
            }
            _ => Err(Refusal::new("Invalid JSON object given")),
        }
    }

    fn flatten(&mut self, prefix: &str, value: Value) {
        let key = |name: &str| {
            if prefix.is_empty() {
                name.to_owned()
            } else {
                format!("{prefix}.{name}")
            }
        };
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    self.flatten(&key(&name), value);
                }
            }
            Value::Array(values) => {
                for (number, value) in values.into_iter().enumerate() {
                    self.flatten(&key(&number.to_string()), value);
                }
            }
            value => drop(self.0.insert(prefix.to_owned(), value)),
        }
    }

    /// Takes an option away and gives it as text. One that is null says nothing.
    pub(in super::super) fn take(&mut self, key: &str) -> Option<String> {
        self.take_value(key).map(|value| text_of(&value))
    }

    fn take_value(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key).filter(|value| !value.is_null())
    }

    /// Takes an option away that says something by being a text, and nothing otherwise.
    pub(in super::super) fn take_text(&mut self, key: &str) -> Option<String> {
        match self.0.remove(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Takes an option away if it is null.
    pub(in super::super) fn take_null(&mut self, key: &str) -> bool {
        let found = self.0.get(key).is_some_and(Value::is_null);
        if found {
            self.0.remove(key);
        }
        found
    }

    /// Takes an option away and gives it as text and as it was written.
    pub(in super::super) fn take_json(&mut self, key: &str) -> Option<(String, Json)> {
        let value = self.take_value(key)?;
        Some((text_of(&value), json_of(&value)))
    }

    /// An option that is a text.
    pub(in super::super) fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str()
    }

    /// Sets an option, whatever it was.
    pub(in super::super) fn set(&mut self, key: &str, value: &str) {
        self.0.insert(key.to_owned(), value.into());
    }

    /// Sets an option, unless it is set.
    pub(in super::super) fn set_default(&mut self, key: &str, value: &str) {
        self.0.entry(key.to_owned()).or_insert_with(|| value.into());
    }

    /// Takes the options of the node that is called `name` away.
    pub(in super::super) fn take_node(&mut self, name: &str) -> Self {
        let prefix = format!("{name}.");
        let keys: Vec<String> = self
            .0
            .keys()
            .filter(|key| key.starts_with(&prefix))
            .cloned()
            .collect();
        let entry = |key: String| Some((key[prefix.len()..].to_owned(), self.0.remove(&key)?));
        Self(keys.into_iter().filter_map(entry).collect())
    }

    /// Adds what `other` has and this has not.
    pub(in super::super) fn add(&mut self, other: Self) {
        for (key, value) in other.0 {
            self.0.entry(key).or_insert(value);
        }
    }

    /// Whether they say which file is meant.
    pub(in super::super) fn names_file(&self) -> bool {
        let is_name = |key: &String| key == "file" || key == "filename" || key.starts_with("file.");
        self.0.keys().any(is_name)
    }

    /// The names of all options.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(|key| &**key)
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first that is left, of those that QEMU would look at.
    pub(in super::super) fn first(&self) -> Option<&str> {
        self.keys().min_by_key(|key| json::bucket(key))
    }

    /// All that is left, as it was written.
    pub(in super::super) fn to_json(&self) -> Object {
        let mut object = Object::default();
        for (key, value) in &self.0 {
            insert(&mut object, key, json_of(value));
        }
        object
    }
}

/// Inserts at a place that is named with dots.
fn insert(object: &mut Object, key: &str, value: Json) {
    let Some((name, rest)) = key.split_once('.') else {
        object.insert(key, value);
        return;
    };
    let inner = object
        .members()
        .find(|member| member.0 == name)
        .map(|member| member.1.clone());
    let mut inner = match inner {
        Some(Json::Object(inner)) => inner,
        _ => Object::default(),
    };
    insert(&mut inner, rest, value);
    object.insert(name, inner);
}

fn json_of(value: &Value) -> Json {
    match value {
        Value::Bool(value) => Json::Bool(*value),
        Value::Number(number) => match number.as_i64() {
            Some(number) => Json::Number(number.into()),
            None => Json::Number(number.as_u64().unwrap_or_default().into()),
        },
        other => Json::Text(text_of(other)),
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "on".to_owned(),
        Value::Bool(false) => "off".to_owned(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_lists_become_dotted_keys() {
        let json = r#"{"driver":"qcow2","file":{"driver":"blkdebug","inject-error":[{"event":"read"}],"align":512}}"#;
        let mut options = NodeOptions::of_json(json).unwrap();
        let list = "driver=qcow2,file.driver=blkdebug,file.inject-error.0.event=read,file.align=512";
        let mut from_list = NodeOptions::of_list(list);
        for key in ["driver", "file.driver", "file.inject-error.0.event", "file.align"] {
            assert_eq!(options.clone().take(key), from_list.clone().take(key), "{key}");
        }
        let mut file = options.take_node("file");
        assert_eq!(file.take("driver").as_deref(), Some("blkdebug"));
        assert_eq!(options.first(), Some("driver"));
        assert_eq!(
            from_list.take_node("file").take_node("inject-error").first(),
            Some("0.event")
        );
    }

    #[test]
    fn single_quotes_are_quotes_too() {
        let mut options = NodeOptions::of_json(r#"{'driver':'a\'"b','x':true,'n':null}"#).unwrap();
        assert_eq!(options.take("driver").as_deref(), Some("a'\"b"));
        assert_eq!(options.take("x").as_deref(), Some("on"));
        assert_eq!(options.take("n"), None);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for (text, why) in [
            (
                "{\"a\":1",
                "Could not parse the JSON options: JSON parse error, premature EOI",
            ),
            ("[1]", "Invalid JSON object given"),
        ] {
            assert_eq!(NodeOptions::of_json(text).unwrap_err().text(), why);
        }
    }

    #[test]
    fn what_is_left_is_shown_as_it_was_written() {
        let options = NodeOptions::of_json(r#"{"size":"1M","driver":"null-co"}"#).unwrap();
        let mut outer = NodeOptions::of_list("driver=raw");
        outer.add(NodeOptions(
            options
                .0
                .into_iter()
                .map(|(key, value)| (format!("file.{key}"), value))
                .collect(),
        ));
        assert_eq!(
            Json::from(outer.to_json()).compact(),
            r#"{"driver": "raw", "file": {"driver": "null-co", "size": "1M"}}"#
        );
    }
}

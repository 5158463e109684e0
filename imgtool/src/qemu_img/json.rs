//! JSON in the order in which QEMU prints it, which scripts compare.
//!
//! # How it works
//!
//! QEMU keeps an object's members in a hash table of 512 buckets and prints it bucket by bucket, the newest member of a bucket first.
//! [`Object`] sorts its members by that number; the hash is a well-known one (tdb's).

use std::fmt::Write;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Json {
    Text(String),
    Number(i128),
    Bool(bool),
    List(Vec<Json>),
    Object(Object),
}

/// Members, newest first among those of a bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Object(Vec<(String, Json)>);

impl Object {
    /// Adds a member, or replaces it.
    pub(super) fn insert(&mut self, key: &str, value: impl Into<Json>) {
        let value = value.into();
        if let Some(member) = self.0.iter_mut().find(|member| member.0 == key) {
            member.1 = value;
            return;
        }
        let at = self.0.partition_point(|member| bucket(&member.0) < bucket(key));
        self.0.insert(at, (key.to_owned(), value));
    }

    /// The same, where there is a value.
    pub(super) fn insert_some(&mut self, key: &str, value: Option<impl Into<Json>>) {
        if let Some(value) = value {
            self.insert(key, value);
        }
    }

    /// Members in the order in which they are printed.
    pub(super) fn members(&self) -> impl Iterator<Item = (&str, &Json)> {
        self.0.iter().map(|(key, value)| (&**key, value))
    }
}

/// A text as far as QEMU's go: they end at the first NUL.
pub(super) fn c_text(text: &str) -> &str {
    text.split('\0').next().unwrap_or_default()
}

/// Where QEMU keeps a member of this name, and so how early it meets it.
pub(super) fn bucket(key: &str) -> u32 {
    let mut hash = 0x238F_13AF_u32.wrapping_mul(key.len() as u32);
    for (index, byte) in key.bytes().enumerate() {
        hash = hash.wrapping_add(u32::from(byte) << (index * 5 % 24));
    }
    hash.wrapping_mul(1_103_515_243).wrapping_add(12345) % 512
}

/// A value of the native commands. What it does not know here, null and fractions, nothing says there.
impl From<serde_json::Value> for Json {
    fn from(value: serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::String(text) => Self::Text(text),
            Value::Bool(value) => Self::Bool(value),
            Value::Number(number) => Self::Number(number.as_i128().unwrap_or_default()),
            Value::Array(values) => Self::List(values.into_iter().map(Self::from).collect()),
            Value::Object(members) => {
                let mut object = Object::default();
                for (key, value) in members {
                    object.insert(&key, value);
                }
                Self::Object(object)
            }
            Value::Null => Self::Text(String::new()),
        }
    }
}

impl Json {
    /// Over several lines, indented by four, with a line end.
    pub(super) fn pretty(&self) -> String {
        let mut text = String::new();
        self.write(&mut text, Some(0));
        text.push('\n');
        text
    }

    /// On one line.
    pub(super) fn compact(&self) -> String {
        let mut text = String::new();
        self.write(&mut text, None);
        text
    }

    fn write(&self, out: &mut String, depth: Option<usize>) {
        match self {
            Self::Text(text) => write_text(out, c_text(text)),
            // Writing to a string does not fail.
            Self::Number(number) => {
                let _ = write!(out, "{number}");
            }
            Self::Bool(value) => {
                let _ = write!(out, "{value}");
            }
            Self::List(values) => {
                let values = values.iter().map(|value| (None, value));
                write_all(out, depth, ['[', ']'], values);
            }
            Self::Object(object) => {
                let members = object.0.iter().map(|(key, value)| (Some(&**key), value));
                write_all(out, depth, ['{', '}'], members);
            }
        }
    }
}

fn write_all<'a>(
    out: &mut String,
    depth: Option<usize>,
    [open, close]: [char; 2],
    values: impl Iterator<Item = (Option<&'a str>, &'a Json)>,
) {
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', 4 * depth));
    };
    out.push(open);
    let mut first = true;
    for (key, value) in values {
        if !first {
            out.push_str(if depth.is_some() { "," } else { ", " });
        }
        first = false;
        if let Some(depth) = depth {
            line(out, depth + 1);
        }
        if let Some(key) = key {
            write_text(out, key);
            out.push_str(": ");
        }
        value.write(out, depth.map(|depth| depth + 1));
    }
    if let Some(depth) = depth {
        line(out, depth);
    }
    out.push(close);
}

/// Printable ASCII as it is, all else as escapes.
fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(char),
            _ => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    {
                        let _ = write!(out, "\\u{unit:04X}");
                    };
                }
            }
        }
    }
    out.push('"');
}

macro_rules! from {
    ($($type:ty => $value:ident $make:expr),+ $(,)?) => {$(
        impl From<$type> for Json {
            fn from($value: $type) -> Self {
                $make
            }
        }
    )+};
}

from! {
    &str => value Self::Text(value.to_owned()),
    String => value Self::Text(value),
    u64 => value Self::Number(value.into()),
    u32 => value Self::Number(value.into()),
    bool => value Self::Bool(value),
    Object => value Self::Object(value),
    Vec<Json> => value Self::List(value),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_in_the_order_of_their_buckets() {
        let mut check = Object::default();
        for key in [
            "filename",
            "format",
            "check-errors",
            "total-clusters",
            "image-end-offset",
        ] {
            check.insert(key, 1u64);
        }
        let keys: Vec<_> = check.members().map(|member| member.0).collect();
        assert_eq!(
            keys,
            [
                "image-end-offset",
                "total-clusters",
                "check-errors",
                "filename",
                "format"
            ]
        );
    }

    #[test]
    fn members_of_qcow2_images_come_in_the_order_that_qemu_prints() {
        let mut object = Object::default();
        let order = [
            "compat",
            "compression-type",
            "lazy-refcounts",
            "refcount-bits",
            "corrupt",
            "extended-l2",
        ];
        for key in order.iter().rev() {
            object.insert(key, true);
        }
        let keys: Vec<_> = object.members().map(|member| member.0).collect();
        assert_eq!(keys, order);
    }

    #[test]
    fn empty_lists_and_objects_take_two_lines() {
        let mut object = Object::default();
        object.insert("a", Vec::new());
        object.insert("b", "x\"\u{e9}");
        assert_eq!(
            Json::from(object.clone()).pretty(),
            "{\n    \"a\": [\n    ],\n    \"b\": \"x\\\"\\u00E9\"\n}\n"
        );
        assert_eq!(
            Json::from(object).compact(),
            "{\"a\": [], \"b\": \"x\\\"\\u00E9\"}"
        );
    }
}

//! XML, indented as it is written.

use std::fmt::Write as _;

use block::{Error, Result, escape};

/// A document under construction.
#[derive(Debug, Default)]
pub(super) struct Xml {
    text: String,
    open: Vec<&'static str>,
    /// The first thing that XML cannot hold, which is a fault of the whole.
    fault: Option<String>,
}

impl Xml {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// `<name attribute="value">`, and what `inside` adds, and its end.
    pub(super) fn element(
        &mut self,
        name: &'static str,
        attributes: &[(&str, &str)],
        inside: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.start(name, attributes);
        self.text.push_str(">\n");
        self.open.push(name);
        inside(self)?;
        self.open.pop();
        self.indent();
        let _ = writeln!(self.text, "</{name}>");
        Ok(())
    }

    /// `<name attribute="value"/>`
    pub(super) fn empty(&mut self, name: &'static str, attributes: &[(&str, &str)]) {
        self.start(name, attributes);
        self.text.push_str("/>\n");
    }

    /// `<name attribute="value">content</name>`
    pub(super) fn leaf(&mut self, name: &'static str, attributes: &[(&str, &str)], content: &str) {
        self.start(name, attributes);
        self.text.push('>');
        self.push_escaped(content);
        let _ = writeln!(self.text, "</{name}>");
    }

    /// The document.
    ///
    /// # Errors
    /// `InvalidInput` where a value has a character that XML has no way to write.
    pub(super) fn finish(self) -> Result<String> {
        match self.fault {
            None => Ok(self.text),
            Some(value) => {
                let message = format!("XML cannot hold the control characters of \"{}\"", escape(&value));
                Err(Error::invalid(message).with_hint("rename the file, or leave them out"))
            }
        }
    }

    fn start(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.indent();
        let _ = write!(self.text, "<{name}");
        for (name, value) in attributes {
            let _ = write!(self.text, " {name}=\"");
            self.push_escaped(value);
            self.text.push('"');
        }
    }

    fn indent(&mut self) {
        self.text.extend(self.open.iter().map(|_| "  "));
    }

    /// Line breaks and tabs too, which a reader would turn into spaces in an attribute.
    fn push_escaped(&mut self, value: &str) {
        for c in value.chars() {
            match c {
                '&' => self.text.push_str("&amp;"),
                '<' => self.text.push_str("&lt;"),
                '>' => self.text.push_str("&gt;"),
                '"' => self.text.push_str("&quot;"),
                '\t' | '\n' | '\r' => {
                    let _ = write!(self.text, "&#{};", u32::from(c));
                }
                // XML 1.0, production 2.
                '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => {
                    self.fault.get_or_insert_with(|| value.to_owned());
                }
                _ => self.text.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_is_escaped() {
        let mut xml = Xml::new();
        let inside = |xml: &mut Xml| {
            xml.leaf("b", &[], "grüße\n");
            xml.empty("c", &[]);
            Ok(())
        };
        xml.element("a", &[("x", "it's <&> \"y\"")], inside).unwrap();
        assert_eq!(
            xml.finish().unwrap(),
            "<a x=\"it's &lt;&amp;&gt; &quot;y&quot;\">\n  <b>grüße&#10;</b>\n  <c/>\n</a>\n"
        );
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let mut xml = Xml::new();
        xml.leaf("b", &[], "a\x1bb");
        assert!(xml.finish().unwrap_err().to_string().contains("a\\u{1b}b"));
    }
}

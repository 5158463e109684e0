//! JSON as QEMU reads it, and what it says of what is none: scripts compare that too.
//!
//! # How it works
//!
//! Strings may stand in single quotes, and no object says anything twice. A text is first cut into tokens up to the end of its value, which
//! is where as many brackets are closed as were opened, or the text ends; whatever cannot be cut is stray, and that is said before anything that is wrong
//! with how tokens follow each other. Behind the value there is nothing but blanks.

use std::str::Chars;

use serde_json::{Map, Number, Value};

use super::super::refusal::Refusal;

/// Brackets that are open at once, at most.
const MAX_DEPTH: usize = 1024;

/// The value that a text is.
pub(in super::super) fn parse(text: &str) -> Result<Value, Refusal> {
    let mut lexer = Lexer { text, at: 0 };
    let tokens = lexer.value()?;
    if tokens.is_empty() {
        return Err(Refusal::new("Expecting a JSON value"));
    }
    let value = Parser { tokens, next: 0 }.value()?;
    if lexer.rest().trim_start_matches(BLANKS).is_empty() {
        Ok(value)
    } else {
        Err(Refusal::new("Expecting at most one JSON value"))
    }
}

fn wrong(what: &str) -> Refusal {
    Refusal::new(format!("JSON parse error, {what}"))
}

const BLANKS: [char; 4] = [' ', '\t', '\r', '\n'];

/// A piece of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// A bracket, a comma or a colon.
    Mark(char),
    Word(&'a str),
    Number(&'a str),
    /// What is between the quotes.
    String(&'a str),
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// The tokens of one value, or of as much of it as shows that it is none.
    fn value(&mut self) -> Result<Vec<Token<'a>>, Refusal> {
        let mut tokens = Vec::new();
        // Square and curly brackets are counted by themselves.
        let mut open = [0usize; 2];
        while let Some(token) = self.token()? {
            tokens.push(token);
            let kind = usize::from(matches!(token, Token::Mark('{' | '}')));
            match token {
                Token::Mark('[' | '{') => open[kind] += 1,
                Token::Mark(']' | '}') if open[kind] == 0 => return Ok(tokens),
                Token::Mark(']' | '}') => open[kind] -= 1,
                _ => {}
            }
            if open == [0, 0] {
                return Ok(tokens);
            }
            if open[0] + open[1] > MAX_DEPTH {
                return Err(Refusal::new("JSON nesting depth limit exceeded"));
            }
        }
        Ok(tokens)
    }

    fn token(&mut self) -> Result<Option<Token<'a>>, Refusal> {
        let rest = self.rest().trim_start_matches(BLANKS);
        self.at = self.text.len() - rest.len();
        let Some(first) = rest.chars().next() else {
            return Ok(None);
        };
        let (token, len) = match first {
            '{' | '}' | '[' | ']' | ',' | ':' => (Token::Mark(first), 1),
            'a'..='z' => {
                let end = rest.find(|c: char| !c.is_ascii_lowercase());
                let word = &rest[..end.unwrap_or(rest.len())];
                (Token::Word(word), word.len())
            }
            '-' | '0'..='9' => {
                let number = &rest[..number(rest).map_err(|len| stray(&rest[..len]))?];
                (Token::Number(number), number.len())
            }
            '"' | '\'' => {
                let inner = &rest[1..string(rest, first).map_err(|len| stray(&rest[..len]))?];
                (Token::String(inner), inner.len() + 2)
            }
            other => return Err(stray(&rest[..other.len_utf8()])),
        };
        self.at += len;
        Ok(Some(token))
    }
}

fn stray(text: &str) -> Refusal {
    wrong(&format!("stray '{text}'"))
}

/// How long the number is that a text begins with, or the text up to what should not be there.
fn number(text: &str) -> Result<usize, usize> {
    let bytes = text.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let refuse = |at: usize| at + text[at..].chars().next().map_or(0, char::len_utf8);
    let digits = |mut at: usize| {
        if !is_digit(at) {
            return Err(refuse(at));
        }
        while is_digit(at) {
            at += 1;
        }
        Ok(at)
    };
    let start = usize::from(bytes[0] == b'-');
    let mut end = if bytes.get(start) == Some(&b'0') {
        if is_digit(start + 1) {
            return Err(refuse(start + 1));
        }
        start + 1
    } else {
        digits(start)?
    };
    if bytes.get(end) == Some(&b'.') {
        end = digits(end + 1)?;
    }
    if let Some(b'e' | b'E') = bytes.get(end) {
        let sign = matches!(bytes.get(end + 1), Some(b'+' | b'-'));
        end = digits(end + 1 + usize::from(sign))?;
    }
    Ok(end)
}

/// Where the string that a text begins with has its closing quote, or where what should not be there ends.
fn string(text: &str, quote: char) -> Result<usize, usize> {
    let mut chars = text.char_indices().skip(1);
    let mut escaped = false;
    for (at, char) in &mut chars {
        match char {
            '\0'..='\u{1f}' => return Err(at + 1),
            '\\' if !escaped => escaped = true,
            _ if escaped => escaped = false,
            _ if char == quote => return Ok(at),
            _ => {}
        }
    }
    Err(text.len())
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    next: usize,
}

impl<'a> Parser<'a> {
    fn take(&mut self) -> Result<Token<'a>, Refusal> {
        let token = self.tokens.get(self.next).copied();
        self.next += 1;
        token.ok_or_else(|| wrong("premature EOI"))
    }

    /// Takes the next token if it is this one.
    fn skip(&mut self, mark: char) -> bool {
        let found = self.tokens.get(self.next) == Some(&Token::Mark(mark));
        self.next += usize::from(found);
        found
    }

    /// A value with all that is in it. Those that are open are kept in a list, so that depth takes no stack.
    fn value(&mut self) -> Result<Value, Refusal> {
        let mut open: Vec<Open> = Vec::new();
        loop {
            let mut value = match self.take()? {
                Token::Mark('{') if !self.skip('}') => {
                    open.push(Open::Object(Map::new(), None));
                    continue;
                }
                Token::Mark('[') if !self.skip(']') => {
                    open.push(Open::List(Vec::new()));
                    continue;
                }
                Token::Mark('{') => Map::new().into(),
                Token::Mark('[') => Vec::<Value>::new().into(),
                token => scalar(token)?,
            };
            loop {
                let Some(mut last) = open.pop() else {
                    return Ok(value);
                };
                if !last.add(value, self)? {
                    open.push(last);
                    break;
                }
                value = last.into();
            }
        }
    }
}

/// An object, with the key whose value comes next, or a list that is not closed yet.
enum Open {
    Object(Map<String, Value>, Option<String>),
    List(Vec<Value>),
}

impl Open {
    /// Adds what comes next, and looks at what follows that. Gives whether it is closed now.
    fn add(&mut self, value: Value, parser: &mut Parser<'_>) -> Result<bool, Refusal> {
        let (end, what) = match self {
            Self::Object(members, key) => {
                let Some(key) = key.take() else {
                    let Value::String(text) = value else {
                        return Err(wrong("key is not a string in object"));
                    };
                    *key = Some(text);
                    return match parser.take()? {
                        Token::Mark(':') => Ok(false),
                        _ => Err(wrong("missing : in object pair")),
                    };
                };
                if members.insert(key, value).is_some() {
                    return Err(wrong("duplicate key"));
                }
                ('}', "dict")
            }
            Self::List(values) => {
                values.push(value);
                (']', "list")
            }
        };
        match parser.take()? {
            Token::Mark(mark) if mark == end => Ok(true),
            Token::Mark(',') => Ok(false),
            _ => Err(wrong(&format!("expected separator in {what}"))),
        }
    }
}

impl From<Open> for Value {
    fn from(open: Open) -> Self {
        match open {
            Open::Object(members, _) => members.into(),
            Open::List(values) => values.into(),
        }
    }
}

fn scalar(token: Token<'_>) -> Result<Value, Refusal> {
    match token {
        Token::String(inner) => Ok(Value::String(unescaped(inner)?)),
        Token::Number(text) => Ok(number_of(text)),
        Token::Word("true") => Ok(true.into()),
        Token::Word("false") => Ok(false.into()),
        Token::Word("null") => Ok(Value::Null),
        Token::Word(word) => Err(wrong(&format!("invalid keyword '{word}'"))),
        Token::Mark(_) => Err(wrong("expecting value")),
    }
}

/// A whole number where it fits into 64 bits, and as near to it as there is one with a fraction elsewhere.
fn number_of(text: &str) -> Value {
    let whole = text.parse::<i64>().map(Number::from);
    let whole = whole.or_else(|_| text.parse::<u64>().map(Number::from));
    let number = whole.ok().or_else(|| Number::from_f64(text.parse().ok()?));
    // What is beyond all of them is beyond every use.
    Value::Number(number.unwrap_or_else(|| u64::MAX.into()))
}

/// What a string means.
fn unescaped(inner: &str) -> Result<String, Refusal> {
    let mut text = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            text.push(char);
            continue;
        }
        text.push(match chars.next() {
            Some(same @ ('"' | '\'' | '\\' | '/')) => same,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => unicode(&mut chars)?,
            _ => return Err(wrong("invalid escape sequence in string")),
        });
    }
    Ok(text)
}

/// The character of `\u` and the digits that follow it, two times of both for one beyond the first 65536.
fn unicode(chars: &mut Chars<'_>) -> Result<char, Refusal> {
    let after = chars.as_str();
    let shown = || {
        // As far as the closing quote, which is none of the string's.
        let digits: String = after.chars().chain(['"']).take(4).collect();
        wrong(&format!("\\u{digits} is not a valid Unicode character"))
    };
    let unit = |text: &str| {
        let digits = text.get(..4)?;
        let all = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        u16::from_str_radix(digits, 16).ok().filter(|_| all)
    };
    let first = unit(after).ok_or_else(shown)?;
    let second = after[4..].strip_prefix("\\u").and_then(unit);
    let pair = std::iter::once(first).chain(second);
    let char = char::decode_utf16(pair).next().and_then(Result::ok);
    let char = char.filter(|char| !is_noncharacter(*char)).ok_or_else(shown)?;
    let taken = if char.len_utf16() == 2 { 10 } else { 4 };
    *chars = after[taken..].chars();
    Ok(char)
}

/// What Unicode promises to be no character ever.
fn is_noncharacter(char: char) -> bool {
    let code = u32::from(char);
    (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse(text).unwrap_err().text().to_owned()
    }

    #[test]
    fn values_are_those_of_json() {
        let text = r#" {"a":[1,-2,0.5,1e3,{"b":null},[],{}],"c":{"a":true,"d":"\u00e9\ud83d\ude00\n"}, "f":18446744073709551615}"#;
        assert_eq!(parse(text).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        assert_eq!(parse(r#"'a\'"b'"#).unwrap(), Value::from("a'\"b"));
        assert_eq!(parse(r#""a'b""#).unwrap(), Value::from("a'b"));
    }

    #[test]
    fn what_is_wrong_is_said_as_qemu_does() {
        for (text, why) in [
            ("", "Expecting a JSON value"),
            ("{} x", "Expecting at most one JSON value"),
            ("[1]]", "Expecting at most one JSON value"),
            ("[1", "JSON parse error, premature EOI"),
            ("{\"a\":}", "JSON parse error, expecting value"),
            ("}", "JSON parse error, expecting value"),
            ("{\"a\" 1}", "JSON parse error, missing : in object pair"),
            ("{\"a\":1 2}", "JSON parse error, expected separator in dict"),
            ("[1}", "JSON parse error, expected separator in list"),
            ("{\"a\":[1}", "JSON parse error, expected separator in list"),
            ("{1:1}", "JSON parse error, key is not a string in object"),
            ("{\"a\":1,\"a\":1}", "JSON parse error, duplicate key"),
            ("{a:1} x", "JSON parse error, invalid keyword 'a'"),
            ("{\"a\":,#}", "JSON parse error, stray '#'"),
            ("[1.x]", "JSON parse error, stray '1.x'"),
            ("[01]", "JSON parse error, stray '01'"),
            ("-", "JSON parse error, stray '-'"),
            ("[1e+", "JSON parse error, stray '1e+'"),
            ("\"a\\", "JSON parse error, stray '\"a\\'"),
            ("\"\\q\"", "JSON parse error, invalid escape sequence in string"),
            (
                "\"\\u1\"",
                "JSON parse error, \\u1\" is not a valid Unicode character",
            ),
            (
                "\"\\ud800x\"",
                "JSON parse error, \\ud800 is not a valid Unicode character",
            ),
        ] {
            assert_eq!(refused(text), why, "{text}");
        }
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(
            refused(&nested(MAX_DEPTH + 1)),
            "JSON nesting depth limit exceeded"
        );
    }

    #[test]
    fn no_text_is_too_odd() {
        let pieces = [
            "{", "}", "[", "]", ":", ",", "\"", "'", "\\", "\\u", "d83d", "-", "0", ".", "e", "\u{e9}",
        ];
        let count = pieces.len();
        for number in 0..count.pow(4) {
            let text: String = (0..4).map(|at| pieces[number / count.pow(at) % count]).collect();
            let _ = parse(&text);
        }
    }
}

//! Text in records: read without a copy of it, and checked where it is a name.

use std::{borrow::Cow, fmt, ops::Deref};

use serde::{Deserialize, Deserializer, Serialize, de};

/// Text that is the writer's own, or lent by the record that it was read from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Text<'a>(Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&str>::deserialize(deserializer).map(Self::from)
    }
}

/// `text`, which may be anything, for a terminal: its first `chars_max` characters, and escaped what a terminal would take for
/// a command or for another direction.
pub fn printable(text: &str, chars_max: usize) -> String {
    let is_command = |char: char| {
        char.is_control()
            || matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let (mut printable, mut chars) = (String::new(), text.chars());
    for char in chars.by_ref().take(chars_max) {
        match is_command(char) {
            true => printable.extend(char.escape_default()),
            false => printable.push(char),
        }
    }
    if chars.next().is_some() {
        printable.push('…');
    }
    printable
}

/// Reads a `T` by `parse`. `expected` completes "expected …" where there is no text.
pub(crate) fn deserialize<'de, D: Deserializer<'de>, T, E: fmt::Display>(
    deserializer: D,
    expected: &'static str,
    parse: fn(&str) -> Result<T, E>,
) -> Result<T, D::Error> {
    deserializer.deserialize_str(Parser { expected, parse })
}

struct Parser<T, E> {
    expected: &'static str,
    parse: fn(&str) -> Result<T, E>,
}

impl<T, E: fmt::Display> de::Visitor<'_> for Parser<T, E> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<R: de::Error>(self, text: &str) -> Result<T, R> {
        (self.parse)(text).map_err(R::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_letters_of_any_language_stay() {
        assert_eq!(printable("Grüße, 世界 \\ \"x\"", 100), "Grüße, 世界 \\ \"x\"");
        let commands = "a\x1b[2J\r\n\u{9b}2J\u{202e}b";
        assert_eq!(printable(commands, 100), r"a\u{1b}[2J\r\n\u{9b}2J\u{202e}b");
        assert_eq!(printable("日本語", 2), "日本…");
    }

    proptest! {
        #[test]
        fn whatever_is_printable_stays_so(text in any::<String>(), chars_max in 0_usize..50) {
            let once = printable(&text, chars_max);
            prop_assert!(!once.chars().any(char::is_control));
            prop_assert_eq!(printable(&once, once.len()), once);
        }
    }
}

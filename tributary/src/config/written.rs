//! Settings as they are written in the environment and on the command line, where nothing tells text from a number.

use figment::{
    Metadata, Profile, Provider,
    util::nest,
    value::{Dict, Map, Value},
};

/// What begins the names of settings that are text, however it looks: a password may be `0042`.
const TEXTS: [&str; 3] = ["topics.kafka.", "topics.instance", "sink.options."];

/// The value of the setting `key` that is written as `text` in the environment or on the command line.
pub(super) fn value_of(key: &str, text: &str) -> Value {
    let value: Value = text.parse().expect("any text is a value");
    let is_text = TEXTS.iter().any(|texts| key.starts_with(texts));
    match value.as_str() {
        None if is_text => Value::from(text),
        _ => value,
    }
}

/// A setting of the environment.
pub(super) struct Written<'a> {
    pub(super) key: &'a str,
    pub(super) text: &'a str,
    pub(super) from: Metadata,
}

impl Provider for Written<'_> {
    fn metadata(&self) -> Metadata {
        self.from.clone()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let nested = nest(self.key, value_of(self.key, self.text));
        let settings = nested.into_dict().expect("a setting has a name");
        Ok(Profile::default().collect(settings))
    }
}

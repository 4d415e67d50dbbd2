//! What a producer writes: a JSON object.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use crate::text::printable;

/// An error repeats so much of what the producer wrote, which may be a whole text.
const PROBLEM_CHARS_MAX: usize = 400;

/// A job as its producer wrote it. Nothing in it is checked but its shape: names become checked types at admission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Job<'a> {
    /// The producer's name for the job, 1 to 256 bytes; it may repeat. The CloudEvents header `ce_id` stands in for it.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub id: Option<Cow<'a, str>>,
    /// Whose job it is. It may be left out on a tenant's own topic, whose name says it.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Cow<'a, str>>,
    /// The model to run, by the name that the configuration gives it.
    #[serde(borrow)]
    pub model: Cow<'a, str>,
    /// The text to run it on.
    #[serde(borrow)]
    pub input: Cow<'a, str>,
    /// The second text, for a model that compares two.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub text_pair: Option<Cow<'a, str>>,
    /// How urgent the job is among the jobs of its tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// When the answer stops being of use: a time in RFC 3339, such as `2026-11-24T12:00:00Z`.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Cow<'a, str>>,
    /// Anything that the tenant wants to find again beside the result and on the bill.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// How urgent a job is among the jobs of its tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// After the others.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Before the others.
    High,
}

impl Priority {
    /// All of them, the least urgent first.
    pub const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::High];
}

/// Why bytes are no job: what is wrong, in printable characters and few of them, and at which line and column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotAJob(String);

impl From<serde_json::Error> for NotAJob {
    fn from(error: serde_json::Error) -> Self {
        let place = format!(" at line {} column {}", error.line(), error.column());
        let whole = error.to_string();
        let (problem, place) = match whole.strip_suffix(&place) {
            Some(problem) => (problem, place.as_str()),
            None => (whole.as_str(), ""),
        };
        Self(printable(problem, PROBLEM_CHARS_MAX) + place)
    }
}

impl<'a> Job<'a> {
    /// Reads a job from the value of a record.
    ///
    /// # Errors
    /// What is wrong and at which line and column: broken JSON, invalid UTF-8, a missing, repeated, unknown or wrongly
    /// typed field.
    pub fn decode(value: &'a [u8]) -> Result<Self, NotAJob> {
        // Serde would take an array for the fields in their order, which is none that producers know.
        if value.trim_ascii_start().starts_with(b"[") {
            let told = "a job is a JSON object, and this is an array: send each job by itself";
            return Err(NotAJob(told.to_owned()));
        }
        Ok(serde_json::from_slice(value)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_committed_json_schema_of_a_job_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/job.schema.json");
        let current = schemars::schema_for!(Job).to_value();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, format!("{current:#}\n")).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        // In which order its fields stand depends on which crates are built along with `serde_json`.
        let committed: serde_json::Value = serde_json::from_str(&committed).unwrap_or_default();
        assert_eq!(
            committed, current,
            "run the test with UPDATE_GOLDEN=1 to write {path}"
        );
    }

    #[test]
    fn each_mistake_in_a_job_is_named_with_its_position() {
        let deep = format!("{}{}", r#"{"model":"m","input":"#, "[".repeat(5_000));
        for (value, complaint) in [
            (r#"{"model":"m","input":"a"#, "EOF while parsing a string"),
            (r#"{"model":"m"}"#, "missing field `input`"),
            (r#"{"model":"m","input":7}"#, "invalid type: integer `7`"),
            (
                r#"{"model":"m","input":"a","input":"b"}"#,
                "duplicate field `input`",
            ),
            (r#"{"model":"m","imput":"a"}"#, "unknown field `imput`"),
            (
                r#"{"model":"m","input":"\ud800"}"#,
                "unexpected end of hex escape",
            ),
            (r#"{"model":"m","input":"a"} x"#, "trailing characters"),
            (
                r#"{"model":"m","input":"a","labels":{"k":1}}"#,
                "invalid type: integer `1`",
            ),
            ("", "EOF while parsing a value"),
            (deep.as_str(), "invalid type: sequence"),
        ] {
            let error = Job::decode(value.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(complaint), "`{value:.60}`: {error}");
            assert!(error.contains("at line 1 column"), "`{value:.60}`: {error}");
        }
        let error = Job::decode(b"{\"model\":\"m\",\"input\":\"\xff\"}").unwrap_err();
        assert!(
            error.to_string().contains("invalid unicode code point"),
            "{error}"
        );
    }

    #[test]
    fn an_array_of_what_a_jobs_fields_might_be_is_no_job() {
        let fields = r#"["id","acme","minilm","Where is my parcel?"]"#;
        for value in [fields, " \n[1,2]", "[", "[{\"model\":\"m\",\"input\":\"a\"}]"] {
            let error = Job::decode(value.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("a job is a JSON object"), "`{value}`: {error}");
        }
    }

    #[test]
    fn a_mistake_repeats_little_of_what_was_written_and_nothing_that_a_terminal_obeys() {
        let long = "x".repeat(1 << 20);
        let text_for_table = format!(r#"{{"model":"m","input":"a","labels":"\u001b[2J{long}"}}"#);
        let unknown_field = format!(r#"{{"model":"m","\u001b[2J{long}":"a"}}"#);
        for value in [text_for_table, unknown_field] {
            let error = Job::decode(value.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(r"\u{1b}[2Jxxx"), "{error}");
            assert!(error.contains("… at line 1 column 10"), "{error}");
            assert!(error.len() < 500, "{} bytes", error.len());
        }
    }

    #[test]
    fn a_nul_and_an_escape_in_a_text_are_kept() {
        let job = Job::decode(br#"{"model":"m","input":"a\u0000b\n\"c\""}"#).unwrap();
        assert_eq!(job.input, "a\0b\n\"c\"");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_job_or_an_error_but_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Job::decode(&bytes);
        }

        #[test]
        fn a_job_survives_its_encoding(id in any::<String>(), input in any::<String>(), value in any::<String>()) {
            let job = Job {
                id: Some(id.into()),
                tenant: None,
                model: "m".into(),
                input: input.into(),
                text_pair: None,
                priority: Some(Priority::High),
                deadline: None,
                labels: BTreeMap::from([("k".to_owned(), value)]),
            };
            let bytes = serde_json::to_vec(&job).unwrap();
            prop_assert_eq!(Job::decode(&bytes).unwrap(), job);
        }
    }
}

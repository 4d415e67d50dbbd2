//! Checked names: what a record claims becomes one of these, or it reaches no path, no topic and no bill.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::Text;

/// A name that breaks its rule, with the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} `{}` is not a valid name: it must {rule}", .name.escape_default())]
pub struct InvalidName {
    /// What the name was meant for, such as `tenant`.
    pub kind: &'static str,
    /// The name as it came, shortened to 100 characters.
    pub name: String,
    /// What a valid name looks like, as a phrase after "it must".
    pub rule: &'static str,
}

impl InvalidName {
    pub(crate) fn new(kind: &'static str, name: &str, rule: &'static str) -> Self {
        Self {
            kind,
            name: name.chars().take(100).collect(),
            rule,
        }
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $valid:ident, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks `name` against the rule of this type.
            ///
            /// # Errors
            /// [`InvalidName`], which states the rule.
            pub fn new(name: &str) -> Result<Self, InvalidName> {
                if $valid(name) { Ok(Self(name.into())) } else { Err(InvalidName::new($kind, name, $rule)) }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                crate::text::deserialize(deserializer, concat!("the name of a ", $kind), Self::new)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($type), &*self.0)
            }
        }
    };
}
pub(crate) use name;

name!(
    /// Whose job it is. What is allowed is narrow on purpose: a tenant is part of topic names and of directory names
    /// `tenant=<t>`, which Polars and pyarrow would read as a number were `007` allowed, and DuckDB as nobody were `null`.
    Tenant,
    "tenant",
    is_tenant,
    "match [a-z][a-z0-9-]{0,62} and be no word for a value, such as `null` or `true`"
);

name!(
    /// A set of processors that serve the same tenants. `shared` is the common one.
    Pool,
    "pool",
    is_slug,
    "match [a-z][a-z0-9-]{0,62}"
);

name!(
    /// What a job calls the model that it wants; the configuration says where that model comes from.
    ModelName,
    "model",
    is_model_name,
    "match [a-z0-9][a-z0-9._-]{0,62}"
);

/// The producer's own name for a job. It may repeat: a job is identified by its origin. Every job has another, so that a
/// record lends it rather than have it copied.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct JobId<'a>(Text<'a>);

const UNCLAIMED: &str = "unclaimed";

impl Tenant {
    /// The reserved tenant that owns the outcomes of jobs whose claimed tenant is not known.
    pub fn unclaimed() -> Self {
        Self(UNCLAIMED.into())
    }

    /// Whether this is the reserved tenant.
    pub fn is_unclaimed(&self) -> bool {
        self.as_str() == UNCLAIMED
    }
}

impl Default for Pool {
    /// `shared`, the common pool.
    fn default() -> Self {
        Self("shared".into())
    }
}

impl<'a> JobId<'a> {
    /// Checks `id` against the rule of this type.
    ///
    /// # Errors
    /// [`InvalidName`], which states the rule.
    pub fn new(id: impl Into<Text<'a>>) -> Result<Self, InvalidName> {
        let id = id.into();
        if (1..=JOB_ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control) {
            return Ok(Self(id));
        }
        Err(InvalidName::new(
            "job id",
            &id,
            "have 1 to 256 bytes and no control characters",
        ))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads an id that outlives its record.
    pub(crate) fn deserialize_own<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::text::deserialize(deserializer, "a job id", |id| Self::new(id.to_owned()))
    }

    /// The nearest valid id, for the outcome that says that `claimed` was not one: control characters become `\u{fffd}`,
    /// the end is cut, and an empty id becomes `-`.
    pub fn nearest(claimed: &str) -> Self {
        let mut id = String::new();
        for c in claimed.chars().map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        }) {
            if id.len() + c.len_utf8() > JOB_ID_BYTES_MAX {
                break;
            }
            id.push(c);
        }
        if id.is_empty() {
            id.push('-');
        }
        Self(id.into())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for JobId<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Text::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl fmt::Display for JobId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for JobId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobId({:?})", self.0)
    }
}

const JOB_ID_BYTES_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 63;

fn is_slug(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// What readers of a lake take for null, a boolean, a number or a date, some only where they see no other tenant.
const VALUES: [&str; 7] = ["null", "true", "false", "nan", "inf", "infinity", "epoch"];

fn is_tenant(name: &str) -> bool {
    is_slug(name) && !VALUES.contains(&name)
}

fn is_model_name(name: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= NAME_BYTES_MAX
        && name.bytes().next().is_some_and(alphanumeric)
        && name
            .bytes()
            .all(|b| alphanumeric(b) || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tenant_cannot_be_a_path_a_value_or_a_look_alike() {
        let long = "a".repeat(64);
        for name in [
            "",
            "../acme",
            "..",
            "a/b",
            "%2F",
            "007",
            "Acme",
            "acme ",
            " acme",
            "acme\0",
            "аcme",
            "acme.x",
            "-acme",
            "tenant=a",
            "acme\n",
            "null",
            "true",
            "inf",
            long.as_str(),
        ] {
            assert!(Tenant::new(name).is_err(), "`{name}` was taken for a tenant");
        }
        for name in ["a", "acme", "acme-2", "null-island", &"a".repeat(63)] {
            assert!(Tenant::new(name).is_ok(), "`{name}` was refused");
        }
    }

    #[test]
    fn a_refused_name_says_the_rule() {
        let refused = Tenant::new("Acme\n").unwrap_err();
        assert_eq!(
            refused.to_string(),
            r"tenant `Acme\n` is not a valid name: it must match [a-z][a-z0-9-]{0,62} and be no word for a value, such as `null` or `true`"
        );
    }

    #[test]
    fn a_name_is_checked_when_it_is_deserialised_too() {
        assert!(serde_json::from_str::<Tenant>(r#""acme""#).is_ok());
        assert!(serde_json::from_str::<Tenant>(r#""../acme""#).is_err());
    }

    proptest! {
        #[test]
        fn the_nearest_job_id_is_always_valid_and_leaves_a_valid_one_alone(claimed in any::<String>()) {
            let nearest = JobId::nearest(&claimed);
            prop_assert!(JobId::new(nearest.as_str()).is_ok());
            if let Ok(id) = JobId::new(claimed.as_str()) {
                prop_assert_eq!(nearest, id);
            }
        }
    }
}

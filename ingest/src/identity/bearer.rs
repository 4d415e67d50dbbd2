//! A token as it travels: in the header `authorization` of a request, and of the records that come of it.

use std::fmt;

use topics::{Header, Record};

use super::Refusal;

const HEADER: &str = "authorization";
const SCHEME: &str = "Bearer ";
/// What servers take for a header, as a rule.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Whoever has it may send jobs as its tenant, so it is never shown, and leaves a topic of jobs for no other.
#[derive(Clone, PartialEq, Eq)]
pub struct Bearer(String);

impl Bearer {
    /// The token itself, without white space around it.
    ///
    /// # Errors
    /// Where it is empty, has more than 8 KiB, or characters that no token has.
    pub fn new(token: &str) -> Result<Self, Refusal> {
        let token = token.trim();
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::TooLong);
        }
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Refusal::NotBearer);
        }
        Ok(Self(format!("{SCHEME}{token}")))
    }

    /// The one among the values of a request's headers `authorization`.
    ///
    /// # Errors
    /// Where there is none, or more than one, or it is not `Bearer` and a token.
    pub fn among<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Result<Self, Refusal> {
        let value = values.next().ok_or(Refusal::Missing)?;
        if values.next().is_some() {
            return Err(Refusal::Repeated);
        }
        let value = std::str::from_utf8(value).map_err(|_| Refusal::NotBearer)?;
        match value.split_at_checked(SCHEME.len()) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(SCHEME) => Self::new(token),
            _ => Err(Refusal::NotBearer),
        }
    }

    /// The one in the headers of `record`.
    ///
    /// # Errors
    /// As of [`Bearer::among`].
    pub fn of(record: &Record) -> Result<Self, Refusal> {
        let headers = record.headers.iter().filter(|header| carries_token(header));
        Self::among(headers.map(|header| header.value.as_deref().unwrap_or_default()))
    }

    /// The value of the header: `Bearer`, a space, the token.
    pub fn header_value(&self) -> &str {
        &self.0
    }

    pub(crate) fn header(&self) -> Header {
        Header::text(HEADER, &self.0)
    }

    pub(super) fn token(&self) -> &str {
        &self.0[SCHEME.len()..]
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer(hidden)")
    }
}

/// `record` as others may see it: without a token.
pub(crate) fn without_token(record: &Record) -> Record {
    let mut shown = record.clone();
    shown.headers.retain(|header| !carries_token(header));
    shown
}

/// Clients write it in either case, as in HTTP.
fn carries_token(header: &Header) -> bool {
    header.name.eq_ignore_ascii_case(HEADER)
}

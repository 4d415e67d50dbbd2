//! The keys that tokens are checked with, followed while services run.

use std::sync::Arc;

use ingest::identity::{Config, Identity, Keys};
use schemas::Operation;

use crate::{
    audit::Auditor,
    followed_file::{FollowedValue, Subject},
    metric_names,
};

/// Who can prove who he is, by the keys in the file, where a token is demanded. A key that is taken out of it is good for
/// about two looks more.
///
/// # Errors
/// Where the file cannot be read or holds no keys.
pub(crate) fn follow(config: &Config, auditor: Auditor) -> anyhow::Result<FollowedValue<Identity>> {
    let Some(path) = config.check().map_err(anyhow::Error::msg)? else {
        return Ok(nobody());
    };
    let of = config.clone();
    let read = move |text: &str| {
        let keys = Keys::read(text).map_err(|problem| problem.to_string())?;
        let detail = format!("{} keys", keys.count());
        Ok((Arc::new(Identity::new(&of, keys)), detail))
    };
    let subject = Subject {
        file: "key file of identity.keys",
        values: "keys",
        operation: Operation::TakeKeys,
        metric: metric_names::KEY_SETS,
        read: Box::new(read),
    };
    FollowedValue::open(subject, path, auditor)
}

/// No token is demanded.
pub(crate) fn nobody() -> FollowedValue<Identity> {
    FollowedValue::fixed(Arc::new(Identity::nowhere()))
}

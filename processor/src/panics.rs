//! A panic inside a model is the failure of the texts that it was given, and not the end of the process.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `work` comes to, or what it says when it panics.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let message = panic.downcast_ref::<&str>().map(ToString::to_string);
        let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
        format!("it panicked: {}", message.unwrap_or_default())
    })
}

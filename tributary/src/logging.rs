//! Structured logs: for people on a terminal, JSON otherwise.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{LogFormat, LogSection};

/// Starts logging to standard error. `quiet` leaves out what is below a warning unless the filter was changed, for
/// commands that show their own progress.
pub(crate) fn start(section: &LogSection, quiet: bool) -> anyhow::Result<()> {
    let filter = if quiet && section.filter == "info" {
        "warn,ingest=error"
    } else {
        &section.filter
    };
    let filter = EnvFilter::try_new(filter).with_context(|| format!("setting `log.filter`: `{filter}`"))?;
    let human = match section.format {
        LogFormat::Human => true,
        LogFormat::Json => false,
        LogFormat::Auto => quiet || std::io::stderr().is_terminal(),
    };
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if human {
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    } else {
        builder.json().flatten_event(true).init();
    }
    Ok(())
}

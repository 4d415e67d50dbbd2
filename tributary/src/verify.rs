//! `tributary verify`: what the lake's files prove.

use std::process::ExitCode;

use schemas::Action;

use crate::{
    access,
    cli::{VerifyArgs, print},
    config::Config,
};

/// Verifies the lake and prints the report.
pub(crate) async fn run(config: &Config, args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    access::permit(config, Action::VerifyLake)?;
    let url = args.lake.as_ref().unwrap_or(&config.sink.url);
    let depth = if args.data {
        sink::Depth::Rows
    } else {
        sink::Depth::Footers
    };
    let report = sink::verify(url, &config.sink.options, depth).await?;
    print(&report.to_string())?;
    Ok(if report.is_sound() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

//! `tributary policy`: the access policies in force, whether a file of them is good, and what they answer.

mod test_file;

use std::{path::Path, process::ExitCode};

use anyhow::{Context, anyhow};
use authority::{AccessPolicies, DEFAULT, SCHEMA};

use crate::{
    access,
    cli::{PolicyCommand, print},
    config::{self, Config},
};

/// Shows, checks or tests.
pub(crate) fn run(config: &Config, command: &PolicyCommand) -> anyhow::Result<ExitCode> {
    let in_force = config.authority.policies.as_deref();
    match command {
        PolicyCommand::Show { schema: true } => print(SCHEMA.trim_end())?,
        PolicyCommand::Show { schema: false } => match in_force {
            Some(path) => print(config::read("policy file", path)?.trim_end())?,
            None => print(DEFAULT.trim_end())?,
        },
        PolicyCommand::Check { file } => {
            let policies = access::read(file.as_deref().or(in_force))?;
            print(&format!("{} policies, all as the schema says", policies.count()))?;
        }
        PolicyCommand::Test { tests, policies } => {
            let policies = access::read(policies.as_deref().or(in_force))?;
            return test(&policies, tests);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn test(policies: &AccessPolicies, path: &Path) -> anyhow::Result<ExitCode> {
    let text = config::read("test file", path)?;
    let cases = test_file::read(&text)
        .map_err(|problem| anyhow!(problem))
        .with_context(|| format!("test file `{}`", path.display()))?;
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| Some(format!("{}:{}", path.display(), case.failure(policies)?)))
        .collect();
    failures.iter().try_for_each(|failure| print(failure))?;
    print(&format!("{} cases, {} failed", cases.len(), failures.len()))?;
    Ok(match failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

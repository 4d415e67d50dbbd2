//! The one binary of Tributary: reads the configuration, and runs the chosen services together or alone.

mod access;
mod audit;
mod cli;
mod config;
mod dead_letters;
mod demo;
mod file_watch;
mod followed_file;
mod health;
mod http;
mod identity;
mod logging;
mod metric_names;
mod pipeline;
mod policy;
mod process;
mod renewed;
mod shutdown;
mod simulate;
mod sole;
mod submit;
mod supervise;
mod tenants;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::{
    cli::{Cli, Command},
    config::{Config, Example},
    pipeline::Stage,
};

fn main() -> ExitCode {
    process::settle();
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            cli::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let example = match cli.command {
        Command::Demo(_) => Example::Always,
        Command::Up => Example::WhereNoTenant,
        _ => Example::Never,
    };
    let config = Config::load(&cli.sources, example)?;
    logging::start(&config.log, matches!(cli.command, Command::Demo(_)))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match cli.command {
            Command::Demo(args) => demo::run(config, args).await,
            Command::Up => pipeline::serve(config, &[Stage::Ingest, Stage::Processor, Stage::Sink]).await,
            Command::Ingest => pipeline::serve(config, &[Stage::Ingest]).await,
            Command::Processor => pipeline::serve(config, &[Stage::Processor]).await,
            Command::Sink => pipeline::serve(config, &[Stage::Sink]).await,
            Command::Submit(args) => submit::run(&config, args).await,
            Command::Verify(args) => return verify::run(&config, &args).await,
            Command::Audit(command) => return audit::run(&config, &command).await,
            Command::Policy(command) => return policy::run(&config, &command),
            Command::DeadLetters(command) => dead_letters::run(&config, &command).await,
            Command::Tenants(command) => tenants::run(&config, &command).await,
            Command::Simulate(args) => simulate::run(&config, &args).await,
            Command::Config => cli::print(&config.to_toml()?),
            Command::Health(args) => health::ask(&args.url),
            Command::Completions { shell } => {
                // Not to standard output itself: where its reader has gone away, this would panic.
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "tributary", &mut script);
                cli::print(String::from_utf8(script)?.trim_end())
            }
        }?;
        Ok(ExitCode::SUCCESS)
    })
}

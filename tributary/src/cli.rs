//! What a user types, and how answers are printed.

use std::{io::Write, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use schemas::{Digest, Tenant};

use crate::config::Sources;

/// Multi-tenant batch inference: jobs from Kafka, a model in process, results and bills as plain Parquet.
///
/// Start with `tributary demo`. Then `tributary up` runs the whole pipeline in one process, with an HTTP door; and
/// `ingest`, `processor` and `sink` run one service each, on Kafka and an object store.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) sources: Sources,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the jobs of three tenants through the whole pipeline, and say what came of them
    Demo(DemoArgs),
    /// Run the whole pipeline in this process: local topics, and jobs over HTTP
    ///
    /// Jobs are taken at POST /v1/jobs, a JSON object a line, and each line is answered:
    ///
    ///   curl --data-binary @jobs.jsonl http://127.0.0.1:8080/v1/jobs
    #[command(verbatim_doc_comment)]
    Up,
    /// Run ingest: decide which jobs may run
    Ingest,
    /// Run a processor: turn admitted jobs into outcomes on a device
    Processor,
    /// Run a sink: write outcomes as Parquet
    Sink,
    /// Send a file of jobs, one a line, to Kafka, or to a running `up` or `ingest`
    Submit(SubmitArgs),
    /// Prove from the files of the lake alone: no gap, no overlap, and with --data no duplicate
    ///
    /// Exits with 1 where an offence was found, and names it, or where no sink has written.
    Verify(VerifyArgs),
    /// Prove that the audit in the lake is the one that was written
    #[command(subcommand)]
    Audit(AuditCommand),
    /// List, show or replay the records that could not be decoded
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Plan, apply or show who the tenants are and what each may do
    ///
    /// Tenants stand in one of three places: in the configuration itself (`[tenants.acme]`), fixed while services run; in
    /// the file of `tenants_path`, which is read again when it changes; or, where the configuration has neither, on a topic
    /// that all instances follow, which `apply` writes to.
    #[command(subcommand)]
    Tenants(TenantsCommand),
    /// Show, check or test the access policies: who may do what
    ///
    /// Policies are written in Cedar (docs.cedarpolicy.com). Those in force stand in the file of
    /// `authority.policies`, or are built in.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Replay the jobs of a lake under other tenants, and say what each tenant would have waited and paid, and what would have
    /// been rejected
    ///
    /// The jobs come when they came, and each takes the device for as long as it did. What decides about them is what does in
    /// the services, by the weights, rates, limits of concurrent work, budgets and queue limits of the set in force, and by
    /// those of the file. Prices are those of this configuration. Tenants of other pools than `processor.pool` are left out.
    ///
    /// What the lake does not tell is not replayed: jobs that were rejected then, since nobody knows how long they were;
    /// priorities, so that the jobs of a tenant go in their order; and which jobs ingest read together, so that those of a
    /// tenant and a millisecond share records of work, and how many a full queue rejects is roughly told.
    Simulate(SimulateArgs),
    /// Print the configuration in force, secrets hidden
    Config,
    /// Ask a running service for its health; exits with 1 unless it is well
    Health(HealthArgs),
    /// Print shell completions
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Jobs of your own, one JSON object a line, of the tenants acme, globex and initech
    #[arg(long, value_name = "FILE")]
    pub(crate) jobs: Option<PathBuf>,
    /// The folder of the lake; a second run adds to it
    #[arg(long, value_name = "DIR", default_value = "lake")]
    pub(crate) lake: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// The file of jobs, one JSON object a line; `-` for standard input
    #[arg(value_name = "FILE")]
    pub(crate) jobs: PathBuf,
    /// Where a running `up` or `ingest` listens; left out: Kafka where topics.kind says so, otherwise http.listen
    #[arg(long, value_name = "URL")]
    pub(crate) to: Option<String>,
    /// A file with the token to send along, where one is demanded: one JWT, and nothing else
    #[arg(long, value_name = "FILE")]
    pub(crate) token: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The lake: a folder or a URL; left out: sink.url
    #[arg(value_name = "LAKE")]
    pub(crate) lake: Option<String>,
    /// Read the rows too, not only the files' footers: duplicates, the join of results and costs, sums of device time
    #[arg(long)]
    pub(crate) data: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Follow the chain of its rows: none was changed, taken out, put in or moved, and no file is another
    ///
    /// Exits with 1 where something was, and names it. Prints the head of each chain: whoever takes off the newest ranges
    /// whole leaves a shorter chain that is sound. Note the head where nobody who writes to the lake may write, and give it
    /// the next time with --noted.
    Verify {
        /// The lake: a folder or a URL; left out: sink.url
        #[arg(value_name = "LAKE")]
        lake: Option<String>,
        /// A head that was noted, which the chain must still pass through; may be given again
        #[arg(long, value_name = "HEAD")]
        noted: Vec<Digest>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// List them: offset, where each stood, and why it could not be decoded
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show one: its coordinates, headers and bytes
    Show {
        /// Its offset, as `list` prints it
        offset: i64,
        /// Write its value to standard output as it is, and nothing else
        #[arg(long)]
        raw: bool,
    },
    /// Put some back to the topic of jobs that they came from, each at most once
    ///
    /// That and the note that it was done are one commit, so that a command that is given twice, or killed in the middle,
    /// does nothing twice. Useful after an upgrade that reads what an older one could not.
    Replay {
        /// Their offsets, as `list` prints them
        #[arg(required_unless_present = "all")]
        offsets: Vec<i64>,
        /// All that were not replayed yet
        #[arg(long, conflicts_with = "offsets")]
        all: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TenantsCommand {
    /// Say what applying a tenants file would do, and do nothing
    ///
    /// The file has a table a tenant, `[tenants.acme]`, as the configuration may have them. Exits with 1 where the file has
    /// a mistake, or changes what must not change while jobs are under way.
    Plan {
        /// The tenants file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Put the tenants of a file in force, all at once: for services on Kafka that have no tenants configured
    ///
    /// Makes the topics that are missing, adds partitions, sets how long topics keep their records, and then writes the
    /// whole set as one record. Every instance takes it within about two seconds; one for which it is no good refuses it
    /// as a whole, says so in its log, and goes on with what it has.
    Apply {
        /// The tenants file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Change partitions too: only while all services are stopped and nothing of those tenants is under way
        #[arg(long)]
        at_rest: bool,
    },
    /// Print the tenants in force, as a tenants file
    Show(ShowArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Print the policies in force
    Show {
        /// Print instead the schema that they are held to: the words that a policy may use
        #[arg(long)]
        schema: bool,
    },
    /// Hold a policy file to the schema
    ///
    /// Exits with 1 where it has a mistake, and names its line.
    Check {
        /// The policy file; left out: the policies in force
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Ask the policies what a test file asks, and compare the answers
    ///
    /// The file has a table named case for each question; deploy/policies.test.toml is an example. Exits with 1 where an answer is
    /// another than expected, and says which policies decided.
    Test {
        /// The test file
        #[arg(value_name = "TESTS")]
        tests: PathBuf,
        /// The policy file; left out: the policies in force
        #[arg(long, value_name = "FILE")]
        policies: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Print instead the `kafka-acls` commands that let each tenant write to its own topic of jobs and nowhere else, and
    /// the services do their work
    #[arg(long, group = "what")]
    pub(crate) acls: bool,
    /// Print instead the IAM policy of this tenant's readers: its own results and costs in the lake, and nothing else
    #[arg(long, value_name = "TENANT", group = "what", value_parser = Tenant::new)]
    pub(crate) store_policy: Option<Tenant>,
    /// Print instead which shards of the processors of its pool serve each tenant
    #[arg(long, group = "what")]
    pub(crate) shards: bool,
    /// The services' Kafka principal, for --acls
    #[arg(
        long,
        value_name = "PRINCIPAL",
        default_value = "User:tributary",
        requires = "acls"
    )]
    pub(crate) service_principal: String,
    /// A tenant's Kafka principal, for --acls; `{tenant}` stands for its name
    #[arg(
        long,
        value_name = "PRINCIPAL",
        default_value = "User:{tenant}",
        requires = "acls"
    )]
    pub(crate) tenant_principal: String,
}

#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// The tenants file
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The lake: a folder or a URL; left out: sink.url
    #[arg(long, value_name = "LAKE")]
    pub(crate) lake: Option<String>,
    /// Seconds of work that the device does in one; left out: as it did in the lake while there was work, which is too few
    /// where jobs waited for a rate
    #[arg(long, value_name = "TIMES")]
    pub(crate) speed: Option<f64>,
}

#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// Where the service listens
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    pub(crate) url: String,
}

/// Prints to standard output. A reader that has gone away is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Prints an error with its causes to standard error.
pub(crate) fn print_error(error: &anyhow::Error) {
    // Where standard error is gone, nobody is left to tell.
    let _ = writeln!(std::io::stderr(), "tributary: {error:#}");
}

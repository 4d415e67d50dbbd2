//! Sends a file of jobs to Kafka, or over HTTP to a running ingest.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use ingest::{Answer, HttpDoor, identity::Bearer};
use serde::Deserialize;

use crate::{
    cli::{SubmitArgs, print},
    config::{self, Config, Delivery, TopicsKind},
    pipeline::{job_topics, open_topics},
};

/// Lines are sent this many bytes at a time: enough for speed, little enough for a progress bar that moves.
const PART_BYTES: usize = 1 << 20;
/// This many refused lines are shown; the rest is counted.
const REFUSED_SHOWN_MAX: usize = 10;

/// Sends the jobs, and says what became of them.
pub(crate) async fn run(config: &Config, args: SubmitArgs) -> anyhow::Result<()> {
    let (reader, bytes) = open(&args.jobs)?;
    let bearer = args.token.as_deref().map(read_token).transpose()?;
    let target = match (&args.to, config.topics.kind) {
        (Some(url), _) => Target::Http(url.clone()),
        (None, TopicsKind::Local) => Target::Http(format!("http://{}", config.http.listen)),
        (None, TopicsKind::Kafka) => {
            let topics = open_topics(config, Delivery::Transactional)?;
            topics.ensure(&job_topics(config, &config.policies())).await?;
            Target::Topics(HttpDoor::new(
                topics.appender().await?,
                config.topics.jobs.clone(),
            ))
        }
    };
    let bar = progress_bar(bytes);
    let mut sent = Sent::default();
    let mut reader = Lines {
        inner: BufReader::new(reader),
        lines_read: 0,
    };
    while let Some(part) = next_part(&mut reader)? {
        let length = part.bytes.len() as u64;
        let answers = target.send(part.bytes, bearer.clone()).await.with_context(|| {
            format!(
                "after {} accepted jobs, from line {} on nothing is known to be sent",
                sent.accepted, part.first_line
            )
        })?;
        sent.add(part.first_line, answers);
        bar.inc(length);
    }
    bar.finish_and_clear();
    sent.report()
}

enum Target {
    Http(String),
    Topics(HttpDoor),
}

impl Target {
    async fn send(&self, part: Bytes, bearer: Option<Bearer>) -> anyhow::Result<Vec<LineAnswer>> {
        match self {
            Self::Http(url) => {
                let url = format!("{}/v1/jobs", url.trim_end_matches('/'));
                tokio::task::spawn_blocking(move || post(&url, &part, bearer.as_ref())).await?
            }
            Self::Topics(door) => {
                let now_ms = chrono::Utc::now().timestamp_millis();
                let answers = door.accept(&part, bearer.as_ref(), now_ms).await;
                Ok(answers.into_iter().map(LineAnswer::from).collect())
            }
        }
    }
}

/// An answer as it comes over HTTP.
#[derive(Deserialize)]
struct LineAnswer {
    line: usize,
    #[serde(default)]
    error: Option<String>,
}

impl From<Answer> for LineAnswer {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Accepted { line, .. } => Self { line, error: None },
            Answer::Refused { line, error } => Self {
                line,
                error: Some(error),
            },
        }
    }
}

fn read_token(path: &Path) -> anyhow::Result<Bearer> {
    let token = config::read("token file", path)?;
    Bearer::new(&token).with_context(|| {
        format!(
            "token file `{}` is not one token and nothing else",
            path.display()
        )
    })
}

fn post(url: &str, part: &Bytes, bearer: Option<&Bearer>) -> anyhow::Result<Vec<LineAnswer>> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .into();
    let mut request = agent.post(url).content_type("application/x-ndjson");
    if let Some(bearer) = bearer {
        request = request.header("authorization", bearer.header_value());
    }
    let mut response = request
        .send(&part[..])
        .with_context(|| format!("no answer from {url}: is `tributary up` running there?"))?;
    let (status, body) = (response.status(), response.body_mut().read_to_string()?);
    if ![202, 207, 400].contains(&status.as_u16()) {
        bail!("{url} answers {status}: {body}");
    }
    body.lines()
        .map(|line| {
            serde_json::from_str(line).with_context(|| format!("{url} gave an unexpected answer: {line}"))
        })
        .collect()
}

#[derive(Default)]
struct Sent {
    accepted: usize,
    refused: usize,
    shown: Vec<String>,
}

impl Sent {
    fn add(&mut self, first_line: usize, answers: Vec<LineAnswer>) {
        for answer in answers {
            let Some(error) = answer.error else {
                self.accepted += 1;
                continue;
            };
            self.refused += 1;
            if self.shown.len() < REFUSED_SHOWN_MAX {
                self.shown
                    .push(format!("line {}: {error}", first_line + answer.line - 1));
            }
        }
    }

    fn report(&self) -> anyhow::Result<()> {
        print(&format!(
            "{} jobs accepted, {} lines refused",
            self.accepted, self.refused
        ))?;
        self.shown.iter().try_for_each(|line| print(line))?;
        if self.refused > self.shown.len() {
            print(&format!("… and {} more", self.refused - self.shown.len()))?;
        }
        if self.refused > 0 {
            bail!(
                "{} lines are no jobs and were not sent; the others were",
                self.refused
            );
        }
        Ok(())
    }
}

/// A file of jobs, and how many of its lines were read.
struct Lines {
    inner: BufReader<Box<dyn Read + Send>>,
    lines_read: usize,
}

struct Part {
    first_line: usize,
    bytes: Bytes,
}

/// Reads whole lines, about [`PART_BYTES`] of them.
fn next_part(reader: &mut Lines) -> anyhow::Result<Option<Part>> {
    let first_line = reader.lines_read + 1;
    let mut bytes = Vec::new();
    while bytes.len() < PART_BYTES && reader.inner.read_until(b'\n', &mut bytes)? > 0 {
        reader.lines_read += 1;
    }
    Ok((!bytes.is_empty()).then(|| Part {
        first_line,
        bytes: bytes.into(),
    }))
}

fn open(path: &Path) -> anyhow::Result<(Box<dyn Read + Send>, Option<u64>)> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(std::io::stdin()), None));
    }
    let file = std::fs::File::open(path).with_context(|| format!("jobs file `{}`", path.display()))?;
    let bytes = file.metadata()?.len();
    Ok((Box::new(file), Some(bytes)))
}

fn progress_bar(bytes: Option<u64>) -> ProgressBar {
    let style = "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    match bytes {
        Some(bytes) => ProgressBar::new(bytes)
            .with_style(ProgressStyle::with_template(style).expect("the template is a constant")),
        None => ProgressBar::new_spinner(),
    }
}

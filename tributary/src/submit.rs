//! Sends a file of jobs to Kafka, or over HTTP to a running ingest.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use ingest::{Answer, HttpDoor, LINES_MAX, identity::Bearer};
use tokio::time::sleep;

use crate::{
    cli::{SubmitArgs, print},
    config::{self, Config, Delivery, TopicsKind},
    http::{BODY_LIMIT, DOOR_LIMIT},
    pipeline::{job_topics, open_topics},
};

/// Lines are sent this many bytes at a time: enough for speed, little enough for a progress bar that moves.
const PART_BYTES: usize = 1 << 20;
/// An answer has some fifty times the bytes of the shortest line.
const ANSWERS_BYTES_MAX: u64 = 100 * PART_BYTES as u64;
/// For so long one part is sent again whenever it is put off …
const PATIENCE: Duration = Duration::from_secs(60);
/// … and no sooner than this.
const AGAIN_AFTER_MIN: Duration = Duration::from_millis(100);
/// A connection that breaks while a part is sent is tried again after as long.
const BROKEN_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A door that waits for ingest says so in this time, and then nothing of a part need be sent.
const CONTINUE_LIMIT: Duration = Duration::from_secs(DOOR_LIMIT.as_secs() + 1);
/// Longer than a door takes: for the part to come, and as long again until Kafka's client gives a record up.
const ANSWER_LIMIT: Duration = Duration::from_secs(3 * BODY_LIMIT.as_secs());
/// What some editors put at the beginning of a file, and is no part of its first line.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// This many lines that were not accepted are shown; the rest is counted.
const LINES_SHOWN_MAX: usize = 10;

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
    let all = send_all(&target, &mut reader, bearer, &bar, &mut sent).await;
    bar.finish_and_clear();
    if all.is_ok() || !sent.is_nothing() {
        sent.report()?;
    }
    all?;
    sent.problem().map_or(Ok(()), |problem| bail!(problem))
}

/// Sends part after part, until the log is away: of each further one nobody would know either.
async fn send_all(
    target: &Target,
    reader: &mut Lines,
    bearer: Option<Bearer>,
    bar: &ProgressBar,
    sent: &mut Sent,
) -> anyhow::Result<()> {
    let mut nobody_answers = false;
    while let Some(part) = next_part(reader)? {
        ensure!(
            !nobody_answers,
            "of the lines before nothing was acknowledged, and from line {} on nothing was sent",
            part.first_line
        );
        let length = part.bytes.len() as u64;
        let answers = target.send(part.bytes, bearer.clone()).await.with_context(|| {
            format!(
                "after {} accepted jobs, from line {} on nothing is known to be sent",
                sent.accepted, part.first_line
            )
        })?;
        nobody_answers = Answer::tell_that_nobody_answers(&answers);
        sent.add(part.first_line, answers);
        bar.inc(length);
    }
    Ok(())
}

enum Target {
    Http(String),
    Topics(HttpDoor),
}

impl Target {
    async fn send(&self, part: Bytes, bearer: Option<Bearer>) -> anyhow::Result<Vec<Answer>> {
        match self {
            Self::Http(url) => {
                let url = format!("{}/v1/jobs", url.trim_end_matches('/'));
                post_until_taken(&url, &part, bearer.as_ref()).await
            }
            Self::Topics(door) => {
                let now_ms = chrono::Utc::now().timestamp_millis();
                Ok(door.accept(&part, bearer.as_ref(), now_ms).await)
            }
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

/// Posts `part` again where it was put off, which is before anything of it is taken.
async fn post_until_taken(url: &str, part: &Bytes, bearer: Option<&Bearer>) -> anyhow::Result<Vec<Answer>> {
    let began = Instant::now();
    loop {
        let (url, part, bearer) = (url.to_owned(), part.clone(), bearer.cloned());
        let posted = tokio::task::spawn_blocking(move || post(&url, &part, bearer.as_ref())).await?;
        match posted? {
            Reply::Answers(answers) => return Ok(answers),
            Reply::PutOff { again_after, .. } if began.elapsed().saturating_add(again_after) < PATIENCE => {
                sleep(again_after.max(AGAIN_AFTER_MIN)).await;
            }
            Reply::PutOff { again_after, said } => {
                bail!("it is put off, for another {} s: {said}", again_after.as_secs())
            }
        }
    }
}

enum Reply {
    Answers(Vec<Answer>),
    PutOff { again_after: Duration, said: String },
}

fn post(url: &str, part: &Bytes, bearer: Option<&Bearer>) -> anyhow::Result<Reply> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_await_100(Some(CONTINUE_LIMIT))
        .timeout_global(Some(ANSWER_LIMIT))
        .build()
        .into();
    let mut request = agent.post(url).content_type("application/x-ndjson");
    // Whoever refuses the request does not read the jobs, and to go on sending them would lose his answer.
    request = request.header("expect", "100-continue");
    if let Some(bearer) = bearer {
        request = request.header("authorization", bearer.header_value());
    }
    let mut rest = &part[..];
    let sent = request
        .header("content-length", part.len())
        .send(ureq::SendBody::from_reader(&mut rest));
    let mut response = match sent {
        // Whoever puts a request off in the middle of its body closes the connection, and may do so before he is heard. Of a
        // body that is not whole nothing is taken.
        Err(ureq::Error::Io(error)) if (1..part.len()).contains(&rest.len()) => {
            return Ok(Reply::PutOff {
                again_after: BROKEN_AGAIN_AFTER,
                said: format!("the connection broke while jobs were sent: {error}"),
            });
        }
        sent => sent.with_context(|| format!("no answer from {url}: is `tributary up` running there?"))?,
    };
    let again_after_s = response.headers().get("retry-after").cloned();
    let again_after_s = again_after_s.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
    let body = response.body_mut().with_config().limit(ANSWERS_BYTES_MAX);
    let (body, status) = (body.read_to_string()?, response.status());
    // There is one for each job, or else it says what is wrong with the request as a whole.
    let answers: Result<Vec<Answer>, _> = body.lines().map(serde_json::from_str).collect();
    let lines = part.split(|byte| *byte == b'\n');
    let jobs = lines.filter(|line| !line.trim_ascii().is_empty()).count();
    match (answers, again_after_s) {
        (Ok(answers), _) if answers.len() == jobs => Ok(Reply::Answers(answers)),
        (_, Some(seconds)) if status == 503 => Ok(Reply::PutOff {
            again_after: Duration::from_secs(seconds),
            said: body,
        }),
        _ => bail!("{url} answers {status}: {body}"),
    }
}

#[derive(Default)]
struct Sent {
    accepted: usize,
    refused: usize,
    unknown: usize,
    shown: Vec<String>,
}

impl Sent {
    fn add(&mut self, first_line: usize, answers: Vec<Answer>) {
        for answer in answers {
            let (count, line, what) = match answer {
                Answer::Accepted { .. } => {
                    self.accepted += 1;
                    continue;
                }
                Answer::Refused { line, error } => (&mut self.refused, line, error),
                Answer::Unknown { line, error } => (&mut self.unknown, line, error),
            };
            *count += 1;
            if self.shown.len() < LINES_SHOWN_MAX {
                self.shown.push(format!("line {}: {what}", first_line + line - 1));
            }
        }
    }

    fn is_nothing(&self) -> bool {
        self.accepted + self.refused + self.unknown == 0
    }

    fn report(&self) -> anyhow::Result<()> {
        let unknown = match self.unknown {
            0 => String::new(),
            unknown => format!(", {unknown} of which nobody knows"),
        };
        print(&format!(
            "{} jobs accepted, {} lines refused{unknown}",
            self.accepted, self.refused
        ))?;
        self.shown.iter().try_for_each(|line| print(line))?;
        let more = self.refused + self.unknown - self.shown.len();
        if more > 0 {
            print(&format!("… and {more} more"))?;
        }
        Ok(())
    }

    fn problem(&self) -> Option<String> {
        let refused = format!("{} lines were refused, and not sent", self.refused);
        let unknown = format!(
            "of {} lines nobody knows whether they were sent: sent again, they may run twice",
            self.unknown
        );
        match (self.refused, self.unknown) {
            (0, 0) => None,
            (_, 0) => Some(format!("{refused}; the others were")),
            (0, _) => Some(unknown),
            _ => Some(format!("{refused}; {unknown}")),
        }
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

/// Reads whole lines, about [`PART_BYTES`] of them and no more than are taken at once.
fn next_part(reader: &mut Lines) -> anyhow::Result<Option<Part>> {
    let first_line = reader.lines_read + 1;
    let mut bytes = Vec::new();
    let line_end = first_line + LINES_MAX;
    while bytes.len() < PART_BYTES
        && reader.lines_read + 1 < line_end
        && reader.inner.read_until(b'\n', &mut bytes)? > 0
    {
        reader.lines_read += 1;
    }
    if first_line == 1 && bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
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

#[cfg(test)]
mod tests {
    use std::{io::Write, net::TcpListener};

    use schemas::TopicName;
    use topics::Topics as _;

    use super::*;
    use crate::renewed::tests::Ending;

    /// Answers one request after the other.
    fn answering(answers: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1/jobs", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for answer in answers {
                let (mut client, _) = listener.accept().unwrap();
                let mut head = BufReader::new(client.try_clone().unwrap()).lines();
                head.find(|line| line.as_ref().unwrap().is_empty())
                    .unwrap()
                    .unwrap();
                client.write_all(answer.as_bytes()).unwrap();
            }
        });
        url
    }

    #[tokio::test]
    async fn jobs_that_are_put_off_are_sent_again_and_what_is_refused_is_not() {
        const PUT_OFF: &str =
            "HTTP/1.1 503 -\r\nretry-after: 0\r\nconnection: close\r\ncontent-length: 5\r\n\r\nfull\n";
        const TAKEN: &str = "HTTP/1.1 202 -\r\nconnection: close\r\ncontent-length: 71\r\n\r\n\
            {\"answer\":\"accepted\",\"line\":1,\"topic\":\"jobs\",\"partition\":0,\"offset\":7}\n";
        const REFUSED: &str = "HTTP/1.1 503 -\r\nconnection: close\r\ncontent-length: 5\r\n\r\nlost\n";
        let part = Bytes::from_static(b"{}\n");
        let taken = post_until_taken(&answering(&[PUT_OFF, PUT_OFF, TAKEN]), &part, None)
            .await
            .unwrap();
        assert!(taken.iter().all(Answer::is_accepted), "{taken:?}");
        let refused = post_until_taken(&answering(&[PUT_OFF, REFUSED, TAKEN]), &part, None).await;
        let refused = refused.unwrap_err().to_string();
        assert!(
            refused.ends_with("answers 503 Service Unavailable: lost\n"),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn a_part_whose_connection_breaks_before_it_is_sent_is_sent_again() {
        const CLOSED: &str = "HTTP/1.1 100 Continue\r\n\r\n";
        const REFUSED: &str = "HTTP/1.1 400 -\r\nconnection: close\r\ncontent-length: 3\r\n\r\nno\n";
        // More than sockets hold.
        let part = Bytes::from(vec![b'\n'; 32 << 20]);
        let told = post_until_taken(&answering(&[CLOSED, REFUSED]), &part, None).await;
        let told = told.unwrap_err().to_string();
        assert!(told.ends_with("answers 400 Bad Request: no\n"), "{told}");
    }

    fn lines(text: impl AsRef<[u8]> + Send + 'static) -> Lines {
        Lines {
            inner: BufReader::new(Box::new(std::io::Cursor::new(text))),
            lines_read: 0,
        }
    }

    #[test]
    fn a_part_has_no_more_lines_than_are_taken_at_once_and_no_mark_before_the_first() {
        let mut reader = lines(["\u{feff}{}\n".to_owned(), "x\n".repeat(LINES_MAX)].concat());
        let part = next_part(&mut reader).unwrap().unwrap();
        assert!(part.bytes.starts_with(b"{}\nx\n"));
        assert_eq!(ingest::count_lines(&part.bytes), LINES_MAX);
        let part = next_part(&mut reader).unwrap().unwrap();
        assert_eq!((part.first_line, &part.bytes[..]), (LINES_MAX + 1, &b"x\n"[..]));
        assert!(next_part(&mut reader).unwrap().is_none());
    }

    #[tokio::test]
    async fn when_of_a_part_nobody_knows_anything_no_further_one_is_sent() {
        let topics = Ending::first(usize::MAX);
        let jobs = TopicName::new("jobs").unwrap();
        let door = HttpDoor::new(topics.appender().await.unwrap(), jobs);
        let job = r#"{"model":"m","input":"a"}"#;
        let mut reader = lines([job, "\n"].concat().repeat(2 * PART_BYTES / job.len()));
        let mut sent = Sent::default();
        let bar = ProgressBar::hidden();
        let all = send_all(&Target::Topics(door), &mut reader, None, &bar, &mut sent).await;
        let told = all.unwrap_err().to_string();
        let first_not_sent = sent.unknown + sent.refused + 1;
        assert!(
            told.ends_with(&format!("from line {first_not_sent} on nothing was sent")),
            "{told}"
        );
        assert_eq!(sent.accepted, 0);
    }

    #[test]
    fn what_was_refused_is_told_from_what_may_have_been_sent() {
        let problem = |refused, unknown| {
            let answer = |line| (line, "so".to_owned());
            let refused = (1..=refused).map(answer);
            let refused = refused.map(|(line, error)| Answer::Refused { line, error });
            let unknown = (1..=unknown).map(answer);
            let unknown = unknown.map(|(line, error)| Answer::Unknown { line, error });
            let mut sent = Sent::default();
            sent.add(1, refused.chain(unknown).collect());
            sent.problem().unwrap_or_default()
        };
        assert_eq!(problem(0, 0), "");
        assert_eq!(
            problem(2, 0),
            "2 lines were refused, and not sent; the others were"
        );
        assert!(problem(0, 3).starts_with("of 3 lines nobody knows"));
        let both = problem(2, 3);
        assert!(
            both.contains("2 lines were refused, and not sent; of 3 lines nobody knows"),
            "{both}"
        );
    }
}

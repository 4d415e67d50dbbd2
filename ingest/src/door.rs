//! The HTTP door: lines of jobs in, an answer a line out.

use std::ops::Range;

use bytes::Bytes;
use schemas::{Door, Job, Principal, ReasonCode, TopicName};
use serde::{Deserialize, Serialize};
use tokio::task::yield_now;
use topics::{Append, Appender, Error, Header};

use crate::{
    identity::{Bearer, Identity, Refusal},
    metric_names,
};

/// The most lines that are taken at once. Each has an answer of some hundred bytes, however short it is itself.
pub const LINES_MAX: usize = 100_000;
/// So many lines are decoded and appended at a time: some milliseconds' work if they are short, after which it is others' turn.
const SLICE_LINES: usize = 4_000;

/// Puts jobs that came over HTTP on the shared topic. It looks at a job's shape only, so that its sender learns of a
/// broken line at once; whether the job may run is decided where all jobs are, behind the topic.
/// The token of a request goes with each of its jobs, and is looked at there again.
pub struct HttpDoor {
    appender: Box<dyn Appender>,
    topic: TopicName,
}

/// What became of one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// The line is on a topic, durably; its outcome carries this position as its origin.
    Accepted {
        /// Which line, from 1.
        line: usize,
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The offset.
        offset: i64,
    },
    /// The line is on no topic.
    Refused {
        /// Which line, from 1.
        line: usize,
        /// Why.
        error: String,
    },
    /// Nobody knows whether the line is on a topic: sent again, it may be there twice.
    Unknown {
        /// Which line, from 1.
        line: usize,
        /// What came in the place of an acknowledgement.
        error: String,
    },
}

/// Who makes a request, and the token that proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// Who it is.
    pub principal: Principal,
    /// None where none was looked at.
    pub bearer: Option<Bearer>,
}

/// Who brings jobs, with these headers `authorization`; a stranger where no token is demanded of him. What is not demanded
/// stays off the topic.
///
/// # Errors
/// Why the request is refused as a whole.
pub fn asker_at_the_door<'a>(
    authorization: impl Iterator<Item = &'a [u8]>,
    identity: &Identity,
    now_ms: i64,
) -> Result<Asker, Refusal> {
    if !identity.demands(&Door::Shared) {
        return Ok(STRANGER);
    }
    let bearer = Bearer::among(authorization)?;
    let (tenant, user) = identity.prove_tenant(&bearer, now_ms)?;
    Ok(Asker {
        principal: user.map_or(Principal::Tenant(tenant), Principal::User),
        bearer: Some(bearer),
    })
}

/// Who asks for something else, with these headers `authorization`: a stranger where there is no token, or tokens are looked
/// at nowhere.
///
/// # Errors
/// Why a token that is there proves nothing.
pub fn asker_of_request<'a>(
    authorization: impl Iterator<Item = &'a [u8]>,
    identity: &Identity,
    now_ms: i64,
) -> Result<Principal, Refusal> {
    if !identity.demands_anywhere() {
        return Ok(Principal::Stranger);
    }
    match Bearer::among(authorization) {
        Err(Refusal::Missing) => Ok(Principal::Stranger),
        Err(refusal) => Err(refusal),
        Ok(bearer) => identity.prove(&bearer, now_ms).map(Principal::from),
    }
}

const STRANGER: Asker = Asker {
    principal: Principal::Stranger,
    bearer: None,
};

/// Counts a request that was refused as a whole.
pub fn count_refused(code: ReasonCode) {
    metrics::counter!(metric_names::HTTP_REFUSED, "reason_code" => code.as_str()).increment(1);
}

/// Counts a request that was put off.
pub fn count_put_off() {
    metrics::counter!(metric_names::HTTP_PUT_OFF).increment(1);
}

impl HttpDoor {
    /// A door to `topic`.
    pub fn new(appender: Box<dyn Appender>, topic: TopicName) -> Self {
        Self { appender, topic }
    }

    /// Takes the jobs in `body`, one a line, of which there are at most [`LINES_MAX`]; empty lines are passed over. The answers
    /// are in the order of the lines. When the log has acknowledged nothing of many lines, those behind them are refused: to try
    /// each would take as long again.
    pub async fn accept(&self, body: &Bytes, bearer: Option<&Bearer>, now_ms: i64) -> Vec<Answer> {
        let headers: Vec<Header> = bearer.map(Bearer::header).into_iter().collect();
        let append_of = |value| Append {
            topic: self.topic.clone(),
            partition: None,
            timestamp_ms: now_ms,
            key: None,
            value: Some(value),
            headers: headers.clone(),
        };
        let (mut answers, mut lines) = (Vec::new(), lines_of(body).peekable());
        let mut is_away = false;
        while lines.peek().is_some() {
            let slice = lines.by_ref().take(SLICE_LINES);
            let slice = slice.map(|(line, range)| (line, body.slice(range)));
            match is_away {
                true => answers.extend(slice.map(|(line, _)| Answer::Refused {
                    line,
                    error: "not tried, since nothing of the lines before it was acknowledged".to_owned(),
                })),
                false => {
                    let answered = self.accept_slice(slice, append_of).await;
                    is_away = Answer::tell_that_nobody_answers(&answered);
                    answers.extend(answered);
                }
            }
            yield_now().await;
        }
        for answer in &answers {
            metrics::counter!(metric_names::HTTP_LINES, "answer" => answer.word()).increment(1);
        }
        answers
    }

    async fn accept_slice(
        &self,
        slice: impl Iterator<Item = (usize, Bytes)>,
        append_of: impl Fn(Bytes) -> Append,
    ) -> Vec<Answer> {
        let (mut answers, mut lines, mut appends) = (Vec::new(), Vec::new(), Vec::new());
        for (line, value) in slice {
            match Job::decode(&value) {
                Ok(_) => {
                    lines.push(line);
                    appends.push(append_of(value));
                }
                Err(error) => answers.push(Answer::Refused {
                    line,
                    error: format!("not a job: {error}"),
                }),
            }
        }
        let appended = self.appender.append(appends).await;
        answers.extend(
            lines
                .into_iter()
                .zip(appended)
                .map(|(line, result)| answer_for(line, result)),
        );
        answers.sort_by_key(Answer::line);
        answers
    }
}

impl Answer {
    /// Whether the line is on a topic.
    pub fn is_accepted(&self) -> bool {
        matches!(self, Self::Accepted { .. })
    }

    /// Whether nothing of some lines is known to be on a topic, and of some nobody knows.
    pub fn tell_that_nobody_answers(answers: &[Self]) -> bool {
        let is_unknown = |answer: &Self| matches!(answer, Self::Unknown { .. });
        answers.iter().any(is_unknown) && !answers.iter().any(Self::is_accepted)
    }

    fn line(&self) -> usize {
        match self {
            Self::Accepted { line, .. } | Self::Refused { line, .. } | Self::Unknown { line, .. } => *line,
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Accepted { .. } => "accepted",
            Self::Refused { .. } => "refused",
            Self::Unknown { .. } => "unknown",
        }
    }
}

fn answer_for(line: usize, result: Result<(topics::Partition, i64), Error>) -> Answer {
    match result {
        Ok((partition, offset)) => Answer::Accepted {
            line,
            topic: partition.topic.name.to_string(),
            partition: partition.index,
            offset,
        },
        Err(error) if error.is_retryable() => Answer::Unknown {
            line,
            error: error.to_string(),
        },
        Err(error) => Answer::Refused {
            line,
            error: error.to_string(),
        },
    }
}

/// How many lines of `body` may be jobs.
pub fn count_lines(body: &[u8]) -> usize {
    lines_of(body).count()
}

/// The lines of `body` that are not blank, numbered from 1, as byte ranges without their line ends.
fn lines_of(body: &[u8]) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
    let lines = body.split(|byte| *byte == b'\n');
    let ranges = lines.scan(0, |next, line| {
        let start = *next;
        *next += line.len() + 1;
        Some((line, start..start + line.trim_ascii_end().len()))
    });
    ranges
        .zip(1..)
        .filter(|((line, _), _)| !line.trim_ascii().is_empty())
        .map(|((_, range), number)| (number, range))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use topics::{TopicSpec, Topics, local::LocalTopics};

    use super::*;

    /// A log that takes no large record, and of whose other records the acknowledgements are lost.
    struct Silent;

    #[async_trait]
    impl Appender for Silent {
        async fn append(&self, records: Vec<Append>) -> Vec<Result<(topics::Partition, i64), Error>> {
            let what = || "append to `jobs`".to_owned();
            let fail = |record: Append| {
                Err(match record.value.is_some_and(|value| value.len() > 1_000) {
                    true => Error::Invalid {
                        what: what(),
                        detail: "it is too large".to_owned(),
                    },
                    false => Error::Unavailable {
                        what: what(),
                        detail: "nobody answers".to_owned(),
                    },
                })
            };
            records.into_iter().map(fail).collect()
        }
    }

    #[tokio::test]
    async fn a_line_that_may_be_on_the_topic_is_not_told_to_be_refused() {
        let door = HttpDoor::new(Box::new(Silent), TopicName::new("jobs").unwrap());
        let job = |input: &str| format!(r#"{{"model":"m","input":"{input}"}}"#);
        let body = [job("a"), "{oops".to_owned(), job(&"x".repeat(2_000))].join("\n");
        let answers = door.accept(&body.into(), None, 0).await;
        assert_eq!(
            answers.iter().map(Answer::word).collect::<Vec<_>>(),
            ["unknown", "refused", "refused"]
        );
        assert_eq!(
            answers[0],
            Answer::Unknown {
                line: 1,
                error: "append to `jobs`: nobody answers".to_owned()
            }
        );
    }

    #[tokio::test]
    async fn lines_of_several_slices_are_answered_in_order_until_nobody_answers() {
        let job = r#"{"model":"m","input":"a"}"#;
        let lines = 2 * SLICE_LINES + 7;
        let body = Bytes::from([job, "\n\n"].concat().repeat(lines));
        let (_, door) = open().await;
        let answers = door.accept(&body, None, 0).await;
        let in_order = (0..lines).map(|number| Answer::Accepted {
            line: 2 * number + 1,
            topic: "jobs".to_owned(),
            partition: 0,
            offset: number as i64,
        });
        assert!(answers.iter().eq(&in_order.collect::<Vec<_>>()));
        let silent = HttpDoor::new(Box::new(Silent), TopicName::new("jobs").unwrap());
        let answers = silent.accept(&body, None, 0).await;
        let (tried, not_tried) = answers.split_at(SLICE_LINES);
        assert!(tried.iter().all(|answer| answer.word() == "unknown"));
        assert!(not_tried.len() == lines - SLICE_LINES);
        assert!(not_tried.iter().all(|answer| answer.word() == "refused"));
    }

    async fn open() -> (Arc<dyn Topics>, HttpDoor) {
        let topics: Arc<dyn Topics> = Arc::new(LocalTopics::in_memory());
        let topic = TopicName::new("jobs").unwrap();
        let spec = TopicSpec::new(topic.clone(), 1);
        topics.ensure(&[spec]).await.unwrap();
        let door = HttpDoor::new(topics.appender().await.unwrap(), topic);
        (topics, door)
    }

    #[tokio::test]
    async fn the_token_of_a_request_goes_with_each_of_its_jobs() {
        let (topics, door) = open().await;
        let body =
            Bytes::from_static(b"{\"model\":\"m\",\"input\":\"a\"}\n{\"model\":\"m\",\"input\":\"b\"}");
        let bearer = Bearer::new("header.claims.signature\n").unwrap();
        assert!(
            door.accept(&body, Some(&bearer), 0)
                .await
                .iter()
                .all(Answer::is_accepted)
        );
        let last = topics
            .last(&TopicName::new("jobs").unwrap())
            .await
            .unwrap()
            .unwrap();
        assert_eq!((last.offset, Bearer::of(&last)), (1, Ok(bearer)));
    }

    #[test]
    fn what_is_not_demanded_of_a_request_stays_off_the_topic() {
        let basic = || [&b"Basic dXNlcjpwYXNzd29yZA=="[..]].into_iter();
        assert_eq!(asker_at_the_door(basic(), &Identity::nowhere(), 0), Ok(STRANGER));
    }

    #[tokio::test]
    async fn each_line_is_answered_in_order_and_a_broken_one_stops_no_other() {
        let (_, door) = open().await;
        let body = Bytes::from_static(
            b"{\"id\":\"1\",\"model\":\"m\",\"input\":\"a\"}\r\n\n{\"id\":\n{\"id\":\"2\",\"model\":\"m\",\"input\":\"b\"}",
        );
        let answers = door.accept(&body, None, 0).await;
        let accepted = |line, offset| Answer::Accepted {
            line,
            topic: "jobs".to_owned(),
            partition: 0,
            offset,
        };
        assert_eq!(answers[0], accepted(1, 0));
        assert!(
            matches!(&answers[1], Answer::Refused { line: 3, error } if error.contains("EOF")),
            "{answers:?}"
        );
        assert_eq!(answers[2], accepted(4, 1));
    }
}

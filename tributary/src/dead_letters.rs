//! `tributary dead-letters`: the records that nobody could decode, and how they are put back.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use topics::{
    Assignment, Committer, DeadLetter, Event, Letter, Partition, Reader, Step, Subscription, TopicPattern,
    Topics,
};

use crate::{
    cli::{DeadLettersCommand, print},
    config::Config,
    pipeline::open_topics,
};

/// Who replays is the one member of this group, and commits as it: of two replays at once, one is fenced.
const GROUP: &str = "tributary-dead-letters";
/// On Kafka the markers of transactions count as records that never come: then the end is where nothing comes for this long.
const SILENCE: Duration = Duration::from_secs(2);
/// How long it may take until the topic is handed to this command; a member that was killed keeps it for a while.
const JOIN_LIMIT: Duration = Duration::from_secs(60);
/// A value is shown up to this many characters.
const SHOWN_CHARS_MAX: usize = 2_000;

/// Lists, shows or replays dead letters.
pub(crate) async fn run(config: &Config, command: &DeadLettersCommand) -> anyhow::Result<()> {
    let names = config.policies().topics;
    let topics = open_topics(config)?;
    let (mut desk, mut committer) = Desk::open(&topics, names.dead_letters()).await?;
    match command {
        DeadLettersCommand::List { json } => list(&desk.letters, &desk.replayed, *json)?,
        DeadLettersCommand::Show { offset, raw } => {
            show(desk.letter(*offset)?, desk.replayed.contains(offset), *raw)?
        }
        DeadLettersCommand::Replay { offsets, all } => {
            let offsets = match all {
                true => desk
                    .letters
                    .keys()
                    .filter(|offset| !desk.replayed.contains(offset))
                    .copied()
                    .collect(),
                false => offsets.clone(),
            };
            let count = desk
                .replay(&offsets, committer.as_mut(), |letter| {
                    names.door(&letter.topic).is_some()
                })
                .await?;
            print(&format!(
                "{count} put back to where they came from: each is a new job, or a new dead letter"
            ))?;
        }
    }
    Ok(desk.reader.close().await?)
}

/// Everything on the topic of dead letters.
struct Desk {
    reader: Box<dyn Reader>,
    topic: schemas::TopicName,
    source: Option<(Partition, Assignment)>,
    letters: BTreeMap<i64, DeadLetter>,
    replayed: BTreeSet<i64>,
}

impl Desk {
    async fn open(
        topics: &Arc<dyn Topics>,
        topic: schemas::TopicName,
    ) -> anyhow::Result<(Self, Box<dyn Committer>)> {
        let subscription = Subscription {
            patterns: vec![TopicPattern::Exact(topic.clone())],
        };
        let (reader, committer) = topics.stage(GROUP, &subscription).await?;
        let mut desk = Self {
            reader,
            topic,
            source: None,
            letters: BTreeMap::new(),
            replayed: BTreeSet::new(),
        };
        let ends_at = topics.lag(GROUP, &subscription).await?;
        let mut next_offset = 0;
        while desk.source.is_none() || next_offset < ends_at {
            let limit = if desk.source.is_none() {
                JOIN_LIMIT
            } else {
                SILENCE
            };
            let Ok(event) = tokio::time::timeout(limit, desk.reader.next()).await else {
                ensure!(
                    desk.source.is_some(),
                    "the topic `{}` was not handed to this command within {} s: is there such a topic, and is no other `tributary dead-letters` at work?",
                    desk.topic,
                    JOIN_LIMIT.as_secs()
                );
                break;
            };
            match event? {
                Event::Assigned(partitions) => desk.source = partitions.into_iter().next(),
                Event::Revoked(_) => bail!("another `tributary dead-letters` is at work: wait for its end"),
                Event::Records(chunk) => {
                    for record in &chunk.records {
                        next_offset = record.offset.unsigned_abs() + 1;
                        match Letter::read(record) {
                            Some(Letter::Dead(letter)) => drop(desk.letters.insert(record.offset, letter)),
                            Some(Letter::Replayed(offset)) => drop(desk.replayed.insert(offset)),
                            None => tracing::warn!(offset = record.offset, "record is no dead letter"),
                        }
                    }
                }
            }
        }
        Ok((desk, committer))
    }

    fn letter(&self, offset: i64) -> anyhow::Result<&DeadLetter> {
        self.letters
            .get(&offset)
            .with_context(|| format!("there is no dead letter {offset}: see `tributary dead-letters list`"))
    }

    /// Puts each back to the topic of jobs that it came from, and says so on the topic of dead letters: both or neither. A
    /// letter that was put back before is refused, so that a command that is given twice does not do it twice.
    async fn replay(
        &mut self,
        offsets: &[i64],
        committer: &mut dyn Committer,
        is_of_jobs: impl Fn(&DeadLetter) -> bool,
    ) -> anyhow::Result<usize> {
        let now_ms = chrono::Utc::now().timestamp_millis();
        let mut appends = Vec::new();
        for offset in offsets.iter().collect::<BTreeSet<_>>() {
            let letter = self.letter(*offset)?;
            ensure!(
                !self.replayed.contains(offset),
                "dead letter {offset} was replayed before: nothing was done"
            );
            ensure!(
                is_of_jobs(letter),
                "dead letter {offset} is of the internal topic `{}`, where only its stage may append, in order: nothing was done. Submit its job again",
                letter.topic
            );
            appends.extend(letter.replay(self.topic.clone(), now_ms));
        }
        let count = appends.len() / 2;
        if count == 0 {
            return Ok(0);
        }
        let (source, assignment) = self
            .source
            .clone()
            .context("the topic of dead letters was not handed to this command: try again")?;
        // The group never moves on: the next command reads everything again.
        let step = Step {
            source,
            assignment,
            next_offset: 0,
            appends,
        };
        let committed = committer
            .append_and_commit(vec![step])
            .await
            .context("whether they were replayed is not known: see `tributary dead-letters list`")?;
        ensure!(
            committed.left_out.is_empty(),
            "another `tributary dead-letters` took over: nothing was done"
        );
        Ok(count)
    }
}

fn list(letters: &BTreeMap<i64, DeadLetter>, replayed: &BTreeSet<i64>, json: bool) -> anyhow::Result<()> {
    if json {
        for (offset, letter) in letters {
            let bytes = letter.record.value.as_deref().map_or(0, <[u8]>::len);
            let line = serde_json::json!({
                "offset": offset,
                "topic": letter.topic,
                "topic_partition": letter.partition,
                "topic_offset": letter.offset,
                "bytes": bytes,
                "reason": letter.reason,
                "replayed": replayed.contains(offset),
            });
            print(&line.to_string())?;
        }
        return Ok(());
    }
    for (offset, letter) in letters {
        let mark = if replayed.contains(offset) {
            "  (replayed)"
        } else {
            ""
        };
        print(&format!(
            "{offset:>6}  {}{mark}  {}",
            stood(letter),
            letter.reason
        ))?;
    }
    let waiting = letters.keys().filter(|offset| !replayed.contains(offset)).count();
    print(&format!("{} dead letters, {waiting} not replayed", letters.len()))
}

fn stood(letter: &DeadLetter) -> String {
    format!("{}[{}]@{}", letter.topic, letter.partition, letter.offset)
}

fn show(letter: &DeadLetter, replayed: bool, raw: bool) -> anyhow::Result<()> {
    let value = letter.record.value.as_deref();
    if raw {
        return Ok(std::io::stdout().write_all(value.unwrap_or_default())?);
    }
    print(&format!("stood at   {}", stood(letter)))?;
    print(&format!("reason     {}", letter.reason))?;
    if let Some(time) = chrono::DateTime::from_timestamp_millis(letter.record.timestamp_ms) {
        print(&format!("written    {}", time.to_rfc3339()))?;
    }
    print(&format!("replayed   {}", if replayed { "yes" } else { "no" }))?;
    if let Some(key) = &letter.record.key {
        print(&format!("key        {}", String::from_utf8_lossy(key)))?;
    }
    for header in &letter.record.headers {
        let value = header.value.as_deref().map(String::from_utf8_lossy);
        print(&format!(
            "header     {}: {}",
            header.name,
            value.unwrap_or_default()
        ))?;
    }
    let Some(value) = value else {
        return print("value      none: a tombstone");
    };
    let text = String::from_utf8_lossy(value);
    let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let more = if shown.len() < text.len() { " …" } else { "" };
    print(&format!(
        "value      {} bytes, --raw writes them as they are:\n{shown}{more}",
        value.len()
    ))
}

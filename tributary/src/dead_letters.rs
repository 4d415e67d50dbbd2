//! `tributary dead-letters`: the records that nobody could decode, and how they are put back.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use schemas::TopicName;
use topics::{
    Append, Assignment, Committer, DeadLetter, Event, Letter, Partition, Reader, Step, Subscription,
    TopicPattern, Topics, replay_begins,
};

use crate::{
    cli::{DeadLettersCommand, print},
    config::{Config, Delivery},
    pipeline::open_topics,
};

/// Who replays is the one member of this group. On Kafka its instance has this name too, so that of two replays at once
/// the newer fences the older. Who only looks has a group of its own, whose name begins so.
pub(crate) const GROUP: &str = "tributary-dead-letters";
/// On Kafka the markers of transactions count as records that never come: then the end is where nothing comes for this long.
const SILENCE: Duration = Duration::from_secs(3);
/// How long it may take until the topic is handed over; a member that was killed keeps it for a while, and a transaction
/// that was left open hides what comes after it for a while.
const LIMIT: Duration = Duration::from_secs(90);
/// A value is shown up to this many characters.
const SHOWN_CHARS_MAX: usize = 2_000;

/// Lists, shows or replays dead letters.
pub(crate) async fn run(config: &Config, command: &DeadLettersCommand) -> anyhow::Result<()> {
    let names = config.topics.names();
    let mut config = config.clone();
    config.topics.instance = GROUP.to_owned();
    let topics = open_topics(&config, Delivery::Transactional)?;
    match command {
        DeadLettersCommand::List { json } => list(&look(&topics, &names.dead_letters()).await?, *json),
        DeadLettersCommand::Show { offset, raw } => {
            let letters = look(&topics, &names.dead_letters()).await?;
            show(letters.get(*offset)?, letters.replayed.contains(offset), *raw)
        }
        DeadLettersCommand::Replay { offsets, all } => {
            let chosen = |letters: &Letters| match all {
                true => letters.waiting().collect(),
                false => offsets.clone(),
            };
            let is_of_jobs = |letter: &DeadLetter| names.door(&letter.topic).is_some();
            let count = replay(&topics, &names.dead_letters(), chosen, is_of_jobs).await?;
            print(&format!(
                "{count} put back to where they came from: each is a new job, or a new dead letter"
            ))
        }
    }
}

/// What stands on the topic of dead letters.
#[derive(Default)]
struct Letters {
    dead: BTreeMap<i64, DeadLetter>,
    replayed: BTreeSet<i64>,
    began: BTreeSet<String>,
    /// The first offset that was read, and the one after the last.
    read: Option<(i64, i64)>,
}

impl Letters {
    fn take(&mut self, record: &topics::Record) {
        let first = self.read.map_or(record.offset, |(first, _)| first);
        self.read = Some((first, record.offset + 1));
        match Letter::read(record) {
            Some(Letter::Dead(letter)) => drop(self.dead.insert(record.offset, letter)),
            Some(Letter::Replayed(offset)) => drop(self.replayed.insert(offset)),
            Some(Letter::Began(id)) => drop(self.began.insert(id)),
            None => tracing::warn!(offset = record.offset, "record is no dead letter"),
        }
    }

    fn get(&self, offset: i64) -> anyhow::Result<&DeadLetter> {
        let missing = || format!("there is no dead letter {offset}: see `tributary dead-letters list`");
        self.dead.get(&offset).with_context(missing)
    }

    /// The offsets of those that were not replayed.
    fn waiting(&self) -> impl Iterator<Item = i64> {
        self.dead
            .keys()
            .filter(|offset| !self.replayed.contains(offset))
            .copied()
    }

    /// What puts each of `offsets` back to the topic of jobs that it came from, and says so on `topic`.
    ///
    /// # Errors
    /// Where there is no such letter, it was put back before, or it is of no topic of jobs.
    fn appends(
        &self,
        offsets: &[i64],
        is_of_jobs: impl Fn(&DeadLetter) -> bool,
        topic: &TopicName,
    ) -> anyhow::Result<Vec<Append>> {
        let now_ms = chrono::Utc::now().timestamp_millis();
        let mut appends = Vec::new();
        for offset in offsets.iter().collect::<BTreeSet<_>>() {
            let letter = self.get(*offset)?;
            ensure!(
                !self.replayed.contains(offset),
                "dead letter {offset} was replayed before: nothing was done"
            );
            ensure!(
                is_of_jobs(letter),
                "dead letter {offset} is of the internal topic `{}`, where only its stage may append, in order: nothing was done. Submit its job again",
                letter.topic
            );
            appends.extend(letter.replay(topic.clone(), now_ms));
        }
        Ok(appends)
    }
}

fn subscription(topic: &TopicName) -> Subscription {
    Subscription {
        patterns: vec![TopicPattern::Exact(topic.clone())],
    }
}

/// Everything that is on `topic` now.
async fn look(topics: &Arc<dyn Topics>, topic: &TopicName) -> anyhow::Result<Letters> {
    let group = format!("{GROUP}-{}", uuid::Uuid::new_v4().simple());
    let mut reader = topics.reader(&group, &subscription(topic)).await?;
    let mut letters = Letters::default();
    let looked = async {
        assigned(reader.as_mut(), topic).await?;
        let count = i64::try_from(topics.lag(&group, &subscription(topic)).await?)?;
        while letters.read.map_or(0, |(first, end)| end - first) < count {
            let limit = if letters.read.is_some() { SILENCE } else { LIMIT };
            let Ok(event) = tokio::time::timeout(limit, reader.next()).await else {
                break;
            };
            if let Event::Records(chunk) = event? {
                chunk.records.iter().for_each(|record| letters.take(record));
            }
        }
        anyhow::Ok(())
    };
    let looked = looked.await;
    reader.close().await?;
    looked.map(|()| letters)
}

/// Puts letters back, and says so on the topic of dead letters: both or neither. How many.
async fn replay(
    topics: &Arc<dyn Topics>,
    topic: &TopicName,
    chosen: impl Fn(&Letters) -> Vec<i64>,
    is_of_jobs: impl Fn(&DeadLetter) -> bool,
) -> anyhow::Result<usize> {
    let (mut reader, mut committer) = topics.stage(GROUP, &subscription(topic)).await?;
    let replayed = async {
        let source = assigned(reader.as_mut(), topic).await?;
        // When this comes back, every replay before it has been read too.
        let id = uuid::Uuid::new_v4().simple().to_string();
        let begins = replay_begins(&id, topic.clone(), chrono::Utc::now().timestamp_millis());
        commit(committer.as_mut(), &source, vec![begins]).await?;
        let mut letters = Letters::default();
        while !letters.began.contains(&id) {
            let event = tokio::time::timeout(LIMIT, reader.next()).await;
            match event.with_context(|| {
                format!(
                    "`{topic}` could not be read to its end within {} s: nothing was done",
                    LIMIT.as_secs()
                )
            })?? {
                Event::Records(chunk) => chunk.records.iter().for_each(|record| letters.take(record)),
                Event::Revoked(_) => {
                    bail!("another `tributary dead-letters replay` took over: nothing was done")
                }
                Event::Assigned(_) => {}
            }
        }
        let appends = letters.appends(&chosen(&letters), is_of_jobs, topic)?;
        let count = appends.len() / 2;
        if count > 0 {
            commit(committer.as_mut(), &source, appends).await?;
        }
        Ok(count)
    };
    let replayed = replayed.await;
    reader.close().await?;
    replayed
}

/// Waits until the topic is handed to `reader`.
async fn assigned(reader: &mut dyn Reader, topic: &TopicName) -> anyhow::Result<(Partition, Assignment)> {
    let first = async {
        loop {
            if let Event::Assigned(partitions) = reader.next().await?
                && let Some(first) = partitions.into_iter().next()
            {
                return anyhow::Ok(first);
            }
        }
    };
    tokio::time::timeout(LIMIT, first).await.with_context(|| {
        format!(
            "the topic `{topic}` was not handed to this command within {} s: is there such a topic, and is no other `tributary dead-letters replay` at work?",
            LIMIT.as_secs()
        )
    })?
}

/// Commits `appends`. The group itself never moves on: the next replay reads everything again.
async fn commit(
    committer: &mut dyn Committer,
    (source, assignment): &(Partition, Assignment),
    appends: Vec<Append>,
) -> anyhow::Result<()> {
    let step = Step {
        source: source.clone(),
        assignment: *assignment,
        next_offset: 0,
        appends,
        note: None,
    };
    let committed = committer
        .append_and_commit(vec![step])
        .await
        .context("whether it was done is not known: see `tributary dead-letters list`")?;
    ensure!(
        committed.left_out.is_empty(),
        "another `tributary dead-letters replay` took over: nothing was done"
    );
    Ok(())
}

fn list(letters: &Letters, json: bool) -> anyhow::Result<()> {
    for (offset, letter) in &letters.dead {
        let replayed = letters.replayed.contains(offset);
        if json {
            let line = serde_json::json!({
                "offset": offset,
                "topic": letter.topic,
                "topic_partition": letter.partition,
                "topic_offset": letter.offset,
                "bytes": letter.record.value.as_deref().map_or(0, <[u8]>::len),
                "reason": letter.reason,
                "replayed": replayed,
            });
            print(&line.to_string())?;
        } else {
            let mark = if replayed { "  (replayed)" } else { "" };
            print(&format!(
                "{offset:>6}  {}{mark}  {}",
                stood(letter),
                letter.reason
            ))?;
        }
    }
    if json {
        return Ok(());
    }
    let (dead, waiting) = (letters.dead.len(), letters.waiting().count());
    print(&format!("{dead} dead letters, {waiting} not replayed"))
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

//! `tributary dead-letters`: the records that nobody could decode, and how they are put back.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use schemas::{Action, AuditEvent, Operation, TopicName, printable};
use topics::{Append, DeadLetter, Event, Letter, Topics, replay_begins};

use crate::{
    access, audit,
    cli::{DeadLettersCommand, print},
    config::{Config, Delivery},
    pipeline::open_topics,
    sole::{LIMIT, Sole, assigned, subscription},
};

/// Who replays is the one member of this group. On Kafka its instance has this name too, so that of two replays at once
/// the newer fences the older. Who only looks has a group of its own, whose name begins so.
pub(crate) const GROUP: &str = "tributary-dead-letters";
/// On Kafka the markers of transactions count as records that never come: then the end is where nothing comes for this long.
const SILENCE: Duration = Duration::from_secs(3);
/// What the user types to replay.
const REPLAY: &str = "tributary dead-letters replay";
/// The audit tells of so many letters which they were.
const LETTERS_TOLD_MAX: usize = 100;
/// A key, a header and the value are shown up to this many characters.
const SHOWN_CHARS_MAX: usize = 2_000;

/// Lists, shows or replays dead letters.
pub(crate) async fn run(config: &Config, command: &DeadLettersCommand) -> anyhow::Result<()> {
    let names = config.topics.names();
    let mut config = config.clone();
    config.topics.instance = GROUP.to_owned();
    let topics = open_topics(&config, Delivery::Transactional)?;
    let operation = Operation::ReplayDeadLetters;
    let by = match command {
        DeadLettersCommand::Replay { .. } => {
            let action = Action::ReplayDeadLetters;
            access::permit_change(&config, topics.as_ref(), action, operation).await?
        }
        _ => access::permit(&config, Action::ViewDeadLetters)?,
    };
    match command {
        DeadLettersCommand::List { json } => {
            let letters = look(&topics, &names.dead_letters(), Wanted::These(BTreeSet::new())).await?;
            list(&letters, *json)
        }
        DeadLettersCommand::Show { offset, raw } => {
            let wanted = Wanted::These([*offset].into());
            let letters = look(&topics, &names.dead_letters(), wanted).await?;
            show(letters.get(*offset)?, letters.replayed.contains(offset), *raw)
        }
        DeadLettersCommand::Replay { offsets, all } => {
            let wanted = match all {
                true => Wanted::All,
                false => Wanted::These(offsets.iter().copied().collect()),
            };
            let is_of_jobs = |letter: &DeadLetter| names.door(&letter.topic).is_some();
            let audited = |offsets: &[i64]| {
                let detail = told(offsets, &names.dead_letters());
                let event = AuditEvent {
                    count: offsets.len() as u64,
                    ..audit::of_command(operation, detail, by.clone())
                };
                audit::appends_of_command(&config, event)
            };
            topics.ensure(&[ingest::Service::audit_spec(&names)]).await?;
            let count = replay(&topics, &names.dead_letters(), wanted, is_of_jobs, audited).await?;
            print(&format!(
                "{count} put back to where they came from: each is a new job, or a new dead letter"
            ))
        }
    }
}

/// Which letters were put back, in words: the first of them, if they are many.
fn told(offsets: &[i64], topic: &TopicName) -> String {
    let some: Vec<String> = offsets
        .iter()
        .take(LETTERS_TOLD_MAX)
        .map(i64::to_string)
        .collect();
    let more = if offsets.len() > some.len() {
        " and others"
    } else {
        ""
    };
    format!("put back from `{topic}`, offsets: {}{more}", some.join(", "))
}

/// Which letters are kept whole, bytes and all.
enum Wanted {
    These(BTreeSet<i64>),
    All,
}

impl Wanted {
    fn has(&self, offset: i64) -> bool {
        match self {
            Self::These(offsets) => offsets.contains(&offset),
            Self::All => true,
        }
    }
}

/// What stands on the topic of dead letters.
struct Letters {
    listed: BTreeMap<i64, Listed>,
    wanted: Wanted,
    whole: BTreeMap<i64, DeadLetter>,
    replayed: BTreeSet<i64>,
    began: BTreeSet<String>,
    /// The first offset that was read, and the one after the last.
    read: Option<(i64, i64)>,
}

/// What a list says of a letter.
struct Listed {
    topic: TopicName,
    partition: i32,
    offset: i64,
    bytes: usize,
    reason: String,
}

impl Listed {
    fn of(letter: &DeadLetter) -> Self {
        Self {
            topic: letter.topic.clone(),
            partition: letter.partition,
            offset: letter.offset,
            bytes: letter.record.value.as_deref().map_or(0, <[u8]>::len),
            reason: letter.reason.clone(),
        }
    }
}

impl Letters {
    /// None yet, of which those `wanted` will be kept whole.
    fn keeping(wanted: Wanted) -> Self {
        Self {
            listed: BTreeMap::new(),
            wanted,
            whole: BTreeMap::new(),
            replayed: BTreeSet::new(),
            began: BTreeSet::new(),
            read: None,
        }
    }

    fn take(&mut self, record: &topics::Record) {
        let first = self.read.map_or(record.offset, |(first, _)| first);
        self.read = Some((first, record.offset + 1));
        match Letter::read(record) {
            Some(Letter::Dead(letter)) => {
                self.listed.insert(record.offset, Listed::of(&letter));
                if self.wanted.has(record.offset) {
                    self.whole.insert(record.offset, letter);
                }
            }
            Some(Letter::Replayed(offset)) => drop(self.replayed.insert(offset)),
            Some(Letter::Began(id)) => drop(self.began.insert(id)),
            None => tracing::warn!(offset = record.offset, "record is no dead letter"),
        }
    }

    fn get(&self, offset: i64) -> anyhow::Result<&DeadLetter> {
        let missing = || format!("there is no dead letter {offset}: see `tributary dead-letters list`");
        self.whole.get(&offset).with_context(missing)
    }

    /// The offsets of those that were not replayed.
    fn waiting(&self) -> impl Iterator<Item = i64> {
        self.listed
            .keys()
            .filter(|offset| !self.replayed.contains(offset))
            .copied()
    }

    /// The offsets of those that are wanted: of all, those that were not replayed.
    fn chosen(&self) -> Vec<i64> {
        match &self.wanted {
            Wanted::These(offsets) => offsets.iter().copied().collect(),
            Wanted::All => self.waiting().collect(),
        }
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
        for offset in offsets {
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

/// Everything that is on `topic` now, and those `wanted` whole.
async fn look(topics: &Arc<dyn Topics>, topic: &TopicName, wanted: Wanted) -> anyhow::Result<Letters> {
    let group = format!("{GROUP}-{}", uuid::Uuid::new_v4().simple());
    let mut reader = topics.reader(&group, &subscription(topic)).await?;
    let mut letters = Letters::keeping(wanted);
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

/// Puts letters back, and says so on the topic of dead letters and in the audit: all or nothing. How many.
async fn replay(
    topics: &Arc<dyn Topics>,
    topic: &TopicName,
    wanted: Wanted,
    is_of_jobs: impl Fn(&DeadLetter) -> bool,
    audited: impl Fn(&[i64]) -> Vec<Append>,
) -> anyhow::Result<usize> {
    let mut sole = Sole::join(topics.as_ref(), GROUP, topic, REPLAY).await?;
    let replayed = async {
        // When this comes back, every replay before it has been read too.
        let id = uuid::Uuid::new_v4().simple().to_string();
        let begins = replay_begins(&id, topic.clone(), chrono::Utc::now().timestamp_millis());
        sole.commit(vec![begins]).await?;
        let mut letters = Letters::keeping(wanted);
        while !letters.began.contains(&id) {
            let event = tokio::time::timeout(LIMIT, sole.reader.next()).await;
            match event.with_context(|| {
                format!(
                    "`{topic}` could not be read to its end within {} s: nothing was done",
                    LIMIT.as_secs()
                )
            })?? {
                Event::Records(chunk) => chunk.records.iter().for_each(|record| letters.take(record)),
                Event::Revoked(_) => bail!("another `{REPLAY}` took over: nothing was done"),
                Event::Assigned(_) => {}
            }
        }
        let chosen = letters.chosen();
        let mut appends = letters.appends(&chosen, is_of_jobs, topic)?;
        let count = appends.len() / 2;
        if count > 0 {
            appends.extend(audited(&chosen));
            sole.commit(appends).await?;
        }
        Ok(count)
    };
    let replayed = replayed.await;
    sole.reader.close().await?;
    replayed
}

fn list(letters: &Letters, json: bool) -> anyhow::Result<()> {
    for (offset, letter) in &letters.listed {
        let replayed = letters.replayed.contains(offset);
        if json {
            let line = serde_json::json!({
                "offset": offset,
                "topic": letter.topic,
                "topic_partition": letter.partition,
                "topic_offset": letter.offset,
                "bytes": letter.bytes,
                "reason": letter.reason,
                "replayed": replayed,
            });
            print(&line.to_string())?;
        } else {
            let mark = if replayed { "  (replayed)" } else { "" };
            print(&format!(
                "{offset:>6}  {}{mark}  {}",
                stood(&letter.topic, letter.partition, letter.offset),
                letter.reason
            ))?;
        }
    }
    if json {
        return Ok(());
    }
    let (dead, waiting) = (letters.listed.len(), letters.waiting().count());
    print(&format!("{dead} dead letters, {waiting} not replayed"))
}

fn stood(topic: &TopicName, partition: i32, offset: i64) -> String {
    format!("{topic}[{partition}]@{offset}")
}

fn show(letter: &DeadLetter, replayed: bool, raw: bool) -> anyhow::Result<()> {
    if raw {
        let value = letter.record.value.as_deref();
        return Ok(std::io::stdout().write_all(value.unwrap_or_default())?);
    }
    described(letter, replayed)
        .iter()
        .try_for_each(|line| print(line))
}

/// What there is to say of a letter, for a terminal. Its key, headers and value are whatever a producer wrote.
fn described(letter: &DeadLetter, replayed: bool) -> Vec<String> {
    let text = |bytes: &[u8]| printable(&String::from_utf8_lossy(bytes), SHOWN_CHARS_MAX);
    let mut lines = vec![
        format!(
            "stood at   {}",
            stood(&letter.topic, letter.partition, letter.offset)
        ),
        format!("reason     {}", letter.reason),
    ];
    if let Some(time) = chrono::DateTime::from_timestamp_millis(letter.record.timestamp_ms) {
        lines.push(format!("written    {}", time.to_rfc3339()));
    }
    lines.push(format!("replayed   {}", if replayed { "yes" } else { "no" }));
    if let Some(key) = &letter.record.key {
        lines.push(format!("key        {}", text(key)));
    }
    for header in &letter.record.headers {
        let (name, value) = (text(header.name.as_bytes()), header.value.as_deref());
        lines.push(format!("header     {name}: {}", text(value.unwrap_or_default())));
    }
    lines.push(match letter.record.value.as_deref() {
        None => "value      none: a tombstone".to_owned(),
        Some(value) => format!(
            "value      {} bytes, --raw writes them as they are:\n{}",
            value.len(),
            text(value)
        ),
    });
    lines
}

#[cfg(test)]
mod tests {
    use schemas::TopicId;
    use topics::{Header, Partition, Record, TopicRef, dead_letter};

    use super::*;

    /// The letter that stands at `offset`, of a record of one byte more.
    fn letter(offset: i64) -> Record {
        let jobs = TopicRef {
            name: TopicName::new("jobs").unwrap(),
            id: TopicId::from_bytes([7; 16]),
        };
        let source = Partition {
            topic: Arc::new(jobs),
            index: 0,
        };
        let bytes = usize::try_from(offset).unwrap() + 1;
        let broken = Record {
            offset: 10 * offset,
            timestamp_ms: 0,
            stamped_by_log: false,
            key: None,
            value: Some(vec![b'{'; bytes].into()),
            headers: Vec::new(),
        };
        let letters = TopicName::new("letters").unwrap();
        let append = dead_letter(&source, &broken, "no JSON", letters, 0);
        Record {
            offset,
            value: append.value,
            headers: append.headers,
            ..broken
        }
    }

    #[test]
    fn a_list_needs_no_letter_whole_and_who_asks_for_one_gets_it_alone() {
        let read = |wanted| {
            let mut letters = Letters::keeping(wanted);
            (0..3).for_each(|offset| letters.take(&letter(offset)));
            letters.replayed.insert(0);
            let bytes: Vec<usize> = letters.listed.values().map(|letter| letter.bytes).collect();
            assert_eq!(bytes, [1, 2, 3]);
            letters
        };
        let listed = read(Wanted::These(BTreeSet::new()));
        assert!(listed.whole.is_empty() && listed.chosen().is_empty());
        assert_eq!(listed.waiting().collect::<Vec<_>>(), [1, 2]);
        let one = read(Wanted::These([1].into()));
        assert_eq!(one.chosen(), [1]);
        assert_eq!(one.get(1).unwrap().record.value.as_deref(), Some(&b"{{"[..]));
        assert_eq!(one.whole.len(), 1);
        assert!(one.get(3).is_err(), "there is none");
        assert_eq!(read(Wanted::All).chosen(), [1, 2]);
    }

    #[test]
    fn what_a_producer_wrote_gives_no_command_to_the_terminal_of_whoever_looks_at_it() {
        let record = Record {
            offset: 7,
            timestamp_ms: 0,
            stamped_by_log: false,
            key: Some("k\x1b]0;title\x07".into()),
            value: Some(format!("{{\x1b[2J\r{}", "x".repeat(SHOWN_CHARS_MAX)).into()),
            headers: vec![Header::text("h\x1b[1m", "v\x1b[1m")],
        };
        let letter = DeadLetter {
            topic: TopicName::new("jobs").unwrap(),
            partition: 0,
            offset: 3,
            reason: "no JSON".to_owned(),
            record,
        };
        let lines = described(&letter, false);
        assert_eq!(lines[0], "stood at   jobs[0]@3");
        assert_eq!(lines[4], r"key        k\u{1b}]0;title\u{7}");
        assert_eq!(lines[5], r"header     h\u{1b}[1m: v\u{1b}[1m");
        let (said, value) = lines[6].split_once('\n').unwrap();
        assert_eq!(said, "value      2006 bytes, --raw writes them as they are:");
        assert!(
            value.starts_with(r"{\u{1b}[2J\rxx") && value.ends_with("x…"),
            "{value}"
        );
    }
}

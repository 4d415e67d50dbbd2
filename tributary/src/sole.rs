//! A command that does its work alone: it is the one member of a group that reads one topic, and what it appends is one
//! commit.

use std::time::Duration;

use anyhow::{Context, ensure};
use schemas::TopicName;
use topics::{
    Append, Assignment, Committer, Event, Partition, Reader, Step, Subscription, TopicPattern, Topics,
};

/// How long it may take until the topic is handed over; a member that was killed keeps it for a while, and a transaction
/// that was left open hides what comes after it for a while.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// The one member of a group.
pub(crate) struct Sole {
    pub(crate) reader: Box<dyn Reader>,
    committer: Box<dyn Committer>,
    source: (Partition, Assignment),
    /// What the user typed.
    command: &'static str,
}

impl Sole {
    /// Joins `group`, whose one topic is `topic`, for `command`.
    pub(crate) async fn join(
        topics: &dyn Topics,
        group: &str,
        topic: &TopicName,
        command: &'static str,
    ) -> anyhow::Result<Self> {
        let (mut reader, committer) = topics.stage(group, &subscription(topic)).await?;
        match assigned(reader.as_mut(), topic).await {
            Ok(source) => Ok(Self {
                reader,
                committer,
                source,
                command,
            }),
            Err(error) => {
                reader.close().await?;
                Err(error.context(format!("`{command}` works alone: is another at work?")))
            }
        }
    }

    /// Appends all or nothing. The group itself never moves on: the next member reads everything again.
    pub(crate) async fn commit(&mut self, appends: Vec<Append>) -> anyhow::Result<()> {
        let (source, assignment) = self.source.clone();
        let step = Step {
            source,
            assignment,
            next_offset: 0,
            appends,
            note: None,
        };
        let committed = self.committer.append_and_commit(vec![step]).await;
        let committed =
            committed.context("whether it was done is not known: look, and do it again if need be")?;
        ensure!(
            committed.left_out.is_empty(),
            "another `{}` took over: nothing was done",
            self.command
        );
        Ok(())
    }
}

pub(crate) fn subscription(topic: &TopicName) -> Subscription {
    Subscription::to(vec![TopicPattern::Exact(topic.clone())])
}

/// Waits until the topic is handed to `reader`.
pub(crate) async fn assigned(
    reader: &mut dyn Reader,
    topic: &TopicName,
) -> anyhow::Result<(Partition, Assignment)> {
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
            "the topic `{topic}` was not handed to this command within {} s: is there such a topic?",
            LIMIT.as_secs()
        )
    })?
}

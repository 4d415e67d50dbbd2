//! Topics in an Apache Kafka cluster, through librdkafka.
//!
//! ```text
//! librdkafka ──poll──▶ the reader's thread ──events──▶ the stage ──steps──▶ the committer's thread ──▶ librdkafka
//!                        │ what changes hands, at once                        ▲ what is still held
//!                        └──────────────────▶ membership ─────────────────────┘
//! ```
//!
//! A commit is one Kafka transaction: the appends and the group's offsets, both or neither. Readers see committed
//! records only.

mod admin;
mod appender;
mod blocking;
mod client;
mod committer;
mod ids;
mod last;
mod lookout;
mod membership;
mod native;
mod polled;
mod reader;
mod settings;
mod stall;

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use rdkafka::{
    admin::AdminClient,
    consumer::BaseConsumer,
    producer::{BaseProducer, Producer},
    types::RDKafkaErrorCode,
};
use schemas::TopicName;

use crate::{Appender, Committer, Error, Reader, Record, Standing, Subscription, TopicSpec, Topics};
use appender::KafkaAppender;
use blocking::blocking;
use client::{Complaints, classified, not_created};
use committer::{KafkaCommitter, StageProducer};
use ids::TopicIds;
use polled::polled;
use reader::KafkaReader;
pub use settings::{Delivery, Settings};

/// How long the cluster may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// What an observer is relieved of at each use. Where brokers are away it reports a few things a second.
const REPORTS_MAX: usize = 1_000;

/// Topics in a Kafka cluster.
pub struct KafkaTopics {
    settings: Settings,
    complaints: Complaints,
    /// For questions about the cluster. An `AdminClient` would not do: nobody takes in what it logs.
    client: Arc<BaseProducer<Complaints>>,
    ids: TopicIds,
    /// One client a group, for measuring its lag without joining it.
    observers: Mutex<HashMap<String, Arc<BaseConsumer<Complaints>>>>,
    /// Reads what stands at the end of topics, one at a time; made when the first is asked for.
    looker: Arc<Mutex<Option<last::Looker>>>,
}

impl KafkaTopics {
    /// Topics in the cluster that `settings` names. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a property is unknown, has an impossible value or is not the user's to set.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        settings.check()?;
        let complaints = Complaints::default();
        let client = polled(&settings.client(), complaints.clone())?;
        let ids = TopicIds::new(Arc::clone(&client));
        Ok(Self {
            settings,
            complaints,
            client,
            ids,
            observers: Mutex::default(),
            looker: Arc::default(),
        })
    }

    /// Asks the cluster for a sign of life, so that a wrong address is an error now and not silence for ever.
    async fn reach(&self) -> Result<(), Error> {
        let (client, servers) = (
            Arc::clone(&self.client),
            self.settings.bootstrap_servers().to_owned(),
        );
        blocking(move || {
            native::ping(client.client(), ANSWER_LIMIT).map_err(|code| {
                let text = client.context().explain(&code.to_string());
                let detail = format!(
                    "{text}; see that the brokers run, that Kafka property `bootstrap.servers` names them, and that \
                     `security.protocol` is theirs"
                );
                classified(&format!("reach Kafka at `{servers}`"), code, false, detail)
            })
        })
        .await
    }

    async fn join(&self, group: &str, subscription: &Subscription) -> Result<KafkaReader, Error> {
        let (config, subscription) = (
            self.settings.consumer(group, subscription.arrivals),
            subscription.clone(),
        );
        let (ids, complaints) = (self.ids.clone(), self.complaints.clone());
        let group = group.to_owned();
        blocking(move || KafkaReader::join(&config, group, &subscription, ids, complaints)).await
    }

    /// Has the looker look, once whoever uses it now is done.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&last::Looker) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (looker, config) = (Arc::clone(&self.looker), self.settings.observer(last::GROUP));
        let complaints = self.complaints.clone();
        blocking(move || {
            let mut looker = looker.lock().expect("no holder of this lock panics");
            if looker.is_none() {
                *looker = Some(last::Looker::new(config, complaints)?);
            }
            look(looker.as_ref().expect("it was just made"))
        })
        .await
    }

    fn observer(&self, group: &str) -> Result<Arc<BaseConsumer<Complaints>>, Error> {
        let mut observers = self.observers.lock().expect("no holder of this lock panics");
        let observer = match observers.entry(group.to_owned()) {
            Entry::Occupied(known) => Arc::clone(known.get()),
            Entry::Vacant(place) => {
                let mut config = self.settings.observer(group);
                // A stage in the middle of its commit is no reason to wait.
                config.set("isolation.level", "read_uncommitted");
                let observer = config
                    .create_with_context(self.complaints.clone())
                    .map_err(|error| not_created(&error))?;
                Arc::clone(place.insert(Arc::new(observer)))
            }
        };
        take_in(&observer);
        Ok(observer)
    }
}

#[async_trait]
impl Topics for KafkaTopics {
    async fn ensure(&self, specs: &[TopicSpec]) -> Result<(), Error> {
        self.reach().await?;
        let (config, complaints) = (self.settings.client(), self.complaints.clone());
        let create = move || {
            config
                .create_with_context(complaints)
                .map_err(|error| not_created(&error))
        };
        let admin: AdminClient<Complaints> = blocking(create).await?;
        let ensured = admin::ensure(&admin, &self.client, specs, self.settings.replication_factor).await;
        // Its end is waited for.
        blocking(move || {
            drop(admin);
            Ok(())
        })
        .await?;
        ensured
    }

    async fn reader(&self, group: &str, subscription: &Subscription) -> Result<Box<dyn Reader>, Error> {
        self.reach().await?;
        Ok(Box::new(self.join(group, subscription).await?))
    }

    async fn stage(
        &self,
        group: &str,
        subscription: &Subscription,
    ) -> Result<(Box<dyn Reader>, Box<dyn Committer>), Error> {
        self.reach().await?;
        let delivery = self.settings.delivery;
        let config = self.settings.stage_producer(group);
        let complaints = self.complaints.clone();
        // Before joining: a predecessor's open transaction would hide its offsets from whoever reads them now.
        let producer = blocking(move || StageProducer::new(&config, delivery, complaints)).await?;
        let reader = self.join(group, subscription).await?;
        let committer = KafkaCommitter::start(producer, reader.consumer())?;
        Ok((Box::new(reader), Box::new(committer)))
    }

    async fn appender(&self) -> Result<Box<dyn Appender>, Error> {
        self.reach().await?;
        let (config, ids, complaints) = (
            self.settings.producer(),
            self.ids.clone(),
            self.complaints.clone(),
        );
        Ok(Box::new(
            blocking(move || KafkaAppender::new(&config, ids, complaints)).await?,
        ))
    }

    async fn lag(&self, group: &str, subscription: &Subscription) -> Result<u64, Error> {
        let (observer, subscription) = (self.observer(group)?, subscription.clone());
        let admin::Lag { offsets, begins } = blocking(move || admin::lag(&observer, &subscription)).await?;
        for (topic, begins) in begins {
            if self.look(move |looker| looker.any_from(&topic, &begins)).await? {
                return Ok(offsets);
            }
        }
        Ok(0)
    }

    async fn standing(
        &self,
        group: &str,
        topics: &[TopicName],
    ) -> Result<BTreeMap<(TopicName, i32), Standing>, Error> {
        let (observer, client) = (self.observer(group)?, Arc::clone(&self.client));
        let topics = topics.to_vec();
        blocking(move || {
            let found = describe(&client, &topics)?;
            let of_topic = |(name, found): (&TopicName, &native::Described)| {
                (0_i32..)
                    .take(found.partitions)
                    .map(move |index| (name.clone(), index))
                    .collect::<Vec<_>>()
            };
            let places: Vec<(TopicName, i32)> = found.iter().flat_map(of_topic).collect();
            let partitions: Vec<(&str, i32)> = places
                .iter()
                .map(|(name, index)| (name.as_str(), *index))
                .collect();
            let mut standing = admin::standing(&observer, &partitions)
                .map_err(|error| client::failed("look where the group stands", &error))?;
            let of_place = |(name, index): (TopicName, i32)| {
                let stand = standing.remove(&(name.as_str().to_owned(), index))?;
                let of_partition = Standing {
                    behind: stand.behind(),
                    end: stand.end,
                    note: stand.note,
                };
                Some(((name, index), of_partition))
            };
            Ok(places.into_iter().filter_map(of_place).collect())
        })
        .await
    }

    async fn partitions(&self, topics: &[TopicName]) -> Result<BTreeMap<TopicName, u32>, Error> {
        self.reach().await?;
        let (client, topics) = (Arc::clone(&self.client), topics.to_vec());
        let found = blocking(move || describe(&client, &topics)).await?;
        let size = |found: native::Described| u32::try_from(found.partitions).unwrap_or(u32::MAX);
        Ok(found
            .into_iter()
            .map(|(name, found)| (name, size(found)))
            .collect())
    }

    async fn last(&self, topic: &TopicName) -> Result<Option<Record>, Error> {
        self.reach().await?;
        let (client, topic) = (Arc::clone(&self.client), topic.clone());
        self.look(move |looker| {
            if describe(&client, std::slice::from_ref(&topic))?.is_empty() {
                return Ok(None);
            }
            looker.last(&topic)
        })
        .await
    }
}

/// Takes in what `client`, which nobody else polls, has reported since it was used last.
fn take_in(client: &BaseConsumer<Complaints>) {
    for _ in 0..REPORTS_MAX {
        // Errors are told to its context, and it reads nothing.
        drop(client.poll(Duration::ZERO));
    }
}

/// Those of `topics` that exist.
fn describe(
    client: &BaseProducer<Complaints>,
    topics: &[TopicName],
) -> Result<BTreeMap<TopicName, native::Described>, Error> {
    native::describe(client.client(), topics, ANSWER_LIMIT).map_err(|(code, text)| {
        let text = if code == RDKafkaErrorCode::OperationTimedOut {
            client.context().explain(&text)
        } else {
            text
        };
        classified("describe topics", code, false, text)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rdkafka::{ClientConfig, consumer::Consumer};

    use super::*;

    #[test]
    fn what_a_client_that_nobody_polls_reports_is_told_when_it_is_taken_in() {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", "127.0.0.1:1")
            .set("group.id", "g");
        let complaints = Complaints::default();
        let client: BaseConsumer<Complaints> = config.create_with_context(complaints.clone()).unwrap();
        let is_told = || complaints.explain("").contains("127.0.0.1:1");
        let asked = client.fetch_metadata(None, Duration::from_millis(500));
        assert!(asked.is_err() && !is_told());
        let began = Instant::now();
        while !is_told() {
            assert!(began.elapsed() < ANSWER_LIMIT, "it is never told");
            take_in(&client);
        }
    }
}

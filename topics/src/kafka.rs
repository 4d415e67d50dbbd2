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
mod client;
mod committer;
mod ids;
mod membership;
mod native;
mod reader;
mod settings;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use rdkafka::{admin::AdminClient, consumer::BaseConsumer, types::RDKafkaErrorCode};
use schemas::TopicName;

use crate::{Appender, Committer, Error, Reader, Subscription, TopicSpec, Topics};
use appender::KafkaAppender;
use client::{Complaints, classified, not_created};
use committer::{KafkaCommitter, StageProducer};
use ids::TopicIds;
use reader::KafkaReader;
pub use settings::{Delivery, Settings};

/// How long the cluster may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Topics in a Kafka cluster.
pub struct KafkaTopics {
    settings: Settings,
    complaints: Complaints,
    admin: Arc<AdminClient<Complaints>>,
    ids: TopicIds,
    /// One client a group, for measuring its lag without joining it.
    observers: Mutex<HashMap<String, Arc<BaseConsumer<Complaints>>>>,
}

impl KafkaTopics {
    /// Topics in the cluster that `settings` names. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a property is unknown, has an impossible value or is not the user's to set.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        settings.check()?;
        let complaints = Complaints::default();
        let admin = settings
            .admin()
            .create_with_context(complaints.clone())
            .map_err(|error| not_created(&error))?;
        let admin = Arc::new(admin);
        let ids = TopicIds::new(Arc::clone(&admin));
        Ok(Self {
            settings,
            complaints,
            admin,
            ids,
            observers: Mutex::default(),
        })
    }

    /// Asks the cluster for a sign of life, so that a wrong address is an error now and not silence for ever.
    async fn reach(&self) -> Result<(), Error> {
        let (admin, servers) = (
            Arc::clone(&self.admin),
            self.settings.bootstrap_servers().to_owned(),
        );
        blocking(move || {
            native::ping(admin.inner(), ANSWER_LIMIT).map_err(|(code, text)| {
                let text = admin.inner().context().explain(&text);
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
        let (config, subscription) = (self.settings.consumer(group), subscription.clone());
        let (ids, complaints) = (self.ids.clone(), self.complaints.clone());
        blocking(move || KafkaReader::join(&config, &subscription, ids, complaints)).await
    }

    fn observer(&self, group: &str) -> Result<Arc<BaseConsumer<Complaints>>, Error> {
        let mut observers = self.observers.lock().expect("no holder of this lock panics");
        if let Some(observer) = observers.get(group) {
            return Ok(Arc::clone(observer));
        }
        let mut config = self.settings.consumer(group);
        // A stage in the middle of its commit is no reason to wait.
        config.set("isolation.level", "read_uncommitted");
        let observer = config
            .create_with_context(self.complaints.clone())
            .map_err(|error| not_created(&error))?;
        let observer = Arc::new(observer);
        observers.insert(group.to_owned(), Arc::clone(&observer));
        Ok(observer)
    }
}

#[async_trait]
impl Topics for KafkaTopics {
    async fn ensure(&self, specs: &[TopicSpec]) -> Result<(), Error> {
        self.reach().await?;
        admin::ensure(&self.admin, specs, self.settings.replication_factor).await
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
        let config = match delivery {
            Delivery::Transactional => self.settings.transactional_producer(group),
            Delivery::Idempotent => self.settings.producer(),
        };
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
        blocking(move || admin::lag(&observer, &subscription)).await
    }
}

/// Those of `topics` that exist.
fn describe(
    admin: &AdminClient<Complaints>,
    topics: &[TopicName],
) -> Result<BTreeMap<TopicName, native::Described>, Error> {
    native::describe(admin.inner(), topics, ANSWER_LIMIT).map_err(|(code, text)| {
        let text = if code == RDKafkaErrorCode::OperationTimedOut {
            admin.inner().context().explain(&text)
        } else {
            text
        };
        classified("describe topics", code, false, text)
    })
}

/// Runs a call that waits for the cluster where it holds nobody up.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(cancelled) => Err(Error::Unavailable {
                what: "ask Kafka".to_owned(),
                detail: cancelled.to_string(),
            }),
        },
    }
}

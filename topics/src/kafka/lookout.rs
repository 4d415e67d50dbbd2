//! Following the topics of a subscription that no regular expression describes, which librdkafka cannot do.
//!
//! Members of one group thus subscribe to different topics. That is well for the assignment strategies of librdkafka: each
//! partition goes to one of the members that have its topic.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use rdkafka::{ClientConfig, consumer::Consumer, error::KafkaError};
use schemas::TopicName;

use super::{native, reader::GroupConsumer};
use crate::Subscription;

/// How often to look where the property that says how often librdkafka does is no time, or never.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What a consumer is subscribed to.
pub(super) struct Lookout {
    subscription: Subscription,
    every: Duration,
    subscribed: BTreeSet<TopicName>,
    due: Instant,
}

impl Lookout {
    /// Of a consumer of `config` that is subscribed to nothing yet.
    pub(super) fn new(config: &ClientConfig, subscription: &Subscription) -> Self {
        let every_ms = config.get("topic.metadata.refresh.interval.ms");
        let every_ms = every_ms.and_then(|ms| ms.parse().ok()).filter(|ms| *ms > 0);
        Self {
            subscription: subscription.clone(),
            every: every_ms.map_or(LOOK_EVERY, Duration::from_millis),
            subscribed: BTreeSet::new(),
            due: Instant::now(),
        }
    }

    /// Whether it is time to look again.
    pub(super) fn is_due(&self) -> bool {
        Instant::now() >= self.due
    }

    /// Subscribes `consumer` to the topics that there are now. Waits for the cluster, but not longer than `limit`.
    pub(super) fn look(&mut self, consumer: &GroupConsumer, limit: Duration) -> Result<(), KafkaError> {
        self.due = Instant::now() + self.every;
        let found = consumer.fetch_metadata(None, limit)?;
        let names = found
            .topics()
            .iter()
            .filter_map(|topic| TopicName::new(topic.name()).ok());
        let topics: BTreeSet<TopicName> = names.filter(|name| self.subscription.matches(name)).collect();
        if topics == self.subscribed {
            return Ok(());
        }
        // While a member that has lost its place joins again, librdkafka 2.12 can abort the process over another subscription.
        // It joins as long as one of the topics is there.
        let joins = !self.subscribed.is_disjoint(&topics) && native::member_id(consumer.client()).is_none();
        if joins {
            return Ok(());
        }
        if topics.is_empty() {
            consumer.unsubscribe();
        } else {
            let names: Vec<&str> = topics.iter().map(TopicName::as_str).collect();
            consumer.subscribe(&names)?;
        }
        self.subscribed = topics;
        Ok(())
    }
}

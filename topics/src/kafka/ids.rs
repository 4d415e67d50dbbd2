//! The ids of topics, by name.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rdkafka::producer::BaseProducer;
use schemas::TopicName;

use super::{client::Complaints, describe, native};
use crate::{Error, TopicRef};

/// How long an id is taken for true without asking. Whoever needs the id of this very moment asks.
const TRUSTED_FOR: Duration = Duration::from_secs(10);

/// The topics that were asked for, and when.
type Known = HashMap<TopicName, (Arc<TopicRef>, Instant)>;

/// Asks the cluster for the ids of topics. Clones share what is known.
#[derive(Clone)]
pub(super) struct TopicIds {
    client: Arc<BaseProducer<Complaints>>,
    known: Arc<Mutex<Known>>,
}

impl TopicIds {
    pub(super) fn new(client: Arc<BaseProducer<Complaints>>) -> Self {
        Self {
            client,
            known: Arc::default(),
        }
    }

    /// The topics of these names as they are now; those that do not exist are missing. Waits for the cluster.
    pub(super) fn ask(&self, mut names: Vec<TopicName>) -> Result<BTreeMap<TopicName, Arc<TopicRef>>, Error> {
        names.sort_unstable();
        names.dedup();
        let described = describe(&self.client, &names)?;
        let mut known = self.known.lock().expect("no holder of this lock panics");
        let topics = described.into_iter().map(|(name, native::Described { id, .. })| {
            // One allocation a topic, however often it is asked for.
            let topic = match known.get(&name) {
                Some((topic, _)) if topic.id == id => Arc::clone(topic),
                _ => Arc::new(TopicRef {
                    name: name.clone(),
                    id,
                }),
            };
            known.insert(name.clone(), (Arc::clone(&topic), Instant::now()));
            (name, topic)
        });
        Ok(topics.collect())
    }

    /// As [`TopicIds::ask`], but without asking for what was asked for of late.
    pub(super) fn recall(&self, names: Vec<TopicName>) -> Result<BTreeMap<TopicName, Arc<TopicRef>>, Error> {
        let (mut topics, mut missing) = (BTreeMap::new(), Vec::new());
        {
            let known = self.known.lock().expect("no holder of this lock panics");
            for name in names {
                match known.get(&name) {
                    Some((topic, asked)) if asked.elapsed() < TRUSTED_FOR => {
                        topics.insert(name, Arc::clone(topic));
                    }
                    _ => missing.push(name),
                }
            }
        }
        if !missing.is_empty() {
            topics.extend(self.ask(missing)?);
        }
        Ok(topics)
    }
}

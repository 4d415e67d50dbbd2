//! An appender that is replaced when it can append no more.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Mutex;
use topics::{Append, Appender, Error, Partition, Topics};

/// Appends for as long as the process runs: after an error that says to start over it makes another appender, since the one
/// that met it fails from then on.
pub(crate) struct RenewedAppender {
    topics: Arc<dyn Topics>,
    /// None until the next one is made.
    current: Mutex<Option<Arc<dyn Appender>>>,
}

impl RenewedAppender {
    /// To `topics`.
    ///
    /// # Errors
    /// Where the first one cannot be made.
    pub(crate) async fn open(topics: Arc<dyn Topics>) -> Result<Self, Error> {
        let first = topics.appender().await?;
        Ok(Self {
            topics,
            current: Mutex::new(Some(first.into())),
        })
    }

    async fn current(&self) -> Result<Arc<dyn Appender>, Error> {
        let mut current = self.current.lock().await;
        if let Some(appender) = &*current {
            return Ok(Arc::clone(appender));
        }
        let made = self.topics.appender().await?;
        Ok(Arc::clone(current.insert(made.into())))
    }
}

#[async_trait]
impl Appender for RenewedAppender {
    async fn append(&self, records: Vec<Append>) -> Vec<Result<(Partition, i64), Error>> {
        let appender = match self.current().await {
            Ok(appender) => appender,
            Err(error) => {
                let not_tried = |record: Append| Error::Unavailable {
                    what: format!("append to `{}`", record.topic),
                    detail: error.to_string(),
                };
                return records.into_iter().map(|record| Err(not_tried(record))).collect();
            }
        };
        let appended = appender.append(records).await;
        let is_at_its_end = |result: &Result<_, _>| matches!(result, Err(Error::Fenced { .. }));
        if appended.iter().any(is_at_its_end) {
            let mut current = self.current.lock().await;
            // Somebody else may have found that out, and have another by now.
            current.take_if(|current| Arc::ptr_eq(current, &appender));
        }
        appended
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        collections::BTreeMap,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use schemas::TopicName;
    use topics::{Committer, Reader, Record, Standing, Subscription, TopicSpec, local::LocalTopics};

    use super::*;

    /// Topics in memory whose first appenders are at their end from the beginning.
    pub(crate) struct Ending {
        pub(crate) inner: LocalTopics,
        pub(crate) ended: AtomicUsize,
    }

    impl Ending {
        pub(crate) fn first(appenders: usize) -> Arc<Self> {
            Arc::new(Self {
                inner: LocalTopics::in_memory(),
                ended: AtomicUsize::new(appenders),
            })
        }
    }

    struct Ended;

    #[async_trait]
    impl Appender for Ended {
        async fn append(&self, records: Vec<Append>) -> Vec<Result<(Partition, i64), Error>> {
            let ended = |_| {
                Err(Error::Fenced {
                    what: "append".to_owned(),
                    detail: "the producer had a fatal error".to_owned(),
                })
            };
            records.into_iter().map(ended).collect()
        }
    }

    #[async_trait]
    impl Topics for Ending {
        async fn appender(&self) -> Result<Box<dyn Appender>, Error> {
            let one_less = |left: usize| left.checked_sub(1);
            match self
                .ended
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
            {
                Ok(_) => Ok(Box::new(Ended)),
                Err(_) => self.inner.appender().await,
            }
        }

        async fn ensure(&self, specs: &[TopicSpec]) -> Result<(), Error> {
            self.inner.ensure(specs).await
        }

        async fn reader(&self, group: &str, subscription: &Subscription) -> Result<Box<dyn Reader>, Error> {
            self.inner.reader(group, subscription).await
        }

        async fn stage(
            &self,
            group: &str,
            subscription: &Subscription,
        ) -> Result<(Box<dyn Reader>, Box<dyn Committer>), Error> {
            self.inner.stage(group, subscription).await
        }

        async fn lag(&self, group: &str, subscription: &Subscription) -> Result<u64, Error> {
            self.inner.lag(group, subscription).await
        }

        async fn standing(
            &self,
            group: &str,
            topics: &[TopicName],
        ) -> Result<BTreeMap<(TopicName, i32), Standing>, Error> {
            self.inner.standing(group, topics).await
        }

        async fn partitions(&self, topics: &[TopicName]) -> Result<BTreeMap<TopicName, u32>, Error> {
            self.inner.partitions(topics).await
        }

        async fn last(&self, topic: &TopicName) -> Result<Option<Record>, Error> {
            self.inner.last(topic).await
        }
    }

    #[tokio::test]
    async fn an_appender_that_is_at_its_end_is_replaced() {
        let (topics, jobs) = (Ending::first(2), TopicName::new("jobs").unwrap());
        topics.ensure(&[TopicSpec::new(jobs.clone(), 1)]).await.unwrap();
        let appender = RenewedAppender::open(topics).await.unwrap();
        let append = || Append {
            topic: jobs.clone(),
            partition: None,
            timestamp_ms: 0,
            key: None,
            value: None,
            headers: Vec::new(),
        };
        let mut told = Vec::new();
        for _ in 0..4 {
            let appended = appender.append(vec![append()]).await.remove(0);
            told.push(appended.map(|(_, offset)| offset).ok());
        }
        assert_eq!(told, [None, None, Some(0), Some(1)]);
    }
}

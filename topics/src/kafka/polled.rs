//! A producer and the thread that polls it.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, ProducerContext},
};

use super::client::not_created;
use crate::Error;

/// How long a poll lasts. What is reported is taken in at once; this is how soon the thread ends, and rdkafka spins for
/// the last millisecond of a poll, so it should not be short.
const POLL_LIMIT: Duration = Duration::from_millis(500);

/// Makes a producer of `config`, and a thread that takes in what librdkafka reports until nobody else holds the producer,
/// and then destroys it.
pub(super) fn polled<C: ProducerContext + 'static>(
    config: &ClientConfig,
    context: C,
) -> Result<Arc<BaseProducer<C>>, Error> {
    let producer: BaseProducer<C> = config
        .create_with_context(context)
        .map_err(|error| not_created(&error))?;
    let producer = Arc::new(producer);
    let held = Arc::clone(&producer);
    let thread = move || {
        while Arc::strong_count(&held) > 1 {
            held.poll(POLL_LIMIT);
        }
    };
    std::thread::Builder::new()
        .name("kafka-producer".to_owned())
        .spawn(thread)
        .map_err(|error| Error::Unavailable {
            what: "start the thread of a Kafka producer".to_owned(),
            detail: error.to_string(),
        })?;
    Ok(producer)
}

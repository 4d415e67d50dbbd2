//! What librdkafka offers and rdkafka does not wrap.
#![expect(
    unsafe_code,
    reason = "calls of the C library; each block is short and says what it relies on"
)]

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, c_char},
    marker::PhantomData,
    ptr,
    time::Duration,
};

use bytes::Bytes;
use rdkafka::{
    ClientContext,
    client::Client,
    message::BorrowedMessage,
    types::{RDKafkaErrorCode, RDKafkaRespErr},
};
use rdkafka_sys as sys;
use schemas::{TopicId, TopicName};

use crate::Header;

/// The headers of `message`. Unlike rdkafka's own, this takes names that are not UTF-8, which a producer may well send:
/// their broken bytes are replaced.
pub(super) fn headers(message: &BorrowedMessage<'_>) -> Vec<Header> {
    let mut headers = Vec::new();
    let mut list = ptr::null_mut();
    // SAFETY: the message is alive; the list, which the message keeps owning, is only read while it is borrowed.
    let found = unsafe { sys::rd_kafka_message_headers(message.ptr(), &mut list) };
    if found != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return headers;
    }
    loop {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: as above; an index past the end gives an error and writes nothing.
        let found =
            unsafe { sys::rd_kafka_header_get_all(list, headers.len(), &mut name, &mut value, &mut size) };
        if found != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return headers;
        }
        // SAFETY: librdkafka ends names with a NUL.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        // SAFETY: a value that is not null has `size` bytes.
        let value =
            (!value.is_null()).then(|| unsafe { std::slice::from_raw_parts(value.cast::<u8>(), size) });
        headers.push(Header {
            name,
            value: value.map(Bytes::copy_from_slice),
        });
    }
}

/// The consumer's id in its group; none while it is not a member.
pub(super) fn member_id<C: ClientContext>(consumer: &Client<C>) -> Option<String> {
    // SAFETY: the client is alive. The text, where there is one, ends with a NUL, is ours and is given back below.
    let text = unsafe { sys::rd_kafka_memberid(consumer.native_ptr()) };
    if text.is_null() {
        return None;
    }
    // SAFETY: as above.
    let id = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: as above, and `text` is not used again.
    unsafe { sys::rd_kafka_mem_free(consumer.native_ptr(), text.cast()) };
    (!id.is_empty()).then_some(id)
}

/// Asks the cluster for its brokers and for the topics that `client` knows, if any. rdkafka's own asks for all topics; and
/// librdkafka aborts the process where a broker that just started answers its `DescribeCluster` with no broker at all.
pub(super) fn ping<C: ClientContext>(client: &Client<C>, limit: Duration) -> Result<(), RDKafkaErrorCode> {
    let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    let mut metadata = ptr::null();
    // SAFETY: the client is alive; no topic is named, so null is right. What is answered is ours and is given back at once.
    let answered = unsafe {
        let answered =
            sys::rd_kafka_metadata(client.native_ptr(), 0, ptr::null_mut(), &mut metadata, limit_ms);
        if !metadata.is_null() {
            sys::rd_kafka_metadata_destroy(metadata);
        }
        answered
    };
    match answered {
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        error => Err(error.into()),
    }
}

/// Sends what `producer` still gathers into batches, and waits until all of it is reported, but not longer than `limit`.
/// rdkafka's own hurries librdkafka for an instant and then polls, so the batches wait for their time all the same.
pub(super) fn flush<C: ClientContext>(producer: &Client<C>, limit: Duration) {
    let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client is alive. That time may be up is no news: whoever waits for the reports learns of it.
    unsafe { sys::rd_kafka_flush(producer.native_ptr(), limit_ms) };
}

/// A topic as the cluster describes it.
pub(super) struct Described {
    pub(super) id: TopicId,
    pub(super) partitions: usize,
}

/// Those of `topics` that exist.
pub(super) fn describe<C: ClientContext>(
    client: &Client<C>,
    topics: &[TopicName],
    limit: Duration,
) -> Result<BTreeMap<TopicName, Described>, (RDKafkaErrorCode, String)> {
    if topics.is_empty() {
        return Ok(BTreeMap::new());
    }
    let request = Request::new(
        client,
        sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
        limit,
    );
    let names: Vec<CString> = topics
        .iter()
        .map(|name| CString::new(name.as_str()).expect("a topic's name has no NUL"))
        .collect();
    let mut names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    // SAFETY: the names are alive during the calls, which copy them; client, options and queue outlive the request.
    unsafe {
        let collection = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        sys::rd_kafka_DescribeTopics(client.native_ptr(), collection, request.options, request.queue);
        sys::rd_kafka_TopicCollection_destroy(collection);
    }
    let reply = request.reply()?;
    let mut count = 0;
    // SAFETY: the reply to DescribeTopics is a result of DescribeTopics, which lives and whose `count` parts live as
    // long as the reply; the parts of a topic without an error are never null.
    unsafe {
        let result = sys::rd_kafka_event_DescribeTopics_result(reply.event);
        let found = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        let found = if count == 0 {
            &[]
        } else {
            std::slice::from_raw_parts(found, count)
        };
        Ok(found.iter().filter_map(|topic| described(*topic)).collect())
    }
}

/// # Safety
/// `topic` must be alive.
unsafe fn described(topic: *const sys::rd_kafka_TopicDescription_t) -> Option<(TopicName, Described)> {
    // SAFETY: `topic` is alive, and so are its parts.
    unsafe {
        let error = sys::rd_kafka_TopicDescription_error(topic);
        if !error.is_null() && sys::rd_kafka_error_code(error) != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        let name = CStr::from_ptr(sys::rd_kafka_TopicDescription_name(topic))
            .to_str()
            .ok()?;
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        let high = sys::rd_kafka_Uuid_most_significant_bits(id).to_be_bytes();
        let low = sys::rd_kafka_Uuid_least_significant_bits(id).to_be_bytes();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&high);
        bytes[8..].copy_from_slice(&low);
        let mut partitions = 0;
        sys::rd_kafka_TopicDescription_partitions(topic, &mut partitions);
        Some((
            TopicName::new(name).ok()?,
            Described {
                id: TopicId::from_bytes(bytes),
                partitions,
            },
        ))
    }
}

/// Settings of a topic, by name, with the value that they get; none: the cluster's.
pub(super) type Changes = Vec<(&'static str, Option<String>)>;

/// Changes some settings of each of `topics`. rdkafka offers only the request that would put all others back.
pub(super) fn alter<C: ClientContext>(
    client: &Client<C>,
    topics: &[(TopicName, Changes)],
    limit: Duration,
) -> Result<(), (RDKafkaErrorCode, String)> {
    if topics.is_empty() {
        return Ok(());
    }
    let request = Request::new(
        client,
        sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_INCREMENTALALTERCONFIGS,
        limit,
    );
    let text = |text: &str| CString::new(text).expect("neither a name nor a number has a NUL");
    let mut changes = Vec::with_capacity(topics.len());
    for (topic, settings) in topics {
        let topic = text(topic.as_str());
        // SAFETY: the name is alive during the call, which copies it; the resource is destroyed below.
        let change = unsafe {
            sys::rd_kafka_ConfigResource_new(
                sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC,
                topic.as_ptr(),
            )
        };
        for (setting, value) in settings {
            let (setting, value) = (text(setting), value.as_deref().map(text));
            let kind = match value {
                Some(_) => sys::rd_kafka_AlterConfigOpType_t::RD_KAFKA_ALTER_CONFIG_OP_TYPE_SET,
                None => sys::rd_kafka_AlterConfigOpType_t::RD_KAFKA_ALTER_CONFIG_OP_TYPE_DELETE,
            };
            let value = value.as_ref().map_or(ptr::null(), |value| value.as_ptr());
            // SAFETY: the resource and the texts are alive during the call, which copies these; what is deleted has no value.
            let error = unsafe {
                sys::rd_kafka_ConfigResource_add_incremental_config(change, setting.as_ptr(), kind, value)
            };
            debug_assert!(error.is_null(), "a name and a value are all that is asked for");
        }
        changes.push(change);
    }
    // SAFETY: the resources are alive during the call, which copies them; client, options and queue outlive the request.
    unsafe {
        sys::rd_kafka_IncrementalAlterConfigs(
            client.native_ptr(),
            changes.as_mut_ptr(),
            changes.len(),
            request.options,
            request.queue,
        );
        sys::rd_kafka_ConfigResource_destroy_array(changes.as_mut_ptr(), changes.len());
    }
    let reply = request.reply()?;
    let mut count = 0;
    // SAFETY: the reply to IncrementalAlterConfigs is a result of it, whose `count` parts live as long as the reply; the
    // text of a part, where there is one, ends with a NUL and is copied at once.
    unsafe {
        let result = sys::rd_kafka_event_IncrementalAlterConfigs_result(reply.event);
        let changed = sys::rd_kafka_IncrementalAlterConfigs_result_resources(result, &mut count);
        for index in 0..count {
            let changed = *changed.add(index);
            let code = sys::rd_kafka_ConfigResource_error(changed);
            if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                let text = sys::rd_kafka_ConfigResource_error_string(changed);
                let text = if text.is_null() {
                    String::new()
                } else {
                    CStr::from_ptr(text).to_string_lossy().into_owned()
                };
                return Err((code.into(), text));
            }
        }
    }
    Ok(())
}

/// A request to the cluster with a queue of its own for the one reply.
struct Request<'a> {
    options: *mut sys::rd_kafka_AdminOptions_t,
    queue: *mut sys::rd_kafka_queue_t,
    client: PhantomData<&'a ()>,
}

impl<'a> Request<'a> {
    fn new<C: ClientContext>(client: &'a Client<C>, kind: sys::rd_kafka_admin_op_t, limit: Duration) -> Self {
        let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the client outlives both (the lifetime of `Self`); no text is wanted, so null with size 0 is right.
        unsafe {
            let options = sys::rd_kafka_AdminOptions_new(client.native_ptr(), kind);
            sys::rd_kafka_AdminOptions_set_request_timeout(options, limit_ms, ptr::null_mut(), 0);
            Self {
                options,
                queue: sys::rd_kafka_queue_new(client.native_ptr()),
                client: PhantomData,
            }
        }
    }

    /// Waits for the reply, which comes within the request's limit.
    fn reply(&self) -> Result<Reply<'_>, (RDKafkaErrorCode, String)> {
        const FOR_EVER: i32 = -1;
        // SAFETY: the queue is alive; a request always gets a reply, if only that its time is up.
        let reply = Reply {
            event: unsafe { sys::rd_kafka_queue_poll(self.queue, FOR_EVER) },
            request: PhantomData,
        };
        // SAFETY: the event is alive; its text is copied at once.
        let (code, text) = unsafe {
            let text = sys::rd_kafka_event_error_string(reply.event);
            let text = if text.is_null() {
                String::new()
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            };
            (sys::rd_kafka_event_error(reply.event), text)
        };
        if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            Ok(reply)
        } else {
            Err((code.into(), text))
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        // SAFETY: both were made by `new` and are not used again.
        unsafe {
            sys::rd_kafka_queue_destroy(self.queue);
            sys::rd_kafka_AdminOptions_destroy(self.options);
        }
    }
}

struct Reply<'a> {
    event: *mut sys::rd_kafka_event_t,
    request: PhantomData<&'a ()>,
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        // SAFETY: the event is this one's alone and is not used again; null is allowed.
        unsafe { sys::rd_kafka_event_destroy(self.event) };
    }
}

//! What every implementation of [`Topics`] must do, as tests.
//!
//! [`conformance_tests!`](crate::conformance_tests) makes a test of each case. Cases make topics and groups of their own,
//! so they may share one place and run side by side.

#![allow(clippy::unwrap_used, reason = "a case fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use schemas::{Shard, Shards, TopicName};

use crate::{
    Append, Assignment, Chunk, Committer, Event, Header, Partition, Progress, Reader, Record, Retention,
    Step, Subscription, TopicPattern, TopicSpec, Topics,
};

/// Two clients of one place that holds topics, as two instances of a service are.
pub struct Place {
    /// One.
    pub first: Arc<dyn Topics>,
    /// The other.
    pub second: Arc<dyn Topics>,
}

/// Makes a test of every case. The argument is an expression that gives a future of a [`Place`]; it is evaluated once for
/// each case.
#[macro_export]
macro_rules! conformance_tests {
    ($place:expr) => {
        $crate::conformance_tests! { @each $place;
            records_come_in_order_of_their_offsets
            a_record_comes_back_as_it_was_appended
            records_with_one_key_share_a_partition
            an_appender_says_where_each_record_went
            an_append_to_no_topic_fails_alone
            a_group_resumes_from_its_commit
            a_reader_commits_without_appending
            groups_do_not_disturb_each_other
            what_was_not_committed_is_read_again
            appends_and_progress_come_together
            a_failed_commit_shows_nothing
            a_pattern_picks_up_a_topic_that_is_created_later
            pause_and_resume_lose_nothing
            members_of_a_group_share_its_partitions
            a_partition_that_is_paused_when_it_is_gone_is_read_when_it_comes_back
            members_of_one_group_read_the_topics_of_their_shards_and_follow_those_that_come_later
            a_step_of_a_lost_partition_is_left_out
            a_step_of_a_lost_partition_is_left_out_after_the_new_owner_went_on
            a_member_that_left_commits_nothing
            more_partitions_are_added_and_read
            lag_is_what_the_group_has_yet_to_commit
            a_group_that_has_done_all_records_of_commits_has_no_lag
            what_a_commit_noted_is_told_to_anybody_and_stays_until_the_next
            the_last_record_is_told_to_anybody
            a_topic_that_keeps_records_for_another_time_is_none_the_less_itself
            a_record_of_five_megabytes_passes
            ten_thousand_records_pass_in_one_commit
        }
    };
    (@each $place:expr; $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::conformance::within(async { $crate::conformance::$case(&$place.await).await }).await;
            }
        )*
    };
}

/// Longer than a rebalance takes on a busy machine.
const CASE_LIMIT: Duration = Duration::from_secs(120);
/// Long enough for a record that is there to be delivered.
const QUIET: Duration = Duration::from_millis(1_500);

/// Holds a case to its time limit.
///
/// # Panics
/// Where `case` is not done in time.
pub async fn within(case: impl Future<Output = ()>) {
    tokio::time::timeout(CASE_LIMIT, case)
        .await
        .expect("the case is done in time");
}

/// A partition's records have rising offsets and come in the order of their appends.
pub async fn records_come_in_order_of_their_offsets(place: &Place) {
    let names = Names::new();
    let topic = names.topic(&place.first, "in", 3).await;
    let sent: Vec<Append> = (0..300).map(|n| at(&topic, n % 3, &n.to_string())).collect();
    append(&place.first, sent).await;
    let mut member = Member::reader(&place.second, &names.group("g"), &only(&topic)).await;
    let records = member.read(300).await;
    for index in 0..3 {
        let of_partition: Vec<&Record> = records
            .iter()
            .filter(|(partition, _)| partition.index == index)
            .map(|(_, record)| record)
            .collect();
        assert!(
            of_partition
                .windows(2)
                .all(|pair| pair[0].offset < pair[1].offset)
        );
        let expected: Vec<String> = (0..300)
            .filter(|n| n % 3 == index)
            .map(|n| n.to_string())
            .collect();
        assert_eq!(
            of_partition.iter().map(|record| text(record)).collect::<Vec<_>>(),
            expected
        );
    }
}

/// Key, value, timestamp and headers are kept: empty ones, missing ones, repeated names.
pub async fn a_record_comes_back_as_it_was_appended(place: &Place) {
    let names = Names::new();
    let topic = names.topic(&place.first, "in", 1).await;
    let header = |name: &str, value: Option<&'static [u8]>| Header {
        name: name.to_owned(),
        value: value.map(Bytes::from_static),
    };
    let bytes = |bytes: &'static [u8]| Some(Bytes::from_static(bytes));
    let sent = [
        (bytes(b"key"), bytes(b"value"), vec![]),
        (
            None,
            bytes(b"\0\xff\xfe"),
            vec![
                header("a", Some(b"1")),
                header("b", Some(b"2")),
                header("a", Some(b"3")),
            ],
        ),
        (
            bytes(b""),
            bytes(b""),
            vec![
                header("none", None),
                header("empty", Some(b"")),
                header("", Some(b"\xff")),
            ],
        ),
        (bytes(b"deleted"), None, vec![]),
        (None, None, vec![]),
    ];
    let sent: Vec<Append> = std::iter::zip(now_ms().., sent)
        .map(|(timestamp_ms, (key, value, headers))| Append {
            topic: topic.clone(),
            partition: Some(0),
            timestamp_ms,
            key,
            value,
            headers,
        })
        .collect();
    // Through both ways of appending.
    append(&place.first, sent.clone()).await;
    let source = names.topic(&place.first, "source", 1).await;
    append(&place.first, vec![at(&source, 0, "go")]).await;
    let mut stage = Member::stage(&place.first, &names.group("stage"), &only(&source)).await;
    let chunk = stage.chunk().await;
    stage.commit(vec![step(&chunk, sent.clone())]).await;

    let mut member = Member::reader(&place.second, &names.group("g"), &only(&topic)).await;
    let records = member.read(2 * sent.len()).await;
    for ((_, record), sent) in std::iter::zip(records, sent.iter().chain(&sent)) {
        assert_eq!(record.timestamp_ms, sent.timestamp_ms);
        assert_eq!(record.key, sent.key);
        assert_eq!(record.value, sent.value);
        assert_eq!(record.headers, sent.headers);
    }
}

/// Where no partition is asked for, the key decides, and records without one may go anywhere.
pub async fn records_with_one_key_share_a_partition(place: &Place) {
    let names = Names::new();
    let topic = names.topic(&place.first, "in", 4).await;
    let keyed = |n: usize| Append {
        partition: None,
        key: Some(Bytes::from(format!("k{}", n % 8))),
        ..at(&topic, 0, "v")
    };
    let mut sent: Vec<Append> = (0..64).map(keyed).collect();
    sent.extend((0..16).map(|_| Append {
        partition: None,
        ..at(&topic, 0, "keyless")
    }));
    let placed = append(&place.first, sent).await;
    for key in 0..8 {
        let of_key: BTreeSet<i32> = placed[..64]
            .iter()
            .skip(key)
            .step_by(8)
            .map(|(partition, _)| partition.index)
            .collect();
        assert_eq!(of_key.len(), 1, "key {key} is in {of_key:?}");
    }
    assert!(
        placed
            .iter()
            .all(|(partition, _)| (0..4).contains(&partition.index))
    );
}

/// The partition and offset that an appender gives are the record's.
pub async fn an_appender_says_where_each_record_went(place: &Place) {
    let names = Names::new();
    let topic = names.topic(&place.first, "in", 2).await;
    let placed = append(
        &place.first,
        (0..20).map(|n| at(&topic, n % 2, &n.to_string())).collect(),
    )
    .await;
    let mut member = Member::reader(&place.second, &names.group("g"), &only(&topic)).await;
    let found: BTreeMap<String, (Partition, i64)> = member
        .read(20)
        .await
        .into_iter()
        .map(|(partition, record)| (text(&record), (partition, record.offset)))
        .collect();
    for (n, placed) in placed.into_iter().enumerate() {
        assert_eq!(found[&n.to_string()], placed);
    }
}

/// A record for a topic that does not exist, or for a partition that it has not, is refused, and its neighbours pass.
pub async fn an_append_to_no_topic_fails_alone(place: &Place) {
    let names = Names::new();
    let topic = names.topic(&place.first, "in", 1).await;
    let nowhere = names.name("nowhere");
    let appender = place.first.appender().await.unwrap();
    let sent = vec![
        at(&topic, 0, "a"),
        at(&nowhere, 0, "b"),
        at(&topic, 7, "c"),
        at(&topic, 0, "d"),
    ];
    let results = appender.append(sent).await;
    assert!(results[0].is_ok() && results[3].is_ok(), "{results:?}");
    for result in [&results[1], &results[2]] {
        assert!(matches!(result, Err(crate::Error::Invalid { .. })), "{result:?}");
    }
    assert!(
        results[1]
            .as_ref()
            .unwrap_err()
            .to_string()
            .contains(nowhere.as_str())
    );
}

/// A member that takes a group's place begins after what the group committed.
pub async fn a_group_resumes_from_its_commit(place: &Place) {
    let names = Names::new();
    let (input, output) = (
        names.topic(&place.first, "in", 1).await,
        names.topic(&place.first, "out", 1).await,
    );
    let group = names.group("g");
    append(
        &place.first,
        (0..10).map(|n| at(&input, 0, &n.to_string())).collect(),
    )
    .await;
    let mut stage = Member::stage(&place.first, &group, &only(&input)).await;
    let records = stage.read(10).await;
    let (partition, seventh) = &records[6];
    let first_seven = Step {
        source: partition.clone(),
        assignment: stage.assigned[partition],
        next_offset: seventh.offset + 1,
        appends: vec![at(&output, 0, "seven")],
        note: None,
    };
    stage.commit(vec![first_seven]).await;
    stage.close().await;
    let mut next = Member::reader(&place.second, &group, &only(&input)).await;
    let rest: Vec<String> = next
        .read(3)
        .await
        .iter()
        .map(|(_, record)| text(record))
        .collect();
    assert_eq!(rest, ["7", "8", "9"]);
}

/// [`Reader::commit`] advances the group.
pub async fn a_reader_commits_without_appending(place: &Place) {
    let names = Names::new();
    let topic = names.topic(&place.first, "in", 2).await;
    let group = names.group("g");
    append(
        &place.first,
        (0..10).map(|n| at(&topic, n % 2, &n.to_string())).collect(),
    )
    .await;
    let mut member = Member::reader(&place.first, &group, &only(&topic)).await;
    let mut progress = Progress::new();
    for (partition, record) in member.read(10).await {
        if partition.index == 0 {
            progress.insert(partition, record.offset + 1);
        }
    }
    member.reader.commit(&progress).await.unwrap();
    member.close().await;
    let mut next = Member::reader(&place.second, &group, &only(&topic)).await;
    assert!(
        next.read(5)
            .await
            .iter()
            .all(|(partition, _)| partition.index == 1)
    );
    next.expect_quiet().await;
}

/// Each group reads everything.
pub async fn groups_do_not_disturb_each_other(place: &Place) {
    let names = Names::new();
    let topic = names.topic(&place.first, "in", 1).await;
    append(&place.first, vec![at(&topic, 0, "a"), at(&topic, 0, "b")]).await;
    for group in ["one", "two"] {
        let mut member = Member::reader(&place.first, &names.group(group), &only(&topic)).await;
        let records = member.read(2).await;
        let (partition, last) = &records[1];
        member
            .reader
            .commit(&Progress::from([(partition.clone(), last.offset + 1)]))
            .await
            .unwrap();
        member.close().await;
    }
}

/// Reading alone is no progress.
pub async fn what_was_not_committed_is_read_again(place: &Place) {
    let names = Names::new();
    let topic = names.topic(&place.first, "in", 1).await;
    let group = names.group("g");
    append(&place.first, vec![at(&topic, 0, "a")]).await;
    for topics in [&place.first, &place.second] {
        let mut member = Member::reader(topics, &group, &only(&topic)).await;
        assert_eq!(text(&member.read(1).await[0].1), "a");
        member.close().await;
    }
}

/// A commit over several sources and several topics is read whole.
pub async fn appends_and_progress_come_together(place: &Place) {
    let names = Names::new();
    let input = names.topic(&place.first, "in", 3).await;
    let outputs = [
        names.topic(&place.first, "out.a", 3).await,
        names.topic(&place.first, "out.b", 1).await,
    ];
    let group = names.group("g");
    append(
        &place.first,
        (0..30).map(|n| at(&input, n % 3, &n.to_string())).collect(),
    )
    .await;
    let mut stage = Member::stage(&place.first, &group, &only(&input)).await;
    let read = stage.read(30).await;
    let steps = stage.steps(&read, |partition, record| {
        vec![
            at(&outputs[0], partition.index, &text(record)),
            at(&outputs[1], 0, &text(record)),
        ]
    });
    assert_eq!(steps.len(), 3);
    assert_eq!(stage.commit(steps).await, []);
    stage.close().await;
    let subscription = Subscription::to(vec![TopicPattern::Under(names.prefix("out."))]);
    let mut member = Member::reader(&place.second, &names.group("out"), &subscription).await;
    let out = member.read(60).await;
    for output in &outputs {
        let mut found: Vec<i32> = out
            .iter()
            .filter(|(partition, _)| partition.topic.name == *output)
            .map(|(_, record)| text(record).parse().unwrap())
            .collect();
        found.sort_unstable();
        assert_eq!(found, (0..30).collect::<Vec<_>>());
    }
    for index in 0..3 {
        let order: Vec<i32> = out
            .iter()
            .filter(|(partition, _)| partition.topic.name == outputs[0] && partition.index == index)
            .map(|(_, record)| text(record).parse().unwrap())
            .collect();
        assert!(order.is_sorted(), "{order:?}");
    }
    let mut rest = Member::reader(&place.second, &group, &only(&input)).await;
    rest.expect_quiet().await;
}

/// Where one record of a commit is refused, none of it is seen and the group has not moved.
pub async fn a_failed_commit_shows_nothing(place: &Place) {
    let names = Names::new();
    let (input, output) = (
        names.topic(&place.first, "in", 1).await,
        names.topic(&place.first, "out", 1).await,
    );
    let group = names.group("g");
    append(&place.first, vec![at(&input, 0, "a")]).await;
    let mut stage = Member::stage(&place.first, &group, &only(&input)).await;
    let chunk = stage.chunk().await;
    let mut appends: Vec<Append> = (0..100).map(|n| at(&output, 0, &n.to_string())).collect();
    appends.push(at(&output, 9, "there is no such partition"));
    let failed = stage
        .committer()
        .append_and_commit(vec![step(&chunk, appends)])
        .await;
    assert!(matches!(failed, Err(crate::Error::Invalid { .. })), "{failed:?}");
    stage.close().await;

    let mut again = Member::stage(&place.first, &group, &only(&input)).await;
    let chunk = again.chunk().await;
    assert_eq!(text(&chunk.records[0]), "a");
    again
        .commit(vec![step(&chunk, vec![at(&output, 0, "seen")])])
        .await;
    let mut member = Member::reader(&place.second, &names.group("out"), &only(&output)).await;
    assert_eq!(text(&member.read(1).await[0].1), "seen");
}

/// A pattern takes in topics that are made while it is read, and no others.
pub async fn a_pattern_picks_up_a_topic_that_is_created_later(place: &Place) {
    let names = Names::new();
    let before = names.topic(&place.first, "in.before", 1).await;
    append(&place.first, vec![at(&before, 0, "before")]).await;
    let subscription = Subscription::to(vec![TopicPattern::Under(names.prefix("in."))]);
    let mut member = Member::reader(&place.second, &names.group("g"), &subscription).await;
    assert_eq!(text(&member.read(1).await[0].1), "before");
    let others = ["in", "in.a.b", "xin.c"];
    for other in others {
        let other = names.topic(&place.first, other, 1).await;
        append(&place.first, vec![at(&other, 0, "other")]).await;
    }
    let after = names.topic(&place.first, "in.after", 1).await;
    append(&place.first, vec![at(&after, 0, "after")]).await;
    assert_eq!(text(&member.read(1).await[0].1), "after");
    member.expect_quiet().await;
}

/// A paused partition waits while the others go on, and misses nothing.
pub async fn pause_and_resume_lose_nothing(place: &Place) {
    let names = Names::new();
    let topic = names.topic(&place.first, "in", 2).await;
    let mut member = Member::reader(&place.second, &names.group("g"), &only(&topic)).await;
    append(&place.first, vec![at(&topic, 0, "0"), at(&topic, 1, "0")]).await;
    let read = member.read(2).await;
    let paused = read
        .iter()
        .map(|(partition, _)| partition)
        .find(|partition| partition.index == 0)
        .unwrap()
        .clone();
    for round in 0..5 {
        member.reader.pause(std::slice::from_ref(&paused)).unwrap();
        let sent = |n: i32| (1..=20).map(move |i| (n, round * 20 + i));
        let sent = sent(0)
            .chain(sent(1))
            .map(|(index, n)| at(&topic, index, &n.to_string()))
            .collect();
        append(&place.first, sent).await;
        // Some of the paused one's may have been on their way.
        let mut records = Vec::new();
        while records
            .iter()
            .filter(|(partition, _): &&(Partition, Record)| partition.index == 1)
            .count()
            < 20
        {
            records.extend(member.read(1).await);
        }
        member.expect_quiet_but_for(&paused, &mut records).await;
        member.reader.resume(std::slice::from_ref(&paused)).unwrap();
        while records.len() < 40 {
            records.extend(member.read(1).await);
        }
        for index in 0..2 {
            let of_partition: Vec<String> = records
                .iter()
                .filter(|(partition, _)| partition.index == index)
                .map(|(_, record)| text(record))
                .collect();
            assert_eq!(
                of_partition,
                (1..=20).map(|i| (round * 20 + i).to_string()).collect::<Vec<_>>()
            );
        }
    }
}

/// Two members have a partition each in the end, and when one leaves the other has both.
pub async fn members_of_a_group_share_its_partitions(place: &Place) {
    let names = Names::new();
    let topic = names.topic(&place.first, "in", 2).await;
    let group = names.group("g");
    let mut first = Member::reader(&place.first, &group, &only(&topic)).await;
    first.until(|member| member.assigned.len() == 2).await;
    let mut second = Member::reader(&place.second, &group, &only(&topic)).await;
    tokio::join!(
        first.until(|member| member.assigned.len() == 1),
        second.until(|member| member.assigned.len() == 1)
    );
    assert!(
        first
            .assigned
            .keys()
            .all(|partition| !second.assigned.contains_key(partition))
    );
    let before = first.assigned.clone();
    second.close().await;
    first.until(|member| member.assigned.len() == 2).await;
    for (partition, assignment) in before {
        assert_eq!(
            first.assigned[&partition], assignment,
            "a partition that stayed was not handed over"
        );
    }
    append(&place.first, vec![at(&topic, 0, "a"), at(&topic, 1, "b")]).await;
    first.read(2).await;
}

/// A member pauses a partition that it has not yet noticed to be another's, and reads it when it has it again.
pub async fn a_partition_that_is_paused_when_it_is_gone_is_read_when_it_comes_back(place: &Place) {
    let names = Names::new();
    let topic = names.topic(&place.first, "in", 2).await;
    let group = names.group("g");
    let mut first = Member::reader(&place.first, &group, &only(&topic)).await;
    first.until(|member| member.assigned.len() == 2).await;
    let mut second = Member::reader(&place.second, &group, &only(&topic)).await;
    second.until(|member| member.assigned.len() == 1).await;
    let gone: Vec<Partition> = second.assigned.keys().cloned().collect();
    assert!(
        first.assigned.contains_key(&gone[0]),
        "the first was not told yet"
    );
    first.reader.pause(&gone).unwrap();
    second.close().await;
    first.until(|member| member.assigned.len() == 1).await;
    first.until(|member| member.assigned.len() == 2).await;
    append(&place.first, vec![at(&topic, gone[0].index, "a")]).await;
    first.read(1).await;
}

/// A member that has not yet noticed that it lost a partition commits only for the others.
pub async fn a_step_of_a_lost_partition_is_left_out(place: &Place) {
    takeover(place, false).await;
}

/// The same when the new owner has already done those records.
pub async fn a_step_of_a_lost_partition_is_left_out_after_the_new_owner_went_on(place: &Place) {
    takeover(place, true).await;
}

async fn takeover(place: &Place, new_owner_first: bool) {
    let names = Names::new();
    let (input, output) = (
        names.topic(&place.first, "in", 4).await,
        names.topic(&place.first, "out", 4).await,
    );
    let group = names.group("g");
    append(
        &place.first,
        (0..40).map(|n| at(&input, n % 4, &n.to_string())).collect(),
    )
    .await;
    let made = |partition: &Partition, record: &Record| vec![at(&output, partition.index, &text(record))];

    let mut old = Member::stage(&place.first, &group, &only(&input)).await;
    let read = old.read(40).await;
    let stale = old.steps(&read, made);
    assert_eq!(stale.len(), 4);

    // From here on the old owner does not ask its reader for anything until it has committed.
    let mut new = Member::stage(&place.second, &group, &only(&input)).await;
    new.until(|member| member.assigned.len() == 2).await;
    let taken: BTreeSet<i32> = new.assigned.keys().map(|partition| partition.index).collect();
    let redone = new.read(20).await;
    assert_eq!(
        redone
            .iter()
            .map(|(partition, _)| partition.index)
            .collect::<BTreeSet<_>>(),
        taken
    );
    let redone = new.steps(&redone, made);

    let left_out = if new_owner_first {
        assert_eq!(new.commit(redone).await, []);
        old.commit(stale).await
    } else {
        let left_out = old.commit(stale).await;
        assert_eq!(new.commit(redone).await, []);
        left_out
    };
    assert_eq!(
        left_out
            .iter()
            .map(|partition| partition.index)
            .collect::<BTreeSet<_>>(),
        taken
    );

    let mut member = Member::reader(&place.second, &names.group("out"), &only(&output)).await;
    let mut out: Vec<i32> = member
        .read(40)
        .await
        .iter()
        .map(|(_, record)| text(record).parse().unwrap())
        .collect();
    out.sort_unstable();
    assert_eq!(out, (0..40).collect::<Vec<_>>());
    member.expect_quiet().await;
    old.until(|member| member.assigned.len() == 2).await;
    assert!(
        old.assigned
            .keys()
            .all(|partition| !taken.contains(&partition.index)),
        "the loss is told in the end"
    );
}

/// After it left its group, what a member commits is left out.
pub async fn a_member_that_left_commits_nothing(place: &Place) {
    let names = Names::new();
    let (input, output) = (
        names.topic(&place.first, "in", 1).await,
        names.topic(&place.first, "out", 1).await,
    );
    let group = names.group("g");
    append(&place.first, vec![at(&input, 0, "a")]).await;
    let mut old = Member::stage(&place.first, &group, &only(&input)).await;
    let chunk = old.chunk().await;
    let mut committer = old.committer.take().unwrap();
    old.close().await;
    let committed = committer
        .append_and_commit(vec![step(&chunk, vec![at(&output, 0, "late")])])
        .await
        .unwrap();
    assert_eq!(committed.left_out, [chunk.partition]);
    let mut new = Member::stage(&place.second, &group, &only(&input)).await;
    let chunk = new.chunk().await;
    new.commit(vec![step(&chunk, vec![at(&output, 0, "in time")])])
        .await;
    let mut member = Member::reader(&place.second, &names.group("out"), &only(&output)).await;
    assert_eq!(text(&member.read(1).await[0].1), "in time");
}

/// Asking for more partitions adds them, asking for fewer changes nothing, and readers take the new ones in.
pub async fn more_partitions_are_added_and_read(place: &Place) {
    let names = Names::new();
    let topic = names.topic(&place.first, "in", 1).await;
    let mut member = Member::reader(&place.second, &names.group("g"), &only(&topic)).await;
    member.until(|member| member.assigned.len() == 1).await;
    names.topic(&place.first, "in", 3).await;
    names.topic(&place.first, "in", 2).await;
    append(&place.first, (0..3).map(|n| at(&topic, n, "a")).collect()).await;
    let read = member.read(3).await;
    assert_eq!(
        read.iter()
            .map(|(partition, _)| partition.index)
            .collect::<BTreeSet<_>>(),
        BTreeSet::from([0, 1, 2])
    );
}

/// Lag counts what is not committed, over the topics of the subscription.
pub async fn lag_is_what_the_group_has_yet_to_commit(place: &Place) {
    let names = Names::new();
    let (input, other) = (
        names.topic(&place.first, "in.a", 2).await,
        names.topic(&place.first, "other", 1).await,
    );
    let group = names.group("g");
    let subscription = Subscription::to(vec![TopicPattern::Under(names.prefix("in."))]);
    assert_eq!(place.first.lag(&group, &subscription).await.unwrap(), 0);
    append(&place.first, vec![at(&other, 0, "other")]).await;
    append(
        &place.first,
        (0..10).map(|n| at(&input, n % 2, &n.to_string())).collect(),
    )
    .await;
    assert_eq!(place.first.lag(&group, &subscription).await.unwrap(), 10);
    let mut member = Member::reader(&place.first, &group, &subscription).await;
    let mut done = Progress::new();
    for (partition, record) in member.read(10).await {
        if partition.index == 0 {
            done.insert(partition, record.offset + 1);
        }
    }
    member.reader.commit(&done).await.unwrap();
    assert_eq!(place.first.lag(&group, &subscription).await.unwrap(), 5);
    let rest: Progress = member
        .assigned
        .keys()
        .map(|partition| (partition.clone(), 5))
        .collect();
    member.reader.commit(&rest).await.unwrap();
    assert_eq!(place.second.lag(&group, &subscription).await.unwrap(), 0);
}

/// What a commit leaves on a topic behind its records, as Kafka's transactions do, is no lag.
pub async fn a_group_that_has_done_all_records_of_commits_has_no_lag(place: &Place) {
    let names = Names::new();
    let (input, work) = (
        names.topic(&place.first, "in", 1).await,
        names.topic(&place.first, "work", 2).await,
    );
    append(&place.first, vec![at(&input, 0, "go")]).await;
    let mut stage = Member::stage(&place.first, &names.group("stage"), &only(&input)).await;
    let chunk = stage.chunk().await;
    let appends = (0..10).map(|n| at(&work, n % 2, &n.to_string())).collect();
    stage.commit(vec![step(&chunk, appends)]).await;
    let group = names.group("g");
    let mut member = Member::reader(&place.second, &group, &only(&work)).await;
    let read = member.read(10).await;
    assert!(place.first.lag(&group, &only(&work)).await.unwrap() >= 10);
    let ends = read
        .iter()
        .map(|(partition, record)| (partition.clone(), record.offset + 1));
    let ends: Progress = ends.collect();
    member.reader.commit(&ends).await.unwrap();
    assert_eq!(place.first.lag(&group, &only(&work)).await.unwrap(), 0);
}

/// A note is committed with its step or not at all, stands in the place of the one before, and is its partition's and its
/// group's own.
pub async fn what_a_commit_noted_is_told_to_anybody_and_stays_until_the_next(place: &Place) {
    let names = Names::new();
    let (input, output) = (
        names.topic(&place.first, "in", 2).await,
        names.topic(&place.first, "out", 1).await,
    );
    let (group, missing) = (
        names.group("g"),
        TopicName::new(&names.prefix("missing")).unwrap(),
    );
    let standing = async |group: &str| {
        let topics = [input.clone(), missing.clone()];
        let standing = place.second.standing(group, &topics).await.unwrap();
        [0, 1].map(|index| {
            let of_partition = &standing[&(input.clone(), index)];
            (of_partition.note.clone(), of_partition.behind)
        })
    };
    assert_eq!(standing(&group).await, [(None, 0), (None, 0)]);
    let records = (0..6).map(|n| at(&input, n % 2, &n.to_string()));
    append(&place.first, records.collect()).await;
    let mut stage = Member::stage(&place.first, &group, &only(&input)).await;
    let records = stage.read(6).await;
    let noted = |stage: &Member, appends: Vec<Append>, through: i64, note: Option<&str>| {
        let (partition, _) = records
            .iter()
            .find(|(partition, _)| partition.index == 0)
            .unwrap();
        Step {
            source: partition.clone(),
            assignment: stage.assigned[partition],
            next_offset: through,
            appends,
            note: note.map(str::to_owned),
        }
    };
    let first = noted(&stage, vec![at(&output, 0, "made")], 1, Some(r#"{"spent":"1"}"#));
    assert_eq!(stage.commit(vec![first]).await, []);
    // The case's time limit ends what does not come true.
    let first = (Some(r#"{"spent":"1"}"#.to_owned()), 2);
    while standing(&group).await != [first.clone(), (None, 3)] {}
    assert_eq!(standing(&names.group("other")).await, [(None, 3), (None, 3)]);
    let second = noted(&stage, Vec::new(), 2, Some("2"));
    assert_eq!(stage.commit(vec![second]).await, []);
    while standing(&group).await[0] != (Some("2".to_owned()), 1) {}
    let nowhere = TopicName::new(&names.prefix("nowhere")).unwrap();
    let failing = noted(&stage, vec![at(&nowhere, 0, "lost")], 3, Some("3"));
    assert!(stage.committer().append_and_commit(vec![failing]).await.is_err());
    assert_eq!(standing(&group).await[0], (Some("2".to_owned()), 1));
    stage.close().await;
    let mut next = Member::stage(&place.second, &group, &only(&input)).await;
    let rest = next.read(4).await;
    assert_eq!(
        standing(&group).await[0],
        (Some("2".to_owned()), 1),
        "whoever takes it over finds it"
    );
    let steps = next.steps(&rest, |_, _| Vec::new());
    assert_eq!(next.commit(steps).await, []);
    while standing(&group).await != [(None, 0), (None, 0)] {}
}

/// The last record, and how many partitions a topic has, are told without any group, also where there is nothing.
pub async fn the_last_record_is_told_to_anybody(place: &Place) {
    let names = Names::new();
    let last = async |topic: &TopicName| {
        let last = place.second.last(topic).await.unwrap();
        last.map(|record| (record.offset, text(&record)))
    };
    // A topic that keeps the last record of each key takes none without a key.
    let keyed = |topic: &TopicName, value: &str| Append {
        key: Some(Bytes::from_static(b"key")),
        ..at(topic, 0, value)
    };
    let nowhere = names.name("nowhere");
    assert_eq!(last(&nowhere).await, None);
    let topic = names.name("in");
    let spec = TopicSpec {
        retention: Retention::LastOfKey,
        ..TopicSpec::new(topic.clone(), 1)
    };
    place.first.ensure(&[spec]).await.unwrap();
    assert_eq!(last(&topic).await, None);
    for round in 0..3 {
        let sent = append(
            &place.first,
            vec![keyed(&topic, "before"), keyed(&topic, &round.to_string())],
        );
        let (_, offset) = sent.await[1].clone();
        assert_eq!(last(&topic).await, Some((offset, round.to_string())));
    }
    let sizes = place.second.partitions(&[topic.clone(), nowhere]).await.unwrap();
    assert_eq!(sizes, BTreeMap::from([(topic.clone(), 1)]));

    // What a stage commits may be followed by what is no record.
    let mut stage = Member::stage(&place.first, &names.group("stage"), &only(&topic)).await;
    let chunk = stage.chunk().await;
    for round in ["a", "b", "c"] {
        stage.commit(vec![step(&chunk, vec![keyed(&topic, round)])]).await;
    }
    assert_eq!(last(&topic).await.map(|(_, text)| text), Some("c".to_owned()));
}

/// A topic is asked to keep its records for a time, for another, and for as long as others do: nothing else of it changes.
pub async fn a_topic_that_keeps_records_for_another_time_is_none_the_less_itself(place: &Place) {
    const DAY_MS: u64 = 86_400_000;
    let names = Names::new();
    let topic = names.topic(&place.first, "in", 1).await;
    let sent = append(&place.first, vec![at(&topic, 0, "a")]).await;
    for retention in [
        Retention::TimeMs(7 * DAY_MS),
        Retention::TimeMs(30 * DAY_MS),
        Retention::ClusterAgain,
    ] {
        let spec = TopicSpec {
            retention,
            ..TopicSpec::new(topic.clone(), 1)
        };
        place.first.ensure(&[spec]).await.unwrap();
    }
    let mut member = Member::reader(&place.second, &names.group("g"), &only(&topic)).await;
    let read = member.read(1).await;
    assert_eq!(
        (read[0].0.clone(), text(&read[0].1)),
        (sent[0].0.clone(), "a".to_owned())
    );
}

/// A topic that was made for small records takes large ones once that is asked of it, through both ways of appending.
pub async fn a_record_of_five_megabytes_passes(place: &Place) {
    let names = Names::new();
    let topic = names.name("in");
    for message_bytes_max in [1 << 20, 6 << 20] {
        let spec = TopicSpec {
            message_bytes_max: Some(message_bytes_max),
            ..TopicSpec::new(topic.clone(), 1)
        };
        place.first.ensure(&[spec]).await.unwrap();
    }
    // Not compressible, or it would not be large on its way.
    let mut state = 1_u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    });
    let large: Bytes = noise.take(5 << 20).collect::<Vec<u8>>().into();
    let sent = Append {
        value: Some(large.clone()),
        ..at(&topic, 0, "")
    };
    append(&place.first, vec![sent.clone(), at(&topic, 0, "small")]).await;
    let mut stage = Member::stage(&place.second, &names.group("g"), &only(&topic)).await;
    let read = stage.read(2).await;
    assert!(read[0].1.value.as_ref() == Some(&large) && text(&read[1].1) == "small");
    let steps = stage.steps(&read[..1], |_, _| vec![sent.clone()]);
    stage.commit(steps).await;
    assert!(stage.read(1).await[0].1.value.as_ref() == Some(&large));
}

/// A commit may be large.
pub async fn ten_thousand_records_pass_in_one_commit(place: &Place) {
    let names = Names::new();
    let (input, output) = (
        names.topic(&place.first, "in", 2).await,
        names.topic(&place.first, "out", 2).await,
    );
    append(
        &place.first,
        (0..10_000).map(|n| at(&input, n % 2, &n.to_string())).collect(),
    )
    .await;
    let mut stage = Member::stage(&place.first, &names.group("g"), &only(&input)).await;
    let read = stage.read(10_000).await;
    let steps = stage.steps(&read, |partition, record| {
        vec![at(&output, partition.index, &text(record))]
    });
    assert_eq!(stage.commit(steps).await, []);
    let mut member = Member::reader(&place.second, &names.group("out"), &only(&output)).await;
    let out = member.read(10_000).await;
    for index in 0..2 {
        let of_partition = out.iter().filter(|(partition, _)| partition.index == index);
        let of_partition: Vec<i32> = of_partition
            .map(|(_, record)| text(record).parse().unwrap())
            .collect();
        assert_eq!(
            of_partition,
            (0..10_000).filter(|n| n % 2 == index).collect::<Vec<_>>()
        );
    }
    member.expect_quiet().await;
}

/// Members of one group have topics in common and topics of their own. Each record is read once, by a member whose shard serves
/// the last segment of its topic, also where the topic is made later; where there is no such member, it waits for one.
pub async fn members_of_one_group_read_the_topics_of_their_shards_and_follow_those_that_come_later(
    place: &Place,
) {
    let names = Names::new();
    let group = names.group("g");
    let of = Shards {
        count: 8.try_into().unwrap(),
        per_tenant: 2.try_into().unwrap(),
    };
    let tenants = ["acme", "globex", "initech"];
    assert_eq!(
        tenants.map(|tenant| of.serving(tenant)),
        [[1, 6], [1, 7], [3, 7]].map(BTreeSet::from)
    );
    let comes = async |tenant: &str| {
        let topic = names.topic(&place.first, &format!("in.{tenant}"), 4).await;
        append(
            &place.first,
            (0..20).map(|n| at(&topic, n % 4, &n.to_string())).collect(),
        )
        .await;
    };
    let subscription = |number| {
        Subscription::to(vec![TopicPattern::Sharded(
            names.prefix("in."),
            Shard { number, of },
        )])
    };
    let mut first = Member::stage(&place.first, &group, &subscription(1)).await;
    comes("acme").await;
    let read = first.read(20).await;
    let steps = first.steps(&read, |_, _| Vec::new());
    assert_eq!(first.commit(steps).await, []);

    let mut second = Member::stage(&place.second, &group, &subscription(7)).await;
    comes("initech").await;
    let read = second.read(20).await;
    assert!(
        read.iter()
            .all(|(partition, _)| partition.topic.name.as_str().ends_with("initech"))
    );
    let steps = second.steps(&read, |_, _| Vec::new());
    assert_eq!(second.commit(steps).await, []);

    let globex = names.topic(&place.first, "in.globex", 4).await;
    let of_globex = |member: &Member| {
        let assigned = member.assigned.keys();
        assigned
            .filter(|partition| partition.topic.name == globex)
            .count()
    };
    while of_globex(&first) == 0 || of_globex(&second) == 0 || of_globex(&first) + of_globex(&second) < 4 {
        tokio::select! {
            () = first.any() => {}
            () = second.any() => {}
        }
    }
    append(
        &place.first,
        (0..20).map(|n| at(&globex, n % 4, &n.to_string())).collect(),
    )
    .await;
    let mut values = Vec::new();
    let (of_first, of_second) = (of_globex(&first), of_globex(&second));
    for (member, partitions) in [(&mut first, of_first), (&mut second, of_second)] {
        let read = member.read(5 * partitions).await;
        values.extend(
            read.iter()
                .map(|(_, record)| text(record).parse::<i32>().unwrap()),
        );
        let steps = member.steps(&read, |_, _| Vec::new());
        assert_eq!(member.commit(steps).await, []);
    }
    values.sort_unstable();
    assert_eq!(values, (0..20).collect::<Vec<_>>());

    first.close().await;
    second.until(|second| of_globex(second) == 4).await;
    let acme = names.name("in.acme");
    append(
        &place.first,
        vec![at(&acme, 0, "nobody's"), at(&globex, 0, "second's")],
    )
    .await;
    assert_eq!(text(&second.read(1).await[0].1), "second's");
    second.expect_quiet().await;
    let mut third = Member::stage(&place.first, &group, &subscription(6)).await;
    assert_eq!(text(&third.read(1).await[0].1), "nobody's");
}

/// Names that no other case uses.
struct Names {
    unique: String,
}

impl Names {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self {
            unique: format!(
                "c{}-{}.",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            ),
        }
    }

    fn name(&self, name: &str) -> TopicName {
        TopicName::new(&self.prefix(name)).unwrap()
    }

    fn prefix(&self, name: &str) -> String {
        format!("{}{name}", self.unique)
    }

    fn group(&self, name: &str) -> String {
        self.prefix(name)
    }

    async fn topic(&self, topics: &Arc<dyn Topics>, name: &str, partitions: u32) -> TopicName {
        let name = self.name(name);
        let spec = TopicSpec::new(name.clone(), partitions);
        topics.ensure(&[spec]).await.unwrap();
        name
    }
}

/// A member of a group and what it was assigned.
struct Member {
    reader: Box<dyn Reader>,
    committer: Option<Box<dyn Committer>>,
    assigned: BTreeMap<Partition, Assignment>,
    /// Records that came in while something else was waited for.
    early: Vec<(Partition, Record)>,
}

impl Member {
    async fn reader(topics: &Arc<dyn Topics>, group: &str, subscription: &Subscription) -> Self {
        let reader = topics.reader(group, subscription).await.unwrap();
        Self {
            reader,
            committer: None,
            assigned: BTreeMap::new(),
            early: Vec::new(),
        }
    }

    async fn stage(topics: &Arc<dyn Topics>, group: &str, subscription: &Subscription) -> Self {
        let (reader, committer) = topics.stage(group, subscription).await.unwrap();
        Self {
            reader,
            committer: Some(committer),
            assigned: BTreeMap::new(),
            early: Vec::new(),
        }
    }

    fn committer(&mut self) -> &mut dyn Committer {
        self.committer
            .as_deref_mut()
            .expect("this member was made with a committer")
    }

    /// The next event, held to the promises about events.
    async fn event(&mut self) -> Event {
        let event = self.reader.next().await.unwrap();
        match &event {
            Event::Assigned(partitions) => {
                for (partition, assignment) in partitions {
                    let before = self.assigned.insert(partition.clone(), *assignment);
                    assert_eq!(before, None, "`{partition}` was assigned twice");
                }
            }
            Event::Revoked(partitions) => {
                for partition in partitions {
                    assert!(
                        self.assigned.remove(partition).is_some(),
                        "`{partition}` was revoked and not assigned"
                    );
                }
                self.early
                    .retain(|(partition, _)| !partitions.contains(partition));
            }
            Event::Records(chunk) => {
                assert!(!chunk.records.is_empty());
                assert_eq!(self.assigned.get(&chunk.partition), Some(&chunk.assignment));
            }
        }
        event
    }

    async fn chunk(&mut self) -> Chunk {
        loop {
            if let Event::Records(chunk) = self.event().await {
                return chunk;
            }
        }
    }

    /// Waits for exactly `count` records; more than that is a failure, unless `count` is one.
    async fn read(&mut self, count: usize) -> Vec<(Partition, Record)> {
        let mut records = std::mem::take(&mut self.early);
        while records.len() < count {
            let chunk = self.chunk().await;
            records.extend(
                chunk
                    .records
                    .into_iter()
                    .map(|record| (chunk.partition.clone(), record)),
            );
        }
        self.early = records.split_off(count);
        records
    }

    /// Waits for anything to happen.
    async fn any(&mut self) {
        if let Event::Records(chunk) = self.event().await {
            let records = chunk.records.into_iter();
            self.early
                .extend(records.map(|record| (chunk.partition.clone(), record)));
        }
    }

    async fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            self.any().await;
        }
    }

    /// One step for each partition of `records`.
    fn steps(
        &self,
        records: &[(Partition, Record)],
        made: impl Fn(&Partition, &Record) -> Vec<Append>,
    ) -> Vec<Step> {
        let mut steps: BTreeMap<Partition, Step> = BTreeMap::new();
        for (partition, record) in records {
            let step = steps.entry(partition.clone()).or_insert_with(|| Step {
                source: partition.clone(),
                assignment: self.assigned[partition],
                next_offset: 0,
                appends: Vec::new(),
                note: None,
            });
            step.next_offset = record.offset + 1;
            step.appends.extend(made(partition, record));
        }
        steps.into_values().collect()
    }

    /// Commits, and gives the sources that were left out.
    async fn commit(&mut self, steps: Vec<Step>) -> Vec<Partition> {
        self.committer().append_and_commit(steps).await.unwrap().left_out
    }

    async fn close(self) {
        self.reader.close().await.unwrap();
    }

    /// Sees that no further record comes.
    async fn expect_quiet(&mut self) {
        assert!(self.early.is_empty(), "unexpected: {:?}", self.early);
        let chunk = tokio::time::timeout(QUIET, self.chunk()).await;
        assert!(chunk.is_err(), "unexpected: {chunk:?}");
    }

    /// Sees that no further record comes but those of `paused` that were on their way.
    async fn expect_quiet_but_for(&mut self, paused: &Partition, records: &mut Vec<(Partition, Record)>) {
        while let Ok(chunk) = tokio::time::timeout(QUIET / 5, self.chunk()).await {
            assert_eq!(&chunk.partition, paused);
            records.extend(
                chunk
                    .records
                    .into_iter()
                    .map(|record| (chunk.partition.clone(), record)),
            );
        }
    }
}

fn now_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, |since| {
        i64::try_from(since.as_millis()).expect("this is not the year 292,278,994")
    })
}

fn only(topic: &TopicName) -> Subscription {
    Subscription::to(vec![TopicPattern::Exact(topic.clone())])
}

fn at(topic: &TopicName, partition: i32, value: &str) -> Append {
    Append {
        topic: topic.clone(),
        partition: Some(partition),
        timestamp_ms: now_ms(),
        key: None,
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: Vec::new(),
    }
}

async fn append(topics: &Arc<dyn Topics>, records: Vec<Append>) -> Vec<(Partition, i64)> {
    let appender = topics.appender().await.unwrap();
    appender
        .append(records)
        .await
        .into_iter()
        .map(|result| result.unwrap())
        .collect()
}

fn step(chunk: &Chunk, appends: Vec<Append>) -> Step {
    let last = chunk.records.last().expect("a chunk is never empty");
    Step {
        source: chunk.partition.clone(),
        assignment: chunk.assignment,
        next_offset: last.offset + 1,
        appends,
        note: None,
    }
}

fn text(record: &Record) -> String {
    let value = record.value.as_ref().expect("this record has a value");
    String::from_utf8(value.to_vec()).expect("this record's value is text")
}

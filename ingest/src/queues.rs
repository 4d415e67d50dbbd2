//! Queues that are full by a count of offsets: whether there is a record in them at all.
//!
//! Behind the last record that a group has done may stand markers of transactions, and records of aborted ones. The group
//! commits no further until another record comes, which a full queue would not let in.

use std::collections::BTreeMap;

use schemas::Tenant;

/// What a look counted of a tenant's work, over all its partitions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// The offsets that groups are behind by.
    pub(crate) behind: u64,
    /// The sum of the ends, so that while it is the same nothing was appended.
    pub(crate) ends: i64,
}

/// The queues that were full by the last look.
#[derive(Debug, Default)]
pub(crate) struct FullQueues {
    looks: u64,
    queues: BTreeMap<Tenant, Queue>,
}

#[derive(Debug, Clone, Copy)]
struct Queue {
    count: Count,
    /// The first look that counted this.
    since: u64,
    /// None: nobody has asked.
    is_empty: Option<bool>,
}

impl FullQueues {
    /// Takes in what a look counted in those that are `full` by it. Answers in which it is to be asked for records now: where
    /// the count has been the same for longest, and not for the first time, as it is where work goes on. To ask takes longer
    /// than to count, so it is one queue at most, or the looks would come late.
    pub(crate) fn looked(&mut self, full: BTreeMap<Tenant, Count>) -> Option<Tenant> {
        self.looks += 1;
        let counted = full.into_iter().map(|(tenant, count)| {
            let same = self.queues.get(&tenant).filter(|queue| queue.count == count);
            let new = Queue {
                count,
                since: self.looks,
                is_empty: None,
            };
            let queue = same.copied().unwrap_or(new);
            (tenant, queue)
        });
        self.queues = counted.collect();
        let open = self
            .queues
            .iter()
            .filter(|(_, queue)| queue.since < self.looks && queue.is_empty.is_none());
        open.min_by_key(|(_, queue)| queue.since)
            .map(|(tenant, _)| tenant.clone())
    }

    /// It was asked whether the queue of `tenant` is empty.
    pub(crate) fn asked(&mut self, tenant: &Tenant, is_empty: bool) {
        if let Some(queue) = self.queues.get_mut(tenant) {
            queue.is_empty = Some(is_empty);
        }
    }

    /// Those that nothing is in.
    pub(crate) fn empty(&self) -> impl Iterator<Item = &Tenant> {
        let empty = self
            .queues
            .iter()
            .filter(|(_, queue)| queue.is_empty == Some(true));
        empty.map(|(tenant, _)| tenant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::new(name).unwrap()
    }

    fn looked(queues: &mut FullQueues, full: &[(&str, u64, i64)]) -> Option<String> {
        let count = |(name, behind, ends): &(&str, u64, i64)| {
            let (behind, ends) = (*behind, *ends);
            (tenant(name), Count { behind, ends })
        };
        let asked = queues.looked(full.iter().map(count).collect());
        asked.map(|tenant| tenant.to_string())
    }

    fn empty(queues: &FullQueues) -> Vec<String> {
        queues.empty().map(ToString::to_string).collect()
    }

    #[test]
    fn a_full_queue_in_which_nothing_moves_is_asked_for_records_once_and_is_empty_until_something_is_appended()
     {
        let mut queues = FullQueues::default();
        let markers = [("acme", 4, 100)];
        assert_eq!(looked(&mut queues, &markers), None, "it may be under way");
        assert_eq!(looked(&mut queues, &markers).as_deref(), Some("acme"));
        assert!(empty(&queues).is_empty());
        queues.asked(&tenant("acme"), true);
        for _ in 0..3 {
            assert_eq!(looked(&mut queues, &markers), None);
            assert_eq!(empty(&queues), ["acme"]);
        }
        assert_eq!(looked(&mut queues, &[("acme", 4, 101)]), None);
        assert!(empty(&queues).is_empty());
        assert_eq!(looked(&mut queues, &[("acme", 4, 101)]).as_deref(), Some("acme"));
    }

    #[test]
    fn a_full_queue_that_has_records_is_not_asked_again_while_it_stands_still() {
        let mut queues = FullQueues::default();
        let stuck = [("acme", 50, 100)];
        looked(&mut queues, &stuck);
        assert_eq!(looked(&mut queues, &stuck).as_deref(), Some("acme"));
        queues.asked(&tenant("acme"), false);
        assert_eq!(looked(&mut queues, &stuck), None);
        assert!(empty(&queues).is_empty());
    }

    #[test]
    fn one_queue_is_asked_at_a_time_and_none_waits_for_those_that_come_and_go() {
        let mut queues = FullQueues::default();
        let mut asked = Vec::new();
        for look in 0..6 {
            // The first is another every second time.
            let busy = ("acme", 9, look / 2);
            asked.extend(looked(&mut queues, &[busy, ("globex", 9, 9), ("initech", 9, 9)]));
            if let Some(tenant_asked) = asked.last() {
                queues.asked(&tenant(tenant_asked), true);
            }
        }
        asked.sort_unstable();
        asked.dedup();
        assert_eq!(asked, ["acme", "globex", "initech"]);
    }
}

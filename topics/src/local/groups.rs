//! Who reads which partition: pure bookkeeping of memberships.

use std::{collections::BTreeMap, sync::Arc};

use crate::{Assignment, Partition, Subscription};

/// A member of a group, unique in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MemberId(u64);

/// All groups.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: BTreeMap<Arc<str>, Group>,
    members_ever: u64,
    assignments_ever: u64,
}

#[derive(Debug, Default)]
struct Group {
    members: BTreeMap<MemberId, Subscription>,
    owners: BTreeMap<Partition, (MemberId, Assignment)>,
    partitions: Vec<Partition>,
}

impl Groups {
    pub(super) fn join(
        &mut self,
        group: &str,
        subscription: Subscription,
        partitions: &[Partition],
    ) -> MemberId {
        self.members_ever += 1;
        let member = MemberId(self.members_ever);
        let group = self.groups.entry(group.into()).or_default();
        group.members.insert(member, subscription);
        group.partitions = partitions.to_vec();
        group.rebalance(&mut self.assignments_ever);
        member
    }

    pub(super) fn leave(&mut self, group: &str, member: MemberId) {
        if let Some(group) = self.groups.get_mut(group) {
            group.members.remove(&member);
            group.rebalance(&mut self.assignments_ever);
        }
    }

    /// Takes in new topics and partitions.
    pub(super) fn rebalance_all(&mut self, partitions: &[Partition]) {
        for group in self.groups.values_mut() {
            group.partitions = partitions.to_vec();
            group.rebalance(&mut self.assignments_ever);
        }
    }

    pub(super) fn assigned(&self, group: &str, member: MemberId) -> BTreeMap<Partition, Assignment> {
        let owners = self.groups.get(group).into_iter().flat_map(|group| &group.owners);
        owners
            .filter(|(_, (owner, _))| *owner == member)
            .map(|(partition, (_, assignment))| (partition.clone(), *assignment))
            .collect()
    }

    pub(super) fn owns(
        &self,
        group: &str,
        member: MemberId,
        partition: &Partition,
        assignment: Assignment,
    ) -> bool {
        let owner = self
            .groups
            .get(group)
            .and_then(|group| group.owners.get(partition));
        owner == Some(&(member, assignment))
    }
}

impl Group {
    /// Gives every partition to one of the members that subscribe to it: to the one that has it where that leaves no
    /// other of them with two partitions fewer, otherwise to the one with the fewest.
    fn rebalance(&mut self, assignments_ever: &mut u64) {
        let mut held: BTreeMap<MemberId, usize> = self.members.keys().map(|member| (*member, 0)).collect();
        let mut owners = BTreeMap::new();
        for partition in &self.partitions {
            if let Some(owner) = self.owners.get(partition)
                && let Some(count) = held.get_mut(&owner.0)
            {
                *count += 1;
                owners.insert(partition.clone(), *owner);
            }
        }
        let mut give = |partition: &Partition, to: MemberId| {
            *assignments_ever += 1;
            (partition.clone(), (to, Assignment(*assignments_ever)))
        };
        for partition in &self.partitions {
            if let (None, Some((member, _))) = (owners.get(partition), self.least(&held, partition)) {
                *held.entry(member).or_default() += 1;
                owners.extend([give(partition, member)]);
            }
        }
        let mut evened = false;
        while !evened {
            evened = true;
            for partition in &self.partitions {
                let Some((owner, _)) = owners.get(partition).copied() else {
                    continue;
                };
                if let Some((member, fewest)) = self.least(&held, partition)
                    && held[&owner] >= fewest + 2
                {
                    *held.entry(owner).or_default() -= 1;
                    *held.entry(member).or_default() += 1;
                    owners.extend([give(partition, member)]);
                    evened = false;
                }
            }
        }
        self.owners = owners;
    }

    /// Who has the fewest partitions of those that subscribe to `partition`, and how many.
    fn least(&self, held: &BTreeMap<MemberId, usize>, partition: &Partition) -> Option<(MemberId, usize)> {
        let subscribed = held
            .iter()
            .filter(|(member, _)| self.members[member].matches(&partition.topic.name));
        let least = subscribed.min_by_key(|(_, count)| **count);
        least.map(|(member, count)| (*member, *count))
    }
}

#[cfg(test)]
mod tests {
    use schemas::{TopicId, TopicName};

    use super::*;
    use crate::{TopicPattern, TopicRef};

    fn partitions(count: i32) -> Vec<Partition> {
        let topic = Arc::new(TopicRef {
            name: TopicName::new("t").unwrap(),
            id: TopicId::from_bytes([1; 16]),
        });
        (0..count)
            .map(|index| Partition {
                topic: Arc::clone(&topic),
                index,
            })
            .collect()
    }

    fn everything() -> Subscription {
        Subscription::to(vec![TopicPattern::Under(String::new())])
    }

    #[test]
    fn partitions_are_shared_out_and_a_leaver_s_go_to_those_who_stay() {
        let (mut groups, partitions) = (Groups::default(), partitions(6));
        let first = groups.join("g", everything(), &partitions);
        assert_eq!(groups.assigned("g", first).len(), 6);
        let before = groups.assigned("g", first);
        let second = groups.join("g", everything(), &partitions);
        assert_eq!(groups.assigned("g", first).len(), 3);
        assert_eq!(groups.assigned("g", second).len(), 3);
        let kept = groups.assigned("g", first);
        assert!(
            kept.iter()
                .all(|(partition, assignment)| before[partition] == *assignment),
            "what stays is not new"
        );
        groups.leave("g", first);
        assert_eq!(groups.assigned("g", second).len(), 6);
    }

    #[test]
    fn a_partition_that_went_away_and_came_back_has_another_assignment() {
        let (mut groups, partitions) = (Groups::default(), partitions(1));
        let first = groups.join("g", everything(), &partitions);
        let before = groups.assigned("g", first)[&partitions[0]];
        groups.leave("g", first);
        assert!(!groups.owns("g", first, &partitions[0], before));
        let second = groups.join("g", everything(), &partitions);
        let after = groups.assigned("g", second)[&partitions[0]];
        assert_ne!(before, after);
        assert!(groups.owns("g", second, &partitions[0], after));
    }

    #[test]
    fn a_member_that_alone_subscribes_to_a_topic_keeps_it_however_much_it_has() {
        let (mut groups, partitions) = (Groups::default(), partitions(6));
        let first = groups.join("g", everything(), &partitions);
        let before = groups.assigned("g", first);
        let other = Subscription::to(vec![TopicPattern::Exact(TopicName::new("other").unwrap())]);
        groups.join("g", other, &partitions);
        assert_eq!(groups.assigned("g", first), before);
    }

    #[test]
    fn members_with_other_subscriptions_get_only_what_they_asked_for() {
        let (mut groups, partitions) = (Groups::default(), partitions(2));
        let stranger = Subscription::to(vec![TopicPattern::Exact(TopicName::new("other").unwrap())]);
        let stranger = groups.join("g", stranger, &partitions);
        assert!(groups.assigned("g", stranger).is_empty());
    }
}

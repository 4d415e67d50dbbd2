//! Partitions that stand still while records wait in them. Pure.

use std::collections::BTreeMap;

use super::membership::Place;

/// A partition that was seen at one place this many times in a row, with records waiting, is stalled.
const SIGHTINGS: u32 = 4;

/// Where the reading of a partition is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sighting {
    pub(super) place: Place,
    /// The offset of the next record to be read,
    pub(super) position: i64,
    /// and the one after the last that can be read now.
    pub(super) end: i64,
}

/// Tells from sightings, taken at even intervals, which partitions are stalled.
#[derive(Debug, Default)]
pub(super) struct StallWatch {
    waiting: BTreeMap<Place, Still>,
}

#[derive(Debug)]
struct Still {
    position: i64,
    sightings: u32,
}

/// What a look at all partitions showed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stalls {
    /// Those that are stalled since this look,
    pub(super) begun: Vec<Sighting>,
    /// those that were and are no more,
    pub(super) over: Vec<Place>,
    /// and how many are in all.
    pub(super) count: usize,
}

impl StallWatch {
    /// Takes in where all partitions are that are read now.
    pub(super) fn look(&mut self, seen: Vec<Sighting>) -> Stalls {
        let before = std::mem::take(&mut self.waiting);
        let mut stalls = Stalls::default();
        for sighting in seen.into_iter().filter(|seen| seen.position < seen.end) {
            let still = before
                .get(&sighting.place)
                .filter(|still| still.position == sighting.position);
            let sightings = still.map_or(0, |still| still.sightings) + 1;
            let now = Still {
                position: sighting.position,
                sightings,
            };
            self.waiting.insert(sighting.place.clone(), now);
            stalls.count += usize::from(sightings >= SIGHTINGS);
            if sightings == SIGHTINGS {
                stalls.begun.push(sighting);
            }
        }
        let is_stalled = |waiting: &BTreeMap<Place, Still>, place: &Place| {
            waiting
                .get(place)
                .is_some_and(|still| still.sightings >= SIGHTINGS)
        };
        stalls.over = before
            .keys()
            .filter(|place| is_stalled(&before, place) && !is_stalled(&self.waiting, place))
            .cloned()
            .collect();
        stalls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(index: i32, position: i64, end: i64) -> Sighting {
        Sighting {
            place: ("work".to_owned(), index),
            position,
            end,
        }
    }

    #[test]
    fn a_partition_that_stands_still_while_records_wait_is_told_once_and_so_is_its_end() {
        let mut watch = StallWatch::default();
        for end in 10..13 {
            assert_eq!(watch.look(vec![seen(0, 5, end)]), Stalls::default());
        }
        let begun = watch.look(vec![seen(0, 5, 13)]);
        assert_eq!((begun.begun, begun.count), (vec![seen(0, 5, 13)], 1));
        let goes_on = watch.look(vec![seen(0, 5, 14)]);
        assert_eq!((goes_on.begun, goes_on.over, goes_on.count), (vec![], vec![], 1));
        let moves = watch.look(vec![seen(0, 6, 14)]);
        assert_eq!((moves.over, moves.count), (vec![("work".to_owned(), 0)], 0));
    }

    #[test]
    fn neither_an_idle_partition_nor_a_slow_one_is_stalled() {
        let mut watch = StallWatch::default();
        for round in 0..20 {
            let stalls = watch.look(vec![seen(0, 5, 5), seen(1, round / 2, 100)]);
            assert_eq!(stalls, Stalls::default());
        }
    }
}

//! Whose turn it is: what each lane was served, by its weight.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    num::{NonZeroU32, NonZeroUsize},
};

use schemas::Tenant;

/// Work over weight, in 2⁻³² of a unit: what lanes are compared by. Whole numbers, so that nothing is lost however much
/// came before; that each charge is rounded down comes to less than a unit in four billion of them.
type Served = u128;

fn served(units: u64, weight: NonZeroU32) -> Served {
    (u128::from(units) << 32) / u128::from(weight.get())
}

/// The accounts of all lanes. It is always the turn of the lane with work that was served least for its weight.
///
/// Work is charged as it is estimated when the turn comes, since only its tokens tell what it is, and settled when that is
/// known (a virtual token counter: Sheng et al., Fairness in Serving Large Language Models, OSDI 2024). A lane that had no
/// work for a while saves nothing up: it begins where the others are, and gets nothing for having left (start-time fair
/// queueing: Goyal, Vin and Cheng, 1996). ARCHITECTURE.md derives what two lanes can differ by.
///
/// No order of the lanes is kept: each window puts those in order that it may reach, once for all its turns.
#[derive(Default)]
pub(crate) struct Turns {
    accounts: HashMap<Tenant, Account>,
    /// How many lanes have work.
    with_work: usize,
    /// Accounts that were ever opened.
    opened: u64,
    /// How much the least served lane with work had been served, at the last turn. It never falls.
    reached: Served,
}

/// Where a lane stands: how much it was served, and the number of its account. Names would be slower to compare.
type Place = (Served, u64);

#[cfg_attr(test, derive(Clone))]
struct Account {
    number: u64,
    weight: NonZeroU32,
    has_work: bool,
    /// Work that is known, and what the lane missed while it had none.
    settled: Served,
    /// Work units that it was given and that are an estimate yet.
    unsettled: u64,
}

impl Account {
    fn served(&self) -> Served {
        self.settled + served(self.unsettled, self.weight)
    }

    fn place(&self) -> Place {
        (self.served(), self.number)
    }

    /// Whether the lane is as if it had never been, where one that is new begins at `reached`.
    fn is_forgotten(&self, reached: Served) -> bool {
        !self.has_work && self.unsettled == 0 && self.served() <= reached
    }
}

impl Turns {
    /// Whether no lane has work.
    pub(crate) fn is_empty(&self) -> bool {
        self.with_work == 0
    }

    /// How many lanes have an account.
    #[cfg(test)]
    pub(crate) fn accounts(&self) -> usize {
        self.accounts.len()
    }

    /// From now on the lane of `tenant` has work; a lane that is new is of `weight`.
    pub(crate) fn join(&mut self, tenant: &Tenant, weight: NonZeroU32) {
        let reached = self.reached;
        let account = self.accounts.entry(tenant.clone()).or_insert_with(|| {
            self.opened += 1;
            Account {
                number: self.opened,
                weight,
                has_work: false,
                settled: reached,
                unsettled: 0,
            }
        });
        if !account.has_work {
            account.has_work = true;
            account.settled += reached.saturating_sub(account.served());
            self.with_work += 1;
        }
    }

    /// The lane of `tenant` has no work any more.
    pub(crate) fn leave(&mut self, tenant: &Tenant) {
        let account = self.accounts.get_mut(tenant);
        if account.is_some_and(|account| std::mem::take(&mut account.has_work)) {
            self.with_work -= 1;
        }
    }

    /// Gives every lane its weight of now. What was settled by another stays so.
    pub(crate) fn reweigh(&mut self, weight_of: impl Fn(&Tenant) -> NonZeroU32) {
        for (tenant, account) in &mut self.accounts {
            account.weight = weight_of(tenant);
        }
    }

    /// Work of `tenant` that was charged as `estimate` was `work`, both in work units.
    pub(crate) fn settle(&mut self, tenant: &Tenant, estimate: u64, work: u64) {
        if let Some(account) = self.accounts.get_mut(tenant) {
            account.unsettled -= estimate;
            account.settled += served(work, account.weight);
        }
    }

    /// The turns of one window, which reaches at most so many lanes.
    pub(crate) fn round(&mut self, lanes_max: NonZeroUsize) -> Round<'_> {
        let lanes_max = lanes_max.get();
        let reached = &mut self.reached;
        self.accounts.retain(|_, account| !account.is_forgotten(*reached));
        // Going through a table takes as long as it has room, and there may have been many more.
        self.accounts.shrink_to(2 * self.accounts.len());
        let with_work = self.accounts.iter_mut().filter(|(_, account)| account.has_work);
        let mut others: Vec<Waiting<'_>> = with_work.map(Waiting::new).collect();
        let mut beyond = None;
        if others.len() > lanes_max {
            let (_, least, _) = others.select_nth_unstable_by_key(lanes_max, |lane| lane.place);
            beyond = Some(least.place.0);
            others.truncate(lanes_max);
        }
        others.sort_unstable_by_key(|lane| Reverse(lane.place));
        Round {
            others,
            beyond,
            reached: VecDeque::new(),
            least_served: reached,
            with_work: &mut self.with_work,
        }
    }
}

/// The turns of one window. It reaches those lanes with work that were served least.
pub(crate) struct Round<'a> {
    /// The lanes that it may reach and has not, the least served last.
    others: Vec<Waiting<'a>>,
    /// How much the least served lane with work that is beyond its reach was served.
    beyond: Option<Served>,
    /// The lanes that it has reached and that have work, the least served first. They are few; and where records are about as
    /// large as one another, whoever had a turn goes to the end, or nearly.
    reached: VecDeque<Waiting<'a>>,
    /// [`Turns::reached`].
    least_served: &'a mut Served,
    /// [`Turns::with_work`].
    with_work: &'a mut usize,
}

struct Waiting<'a> {
    place: Place,
    lane: &'a Tenant,
    account: &'a mut Account,
}

impl<'a> Waiting<'a> {
    fn new((lane, account): (&'a Tenant, &'a mut Account)) -> Self {
        Self {
            place: account.place(),
            lane,
            account,
        }
    }
}

impl<'a> Round<'a> {
    /// Whose turn it is, if any lane within reach has work.
    pub(crate) fn next(&mut self) -> Option<&'a Tenant> {
        let reached = self.reached.front().map(|lane| lane.place);
        let other = self
            .others
            .pop_if(|other| reached.is_none_or(|reached| other.place < reached));
        if let Some(other) = other {
            self.reached.push_front(other);
        }
        let next = self.reached.front()?;
        let least = self.beyond.into_iter().fold(next.place.0, Served::min);
        *self.least_served = least.max(*self.least_served);
        Some(next.lane)
    }

    /// The lane whose turn it was got work that will be `estimate`, about, in work units. Whether it has more?
    pub(crate) fn serve(&mut self, estimate: u64, has_work: bool) {
        let mut lane = self.reached.pop_front().expect("somebody's turn it was");
        lane.account.unsettled += estimate;
        lane.account.has_work = has_work;
        if !has_work {
            *self.with_work -= 1;
            return;
        }
        lane.place = lane.account.place();
        let before = self.reached.iter().rposition(|other| other.place < lane.place);
        self.reached.insert(before.map_or(0, |last| last + 1), lane);
    }

    /// Ends it. Answers how many lanes had work all through it, and which of them it reached, with their weights.
    pub(crate) fn end(self) -> Backlogged {
        let weights = self
            .reached
            .iter()
            .map(|lane| (lane.lane.clone(), lane.account.weight));
        Backlogged {
            lanes: *self.with_work,
            reached: weights.collect(),
        }
    }
}

/// The lanes that had work all through a window.
#[derive(Debug, Default)]
pub(crate) struct Backlogged {
    /// How many.
    pub(crate) lanes: usize,
    /// Those from which it took something, with their weights.
    pub(crate) reached: HashMap<Tenant, NonZeroU32>,
}

impl Backlogged {
    /// Jain's index of what they got of a window for their weights, as `work_of` each says: 1 where all got the same, 1/n
    /// where one of n got all (Jain, Chiu and Hawe, 1984). None where there is nobody to compare with, or nothing to.
    pub(crate) fn jain(&self, work_of: impl Fn(&Tenant) -> u64) -> Option<f64> {
        let shares = || {
            let reached = self.reached.iter();
            reached.map(|(tenant, weight)| work_of(tenant) as f64 / f64::from(weight.get()))
        };
        let (sum, squares) = (
            shares().sum::<f64>(),
            shares().map(|share| share * share).sum::<f64>(),
        );
        (self.lanes > 1 && squares > 0.0).then(|| sum * sum / (self.lanes as f64 * squares))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::Config};

    use super::*;
    use crate::mutations;

    /// A way in which turns are given out wrongly. Each must be found: a check that never fails checks nothing.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Mutation {
        /// All lanes are of the same weight.
        IgnoreWeights,
        /// A lane that had no work for a while is owed what it missed.
        SaveUp,
        /// A lane that comes back begins at the end.
        BeginLast,
        /// Estimates stay as they are.
        NeverSettle,
        /// A turn is a turn, however large its record.
        CountTurns,
    }

    impl Mutation {
        const ALL: [Self; 5] = [
            Self::IgnoreWeights,
            Self::SaveUp,
            Self::BeginLast,
            Self::NeverSettle,
            Self::CountTurns,
        ];
    }

    /// What happens to the lanes, one after the other.
    #[derive(Debug, Clone)]
    enum Event {
        /// Records come to a lane, each with its work and by how many tenths that is estimated.
        Arrive { lane: usize, records: Vec<(u64, u64)> },
        /// What waits in a lane is taken over by another processor.
        Forget { lane: usize },
        /// A lane has reached its rate: it may not run what it has, from now on or from its next turn on.
        Hold { lane: usize, at_next_turn: bool },
        /// It may again.
        Release { lane: usize },
        /// A window takes so many records.
        Window { records: usize },
        /// The oldest window that is not settled is.
        Settle,
    }

    #[derive(Debug, Clone)]
    struct Story {
        weights: Vec<u32>,
        /// How many times larger the records of a lane are.
        sizes: Vec<u64>,
        /// How many times too high the estimates of a lane are, beside how each record's is off.
        factors: Vec<u64>,
        lanes_max: usize,
        events: Vec<Event>,
    }

    fn stories() -> impl Strategy<Value = Story> {
        let (lane, records) = (
            0_usize..5,
            prop::collection::vec((1_u64..1_000, 0_u64..20), 1..40),
        );
        let event = prop_oneof![
            4 => (lane.clone(), records).prop_map(|(lane, records)| Event::Arrive { lane, records }),
            1 => lane.clone().prop_map(|lane| Event::Forget { lane }),
            1 => (lane.clone(), any::<bool>()).prop_map(|(lane, at_next_turn)| Event::Hold { lane, at_next_turn }),
            2 => lane.prop_map(|lane| Event::Release { lane }),
            6 => (1_usize..30).prop_map(|records| Event::Window { records }),
            8 => Just(Event::Settle),
        ];
        let weights = prop::collection::vec(1_u32..6, 5);
        let sizes = prop::collection::vec(1_u64..10, 5);
        let factors = prop::collection::vec(0_u64..4, 5);
        let events = prop::collection::vec(event, 20..200);
        (weights, sizes, factors, 1_usize..7, events).prop_map(
            |(weights, sizes, factors, lanes_max, events)| Story {
                weights,
                sizes,
                factors,
                lanes_max,
                events,
            },
        )
    }

    /// A lane as the check sees it, beside its account.
    #[derive(Default)]
    struct Seen {
        queue: VecDeque<(u64, u64)>,
        is_held_back: bool,
        is_held_back_at_next_turn: bool,
        work: i128,
        /// The work of its windows that are not settled, and the estimates of it.
        unsettled: (i128, i128),
        /// The most by which those estimates were too low, and too high.
        too_low: i128,
        too_high: i128,
        /// The most that it had of one window.
        of_window: i128,
        record: i128,
    }

    impl Seen {
        fn may_run(&self) -> bool {
            !self.queue.is_empty() && !self.is_held_back
        }

        fn note_error(&mut self) {
            let (work, estimate) = self.unsettled;
            self.too_low = self.too_low.max(work - estimate);
            self.too_high = self.too_high.max(estimate - work);
        }
    }

    fn tenant(lane: usize) -> Tenant {
        Tenant::new(&format!("t{lane}")).unwrap()
    }

    /// Plays `story`, and says between which lanes the bound of ARCHITECTURE.md was broken.
    fn play(story: &Story, mutation: Option<Mutation>) -> Result<(), String> {
        let weight = |lane: usize| {
            let weight = if mutation == Some(Mutation::IgnoreWeights) {
                1
            } else {
                story.weights[lane]
            };
            NonZeroU32::new(weight).unwrap()
        };
        let lanes = story.weights.len();
        let join = |turns: &mut Turns, lane: usize, is_new: bool| {
            let before = turns.accounts.get(&tenant(lane)).cloned();
            turns.join(&tenant(lane), weight(lane));
            if is_new {
                let account = turns.accounts.get_mut(&tenant(lane)).unwrap();
                match mutation {
                    Some(Mutation::SaveUp) => account.settled = before.map_or(0, |before| before.settled),
                    Some(Mutation::BeginLast) => account.settled += turns.reached,
                    _ => {}
                }
            }
        };
        let charge = |work| {
            if mutation == Some(Mutation::CountTurns) {
                1
            } else {
                work
            }
        };
        let mut turns = Turns::default();
        let mut seen: Vec<Seen> = (0..lanes).map(|_| Seen::default()).collect();
        let mut windows: VecDeque<Vec<(usize, u64, u64)>> = VecDeque::new();
        // By pair: the least and the most that work over weight differed while both had work, times both weights.
        let mut apart: HashMap<(usize, usize), (i128, i128)> = HashMap::new();
        for event in &story.events {
            match event {
                Event::Arrive { lane, records } => {
                    if !seen[*lane].is_held_back {
                        let is_new = seen[*lane].queue.is_empty();
                        join(&mut turns, *lane, is_new);
                    }
                    let (size, factor) = (story.sizes[*lane], story.factors[*lane]);
                    let estimated = records.iter().map(|(work, tenths)| {
                        let work = work * size;
                        (work, work * factor * tenths / 10)
                    });
                    seen[*lane].queue.extend(estimated);
                }
                Event::Forget { lane } => {
                    turns.leave(&tenant(*lane));
                    seen[*lane].queue.clear();
                }
                Event::Hold {
                    lane,
                    at_next_turn: true,
                } => seen[*lane].is_held_back_at_next_turn = true,
                Event::Hold {
                    lane,
                    at_next_turn: false,
                } => {
                    turns.leave(&tenant(*lane));
                    seen[*lane].is_held_back = true;
                }
                Event::Release { lane } => {
                    let of = &mut seen[*lane];
                    if std::mem::take(&mut of.is_held_back) && !of.queue.is_empty() {
                        join(&mut turns, *lane, true);
                    }
                }
                Event::Window { records } => {
                    let lanes_max = NonZeroUsize::new(story.lanes_max).unwrap();
                    let mut round = turns.round(lanes_max);
                    let mut window: Vec<(usize, u64, u64)> = Vec::new();
                    for _ in 0..*records {
                        let Some(next) = round.next() else { break };
                        let lane: usize = next.as_str()[1..].parse().unwrap();
                        let (work, estimate) = seen[lane].queue.pop_front().unwrap();
                        if std::mem::take(&mut seen[lane].is_held_back_at_next_turn) {
                            seen[lane].is_held_back = true;
                        }
                        round.serve(charge(estimate), seen[lane].may_run());
                        window.push((lane, work, estimate));
                        let of = &mut seen[lane];
                        of.work += i128::from(work);
                        of.record = of.record.max(work.into());
                        of.unsettled.0 += i128::from(work);
                        of.unsettled.1 += i128::from(estimate);
                        of.note_error();
                        let of_window = window.iter().filter(|(of, ..)| *of == lane);
                        let of_window = of_window.map(|(_, work, _)| i128::from(*work)).sum();
                        of.of_window = of.of_window.max(of_window);
                        note(&seen, &story.weights, &mut apart);
                    }
                    round.end();
                    windows.push_back(window);
                }
                Event::Settle => {
                    for (lane, work, estimate) in windows.pop_front().unwrap_or_default() {
                        seen[lane].unsettled.0 -= i128::from(work);
                        seen[lane].unsettled.1 -= i128::from(estimate);
                        seen[lane].note_error();
                        let work = match mutation {
                            Some(Mutation::NeverSettle) => estimate,
                            _ => charge(work),
                        };
                        turns.settle(&tenant(lane), charge(estimate), work);
                    }
                }
            }
            note(&seen, &story.weights, &mut apart);
            let turn = |of: &Seen| {
                if story.lanes_max < lanes {
                    of.of_window
                } else {
                    of.record
                }
            };
            for ((one, other), (least, most)) in &apart {
                let share = |lane: usize, of: usize| {
                    let at_once = turn(&seen[lane]) + seen[lane].too_low + seen[lane].too_high;
                    at_once * i128::from(story.weights[of])
                };
                let bound = share(*one, *other) + share(*other, *one);
                if most - least > bound {
                    return Err(format!(
                        "t{one} and t{other} are {} apart, more than {bound}",
                        most - least
                    ));
                }
            }
        }
        Ok(())
    }

    /// Takes in how far each two lanes are apart now, if both have work that they may run.
    fn note(seen: &[Seen], weights: &[u32], apart: &mut HashMap<(usize, usize), (i128, i128)>) {
        for one in 0..seen.len() {
            for other in one + 1..seen.len() {
                if !seen[one].may_run() || !seen[other].may_run() {
                    apart.remove(&(one, other));
                    continue;
                }
                let work = |lane: usize, of: usize| seen[lane].work * i128::from(weights[of]);
                let difference = work(one, other) - work(other, one);
                let (least, most) = apart.entry((one, other)).or_insert((difference, difference));
                *least = difference.min(*least);
                *most = difference.max(*most);
            }
        }
    }

    proptest! {
        #![proptest_config(Config::with_cases(2_000))]
        #[test]
        fn two_lanes_with_work_differ_by_no_more_than_the_bound_whatever_their_weights_records_and_estimates(
            story in stories(),
        ) {
            prop_assert_eq!(play(&story, None), Ok(()));
        }
    }

    #[test]
    fn turns_that_are_given_out_wrongly_are_found() {
        mutations::are_found(&Mutation::ALL, || stories().boxed(), play);
    }
}

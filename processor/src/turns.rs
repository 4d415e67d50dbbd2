//! Whose turn it is: what each lane was served, by its weight.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BinaryHeap, HashMap, binary_heap::PeekMut},
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
#[derive(Default)]
pub(crate) struct Turns {
    accounts: HashMap<Tenant, Account>,
    /// Lanes with work.
    waiting: BTreeMap<Place, Tenant>,
    /// Lanes without any, here or unsettled.
    idle: BTreeMap<Place, Tenant>,
    /// Accounts that were ever opened.
    opened: u64,
    /// How much the least served lane with work had been served, at the last turn. It never falls.
    reached: Served,
}

/// Where a lane stands: how much it was served, and the number of its account. Names would be slower to compare.
type Place = (Served, u64);

#[derive(Clone, Copy)]
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
}

impl Turns {
    /// Whether no lane has work.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many lanes have an account.
    #[cfg(test)]
    pub(crate) fn accounts(&self) -> usize {
        self.accounts.len()
    }

    /// From now on the lane of `tenant` has work; a lane that is new is of `weight`.
    pub(crate) fn join(&mut self, tenant: &Tenant, weight: NonZeroU32) {
        let reached = self.reached;
        self.accounts.entry(tenant.clone()).or_insert_with(|| {
            self.opened += 1;
            Account {
                number: self.opened,
                weight,
                has_work: false,
                settled: reached,
                unsettled: 0,
            }
        });
        self.change(tenant, |account| {
            if !account.has_work {
                account.settled += reached.saturating_sub(account.served());
                account.has_work = true;
            }
        });
    }

    /// The lane of `tenant` has no work any more.
    pub(crate) fn leave(&mut self, tenant: &Tenant) {
        self.change(tenant, |account| account.has_work = false);
    }

    /// Gives every lane its weight of now. What was settled by another stays so.
    pub(crate) fn reweigh(&mut self, weight_of: impl Fn(&Tenant) -> NonZeroU32) {
        let tenants: Vec<Tenant> = self.accounts.keys().cloned().collect();
        for tenant in tenants {
            let weight = weight_of(&tenant);
            self.change(&tenant, |account| account.weight = weight);
        }
    }

    /// Work of `tenant` that was charged as `estimate` was `work`, both in work units.
    pub(crate) fn settle(&mut self, tenant: &Tenant, estimate: u64, work: u64) {
        self.change(tenant, |account| {
            account.unsettled -= estimate;
            account.settled += served(work, account.weight);
        });
    }

    /// The turns of one window, which reaches at most so many lanes.
    pub(crate) fn round(&mut self, lanes_max: NonZeroUsize) -> Round<'_> {
        Round {
            turns: self,
            lanes_left: lanes_max.get(),
            reached: BinaryHeap::new(),
        }
    }

    /// Changes an account, and puts its lane where it belongs then.
    fn change(&mut self, tenant: &Tenant, change: impl FnOnce(&mut Account)) {
        let Some(account) = self.accounts.get_mut(tenant) else {
            return;
        };
        let place = account.place();
        let lane = self.waiting.remove(&place).or_else(|| self.idle.remove(&place));
        let lane = lane.unwrap_or_else(|| tenant.clone());
        change(account);
        if account.has_work {
            self.waiting.insert(account.place(), lane);
        } else if account.unsettled == 0 {
            self.idle.insert(account.place(), lane);
        }
    }

    /// Drops the accounts of lanes that are as if they had never been.
    fn drop_idle(&mut self) {
        while let Some(idle) = self.idle.first_entry() {
            if idle.key().0 > self.reached {
                break;
            }
            self.accounts.remove(&idle.remove());
        }
    }
}

/// The turns of one window.
pub(crate) struct Round<'a> {
    turns: &'a mut Turns,
    /// How many lanes it may still reach that it has not.
    lanes_left: usize,
    /// Those that it has reached and that have work, the least served first. Until it ends they stand here with their accounts,
    /// and not in [`Turns::waiting`].
    reached: BinaryHeap<Reached>,
}

struct Reached {
    place: Place,
    account: Account,
    lane: Tenant,
}

impl Ord for Reached {
    fn cmp(&self, other: &Self) -> Ordering {
        other.place.cmp(&self.place)
    }
}

impl PartialOrd for Reached {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Reached {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl Eq for Reached {}

impl Round<'_> {
    /// Whose turn it is, if any lane within reach has work.
    pub(crate) fn next(&mut self) -> Option<Tenant> {
        let reached = self.reached.peek().map(|reached| reached.place);
        let other = self.turns.waiting.first_key_value().map(|(place, _)| *place);
        let least = other.into_iter().chain(reached).min()?;
        self.turns.reached = self.turns.reached.max(least.0);
        if self.lanes_left > 0 && other == Some(least) {
            let (place, lane) = self.turns.waiting.pop_first()?;
            let account = self.turns.accounts[&lane];
            self.lanes_left -= 1;
            self.reached.push(Reached { place, account, lane });
        }
        self.reached.peek().map(|reached| reached.lane.clone())
    }

    /// The lane whose turn it was got work that will be `estimate`, about, in work units. Whether it has more?
    pub(crate) fn serve(&mut self, estimate: u64, has_work: bool) {
        let mut served = self.reached.peek_mut().expect("somebody's turn it was");
        served.account.unsettled += estimate;
        served.account.has_work = has_work;
        served.place = served.account.place();
        if !has_work {
            let Reached { place, account, lane } = PeekMut::pop(served);
            self.turns.accounts.insert(lane.clone(), account);
            if account.unsettled == 0 {
                self.turns.idle.insert(place, lane);
            }
        }
    }

    /// Ends it. Answers how many lanes had work all through it, and which of them it reached, with their weights.
    pub(crate) fn end(self) -> Backlogged {
        let mut weights = HashMap::with_capacity(self.reached.len());
        for Reached { place, account, lane } in self.reached {
            weights.insert(lane.clone(), account.weight);
            self.turns.accounts.insert(lane.clone(), account);
            self.turns.waiting.insert(place, lane);
        }
        self.turns.drop_idle();
        Backlogged {
            lanes: self.turns.waiting.len(),
            reached: weights,
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
    use std::collections::VecDeque;

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
                let reached = turns.reached;
                turns.change(&tenant(lane), |account| match mutation {
                    Some(Mutation::SaveUp) => account.settled = before.map_or(0, |before| before.settled),
                    Some(Mutation::BeginLast) => account.settled += reached,
                    _ => {}
                });
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

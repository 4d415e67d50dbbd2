//! What a property test is worth: it must find what is done wrongly on purpose.

use std::fmt::Debug;

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

/// Of so many stories one must show that a mutation does wrong.
const STORIES_MAX: u32 = 2_000;

/// Sees that `play` complains of a story under each of `mutations`.
pub(crate) fn are_found<Story: Debug, Mutation: Copy + Debug>(
    mutations: &[Mutation],
    stories: impl Fn() -> BoxedStrategy<Story>,
    play: impl Fn(&Story, Option<Mutation>) -> Result<(), String>,
) {
    for mutation in mutations {
        let mut runner = TestRunner::new(Config {
            cases: STORIES_MAX,
            max_shrink_iters: 0,
            failure_persistence: None,
            ..Config::default()
        });
        let found = runner.run(&stories(), |story| {
            play(&story, Some(*mutation)).map_err(TestCaseError::fail)
        });
        assert!(found.is_err(), "{mutation:?} goes unnoticed");
    }
}

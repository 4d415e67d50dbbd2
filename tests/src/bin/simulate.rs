//! Runs the services under simulated faults, a schedule a seed, and then under each way to do the protocol wrong, which
//! must be found.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it reports to whoever started it"
)]

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Instant,
};

use clap::Parser;
use stories::simulator::{Mutation, Plan, Ran, run, shortest};

/// A mutation that is not found within this many seeds is not found.
const MUTANT_SEEDS_MAX: u64 = 200;
/// The trace of a failure is shown from this many lines before its end.
const TRACE_SHOWN: usize = 200;

/// Runs ingest, processors and sinks under simulated faults: one schedule a seed, the same each time.
#[derive(Parser)]
#[command(name = "simulate")]
struct Options {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Run this one seed alone, and print every step of it.
    #[arg(long, conflicts_with = "seeds")]
    replay: Option<u64>,
    /// Do the protocol wrong in this way.
    #[arg(long)]
    mutation: Option<Mutation>,
    /// Do not check that wrong protocols are found.
    #[arg(long)]
    no_mutations: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let plan = |seed| Plan {
        seed,
        mutation: options.mutation,
        spared: Vec::new(),
    };
    if let Some(seed) = options.replay {
        let ran = run(&plan(seed));
        ran.trace.iter().for_each(|line| println!("{line}"));
        return verdict(seed, &ran);
    }
    let seeds = options.first_seed..options.first_seed.saturating_add(options.seeds);
    if let Some(seed) = first_failure(seeds, &plan) {
        let ran = shortest(&plan(seed)).expect("it failed just now, and a seed gives the same run again");
        let skipped = ran.trace.len().saturating_sub(TRACE_SHOWN);
        println!(
            "the shortest story of seed {seed} that still fails, from line {} on:",
            skipped + 1
        );
        ran.trace.iter().skip(skipped).for_each(|line| println!("{line}"));
        return verdict(seed, &ran);
    }
    if options.mutation.is_some() || options.no_mutations {
        return ExitCode::SUCCESS;
    }
    let mut missed = false;
    for mutation in Mutation::ALL {
        let seeds = options.first_seed..options.first_seed.saturating_add(MUTANT_SEEDS_MAX);
        let caught = seeds.into_iter().position(|seed| {
            !run(&Plan {
                seed,
                mutation: Some(mutation),
                spared: Vec::new(),
            })
            .violations
            .is_empty()
        });
        match caught {
            Some(position) => println!(
                "{mutation:<24} found within {} of at most {MUTANT_SEEDS_MAX} seeds",
                position + 1
            ),
            None => {
                missed = true;
                eprintln!("{mutation:<24} was NOT found within {MUTANT_SEEDS_MAX} seeds");
            }
        }
    }
    if missed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Runs `seeds` on all cores. The lowest seed that failed, of those that were run.
fn first_failure(seeds: std::ops::Range<u64>, plan: &(impl Fn(u64) -> Plan + Sync)) -> Option<u64> {
    let (began, count) = (Instant::now(), seeds.end - seeds.start);
    let (next, failed, stop) = (
        AtomicU64::new(seeds.start),
        AtomicU64::new(u64::MAX),
        AtomicBool::new(false),
    );
    let (faults, steps) = (AtomicU64::new(0), AtomicU64::new(0));
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let ran = run(&plan(seed));
            faults.fetch_add(ran.faults.len() as u64, Ordering::Relaxed);
            steps.fetch_add(ran.trace.len() as u64, Ordering::Relaxed);
            if !ran.violations.is_empty() {
                failed.fetch_min(seed, Ordering::Relaxed);
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner();
    if failed != u64::MAX {
        return Some(failed);
    }
    let (seconds, steps, faults) = (
        began.elapsed().as_secs_f64(),
        steps.into_inner(),
        faults.into_inner(),
    );
    println!(
        "{count} seeds, {steps} steps, {faults} faults: no violation, in {seconds:.1} s, {:.0} seeds/s",
        count as f64 / seconds
    );
    None
}

fn verdict(seed: u64, ran: &Ran) -> ExitCode {
    println!(
        "seed {seed}: {} outcomes, {} faults",
        ran.outcomes,
        ran.faults.len()
    );
    for (step, fault) in &ran.faults {
        println!("  at step {step}: {fault:?}");
    }
    for violation in &ran.violations {
        println!("violated: {violation}");
    }
    if ran.violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

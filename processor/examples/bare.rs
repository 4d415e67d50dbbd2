//! The model alone, in a loop: what the whole pipeline is measured against.
//!
//! ```text
//! cargo run --release -p processor --example bare -- --folder MODEL --jobs JOBS.jsonl [--device auto] [--dtype f32] [--path auto]
//!     [--batch-tokens 2048 | --batch 32] [--repeat 1] [--whole 0] [--at-once N]
//! ```
//!
//! All texts are tokenized beforehand and sorted by length. One line of JSON says what was done: `tokens` without
//! padding and `tokens_squared`, the sum of their squares by text, `seconds` of encoding alone, the median of the rounds,
//! and `tokenize_seconds` on all cores. `whole_seconds` is the median of `--whole` other rounds, from texts to vectors: the
//! texts of a window are tokenized on all cores, sorted and cut while the device runs the window before, as in the
//! processor.

#![expect(unsafe_code, reason = "candle's threads are set by an environment variable")]

use std::{
    error::Error,
    io::{BufRead, BufReader, Write},
    num::NonZeroUsize,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use processor::model::{CpuPath, EncodeError, Model, ModelConfig, TokenizeError, Tokens, load};
use rayon::prelude::*;
use schemas::ModelName;
use serde_json::{Value, json};

/// How texts are put together.
#[derive(Clone, Copy)]
enum Batches {
    /// At most so many tokens, padding included.
    Tokens(usize),
    /// So many texts.
    Texts(usize),
}

struct Options {
    jobs: String,
    model: Value,
    device: Value,
    batches: Option<Batches>,
    repeat: usize,
    path: CpuPath,
    whole: usize,
    /// Micro-batches; none: as many as the model says is worth it.
    at_once: Option<NonZeroUsize>,
}

/// Texts that are tokenized at once, while the device works: as many as a window of the processor has at most.
const WINDOW_TEXTS: usize = 4_096;

fn main() -> Result<(), Box<dyn Error>> {
    // SAFETY: no other thread runs yet. Each micro-batch has a core of its own, as in the processor.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    let options = options()?;
    let texts = inputs(&options.jobs)?;
    let config: ModelConfig = serde_json::from_value(options.model)?;
    let began = Instant::now();
    let mut model = load(
        &ModelName::new("bare")?,
        &config,
        serde_json::from_value(options.device)?,
        options.path,
    )?;
    let load_seconds = began.elapsed().as_secs_f64();
    model.encodings_at_once = options.at_once.unwrap_or(model.encodings_at_once);
    let how = options.batches.unwrap_or(Batches::Tokens(model.batch_tokens));

    let began = Instant::now();
    let tokenized = tokenized(&model, &texts)?;
    let tokenize_seconds = began.elapsed().as_secs_f64();
    let tokens: usize = tokenized.iter().map(|text| text.ids.len()).sum();
    let batches = cut(&tokenized, how);
    let padded: usize = batches.iter().map(|batch| batch.len() * batch[0].ids.len()).sum();

    run(&model, &batches.iter().rev().take(3).copied().collect::<Vec<_>>())?;
    let seconds = median(options.repeat, || run(&model, &batches))?;
    let whole_seconds = median(options.whole, || run_whole(&model, &texts, how))?;
    let report = json!({
        "device": model.device,
        "path": model.path,
        "dtype": model.dtype,
        "at_once": model.encodings_at_once,
        "texts": texts.len(),
        "batches": batches.len(),
        "tokens": tokens,
        "tokens_squared": tokenized.iter().map(|text| text.ids.len().pow(2)).sum::<usize>(),
        "padded_tokens": padded,
        "load_seconds": load_seconds,
        "tokenize_seconds": tokenize_seconds,
        "seconds": seconds,
        "whole_seconds": whole_seconds,
        "tokens_per_s": seconds.map(|seconds| tokens as f64 / seconds),
        "whole_tokens_per_s": whole_seconds.map(|seconds| tokens as f64 / seconds),
    });
    Ok(writeln!(std::io::stdout(), "{report}")?)
}

/// None where there was no round.
fn median<E>(rounds: usize, mut round: impl FnMut() -> Result<(), E>) -> Result<Option<f64>, E> {
    let mut took = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let began = Instant::now();
        round()?;
        took.push(began.elapsed().as_secs_f64());
    }
    took.sort_by(f64::total_cmp);
    Ok(took.get(rounds / 2).copied())
}

/// On all cores, the longest first.
fn tokenized(model: &Model, texts: &[String]) -> Result<Vec<Tokens>, TokenizeError> {
    let read = texts.par_iter().map(|text| model.tokenizer.tokenize(text));
    let mut tokenized = read.collect::<Result<Vec<Tokens>, _>>()?;
    tokenized.sort_by_key(|text| std::cmp::Reverse(text.ids.len()));
    Ok(tokenized)
}

/// Runs each batch once, as many at once as are worth it, each on one core.
fn run(model: &Model, batches: &[&[Tokens]]) -> Result<(), EncodeError> {
    let next = AtomicUsize::new(0);
    on_each_core(model, || {
        while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
            std::hint::black_box(model.encoder.encode(batch)?);
        }
        Ok(())
    })
}

/// From texts to vectors.
fn run_whole(model: &Model, texts: &[String], how: Batches) -> Result<(), Box<dyn Error>> {
    let (ready, batches) = mpsc::sync_channel::<Vec<Tokens>>(2 * model.encodings_at_once.get());
    let batches = Mutex::new(batches);
    thread::scope(|scope| {
        let preparing = scope.spawn(move || {
            for window in texts.chunks(WINDOW_TEXTS) {
                for batch in cut(&tokenized(model, window)?, how) {
                    // Nobody takes it where a batch failed.
                    if ready.send(batch.to_vec()).is_err() {
                        return Ok(());
                    }
                }
            }
            Ok::<_, TokenizeError>(())
        });
        on_each_core(model, || {
            loop {
                let batch = batches.lock().expect("nobody panics with it").recv();
                let Ok(batch) = batch else { return Ok(()) };
                std::hint::black_box(model.encoder.encode(&batch)?);
            }
        })?;
        Ok(preparing.join().expect("the tokenizer does not panic")?)
    })
}

/// Runs `work` on as many threads as are worth it, each of them on one core.
fn on_each_core(model: &Model, work: impl Fn() -> Result<(), EncodeError> + Sync) -> Result<(), EncodeError> {
    let work = || {
        let alone = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .use_current_thread();
        let _alone = alone.build().expect("a new thread is in no pool yet");
        work()
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..model.encodings_at_once.get())
            .map(|_| scope.spawn(work))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("the model does not panic"))
    })
}

fn options() -> Result<Options, Box<dyn Error>> {
    let (mut folder, mut jobs, mut batches, mut repeat, mut whole) = (None, None, None, 1, 0);
    let (mut device, mut dtype, mut at_once) = ("auto".to_owned(), "f32".to_owned(), None);
    let mut path = CpuPath::default();
    let mut words = std::env::args().skip(1);
    while let Some(option) = words.next() {
        let value = words.next().ok_or_else(|| format!("`{option}` needs a value"))?;
        match option.as_str() {
            "--folder" => folder = Some(value),
            "--jobs" => jobs = Some(value),
            "--device" => device = value,
            "--dtype" => dtype = value,
            "--batch-tokens" => batches = Some(Batches::Tokens(value.parse()?)),
            "--batch" => batches = Some(Batches::Texts(value.parse::<usize>()?.max(1))),
            "--repeat" => repeat = value.parse::<usize>()?.max(1),
            "--path" => path = serde_json::from_value(value.into())?,
            "--whole" => whole = value.parse()?,
            "--at-once" => at_once = Some(value.parse()?),
            _ => return Err(format!("unknown option `{option}`").into()),
        }
    }
    let source = folder.ok_or("--folder names the model's folder")?;
    Ok(Options {
        jobs: jobs.ok_or("--jobs names a file of jobs, one JSON object a line")?,
        model: json!({ "source": source, "dtype": dtype }),
        device: json!(device),
        batches,
        repeat,
        path,
        whole,
        at_once,
    })
}

fn inputs(path: &str) -> Result<Vec<String>, Box<dyn Error>> {
    let file = std::fs::File::open(path).map_err(|error| format!("jobs file `{path}`: {error}"))?;
    let mut inputs = Vec::new();
    for line in BufReader::new(file).lines() {
        let job: Value = serde_json::from_str(&line?)?;
        inputs.push(job["input"].as_str().ok_or("a job has no `input`")?.to_owned());
    }
    match inputs.is_empty() {
        true => Err(format!("jobs file `{path}` has no jobs").into()),
        false => Ok(inputs),
    }
}

/// Cuts texts that are sorted by length, the longest first.
fn cut(mut texts: &[Tokens], batches: Batches) -> Vec<&[Tokens]> {
    let mut cut = Vec::new();
    while let Some(longest) = texts.first() {
        let most = match batches {
            Batches::Tokens(tokens) => (tokens / longest.ids.len()).max(1),
            Batches::Texts(texts) => texts,
        };
        let (batch, rest) = texts.split_at(most.min(texts.len()));
        cut.push(batch);
        texts = rest;
    }
    cut
}

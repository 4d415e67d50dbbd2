//! The model alone, in a loop: what the whole pipeline is measured against.
//!
//! ```text
//! cargo run --release -p processor --example bare -- --folder MODEL --jobs JOBS.jsonl [--batch-tokens 2048 | --batch 32] [--repeat 1] \
//!     [--dtype f32] [--path auto] [--cores N]
//! ```
//!
//! All texts are tokenized beforehand and sorted by length. One line of JSON says what was done: `tokens` without
//! padding and `tokens_squared`, the sum of their squares by text, `seconds` of encoding alone, the median of the rounds, and `tokenize_seconds` on all cores.

#![expect(unsafe_code, reason = "candle's threads are set by an environment variable")]

use std::{
    error::Error,
    io::{BufRead, BufReader, Write},
    num::NonZeroUsize,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use processor::model::{CpuPath, DeviceChoice, Dtype, EncodeError, Model, ModelConfig, Tokens, load};
use rayon::prelude::*;
use schemas::ModelName;

/// How texts are put together.
#[derive(Clone, Copy)]
enum Batches {
    /// At most so many tokens, padding included.
    Tokens(usize),
    /// So many texts.
    Texts(usize),
}

struct Options {
    folder: String,
    jobs: String,
    batches: Batches,
    repeat: usize,
    dtype: Dtype,
    path: CpuPath,
    cores: Option<NonZeroUsize>,
}

fn main() -> Result<(), Box<dyn Error>> {
    // SAFETY: no other thread runs yet. Each micro-batch has a core of its own, as in the processor.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    let options = options()?;
    let texts = inputs(&options.jobs)?;
    let config: ModelConfig =
        serde_json::from_value(serde_json::json!({ "source": options.folder, "dtype": options.dtype }))?;
    let mut model = load(
        &ModelName::new("bare")?,
        &config,
        DeviceChoice::Auto,
        options.path,
    )?;
    model.encodings_at_once = options.cores.unwrap_or(model.encodings_at_once);

    let began = Instant::now();
    let mut tokenized: Vec<Tokens> = texts
        .par_iter()
        .map(|text| model.tokenizer.tokenize(text))
        .collect::<Result<_, _>>()?;
    let tokenize_seconds = began.elapsed().as_secs_f64();
    tokenized.sort_by_key(|text| std::cmp::Reverse(text.ids.len()));
    let tokens: usize = tokenized.iter().map(|text| text.ids.len()).sum();
    let batches = cut(&tokenized, options.batches);
    let padded: usize = batches.iter().map(|batch| batch.len() * batch[0].ids.len()).sum();

    let warm: Vec<_> = batches.iter().rev().take(3).copied().collect();
    run(&model, &warm)?;
    let mut rounds = Vec::with_capacity(options.repeat);
    for _ in 0..options.repeat {
        let began = Instant::now();
        run(&model, &batches)?;
        rounds.push(began.elapsed().as_secs_f64());
    }
    rounds.sort_by(f64::total_cmp);
    let seconds = rounds[rounds.len() / 2];
    let report = serde_json::json!({
        "device": model.device,
        "path": model.path,
        "dtype": model.dtype,
        "cores": model.encodings_at_once,
        "texts": texts.len(),
        "batches": batches.len(),
        "tokens": tokens,
        "tokens_squared": tokenized.iter().map(|text| text.ids.len().pow(2)).sum::<usize>(),
        "padded_tokens": padded,
        "tokenize_seconds": tokenize_seconds,
        "seconds": seconds,
        "tokens_per_s": tokens as f64 / seconds,
    });
    Ok(writeln!(std::io::stdout(), "{report}")?)
}

/// Runs each batch once, as many at once as are worth it, each on one core.
fn run(model: &Model, batches: &[&[Tokens]]) -> Result<(), EncodeError> {
    let next = AtomicUsize::new(0);
    let work = || {
        let alone = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .use_current_thread();
        let _alone = alone.build().expect("a new thread is in no pool yet");
        while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
            std::hint::black_box(model.encoder.encode(batch)?);
        }
        Ok(())
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
    let (mut folder, mut jobs, mut batches, mut repeat) = (None, None, Batches::Tokens(2_048), 1);
    let (mut dtype, mut path, mut cores) = (Dtype::default(), CpuPath::default(), None);
    let mut words = std::env::args().skip(1);
    while let Some(option) = words.next() {
        let value = words.next().ok_or_else(|| format!("`{option}` needs a value"))?;
        match option.as_str() {
            "--folder" => folder = Some(value),
            "--jobs" => jobs = Some(value),
            "--batch-tokens" => batches = Batches::Tokens(value.parse()?),
            "--batch" => batches = Batches::Texts(value.parse::<usize>()?.max(1)),
            "--repeat" => repeat = value.parse::<usize>()?.max(1),
            "--dtype" => dtype = serde_json::from_value(value.into())?,
            "--path" => path = serde_json::from_value(value.into())?,
            "--cores" => cores = Some(value.parse()?),
            _ => return Err(format!("unknown option `{option}`").into()),
        }
    }
    Ok(Options {
        folder: folder.ok_or("--folder names the model's folder")?,
        jobs: jobs.ok_or("--jobs names a file of jobs, one JSON object a line")?,
        batches,
        repeat,
        dtype,
        path,
        cores,
    })
}

fn inputs(path: &str) -> Result<Vec<String>, Box<dyn Error>> {
    let file = std::fs::File::open(path).map_err(|error| format!("jobs file `{path}`: {error}"))?;
    let mut inputs = Vec::new();
    for line in BufReader::new(file).lines() {
        let job: serde_json::Value = serde_json::from_str(&line?)?;
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

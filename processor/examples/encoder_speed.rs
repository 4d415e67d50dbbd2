//! How fast a model is when nothing stands around it: the bare loop that the whole pipeline is measured against.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo run --release -p processor --example encoder_speed -- SOURCE JOBS [PASSES]
//! ```
//!
//! SOURCE is a model's source, JOBS a file with a JSON object a line and the text under `input`.

#![expect(clippy::print_stdout, reason = "printing a table is what this program is for")]

use std::{env, error::Error, fs, time::Instant};

use processor::model::{self, DeviceChoice, Model, ModelConfig, Tokens};

/// Tokens that a micro-batch may have.
const BUDGETS: [usize; 8] = [128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384];
/// Texts in a micro-batch of the classic kind.
const TEXTS: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [source, jobs, passes @ ..] = arguments.as_slice() else {
        return Err("give a model's source and a file of jobs".into());
    };
    let passes = passes.first().map_or(Ok(3), |passes| passes.parse())?;
    let config: ModelConfig = serde_json::from_value(serde_json::json!({ "source": source }))?;
    let began = Instant::now();
    let mut model = model::load(&schemas::ModelName::new("bare")?, &config, DeviceChoice::Auto)
        .map_err(|error| format!("{error}: {}", error.fault))?;
    println!(
        "loaded on {} in {:.2} s, digest {}",
        model.device,
        began.elapsed().as_secs_f64(),
        model.digest
    );
    let mut texts = tokenize(&model, &texts(jobs)?)?;
    texts.sort_by_key(|text| text.ids.len());
    println!(
        "{:>16} {:>8} {:>12} {:>12}",
        "micro-batch", "batches", "tokens/s", "texts/s"
    );
    measure(
        &mut model,
        &format!("{TEXTS} texts"),
        &texts.chunks(TEXTS).collect::<Vec<_>>(),
        passes,
    )?;
    for budget in BUDGETS {
        measure(
            &mut model,
            &format!("{budget} tokens"),
            &cut(&texts, budget),
            passes,
        )?;
    }
    Ok(())
}

fn texts(jobs: &str) -> Result<Vec<String>, Box<dyn Error>> {
    let input = |line: &str| {
        Some(
            serde_json::from_str::<serde_json::Value>(line).ok()?["input"]
                .as_str()?
                .to_owned(),
        )
    };
    let texts: Vec<_> = fs::read_to_string(jobs)?.lines().filter_map(input).collect();
    if texts.is_empty() {
        Err(format!("`{jobs}` has no line with an `input`").into())
    } else {
        Ok(texts)
    }
}

fn tokenize(model: &Model, texts: &[String]) -> Result<Vec<Tokens>, Box<dyn Error>> {
    let began = Instant::now();
    let tokens = texts
        .iter()
        .map(|text| model.tokenizer.tokenize(text))
        .collect::<Result<Vec<_>, _>>()?;
    let seconds = began.elapsed().as_secs_f64();
    let bytes: usize = texts.iter().map(String::len).sum();
    println!(
        "{} texts, {} tokens; tokenized on one thread at {:.1} MB/s, {:.0} tokens/s",
        texts.len(),
        total(&tokens),
        bytes as f64 / 1e6 / seconds,
        total(&tokens) as f64 / seconds,
    );
    Ok(tokens)
}

/// Neighbours together for as long as they fit into the budget.
fn cut(texts: &[Tokens], budget: usize) -> Vec<&[Tokens]> {
    let mut batches = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (position, text) in texts.iter().enumerate() {
        if tokens + text.ids.len() > budget && position > start {
            batches.push(&texts[start..position]);
            (start, tokens) = (position, 0);
        }
        tokens += text.ids.len();
    }
    batches.push(&texts[start..]);
    batches
}

/// The best of the passes, since on a shared machine the others measure the neighbours.
fn measure(
    model: &mut Model,
    name: &str,
    batches: &[&[Tokens]],
    passes: usize,
) -> Result<(), Box<dyn Error>> {
    let mut best_seconds = f64::INFINITY;
    for _ in 0..passes {
        let began = Instant::now();
        for batch in batches {
            model.encoder.encode(batch)?;
        }
        best_seconds = best_seconds.min(began.elapsed().as_secs_f64());
    }
    let tokens: usize = batches.iter().map(|batch| total(batch)).sum();
    let texts: usize = batches.iter().map(|batch| batch.len()).sum();
    let (tokens_per_s, texts_per_s) = (tokens as f64 / best_seconds, texts as f64 / best_seconds);
    println!(
        "{name:>16} {:>8} {tokens_per_s:>12.0} {texts_per_s:>12.1}",
        batches.len()
    );
    Ok(())
}

fn total(texts: &[Tokens]) -> usize {
    texts.iter().map(|text| text.ids.len()).sum()
}

//! What fewer bits cost: each kind of number that this machine runs a model with, beside `f32`, on a set of texts.
//!
//! ```text
//! cargo run --release -p processor --example quality -- MODEL [JOBS.jsonl]
//! ```
//!
//! One line of JSON a kind: the cosine to the vector in `f32`, in the mean and at worst; and of the ten texts that are
//! nearest to each text in `f32`, the share that are among its nearest ten. The texts are those of the demo, unless others
//! are named.

use std::{error::Error, io::Write, path::Path};

use processor::model::{CpuPath, DeviceChoice, Dtype, EncodeError, ModelConfig, Tokens, load};
use schemas::ModelName;

const NEAREST: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let folder = words.next().ok_or("name the model's folder")?;
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tributary/demo/jobs.jsonl");
    let texts = inputs(&words.next().map_or(demo, Into::into))?;
    let exact = vectors(&folder, Dtype::F32, &texts)?.ok_or("this machine does not run `f32`")?;
    let near = nearest(&exact);
    let mut out = std::io::stdout();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::Int8] {
        let Some(vectors) = vectors(&folder, dtype, &texts)? else {
            continue;
        };
        let cosines: Vec<f64> = exact.iter().zip(&vectors).map(|(a, b)| cosine(a, b)).collect();
        let shared = near
            .iter()
            .zip(nearest(&vectors))
            .map(|(a, b)| a.iter().filter(|text| b.contains(text)).count());
        let report = serde_json::json!({
            "dtype": dtype,
            "texts": texts.len(),
            "cosine_mean": cosines.iter().sum::<f64>() / cosines.len() as f64,
            "cosine_worst": cosines.iter().copied().fold(1.0, f64::min),
            "overlap_at_10": shared.sum::<usize>() as f64 / (texts.len() * NEAREST) as f64,
        });
        writeln!(out, "{report}")?;
    }
    Ok(())
}

/// The texts of a file of jobs; lines that are no job are passed over.
fn inputs(path: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let jobs = std::fs::read(path).map_err(|error| format!("jobs file `{}`: {error}", path.display()))?;
    let input = |line: &[u8]| {
        let job: serde_json::Value = serde_json::from_slice(line).ok()?;
        Some(job["input"].as_str()?.to_owned())
    };
    let inputs: Vec<_> = jobs.split(|&byte| byte == b'\n').filter_map(input).collect();
    match inputs.len() > NEAREST {
        true => Ok(inputs),
        false => Err(format!("`{}` has {NEAREST} texts or fewer", path.display()).into()),
    }
}

/// None where this machine does not run the model with such numbers.
fn vectors(folder: &str, dtype: Dtype, texts: &[String]) -> Result<Option<Vec<Vec<f32>>>, Box<dyn Error>> {
    let config: ModelConfig =
        serde_json::from_value(serde_json::json!({ "source": folder, "dtype": dtype }))?;
    let Ok(model) = load(
        &ModelName::new("quality")?,
        &config,
        DeviceChoice::Auto,
        CpuPath::Auto,
    ) else {
        return Ok(None);
    };
    let tokens: Vec<Tokens> = texts
        .iter()
        .map(|text| model.tokenizer.tokenize(text))
        .collect::<Result<_, _>>()?;
    let vectors = tokens.chunks(32).map(|texts| model.encoder.encode(texts));
    Ok(Some(vectors.collect::<Result<Vec<_>, EncodeError>>()?.concat()))
}

/// The nearest other texts of each text.
fn nearest(vectors: &[Vec<f32>]) -> Vec<Vec<usize>> {
    let of = |text: usize| {
        let mut others: Vec<usize> = (0..vectors.len()).filter(|&other| other != text).collect();
        others.sort_by_cached_key(|&other| (-cosine(&vectors[text], &vectors[other]) * 1e15) as i64);
        others.truncate(NEAREST);
        others
    };
    (0..vectors.len()).map(of).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum::<f64>()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

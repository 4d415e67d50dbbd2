//! The model's tests against the reference implementation's numbers, in `golden/`. Each is written once, as a function of
//! the device.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use schemas::ModelName;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    CpuPath, DeviceChoice, Dtype, EncodeError, LoadError, Model, ModelConfig, Tokenizer, Tokens, load, path,
};

const SMALL: [&str; 4] = ["cls", "mean", "max", "bare"];
const COSINE_MIN: f64 = 0.999_99;
const DIFFERENCE_MAX: f32 = 1e-4;

/// The same test on the CPU, and on CUDA where this build has it.
macro_rules! on_each_device {
    ($test:ident, $cpu:ident, $cuda:ident) => {
        #[test]
        fn $cpu() {
            $test(DeviceChoice::Cpu);
        }

        #[cfg(feature = "cuda")]
        #[test]
        fn $cuda() {
            $test(DeviceChoice::Cuda);
        }
    };
}

/// The folder of a small golden model.
pub(super) fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(name)
}

fn minilm() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = match std::env::var_os("TRIBUTARY_TEST_MODEL") {
        Some(folder) => folder.into(),
        None => root.join(".cache/models/all-MiniLM-L6-v2"),
    };
    assert!(
        folder.join("model.safetensors").exists(),
        "no weights in `{}`: run models/fetch",
        folder.display()
    );
    folder
}

fn try_open(source: &str, tokens_max: Option<usize>, device: DeviceChoice) -> Result<Model, LoadError> {
    let config = ModelConfig {
        source: source.to_owned(),
        task: Default::default(),
        dtype: Dtype::F32,
        tokens_max,
    };
    load(&ModelName::new("golden").unwrap(), &config, device, CpuPath::Auto)
}

/// The model on the CPU, by one path and with one kind of number.
pub(super) fn open_by(folder: &Path, path: CpuPath, dtype: Dtype) -> Model {
    let config = ModelConfig {
        source: folder.to_str().unwrap().to_owned(),
        task: Default::default(),
        dtype,
        tokens_max: None,
    };
    let model = load(
        &ModelName::new("golden").unwrap(),
        &config,
        DeviceChoice::Cpu,
        path,
    )
    .unwrap();
    assert_eq!((model.path, model.dtype), (path.to_string().as_str(), dtype));
    model
}

/// As by AMX, on any CPU with AVX-512.
#[cfg(target_arch = "x86_64")]
fn open_by_emulated_tiles(folder: &Path, dtype: Dtype) -> Option<Model> {
    use super::{bert, cpu, folder::Folder};
    let files = Folder::new(folder.to_owned()).files().unwrap();
    let bert = files.config.json::<bert::Config>().unwrap();
    let encoder = cpu::encoder_by_emulated_tiles(files, &bert, dtype)?.unwrap();
    Some(Model {
        encoder,
        dtype,
        path: "emulated tiles",
        ..open(folder, DeviceChoice::Cpu)
    })
}

#[cfg(feature = "cuda")]
fn open_on_cuda(dtype: Dtype) -> Model {
    let config = ModelConfig {
        source: minilm().to_str().unwrap().to_owned(),
        task: Default::default(),
        dtype,
        tokens_max: None,
    };
    let name = ModelName::new("golden").unwrap();
    load(&name, &config, DeviceChoice::Cuda, CpuPath::Auto).unwrap()
}

/// The model in 32 bits: on the CPU by each path that it has.
fn open_all(folder: &Path, device: DeviceChoice) -> Vec<Model> {
    match device {
        DeviceChoice::Cpu => {
            let offers = path::offers().into_iter();
            offers
                .filter(|offer| offer.dtypes.contains(&Dtype::F32))
                .map(|offer| open_by(folder, offer.path, Dtype::F32))
                .collect()
        }
        device => vec![open(folder, device)],
    }
}

/// Each path of kernels of our own, with each kind of number that it has.
pub(super) fn own_paths() -> Vec<(CpuPath, Dtype)> {
    let own = path::offers()
        .into_iter()
        .filter(|offer| offer.path != CpuPath::Candle);
    own.flat_map(|offer| offer.dtypes.into_iter().map(move |dtype| (offer.path, dtype)))
        .collect()
}

fn open(folder: &Path, device: DeviceChoice) -> Model {
    try_open(folder.to_str().unwrap(), None, device).unwrap()
}

/// A text, what the reference read of it and what it answered.
struct Answer {
    text: String,
    tokens: usize,
    vector: Vec<f32>,
}

#[derive(Deserialize)]
struct Row {
    text: String,
    tokens: usize,
    vector: Vec<f32>,
}

#[derive(Deserialize)]
struct Demo {
    texts_sha256: String,
    dimension: usize,
    tokens: Vec<usize>,
}

fn small_answers(name: &str) -> Vec<Answer> {
    let rows: Vec<Row> =
        serde_json::from_slice(&std::fs::read(folder(name).join("reference.json")).unwrap()).unwrap();
    rows.into_iter()
        .map(|Row { text, tokens, vector }| Answer { text, tokens, vector })
        .collect()
}

fn demo_answers() -> Vec<Answer> {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden");
    let demo: Demo = serde_json::from_slice(&std::fs::read(golden.join("demo.json")).unwrap()).unwrap();
    let texts = demo_texts();
    let sha256: String = Sha256::digest(texts.join("\0"))
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(
        sha256, demo.texts_sha256,
        "the texts of the demo changed: run golden/make_golden.py"
    );
    let bytes = std::fs::read(golden.join("demo.f32")).unwrap();
    let numbers: Vec<f32> = bytes
        .as_chunks()
        .0
        .iter()
        .map(|&number| f32::from_le_bytes(number))
        .collect();
    let vectors = numbers.chunks_exact(demo.dimension).map(<[f32]>::to_vec);
    texts
        .into_iter()
        .zip(demo.tokens)
        .zip(vectors)
        .map(|((text, tokens), vector)| Answer { text, tokens, vector })
        .collect()
}

/// Every line of the demo that is a JSON object with a text that is not blank.
fn demo_texts() -> Vec<String> {
    let jobs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tributary/demo/jobs.jsonl");
    std::fs::read(jobs)
        .unwrap()
        .split(|&byte| byte == b'\n')
        .filter_map(|line| {
            Some(
                serde_json::from_slice::<Value>(line).ok()?["input"]
                    .as_str()?
                    .to_owned(),
            )
        })
        .filter(|text| !text.trim().is_empty())
        .collect()
}

fn tokenize(tokenizer: &dyn Tokenizer, answers: &[Answer]) -> Vec<Tokens> {
    answers
        .iter()
        .map(|answer| tokenizer.tokenize(&answer.text).unwrap())
        .collect()
}

pub(super) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum::<f64>()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

pub(super) fn assert_same(ours: &[f32], theirs: &[f32], of: &str) {
    assert_eq!(ours.len(), theirs.len(), "{of}");
    let difference = ours
        .iter()
        .zip(theirs)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    let cosine = cosine(ours, theirs);
    assert!(
        difference < DIFFERENCE_MAX && cosine > COSINE_MIN,
        "difference {difference:e}, cosine {cosine}: {of:.80}"
    );
}

/// In the reference's order, and each alone.
fn agrees(model: &Model, answers: &[Answer], texts_together: usize) {
    let tokens = tokenize(&*model.tokenizer, answers);
    for (tokens, answer) in tokens.iter().zip(answers) {
        assert_eq!(tokens.ids.len(), answer.tokens, "tokens of {:.80}", answer.text);
    }
    for (tokens, answers) in tokens.chunks(texts_together).zip(answers.chunks(texts_together)) {
        let vectors = model.encoder.encode(tokens).unwrap();
        assert_eq!(vectors.len(), answers.len());
        for (vector, answer) in vectors.iter().zip(answers) {
            assert_eq!(vector.len(), model.encoder.dimension());
            assert_same(vector, &answer.vector, &answer.text);
        }
    }
}

/// Random choices of texts, in any order and with repetitions.
fn agrees_in_any_mix(model: &Model, answers: &[Answer], mixes: u32) {
    let tokens = tokenize(&*model.tokenizer, answers);
    let mut runner = TestRunner::new(Config {
        cases: mixes,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&prop::collection::vec(0..answers.len(), 1..24), |mix| {
            let batch: Vec<_> = mix.iter().map(|&text| tokens[text].clone()).collect();
            let vectors = model.encoder.encode(&batch).unwrap();
            prop_assert_eq!(vectors.len(), mix.len());
            for (vector, &text) in vectors.iter().zip(&mix) {
                assert_same(vector, &answers[text].vector, &answers[text].text);
            }
            Ok(())
        })
        .unwrap();
}

fn small_models_agree(device: DeviceChoice) {
    for name in SMALL {
        let answers = small_answers(name);
        for model in open_all(&folder(name), device) {
            agrees(&model, &answers, 1);
            agrees(&model, &answers, answers.len());
            agrees_in_any_mix(&model, &answers, 100);
        }
    }
}

on_each_device!(
    small_models_agree,
    small_models_agree_with_the_reference_alone_and_in_any_mix_on_the_cpu,
    small_models_agree_with_the_reference_alone_and_in_any_mix_on_cuda
);

fn minilm_agrees(device: DeviceChoice) {
    let answers = demo_answers();
    assert!(answers.len() > 500, "the demo has only {} texts", answers.len());
    for model in open_all(&minilm(), device) {
        agrees(&model, &answers, 1);
        agrees(&model, &answers, 32);
        agrees_in_any_mix(&model, &answers, 8);
    }
}

on_each_device!(
    minilm_agrees,
    minilm_agrees_with_the_reference_on_every_text_of_the_demo_on_the_cpu,
    minilm_agrees_with_the_reference_on_every_text_of_the_demo_on_cuda
);

#[test]
fn fewer_bits_stay_above_their_floors_on_every_text_of_the_demo() {
    let answers = demo_answers();
    for (path, dtype) in own_paths() {
        let (mean_min, worst_min) = match dtype {
            Dtype::Bf16 => (0.9999, 0.999),
            Dtype::Int8 => (0.998, 0.99),
            _ => continue,
        };
        let model = open_by(&minilm(), path, dtype);
        let tokens = tokenize(&*model.tokenizer, &answers);
        let vectors = model.encoder.encode(&tokens).unwrap();
        let cosines: Vec<f64> = vectors
            .iter()
            .zip(&answers)
            .map(|(vector, answer)| cosine(vector, &answer.vector))
            .collect();
        let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
        let worst = cosines.iter().copied().fold(1.0, f64::min);
        assert!(
            mean >= mean_min && worst >= worst_min,
            "{path} {dtype}: mean {mean}, worst {worst}"
        );
    }
}

/// The same bits alone and in random choices of texts, in any order and with repetitions.
fn is_the_same_in_any_company(model: &Model, answers: &[Answer], texts_max: usize, mixes: u32) {
    let tokens = tokenize(&*model.tokenizer, answers);
    let alone: Vec<_> = tokens
        .iter()
        .map(|text| {
            model
                .encoder
                .encode(std::slice::from_ref(text))
                .unwrap()
                .remove(0)
        })
        .collect();
    let mut runner = TestRunner::new(Config {
        cases: mixes,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&prop::collection::vec(0..answers.len(), 1..texts_max), |mix| {
            let batch: Vec<_> = mix.iter().map(|&text| tokens[text].clone()).collect();
            let vectors = model.encoder.encode(&batch).unwrap();
            for (vector, &text) in vectors.iter().zip(&mix) {
                let same = vector
                    .iter()
                    .zip(&alone[text])
                    .all(|(a, b)| a.to_bits() == b.to_bits());
                prop_assert!(same, "{} {}: {:.80}", model.path, model.dtype, answers[text].text);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn neighbours_do_not_change_a_bit_on_paths_of_our_own() {
    let demo = demo_answers();
    for (path, dtype) in own_paths() {
        for name in SMALL {
            is_the_same_in_any_company(
                &open_by(&folder(name), path, dtype),
                &small_answers(name),
                40,
                100,
            );
        }
        is_the_same_in_any_company(&open_by(&minilm(), path, dtype), &demo[..100], 40, 6);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn by_emulated_tiles_small_models_agree_and_neighbours_do_not_change_a_bit() {
    for (dtype, cosine_min) in [(Dtype::Bf16, 0.9999), (Dtype::Int8, 0.998)] {
        for name in SMALL {
            let Some(model) = open_by_emulated_tiles(&folder(name), dtype) else {
                return;
            };
            let answers = small_answers(name);
            let vectors = model
                .encoder
                .encode(&tokenize(&*model.tokenizer, &answers))
                .unwrap();
            for (vector, answer) in vectors.iter().zip(&answers) {
                let cosine = cosine(vector, &answer.vector);
                assert!(
                    cosine > cosine_min,
                    "{dtype}: cosine {cosine}: {:.80}",
                    answer.text
                );
            }
            is_the_same_in_any_company(&model, &answers, 40, 10);
        }
    }
}

#[cfg(feature = "cuda")]
#[test]
fn on_cuda_a_text_has_the_same_bits_alone_and_in_any_mix() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        is_the_same_in_any_company(&open_on_cuda(dtype), &demo_answers(), 700, 40);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn half_precision_on_cuda_stays_close_to_the_reference() {
    for (dtype, cosine_min) in [(Dtype::F16, 0.999), (Dtype::Bf16, 0.99)] {
        let model = open_on_cuda(dtype);
        let answers = demo_answers();
        let tokens = tokenize(&*model.tokenizer, &answers);
        for (tokens, answers) in tokens.chunks(32).zip(answers.chunks(32)) {
            for (vector, answer) in model.encoder.encode(tokens).unwrap().iter().zip(answers) {
                let cosine: f32 = vector.iter().zip(&answer.vector).map(|(a, b)| a * b).sum();
                assert!(
                    cosine > cosine_min,
                    "{dtype}: cosine {cosine}: {:.80}",
                    answer.text
                );
            }
        }
    }
}

#[test]
fn a_text_is_cut_to_the_window_and_says_so() {
    for (window, tokens_max) in [(48, None), (48, Some(1_000)), (10, Some(10))] {
        let source = folder("cls");
        let model = try_open(source.to_str().unwrap(), tokens_max, DeviceChoice::Cpu).unwrap();
        assert_eq!(model.tokens_max, window);
        for words in [0, 1, window - 3, window - 2, window - 1, window, 5 * window] {
            let tokens = model.tokenizer.tokenize(&"water ".repeat(words)).unwrap();
            assert_eq!(tokens.ids.len(), (words + 2).min(window), "{words} words");
            assert_eq!(tokens.truncated, words + 2 > window, "{words} words");
            assert_eq!(
                (tokens.ids[0], tokens.ids[tokens.ids.len() - 1]),
                (2, 3),
                "{words} words"
            );
        }
    }
    assert_eq!(
        open(&folder("max"), DeviceChoice::Cpu).tokens_max,
        24,
        "max_seq_length"
    );
    assert_eq!(
        open(&folder("bare"), DeviceChoice::Cpu).tokens_max,
        40,
        "model_max_length"
    );
}

#[test]
fn text_that_is_not_clean_is_read_all_the_same() {
    let model = open(&folder("cls"), DeviceChoice::Cpu);
    for text in [
        "",
        "\0",
        "\u{feff}\u{200b}",
        "\u{fffd}\u{10ffff}",
        "e\u{301}\u{301}\u{301}",
        &"\u{301}".repeat(99),
    ] {
        let tokens = model.tokenizer.tokenize(text).unwrap();
        assert!(tokens.ids.len() >= 2 && !tokens.truncated, "{text:?}");
    }
}

#[test]
fn the_digest_is_that_of_the_files_and_settings_and_not_of_the_place() {
    let device = DeviceChoice::Cpu;
    let copy = tempfile::tempdir().unwrap();
    copy_of("cls", copy.path());
    let digest = open(copy.path(), device).digest;
    assert_eq!(digest, open(&folder("cls"), device).digest);
    assert_ne!(digest, open(&folder("mean"), device).digest);
    let candle = (CpuPath::Candle, Dtype::F32);
    let mut digests = HashSet::new();
    for (path, dtype) in own_paths().into_iter().chain([candle]) {
        let digest = open_by(copy.path(), path, dtype).digest;
        assert!(digests.insert(digest.to_string()), "{path}, {dtype}");
    }
    assert_ne!(
        digest,
        try_open(copy.path().to_str().unwrap(), Some(20), device)
            .unwrap()
            .digest
    );
    std::fs::write(
        copy.path().join("1_Pooling/config.json"),
        r#"{"pooling_mode":"max"}"#,
    )
    .unwrap();
    assert_ne!(digest, open(copy.path(), device).digest);
}

#[test]
fn tokens_that_the_model_cannot_read_fail_with_their_position() {
    let text = |ids: Vec<u32>| Tokens {
        ids,
        truncated: false,
    };
    let candle = (CpuPath::Candle, Dtype::F32);
    for (path, dtype) in own_paths().into_iter().chain([candle]) {
        let model = open_by(&folder("cls"), path, dtype);
        assert_eq!(model.encoder.encode(&[]), Ok(Vec::new()));
        for (ids, complaint) in [
            (vec![], "text 1 has 0 tokens"),
            (vec![5; 49], "text 1 has 49 tokens, and 1 to 48 can be read"),
            (vec![2, 4_000_000_000, 3], "text 1 has the token 4000000000"),
        ] {
            let error = model.encoder.encode(&[text(vec![2, 3]), text(ids)]).unwrap_err();
            assert!(matches!(error, EncodeError::Failed { .. }));
            assert!(error.to_string().contains(complaint), "{error}");
        }
    }
}

#[test]
fn a_damaged_folder_is_refused_with_the_file_and_what_is_wrong_with_it() {
    let weights = std::fs::read(folder("cls").join("model.safetensors")).unwrap();
    let cut = weights[..weights.len() / 2].to_vec();
    let renamed = replaced(
        &weights,
        "encoder.layer.1.output.dense.weight",
        "encoder.layer.1.output.dense.WEIGHT",
    );
    let not_finite = {
        let mut weights = weights.clone();
        let end = weights.len();
        weights[end - 4 * 40..].fill(0xff);
        weights
    };
    let config = std::fs::read(folder("cls").join("config.json")).unwrap();
    let wider = replaced(
        &config,
        r#""intermediate_size": 64"#,
        r#""intermediate_size": 65"#,
    );
    let roberta = replaced(&config, r#""model_type": "bert""#, r#""model_type": "rota""#);
    let without_heads = replaced(&config, "num_attention_heads", "num_attention_hands");
    let prompt = br#"{"default_prompt_name":"query","prompts":{"query":"query: "}}"#.to_vec();
    for (file, bytes, complaint) in [
        (
            "model.safetensors",
            Some(cut),
            "is cut off or is no safetensors file",
        ),
        (
            "model.safetensors",
            Some(b"version https://git-lfs".to_vec()),
            "is cut off or is no safetensors file (23 bytes",
        ),
        (
            "model.safetensors",
            Some(Vec::new()),
            "is cut off or is no safetensors file (0 bytes",
        ),
        (
            "model.safetensors",
            Some(renamed),
            "encoder.layer.1.output.dense.weight",
        ),
        ("model.safetensors", None, "cannot be read"),
        ("config.json", Some(wider), "expected: [65, 40], got: [64, 40]"),
        ("config.json", Some(roberta), "has model_type `rota`"),
        (
            "config.json",
            Some(without_heads),
            "missing field `num_attention_heads`",
        ),
        (
            "config.json",
            Some(b"<html>".to_vec()),
            "is not as expected: expected value at line 1 column 1",
        ),
        ("config.json", None, "cannot be read"),
        ("tokenizer.json", Some(b"{}".to_vec()), "is no tokenizer"),
        ("tokenizer.json", None, "cannot be read"),
        ("modules.json", Some(b"{}".to_vec()), "is not as expected"),
        ("1_Pooling/config.json", None, "cannot be read"),
        (
            "config_sentence_transformers.json",
            Some(prompt),
            "has default_prompt_name `query`",
        ),
    ] {
        let copy = tempfile::tempdir().unwrap();
        copy_of("cls", copy.path());
        let path = copy.path().join(file);
        match bytes {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let error = try_open(copy.path().to_str().unwrap(), None, DeviceChoice::Cpu)
            .err()
            .expect(complaint);
        assert_eq!(error.to_string(), "model `golden` cannot be loaded");
        let fault = error.fault.to_string();
        assert!(fault.contains(copy.path().to_str().unwrap()), "{file}: {fault}");
        assert!(fault.contains(complaint), "{complaint}: {fault}");
    }
    let copy = tempfile::tempdir().unwrap();
    copy_of("cls", copy.path());
    std::fs::write(copy.path().join("model.safetensors"), not_finite).unwrap();
    let candle = (CpuPath::Candle, Dtype::F32);
    for (path, dtype) in own_paths().into_iter().chain([candle]) {
        let error = open_by(copy.path(), path, dtype).encoder.encode(&[Tokens {
            ids: vec![2, 3],
            truncated: false,
        }]);
        assert_eq!(
            error.unwrap_err().to_string(),
            "the model cannot answer: the vector of text 0 has a number that is not finite",
            "{path} {dtype}"
        );
    }
}

#[test]
fn a_stand_in_needs_no_files() {
    let model = try_open("passthrough:384", None, DeviceChoice::Cpu).unwrap();
    let tokens = model.tokenizer.tokenize("sixteen letters.").unwrap();
    assert_eq!((tokens.ids.len(), model.encoder.dimension()), (6, 384));
    assert_eq!(model.encoder.encode(&[tokens]).unwrap()[0].len(), 384);
}

fn copy_of(name: &str, to: &Path) {
    std::fs::create_dir(to.join("1_Pooling")).unwrap();
    for file in [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "modules.json",
        "1_Pooling/config.json",
    ] {
        std::fs::copy(folder(name).join(file), to.join(file)).unwrap();
    }
}

fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len(), "offsets must stay");
    let at = bytes
        .windows(from.len())
        .position(|window| window == from.as_bytes())
        .expect(from);
    [&bytes[..at], to.as_bytes(), &bytes[at + to.len()..]].concat()
}

//! Models of many shapes with random weights: kernels of our own are held to candle.

use std::{collections::HashMap, path::Path};

use candle_core::{Device, Tensor, safetensors};

use super::{
    CpuPath, Dtype, Tokens,
    golden::{assert_same, cosine, folder, open_by, own_paths},
};

struct Shape {
    width: usize,
    heads: usize,
    inner: usize,
    layers: usize,
    activation: &'static str,
    pooling: &'static str,
}

const VOCABULARY: usize = 132;
const WINDOW: usize = 48;

/// A folder with such a model, whose tokenizer is a golden one's.
fn draw(shape: &Shape, to: &Path) {
    let &Shape {
        width,
        heads,
        inner,
        layers,
        activation,
        pooling,
    } = shape;
    let config = serde_json::json!({
        "model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": inner, "hidden_act": activation,
        "max_position_embeddings": WINDOW, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
    });
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    std::fs::create_dir(to.join("1_Pooling")).unwrap();
    std::fs::write(
        to.join("1_Pooling/config.json"),
        format!(r#"{{"pooling_mode":"{pooling}"}}"#),
    )
    .unwrap();
    for file in ["tokenizer.json", "modules.json"] {
        std::fs::copy(folder("cls").join(file), to.join(file)).unwrap();
    }
    let mut tensors = HashMap::new();
    let mut put = |name: String, shape: &[usize], spread: f32, mean: f32| {
        tensors.insert(name, Tensor::randn(mean, spread, shape, &Device::Cpu).unwrap());
    };
    for (name, rows) in [("word", VOCABULARY), ("position", WINDOW), ("token_type", 2)] {
        put(
            format!("embeddings.{name}_embeddings.weight"),
            &[rows, width],
            0.5,
            0.0,
        );
    }
    let mut norm = |name: String| {
        put(format!("{name}.weight"), &[width], 0.1, 1.0);
        put(format!("{name}.bias"), &[width], 0.1, 0.0);
    };
    norm("embeddings.LayerNorm".to_owned());
    for layer in 0..layers {
        norm(format!("encoder.layer.{layer}.attention.output.LayerNorm"));
        norm(format!("encoder.layer.{layer}.output.LayerNorm"));
    }
    for layer in 0..layers {
        let mut dense = |name: &str, outputs: usize, inputs: usize| {
            let name = format!("encoder.layer.{layer}.{name}");
            put(
                format!("{name}.weight"),
                &[outputs, inputs],
                1.0 / (inputs as f32).sqrt(),
                0.0,
            );
            put(format!("{name}.bias"), &[outputs], 0.1, 0.0);
        };
        for part in ["query", "key", "value"] {
            dense(&format!("attention.self.{part}"), width, width);
        }
        dense("attention.output.dense", width, width);
        dense("intermediate.dense", inner, width);
        dense("output.dense", width, inner);
    }
    safetensors::save(&tensors, to.join("model.safetensors")).unwrap();
}

#[test]
fn models_of_any_width_and_any_heads_are_as_on_candle() {
    let shape = |width, heads, inner, layers, activation, pooling| Shape {
        width,
        heads,
        inner,
        layers,
        activation,
        pooling,
    };
    let texts: Vec<Tokens> = [1, 2, 13, 14, 15, 16, 17, 31, 33, 48]
        .map(|tokens| Tokens {
            ids: (0..tokens).map(|id| (id * 7 % VOCABULARY) as u32).collect(),
            truncated: false,
        })
        .to_vec();
    for shape in [
        shape(128, 2, 512, 3, "gelu", "mean"),
        shape(192, 8, 200, 2, "gelu_new", "cls"),
        shape(320, 8, 1_000, 2, "gelu", "max"),
        shape(396, 11, 100, 2, "relu", "mean"),
        shape(768, 12, 3_072, 2, "gelu", "cls"),
        shape(1_024, 16, 4_096, 1, "gelu", "mean"),
    ] {
        let model = tempfile::tempdir().unwrap();
        draw(&shape, model.path());
        let candle = open_by(model.path(), CpuPath::Candle, Dtype::F32)
            .encoder
            .encode(&texts)
            .unwrap();
        for (path, dtype) in own_paths() {
            let ours = open_by(model.path(), path, dtype).encoder.encode(&texts).unwrap();
            for (tokens, (ours, candle)) in texts.iter().zip(ours.iter().zip(&candle)) {
                let of = format!(
                    "width {}, {path}, {dtype}, {} tokens",
                    shape.width,
                    tokens.ids.len()
                );
                let cosine_min = match dtype {
                    Dtype::Bf16 => 0.999,
                    Dtype::Int8 => 0.99,
                    _ => {
                        assert_same(ours, candle, &of);
                        continue;
                    }
                };
                let cosine = cosine(ours, candle);
                assert!(cosine > cosine_min, "cosine {cosine}: {of}");
            }
        }
    }
}

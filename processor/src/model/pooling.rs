//! How the vectors of a text's tokens become the one vector of the text.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Fault,
    folder::{File, Files},
};

/// The pooling and the normalisation of a model.
#[derive(Debug, PartialEq)]
pub(super) struct Pooling {
    pub(super) modes: Vec<Mode>,
    pub(super) normalise: bool,
}

/// One way of pooling. Where a model has several, their vectors stand side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    First,
    Max,
    Mean,
    MeanSqrtLength,
}

/// The pooling's `config.json`: `pooling_mode` as sentence-transformers writes it today, a flag a mode as it did before.
#[derive(Deserialize)]
struct Config {
    #[serde(alias = "word_embedding_dimension")]
    embedding_dimension: Option<usize>,
    pooling_mode: Option<OneOrMore>,
    #[serde(flatten)]
    flags: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl Pooling {
    /// What the model's folder says; the mean where it is a bare transformers folder. `width` is the model's.
    pub(super) fn read(files: &Files, width: usize) -> std::result::Result<Self, Fault> {
        let modes = match &files.pooling {
            Some(file) => modes(file, width)?,
            None => vec![Mode::Mean],
        };
        Ok(Self {
            modes,
            normalise: files.normalise,
        })
    }

    /// How many numbers a pooled vector has, where a token's has `width`.
    pub(super) fn dimension(&self, width: usize) -> usize {
        self.modes.len() * width
    }

    /// Pools `hidden`, (texts, tokens, width), of texts that all have the same length, into (texts, dimension) in 32
    /// bits.
    pub(super) fn pool(&self, hidden: &Tensor) -> Result<Tensor> {
        let hidden = hidden.to_dtype(DType::F32)?;
        let pooled = self
            .modes
            .iter()
            .map(|mode| mode.pool(&hidden))
            .collect::<Result<Vec<_>>>()?;
        let pooled = Tensor::cat(&pooled, 1)?;
        if self.normalise {
            length_one(&pooled)
        } else {
            Ok(pooled)
        }
    }

    /// The same of the token vectors of one text, which has at least one.
    pub(super) fn pool_rows<'a>(&self, rows: &(impl Iterator<Item = &'a [f32]> + Clone)) -> Vec<f32> {
        let modes = self.modes.iter();
        let mut pooled: Vec<f32> = modes.flat_map(|mode| mode.pool_rows(rows.clone())).collect();
        if self.normalise {
            let norm = pooled.iter().map(|x| x * x).sum::<f32>().sqrt().max(NORM_MIN);
            pooled.iter_mut().for_each(|x| *x /= norm);
        }
        pooled
    }
}

fn modes(file: &File, width: usize) -> std::result::Result<Vec<Mode>, Fault> {
    let config = file.json::<Config>()?;
    if let Some(stated) = config.embedding_dimension.filter(|&stated| stated != width) {
        return Err(file.malformed(format!(
            "has embedding_dimension {stated}, and the model has hidden_size {width}"
        )));
    }
    let mode = |name: &str| {
        Mode::named(name).ok_or_else(|| Fault::Unsupported {
            path: file.path.clone(),
            field: "the pooling mode",
            found: format!("`{name}`"),
            supported: "`cls`, `max`, `mean` and `mean_sqrt_len_tokens`",
        })
    };
    match config.pooling_mode {
        Some(OneOrMore::One(name)) => Ok(vec![mode(&name)?]),
        Some(OneOrMore::More(names)) => names.iter().map(|name| mode(name)).collect(),
        None => raised(&config.flags).map(mode).collect(),
    }
}

/// The names of the modes whose flags are set, in the order of their vectors; the mean where none is.
fn raised(flags: &BTreeMap<String, Value>) -> impl Iterator<Item = &'static str> {
    let named = [
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_max_tokens", "max"),
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        ("pooling_mode_weightedmean_tokens", "weightedmean"),
        ("pooling_mode_lasttoken", "lasttoken"),
    ];
    let raised: Vec<_> = named
        .into_iter()
        .filter(|(flag, _)| flags.get(*flag) == Some(&Value::Bool(true)))
        .map(|(_, mode)| mode)
        .collect();
    let raised = if raised.is_empty() { vec!["mean"] } else { raised };
    raised.into_iter()
}

impl Mode {
    fn named(name: &str) -> Option<Self> {
        match name {
            "cls" => Some(Self::First),
            "max" => Some(Self::Max),
            "mean" => Some(Self::Mean),
            "mean_sqrt_len_tokens" => Some(Self::MeanSqrtLength),
            _ => None,
        }
    }

    fn pool(self, hidden: &Tensor) -> Result<Tensor> {
        let tokens = hidden.dim(1)? as f64;
        match self {
            Self::First => hidden.narrow(1, 0, 1)?.squeeze(1),
            Self::Max => hidden.max(1),
            Self::Mean => hidden.sum(1)? / tokens,
            Self::MeanSqrtLength => hidden.sum(1)? / tokens.sqrt(),
        }
    }

    fn pool_rows<'a>(self, mut rows: impl Iterator<Item = &'a [f32]> + Clone) -> Vec<f32> {
        let tokens = rows.clone().count() as f32;
        let mut pooled = rows.next().expect("a text has tokens").to_vec();
        let mut fold = |with: fn(f32, f32) -> f32| {
            for row in rows.by_ref() {
                pooled
                    .iter_mut()
                    .zip(row)
                    .for_each(|(to, &from)| *to = with(*to, from));
            }
        };
        let divisor = match self {
            Self::First => 1.0,
            Self::Max => {
                fold(f32::max);
                1.0
            }
            Self::Mean => {
                fold(|a, b| a + b);
                tokens
            }
            Self::MeanSqrtLength => {
                fold(|a, b| a + b);
                tokens.sqrt()
            }
        };
        pooled.iter_mut().for_each(|x| *x /= divisor);
        pooled
    }
}

/// Each row by its length; by `NORM_MIN` where it is shorter, as PyTorch does, so that zeros stay zeros.
fn length_one(rows: &Tensor) -> Result<Tensor> {
    let norms = rows.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(NORM_MIN)?;
    rows.broadcast_div(&norms)
}

const NORM_MIN: f32 = 1e-12;

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn read(config: &str) -> std::result::Result<Vec<Mode>, Fault> {
        let file = File {
            path: "m/1_Pooling/config.json".into(),
            name: String::new(),
            bytes: config.into(),
        };
        modes(&file, 2)
    }

    fn pooled(modes: &[Mode], normalise: bool, hidden: &[[f32; 2]]) -> Vec<f32> {
        let flat = hidden.as_flattened().to_vec();
        let hidden = Tensor::from_vec(flat, (1, hidden.len(), 2), &Device::Cpu).unwrap();
        let pooling = Pooling {
            modes: modes.to_vec(),
            normalise,
        };
        pooling
            .pool(&hidden)
            .unwrap()
            .squeeze(0)
            .unwrap()
            .to_vec1()
            .unwrap()
    }

    #[test]
    fn each_mode_pools_as_its_name_says_and_several_stand_side_by_side() {
        let hidden = [[1.0, -2.0], [3.0, -4.0], [5.0, 0.0], [7.0, -6.0]];
        assert_eq!(pooled(&[Mode::First], false, &hidden), [1.0, -2.0]);
        assert_eq!(pooled(&[Mode::Max], false, &hidden), [7.0, 0.0]);
        assert_eq!(pooled(&[Mode::MeanSqrtLength], false, &hidden), [8.0, -6.0]);
        assert_eq!(
            pooled(&[Mode::Mean, Mode::First], false, &hidden),
            [4.0, -3.0, 1.0, -2.0]
        );
        assert_eq!(pooled(&[Mode::Mean], true, &hidden), [0.8, -0.6]);
        assert_eq!(pooled(&[Mode::Mean], true, &[[0.0, 0.0]]), [0.0, 0.0]);
    }

    #[test]
    fn the_mode_is_read_in_todays_words_and_in_the_flags_of_before() {
        for (config, modes) in [
            (
                r#"{"embedding_dimension":2,"pooling_mode":"cls","include_prompt":true}"#,
                vec![Mode::First],
            ),
            (r#"{"pooling_mode":["mean","max"]}"#, vec![Mode::Mean, Mode::Max]),
            (
                r#"{"word_embedding_dimension":2,"pooling_mode_cls_token":false}"#,
                vec![Mode::Mean],
            ),
            (
                r#"{"pooling_mode_mean_tokens":true,"pooling_mode_cls_token":true}"#,
                vec![Mode::First, Mode::Mean],
            ),
        ] {
            assert_eq!(read(config).unwrap(), modes, "{config}");
        }
    }

    #[test]
    fn a_mode_that_we_do_not_pool_by_is_named() {
        for (config, complaint) in [
            (
                r#"{"pooling_mode":"lasttoken"}"#,
                "has the pooling mode `lasttoken`",
            ),
            (
                r#"{"pooling_mode_weightedmean_tokens":true}"#,
                "has the pooling mode `weightedmean`",
            ),
            (
                r#"{"word_embedding_dimension":3}"#,
                "has embedding_dimension 3, and the model has hidden_size 2",
            ),
            ("{", "is not as expected: EOF while parsing"),
        ] {
            let fault = read(config).unwrap_err().to_string();
            assert!(fault.contains(complaint), "{fault}");
        }
    }
}

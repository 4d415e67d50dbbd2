//! A processor whose model does what its texts say: answer, fail, or kill the process. Works on the topics in a file until
//! nothing is left to do, and ends with success; `tests/poison.rs` starts it again each time that it dies.

#![expect(clippy::unwrap_used, reason = "a test's process fails by panicking")]

use std::{collections::BTreeMap, num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

use clap::Parser;
use processor::{
    Attempts, Config, Served, Service,
    model::{Dtype, EncodeError, Encoder, Model, TokenizeError, Tokenizer, Tokens},
};
use rust_decimal::Decimal;
use schemas::{Digest, ModelName, ModelTerms, Policies, Pool, Task, Tenants, TopicName, TopicNames};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use topics::{Topics, local::LocalTopics};

#[derive(Parser)]
struct Args {
    /// The file of the topics
    #[arg(long)]
    topics: PathBuf,
    /// The folder of the record of attempts
    #[arg(long)]
    attempts: PathBuf,
}

/// A token a byte, so that the encoder sees the text.
struct Bytes;

impl Tokenizer for Bytes {
    fn tokenize(&self, text: &str) -> Result<Tokens, TokenizeError> {
        Ok(Tokens {
            ids: text.bytes().map(u32::from).collect(),
            truncated: false,
        })
    }
}

struct Obedient;

impl Encoder for Obedient {
    fn dimension(&self) -> usize {
        2
    }

    fn encode(&self, texts: &[Tokens]) -> Result<Vec<Vec<f32>>, EncodeError> {
        let answer = |tokens: &Tokens| {
            let text: String = tokens.ids.iter().filter_map(|id| char::from_u32(*id)).collect();
            match text.as_str() {
                "abort" => std::process::abort(),
                // More than any machine has: the allocator gives up, and with it the process.
                "memory" => vec![std::hint::black_box(Vec::<u8>::with_capacity(1 << 62)).len() as f32; 2],
                "panic" => panic!("as the text says"),
                "bad tensor" => vec![f32::NAN; 2],
                _ => vec![1.0; 2],
            }
        };
        Ok(texts.iter().map(answer).collect())
    }
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let names = TopicNames::new(&TopicName::new("jobs").unwrap(), "tributary.").unwrap();
    let topics: Arc<dyn Topics> = Arc::new(LocalTopics::open(&args.topics).unwrap());
    let config = Config {
        group: "processor".to_owned(),
        pool: Pool::default(),
        shard: None,
        window_ms: 10,
        commit_interval_ms: 10,
        window_jobs_max: 64,
        window_bytes_max: 1 << 20,
        window_tenants_max: NonZeroUsize::MIN,
        device_cores: NonZeroUsize::new(2),
        batch_tokens_max: Some(100),
        lane_bytes_max: 1 << 20,
        lanes_bytes_max: 1 << 20,
    };
    let served = Served {
        model: Model {
            digest: Digest::from_bytes([0; 32]),
            task: Task::Embed,
            tokens_max: 512,
            device: "cpu".to_owned(),
            path: "obedient",
            dtype: Dtype::F32,
            tokenizer: Arc::new(Bytes),
            encoder: Box::new(Obedient),
            encodings_at_once: NonZeroUsize::MIN,
            batch_tokens: 100,
        },
        terms: ModelTerms {
            task: Task::Embed,
            price_per_device_second: Decimal::ZERO,
        },
    };
    let models = BTreeMap::from([(ModelName::new("obedient").unwrap(), served)]);
    let (group, subscription) = (
        Service::group(&config),
        Service::subscription(&config.pool, &names),
    );
    let policies = Policies {
        topics: names,
        tenants: Tenants::new(),
        models: BTreeMap::new(),
        pools: BTreeMap::new(),
        input_bytes_max: 1_000,
        currency: "USD".to_owned(),
    };
    let attempts = Attempts::open(&args.attempts).unwrap();
    let run = format!("run-{}", std::process::id());
    let service = Service::new(
        config,
        Arc::clone(&topics),
        watch::Sender::new(Arc::new(policies)).subscribe(),
        models,
        attempts,
        run,
    );
    let shutdown = CancellationToken::new();
    let done = async {
        while topics.lag(&group, &subscription).await.unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        shutdown.cancel();
    };
    let (ended, ()) = tokio::join!(service.run(shutdown.clone(), &|| {}), done);
    ended.unwrap();
}

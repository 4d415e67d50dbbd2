//! The lake's store as one instance of the sink sees it: a real one in memory, behind the gate.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use futures::{StreamExt, stream, stream::BoxStream};
use serde_json::{Value, json};
use sink::object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};

use super::{
    Mutation,
    world::{Fault, Go, Instance, World},
};

const RANGES: &str = "_ranges";
/// The proof at a sink's start is no part of what is tested here.
const PROBES: &str = "_probes";

pub(super) struct GatedStore {
    pub(super) inner: Arc<InMemory>,
    pub(super) world: Arc<World>,
    pub(super) instance: Arc<Instance>,
}

impl GatedStore {
    async fn step(&self, what: &str, possible: &[Fault]) -> Go {
        let go = self.world.step(&self.instance, what, possible).await;
        if go == Go::Do && self.world.outage() {
            Go::Fail
        } else {
            go
        }
    }

    async fn look<T>(&self, what: &str, look: impl Future<Output = T>) -> Result<T> {
        match self.step(what, Fault::TO_A_LOOK).await {
            Go::Do => Ok(look.await),
            _ => Err(broken()),
        }
    }

    /// Whether an object is put, and what of the protocol is done wrong about it.
    async fn put(&self, path: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        let is_intent = path.as_ref().starts_with(RANGES);
        match self.world.mutation {
            Some(Mutation::IgnoreIntents) if is_intent => options.mode = PutMode::Overwrite,
            Some(Mutation::ForgetCosts) if path.as_ref().starts_with("costs") => {
                return Ok(believed());
            }
            _ => {}
        }
        match self.inner.put_opts(path, payload, options).await {
            Err(Error::AlreadyExists { .. }) if self.world.mutation == Some(Mutation::TrustAlreadyExists) => {
                Ok(believed())
            }
            put => put,
        }
    }
}

/// What is answered for a put that was not done.
fn believed() -> PutResult {
    PutResult {
        e_tag: None,
        version: None,
        extensions: Default::default(),
    }
}

fn broken() -> Error {
    Error::Generic {
        store: "simulated",
        source: "the connection broke".into(),
    }
}

fn exists(path: &Path) -> Error {
    Error::AlreadyExists {
        path: path.to_string(),
        source: "a conflicting write".into(),
    }
}

impl fmt::Debug for GatedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GatedStore({})", self.instance.name)
    }
}

impl fmt::Display for GatedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[async_trait]
impl ObjectStore for GatedStore {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if path.as_ref().starts_with(PROBES) {
            self.instance.pass().await;
            return self.inner.put_opts(path, payload, options).await;
        }
        match self.step(&format!("puts {path}"), Fault::TO_A_PUT).await {
            Go::Do => self.put(path, payload, options).await,
            Go::Fail => Err(broken()),
            Go::DoAndFail => {
                self.put(path, payload, options).await?;
                Err(broken())
            }
            Go::DoAndDie => {
                let _ = self.put(path, payload, options).await;
                self.instance.die().await
            }
            Go::DoLaterAndDie(late) => {
                let (inner, path) = (Arc::clone(&self.inner), path.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(late).await;
                    let _ = inner.put_opts(&path, payload, options).await;
                });
                self.instance.die().await
            }
            Go::Conflict if self.world.mutation == Some(Mutation::TrustAlreadyExists) => Ok(believed()),
            Go::Conflict => Err(exists(path)),
        }
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        if path.as_ref().starts_with(PROBES) {
            self.instance.pass().await;
            return self.inner.get_opts(path, options).await;
        }
        let got = self
            .look(&format!("gets {path}"), self.inner.get_opts(path, options))
            .await??;
        let forgotten = match self.world.mutation {
            Some(Mutation::ForgetMarks) => json!({ "marks_after": [] }),
            Some(Mutation::ForgetHead) => json!({ "heads": { "after": "00".repeat(32) } }),
            _ => return Ok(got),
        };
        match path.as_ref().starts_with(RANGES) {
            true => forget(path, got, &forgotten).await,
            false => Ok(got),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let gated = Self {
            inner: Arc::clone(&self.inner),
            world: Arc::clone(&self.world),
            instance: Arc::clone(&self.instance),
        };
        let prefix = prefix.cloned();
        let listed = async move {
            let what = format!("lists {}", prefix.as_ref().map_or("", |prefix| prefix.as_ref()));
            if gated.world.mutation == Some(Mutation::IgnoreIntents) {
                return Vec::new();
            }
            let look = gated
                .look(&what, gated.inner.list(prefix.as_ref()).collect::<Vec<_>>())
                .await;
            look.unwrap_or_else(|error| vec![Err(error)])
        };
        stream::once(listed).flat_map(stream::iter).boxed()
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// The intent at `path` as if it held `forgotten` in the place of what it holds.
async fn forget(path: &Path, got: GetResult, forgotten: &Value) -> Result<GetResult> {
    let mut intent: Value = serde_json::from_slice(&got.bytes().await?).expect("an intent is JSON");
    put_over(&mut intent, forgotten);
    let forgetful = InMemory::new();
    let bytes = serde_json::to_vec(&intent).expect("it was JSON");
    forgetful
        .put_opts(path, bytes.into(), PutOptions::default())
        .await?;
    forgetful.get_opts(path, GetOptions::default()).await
}

/// Puts what `with` has in the place of what `value` has.
fn put_over(value: &mut Value, with: &Value) {
    let (Value::Object(value), Value::Object(with)) = (&mut *value, with) else {
        *value = with.clone();
        return;
    };
    for (key, with) in with {
        if let Some(value) = value.get_mut(key) {
            put_over(value, with);
        }
    }
}

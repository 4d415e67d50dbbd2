//! What is served over HTTP: health, metrics, and beside ingest the door for jobs.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, DefaultBodyLimit, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use ingest::{
    Answer, HttpDoor, bearer_of_request,
    identity::{Identity, Refusal},
};
use metrics_exporter_prometheus::PrometheusHandle;
use schemas::Operation;
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::{SetOnce, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{audit::Auditor, config::HttpSection, health::Health};

/// How long a request waits for ingest to reach its topics.
const DOOR_LIMIT: Duration = Duration::from_secs(5);

/// What the routes look at.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) health: Health,
    pub(crate) metrics: PrometheusHandle,
    /// Where jobs come in; none in a process without ingest.
    pub(crate) door: Option<Door>,
    /// Whether a token is demanded there, and whose are good.
    pub(crate) identity: watch::Receiver<Arc<Identity>>,
    /// Who is told of what is refused there.
    pub(crate) auditor: Auditor,
}

/// The door for jobs, which ingest opens once it reaches its topics.
pub(crate) type Door = Arc<SetOnce<HttpDoor>>;

/// Opens the address to listen on.
pub(crate) async fn bind(section: &HttpSection) -> anyhow::Result<TcpListener> {
    TcpListener::bind(&section.listen).await.with_context(|| {
        format!(
            "cannot listen on {}: choose another with --set http.listen=…",
            section.listen
        )
    })
}

/// Serves until `shutdown`.
pub(crate) async fn serve(
    listener: TcpListener,
    served: Served,
    body_bytes_max: usize,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/health", get(health))
        .route(
            "/metrics",
            get(|State(served): State<Served>| async move { served.metrics.render() }),
        )
        .route("/v1/jobs", post(jobs))
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .with_state(served);
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    Ok(axum::serve(listener, service)
        .with_graceful_shutdown(async move { shutdown.cancelled().await })
        .await?)
}

async fn health(State(served): State<Served>) -> Response {
    let (report, well) = served.health.report();
    let status = if well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(report)).into_response()
}

/// Takes jobs, a JSON object a line, and answers each line: 202 where all were accepted, 207 where some were, 400 where
/// none was. All of a request is refused with 401 or 403 where a token is demanded and its own is not good.
async fn jobs(
    State(served): State<Served>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some(door) = &served.door else {
        return (StatusCode::NOT_FOUND, "jobs are taken where ingest runs\n").into_response();
    };
    let now_ms = chrono::Utc::now().timestamp_millis();
    let authorization = headers.get_all(header::AUTHORIZATION).into_iter();
    let bearer = bearer_of_request(
        authorization.map(HeaderValue::as_bytes),
        &served.identity.borrow(),
        now_ms,
    );
    let bearer = match bearer {
        Ok(bearer) => bearer,
        Err(refusal) => {
            served.auditor.tell_of_stranger(
                Operation::RequestJobs,
                &address.ip().to_string(),
                refusal.code().as_str(),
                refusal.to_string(),
            );
            return refused(&refusal);
        }
    };
    let Ok(door) = timeout(DOOR_LIMIT, door.wait()).await else {
        let waits = "ingest does not reach its topics yet, see /health: try again\n";
        return (StatusCode::SERVICE_UNAVAILABLE, waits).into_response();
    };
    let answers = door.accept(&body, bearer.as_ref(), now_ms).await;
    let accepted = answers.iter().filter(|answer| answer.is_accepted()).count();
    let status = match accepted {
        0 => StatusCode::BAD_REQUEST,
        some if some == answers.len() => StatusCode::ACCEPTED,
        _ => StatusCode::MULTI_STATUS,
    };
    (
        status,
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from(lines(&answers)),
    )
        .into_response()
}

/// A problem of RFC 9457, and the challenge of RFC 6750.
fn refused(refusal: &Refusal) -> Response {
    let (status, challenge) = match refusal {
        Refusal::Missing => (StatusCode::UNAUTHORIZED, "Bearer"),
        Refusal::Tenant(_) => (StatusCode::FORBIDDEN, "Bearer error=\"insufficient_scope\""),
        _ => (StatusCode::UNAUTHORIZED, "Bearer error=\"invalid_token\""),
    };
    let problem = json!({
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "reason_code": refusal.code(),
        "detail": refusal.to_string(),
    });
    let headers = [
        (header::CONTENT_TYPE, "application/problem+json"),
        (header::WWW_AUTHENTICATE, challenge),
    ];
    (status, headers, Body::from(format!("{problem}\n"))).into_response()
}

fn lines(answers: &[Answer]) -> String {
    let mut text = String::new();
    for answer in answers {
        text.push_str(&serde_json::to_string(answer).expect("an answer has only types that JSON can hold"));
        text.push('\n');
    }
    text
}

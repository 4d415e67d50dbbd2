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
    Answer, HttpDoor, asker_at_the_door, asker_of_request, count_refused,
    identity::{Identity, Refusal},
};
use metrics_exporter_prometheus::PrometheusHandle;
use schemas::{Action, Actor, Authority, Operation, Principal, ReasonCode, User};
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::{SetOnce, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::{Auditor, RefusedRequest},
    config::HttpSection,
    health::Health,
};

/// How long a request waits for ingest to reach its topics.
const DOOR_LIMIT: Duration = Duration::from_secs(5);
/// How long requests under way are waited for at the end: one whose client falls silent would hold up the process for ever.
const LAST_REQUESTS_LIMIT: Duration = Duration::from_secs(10);

/// What the routes look at.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) health: Health,
    pub(crate) metrics: PrometheusHandle,
    /// Where jobs come in; none in a process without ingest.
    pub(crate) door: Option<Door>,
    /// Whether a token is demanded there, and whose are good.
    pub(crate) identity: watch::Receiver<Arc<Identity>>,
    /// Who may ask for what.
    pub(crate) authority: watch::Receiver<Arc<dyn Authority>>,
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
    serve_until(listener, served, body_bytes_max, shutdown, LAST_REQUESTS_LIMIT).await
}

async fn serve_until(
    listener: TcpListener,
    served: Served,
    body_bytes_max: usize,
    shutdown: CancellationToken,
    last_requests_limit: Duration,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/jobs", post(jobs))
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .with_state(served);
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let ending = shutdown.clone();
    let serving = axum::serve(listener, service)
        .with_graceful_shutdown(async move { ending.cancelled().await })
        .into_future();
    let too_long = async {
        shutdown.cancelled().await;
        sleep(last_requests_limit).await;
    };
    tokio::select! {
        biased;
        served = serving => Ok(served?),
        () = too_long => {
            tracing::warn!("ended without an answer to requests that do not come to their end");
            Ok(())
        }
    }
}

async fn health(
    State(served): State<Served>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = served.refusal(Route::Health, address, &headers) {
        return refused;
    }
    let (report, well) = served.health.report();
    let status = if well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(report)).into_response()
}

async fn metrics(
    State(served): State<Served>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Response {
    match served.refusal(Route::Metrics, address, &headers) {
        None => served.metrics.render().into_response(),
        Some(refused) => refused,
    }
}

/// Takes jobs, a JSON object a line, and answers each line: 202 where all were accepted, 207 where some were, 400 where all
/// were refused, 503 where none was accepted and of some nobody knows. All of a request is refused with 401 or 403 where a token is demanded and its own is not good, or the access
/// policies do not let who brings it.
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
    let asker = asker_at_the_door(authorization(&headers), &served.identity.borrow(), now_ms);
    let asker = match asker {
        Ok(asker) => asker,
        Err(refusal) => return served.refuse_unproven(Route::Jobs, address, &refusal),
    };
    if let Some(refused) = served.refusal_of(Route::Jobs, address, &asker.principal) {
        return refused;
    }
    let Ok(door) = timeout(DOOR_LIMIT, door.wait()).await else {
        let waits = "ingest does not reach its topics yet, see /health: try again\n";
        return (StatusCode::SERVICE_UNAVAILABLE, waits).into_response();
    };
    let answers = door.accept(&body, asker.bearer.as_ref(), now_ms).await;
    (
        status_of(&answers),
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from(lines(&answers)),
    )
        .into_response()
}

fn status_of(answers: &[Answer]) -> StatusCode {
    let is_unknown = |answer: &Answer| matches!(answer, Answer::Unknown { .. });
    match answers.iter().filter(|answer| answer.is_accepted()).count() {
        0 if answers.iter().any(is_unknown) => StatusCode::SERVICE_UNAVAILABLE,
        0 => StatusCode::BAD_REQUEST,
        some if some == answers.len() => StatusCode::ACCEPTED,
        _ => StatusCode::MULTI_STATUS,
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
enum Route {
    Jobs,
    Health,
    Metrics,
}

impl Route {
    fn action(self) -> Action {
        match self {
            Self::Jobs => Action::PostJobs,
            Self::Health => Action::ViewHealth,
            Self::Metrics => Action::ViewMetrics,
        }
    }

    fn operation(self) -> Operation {
        match self {
            Self::Jobs => Operation::RequestJobs,
            Self::Health => Operation::ViewHealth,
            Self::Metrics => Operation::ViewMetrics,
        }
    }
}

impl Served {
    /// What whoever sends these `headers` is answered where he may not.
    fn refusal(&self, route: Route, address: SocketAddr, headers: &HeaderMap) -> Option<Response> {
        let now_ms = chrono::Utc::now().timestamp_millis();
        let asker = asker_of_request(authorization(headers), &self.identity.borrow(), now_ms);
        match asker {
            Ok(principal) => self.refusal_of(route, address, &principal),
            Err(refusal) => Some(self.refuse_unproven(route, address, &refusal)),
        }
    }

    /// What `principal` is answered where he may not.
    fn refusal_of(&self, route: Route, address: SocketAddr, principal: &Principal) -> Option<Response> {
        let ruling = self.authority.borrow().may(principal, route.action());
        if ruling.is_allowed {
            return None;
        }
        let detail = format!(
            "{principal} may not {}: {}",
            route.action().as_str(),
            ruling.refusal()
        );
        let request = RefusedRequest {
            operation: route.operation(),
            actor: match principal {
                Principal::Tenant(tenant) => Actor::Tenant(tenant.clone()),
                Principal::User(User { name, .. }) => Actor::User(name.clone()),
                Principal::Stranger => Actor::Unknown,
            },
            code: ReasonCode::NotPermitted,
            detail: detail.clone(),
            policy: ruling.decided_by().map(|by| by.to_string()),
        };
        let could_be_known = *principal == Principal::Stranger && self.identity.borrow().demands_anywhere();
        let (status, challenge) = match could_be_known {
            true => (StatusCode::UNAUTHORIZED, "Bearer"),
            false => (StatusCode::FORBIDDEN, "Bearer error=\"insufficient_scope\""),
        };
        Some(self.refuse(status, challenge, address, request))
    }

    /// What is answered to a token that proves nothing.
    fn refuse_unproven(&self, route: Route, address: SocketAddr, refusal: &Refusal) -> Response {
        let (status, challenge) = match refusal {
            Refusal::Missing => (StatusCode::UNAUTHORIZED, "Bearer"),
            Refusal::Tenant(_) => (StatusCode::FORBIDDEN, "Bearer error=\"insufficient_scope\""),
            _ => (StatusCode::UNAUTHORIZED, "Bearer error=\"invalid_token\""),
        };
        let request = RefusedRequest {
            operation: route.operation(),
            actor: Actor::Unknown,
            code: refusal.code(),
            detail: refusal.to_string(),
            policy: None,
        };
        self.refuse(status, challenge, address, request)
    }

    /// A problem of RFC 9457, and the challenge of RFC 6750; the metrics and the audit have it too.
    fn refuse(
        &self,
        status: StatusCode,
        challenge: &'static str,
        address: SocketAddr,
        request: RefusedRequest,
    ) -> Response {
        let problem = json!({
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "reason_code": request.code,
            "detail": request.detail,
        });
        count_refused(request.code);
        self.auditor.tell_of_request(&address.ip().to_string(), request);
        let headers = [
            (header::CONTENT_TYPE, "application/problem+json"),
            (header::WWW_AUTHENTICATE, challenge),
        ];
        (status, headers, Body::from(format!("{problem}\n"))).into_response()
    }
}

fn authorization(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(header::AUTHORIZATION)
        .into_iter()
        .map(HeaderValue::as_bytes)
}

fn lines(answers: &[Answer]) -> String {
    let mut text = String::new();
    for answer in answers {
        text.push_str(&serde_json::to_string(answer).expect("an answer has only types that JSON can hold"));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
    };

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::{access, identity};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_that_falls_silent_does_not_hold_up_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = Served {
            health: Health::default(),
            metrics: PrometheusBuilder::new().build_recorder().handle(),
            door: None,
            identity: identity::nobody().in_force(),
            authority: access::built_in().in_force(),
            auditor: Auditor::default(),
        };
        let shutdown = CancellationToken::new();
        let limit = Duration::from_millis(10);
        let serving = tokio::spawn(serve_until(listener, served, 1_000, shutdown.clone(), limit));
        let mut client = TcpStream::connect(address).unwrap();
        let head =
            "POST /v1/jobs HTTP/1.1\r\nhost: here\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n";
        client.write_all(head.as_bytes()).unwrap();
        let mut go_on = [0; 12];
        client.read_exact(&mut go_on).unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100", "the body is waited for");
        shutdown.cancel();
        let ended = timeout(Duration::from_secs(30), serving).await;
        ended.expect("it ends").unwrap().unwrap();
    }

    #[test]
    fn a_sender_is_told_to_mend_his_jobs_only_where_all_that_is_wrong_is_theirs() {
        let accepted = Answer::Accepted {
            line: 1,
            topic: "jobs".to_owned(),
            partition: 0,
            offset: 7,
        };
        let (line, error) = (2, String::new());
        let refused = Answer::Refused {
            line,
            error: error.clone(),
        };
        let unknown = Answer::Unknown { line, error };
        for (answers, status) in [
            (vec![&accepted, &accepted], 202),
            (vec![&accepted, &refused], 207),
            (vec![&accepted, &unknown], 207),
            (vec![&refused, &refused], 400),
            (vec![&refused, &unknown], 503),
        ] {
            let answers: Vec<Answer> = answers.into_iter().cloned().collect();
            assert_eq!(status_of(&answers).as_u16(), status, "{answers:?}");
        }
    }
}

//! What is served over HTTP: health, metrics, and beside ingest the door for jobs.

mod connections;
mod room;

use std::{future::poll_fn, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use axum::{
    Json, Router,
    body::{Body, HttpBody},
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use ingest::{
    Answer, HttpDoor, LINES_MAX, asker_at_the_door, asker_of_request, count_lines, count_put_off,
    count_refused,
    identity::{Identity, Refusal},
};
use metrics_exporter_prometheus::PrometheusHandle;
use schemas::{Action, Actor, Authority, Operation, Principal, ReasonCode, Tenant, User};
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::{SetOnce, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::{Auditor, RefusedRequest},
    config::HttpSection,
    health::Health,
    shutdown::or_given_up,
};
use connections::Limits;
use room::{Amount, NoRoom, Part, Room};

/// How long a request waits for ingest to reach its topics.
pub(crate) const DOOR_LIMIT: Duration = Duration::from_secs(5);
/// So many bodies of the greatest length that one may have are held at once, or as many more as they are shorter.
const LARGEST_BODIES: usize = 4;
/// The same of one tenant, where a token proves whose they are.
const LARGEST_BODIES_OF_TENANT: usize = 2;
/// How long a client may send nothing of a body, or it would keep the room of what it has sent from the others.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// How long all of a body may take, or a client that sends a byte now and then would keep it for ever.
pub(crate) const BODY_LIMIT: Duration = Duration::from_secs(300);
/// Whoever is put off may try again after this long.
const RETRY_AFTER_S: &str = "1";
/// How long requests under way are waited for at the end: one whose client falls silent would hold up the process for ever.
const LAST_REQUESTS_LIMIT: Duration = Duration::from_secs(10);
/// Where nobody has set it otherwise a process may have 1,024 files, and clients that open many connections must leave some to the
/// topics and the lake. A proxy keeps connections to use them again, for a minute as a rule, and must not find one closed that it
/// has just sent a request on.
const LIMITS: Limits = Limits {
    connections_max: 512,
    head: Duration::from_secs(75),
    answer: BODY_LIMIT,
};

/// What the routes look at.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) health: Health,
    pub(crate) metrics: PrometheusHandle,
    /// Where jobs come in; none in a process without ingest.
    pub(crate) door: Option<Door>,
    /// Where the bodies of requests that bring them are held.
    pub(crate) bodies: Bodies,
    /// Whether a token is demanded there, and whose are good.
    pub(crate) identity: watch::Receiver<Arc<Identity>>,
    /// Who may ask for what.
    pub(crate) authority: watch::Receiver<Arc<dyn Authority>>,
    /// Who is told of what is refused there.
    pub(crate) auditor: Auditor,
}

/// The memory for the bodies of requests under way. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Bodies {
    bytes_max: usize,
    room: Room,
}

impl Bodies {
    /// For bodies of at most so many bytes each.
    pub(crate) fn of_at_most(bytes_max: usize) -> Self {
        let largest = Amount {
            lines: LINES_MAX,
            ..Amount::of_bytes(bytes_max)
        };
        let (whole, of_tenant_max) = (
            largest.times(LARGEST_BODIES),
            largest.times(LARGEST_BODIES_OF_TENANT),
        );
        Self {
            bytes_max,
            room: Room::new(whole, of_tenant_max),
        }
    }

    /// All of `body`, and the room that it and the answers to its lines have until that is dropped. It is of `tenant`'s, where
    /// somebody knows.
    async fn take(&self, body: Body, tenant: Option<Tenant>) -> Result<(Bytes, Part), NotTaken> {
        let gathered = timeout(BODY_LIMIT, self.gather(body, self.room.part(tenant))).await;
        let (body, mut part) = gathered.map_err(|_| NotTaken::Late)??;
        let lines = count_lines(&body);
        if lines > LINES_MAX {
            return Err(NotTaken::TooManyLines);
        }
        part.grow_to(Amount::of_lines(lines))?;
        Ok((body.into(), part))
    }

    /// Room is taken as the body comes: what is only announced keeps nobody out.
    async fn gather(&self, mut body: Body, mut part: Part) -> Result<(Vec<u8>, Part), NotTaken> {
        if body.size_hint().lower() > self.bytes_max as u64 {
            return Err(NotTaken::TooLong);
        }
        let mut bytes = Vec::new();
        part.grow_to(Amount::of_bytes(0))?;
        loop {
            let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context));
            let frame = timeout(SILENCE_LIMIT, frame).await.map_err(|_| NotTaken::Late)?;
            let Some(frame) = frame else {
                return Ok((bytes, part));
            };
            let Ok(data) = frame.map_err(NotTaken::Broken)?.into_data() else {
                continue;
            };
            let length = bytes.len() + data.len();
            if length > self.bytes_max {
                return Err(NotTaken::TooLong);
            }
            part.grow_to(Amount::of_bytes(length))?;
            bytes.extend_from_slice(&data);
        }
    }
}

impl From<NoRoom> for NotTaken {
    fn from(NoRoom: NoRoom) -> Self {
        Self::NoRoom
    }
}

/// Why a body was not taken.
#[derive(Debug)]
enum NotTaken {
    /// It is longer than a body may be.
    TooLong,
    /// It has more lines than a body may have.
    TooManyLines,
    /// Others have all the room, or its tenant has as much as one may.
    NoRoom,
    /// Its client does not send it, or not in time.
    Late,
    /// It broke off.
    Broken(axum::Error),
}

impl IntoResponse for NotTaken {
    fn into_response(self) -> Response {
        match self {
            Self::TooLong => {
                let too_long = "there are more bytes than http.body_bytes_max: bring fewer jobs at once\n";
                (StatusCode::PAYLOAD_TOO_LARGE, too_long).into_response()
            }
            Self::NoRoom => {
                count_put_off();
                let full = "the requests under way leave no room for this one: try again, or bring fewer jobs at once\n";
                put_off(full)
            }
            Self::TooManyLines => {
                let too_many = format!("there are more than {LINES_MAX} lines: bring fewer jobs at once\n");
                (StatusCode::PAYLOAD_TOO_LARGE, too_many).into_response()
            }
            Self::Late => (StatusCode::REQUEST_TIMEOUT, "the jobs do not come in time\n").into_response(),
            Self::Broken(error) => {
                (StatusCode::BAD_REQUEST, format!("the jobs broke off: {error}\n")).into_response()
            }
        }
    }
}

/// Nothing was taken, and the same request may be later.
fn put_off(why: &'static str) -> Response {
    let headers = [(header::RETRY_AFTER, RETRY_AFTER_S)];
    (StatusCode::SERVICE_UNAVAILABLE, headers, why).into_response()
}

/// The door for jobs, which ingest opens once it reaches its topics.
pub(crate) type Door = Arc<SetOnce<HttpDoor>>;

/// Opens the address to listen on.
pub(crate) async fn bind(section: &HttpSection) -> anyhow::Result<TcpListener> {
    ensure!(
        section.body_bytes_max > 0,
        "http.body_bytes_max is 0, and no job would ever get through: it must be at least 1"
    );
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
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    serve_until(listener, served, shutdown, LIMITS, LAST_REQUESTS_LIMIT).await
}

async fn serve_until(
    listener: TcpListener,
    served: Served,
    shutdown: CancellationToken,
    limits: Limits,
    last_requests_limit: Duration,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/jobs", post(jobs))
        .with_state(served);
    let serving = connections::serve(listener, router, limits, shutdown.clone());
    if or_given_up(serving, &shutdown, last_requests_limit)
        .await
        .is_none()
    {
        tracing::warn!("ended without an answer to requests that do not come to their end");
    }
    Ok(())
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
/// policies do not let who brings it, before its body is read; and put off with 503 where there is no room for that, ended with
/// 408 where it does not come in time, and refused with 413 where it is too long or has too many lines.
async fn jobs(
    State(served): State<Served>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let Some(door) = &served.door else {
        return (StatusCode::NOT_FOUND, "jobs are taken where ingest runs\n").into_response();
    };
    let asker = asker_at_the_door(
        authorization(request.headers()),
        &served.identity.borrow(),
        now_ms(),
    );
    let asker = match asker {
        Ok(asker) => asker,
        Err(refusal) => return served.refuse_unproven(Route::Jobs, address, &refusal),
    };
    if let Some(refused) = served.refusal_of(Route::Jobs, address, &asker.principal) {
        return refused;
    }
    let Ok(door) = timeout(DOOR_LIMIT, door.wait()).await else {
        let waits = "ingest does not reach its topics yet, see /health: try again\n";
        return put_off(waits);
    };
    let tenant = match asker.principal {
        Principal::Tenant(tenant) => Some(tenant),
        Principal::User(user) => user.tenant,
        Principal::Stranger => None,
    };
    let (body, room) = match served.bodies.take(request.into_body(), tenant).await {
        Ok(taken) => taken,
        Err(not_taken) => return not_taken.into_response(),
    };
    let answers = door.accept(&body, asker.bearer.as_ref(), now_ms()).await;
    (
        status_of(&answers),
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        room.until_sent(lines(&answers).into()),
    )
        .into_response()
}

fn status_of(answers: &[Answer]) -> StatusCode {
    match answers.iter().filter(|answer| answer.is_accepted()).count() {
        0 if Answer::tell_that_nobody_answers(answers) => StatusCode::SERVICE_UNAVAILABLE,
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
        let asker = asker_of_request(authorization(headers), &self.identity.borrow(), now_ms());
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

fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
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
        time::Instant,
    };

    use futures::StreamExt;
    use ingest::identity::{Config, Keys, Required};
    use metrics_exporter_prometheus::PrometheusBuilder;
    use schemas::TopicName;
    use topics::{TopicSpec, Topics as _, local::LocalTopics};

    use super::*;
    use crate::{access, identity};

    const BODY_BYTES_MAX: usize = 1 << 20;

    /// Where it is, the room there, what ends it, and the end.
    type Serving = (
        SocketAddr,
        Bodies,
        CancellationToken,
        tokio::task::JoinHandle<anyhow::Result<()>>,
    );

    /// Serves a door to topics in memory, where a token is demanded or not.
    async fn serving(demands_token: bool) -> Serving {
        serving_within(LIMITS, demands_token).await
    }

    async fn serving_within(limits: Limits, demands_token: bool) -> Serving {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (topics, jobs) = (LocalTopics::in_memory(), TopicName::new("jobs").unwrap());
        topics.ensure(&[TopicSpec::new(jobs.clone(), 1)]).await.unwrap();
        let bodies = Bodies::of_at_most(BODY_BYTES_MAX);
        let opened = HttpDoor::new(topics.appender().await.unwrap(), jobs);
        let identity = match demands_token {
            true => watch::channel(Arc::new(identity_that_demands())).1,
            false => identity::nobody().in_force(),
        };
        let served = Served {
            health: Health::default(),
            metrics: PrometheusBuilder::new().build_recorder().handle(),
            door: Some(Arc::new(SetOnce::new_with(Some(opened)))),
            bodies: bodies.clone(),
            identity,
            authority: access::built_in().in_force(),
            auditor: Auditor::default(),
        };
        let shutdown = CancellationToken::new();
        let last_requests_limit = Duration::from_millis(10);
        let serving = serve_until(listener, served, shutdown.clone(), limits, last_requests_limit);
        let serving = tokio::spawn(serving);
        (address, bodies, shutdown, serving)
    }

    fn identity_that_demands() -> Identity {
        let key = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAFtMXL23lvc49+fFfFyEYx/g03IgJpbf7uCp5wa/J8y4=\n-----END PUBLIC KEY-----\n";
        let config = Config {
            required: Required::Shared,
            keys: None,
            issuer: None,
            audience: None,
            tenant_claim: "tenant".to_owned(),
            roles_claim: None,
            leeway_s: 0,
        };
        Identity::new(&config, Keys::read(key).unwrap())
    }

    /// A client that has sent so much of a request.
    fn sending(address: SocketAddr, sent: &str) -> TcpStream {
        let mut client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        client.write_all(sent.as_bytes()).unwrap();
        client
    }

    /// A client that says how long its jobs are, and waits to be told to send them. Answers what it is told.
    fn announce(address: SocketAddr, bytes: usize) -> (TcpStream, String) {
        let head = format!(
            "POST /v1/jobs HTTP/1.1\r\nhost: here\r\nexpect: 100-continue\r\ncontent-length: {bytes}\r\n\r\n"
        );
        let mut client = sending(address, &head);
        let told = status(&mut client);
        (client, told)
    }

    fn status(client: &mut TcpStream) -> String {
        let mut told = [0; 12];
        client.read_exact(&mut told).unwrap();
        String::from_utf8(told.to_vec()).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_that_falls_silent_does_not_hold_up_the_end() {
        let (address, _, shutdown, serving) = serving(false).await;
        let (_client, told) = announce(address, 9);
        assert_eq!(told, "HTTP/1.1 100", "the body is waited for");
        shutdown.cancel();
        let ended = timeout(Duration::from_secs(30), serving).await;
        ended.expect("it ends").unwrap().unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_the_token_that_is_demanded_no_body_is_waited_for() {
        let (address, ..) = serving(true).await;
        assert_eq!(announce(address, 9).1, "HTTP/1.1 401");
    }

    const HEALTH: &str = "GET /health HTTP/1.1\r\nhost: here\r\n\r\n";

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_without_a_whole_request_does_not_keep_its_connection() {
        let limits = Limits {
            head: Duration::from_millis(50),
            ..LIMITS
        };
        let (address, ..) = serving_within(limits, false).await;
        for begun in ["", "G", HEALTH.trim_end(), HEALTH] {
            let mut client = sending(address, begun);
            let closed = client.read_to_end(&mut Vec::new());
            assert!(closed.is_ok(), "{begun:?}: {closed:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_more_connections_are_open_than_may_be_and_the_next_ones_wait() {
        let limits = Limits {
            connections_max: 1,
            head: Duration::from_millis(50),
            ..LIMITS
        };
        let (address, ..) = serving_within(limits, false).await;
        let mut silent = sending(address, "");
        let mut next = sending(address, HEALTH);
        assert_eq!(status(&mut next), "HTTP/1.1 503", "no service runs");
        silent.set_nonblocking(true).unwrap();
        assert_eq!(silent.read(&mut [0]).unwrap(), 0, "it was closed before");
    }

    /// A client that brings more jobs than its end of a connection holds answers to, and has read no more of these than the
    /// status.
    fn bring_many(address: SocketAddr) -> TcpStream {
        let body = "{}\n".repeat(LINES_MAX);
        let (mut client, told) = announce(address, body.len());
        assert_eq!(told, "HTTP/1.1 100");
        client.write_all(body.as_bytes()).unwrap();
        let mut answered = [0; " Continue\r\n\r\nHTTP/1.1 400".len()];
        client.read_exact(&mut answered).unwrap();
        assert!(answered.ends_with(b" 400"), "none of them is a job");
        client
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn answers_have_their_room_until_they_are_read() {
        let limits = Limits {
            head: Duration::from_secs(1),
            ..LIMITS
        };
        let (address, bodies, ..) = serving_within(limits, false).await;
        let whole = bodies.room.left().kib;
        let mut client = bring_many(address);
        assert!(bodies.room.left().kib < whole);
        client.read_to_end(&mut Vec::new()).unwrap();
        is_left(&bodies, whole).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_that_does_not_read_its_answers_does_not_keep_their_room() {
        let limits = Limits {
            answer: Duration::from_millis(50),
            ..LIMITS
        };
        let (address, bodies, ..) = serving_within(limits, false).await;
        let whole = bodies.room.left().kib;
        let _client = bring_many(address);
        is_left(&bodies, whole).await;
    }

    /// Waits until room for so many KiB is left, for ten seconds.
    async fn is_left(bodies: &Bodies, kib: usize) {
        let began = Instant::now();
        while bodies.room.left().kib != kib {
            assert!(began.elapsed() < Duration::from_secs(10), "{bodies:?}");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn bodies_beyond_the_room_for_them_are_put_off_until_others_are_gone() {
        let (address, bodies, ..) = serving(false).await;
        let mut large: Vec<_> = (0..LARGEST_BODIES)
            .map(|_| announce(address, BODY_BYTES_MAX))
            .collect();
        for (client, told) in &mut large {
            assert_eq!(told, "HTTP/1.1 100");
            client.write_all(&vec![b'\n'; BODY_BYTES_MAX - 1]).unwrap();
        }
        is_left(&bodies, 0).await;
        let (mut put_off, told) = announce(address, 9);
        assert_eq!(told, "HTTP/1.1 503");
        let mut rest = String::new();
        put_off.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("\r\nretry-after: 1\r\n"), "{rest}");
        let (mut client, _) = large.pop().unwrap();
        client.write_all(b"\n").unwrap();
        let mut answered = [0; " Continue\r\n\r\nHTTP/1.1 400".len()];
        client.read_exact(&mut answered).unwrap();
        assert!(answered.ends_with(b" 400"), "there is no job in it");
        is_left(&bodies, BODY_BYTES_MAX / 1024).await;
        assert_eq!(announce(address, 9).1, "HTTP/1.1 100");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_announces_much_and_sends_nothing_keeps_nobody_out() {
        let (address, ..) = serving(false).await;
        let silent: Vec<_> = (0..2 * LARGEST_BODIES)
            .map(|_| announce(address, BODY_BYTES_MAX))
            .collect();
        assert!(silent.iter().all(|(_, told)| told == "HTTP/1.1 100"));
        assert_eq!(announce(address, 9).1, "HTTP/1.1 100");
        assert_eq!(announce(address, BODY_BYTES_MAX + 1).1, "HTTP/1.1 413");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_body_of_more_lines_than_are_taken_is_refused_when_it_is_there() {
        let (address, bodies, ..) = serving(false).await;
        let body = "x\n".repeat(LINES_MAX + 1);
        let (mut client, told) = announce(address, body.len());
        assert_eq!(told, "HTTP/1.1 100");
        client.write_all(body.as_bytes()).unwrap();
        let mut answered = String::new();
        while !answered.ends_with("bring fewer jobs at once\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            answered.extend(byte.map(char::from));
        }
        assert!(
            answered.contains(" 413 ") && answered.contains("more than 100000 lines"),
            "{answered}"
        );
        is_left(&bodies, LARGEST_BODIES * BODY_BYTES_MAX / 1024).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_not_waited_for_without_end() {
        let bodies = Bodies::of_at_most(BODY_BYTES_MAX);
        let trickle = futures::stream::repeat(()).then(|()| async {
            tokio::time::sleep(SILENCE_LIMIT / 2).await;
            Ok::<_, std::io::Error>("x")
        });
        let taken = bodies.take(Body::from_stream(trickle), None).await;
        assert!(matches!(taken, Err(NotTaken::Late)), "{taken:?}");
        is_left(&bodies, LARGEST_BODIES * BODY_BYTES_MAX / 1024).await;
    }

    #[tokio::test]
    async fn bodies_of_one_tenant_leave_room_for_those_of_the_others() {
        let bodies = Bodies::of_at_most(BODY_BYTES_MAX);
        let take = async |tenant: &str| {
            let body = Body::from(vec![b'\n'; BODY_BYTES_MAX]);
            bodies.take(body, Tenant::new(tenant).ok()).await
        };
        let mut of_acme = Vec::new();
        for _ in 0..LARGEST_BODIES_OF_TENANT {
            of_acme.push(take("acme").await.unwrap());
        }
        assert!(matches!(take("acme").await, Err(NotTaken::NoRoom)));
        take("globex").await.unwrap();
        of_acme.pop();
        take("acme").await.unwrap();
    }

    #[tokio::test]
    async fn a_door_that_no_job_would_ever_get_through_is_not_opened() {
        let section = HttpSection {
            listen: "127.0.0.1:0".to_owned(),
            body_bytes_max: 0,
        };
        let refused = bind(&section).await.unwrap_err().to_string();
        assert!(refused.starts_with("http.body_bytes_max is 0"), "{refused}");
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

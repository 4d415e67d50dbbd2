//! Connections: how many there are, and how long one may be open without a request.

use std::{pin::pin, time::Duration};

use axum::{Extension, Router, extract::ConnectInfo, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// What bounds connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// So many are open at once; the next ones wait until one of them ends.
    pub(super) connections_max: usize,
    /// How long the head of a request may take from when it is waited for. A client that sends a byte of it now and then would
    /// keep its connection for ever, and so would one that has no further request.
    pub(super) head: Duration,
}

/// Serves `router` until `shutdown`, and then until the requests under way are answered.
pub(super) async fn serve(
    mut listener: TcpListener,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            (stream, address) = Listener::accept(&mut listener), if connections.len() < limits.connections_max => {
                let router = router.clone().layer(Extension(ConnectInfo(address)));
                connections.spawn(serve_one(stream, router, limits.head, shutdown.clone()));
            }
        }
    }
    // Whoever comes now is refused, and finds another instance.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Serves the requests of one connection. How it ends is its client's matter.
async fn serve_one(stream: TcpStream, router: Router, head_limit: Duration, shutdown: CancellationToken) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_limit);
    let mut serving = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    tokio::select! {
        biased;
        _ = serving.as_mut() => return,
        () = shutdown.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

//! Connections: how many there are, how long one may be open without a request, and how long its client may take an answer.

use std::{
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Extension, Router, extract::ConnectInfo, serve::Listener};
use hyper::{
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Sleep, sleep},
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
    /// How long a client may take to read an answer, which is in memory until then.
    pub(super) answer: Duration,
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
                connections.spawn(serve_one(stream, router, limits, shutdown.clone()));
            }
        }
    }
    // Whoever comes now is refused, and finds another instance.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Serves the requests of one connection. How it ends is its client's matter.
async fn serve_one(stream: TcpStream, router: Router, limits: Limits, shutdown: CancellationToken) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head);
    let stream = ReadInTime {
        inner: TokioIo::new(stream),
        limit: limits.answer,
        until: None,
    };
    let mut serving = pin!(http.serve_connection(stream, TowerToHyperService::new(router)));
    tokio::select! {
        biased;
        _ = serving.as_mut() => return,
        () = shutdown.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

/// A stream that breaks where its client does not read in time what is written to it.
struct ReadInTime {
    inner: TokioIo<TcpStream>,
    limit: Duration,
    /// When all that is being written must have been read; none where nothing waits.
    until: Option<Pin<Box<Sleep>>>,
}

impl ReadInTime {
    fn in_time<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            return written;
        }
        let until = self.until.get_or_insert_with(|| Box::pin(sleep(self.limit)));
        ready!(until.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Read for ReadInTime {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, into)
    }
}

impl Write for ReadInTime {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, bytes);
        self.in_time(context, written)
    }

    /// It is called when all was written.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        if flushed.is_ready() {
            self.until = None;
        }
        self.in_time(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

//! HTTP on the console's connections, and how long each may do what.
//!
//! Owns: time and size limits of connections. Must not know: what is asked and answered on them.
//!
//! Whoever says nothing, or says it slowly, or does not take its answer, is closed: a connection without a request under way ends
//! after some seconds, and every one after some minutes.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::listen::Connection;

/// How long the head of a request may take, and the first of a connection.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// How long a connection may wait for its next request, or for its reader.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// No connection lives longer. Browsers open another one, and nobody notices.
const LIFE_LIMIT: Duration = Duration::from_secs(10 * 60);

/// How long a connection that is to end may take to finish what is under way.
const FAREWELL_LIMIT: Duration = Duration::from_secs(5);

/// How precisely these are kept.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The largest head: two cookies of ours, and what browsers add.
const HEAD_MAX_BYTES: usize = 16 * 1024;

/// A page is one request; a browser with many tabs has a few.
const STREAMS_MAX: u32 = 16;

/// Serves until `stopping` becomes true, and what is under way has ended.
pub(crate) async fn serve(
    mut connections: ReceiverStream<io::Result<Connection>>,
    routes: Router,
    stopping: watch::Receiver<bool>,
) {
    let mut open = JoinSet::new();
    let mut stop = stopping.clone();
    loop {
        tokio::select! {
            next = connections.next() => match next {
                Some(Ok(connection)) => drop(open.spawn(converse(connection, routes.clone(), stopping.clone()))),
                // Listening goes on; what was wrong has been said.
                Some(Err(_)) => {}
                None => break,
            },
            Some(_) = open.join_next() => {}
            // A dropped sender means the same.
            _ = stop.wait_for(|is_stopping| *is_stopping) => break,
        }
    }
    drop(connections);
    while open.join_next().await.is_some() {}
}

async fn converse(connection: Connection, routes: Router, mut stopping: watch::Receiver<bool>) {
    let activity = Arc::new(Activity::new());
    let noting = Arc::clone(&activity);
    let routes = routes
        .layer(Extension(connection.peer().clone()))
        .layer(from_fn(move |request: Request, next: Next| note(Arc::clone(&noting), request, next)));
    let builder = builder(connection.is_http2());
    let serving = builder.serve_connection(TokioIo::new(connection), TowerToHyperService::new(routes));
    tokio::pin!(serving);
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    let mut is_stopping = false;
    loop {
        tokio::select! {
            // Why a browser went away is of no interest.
            _ = &mut serving => return,
            _ = look.tick() => {}
            _ = stopping.wait_for(|is_stopping| *is_stopping), if !is_stopping => is_stopping = true,
        }
        if is_stopping || activity.has_lasted() {
            serving.as_mut().graceful_shutdown();
            // Dropped, it is closed.
            let _ = tokio::time::timeout(FAREWELL_LIMIT, &mut serving).await;
            return;
        }
    }
}

fn builder(is_http2: bool) -> Builder<TokioExecutor> {
    let builder = Builder::new(TokioExecutor::new());
    let mut builder = if is_http2 { builder.http2_only() } else { builder.http1_only() };
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(HEAD_MAX_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_MAX_BYTES as u32)
        .max_concurrent_streams(STREAMS_MAX)
        .max_send_buf_size(64 * 1024);
    builder
}

/// What goes on on a connection.
#[derive(Debug)]
struct Activity {
    began: Instant,
    under_way: AtomicUsize,
    /// When the last request was answered; None: there was none yet.
    answered: Mutex<Option<Instant>>,
}

impl Activity {
    fn new() -> Self {
        Self { began: Instant::now(), under_way: AtomicUsize::new(0), answered: Mutex::default() }
    }

    /// Whether it has had its time.
    fn has_lasted(&self) -> bool {
        let is_busy = self.under_way.load(Ordering::SeqCst) > 0;
        let answered = *self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let is_silent = match answered {
            None => self.began.elapsed() > HEAD_LIMIT,
            Some(answered) => answered.elapsed() > SILENCE_LIMIT,
        };
        self.began.elapsed() > LIFE_LIMIT || (is_silent && !is_busy)
    }
}

async fn note(activity: Arc<Activity>, request: Request, next: Next) -> Response {
    let _under_way = UnderWay::begin(Arc::clone(&activity));
    next.run(request).await
}

/// One request, until it is answered or given up.
struct UnderWay(Arc<Activity>);

impl UnderWay {
    fn begin(activity: Arc<Activity>) -> Self {
        activity.under_way.fetch_add(1, Ordering::SeqCst);
        Self(activity)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        *self.0.answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

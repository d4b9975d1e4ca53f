//! The collector's server. It binds before it returns; then it works on a thread of its own, and writes on a few others.
//!
//! What comes from the network costs little until it has shown a token: the order is token, a machine's turn, a place in the
//! queue, body, and only then decompression. Queue, bodies and texts are bounded, so memory is; who finds no place is told
//! when to come back.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use leakscope_board::{Incoming, acceptor, may_listen};
use leakscope_history::Taken;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::boards;
use crate::error::CollectError;
use crate::shelf::Shelf;
use crate::tokens::Tokens;
use crate::wire::{self, MOST_BYTES};

/// Connections at a time; more wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 256;
/// Threads that decompress and write.
const WRITERS: usize = 4;
/// How long a body may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);
/// When to come back: after another request of the same machine, at a full queue (at most), at a full disk, seconds.
const TURN_SECONDS: u64 = 1;
const QUEUE_SECONDS: u64 = 5;
const DISK_SECONDS: u64 = 60;
/// Complaints that are remembered, so that each is told once.
const MOST_TOLD: usize = 1000;

/// Where and how to listen, and where to keep what comes.
#[derive(Clone, Debug)]
pub struct CollectOptions {
    /// The address.
    pub listen: SocketAddr,
    /// A folder with a file for each machine.
    pub tokens: PathBuf,
    /// A certificate chain and its key, as PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Whether a proxy in front of us has TLS.
    pub behind_proxy: bool,
    /// The folder for the machines' histories.
    pub state: PathBuf,
    /// Bodies that are taken in or wait to be written at a time.
    pub queue: usize,
}

/// A collector that runs until the process ends.
#[derive(Clone, Debug)]
pub struct Collector {
    /// Where it listens: with the port that the kernel chose when 0 was asked for.
    pub address: SocketAddr,
    /// Whether it speaks TLS.
    pub is_tls: bool,
    /// Machines whose tokens are known.
    pub machines: usize,
    /// What is to be said of the tokens.
    pub complaints: Vec<String>,
}

#[derive(Clone)]
struct App {
    tokens: Arc<Tokens>,
    shelf: Arc<Shelf>,
    /// Machines with a request under way.
    busy: Arc<Mutex<HashSet<String>>>,
    places: Arc<Semaphore>,
    tell: Sender<String>,
    told: Arc<Mutex<HashSet<String>>>,
}

/// Begins to collect; what is worth saying later goes to `tell`.
///
/// # Errors
/// When listening there is not safe or not possible, or tokens or certificate cannot be used.
pub fn serve(options: &CollectOptions, tell: Sender<String>) -> Result<Collector, CollectError> {
    let listen = options.listen;
    may_listen(listen, true, options.tls.is_some(), options.behind_proxy)
        .map_err(|reason| CollectError::Refused { listen, reason })?;
    let (tokens, complaints) = Tokens::read(&options.tokens)?;
    let tls = options.tls.as_ref().map(|(certificate, key)| acceptor(certificate, key)).transpose();
    let tls = tls.map_err(CollectError::certificate)?;
    let failed = |source| CollectError::Listen { listen, source };
    let listener = std::net::TcpListener::bind(listen).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let collector = Collector { address, is_tls: tls.is_some(), machines: tokens.len(), complaints };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(WRITERS)
        .build()
        .map_err(failed)?;
    let app = App {
        tokens: Arc::new(tokens),
        shelf: Arc::new(Shelf::new(&options.state)),
        busy: Arc::default(),
        places: Arc::new(Semaphore::new(options.queue)),
        tell,
        told: Arc::default(),
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            let Ok(incoming) = Incoming::new(listener, tls, MOST_CONNECTIONS) else { return };
            // It never ends by itself.
            let _ = axum::serve(incoming, router(app)).await;
        });
    });
    Ok(collector)
}

fn router(app: App) -> Router {
    Router::new()
        .route("/v1/stretches", post(take))
        .route("/v1/board", post(take_board))
        .route("/v1/position", get(position))
        // `take` has a limit of its own, which it looks at before it reads.
        .layer(DefaultBodyLimit::disable())
        .with_state(app)
}

impl App {
    /// The machine whose token a request shows.
    fn machine(&self, headers: &HeaderMap) -> Option<String> {
        let text = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = text.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        self.tokens.machine(token.trim())
    }

    /// Tells each thing once.
    fn tell(&self, line: String) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= MOST_TOLD {
            told.clear();
        }
        if told.insert(line.clone()) {
            // The daemon may be ending.
            let _ = self.tell.send(line);
        }
    }
}

/// A machine's turn, until it is dropped.
struct Turn {
    busy: Arc<Mutex<HashSet<String>>>,
    machine: String,
}

impl Turn {
    fn take(busy: &Arc<Mutex<HashSet<String>>>, machine: &str) -> Option<Self> {
        let is_free = busy.lock().unwrap_or_else(PoisonError::into_inner).insert(machine.to_owned());
        is_free.then(|| Self { busy: Arc::clone(busy), machine: machine.to_owned() })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.machine);
    }
}

/// What holds a place while a body is worked on.
type Held = (Turn, OwnedSemaphorePermit);

/// A body whose sender may send it now.
struct Admitted {
    machine: String,
    bytes: Bytes,
    held: Held,
}

/// Looks at a request in the order of what costs least, and takes its body in; otherwise what is to be answered.
async fn admit(app: &App, request: Request) -> Result<Admitted, Response> {
    let (head, body) = request.into_parts();
    let Some(machine) = app.machine(&head.headers) else { return Err(stranger()) };
    if head.headers.get(CONTENT_ENCODING).is_none_or(|kind| kind.as_bytes() != b"zstd") {
        return Err(refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected Content-Encoding: zstd"));
    }
    let length = head.headers.get(CONTENT_LENGTH).and_then(|text| text.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > MOST_BYTES as u64) {
        return Err(too_long());
    }
    let Some(turn) = Turn::take(&app.busy, &machine) else {
        return Err(later(StatusCode::TOO_MANY_REQUESTS, TURN_SECONDS, "another request of this machine is under way"));
    };
    let Ok(place) = Arc::clone(&app.places).try_acquire_owned() else {
        return Err(later(StatusCode::SERVICE_UNAVAILABLE, spread(QUEUE_SECONDS), "the queue is full"));
    };
    let bytes = match tokio::time::timeout(PATIENCE, Limited::new(body, MOST_BYTES).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_long()),
        Ok(Err(_)) => return Err(refusal(StatusCode::BAD_REQUEST, "the body ended too early")),
        Err(_) => return Err(refusal(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    };
    Ok(Admitted { machine, bytes, held: (turn, place) })
}

async fn take(State(app): State<App>, request: Request) -> Response {
    let Admitted { machine, bytes, held } = match admit(&app, request).await {
        Ok(admitted) => admitted,
        Err(response) => return response,
    };
    let shelf = Arc::clone(&app.shelf);
    let name = machine.clone();
    // Turn and place go with the work: a client that has gone away does not make room for the next before it is done.
    let work = move || keep(&shelf, &name, &bytes, held);
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok((taken, said))) => {
            if let Some(line) = said {
                app.tell(line);
            }
            answer(
                StatusCode::OK,
                &json!({ "position": taken.position, "ticks": taken.ticks, "known": taken.known, "late": taken.late }),
            )
        }
        Ok(Err(error)) => refused(&app, &machine, &error),
        Err(_) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "the collector has a mistake; look at its log"),
    }
}

async fn take_board(State(app): State<App>, request: Request) -> Response {
    let Admitted { machine, bytes, held } = match admit(&app, request).await {
        Ok(admitted) => admitted,
        Err(response) => return response,
    };
    let (shelf, name) = (Arc::clone(&app.shelf), machine.clone());
    let work = move || {
        let kept = boards::keep(shelf.state(), &name, &bytes);
        drop(held);
        kept
    };
    match tokio::task::spawn_blocking(work).await {
        // Agents read positions alone; of boards there is none.
        Ok(Ok(())) => answer(StatusCode::OK, &json!({ "position": 0 })),
        Ok(Err(error)) => refused(&app, &machine, &error),
        Err(_) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "the collector has a mistake; look at its log"),
    }
}

/// Decompresses and writes. Blocking.
fn keep(shelf: &Shelf, machine: &str, bytes: &[u8], _held: Held) -> Result<(Taken, Option<String>), CollectError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (stream, stretch) = wire::decode(bytes, now)?;
    shelf.take(machine, &stream, &stretch)
}

fn refused(app: &App, machine: &str, error: &CollectError) -> Response {
    match error {
        CollectError::Hole { position } => answer(StatusCode::CONFLICT, &json!({ "position": position })),
        CollectError::Malformed { reason } => {
            app.tell(format!("{machine}: {error}"));
            refusal(StatusCode::BAD_REQUEST, reason)
        }
        CollectError::History(history) if history.is_full_disk() => {
            app.tell(error.to_string());
            later(StatusCode::SERVICE_UNAVAILABLE, DISK_SECONDS, "the collector's disk is full or cannot be written")
        }
        _ => {
            app.tell(format!("{machine}: {error}"));
            refusal(StatusCode::INTERNAL_SERVER_ERROR, "it cannot be kept; look at the collector's log")
        }
    }
}

#[derive(Deserialize)]
struct PositionQuery {
    stream: String,
}

async fn position(State(app): State<App>, Query(query): Query<PositionQuery>, headers: HeaderMap) -> Response {
    let Some(machine) = app.machine(&headers) else { return stranger() };
    if !wire::is_stream(&query.stream) {
        return refusal(StatusCode::BAD_REQUEST, "`stream` must be 32 hexadecimal digits");
    }
    let (shelf, name) = (Arc::clone(&app.shelf), machine.clone());
    match tokio::task::spawn_blocking(move || shelf.position(&name, &query.stream)).await {
        Ok(Ok(position)) => answer(StatusCode::OK, &json!({ "position": position })),
        Ok(Err(error)) => refused(&app, &machine, &error),
        Err(_) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "the collector has a mistake; look at its log"),
    }
}

fn answer(status: StatusCode, value: &serde_json::Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    for (name, value) in [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn refusal(status: StatusCode, words: &str) -> Response {
    answer(status, &json!({ "error": words }))
}

fn stranger() -> Response {
    refusal(StatusCode::UNAUTHORIZED, "the token is missing or wrong")
}

fn too_long() -> Response {
    refusal(StatusCode::PAYLOAD_TOO_LARGE, "a body may have 2 MiB")
}

fn later(status: StatusCode, seconds: u64, words: &str) -> Response {
    let mut response = refusal(status, words);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// From 1 to so many seconds, so that those who are turned away do not come back at once.
fn spread(seconds: u64) -> u64 {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    1 + u64::from(nanos / 1000) % seconds
}

//! The server of the page: addresses to answers. It binds before it returns, so that a port that is taken is known at the
//! start; then it works on a thread of its own.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::header::{
    AUTHORIZATION, CONTENT_TYPE, ETAG, HOST, HeaderName, HeaderValue, IF_NONE_MATCH, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use serde_json::json;
use tokio_rustls::TlsAcceptor;

use crate::connection::Incoming;
use crate::guard::{Answer, Asked, HEADERS, Refused, Rules, may_listen};
use crate::machines::{Machines, Source};
use crate::view::{Board, Shared};
use crate::{profile, prometheus, series};

const INDEX: &str = include_str!("../web/index.html");
const SCRIPT: &str = include_str!("../web/dist/main.js");
const STYLE: &str = include_str!("../web/dist/main.css");
const ICON: &str = include_str!("../web/icon.svg");
/// Connections at a time.
const MOST_CONNECTIONS: usize = 64;
/// A series may go back so far, seconds.
const LONGEST: u64 = 400 * 86_400;

/// Where and how to listen.
#[derive(Clone, Debug)]
pub struct PageOptions {
    /// The address.
    pub listen: SocketAddr,
    /// What must be shown to look; needed beyond loopback.
    pub token: Option<String>,
    /// A certificate chain and its key, as PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Whether a proxy in front of us has TLS.
    pub behind_proxy: bool,
}

/// Why there is no page.
#[derive(Debug)]
pub enum PageError {
    /// Listening there is not safe.
    Refused {
        /// Where.
        listen: SocketAddr,
        /// Why not.
        reason: Refused,
    },
    /// The address cannot be had.
    Listen {
        /// Where.
        listen: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The certificate or its key cannot be used.
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { listen, reason } => write!(f, "page {listen}: {}", reason.words()),
            Self::Listen { listen, source } => {
                write!(f, "page {listen}: cannot listen there: {source}; name another port with `listen` in [page]")
            }
            Self::Certificate { path, reason } => {
                write!(f, "page: {}: {reason}; expected a PEM file of a certificate and of its key", path.display())
            }
        }
    }
}

impl std::error::Error for PageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Listen { source, .. } => Some(source),
            Self::Refused { .. } | Self::Certificate { .. } => None,
        }
    }
}

/// A server that runs until the process ends.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// Where it listens: with the port that the kernel chose when 0 was asked for.
    pub address: SocketAddr,
    /// Whether it speaks TLS.
    pub is_tls: bool,
}

#[derive(Clone)]
struct App {
    source: Source,
    rules: Rules,
    exported: Arc<Mutex<prometheus::Exported>>,
}

/// Begins to serve the boards of `shared` and the history in a file.
///
/// # Errors
/// When listening there is not safe or not possible, or the certificate cannot be used.
pub fn serve(options: &PageOptions, shared: Shared, history: PathBuf) -> Result<Server, PageError> {
    serve_source(options, Source::One { shared, history: Arc::new(history) })
}

/// Begins to serve the boards and histories of many machines.
///
/// # Errors
/// As of [`serve`].
pub fn serve_many(options: &PageOptions, machines: Arc<dyn Machines>) -> Result<Server, PageError> {
    serve_source(options, Source::Many(machines))
}

fn serve_source(options: &PageOptions, source: Source) -> Result<Server, PageError> {
    let listen = options.listen;
    may_listen(listen, options.token.is_some(), options.tls.is_some(), options.behind_proxy)
        .map_err(|reason| PageError::Refused { listen, reason })?;
    let tls = options.tls.as_ref().map(|(certificate, key)| acceptor(certificate, key)).transpose()?;
    let failed = |source| PageError::Listen { listen, source };
    let listener = std::net::TcpListener::bind(listen).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let server = Server { address: listener.local_addr().map_err(failed)?, is_tls: tls.is_some() };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(2)
        .build()
        .map_err(failed)?;
    let app = App { source, rules: Rules::new(options.token.as_deref()), exported: Arc::default() };
    std::thread::spawn(move || {
        runtime.block_on(async {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            let Ok(incoming) = Incoming::new(listener, tls, MOST_CONNECTIONS) else { return };
            // It never ends by itself.
            let _ = axum::serve(incoming, router(app)).await;
        });
    });
    Ok(server)
}

/// What shakes hands, with a certificate chain and its key from PEM files.
///
/// # Errors
/// When they cannot be used.
pub fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, PageError> {
    let wrong = |path: &Path, reason: String| PageError::Certificate { path: path.to_owned(), reason };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| wrong(certificate, error.to_string()))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(certificate, error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| wrong(certificate, error.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn router(app: App) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/main.js", get(|| async { answer("text/javascript; charset=utf-8", SCRIPT) }))
        .route("/main.css", get(|| async { answer("text/css; charset=utf-8", STYLE) }))
        .route("/icon.svg", get(|| async { answer("image/svg+xml", ICON) }))
        .route("/api/machines", get(machines))
        .route("/api/board", get(board))
        .route("/api/series", get(read_series))
        .route("/api/found", get(read_found))
        .route("/api/profiles", get(read_profiles))
        .route("/api/profile", get(read_profile))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn_with_state(app.rules.clone(), guard))
        .with_state(app)
}

/// Lets nobody through who may not look, and says with every answer what a browser may do with it.
async fn guard(State(rules): State<Rules>, request: Request, next: Next) -> Response {
    let verdict = judge(&rules, &request);
    let mut response = match verdict {
        Answer::Go => next.run(request).await,
        Answer::Unknown => {
            let mut response = refusal(StatusCode::UNAUTHORIZED, "the token is missing or wrong\n");
            let value = HeaderValue::from_static("Basic realm=\"leakscope monitor; the password is the token\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, value);
            response
        }
        Answer::NotOurName => {
            refusal(StatusCode::MISDIRECTED_REQUEST, "this page answers to localhost, 127.0.0.1 and [::1] alone\n")
        }
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

fn judge(rules: &Rules, request: &Request) -> Answer {
    let header = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    // A request by its whole address has the name there.
    let host = header(HOST).or_else(|| request.uri().host());
    rules.judge(&Asked { host, authorization: header(AUTHORIZATION) })
}

fn answer(kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn refusal(status: StatusCode, words: &'static str) -> Response {
    let mut response = answer("text/plain; charset=utf-8", words);
    *response.status_mut() = status;
    response
}

/// The page, which is told whether it is of many machines.
async fn index(State(app): State<App>) -> Response {
    const KIND: &str = "text/html; charset=utf-8";
    match app.source {
        Source::One { .. } => answer(KIND, INDEX),
        Source::Many(_) => answer(KIND, INDEX.replacen("<html ", "<html data-many ", 1)),
    }
}

async fn machines(State(app): State<App>) -> Response {
    let Source::Many(machines) = app.source else {
        return refusal(StatusCode::NOT_FOUND, "this page is of one machine\n");
    };
    match tokio::task::spawn_blocking(move || serde_json::to_vec(&json!({ "machines": machines.all() }))).await {
        Ok(Ok(text)) => answer("application/json", text),
        _ => refusal(StatusCode::INTERNAL_SERVER_ERROR, "the list cannot be written\n"),
    }
}

#[derive(Deserialize)]
struct BoardQuery {
    machine: Option<String>,
}

/// The newest board; nothing when the asker has it.
async fn board(State(app): State<App>, Query(query): Query<BoardQuery>, headers: HeaderMap) -> Response {
    let Some(board) = newest(app.source, query.machine).await else { return unknown_machine() };
    let tag = format!("\"{}-{}\"", board.at, board.passes);
    if headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        return refusal(StatusCode::NOT_MODIFIED, "");
    }
    let mut response = match serde_json::to_vec(&*board) {
        Ok(text) => answer("application/json", text),
        Err(_) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "the board cannot be written\n"),
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

/// The newest board, which may have to be read from a disk.
async fn newest(source: Source, machine: Option<String>) -> Option<Arc<Board>> {
    tokio::task::spawn_blocking(move || source.board(machine.as_deref())).await.ok().flatten()
}

fn unknown_machine() -> Response {
    refusal(StatusCode::NOT_FOUND, "no such machine has sent anything\n")
}

#[derive(Deserialize)]
struct SeriesQuery {
    machine: Option<String>,
    target: String,
    seconds: u64,
}

async fn read_series(State(app): State<App>, Query(query): Query<SeriesQuery>) -> Response {
    let now = newest(app.source.clone(), query.machine.clone()).await.map_or(0, |board| board.at);
    from_history(app.source, query.machine, move |path| {
        series::series(path, &query.target, query.seconds.clamp(60, LONGEST), now)
    })
    .await
}

#[derive(Deserialize)]
struct FoundQuery {
    machine: Option<String>,
    target: Option<String>,
}

async fn read_found(State(app): State<App>, Query(query): Query<FoundQuery>) -> Response {
    from_history(app.source, query.machine, move |path| series::found(path, query.target.as_deref())).await
}

#[derive(Deserialize)]
struct ProfilesQuery {
    machine: Option<String>,
    target: String,
}

async fn read_profiles(State(app): State<App>, Query(query): Query<ProfilesQuery>) -> Response {
    from_history(app.source, query.machine, move |path| profile::moments(path, &query.target)).await
}

#[derive(Deserialize)]
struct ProfileQuery {
    machine: Option<String>,
    target: String,
    source: String,
    at: u64,
    before: Option<u64>,
}

async fn read_profile(State(app): State<App>, Query(query): Query<ProfileQuery>) -> Response {
    from_history(app.source, query.machine, move |path| {
        profile::profile(path, &query.target, &query.source, query.at, query.before)
    })
    .await
}

/// Reads the history on a thread that may wait for the disk.
async fn from_history(
    source: Source,
    machine: Option<String>,
    read: impl FnOnce(&Path) -> Result<serde_json::Value, leakscope_history::HistoryError> + Send + 'static,
) -> Response {
    let work = move || source.history(machine.as_deref()).map(|path| read(&path));
    match tokio::task::spawn_blocking(work).await {
        Ok(Some(Ok(value))) => answer("application/json", value.to_string()),
        Ok(None) => unknown_machine(),
        _ => refusal(StatusCode::SERVICE_UNAVAILABLE, "the history cannot be read now; look at the daemon's log\n"),
    }
}

async fn metrics(State(app): State<App>) -> Response {
    let text = match app.source {
        Source::One { shared, .. } => {
            let mut exported = app.exported.lock().unwrap_or_else(PoisonError::into_inner);
            prometheus::text(&shared.newest(), &mut exported)
        }
        Source::Many(machines) => {
            match tokio::task::spawn_blocking(move || prometheus::text_of_machines(&machines.all())).await {
                Ok(text) => text,
                Err(_) => return refusal(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n"),
            }
        }
    };
    answer(prometheus::CONTENT_TYPE, text)
}

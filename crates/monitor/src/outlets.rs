//! What shows the board and the history to others, started by the daemon: the page, and threads that push metrics and
//! samples.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use leakscope_board::{Board, PageOptions, Server, Shared, otlp, serve, serve_many};
use leakscope_collect::{CollectError, Gallery, Pause, Push, PushOptions, Pushed};

use crate::config::{Collector, Config, Otlp, Page};
use crate::error::MonitorError;
use crate::units::show_hours;

/// Starts what is configured; gives what is to be said of it. What goes wrong later is told to `tell`.
///
/// # Errors
/// When the page cannot listen, or its token or certificate cannot be read.
pub fn start(
    config: &Config,
    shared: &Shared,
    history: PathBuf,
    tell: &Sender<String>,
) -> Result<Vec<String>, MonitorError> {
    let mut said = Vec::new();
    if let Some(page) = &config.page {
        said.push(page_line(&serve(&page_options(page)?, shared.clone(), history.clone())?));
    }
    if let Some(otlp) = &config.otlp {
        let (otlp, shared, tell) = (otlp.clone(), shared.clone(), tell.clone());
        thread::spawn(move || push_all(&otlp, &shared, &tell));
    }
    if let Some(collector) = &config.collector {
        let push = push_to(collector, history)?;
        let (interval, tell) = (collector.interval_seconds, tell.clone());
        said.push(format!("samples go to {}", collector.url));
        let shared = shared.clone();
        thread::spawn(move || send_all(push, &shared, interval, &tell));
    }
    Ok(said)
}

/// Starts the page of a collector; gives what is to be said of it.
///
/// # Errors
/// When it cannot listen, or its token or certificate cannot be read.
pub fn start_many(page: &Page, state: &Path) -> Result<String, MonitorError> {
    Ok(page_line(&serve_many(&page_options(page)?, Arc::new(Gallery::new(state)))?))
}

fn page_options(page: &Page) -> Result<PageOptions, MonitorError> {
    let token = page.token.as_ref().map(leakscope_alerts::Secret::read).transpose()?;
    Ok(PageOptions { listen: page.listen, token, tls: page.tls.clone(), behind_proxy: page.behind_proxy })
}

fn page_line(server: &Server) -> String {
    format!("the page: {}://{}/", if server.is_tls { "https" } else { "http" }, server.address)
}

/// Pushes until the process ends. The same complaint is told once until a push succeeds.
fn push_all(otlp: &Otlp, shared: &Shared, tell: &Sender<String>) {
    let mut complaint: Option<String> = None;
    let mut start = None;
    loop {
        let board = shared.newest();
        if board.passes > 0 {
            let start = *start.get_or_insert(board.at);
            let token = otlp.token.as_ref().map(leakscope_alerts::Secret::read).transpose();
            let pushed = token
                .map_err(|error| error.to_string())
                .and_then(|token| otlp::push(&otlp.url, token.as_deref(), &otlp::encode(&board, start)));
            let now = pushed.err();
            if let Some(line) = now.as_ref().filter(|_| now != complaint) {
                // The daemon may be ending.
                let _ = tell.send(line.clone());
            }
            complaint = now;
        }
        thread::sleep(Duration::from_secs(otlp.interval_seconds));
    }
}

fn push_to(collector: &Collector, history: PathBuf) -> Result<Push, CollectError> {
    Push::new(PushOptions {
        url: collector.url.clone(),
        token: collector.token.clone(),
        ca_file: collector.ca_file.clone(),
        history,
    })
}

/// Sends what is new once; gives what is to be said.
///
/// # Errors
/// When its certificates cannot be read.
pub fn send_once(collector: &Collector, history: PathBuf, shared: &Shared) -> Result<Option<String>, CollectError> {
    let mut push = push_to(collector, history)?;
    Ok(match send(&mut push, &shared.newest()) {
        Ok(pushed) => lost(&pushed),
        Err(error) => Some(error.to_string()),
    })
}

/// What is new of the history, and then what is said of it.
fn send(push: &mut Push, board: &Board) -> Result<Pushed, CollectError> {
    let pushed = push.drain()?;
    if board.passes > 0 {
        push.send_board(board)?;
    }
    Ok(pushed)
}

/// Sends the history until the process ends. The same complaint is told once until something is sent.
fn send_all(mut push: Push, shared: &Shared, interval_seconds: u64, tell: &Sender<String>) {
    let mut pause = Pause::default();
    let mut complaint: Option<String> = None;
    loop {
        let chance = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_micros();
        // Machines that started together do not push together for ever.
        let usual = Duration::from_secs(interval_seconds).mul_f64(0.9 + f64::from(chance % 1000) / 5000.0);
        let (wait, now) = match send(&mut push, &shared.newest()) {
            Ok(pushed) => {
                pause.succeeded();
                (usual, lost(&pushed))
            }
            Err(error) => (pause.failed(&error, chance), Some(error.to_string())),
        };
        if let Some(line) = now.as_ref().filter(|_| now != complaint) {
            // The daemon may be ending.
            let _ = tell.send(line.clone());
        }
        complaint = now;
        thread::sleep(wait);
    }
}

fn lost(pushed: &Pushed) -> Option<String> {
    let hours = pushed.lost_seconds as f64 / 3600.0;
    (pushed.lost_seconds > 0)
        .then(|| format!("collector: {} were forgotten before they could be sent", show_hours(hours)))
}

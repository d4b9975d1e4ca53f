//! What shows the board to others, started by the daemon: the page, and the thread that pushes metrics.

use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use leakscope_board::{PageOptions, Shared, otlp, serve};

use crate::config::{Config, Otlp};
use crate::error::MonitorError;

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
        let token = page.token.as_ref().map(leakscope_alerts::Secret::read).transpose()?;
        let options =
            PageOptions { listen: page.listen, token, tls: page.tls.clone(), behind_proxy: page.behind_proxy };
        let server = serve(&options, shared.clone(), history)?;
        let scheme = if server.is_tls { "https" } else { "http" };
        said.push(format!("the page: {scheme}://{}/", server.address));
    }
    if let Some(otlp) = &config.otlp {
        let (otlp, shared, tell) = (otlp.clone(), shared.clone(), tell.clone());
        thread::spawn(move || push_all(&otlp, &shared, &tell));
    }
    Ok(said)
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

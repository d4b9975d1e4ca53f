//! The agent's side: what the history holds goes to the collector, stretch by stretch. Blocking.
//!
//! Nothing is kept here but the last position that the collector has named: a new [`Push`] asks for it. Whatever fails is
//! tried again, later each time, up to five minutes, or when the collector says so.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use leakscope_alerts::Secret;
use leakscope_board::Board;
use leakscope_history::History;
use serde_json::Value;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::boards;
use crate::error::CollectError;
use crate::wire::{self, MOST_BYTES, MOST_SAMPLES};

const PATIENCE: Duration = Duration::from_secs(60);
/// The most of an answer that is read.
const ANSWER_BYTES: u64 = 64 << 10;
/// The first and the longest pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A collector that asks for more is not believed.
const LONGEST_ASKED: u64 = 3600;

/// Where to.
#[derive(Clone, Debug)]
pub struct PushOptions {
    /// The collector's address: `https://HOST:7879`.
    pub url: String,
    /// This machine's token.
    pub token: Secret,
    /// Certificates in PEM that the collector's is signed by; without it the usual ones.
    pub ca_file: Option<PathBuf>,
    /// The history.
    pub history: PathBuf,
}

/// One history on its way.
#[derive(Debug)]
pub struct Push {
    options: PushOptions,
    agent: ureq::Agent,
    position: Option<u64>,
    most: usize,
    limit: usize,
}

/// What came of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The position that the collector has reached.
    pub position: u64,
    /// Ticks that were sent.
    pub ticks: usize,
    /// Seconds that were no longer there to be sent: they were too old when the collector could be reached again.
    pub lost_seconds: u64,
}

impl Push {
    /// Ready to send; nothing has been asked or sent yet.
    ///
    /// # Errors
    /// When the certificates cannot be read.
    pub fn new(options: PushOptions) -> Result<Self, CollectError> {
        let tls = match &options.ca_file {
            None => TlsConfig::builder().build(),
            Some(path) => TlsConfig::builder().root_certs(roots(path)?).build(),
        };
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            // A collector of many has no room for connections that wait.
            .max_idle_connections(0)
            // A token is not carried anywhere else.
            .max_redirects(0)
            .tls_config(tls)
            .build();
        let agent = config.into();
        Ok(Self { options, agent, position: None, most: MOST_SAMPLES, limit: MOST_SAMPLES })
    }

    /// Sends so many samples at a time, instead of as many as fit.
    pub fn set_most_samples(&mut self, most: usize) {
        (self.most, self.limit) = (most, most);
    }

    /// Sends what is new, until nothing is.
    ///
    /// # Errors
    /// What the first failed step failed of; what was sent before it stays sent.
    pub fn drain(&mut self) -> Result<Pushed, CollectError> {
        let mut all = Pushed { position: 0, ticks: 0, lost_seconds: 0 };
        loop {
            let one = self.step()?;
            all.position = one.position;
            all.ticks += one.ticks;
            all.lost_seconds += one.lost_seconds;
            if one.ticks == 0 {
                return Ok(all);
            }
        }
    }

    /// Sends one stretch; no ticks when nothing is new.
    ///
    /// # Errors
    /// When the history cannot be read, or the collector does not take it; the same is sent again at the next step.
    pub fn step(&mut self) -> Result<Pushed, CollectError> {
        let history = History::open_read_only(&self.options.history)?;
        let stream = history.stream()?;
        let token = self.options.token.read()?;
        let position = match self.position {
            Some(position) => position,
            None => self.ask(&stream, &token)?,
        };
        self.position = Some(position);
        let (stretch, body) = loop {
            let stretch = history.stretch(position, self.most)?;
            if stretch.ticks.is_empty() {
                return Ok(Pushed { position, ticks: 0, lost_seconds: 0 });
            }
            let body = wire::encode(&stream, &stretch)?;
            if body.len() <= MOST_BYTES || stretch.ticks.len() == 1 {
                break (stretch, body);
            }
            self.most = (self.most / 2).max(1);
        };
        drop(history);
        let answer = self
            .agent
            .post(self.address("/v1/stretches"))
            .header("Authorization", format!("Bearer {token}"))
            .header("Content-Type", "application/json")
            .header("Content-Encoding", "zstd")
            .send(&body[..]);
        match self.read(answer) {
            Ok(reached) => {
                self.position = Some(reached);
                self.most = (self.most * 2).min(self.limit);
                Ok(Pushed { position: reached, ticks: stretch.ticks.len(), lost_seconds: lost(position, &stretch) })
            }
            Err(error) => {
                // It may have another position than we think: lost its disk, or taken what it could not answer.
                self.position = None;
                Err(error)
            }
        }
    }

    /// Sends what the monitor says of its targets now. Nothing waits: the next board says what is true then.
    ///
    /// # Errors
    /// When the collector does not take it.
    pub fn send_board(&self, board: &Board) -> Result<(), CollectError> {
        let body = boards::encode(board)?;
        let answer = self
            .agent
            .post(self.address("/v1/board"))
            .header("Authorization", format!("Bearer {}", self.options.token.read()?))
            .header("Content-Type", "application/json")
            .header("Content-Encoding", "zstd")
            .send(&body[..]);
        // A collector that is older than boards has no place for them; that is no reason to complain each time.
        match self.read(answer) {
            Ok(_) | Err(CollectError::Answer { status: 404, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn ask(&self, stream: &str, token: &str) -> Result<u64, CollectError> {
        let answer = self
            .agent
            .get(self.address(&format!("/v1/position?stream={stream}")))
            .header("Authorization", format!("Bearer {token}"))
            .call();
        self.read(answer)
    }

    fn address(&self, path: &str) -> String {
        format!("{}{path}", self.options.url.trim_end_matches('/'))
    }

    /// The position in an answer.
    fn read(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<u64, CollectError> {
        let url = self.options.url.split(['?', '#']).next().unwrap_or_default().to_owned();
        let unreachable =
            |error: ureq::Error| CollectError::Unreachable { url: url.clone(), reason: error.to_string() };
        let mut answer = answer.map_err(unreachable)?;
        let status = answer.status().as_u16();
        let after = answer.headers().get("retry-after").and_then(|text| text.to_str().ok()?.parse::<u64>().ok());
        let text = answer.body_mut().with_config().limit(ANSWER_BYTES).read_to_string().map_err(unreachable)?;
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        match (status, value["position"].as_u64()) {
            (200, Some(position)) => Ok(position),
            _ => {
                let words = value["error"].as_str().unwrap_or("expected 200 and a position; is it a collector?");
                let words: String = words.chars().filter(|c| !c.is_control()).take(300).collect();
                Err(CollectError::Answer { url, status, words, after_seconds: after.map(|s| s.min(LONGEST_ASKED)) })
            }
        }
    }
}

/// Seconds between a position and the first tick that is still there, when the history has forgotten what lay between.
fn lost(position: u64, stretch: &leakscope_history::Stretch) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let oldest = now.saturating_sub(leakscope_history::Scale::Raw.kept_seconds());
    let first = stretch.ticks.first().map_or(0, |tick| tick.at);
    if position > 0 && position < oldest { first.min(now).saturating_sub(position) } else { 0 }
}

fn roots(path: &std::path::Path) -> Result<RootCerts, CollectError> {
    let failed =
        |reason: String| CollectError::File { path: path.to_owned(), what: "read certificates from it", reason };
    let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let mut found: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| failed(error.to_string()))? {
            found.push(certificate);
        }
    }
    if found.is_empty() {
        return Err(failed("there is none in PEM".to_owned()));
    }
    Ok(RootCerts::new_with_certs(&found))
}

/// How long to wait between two attempts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pause {
    failures: u32,
}

impl Pause {
    /// After a success the next failure waits shortly again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// The pause after a failure: twice as long each time, or what the collector asked for, and up to half more by `chance`
    /// (any number), so that machines that failed together do not come back together.
    pub fn failed(&mut self, error: &CollectError, chance: u32) -> Duration {
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        let pause = match error {
            CollectError::Answer { after_seconds: Some(seconds), .. } => Duration::from_secs(*seconds),
            _ => doubled,
        };
        pause + pause.mul_f64(f64::from(chance % 1000) / 2000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_asked_for() {
        let failed = CollectError::Unreachable { url: String::new(), reason: String::new() };
        let mut pause = Pause::default();
        let found: Vec<u64> = (0..12).map(|_| pause.failed(&failed, 0).as_secs()).collect();
        assert_eq!(found, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(pause.failed(&failed, 999).as_secs(), 449);
        pause.succeeded();
        assert_eq!(pause.failed(&failed, 0).as_secs(), 1);
        let asked =
            CollectError::Answer { url: String::new(), status: 503, words: String::new(), after_seconds: Some(7) };
        assert_eq!(pause.failed(&asked, 0).as_secs(), 7);
    }
}
